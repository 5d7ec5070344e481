"""Work that writes now and then, done to its end by hand."""

from __future__ import annotations

from typing import TypeVar

from bridged.journal import Journal, Steps

T = TypeVar("T")


def done(journal: Journal, steps: Steps[T]) -> T:
    """Returns the result of the work, or raises its exception."""
    ends: dict[int, T | Exception] = {}
    journal.together({0: steps}, ends)
    end = ends[0]
    if isinstance(end, Exception):
        raise end
    return end
