"""The observer, kept alive: one that dies or falls silent is replaced, and intake goes on asking here for hints."""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import Callable
from typing import Final

from bridged.logs import say
from bridged.watching.inotify import Hint, Watcher

RESTART_AT_MOST: Final = 60.0  # seconds at least between two restarts of the observer


class Hints:
    """One observer for all GEDs. `watch`, `sync` and `missed_one` may be called from any thread, the rest from one."""

    def __init__(self, on_hint: Callable[[], None], is_ours: Callable[[bytes], bool]) -> None:
        """`on_hint` is called from another thread for each hint. `is_ours` tells a name that only bridged gives."""
        self._on_hint = on_hint
        self._is_ours = is_ours
        self._lock = threading.Lock()
        self._restarted_at = float("-inf")
        self._missed = False
        self._syncs = itertools.count(1)
        self.limited = False  # True once the kernel has refused a watch
        self._watcher = self._observe()

    @property
    def watching(self) -> bool:
        """True when there is an observer. Without one, only sweeps find deposits."""
        return self._watcher is not None

    def watch(self, directory: bytes) -> None:
        """Ask for hints from a directory, not from below it. Where there can be none, the sweep finds its deposits."""
        watcher = self._watcher
        if watcher is None:
            return
        try:
            watcher.watch(directory)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._tell_limit(
                    "the kernel grants no more watches; what it does not tell is found by the sweep."
                    " Raise fs.inotify.max_user_watches."
                )

    def sync(self, path: bytes) -> int | None:
        """Ask for a hint that comes after those of all earlier changes. Returns its number; None where none comes."""
        watcher, number = self._watcher, next(self._syncs)
        if watcher is None:
            return None
        try:
            watcher.sync(path, number)
        except OSError:
            return None
        return number

    @property
    def behind(self) -> bool:
        """True while an event that was read from the kernel is not a drained hint yet."""
        watcher = self._watcher
        return watcher is not None and watcher.behind

    def drain(self, limit: int) -> list[Hint]:
        """The hints that have come, each once, the oldest first; `limit` at most."""
        return list(dict.fromkeys(self._watcher.drain(limit))) if self._watcher is not None else []

    def missed_one(self) -> None:
        """A sweep found a deposit without a hint: the observer is replaced at the next `renew`."""
        if not self.limited:
            self._missed = True

    def renew(self, now: float) -> bool:
        """Replace an observer that is dead, or alive and silent. `now` is seconds of the steady clock.

        True when there is a new one, which watches no directory yet.
        """
        watcher = self._watcher
        if watcher is None or now - self._restarted_at < RESTART_AT_MOST or (watcher.alive and not self._missed):
            return False
        why = "a sweep found a deposit that no hint had told of" if watcher.alive else "one of its threads died"
        self._watcher = self._observe()
        self._restarted_at, self._missed = now, False
        watcher.close()
        say("observer_restarted", reason=why)
        return True

    def close(self) -> None:
        """Give the watches back to the kernel."""
        if self._watcher is not None:
            self._watcher.close()

    def _observe(self) -> Watcher | None:
        try:
            return Watcher(self._on_hint, self._is_ours)
        except OSError as error:
            self._tell_limit(f"no inotify instance ({error.strerror}); only sweeps find deposits")
            return None

    def _tell_limit(self, reason: str) -> None:
        with self._lock:
            told, self.limited = self.limited, True
        if not told:
            say("watch_limit_reached", reason=reason)
