"""The day's digest: when it is due, and which clients are unusually silent. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, tzinfo
from itertools import pairwise
from typing import Final

LATE: Final = 3600.0  # seconds on the way, after which the digest names a document
ACTIVE_DAYS: Final = 5  # of fewer nobody can say what is usual
KNOWN_FOR: Final = 120  # days before the last deposit that are looked at
SILENT_FOR: Final = 14  # days that are no silence of anybody: holidays
LOOK_BACK: Final = 2 * KNOWN_FOR + KNOWN_FOR  # days: the longest silence that can be told, and what comes before it


@dataclass(frozen=True, slots=True)
class Silence:
    """A client of whom nothing has come for unusually long: since when, and its longest pause before that."""

    client: str
    last: date
    longest: int


@dataclass(frozen=True, slots=True)
class Digest:
    """What the day's digest has to say; false when that is nothing."""

    held: tuple[tuple[str, str, int], ...] = ()  # client, reason, how many
    late: tuple[tuple[str, int, float], ...] = ()  # client, how many, since when
    missed: tuple[tuple[str, int], ...] = ()  # client, how many
    silent: tuple[Silence, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.held or self.late or self.missed or self.silent)


def scheduled(at: str, now: float, zone: tzinfo | None = None) -> float:
    """The last instant, not after `now`, at which the local clock showed `at`; `zone` None is the machine's own.

    On the day that has no such time (summer time begins) it is one hour later; where there are two, the first.
    """
    hour, minute = map(int, at.split(":"))
    today = datetime.fromtimestamp(now, zone).date()
    days = (today + timedelta(days=offset) for offset in (1, 0, -1, -2))
    instants = (datetime.combine(day, time(hour, minute), tzinfo=zone).timestamp() for day in days)
    return next(instant for instant in instants if instant <= now)


def digest_due(at: str, last: float, now: float, zone: tzinfo | None = None) -> bool:
    """Whether a digest is to be made that was not made at `last`: one, however many days have passed."""
    return last < scheduled(at, now, zone) <= now


def silence(client: str, days: Sequence[date], last_digest: date, today: date) -> Silence | None:
    """The client's silence, on the one day (after that of the last digest, up to today) when it becomes unusual.

    Unusual: longer than twice the longest pause between two days with deposits, and at least SILENT_FOR days; known
    of clients with ACTIVE_DAYS such days in the KNOWN_FOR before the last one. What is looked at hangs on that last
    day and not on today, so that the answer does not change while nothing is deposited.
    """
    if not days:
        return None
    last = max(days)
    active = sorted({day for day in days if last - day <= timedelta(days=KNOWN_FOR)})
    if len(active) < ACTIVE_DAYS:
        return None
    longest = max((later - earlier).days for earlier, later in pairwise(active))
    unusual = last + timedelta(days=max(2 * longest + 1, SILENT_FOR))
    return Silence(client, last, longest) if last_digest < unusual <= today else None


def silences(days: Iterable[tuple[str, str]], names: Iterable[str], last: date, today: date) -> tuple[Silence, ...]:
    """Those of the clients `names`, from the journal's rows of client and day (ISO 8601)."""
    by_client: dict[str, list[date]] = {name: [] for name in names}
    for client, day in days:
        if client in by_client:
            by_client[client].append(date.fromisoformat(day))
    found = (silence(client, known, last, today) for client, known in by_client.items())
    return tuple(told for told in found if told is not None)
