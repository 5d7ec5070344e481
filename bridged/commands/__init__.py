"""The command line. Each module brings the commands of one family into the group."""

from bridged.commands import check, explain, held, run, send, status  # noqa: F401 - each adds its commands to the group
from bridged.commands.cli import main

__all__ = ["main"]
