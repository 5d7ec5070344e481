"""When a document is tried again.

Nothing here reads a clock or sleeps: `now` is an argument. The waits themselves are tenacity's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, Protocol

from tenacity import RetryCallState, Retrying, wait_exponential

_JITTER: Final = 0.2


class Schedule(Protocol):
    """The part of `config.Retry` that matters here, in seconds."""

    @property
    def first(self) -> float:
        """The wait after the first failure."""

    @property
    def max(self) -> float:
        """The longest wait."""


def growing(first: float, longest: float, attempt: int, random: Callable[[], float]) -> float:
    """`first`, doubled at each attempt, plus 0 to 20 % so that many do not come back as one.

    Never over `longest`: room for the jitter is left below it (wait_exponential_jitter has none there).
    """
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = max(1, attempt)
    base = wait_exponential(multiplier=first, max=longest / (1 + _JITTER))(state)
    return base * (1 + _JITTER * random())


def next_due(retry: Schedule, attempts: int, now: float, random: Callable[[], float]) -> float:
    """When a document is due again that has failed `attempts` times; never further away than `max`."""
    return now + growing(retry.first, retry.max, attempts, random)


def tried_for(tries: Sequence[float], now: float, longest: float) -> float:
    """How long (seconds) a document has been tried. A gap over `longest` no schedule makes: the clock jumped."""
    times = [*sorted(tries), now]
    return sum(min(later - earlier, longest) for earlier, later in pairwise(times) if later > earlier)
