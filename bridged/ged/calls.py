"""Calls that may never return: those into a file system that hangs (a dead file server, a stopped FUSE process).

Nothing ends a thread that the kernel keeps in such a call. So each is made in a thread of its own kind; whoever waits
gives up in time and does something else, and the thread comes back when the file system answers.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Hashable, Iterable
from queue import SimpleQueue
from typing import Any, BinaryIO, Final, Generic, Self, TypeVar

from bridged.model import Document

# A file system that has not answered for this time (seconds) hangs: others are no longer sent into it.
HANGING: Final = 10.0
SPARE: Final = 8  # threads that are kept for the next calls

T = TypeVar("T")


class Hanging(OSError):
    """The file system does not answer. Nothing may be concluded from that, and nothing is lost by waiting."""

    def __init__(self) -> None:
        super().__init__(errno.ETIMEDOUT, "its file system does not answer")


class Call(Generic[T]):
    """One call under way. `wait` may be asked again; the result stays until it is taken."""

    def __init__(self, work: Callable[[], T], ged: bytes, mount: Hashable, began: float) -> None:
        self.ged = ged
        self.mounts = {mount}
        self.began = began
        self._work = work
        self._done = threading.Event()
        self._result: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Make the call; what it raises is kept for `result`."""
        try:
            self._result.append(self._work())
        except BaseException as error:  # noqa: BLE001 - raised again by `result`, in the thread that asks
            self._error = error

    def finish(self) -> None:
        """Let those go on who wait."""
        self._done.set()

    def wait(self, seconds: float) -> bool:
        """Whether it has returned, after waiting `seconds` at most."""
        return self._done.wait(seconds)

    def result(self) -> T:
        """What the call returned; raises what it raised. Only after it has returned."""
        if self._error is not None:
            raise self._error
        return self._result[0]


class Calls:
    """Makes calls into GEDs and knows which file systems have not answered. Thread-safe.

    Calls into one mount share its fate: once one hangs, no other is begun there (`call` raises Hanging at once), so
    that a dead server of 800 clients does not swallow 800 threads.
    """

    def __init__(self, steady: Callable[[], float]) -> None:
        self._steady = steady
        self._lock = threading.Lock()
        self._mounts: dict[bytes, Hashable] = {}
        self._running: set[Call[Any]] = set()
        self._current = threading.local()
        self._idle: list[SimpleQueue[Call[Any]]] = []

    def locate(self, ged: bytes, mount: Hashable) -> None:
        """The GED was last seen on this mount. Said from within a call, it is one that the call may hang on, too."""
        call: Call[Any] | None = getattr(self._current, "call", None)
        with self._lock:
            self._mounts[ged] = mount
            if call is not None:
                call.mounts.add(mount)

    def forget(self, ged: bytes) -> None:
        """Nobody asks for this GED any more."""
        with self._lock:
            self._mounts.pop(ged, None)

    def mount_of(self, ged: bytes) -> Hashable:
        """What all GEDs on the mount of this one have in common."""
        return self._mounts.get(ged, ged)

    def by_mount(self, documents: Iterable[Document]) -> list[list[Document]]:
        """Documents, those together whose GEDs are on one mount: one call is enough for them."""
        mounts: dict[Hashable, list[Document]] = {}
        for document in documents:
            mounts.setdefault(self.mount_of(document.ged), []).append(document)
        return list(mounts.values())

    def silent_for(self, ged: bytes) -> float:
        """How long (seconds) the oldest call under way into the GED's mount has had no answer; 0 without one."""
        return self.silences().get(self.mount_of(ged), 0.0)

    def silences(self) -> dict[Hashable, float]:
        """The same for each mount into which a call is under way."""
        with self._lock:
            began: dict[Hashable, float] = {}
            for call in self._running:
                for mount in self._mounts_of(call):
                    began[mount] = min(call.began, began.get(mount, call.began))
            now = self._steady()
            return {mount: now - at for mount, at in began.items()}

    def hanging(self) -> tuple[bytes, ...]:
        """The GEDs that `locate` has named and whose file system hangs."""
        with self._lock:
            since = self._steady() - HANGING
            mounts = {m for call in self._running if call.began <= since for m in self._mounts_of(call)}
            return tuple(ged for ged, mount in self._mounts.items() if mount in mounts) if mounts else ()

    def start(self, ged: bytes, work: Callable[[], T]) -> Call[T]:
        """Begin a call, whatever the mount is like."""
        with self._lock:
            queue = self._idle.pop() if self._idle else None
        if queue is None:
            queue = SimpleQueue()
            # Raises where no thread is to be had: then nothing is under way that might be taken for hanging.
            threading.Thread(target=self._work, args=(queue,), name="patience", daemon=True).start()
        with self._lock:
            call = Call(work, ged, self._mounts.get(ged, ged), self._steady())
            self._running.add(call)
        queue.put(call)
        return call

    def progress(self) -> None:
        """Said from within a long call: the file system does answer, there is only much to do."""
        call: Call[Any] | None = getattr(self._current, "call", None)
        if call is not None:
            call.began = self._steady()

    def call(self, ged: bytes, work: Callable[[], T], at_most: float = HANGING) -> T:
        """Make a call and return its result; raises what it raises, or Hanging when there is no answer in time.

        One that beats is waited for `at_most` seconds: a slow disk is no hanging one.
        """
        if self.silent_for(ged) >= HANGING:
            raise Hanging
        call = self.start(ged, work)
        until = call.began + at_most
        while not call.wait(max(0.0, min(until, call.began + HANGING) - self._steady())):
            if self._steady() >= min(until, call.began + HANGING):
                raise Hanging
        return call.result()

    def _mounts_of(self, call: Call[Any]) -> set[Hashable]:
        """Where the GED was when the call began, and where it, or what the call has located, was found to be since."""
        return call.mounts | {self._mounts.get(call.ged, call.ged)}

    def _work(self, queue: SimpleQueue[Call[Any]]) -> None:
        while True:
            call = queue.get()
            self._current.call = call
            call.run()
            self._current.call = None
            with self._lock:
                self._running.discard(call)
                stays = len(self._idle) < SPARE
                if stays:
                    self._idle.append(queue)
            call.finish()
            if not stays:
                return
            del call  # or the result of the last call, a file perhaps, would live until the next one


class CalledFile:
    """A document open for reading, whose every touch may raise Hanging."""

    def __init__(self, calls: Calls, ged: bytes, opener: Callable[[], BinaryIO]) -> None:
        self._calls = calls
        self._ged = ged
        self._opener = opener
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._left = False

    def __enter__(self) -> Self:
        try:
            self._calls.call(self._ged, self._open)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._left = True
            file, self._file = self._file, None
        if file is not None:
            self._calls.start(self._ged, file.close)  # closing waits for a file system's word, too

    def read(self, size: int = -1, /) -> bytes:
        """As of a file."""
        file = self._opened()
        return self._calls.call(self._ged, lambda: file.read(size))

    def status(self) -> os.stat_result:
        """What fstat(2) says of it."""
        file = self._opened()
        return self._calls.call(self._ged, lambda: os.fstat(file.fileno()))

    def _open(self) -> None:
        file = self._opener()
        with self._lock:
            if not self._left:
                self._file = file
                return
        file.close()  # it was opened after all, when nobody waited any more

    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise ValueError("the document is not open")
        return self._file
