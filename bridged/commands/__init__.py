"""What a person types."""

from bridged.commands.cli import main

__all__ = ["main"]
