"""Hints: a directory or file may have changed. A hint may be late, double or missing; the sweep tells the truth."""

from bridged.watching.hints import Hints
from bridged.watching.inotify import Hint

__all__ = ["Hint", "Hints"]
