"""Helpers for the tests of the jail: inotify tells of each open of a file, and a subprocess exchanges names."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IN_ACCESS, IN_OPEN = 0x1, 0x20
_EVENT = struct.Struct("iIII")


class Watched:
    """Files that bridged may not open. inotify counts each open, even for an instant, even without reading."""

    def __init__(self, *paths: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._names = {}
        for path in paths:
            number = libc.inotify_add_watch(self._fd, os.fsencode(path), IN_OPEN | IN_ACCESS)
            assert number > 0, os.strerror(ctypes.get_errno())
            self._names[number] = path

    def opened(self) -> list[Path]:
        """The watched files that have been opened since this was last asked."""
        found = []
        while select.select([self._fd], [], [], 0)[0]:
            events = os.read(self._fd, 65536)
            while events:
                number, _, _, length = _EVENT.unpack_from(events)
                events = events[_EVENT.size + length :]
                found.append(self._names[number])
        return found

    def close(self) -> None:
        """Watch no more."""
        os.close(self._fd)


@contextmanager
def watched(*paths: Path) -> Iterator[Watched]:
    """Watched files for the time of a block."""
    one = Watched(*paths)
    try:
        yield one
    finally:
        one.close()


# Two names exchange their files in one system call: there is no instant without a file.
_RACER = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
pairs = [line.rstrip("\\n").split("\\t") for line in sys.stdin]
pairs = [(os.fsencode(a), os.fsencode(b)) for a, b in pairs]
swap = lambda a, b: libc.renameat2(-100, a, -100, b, 2)
end = time.monotonic() + float(sys.argv[1])
swaps = 0
try:
    while time.monotonic() < end and os.getppid() != 1:
        for a, b in pairs:
            for _ in range(int(sys.argv[2])):
                swaps += 2
                if swap(a, b) or swap(a, b):
                    sys.exit("an exchange failed")
            if float(sys.argv[3]):
                swap(a, b)
                time.sleep(float(sys.argv[3]))
                swap(a, b)
finally:
    print(swaps)
"""


@contextmanager
def exchanging(pairs: list[tuple[Path, Path]], seconds: float, burst: int, hold: float = 0.0) -> Iterator[None]:
    """A subprocess swaps these pairs of names meanwhile; an even number of times, so that all ends as it began."""
    racer = subprocess.Popen(
        [sys.executable, "-c", _RACER, str(seconds), str(burst), str(hold)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert racer.stdin is not None
        racer.stdin.write("".join(f"{a}\t{b}\n" for a, b in pairs))
        racer.stdin.close()
        yield
        assert racer.stdout is not None
        swaps = int(racer.stdout.read())
        assert racer.wait(seconds + 30) == 0
        assert swaps > 1000, "the race was not run"
    finally:
        if racer.poll() is None:
            racer.kill()
            racer.wait()
        racer.stdout.close()
