"""The rounds of the GEDs: each has an intake of its own, which has a turn when there is work for it.

The GEDs of one mount have their turns side by side, so that their writes are one commit: a firm may have 1,000 clients.
A turn is a call that may never return, because a mount may hang. The rounds go on without its GEDs until it answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

from bridged.config import SwitchedFolders
from bridged.config.settings import Client, Settings
from bridged.ged import HANGING, Call, Calls, Hanging, Mounts
from bridged.intake.intake import Intake
from bridged.intake.switching import switch_off
from bridged.journal import Journal, Steps
from bridged.logs import Trouble, say
from bridged.model import Instant, readable
from bridged.names import is_leftover
from bridged.watching import Hint, Hints

HINTS: Final = 500  # in one step
SLICE: Final = 0.2  # seconds of passes, shared by GEDs side by side, before hints are followed again
ROUND: Final = 0.5  # seconds of turns before hints are looked at again
UNHURRIED: Final = 1.0  # seconds after which a turn goes on alone, and no other begins on its mount
TOGETHER: Final = 100  # GEDs that have their turns side by side
AT_LEAST: Final = 1.0  # seconds between two steps without a hint
AFTER_TROUBLE: Final = 2.0
STUCK: Final = 30.0  # seconds of failing turns after which the daemon counts as ready without that GED


@dataclass(frozen=True, slots=True)
class _Order:
    """A configuration for an intake, in force from its next turn on."""

    client: Client
    settings: Settings
    switched: SwitchedFolders
    recorded: frozenset[str]
    start: bool


@dataclass(slots=True)
class _Seat:
    """One GED's place in the rounds."""

    intake: Intake
    client: str = ""
    order: _Order | None = None
    turn: _Turn | None = None
    due: float = 0.0
    began: float = 0.0
    failing_since: float = float("inf")  # since when its turns raise, steady seconds
    silent: bool = False
    told: bool = False
    trouble: Trouble = field(default_factory=lambda: Trouble("intake"))


