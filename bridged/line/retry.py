"""Retry: when a document is tried again, by exponential backoff with jitter.

Pure: `now` is an argument, and nothing sleeps. tenacity computes the waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, Protocol

from tenacity import RetryCallState, Retrying, wait_exponential

_JITTER: Final = 0.2


class Schedule(Protocol):
    """The part of `config.settings.Retry` that sets the waits, in seconds."""

    @property
    def first(self) -> float:
        """The wait after the first failure."""

    @property
    def max(self) -> float:
        """The longest wait."""


def growing(first: float, longest: float, attempt: int, random: Callable[[], float]) -> float:
    """Seconds of backoff: `first`, doubled at each further attempt, plus 0 to 20 % of jitter; `longest` at most.

    `random` returns 0 to 1. Without jitter the documents of one failure would all come back in the same second.
    """
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = max(1, attempt)
    # Not wait_exponential_jitter, because its longest wait has no room for the jitter.
    base = wait_exponential(multiplier=first, max=longest / (1 + _JITTER))(state)
    return base * (1 + _JITTER * random())


def next_due(retry: Schedule, attempts: int, now: float, random: Callable[[], float]) -> float:
    """When a document that has failed `attempts` times is due, in seconds since the epoch; within `retry.max`."""
    return now + growing(retry.first, retry.max, attempts, random)


def tried_for(tries: Sequence[float], now: float, longest: float) -> float:
    """Seconds for which a document has been tried, from the first of `tries` (seconds since the epoch) to `now`.

    A gap counts as `longest` at most, because no schedule makes a longer one: the clock jumped.
    """
    times = [*sorted(tries), now]
    return sum(min(later - earlier, longest) for earlier, later in pairwise(times) if later > earlier)
