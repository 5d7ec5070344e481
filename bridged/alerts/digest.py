"""The day's digest: when it is due, and which clients are unusually silent. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, tzinfo
from itertools import pairwise
from typing import Final

LATE: Final = 3600.0  # seconds of waiting or of being queued, after which the digest counts a document as late
ACTIVE_DAYS: Final = 5  # days with deposits; with fewer no pause is usual
KNOWN_FOR: Final = 120  # days before the last deposit that count
SILENT_FOR: Final = 14  # days that are no silence of any client, because of holidays
LOOK_BACK: Final = (
    2 * KNOWN_FOR + KNOWN_FOR
)  # days of the longest silence that can be told, and the KNOWN_FOR before it


@dataclass(frozen=True, slots=True)
class Silence:
    """A client without deposits for unusually long: its last day, and its longest pause in days before that."""

    client: str
    last: date
    longest: int


@dataclass(frozen=True, slots=True)
class Digest:
    """The contents of the day's digest. It is false when it is empty."""

    held: tuple[tuple[str, str, int], ...] = ()  # client, reason, how many
    late: tuple[tuple[str, int, float], ...] = ()  # client, how many, since when
    missed: tuple[tuple[str, int], ...] = ()  # client, how many
    silent: tuple[Silence, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.held or self.late or self.missed or self.silent)


def scheduled(at: str, now: float, zone: tzinfo | None = None) -> float:
    """The last instant, not after `now`, at which the local clock showed `at`. Both are seconds since the epoch.

    `zone` None is the machine's own. On the day without that time, when summer time begins, it is one hour later. Of
    two such times on one day it is the first.
    """
    hour, minute = map(int, at.split(":"))
    today = datetime.fromtimestamp(now, zone).date()
    days = (today + timedelta(days=offset) for offset in (1, 0, -1, -2))
    instants = (datetime.combine(day, time(hour, minute), tzinfo=zone).timestamp() for day in days)
    return next(instant for instant in instants if instant <= now)


def digest_due(at: str, last: float, now: float, zone: tzinfo | None = None) -> bool:
    """True when a digest is due since the one at `last`. After a stop of several days one digest is due."""
    return last < scheduled(at, now, zone) <= now


def silence(client: str, days: Sequence[date], last_digest: date, today: date) -> Silence | None:
    """The client's silence, on the one day when it becomes unusual: after the last digest's day, up to today.

    A silence is unusual when it is longer than twice the longest pause between days with deposits. It has at least
    SILENT_FOR days. The client needs ACTIVE_DAYS such days within KNOWN_FOR days before the last one. These days are
    counted from the last deposit and not from today. Otherwise the answer would change without a deposit.
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
    """The silences of the clients `names`. `days` are the journal's rows of client and day (ISO 8601)."""
    by_client: dict[str, list[date]] = {name: [] for name in names}
    for client, day in days:
        if client in by_client:
            by_client[client].append(date.fromisoformat(day))
    found = (silence(client, known, last, today) for client, known in by_client.items())
    return tuple(told for told in found if told is not None)
