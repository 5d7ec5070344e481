"""Hints from a watchdog observer over inotify(7).

One inotify instance serves all folders, and each directory is watched by itself, just before it is read. Not by
watchdog's recursion, because it misses moved-in directories and livelocks when its queue overflows. Not by an emitter
for each folder, because each costs two threads.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final, Literal

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
    FileSystemMovedEvent,
)
from watchdog.observers.api import BaseObserver, EventEmitter
from watchdog.observers.inotify_c import (
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchCallback,
    WatchDescriptor,
    inotify_add_watch,
    inotify_rm_watch,
)

from bridged.names import is_leftover, is_unnamed
from bridged.paths import is_in

MASK: Final = Mask(
    InotifyConstants.IN_CREATE
    | InotifyConstants.IN_CLOSE_WRITE
    | InotifyConstants.IN_MOVED_FROM
    | InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_DELETE
    | InotifyConstants.IN_ONLYDIR
    | InotifyConstants.IN_DONT_FOLLOW
)
# Events that are heeded under a marker's name, because a person may have renamed a document to it, or deleted it.
_NOT_PASSED_OVER: Final = (
    InotifyConstants.IN_MOVED_FROM
    | InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_DELETE
    | InotifyConstants.IN_ISDIR
)
GATHER: Final = 0.005  # seconds in which a burst gathers, because a wake-up costs more than an event
# Seconds until the second half of a rename. The kernel queues both together (inotify(7)): a lone half left the folders.
PAIR_WITHIN: Final = 0.05
_NOBODYS: Final = b"/proc"  # a directory outside every GED, in which no file is made or removed
UNTIL_WOKEN: Final = 3600.0  # seconds an emitter rests, unless an event wakes it


@dataclass(frozen=True, slots=True)
class Hint:
    """Look at `path`. `gone`: it was deleted or moved out. `moved`: it is now at `dest`. `lost`: hints are missing.

    `sync`: the hints of all that happened before `number` was asked for, in any directory, came before this one.
    """

    kind: Literal["look", "gone", "moved", "lost", "sync"]
    path: bytes = b""
    dest: bytes = b""
    number: int = 0


class _SyncEvent(FileSystemEvent):
    """An event that this module makes for `sync`. The kernel knows none."""

    event_type = "sync"


class GatheringInotify(InotifyFD):
    """watchdog's reader of the kernel's queue, with one callback. In a burst it lets events gather.

    One callback, because watchdog's table of callbacks takes 400 bytes a directory: 20 MB for 50,000 directories.
    """

    callback: WatchCallback
    _more = False

    def watch(self, directory: bytes) -> WatchDescriptor:
        """Watch a directory. A renamed one keeps its watch descriptor. Raises OSError (inotify_add_watch(2))."""
        with self._lock:
            return self._added(directory)

    def sync(self) -> WatchDescriptor:
        """A watch descriptor that `on_watch_deleted` gets after every event of before this call. Raises OSError.

        A removed watch leaves IN_IGNORED in the queue, and the queue keeps its order (inotify(7)).
        """
        with self._lock:
            wd = self._added(_NOBODYS)
            if inotify_rm_watch(self._inotify_fd, wd) == -1:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), _NOBODYS)
        return wd

    def _added(self, directory: bytes) -> WatchDescriptor:
        wd = WatchDescriptor(-1) if self._closed else inotify_add_watch(self._inotify_fd, directory, MASK)
        if wd == -1:
            error = errno.EBADF if self._closed else ctypes.get_errno()
            raise OSError(error, os.strerror(error), directory)
        return wd

    def handle_event(self, event: InotifyEvent) -> None:
        """Hand one event to the callback."""
        if event.is_queue_overflow:
            self.callback.on_queue_overflow()
        elif event.is_ignored:
            self.callback.on_watch_deleted(event.wd)
        else:
            self.callback.on_event(event)

    def read_events(self, **options: Any) -> list[InotifyEvent]:
        """Wait for events, as watchdog does. The first after a rest is read at once, later ones together."""
        if self._more:
            self.stopped_event.wait(GATHER)
        events = super().read_events(**options)
        self._more = len(events) > 0
        return events

    def close(self) -> None:
        """Close the queue, and with it every watch, also when the reader's thread has died."""
        with self._lock:
            self._is_reading = self._is_reading and self.is_alive()
        super().close()


