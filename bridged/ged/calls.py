"""Calls that may never return, because a file system hangs: a dead file server, a stopped FUSE process.

Nothing ends a thread that the kernel keeps in such a call. So each call is made in a thread of this module. The caller
gives up in time, and the thread comes back when the file system answers.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Hashable, Iterable
from queue import SimpleQueue
from typing import Any, BinaryIO, Final, Generic, Self, TypeVar

from bridged.model import Document

HANGING: Final = 10.0  # seconds without an answer, after which a file system hangs and no other call begins there
SPARE: Final = 8  # idle threads that are kept for the next calls

T = TypeVar("T")


class Hanging(OSError):
    """The file system does not answer. The file may still be there, so the caller concludes nothing and waits."""

    def __init__(self) -> None:
        super().__init__(errno.ETIMEDOUT, "its file system does not answer")


class Call(Generic[T]):
    """One call under way. `wait` and `result` may be called again and again."""

    def __init__(self, work: Callable[[], T], ged: bytes, mount: Hashable, began: float) -> None:
        self.ged = ged
        self.mounts = {mount}
        self.began = began
        self._work = work
        self._done = threading.Event()
        self._result: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Make the call, and keep its result or its exception for `result`."""
        try:
            self._result.append(self._work())
        except BaseException as error:  # noqa: BLE001 - raised again by `result`, in the thread that asks
            self._error = error

    def finish(self) -> None:
        """Wake the threads that wait."""
        self._done.set()

    def wait(self, seconds: float) -> bool:
        """True when the call has returned; waits for that, `seconds` at most."""
        return self._done.wait(seconds)

    def result(self) -> T:
        """The call's result; raises the call's exception. Only after `wait` was True."""
        if self._error is not None:
            raise self._error
        return self._result[0]


class Calls:
    """Makes calls into GEDs, and knows which file systems have not answered. Thread-safe.

    Once a call into a mount hangs, `call` raises Hanging at once for every GED on that mount. Otherwise a dead file
    server with 800 clients would hold 800 threads.
    """

    def __init__(self, steady: Callable[[], float]) -> None:
        self._steady = steady
        self._lock = threading.Lock()
        self._mounts: dict[bytes, Hashable] = {}
        self._running: set[Call[Any]] = set()
        self._current = threading.local()
        self._idle: list[SimpleQueue[Call[Any]]] = []

    def locate(self, ged: bytes, mount: Hashable) -> None:
        """The GED was last seen on this mount. From within a call: that call may hang on this mount as well."""
        call: Call[Any] | None = getattr(self._current, "call", None)
        with self._lock:
            self._mounts[ged] = mount
            if call is not None:
                call.mounts.add(mount)

    def forget(self, ged: bytes) -> None:
        """The GED is no longer configured."""
        with self._lock:
            self._mounts.pop(ged, None)

    def mount_of(self, ged: bytes) -> Hashable:
        """The mount of a GED, as `locate` told it; the GED itself before that."""
        return self._mounts.get(ged, ged)

    def by_mount(self, documents: Iterable[Document]) -> list[list[Document]]:
        """The documents of each mount, because one call into a mount is enough for all of them."""
        mounts: dict[Hashable, list[Document]] = {}
        for document in documents:
            mounts.setdefault(self.mount_of(document.ged), []).append(document)
        return list(mounts.values())

    def silent_for(self, ged: bytes) -> float:
        """Seconds for which the oldest call under way into the GED's mount has had no answer; 0 without a call."""
        return self.silences().get(self.mount_of(ged), 0.0)

    def silences(self) -> dict[Hashable, float]:
        """Seconds of `silent_for`, for each mount into which a call is under way."""
        with self._lock:
            began: dict[Hashable, float] = {}
            for call in self._running:
                for mount in self._mounts_of(call):
                    began[mount] = min(call.began, began.get(mount, call.began))
            now = self._steady()
            return {mount: now - at for mount, at in began.items()}

    def hanging(self) -> tuple[bytes, ...]:
        """The located GEDs whose file system has not answered for HANGING seconds."""
        with self._lock:
            since = self._steady() - HANGING
            mounts = {m for call in self._running if call.began <= since for m in self._mounts_of(call)}
            return tuple(ged for ged, mount in self._mounts.items() if mount in mounts) if mounts else ()

    def start(self, ged: bytes, work: Callable[[], T]) -> Call[T]:
        """Begin a call, also into a mount that hangs. Raises RuntimeError when the machine grants no thread."""
        with self._lock:
            queue = self._idle.pop() if self._idle else None
        if queue is None:
            queue = SimpleQueue()
            # Before the call counts as running. Otherwise a call without a thread would make its mount hang.
            threading.Thread(target=self._work, args=(queue,), name="calls", daemon=True).start()
        with self._lock:
            call = Call(work, ged, self._mounts.get(ged, ged), self._steady())
            self._running.add(call)
        queue.put(call)
        return call

    def progress(self) -> None:
        """From within a long call: the file system answers, and there is much to do."""
        call: Call[Any] | None = getattr(self._current, "call", None)
        if call is not None:
            call.began = self._steady()

    def call(self, ged: bytes, work: Callable[[], T], at_most: float = HANGING) -> T:
        """Make a call and return its result. Raises the call's exception, or Hanging without an answer in time.

        A call has HANGING seconds to answer. A call that reports `progress` has `at_most` seconds in all, because a
        slow disk does not hang.
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
        """The mounts on which a call may hang: the GED's at its beginning, the GED's now, and those it has located."""
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
            del call  # otherwise the result of this call, perhaps an open file, would live until the next call


class CalledFile:
    """A document open for reading. Every method may raise Hanging, and OSError as the file itself does."""

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
            self._calls.start(self._ged, file.close)  # in a call, because close(2) may hang as well

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; all of the rest for -1."""
        file = self._opened()
        return self._calls.call(self._ged, lambda: file.read(size))

    def status(self) -> os.stat_result:
        """The result of fstat(2)."""
        file = self._opened()
        return self._calls.call(self._ged, lambda: os.fstat(file.fileno()))

    def _open(self) -> None:
        file = self._opener()
        with self._lock:
            if not self._left:
                self._file = file
                return
        file.close()  # opened after the caller had given up

    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise ValueError("the document is not open")
        return self._file
