"""Runs bridged on hurried clocks: `hurried.py FACTOR SINCE COMMAND...`; FACTOR of its seconds pass in one of ours.

A pause of 60 s takes 3 s by a factor of 20, and no constant of bridged is touched. What is hurried is all that waits
for the relay: the steady and the wall clock that the daemon reads (`loops.instant`) and the waits of its loops, in
whatever thread; and how old a kept session is. What is not: intake and marking, for the kernel and the file system
that they watch run at their own speed; and the time-outs of a conversation, which are the network's and real.

SINCE (seconds since the epoch) is when both wall clocks agreed, so that a restart goes on where the stop was.
"""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace

from bridged.daemon import daemon, loops
from bridged.model import Instant
from bridged.relay import relay

AT_THEIR_OWN_SPEED = ("intake", "marking", "calls")
SHORTEST = 0.002  # seconds: a loop that looks a little later than it would is never too early
_usual = loops.instant


def _hurried() -> bool:
    return not threading.current_thread().name.startswith(AT_THEIR_OWN_SPEED)


class Wake(threading.Event):
    """As the loops have it, in hurried seconds."""

    factor = 1.0

    def wait(self, timeout: float | None = None) -> bool:
        """As of an Event."""
        if timeout is None or not _hurried():
            return super().wait(timeout)
        return super().wait(max(SHORTEST, timeout / self.factor))


def hurry(factor: float, since: float) -> None:
    """Put the clocks in the place of the daemon's."""

    def instant() -> Instant:
        real = _usual()
        return Instant(since + (real.wall - since) * factor, real.steady * factor) if _hurried() else real

    usual_rounds, begin = daemon.Rounds, loops.Loop.__init__

    def with_wake(self, *arguments, **more):
        begin(self, *arguments, **more)
        self.wake = Wake()

    Wake.factor = factor
    daemon.instant = loops.instant = instant
    loops.Loop.__init__ = with_wake
    daemon.Rounds = lambda *arguments: usual_rounds(*(_usual if each is instant else each for each in arguments))
    relay.time = SimpleNamespace(monotonic=lambda: time.monotonic() * factor)


if __name__ == "__main__":
    hurry(float(sys.argv[1]), float(sys.argv[2]))
    sys.argv = sys.argv[:1] + sys.argv[3:]
    from bridged.commands import main

    main()