class DirectoryEmitter(EventEmitter):
    """A watchdog emitter over single directories, which are added and dropped at any time."""

    def __init__(
        self,
        *args: Any,
        inotify: GatheringInotify,
        on_lost: Callable[[], None],
        is_ours: Callable[[bytes], bool],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._inotify = inotify
        inotify.callback = self
        self._is_ours = is_ours
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._paths: dict[WatchDescriptor, bytes] = {}
        self._syncs: dict[WatchDescriptor, tuple[bytes, int]] = {}
        self._moved_from: tuple[InotifyEvent, bytes, float] | None = None
        self._half = threading.Event()

    def add(self, directory: bytes) -> None:
        """Watch a directory. Raises OSError (ENOSPC: the watch limit is reached)."""
        with self._lock:
            self._paths[self._inotify.watch(directory)] = directory

    def sync(self, path: bytes, number: int) -> None:
        """Queue a hint `sync` with this path and number. Raises OSError."""
        with self._lock:
            self._syncs[self._inotify.sync()] = path, number

    def count(self) -> int:
        """The number of watched directories."""
        return len(self._paths)

    # -- called by watchdog's reader thread, which dies when one of these raises: then no hint comes any more

    def on_event(self, event: InotifyEvent) -> None:
        """Turn one event of the kernel into one of watchdog's."""
        if event.is_close_write and is_unnamed(event.name):
            return
        if event.name and not (event.mask & _NOT_PASSED_OVER) and self._is_ours(event.name):
            return  # because each marker makes several events, and none of them is a deposit
        with self._lock:
            directory = self._paths.get(event.wd)
        if directory is None:
            return
        path = directory + b"/" + event.name if event.name else directory
        source = self._take_half()
        if event.is_moved_to and source is not None and source[0].cookie == event.cookie:
            moved = DirMovedEvent if event.is_directory else FileMovedEvent
            if event.is_directory:
                self._carry(source[1], path)
            self.queue_event(moved(source[1], path))
            return
        self._flush(source)
        if event.is_moved_from:
            self._moved_from = (event, path, time.monotonic())
            self._half.set()
        else:
            self._tell(event, path)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """The directory was deleted, its file system was unmounted, or a sync has come."""
        with self._lock:
            directory, sync = self._paths.pop(wd, None), self._syncs.pop(wd, None)
        if sync is not None:
            self._flush(self._take_half())
            path, number = sync
            self.queue_event(_SyncEvent(path, str(number)))
        if directory is not None:
            self.queue_event(DirDeletedEvent(directory))

    def on_queue_overflow(self) -> None:
        """The kernel dropped events: a sweep must read every folder."""
        self._on_lost()

    def queue_events(self, timeout: float) -> None:
        """Hand out the half of a rename whose other half has not come in time."""
        if self._half.wait(timeout):
            self._half.clear()
            self.stopped_event.wait(PAIR_WITHIN)
            self._flush(self._take_half())

    def on_thread_stop(self) -> None:
        """Wake `queue_events`. Otherwise each stop would take a second."""
        self._half.set()

    def _carry(self, source: bytes, dest: bytes) -> None:
        """Give the new name to a renamed directory and to the directories in it.

        Otherwise a hint would name the old path, and intake would look at the directory that stands there now.
        """
        with self._lock:
            for wd, one in self._paths.items():
                if is_in(one, source):
                    self._paths[wd] = dest + one[len(source) :]

    def _take_half(self) -> tuple[InotifyEvent, bytes, float] | None:
        with self._lock:
            half, self._moved_from = self._moved_from, None
            return half

    def _flush(self, half: tuple[InotifyEvent, bytes, float] | None) -> None:
        if half is not None:
            event, path, _ = half
            self.queue_event(DirDeletedEvent(path) if event.is_directory else FileDeletedEvent(path))

    def _tell(self, event: InotifyEvent, path: bytes) -> None:
        if event.is_delete and is_leftover(event.name):
            return
        if event.is_delete:
            self.queue_event(DirDeletedEvent(path) if event.is_directory else FileDeletedEvent(path))
        elif event.is_close_write:
            self.queue_event(FileClosedEvent(path))
        else:
            self.queue_event(DirCreatedEvent(path) if event.is_directory else FileCreatedEvent(path))


class _ToHints(FileSystemEventHandler):
    """watchdog's callback. It only puts a hint on a queue, because a callback that raises kills the observer."""

    def __init__(self, put: Callable[[Hint], None]) -> None:
        self._put = put

    def dispatch(self, event: FileSystemEvent) -> None:
        source = os.fsencode(event.src_path)
        if isinstance(event, FileSystemMovedEvent):
            self._put(Hint("moved", source, os.fsencode(event.dest_path)))
        elif isinstance(event, FileDeletedEvent):
            self._put(Hint("gone", source))
        elif isinstance(event, _SyncEvent):
            self._put(Hint("sync", source, number=int(event.dest_path)))
        else:
            self._put(Hint("look", source))


class Watcher:
    """The observer with its queue of hints. `on_hint` is called from another thread for each hint."""

    def __init__(self, on_hint: Callable[[], None], is_ours: Callable[[bytes], bool]) -> None:
        """`is_ours` tells a name that only bridged gives. Raises OSError when the kernel grants no inotify instance."""
        self._hints: SimpleQueue[Hint] = SimpleQueue()
        self._on_hint = on_hint
        self._inotify = GatheringInotify()
        self._observer = BaseObserver(
            DirectoryEmitter,
            timeout=UNTIL_WOKEN,
            inotify=self._inotify,
            on_lost=lambda: self._put(Hint("lost")),
            is_ours=is_ours,
        )
        watch = self._observer.schedule(_ToHints(self._put), "/", recursive=False)
        self._emitter: Any = self._observer._emitter_for_watch[watch]  # noqa: SLF001 - no public way
        self._inotify.start()
        self._observer.start()

    def watch(self, directory: bytes) -> None:
        """Ask for hints from a directory, not from below it. Raises OSError."""
        self._emitter.add(directory)

    def sync(self, path: bytes, number: int) -> None:
        """Ask for a hint `sync` with this path and number. Raises OSError."""
        self._emitter.sync(path, number)

    def drain(self, limit: int) -> list[Hint]:
        """The hints that have come, the oldest first; `limit` at most."""
        hints: list[Hint] = []
        try:
            while len(hints) < limit:
                hints.append(self._hints.get_nowait())
        except Empty:
            pass
        return hints

    @property
    def count(self) -> int:
        """The number of watched directories."""
        return int(self._emitter.count())

    @property
    def alive(self) -> bool:
        """True while every thread on the way of a hint lives. A living observer may be silent: sweeps check on it."""
        return all(thread.is_alive() for thread in (self._inotify, self._observer, self._emitter))

    @property
    def behind(self) -> bool:
        """True while an event that was read from the kernel is not a drained hint yet."""
        return not (self._observer.event_queue.empty() and self._hints.empty())

    def close(self) -> None:
        """Stop the observer and give its watches back to the kernel."""
        self._observer.stop()
        self._inotify.stop()
        self._observer.join(5)
        self._inotify.join(5)  # because the reader closes its own descriptor

    def _put(self, hint: Hint) -> None:
        self._hints.put(hint)
        self._on_hint()
