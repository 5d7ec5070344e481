"""When to try again: a document by its attempts, the way to the relay by what was last heard of it.

Nothing here reads a clock or sleeps: `now` is an argument, and whoever waits asks `wake_in`. The waits
themselves are tenacity's.
"""

from __future__ import annotations

import random as _random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, Protocol

from tenacity import RetryCallState, Retrying, wait_exponential

from bridged.model import Accepted, Deferred, Misconfigured, Outcome, Refused, RelayDown, Throttled, Uncertain

LineState = Literal["up", "unreachable", "throttled", "misconfigured"]
LineEventName = Literal["relay_unreachable", "relay_recovered", "relay_misconfigured", "relay_throttled"]

_JITTER: Final = 0.2
_FIRST_PROBE: Final = 5.0
_THROTTLED_FIRST, _THROTTLED_MAX = 60.0, 900.0
_HALTED_FIRST, _HALTED_LATER = 900.0, 3600.0
_ACCEPTANCES_A_SESSION: Final = 20
_GRAVITY: Final[dict[LineState, int]] = {"up": 0, "unreachable": 1, "throttled": 2, "misconfigured": 3}
_EVENTS: Final[dict[LineState, LineEventName]] = {
    "up": "relay_recovered",
    "unreachable": "relay_unreachable",
    "throttled": "relay_throttled",
    "misconfigured": "relay_misconfigured",
}


class Schedule(Protocol):
    """The part of `config.Retry` that matters here, in seconds."""

    @property
    def first(self) -> float:
        """The wait after the first failure."""

    @property
    def max(self) -> float:
        """The longest wait."""


class Rate(Protocol):
    """`count` messages in any `seconds`."""

    @property
    def count(self) -> int:
        """So many messages."""

    @property
    def seconds(self) -> float:
        """In so many seconds."""


def _wait(first: float, longest: float, attempt: int, random: Callable[[], float]) -> float:
    """`first`, doubled at each attempt, plus 0 to 20 % so that many do not come back as one.

    Never over `longest`: room for the jitter is left below it (wait_exponential_jitter has none there).
    """
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = max(1, attempt)
    base = wait_exponential(multiplier=first, max=longest / (1 + _JITTER))(state)
    return base * (1 + _JITTER * random())


def next_due(retry: Schedule, attempts: int, now: float, random: Callable[[], float]) -> float:
    """When a document is due again that has failed `attempts` times; never further away than `max`."""
    return now + _wait(retry.first, retry.max, attempts, random)


def tried_for(tries: Sequence[float], now: float, longest: float) -> float:
    """How long (seconds) a document has been tried. A gap over `longest` no schedule makes: the clock jumped."""
    times = [*sorted(tries), now]
    return sum(min(later - earlier, longest) for earlier, later in pairwise(times) if later > earlier)


@dataclass(frozen=True, slots=True)
class LineEvent:
    """The way to the relay changed; said once per change, by the thread that noticed."""

    name: LineEventName
    detail: str


