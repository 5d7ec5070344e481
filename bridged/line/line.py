"""The way to the relay: whether it is open, how fast it may be used, and the last trouble on it.

No function reads a clock or sleeps. `now` is an argument, in seconds of the steady clock.
"""

from __future__ import annotations

import random as _random
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from bridged.line.retry import Schedule, growing
from bridged.model import Instant
from bridged.relay.outcome import (
    Accepted,
    AddressRefused,
    Deferred,
    Exhausted,
    Misconfigured,
    Outcome,
    Refused,
    RelayDown,
    Throttled,
    Uncertain,
)

LineState = Literal["up", "unreachable", "throttled", "misconfigured"]
LineEventName = Literal["relay_unreachable", "relay_recovered", "relay_misconfigured", "relay_throttled"]

DAY: Final = 86_400.0  # seconds
_FIRST_PROBE: Final = 5.0  # seconds until the first probe of a line that is down, at most
_SIGN_IN_PROBES: Final = (60.0, 120.0, 300.0, 600.0)  # seconds until the next probe where no session could sign in
_THROTTLED_FIRST, _THROTTLED_MAX = 60.0, 900.0  # seconds of pause after a throttling
_EXHAUSTED: Final = 3600.0  # seconds until the next probe after the relay's own quota was used up
_HALTED_FIRST, _HALTED_LATER = 900.0, 3600.0  # seconds until the first probe after a halt, and until each later one
_ACCEPTANCES: Final = 20  # acceptances in a row that bring back one session and a step of the rate
_LEAST_SHARE: Final = 1 / 32  # of the rate, after any number of throttlings
_STEP: Final = 1 / 8  # of the rate that comes back at a time, because a doubled rate would be throttled again
_NO_LIMIT: Final = 6000  # messages a minute from which a measured rate is none
_MEASURED_OVER: Final = 60.0  # seconds over which a throttling measures the rate, where none is configured
_LEAST_MEASURED: Final = 30  # messages a minute: a throttling of the first mail of a day does not mean one a minute
_SOON: Final = 0.05  # seconds until a turn is asked for again while the first one is under way alone
_IN_A_ROW: Final = 3  # refusals for as many clients that are the relay's fault

# The matter of a line, in the order of gravity, and its names in the status and in the log.
LineMatter = Literal["up", "unreachable", "throttled", "exhausted", "misconfigured"]
_GRAVITY: Final[dict[LineMatter, int]] = {"up": 0, "unreachable": 1, "throttled": 2, "exhausted": 3, "misconfigured": 4}
_STATES: Final[dict[LineMatter, LineState]] = {
    "up": "up",
    "unreachable": "unreachable",
    "throttled": "throttled",
    "exhausted": "throttled",
    "misconfigured": "misconfigured",
}
_EVENTS: Final[dict[LineMatter, LineEventName]] = {
    "up": "relay_recovered",
    "unreachable": "relay_unreachable",
    "throttled": "relay_throttled",
    "exhausted": "relay_throttled",
    "misconfigured": "relay_misconfigured",
}


class Rate(Protocol):
    """`count` messages in any `seconds`."""

    @property
    def count(self) -> int:
        """The number of messages."""

    @property
    def seconds(self) -> float:
        """The length of the window, in seconds."""


@dataclass(frozen=True, slots=True)
class LineEvent:
    """The way to the relay changed. The thread that gets it writes the log line, once for each change.

    `quota`: the mails of a day are used up. `put_back`: documents whose refusal was the relay's fault.
    """

    name: LineEventName
    detail: str
    quota: bool = False
    put_back: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Pace:
    """The part of a line that outlives the daemon. `due_at`: seconds since the epoch. `measured`: messages a minute."""

    matter: LineMatter
    detail: str
    due_at: float
    failures: int
    sessions: int
    share: float
    measured: int
    breaker: bool


