"""Hints: something may have happened there. They may be late, double or missing."""

from bridged.watching.hints import Hints
from bridged.watching.inotify import Hint

__all__ = ["Hint", "Hints"]