class Line:
    """The state of the way to the relay, shared by the sender threads.

    Each True of `may_send` is one turn and must be followed by one `report`, or by `give_back` when there
    was nothing to send. While the line is in trouble one turn is given when the pause is over (the probe),
    and its outcome decides; conversations that began before the trouble neither lengthen a pause nor end
    one that the relay (throttled) or its credentials (misconfigured) asked for.
    """

    def __init__(
        self,
        retry: Schedule,
        sessions: int,
        rate: Rate | None = None,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._retry = retry
        self._random = random
        self._most_sessions = self._sessions = max(1, sessions)
        self._rate = rate
        self._turns: deque[float] = deque()  # when the turns of the last `rate.seconds` were taken
        self._lock = threading.Lock()
        self._state: LineState = "up"
        self._detail = ""
        self._due = float("-inf")
        self._out = 0  # turns taken and not yet reported
        self._early = 0  # those of them that were taken before the trouble began
        self._probing = False
        self._probe_again = False
        self._failures: dict[LineState, int] = {}
        self._acceptances = 0

    @property
    def state(self) -> LineState:
        """`up`, or what is the matter."""
        with self._lock:
            return self._state

    @property
    def detail(self) -> str:
        """The relay's or the line's own words for what is the matter; empty when up."""
        with self._lock:
            return self._detail

    @property
    def sessions_allowed(self) -> int:
        """How many sessions the relay is believed to bear now: one fewer at each throttling, never none."""
        with self._lock:
            return self._sessions

    def may_send(self, now: float) -> bool:
        """Take a turn: always when up and within the rate; in trouble only the one probe that is due."""
        with self._lock:
            if self._blocked_for(now) > 0:
                return False
            self._probing = self._state != "up"
            self._out += 1
            if self._rate is not None:
                self._turns.append(now)
            return True

    def wake_in(self, now: float) -> float:
        """Seconds until `may_send` is worth asking again; 0 when it would say True."""
        with self._lock:
            return self._blocked_for(now)

    def give_back(self) -> None:
        """Undo a turn that was not used: nothing was due, or the document was gone."""
        with self._lock:
            self._out = max(0, self._out - 1)
            self._probing = False
            if self._turns:
                self._turns.pop()

    def probe_now(self) -> None:
        """End any pause: a person has acted. Still one probe first, not a crowd."""
        with self._lock:
            self._due = float("-inf")
            self._failures.pop("misconfigured", None)  # the next probe after this one is soon again
            self._probe_again = self._probing

    def report(self, outcome: Outcome, now: float) -> LineEvent | None:
        """Learn from a conversation. Returns the event when the state changed, once, else None."""
        with self._lock:
            self._out = max(0, self._out - 1)
            probe, self._probing = self._probing, False
            early = self._early > 0 and not probe
            self._early -= early
            match outcome:
                case RelayDown(detail):
                    return self._trouble("unreachable", detail, now, probe=probe, early=early)
                case Misconfigured(detail):
                    return self._trouble("misconfigured", detail, now, probe=probe, early=early)
                case Throttled(reply):
                    return self._trouble("throttled", reply, now, probe=probe, early=early)
                case Uncertain(detail):
                    # Says nothing of a line that is up (the document bears the doubt), but is no recovery.
                    if self._state == "up":
                        return None
                    return self._trouble("unreachable", detail, now, probe=probe, early=early)
                case _:
                    return self._works(outcome, probe=probe, early=early)

    def _blocked_for(self, now: float) -> float:
        if self._probing:
            return 1.0  # until the probe is reported nobody knows
        pause = max(0.0, self._due - now) if self._state != "up" else 0.0
        return max(pause, self._rate_allows_in(now))

    def _rate_allows_in(self, now: float) -> float:
        """A bucket of `count` tokens, each back `seconds` after it was taken: exact for any window."""
        if self._rate is None:
            return 0.0
        while self._turns and self._turns[0] + self._rate.seconds <= now:
            self._turns.popleft()
        if len(self._turns) < self._rate.count:
            return 0.0
        return self._turns[0] + self._rate.seconds - now

    def _trouble(self, state: LineState, detail: str, now: float, *, probe: bool, early: bool) -> LineEvent | None:
        known = not probe and (early or now < self._due)
        if known and _GRAVITY[state] <= _GRAVITY[self._state]:
            return None  # from before the pause: one failure of the line is not one for each session
        changed = state != self._state
        if self._state == "up":
            self._early = self._out
        failures = self._failures[state] = self._failures.get(state, 0) + 1
        if state == "throttled":
            self._sessions, self._acceptances = max(1, self._sessions - 1), 0
        self._state, self._detail = state, detail
        self._due = now + (0.0 if self._probe_again else self._pause(state, failures))
        self._probe_again = False
        return LineEvent(_EVENTS[state], detail) if changed else None

    def _pause(self, state: LineState, failures: int) -> float:
        if state == "misconfigured":  # rarely: each probe is one more failed login
            return _HALTED_FIRST if failures == 1 else _HALTED_LATER
        if state == "throttled":
            longest = _THROTTLED_MAX
            first = _THROTTLED_FIRST
        else:
            longest = self._retry.max
            first = min(_FIRST_PROBE, self._retry.first)
        return _wait(first, longest, failures, self._random)

    def _works(self, outcome: Accepted | Deferred | Refused, *, probe: bool, early: bool) -> LineEvent | None:
        if isinstance(outcome, Accepted):
            self._one_more_acceptance()
        if self._state == "up" or (early and not probe and self._state != "unreachable"):
            return None
        self._state, self._detail, self._due, self._early = "up", "", float("-inf"), 0
        self._probe_again = False
        self._failures = {k: n for k, n in self._failures.items() if k == "throttled"}
        return LineEvent("relay_recovered", outcome.reply)

    def _one_more_acceptance(self) -> None:
        """Trust comes back slowly: a relay that throttles at every other mail gets ever longer pauses."""
        self._acceptances += 1
        if self._acceptances >= _ACCEPTANCES_A_SESSION:
            self._acceptances = 0
            self._sessions = min(self._most_sessions, self._sessions + 1)
            self._failures.pop("throttled", None)
