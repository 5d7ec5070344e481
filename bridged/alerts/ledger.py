"""The conditions that hold now, and those of which a person has been told. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from bridged.alerts.events import RELAY, Ended, Kind, Raised
from bridged.model import Instant

GATHER: Final = 10.0  # seconds that a mail waits for more of its kind: a server holds many clients' shares
GATHER_MORE: Final = 60.0  # the same, when there was a mail of the kind within the last hour
AGAIN: Final = 3600.0  # a share that comes and goes is told of once an hour
CONFIRMED_WITHIN: Final = 900.0  # seconds after the start, in which what is still the matter is said again
PROBED_WITHIN: Final = 7200.0  # the same for the relay, which is asked hourly while it is halted


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
                patience = PROBED_WITHIN if condition.raised.kind in RELAY else CONFIRMED_WITHIN
                if now.steady - self._began > patience:
                    del self._open[key]
        self._told_at = {key: at for key, at in self._told_at.items() if 0 <= now.wall - at < AGAIN}
