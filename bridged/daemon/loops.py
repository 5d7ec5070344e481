"""The threads and the clocks: a loop steps one half until it is told to stop."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from bridged.logs import Trouble
from bridged.model import Instant

AFTER_TROUBLE: Final = 1.0  # seconds until a step that raised is repeated


def instant() -> Instant:
    """The present, by both clocks."""
    return Instant(time.time(), time.monotonic())


class Loop(threading.Thread):
    """A thread that steps one half until it is told to stop. A step that raises is logged and repeated."""

    def __init__(
        self, name: str, step: Callable[[Instant], float], *, gather: float = 0.0, once_more: bool = False
    ) -> None:
        """`gather` is the seconds that a wake-up waits for others. `once_more` adds a last step after `stop`."""
        super().__init__(name=name, daemon=True)
        self._gather = gather
        self._once_more = once_more
        self._step = step
        self.wake = threading.Event()
        self._stopping = False
        self._trouble = Trouble(name)
        self.stepped_at = time.monotonic()

    def run(self) -> None:
        """Step, wait for the seconds that the step returned or for `wake`, and step again."""
        while not self._stopping:
            self.wake.clear()
            delay = self._trouble.guarded(lambda: self._step(instant()))
            self.stepped_at = time.monotonic()
            if delay != 0 and self.wake.wait(AFTER_TROUBLE if delay is None else delay) and not self._stopping:
                time.sleep(self._gather)
        if self._once_more:
            self._trouble.guarded(lambda: self._step(instant()))

    def stop(self) -> None:
        """Begin no further step. Returns at once."""
        self._stopping = True
        self.wake.set()


@contextmanager
def woken_by_signals() -> Iterator[Callable[[float], None]]:
    """A function that waits for seconds or for a signal. An Event's wait would go on for the rest of its time."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    poll = select.poll()
    poll.register(reading, select.POLLIN)

    def wait(seconds: float) -> None:
        if poll.poll(seconds * 1000):
            os.read(reading, 512)

    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield wait
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        os.close(reading)