@dataclass(slots=True)
class _Turn:
    """The turn of some GEDs on one mount."""

    seats: dict[bytes, _Seat]  # GEDs that were not taken back yet
    ends: dict[bytes, float | Exception] = field(default_factory=dict)
    call: Call[None] = field(init=False)
    alone: bool = False  # True while the rounds go on without its end

    def outcome(self, ged: bytes) -> float:
        """Seconds until the GED's next turn; raises the turn's error. Only after its end."""
        if ged not in self.ends:
            self.call.result()
        outcome = self.ends[ged]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Rounds:
    """All intakes. One thread calls it; `again`, `ready` and `status` may be called from any thread."""

    def __init__(
        self,
        journal: Journal,
        calls: Calls,
        mounts: Mounts,
        wake: Callable[[], None],
        on_queued: Callable[[], None],
        clock: Callable[[], Instant],
    ) -> None:
        """`wake` is called when `step` is worth calling before its time. `clock` tells the time of the turns."""
        self._journal = journal
        self._calls = calls
        self._mounts = mounts
        self._wake = wake
        self._on_queued = on_queued
        self._clock = clock
        self._observer = Hints(wake, self._is_ours)
        self._switched = SwitchedFolders(())
        self._settings: Settings | None = None
        self._seats: dict[bytes, _Seat] = {}
        self._left: list[_Seat] = []
        self._turns: list[_Turn] = []

    def configure(self, settings: Settings, *, start: bool) -> None:
        """Put a configuration in force, in each GED from its next turn on."""
        self._switched = SwitchedFolders(settings.clients, settings.ignore)
        self._settings = settings
        recorded: dict[bytes, set[str]] = {}
        for ged, pattern in self._journal.read(lambda tx: tx.folders()):
            recorded.setdefault(ged, set()).add(pattern)
        clients = {os.fsencode(client.ged): client for client in settings.clients if client.switched_folders}
        removed: dict[bytes, str] = {}
        for ged in self._seats.keys() - clients.keys():
            seat = self._seats.pop(ged)
            removed[ged] = seat.client
            seat.intake.ged.retired = True  # before it is switched off; otherwise a turn under way would undo that
            self._left.append(seat)
        for ged in recorded.keys() - clients.keys():
            switch_off(self._journal, ged, recorded[ged], self._switched, removed.get(ged, ""))
            self._calls.forget(ged)  # otherwise its queued documents would wait for a share that is away
            self._mounts.forget(ged, ged)
        for ged, client in clients.items():
            seat = self._seats.get(ged) or self._new_seat(ged)
            seat.client = client.name
            starting = start or (seat.order is not None and seat.order.start)  # an order that was never taken
            seat.order = _Order(client, settings, self._switched, frozenset(recorded.get(ged, ())), starting)
            seat.due = 0.0

    def _is_ours(self, name: bytes) -> bool:
        """Whether a file of that name is a marker, or a marker's beginning."""
        return is_leftover(name) or (self._settings is not None and self._settings.ignored(name) == "marker")

    def _new_seat(self, ged: bytes) -> _Seat:
        mounted = self._journal.read(lambda tx: tx.mounted(ged))
        self._calls.locate(ged, mounted.place if mounted is not None else ged)
        self._mounts.expect(ged, ged)
        steady = lambda: self._clock().steady  # noqa: E731
        seat = _Seat(Intake(ged, self._journal, self._calls, self._mounts, self._observer, self._on_queued, steady))
        self._seats[ged] = seat
        return seat

    @property
    def ready(self) -> bool:
        """Whether the reachable switched folders are watched by the configuration in force, and their files known."""
        return all(
            seat.silent
            or self._clock().steady - seat.failing_since > STUCK
            or (seat.order is None and seat.intake.ready)
            for seat in list(self._seats.values())
        )

    def status(self) -> list[dict[str, Any]]:
        """The watch mode and reachability of each switched folder."""
        return [
            {
                "ged": readable(ged),
                "folder": pattern,
                "watch_mode": "polling" if seat.intake.ged.polling or not self._observer.watching else "inotify",
                "reachable": seat.intake.ged.state == "reachable" and not seat.silent,
            }
            for ged, seat in list(self._seats.items())
            for pattern in list(seat.intake.ged.unknown)
        ]

    def again(self, seq: int, path: bytes) -> None:
        """A queued document was overwritten: it must be quiet again."""
        seat = self._seats.get(self._switched.ged_of(path) or b"")
        if seat is not None:
            seat.intake.waiting.again(seq)
            seat.due = 0.0
            self._wake()

    def close(self) -> None:
        """Give the watches and descriptors back; a turn that does not end keeps its own."""
        deadline = self._clock().steady + UNHURRIED
        for seat in [*self._seats.values(), *self._left]:
            if seat.turn is None or seat.turn.call.wait(max(0.0, deadline - self._clock().steady)):
                seat.intake.close()
        self._observer.close()

    # -- one step

    def step(self, now: Instant) -> float:
        """Hand out the hints and give turns to the GEDs that have work. Returns seconds until the next step."""
        hints = self._observer.drain(HINTS)
        for hint in hints:
            self._hand_out(hint)
        if self._observer.renew(now.steady):
            for seat in self._seats.values():
                self._look_anew(seat, "watch")
        self._give_turns(now)
        silences = self._calls.silences()
        self._tell_silences(silences)
        self._dismiss()
        return 0.0 if hints else max(0.0, min(AT_LEAST, self._next_due(silences) - self._clock().steady))

    def _next_due(self, silences: Mapping[Hashable, float]) -> float:
        hurried = {mount for mount, silent in silences.items() if silent >= UNHURRIED}
        seats: Iterable[_Seat] = self._seats.values()
        if hurried:
            seats = [seat for ged, seat in self._seats.items() if self._calls.mount_of(ged) not in hurried]
        return min([seat.due for seat in seats if seat.turn is None], default=float("inf"))

    def _hand_out(self, hint: Hint) -> None:
        if hint.kind == "lost":
            say("hints_lost", reason="the kernel's queue overflowed; a sweep is reading the folders instead")
            for seat in self._seats.values():
                self._look_anew(seat, "whole")
            return
        source, dest = self._switched.ged_of(hint.path), self._switched.ged_of(hint.dest)
        if hint.kind == "moved" and source != dest:  # out of one GED into another: neither knows of the other
            self._hand_to(source, Hint("gone", hint.path))
            self._hand_to(dest, Hint("look", hint.dest))
        else:
            self._hand_to(source, hint)

    def _look_anew(self, seat: _Seat, how: Literal["soon", "whole", "watch"]) -> None:
        seat.intake.look_anew(how)
        seat.due = 0.0

    def _hand_to(self, ged: bytes | None, hint: Hint) -> None:
        seat = self._seats.get(ged or b"")
        if seat is not None:
            seat.intake.hints.append(hint)
            seat.due = 0.0

    def _give_turns(self, now: Instant) -> None:
        """Give turns, the longest wait first. Otherwise a large GED's first pass would keep the others waiting."""
        for turn in self._turns.copy():
            self._take_back(turn, 0.0)
        waiting = [(ged, seat) for ged, seat in self._seats.items() if seat.turn is None and seat.due <= now.steady]
        mounts: dict[Hashable, dict[bytes, _Seat]] = {}
        for ged, seat in sorted(waiting, key=lambda item: item[1].began):
            group = mounts.setdefault(self._calls.mount_of(ged), {})
            if len(group) < TOGETHER:
                group[ged] = seat
        for seats in mounts.values():
            if self._calls.silent_for(next(iter(seats))) < UNHURRIED:
                self._give_turn(seats)
                if self._clock().steady - now.steady > ROUND:
                    return

    def _give_turn(self, seats: dict[bytes, _Seat]) -> None:
        turn = _Turn(seats)
        for seat in seats.values():
            seat.began = self._clock().steady
            seat.due = float("inf")  # a hint that comes meanwhile sets it back
        try:
            turn.call = self._calls.start(next(iter(seats)), lambda: self._have(turn))
        except BaseException:  # no thread is to be had; otherwise they would never have a turn again
            for seat in seats.values():
                seat.due = seat.began
            raise
        for seat in seats.values():
            seat.turn = turn
        self._turns.append(turn)
        self._take_back(turn, UNHURRIED)

    def _have(self, turn: _Turn) -> None:
        try:
            most = SLICE / len(turn.seats)
            self._journal.together({ged: self._steps(seat, most) for ged, seat in turn.seats.items()}, turn.ends)
        finally:
            if turn.alone:
                self._wake()

    def _steps(self, seat: _Seat, most: float) -> Steps[float]:
        order = seat.order
        if order is not None:
            seat.intake.configure(
                order.client, order.settings, order.switched, order.recorded, self._clock(), start=order.start
            )
            if seat.order is order:  # only now, because a reload waits for it
                seat.order = None
        return (yield from seat.intake.step(self._clock(), most))

    def _take_back(self, turn: _Turn, calls: float) -> None:
        """Take the GEDs back whose turn has ended. A GED that has much to do keeps no other from its next turn."""
        turn.alone = not turn.call.wait(calls)
        if not turn.alone:
            self._turns.remove(turn)
        now = self._clock().steady
        for ged in [ged for ged in turn.seats if not turn.alone or ged in turn.ends]:
            seat = turn.seats.pop(ged)
            seat.turn = None
            delay = seat.trouble.guarded(partial(turn.outcome, ged))
            seat.failing_since = float("inf") if delay is not None else min(seat.failing_since, now)
            seat.due = min(seat.due, now + (AFTER_TROUBLE if delay is None else delay))

    def _tell_silences(self, silences: Mapping[Hashable, float]) -> None:
        busy = self._journal.busy_for() >= HANGING
        hanging = {mount for mount, silent in silences.items() if silent >= HANGING and not busy}
        for ged, seat in self._seats.items():
            if seat.silent or hanging:
                self._tell_silence(ged, seat, silent=self._calls.mount_of(ged) in hanging)

    def _tell_silence(self, ged: bytes, seat: _Seat, *, silent: bool) -> None:
        if silent == seat.silent:
            return
        seat.silent = silent
        if not silent:  # the next pass was put off by the time that this one waited
            self._look_anew(seat, "soon")
        if silent and seat.intake.ged.state != "unreachable":
            seat.told = True
            say("folder_unreachable", client=seat.client, ged=readable(ged), reason=Hanging().strerror)
        elif seat.told:
            seat.told = False
            say("folder_recovered", client=seat.client, ged=readable(ged))

    def _dismiss(self) -> None:
        """Close the intakes whose GED is no longer configured, as soon as their last turn has ended."""
        for seat in [seat for seat in self._left if seat.turn is None or seat.turn.call.wait(0.0)]:
            self._left.remove(seat)
            seat.intake.close()
