"""The conditions that hold now, and their mails: told, due, or too early. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from bridged.alerts.events import RELAY, Ended, Kind, Raised
from bridged.model import Instant

GATHER: Final = (
    10.0  # seconds that a mail waits for more of its kind, because one server holds the shares of many clients
)
GATHER_MORE: Final = 60.0  # seconds that it waits after a mail of its kind within the last hour
AGAIN: Final = 3600.0  # seconds until a condition that ended and begins again is told again
CONFIRMED_WITHIN: Final = 900.0  # seconds after the start in which a condition that still holds is logged again
PROBED_WITHIN: Final = 7200.0  # seconds of the same for the relay, which is probed hourly during a halt


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that holds. `since` is in seconds of the wall clock, `heard` of the steady one.

    `remembered` is True while the condition is from before the start, and has not been logged again.
    """

    raised: Raised
    since: float
    heard: float
    told: bool = False
    remembered: bool = False


class Ledger:
    """The conditions that hold, and those that were told. The next start begins with the `memory` of this one."""

    def __init__(self, memory: Mapping[str, Any] | None = None) -> None:
        self._open: dict[str, Condition] = {}
        self._told_at: dict[str, float] = {}  # wall seconds, by key; kept for AGAIN
        self._mailed: dict[Kind, float] = {}  # steady seconds of the last mail
        self._began: float | None = None
        if memory:
            self._remember(memory)

    def take(self, news: Raised | Ended, now: Instant) -> None:
        """Enter a condition, or the end of conditions."""
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
        """Drop the conditions of clients that are no longer configured."""
        configured = {"", *names}
        self._open = {key: c for key, c in self._open.items() if c.raised.client in configured}

    def due(self, now: Instant) -> list[list[Condition]]:
        """The conditions to tell now, one list for each mail. They count as told from here on."""
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
        """The plain values that the next start needs."""
        rows = [
            {"kind": c.raised.kind.value, "client": c.raised.client, "what": c.raised.what, "why": c.raised.why}
            | {"since": c.since, "told": c.told}
            for c in self._open.values()
        ]
        return {"open": rows, "told_at": dict(self._told_at)}

    def _remember(self, memory: Mapping[str, Any]) -> None:
        for row in memory["open"]:
            raised = Raised(Kind(row["kind"]), str(row["client"]), str(row["what"]), str(row["why"]))
            # A condition that was not told is logged again at the start. A refused address is not logged again.
            if row["told"] or raised.kind is Kind.ADDRESS:
                self._open[raised.key] = Condition(
                    raised, float(row["since"]), float("-inf"), told=bool(row["told"]), remembered=True
                )
        self._told_at = {str(key): float(at) for key, at in memory["told_at"].items()}

    def _may_be_told(self, condition: Condition, now: Instant) -> bool:
        at = self._told_at.get(condition.raised.key, float("-inf"))
        return not condition.told and not 0 <= now.wall - at < AGAIN

    def _forget(self, now: Instant) -> None:
        """Drop a remembered condition that was not logged again in time: it ended during the stop.

        A refused address stays, because only a release or an acceptance ends it.
        """
        self._began = now.steady if self._began is None else self._began
        for key, condition in list(self._open.items()):
            if condition.remembered and condition.raised.kind is not Kind.ADDRESS:
                patience = PROBED_WITHIN if condition.raised.kind in RELAY else CONFIRMED_WITHIN
                if now.steady - self._began > patience:
                    del self._open[key]
        self._told_at = {key: at for key, at in self._told_at.items() if 0 <= now.wall - at < AGAIN}