@dataclass(slots=True)
class _Breaker:
    """A circuit breaker over refusals in a row. While it is open, each refusal is the relay's, and no document is held.

    `suspects`: documents that were refused in that row. After an acceptance their next refusal is their own.
    """

    open: bool = False
    streak: list[tuple[str, int]] = field(default_factory=list)
    suspects: set[int] = field(default_factory=set)

    def refused(self, client: str, document: int) -> bool:
        """Count a refusal. True when the breaker is open with it."""
        if document in self.suspects and not self.open:
            return False
        self.streak = [*self.streak, (client, document)][-_IN_A_ROW:]
        if not self.open and len({client for client, _ in self.streak}) < _IN_A_ROW:
            return False
        self.open = True
        self.suspects |= {document for _, document in self.streak}
        return True

    def accepted(self) -> None:
        """Close it, because the relay has accepted a document."""
        self.open = False
        self.streak.clear()


class Line:
    """The state of the way to the relay. Thread-safe: the senders share it.

    Each True of `may_send` is one turn. One `report` must follow it, or one `give_back` when no mail was sent.

    While the line is in trouble, one turn is given after the pause: the probe. Its outcome decides. A conversation
    that began before the trouble lengthens no pause. It ends none that the relay or its credentials asked for.

    An alert has its turns by `may_send_alert` and `report_alert`. Its outcome changes no state but rate and quota.

    Three refusals in a row for three clients are the relay's fault, and halt the line. `blameless` then says that a
    refused document is to be put back. A fault of the line never counts against a document.
    """

    def __init__(
        self,
        retry: Schedule,
        sessions: int,
        rate: Rate | None = None,
        random: Callable[[], float] = _random.random,
        daily_quota: int | None = None,
        *,
        careful: bool = False,
    ) -> None:
        """`careful`: the first turn is alone. Otherwise each session tries a wrong password, and locks the account.

        `random` returns a number from 0 to 1, for the jitter of pauses. `daily_quota`: mails in any 24 hours.
        """
        self._retry = retry
        self._random = random
        self._most_sessions = self._sessions = max(1, sessions)
        self._rate = rate
        self._turns: deque[float] = deque()  # when each turn of the last `rate.seconds` (or minute) was taken
        self._daily_quota = daily_quota
        self._careful = careful
        self._accepted: deque[float] = deque()  # when each mail of the last day was accepted, with a daily quota only
        self._share = 1.0  # of the rate that is in use: halved at each throttling
        self._measured = 0  # messages a minute that the first throttling found, with no rate configured; 0 is none
        self._stepped_at = float("-inf")  # when the share or the measured rate was last changed
        self._quota_told = False
        self._recovery_owed = False  # true while trouble was told that has ended by itself
        self._breaker = _Breaker()
        self._unsaved = False
        self._lock = threading.Lock()
        self._matter: LineMatter = "up"
        self._detail = ""
        self._due = float("-inf")
        self._out = 0  # turns taken and not yet reported
        self._early = 0  # turns of `_out` that were taken before the trouble began
        self._alerts_out = 0  # turns that alerts have taken and not yet reported
        self._probing = False
        self._probe_again = False
        self._failures: dict[LineMatter, int] = {}
        self._acceptances = 0

    @property
    def state(self) -> LineState:
        """`up`, or the trouble, as the status names it."""
        with self._lock:
            return "throttled" if self._matter == "up" and self._quota_told else _STATES[self._matter]

    @property
    def event(self) -> LineEventName:
        """The log event of this state."""
        with self._lock:
            return "relay_throttled" if self._matter == "up" and self._quota_told else _EVENTS[self._matter]

    @property
    def detail(self) -> str:
        """The words of the relay or of the line for the trouble. Empty when up."""
        with self._lock:
            return self._used_up() if self._matter == "up" and self._quota_told else self._detail

    @property
    def quota(self) -> Literal["", "ours", "relays"]:
        """The quota that is used up: "ours" is smtp.daily_quota, which no probe can lift; "relays" is the relay's."""
        with self._lock:
            if self._matter == "up":
                return "ours" if self._quota_told else ""
            return "relays" if self._matter == "exhausted" else ""

    @property
    def sessions_allowed(self) -> int:
        """The number of sessions that may be open now: one fewer after each throttling, at least one."""
        with self._lock:
            return self._sessions

    @property
    def unhurried(self) -> bool:
        """Whether no turn is rationed, so that several documents may be claimed together."""
        with self._lock:
            rationed = self._rate is not None or self._daily_quota is not None or self._measured > 0 or self._careful
            return self._matter == "up" and not rationed and not self._breaker.streak

    def may_send(self, now: float) -> bool:
        """Take a turn, if there is one: within rate and quota when up; in trouble the one probe that is due."""
        with self._lock:
            if self._blocked_for(now) > 0:
                return False
            self._probing = self._matter != "up"
            self._out += 1
            self._turns.append(now)
            return True

    def wake_in(self, now: float) -> float:
        """Seconds until `may_send` may say True. 0 when it would say so now."""
        with self._lock:
            return self._blocked_for(now)

    def give_back(self) -> None:
        """Undo a turn without a mail: no document was due, or its file was gone."""
        with self._lock:
            self._out = max(0, self._out - 1)
            self._probing = False
            if self._turns:
                self._turns.pop()

    def probe_now(self) -> None:
        """End any pause, because a person has acted. The next turn is still one probe alone."""
        with self._lock:
            self._due = float("-inf")
            self._failures.pop("misconfigured", None)  # otherwise the probe after this one would wait an hour
            self._probe_again = self._probing
            self._unsaved = True

    def owe_recovery(self) -> None:
        """Let the first acceptance be a recovery: the line before this one was told to be in trouble."""
        with self._lock:
            self._recovery_owed = self._matter == "up" and not self._quota_told

    # -- alerts

    def may_send_alert(self, now: float) -> bool:
        """Take a turn for an alert. One `report_alert` must follow each True.

        Rate, quota and a pause that the relay asked for hold as for documents. Other trouble of the line does not:
        the caller decides how often an alert tries it.
        """
        with self._lock:
            paused = self._matter == "throttled" and now < self._due
            alone = self._careful and self._out + self._alerts_out > 0
            if paused or alone or self._rate_allows_in(now) > 0 or self._quota_allows_in(now) > 0:
                return False
            self._alerts_out += 1
            self._turns.append(now)
            return True

    def report_alert(self, now: float, *, accepted: bool) -> LineEvent | None:
        """End the turn of an alert. An accepted one counts for the quota. Returns an event when that is used up."""
        with self._lock:
            self._alerts_out -= 1
            return self._count(now) if accepted else None

    # -- refusals of documents

    def blameless(self, document: int) -> bool:
        """Whether the refusal of this document is the relay's fault, so that it waits uncounted."""
        with self._lock:
            return self._breaker.open and document in self._breaker.suspects

    def suspects(self) -> frozenset[int]:
        """Documents whose refusal seems the relay's fault. Other documents are better probes."""
        with self._lock:
            return frozenset(self._breaker.suspects) if self._breaker.open else frozenset()

    # -- over a restart

    def unsaved_pace(self, now: Instant) -> Pace | None:
        """The pace to keep. None when it has not changed since the last call."""
        with self._lock:
            if not self._unsaved:
                return None
            self._unsaved = False
            due_at = 0.0 if self._matter == "up" else now.wall + max(0.0, self._due - now.steady)
            failures = self._failures.get(self._matter, 0)
            pace = (self._matter, self._detail, due_at, failures, self._sessions, self._share, self._measured)
            return Pace(*pace, self._breaker.open)

    def resume(self, pace: Pace | None, tried: Iterable[float], accepted: Iterable[float], now: Instant) -> None:
        """Go on as the line of this relay was at the stop: its halt, its pace, and the mails that count.

        `tried` and `accepted` are seconds since the epoch. A line that was down is tried at once.
        """
        with self._lock:
            ago = (now.wall - at for at in sorted(tried))
            self._turns.extend(now.steady - past for past in ago if past >= 0)
            if self._daily_quota is not None:
                ago = (now.wall - at for at in sorted(accepted))
                self._accepted.extend(now.steady - past for past in ago if 0 <= past < DAY)
                self._quota_told = len(self._accepted) >= self._daily_quota
            if pace is None:
                return
            self._sessions = max(1, min(self._most_sessions, pace.sessions))
            self._share, self._measured = pace.share, pace.measured
            if pace.matter in ("up", "unreachable"):
                return
            self._matter, self._detail, self._breaker.open = pace.matter, pace.detail, pace.breaker
            self._failures[pace.matter] = pace.failures
            # A due time further away than any pause comes from a clock that jumped.
            self._due = now.steady + min(max(0.0, pace.due_at - now.wall), _HALTED_LATER)

    # -- outcomes

    def report(self, outcome: Outcome, now: float, client: str = "", document: int = 0) -> LineEvent | None:
        """End a turn with the outcome of a client's document. Returns the event when the state changed, once."""
        with self._lock:
            self._out = max(0, self._out - 1)
            probe, self._probing = self._probing, False
            early = self._early > 0 and not probe
            self._early -= early
            match outcome:
                case RelayDown(detail):
                    waits = _SIGN_IN_PROBES if outcome.signing_in else ()
                    return self._trouble("unreachable", detail, now, probe=probe, early=early, waits=waits)
                case Misconfigured(detail):
                    return self._trouble("misconfigured", detail, now, probe=probe, early=early)
                case Throttled(reply):
                    return self._trouble("throttled", reply, now, probe=probe, early=early)
                case Exhausted(reply):
                    return self._trouble("exhausted", reply, now, probe=probe, early=early)
                case Uncertain(detail):
                    # No trouble of a line that is up, because the document bears the doubt. No recovery either.
                    if self._matter == "up":
                        return None
                    return self._trouble("unreachable", detail, now, probe=probe, early=early)
                case Refused(reply, certain=False) | AddressRefused(reply) if self._breaker.refused(client, document):
                    return self._broken(reply, now, probe=probe)
                case _:
                    return self._works(outcome, now, probe=probe, early=early)

    def _blocked_for(self, now: float) -> float:
        if self._probing:
            return 1.0  # seconds: only the report of the probe decides
        if self._careful and self._out + self._alerts_out > 0:
            return _SOON
        pause = max(0.0, self._due - now) if self._matter != "up" else 0.0
        return max(pause, self._rate_allows_in(now), self._quota_allows_in(now))

    def _rate_allows_in(self, now: float) -> float:
        """Seconds until a turn. Each turn is free again `seconds` after it was taken: exact for any window."""
        seconds = self._rate.seconds if self._rate is not None else _MEASURED_OVER
        while self._turns and self._turns[0] + seconds <= now:
            self._turns.popleft()
        count = self._rate.count if self._rate is not None else self._measured
        if count == 0:  # no rate is configured, and no throttling found one
            return 0.0
        count = max(1, int(count * self._share))
        if len(self._turns) < count:
            return 0.0
        return self._turns[-count] + seconds - now

    def _quota_allows_in(self, now: float) -> float:
        if self._daily_quota is None:
            return 0.0
        while self._accepted and self._accepted[0] + DAY <= now:
            self._accepted.popleft()
        if self._quota_told and len(self._accepted) < self._daily_quota * 0.9:
            self._quota_told, self._recovery_owed = False, True
        if len(self._accepted) + self._out + self._alerts_out < self._daily_quota:
            return 0.0
        if len(self._accepted) < self._daily_quota:
            return 1.0  # second: the mails under way may use up the rest
        return self._accepted[-self._daily_quota] + DAY - now

    def _trouble(
        self,
        matter: LineMatter,
        detail: str,
        now: float,
        *,
        probe: bool,
        early: bool,
        waits: tuple[float, ...] = (),
    ) -> LineEvent | None:
        known = not probe and (early or now < self._due)
        if known and _GRAVITY[matter] <= _GRAVITY[self._matter]:
            return None  # otherwise one failure of the line would count once for each session
        changed = matter != self._matter
        if self._matter == "up":
            self._early = self._out
        failures = self._failures[matter] = self._failures.get(matter, 0) + 1
        if matter == "throttled":
            self._slow_down(now)
        self._matter, self._detail = matter, detail
        pause = waits[min(failures, len(waits)) - 1] if waits else self._pause(matter, failures)
        self._due = now + (0.0 if self._probe_again else pause)
        self._probe_again = False
        self._unsaved = True
        return LineEvent(_EVENTS[matter], detail, quota=matter == "exhausted") if changed else None

    def _slow_down(self, now: float) -> None:
        """One session fewer, and half the rate. With no rate configured, half of the pace that was just refused."""
        self._sessions, self._acceptances = max(1, self._sessions - 1), 0
        if self._rate is None and self._measured == 0:
            self._measured = max(_LEAST_MEASURED, sum(now - _MEASURED_OVER < at for at in self._turns))
        self._share = max(_LEAST_SHARE, self._share / 2)
        self._stepped_at = now

    def _speed_up(self, now: float) -> None:
        """One step a minute at most. Otherwise a burst of acceptances would raise the rate that has let it through."""
        if now - self._stepped_at < _MEASURED_OVER:
            return
        self._stepped_at = now
        self._unsaved |= self._share < 1 or self._measured > 0
        if self._share < 1:
            self._share = min(1.0, self._share + _STEP)
        else:
            self._measured += self._measured // 4
            self._measured = 0 if self._measured > _NO_LIMIT else self._measured

    def _pause(self, matter: LineMatter, failures: int) -> float:
        if matter == "misconfigured":  # rarely, because each probe is one more failed login
            return _HALTED_FIRST if failures == 1 else _HALTED_LATER
        if matter == "exhausted":
            return _EXHAUSTED
        if matter == "throttled":
            longest = _THROTTLED_MAX
            first = _THROTTLED_FIRST
        else:
            longest = self._retry.max
            first = min(_FIRST_PROBE, self._retry.first)
        return growing(first, longest, failures, self._random)

    def _broken(self, reply: str, now: float, *, probe: bool) -> LineEvent | None:
        """Halt the line, because the breaker is open."""
        again = self._matter == "misconfigured"
        self._trouble("misconfigured", f"It refuses one document after another: {reply}", now, probe=probe, early=False)
        put_back = frozenset(self._breaker.suspects)
        return None if again else LineEvent("relay_misconfigured", self._detail, put_back=put_back)

    def _works(
        self, outcome: Accepted | Deferred | Refused | AddressRefused, now: float, *, probe: bool, early: bool
    ) -> LineEvent | None:
        self._careful = False
        used_up = self._one_more_acceptance(now) if isinstance(outcome, Accepted) else None
        if self._breaker.open and self._matter != "up":  # a deferral is no proof that the relay is well
            if not probe:
                return None
            # Otherwise no pause would follow this probe, and every later turn would be given at once.
            detail = self._detail if self._matter == "misconfigured" else outcome.reply
            return self._trouble("misconfigured", detail, now, probe=True, early=False)
        if self._matter == "up" and self._recovery_owed and isinstance(outcome, Accepted):
            self._recovery_owed = False
            # An acceptance that uses up the quota again is no recovery.
            return None if used_up else LineEvent("relay_recovered", outcome.reply)
        if self._matter == "up" or (early and not probe and self._matter != "unreachable"):
            return used_up
        self._matter, self._detail, self._due, self._early = "up", "", float("-inf"), 0
        self._probe_again = False
        self._failures = {k: n for k, n in self._failures.items() if k == "throttled"}
        self._unsaved = True
        self._recovery_owed = False
        return used_up or LineEvent("relay_recovered", outcome.reply)

    def _one_more_acceptance(self, now: float) -> LineEvent | None:
        """Count an acceptance. Only many in a row shorten the next pause of a relay that throttles every other mail."""
        self._unsaved |= self._breaker.open
        self._breaker.accepted()
        self._acceptances += 1
        if self._acceptances >= _ACCEPTANCES:
            self._acceptances = 0
            self._unsaved |= self._sessions < self._most_sessions
            self._sessions = min(self._most_sessions, self._sessions + 1)
            self._failures.pop("throttled", None)
            self._speed_up(now)
        return self._count(now)

    def _count(self, now: float) -> LineEvent | None:
        if self._daily_quota is None:
            return None
        self._accepted.append(now)
        if len(self._accepted) < self._daily_quota or self._quota_told:
            return None
        self._quota_told = True
        return LineEvent("relay_throttled", self._used_up(), quota=True)

    def _used_up(self) -> str:
        return f"{self._daily_quota} mails were sent within a day, which is smtp.daily_quota; the rest waits"
