"""Which log events a person must act upon, when these are told, and what the daily digest has to say.

Pure: an event is turned into what it raises or ends; a ledger remembers what is the matter and what of it was told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta, tzinfo
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final

from bridged.model import Instant, readable

GATHER: Final = 10.0  # seconds that a mail waits for more of its kind: a server holds many clients' shares
GATHER_MORE: Final = 60.0  # the same, when there was a mail of the kind within the last hour
AGAIN: Final = 3600.0  # a share that comes and goes is told of once an hour
LATE: Final = 3600.0  # seconds on the way, after which the digest names a document
CONFIRMED_WITHIN: Final = 900.0  # seconds after the start, in which what is still the matter is said again
PROBED_WITHIN: Final = 7200.0  # the same for the relay, which is asked hourly while it is halted

ACTIVE_DAYS: Final = 5  # of fewer nobody can say what is usual
KNOWN_FOR: Final = 120  # days before the last deposit that are looked at
SILENT_FOR: Final = 14  # days that are no silence of anybody: holidays
LOOK_BACK: Final = 2 * KNOWN_FOR + KNOWN_FOR  # days: the longest silence that can be told, and what comes before it


class Kind(StrEnum):
    """What a person must act upon; one mail is of one kind."""

    ACCOUNT = "account"
    QUOTA = "quota"
    SHARE = "share"
    STATE = "state"
    DISK = "disk"
    ADDRESS = "address"
    WATCHES = "watches"
    CONFIGURATION = "configuration"


_RELAY: Final = frozenset({Kind.ACCOUNT, Kind.QUOTA})
_NO_ROOM: Final = ("no space left", "read-only file system", "disk quota exceeded")


@dataclass(frozen=True, slots=True)
class Raised:
    """Something is the matter: with what (and whose), and why."""

    kind: Kind
    client: str = ""
    what: str = ""
    why: str = ""

    @property
    def key(self) -> str:
        """What makes it the same condition as another: the words of its reason do not."""
        named = self.kind in (Kind.SHARE, Kind.STATE, Kind.ADDRESS)
        return f"{self.kind}\n{self.client if self.kind is not Kind.ADDRESS else ''}\n{self.what if named else ''}"


@dataclass(frozen=True, slots=True)
class Ended:
    """What is over: every condition of these kinds, of that client and that thing where they are given.

    `remembered`: only what was remembered from before the start, and may have ended while nobody was there.
    """

    kinds: frozenset[Kind]
    client: str | None = None
    what: str | None = None
    remembered: bool = False

    def ends(self, raised: Raised) -> bool:
        """Whether that condition is over."""
        ours = self.client in (None, raised.client) and self.what in (None, raised.what)
        return ours and raised.kind in self.kinds


def read(event: str, fields: Mapping[str, Any]) -> tuple[Raised | Ended, ...]:
    """What a log event means for whoever must act; mostly nothing."""
    client, why = _word(fields, "client"), _word(fields, "reason")
    match event:
        case "relay_misconfigured":
            return (Raised(Kind.ACCOUNT, what=_word(fields, "relay"), why=why),)
        case "relay_throttled" if fields.get("quota"):
            return (Raised(Kind.QUOTA, what=_word(fields, "relay"), why=why),)
        case "relay_recovered":
            return (Ended(_RELAY),)
        case "folder_unreachable":
            return (Raised(Kind.SHARE, client, _place(fields), why),)
        case "folder_recovered" | "folder_rebaselined":
            return (Ended(frozenset({Kind.SHARE}), client, _place(fields)),)
        case "state_failed" if fields.get("half") != "alerts" and fields.get("level", "error") == "error":
            return (Raised(Kind.STATE, what=_word(fields, "half"), why=why),)
        case "marker_failed" if any(words in why.lower() for words in _NO_ROOM):
            return (Raised(Kind.DISK, client, _word(fields, "path") or _word(fields, "document"), why),)
        case "document_held" if fields.get("address_refused"):
            return (Raised(Kind.ADDRESS, client, _address(fields) or client, why),)
        case "watch_limit_reached":
            return (Raised(Kind.WATCHES, why=why),)
        case "document_queued":
            return (Ended(frozenset({Kind.STATE})),)
        case "document_sent":
            works = Ended(frozenset({Kind.ADDRESS}), what=_address(fields))
            return (Ended(frozenset({Kind.STATE})), works, Ended(_RELAY, remembered=True))
        case "document_validated" if fields.get("marker"):
            return (Ended(frozenset({Kind.DISK}), client),)
        case "document_released":  # somebody has seen to it; a further refusal is news
            return (Ended(frozenset({Kind.ADDRESS}), client),)
    return ()


def _word(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    text = value if isinstance(value, bytes) else str("" if value is None else value).encode("utf-8", "replace")
    return readable(text)


def _place(fields: Mapping[str, Any]) -> str:
    """The GED, or a folder in it by its relative path (`.` is the GED's own directory)."""
    return _word(fields, "folder") or "." if "folder" in fields else _word(fields, "ged")


def _address(fields: Mapping[str, Any]) -> str:
    given = fields.get("address_refused")
    return _word(fields, "collection_email") or (given if isinstance(given, str) and "@" in given else "")


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is the matter. `since` is of the wall clock, `heard` of the steady one.

    `remembered`: from before the start, and not heard of again since.
    """

    raised: Raised
    since: float
    heard: float
    told: bool = False
    remembered: bool = False


class Ledger:
    """What is the matter now and what of it was told. `memory` of one goes into the next after a restart."""

    def __init__(self, memory: Mapping[str, Any] | None = None) -> None:
        self._open: dict[str, Condition] = {}
        self._told_at: dict[str, float] = {}  # of the wall clock, for AGAIN
        self._mailed: dict[Kind, float] = {}  # of the steady clock
        self._began: float | None = None
        if memory:
            self._remember(memory)

    def take(self, news: Raised | Ended, now: Instant) -> None:
        """Something began or ended."""
        if isinstance(news, Ended):
            over = [k for k, c in self._open.items() if news.ends(c.raised) and (c.remembered or not news.remembered)]
            for key in over:
                del self._open[key]
            return
        known = self._open.get(news.key)
        if known is None:
            self._open[news.key] = Condition(news, now.wall, now.steady)
        elif known.remembered:
            self._open[news.key] = replace(known, remembered=False)

    def keep_clients(self, names: Iterable[str]) -> None:
        """A client that is no longer configured has no troubles."""
        configured = {"", *names}
        self._open = {key: c for key, c in self._open.items() if c.raised.client in configured}

    def due(self, now: Instant) -> list[list[Condition]]:
        """What is to be told now: one list for each mail. It counts as told from then on."""
        self._forget(now)
        mails = []
        for kind in Kind:
            pending = [c for c in self._open.values() if c.raised.kind is kind and self._may_be_told(c, now)]
            lately = now.steady - self._mailed.get(kind, float("-inf")) < AGAIN
            gather = GATHER_MORE if lately else GATHER
            if pending and now.steady - min(c.heard for c in pending) >= gather:
                mails.append(pending)
        for condition in (c for mail in mails for c in mail):
            key = condition.raised.key
            self._open[key] = replace(condition, told=True)
            self._told_at[key] = now.wall
            self._mailed[condition.raised.kind] = now.steady
        return mails

    def memory(self) -> dict[str, Any]:
        """What the next start must know, as plain values."""
        rows = [
            {"kind": c.raised.kind.value, "client": c.raised.client, "what": c.raised.what, "why": c.raised.why}
            | {"since": c.since, "told": c.told}
            for c in self._open.values()
        ]
        return {"open": rows, "told_at": dict(self._told_at)}

    def _remember(self, memory: Mapping[str, Any]) -> None:
        for row in memory["open"]:
            raised = Raised(Kind(row["kind"]), str(row["client"]), str(row["what"]), str(row["why"]))
            # What was not told yet is said again by the start, if it still is so; a refused address is not.
            if row["told"] or raised.kind is Kind.ADDRESS:
                self._open[raised.key] = Condition(
                    raised, float(row["since"]), float("-inf"), told=bool(row["told"]), remembered=True
                )
        self._told_at = {str(key): float(at) for key, at in memory["told_at"].items()}

    def _may_be_told(self, condition: Condition, now: Instant) -> bool:
        at = self._told_at.get(condition.raised.key, float("-inf"))
        return not condition.told and not 0 <= now.wall - at < AGAIN

    def _forget(self, now: Instant) -> None:
        """What was remembered and is not said again has ended while nobody was there; a refused address stays."""
        self._began = now.steady if self._began is None else self._began
        for key, condition in list(self._open.items()):
            if condition.remembered and condition.raised.kind is not Kind.ADDRESS:
                patience = PROBED_WITHIN if condition.raised.kind in _RELAY else CONFIRMED_WITHIN
                if now.steady - self._began > patience:
                    del self._open[key]
        self._told_at = {key: at for key, at in self._told_at.items() if 0 <= now.wall - at < AGAIN}


# -- the digest


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
