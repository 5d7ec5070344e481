"""Runs bridged on hurried clocks: `hurried.py FACTOR SINCE COMMAND...`; FACTOR of its seconds pass in one of ours.

A pause of 60 s takes 3 s by a factor of 20, and no constant of bridged is touched. Waits for the relay are hurried:
the steady and the wall clock of the daemon (`loops.instant`), the waits of its loops, the age of a kept session.
Intake and marking are not hurried, because the kernel and the file system run at their own speed. The time-outs of a
conversation are not either, because the network is real.

Both wall clocks agreed at SINCE (seconds since the epoch), so that a restart goes on where the stop was.
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
