"""The first look at a directory: names, kinds and inodes at the speed of the kernel. A part of a large GED is looked
at by a second process, since Python uses one processor in each.

That process answers who has started it and nobody else, writes nothing, and ends with the last of its questions. It is
there for the rest of one pass, and only to be faster: where it cannot be started or has ended, nothing is missing.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bridged.ged import files, kernel
from bridged.journal import packed

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

WORTH: Final = 2000  # directories looked at in a pass, after which a second process is started: a tenth of a second
_WAITS: Final = 0  # ms for it to be there: none, since there is enough to do meanwhile
_PART: Final = 64  # directories asked for at a time,
_AHEAD: Final = 2  # so many times, so that it never waits for the next ones; and of no more than
_BYTES: Final = 16 * 1024  # of paths: a question must never wait for room while its answer waits for room as well
_ENDS_WITHIN: Final = 1.0  # seconds; one that a hanging share keeps ends when that lets it go
_HELLO: Final = "here"
_ONE: Final = threading.Lock()  # in a daemon: more would only take each other's processor, and 20 MB each


class Look(NamedTuple):
    """A directory as it was found. `read_ns` is as in `packed.Packed`, `status` what `STATUS` takes of it."""

    records: bytes
    read_ns: int
    status: tuple[int, int, int, int]
    directories: list[bytes]


# What tells whether anything has come or gone, or another directory is there.
STATUS: Final = attrgetter("st_mtime_ns", "st_ctime_ns", "st_ino", "st_dev")


def look(root_fd: int, relative: bytes, device: int, endings: tuple[bytes, ...]) -> Look | None:
    """What is in a directory below a root; None where more must be asked than names, or there is trouble.

    `device`: of the root; another file system is not looked at. `endings` are for `packed.only_documents`. Whoever
    wants to know what comes meanwhile has asked for hints before.
    """
    try:
        fd = files.open_directory(root_fd, relative)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        read_ns = kernel.coarse_ns()
        records = kernel.records(fd) if status.st_dev == device else None
    except OSError:
        return None
    finally:
        os.close(fd)
    # Where the clock is behind the file system's own times, they would tell nothing of what came first.
    young = max(status.st_mtime_ns, status.st_ctime_ns) >= read_ns
    if records is None or young or not packed.only_documents(records, endings):
        return None
    # Of file systems that count directories in a directory's links (not btrfs) most say at once that there is none.
    directories = packed.directories(records) if status.st_nlink != 2 else []
    return Look(records, read_ns, STATUS(status), directories)


class Beside:
    """A second process that looks while this one does, started when there is enough to do. One thread's; to be closed.

    What it was asked for and does not answer is answered by None: to be looked at by whoever asks. Nothing is asked
    of it before it is there.
    """

    def __init__(self, root_fd: int, device: int, endings: tuple[bytes, ...]) -> None:
        """The arguments are those of `look`."""
        self._root_fd = root_fd
        self._how = device, endings
        self._calls = 0
        self._is_the_one = False
        self._is_there = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._asked: deque[list[bytes]] = deque()
        self._answers: deque[tuple[bytes, Look | None]] = deque()
        self._poll = select.poll()

    @property
    def asked(self) -> bool:
        """Whether there are directories whose answers nobody has taken yet."""
        return bool(self._asked or self._answers)

    def ask(self, directories: list[bytes], root: bytes, may: Callable[[bytes], bool]) -> None:
        """Take directories below `root` from the end of a long list, if there is little for the process to do.

        To be called for each directory that is looked at here. Only such as `may` be asked for, which is called right
        before they are.
        """
        self._calls += 1
        if self._calls == WORTH and len(os.sched_getaffinity(0)) > 1:
            self._start()
        while len(directories) > _PART and len(self._asked) < _AHEAD and self._listens():
            part: list[bytes] = []
            room = _BYTES
            while len(part) < _PART and room > 0 and may(directories[-1]):
                part.append(directories.pop())
                room -= len(part[-1])
            if not part:
                return
            self._asked.append(part)
            self._send([directory[len(root) + 1 :] for directory in part])

    def answer(self, *, wait: bool) -> tuple[bytes, Look | None] | None:
        """One of the directories that were asked for. None where there is none, or none yet and nobody will `wait`."""
        if not self._answers and self._asked and (wait or self._connection is None or self._poll.poll(0)):
            directories = self._asked.popleft()
            looks = self._received() or [None] * len(directories)
            self._answers.extend(zip(directories, looks, strict=True))
        return self._answers.popleft() if self._answers else None

    def close(self) -> None:
        """Let it end, and with it its descriptor of the root, which would make `umount` fail."""
        self._asked.clear()
        self._answers.clear()
        self._hang_up()
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_ENDS_WITHIN)
        if self._is_the_one:
            self._is_the_one = False
            _ONE.release()

    def _start(self) -> None:
        self._is_the_one = _ONE.acquire(blocking=False)
        if not self._is_the_one:
            return
        try:
            from multiprocessing.connection import Pipe  # noqa: PLC0415 - a daemon can do without, except now

            self._connection, theirs = Pipe()
            numbers = self._root_fd, theirs.fileno()
            program = f"from {__name__} import serve; serve()"
            command = [sys.executable, "-P", "-c", program, *map(str, numbers)]
            none = subprocess.DEVNULL  # in the daemon's log every line is an event
            # In a session of its own: the ^C that ends a daemon in a terminal is not for it.
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - nothing in it is anybody's input
                    command, pass_fds=numbers, stdin=none, stdout=none, stderr=none, start_new_session=True
                )
            self._poll.register(self._connection.fileno(), select.POLLIN)
        except Exception:  # noqa: BLE001 - no descriptor, no memory, no such program: all is looked at without it
            self._hang_up()
        self._send(self._how)

    def _listens(self) -> bool:
        if self._connection is not None and not self._is_there and self._poll.poll(_WAITS):
            self._is_there = self._received() == _HELLO
        return self._is_there and self._connection is not None

    def _send(self, question: object) -> None:
        try:
            if self._connection is not None:
                self._connection.send(question)
        except OSError:
            self._hang_up()

    def _received(self) -> Any:
        try:
            return None if self._connection is None else self._connection.recv()
        except Exception:  # noqa: BLE001 - it has ended, or is of a version that was installed meanwhile
            self._hang_up()

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def serve() -> None:
    """What the second process does; its arguments are the numbers of the root's descriptor and of the connection's."""
    from multiprocessing.connection import Connection  # noqa: PLC0415 - as above

    root_fd, number = map(int, sys.argv[1:])
    with Connection(number) as connection, contextlib.suppress(EOFError, ConnectionError):  # nobody asks any more
        device, endings = connection.recv()
        connection.send(_HELLO)
        while True:
            connection.send([look(root_fd, relative, device, endings) for relative in connection.recv()])
