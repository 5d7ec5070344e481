"""A polled share on which nothing happens, against watchdog's PollingObserver."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import bench, trees
from benchmarks.figures import Figure
from benchmarks.start import MB, idle_pass

# A cycle as PollingEmitter.queue_events does it: a snapshot, and what is different from the one before.
SNAPSHOT = """
import json, sys, time
from pathlib import Path
from watchdog.utils.dirsnapshot import DirectorySnapshot, DirectorySnapshotDiff

def resident():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmRSS:"))

def say(value):
    print(json.dumps(value), flush=True)

before = resident()
snapshot = DirectorySnapshot(sys.argv[1], recursive=True)
say(resident() - before)
for _ in sys.stdin:
    began = time.monotonic()
    new = DirectorySnapshot(sys.argv[1], recursive=True)
    difference = DirectorySnapshotDiff(snapshot, new)
    snapshot = new
    say(time.monotonic() - began)
"""


def run(*, small: bool) -> Iterator[Figure]:
    """The same tree for both, warm for both."""
    count, directories = (2_000, 100) if small else (1_000_000, 50_000)
    yield from measured(count, directories, rounds=3, settle=1 if small else 12)


def measured(count: int, directories: int, *, rounds: int, settle: float) -> Iterator[Figure]:
    """The figures of one tree."""
    here = f"{count:,} files in {directories:,} directories"
    with bench.workplace() as top:
        empty = held(bench.Bridge(top / "empty", bench.free_port(), watch=", mode: polling"), settle)
        bridge = bench.Bridge(top / "full", bench.free_port(), watch=", mode: polling")
        trees.grow(bridge.inbox, directories=directories, files=count)
        ours = held(bridge, settle) - empty
        sweep = idle_pass(bridge)
        with snapshots(bridge.inbox) as peer:
            theirs = peer.added
            swept, cycle = bench.medians(rounds, lambda: bench.timed(sweep), peer.cycle)
    yield Figure(f"polling cycle, {here}, nothing changed", "s", swept, "PollingObserver", cycle, at_most=0.05)
    what = f"memory while polling, {here}, without what an empty GED needs (against one snapshot)"
    yield Figure(what, "MB", ours / MB, "PollingObserver", theirs / MB, at_most=0.1)


def held(bridge: bench.Bridge, settle: float) -> int:
    """Resident memory of the daemon some time after it is ready."""
    with bridge.run():
        time.sleep(settle)
        assert bench.watches(bridge.pid) < 10, "it is not polling"
        return bench.resident(bridge.pid)


class Peer:
    """watchdog's snapshots of a tree, in a process of their own: what the first one added to it in bytes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.added = self._said()

    def cycle(self) -> float:
        """Seconds that a cycle takes."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return self._said()

    def _said(self) -> float:
        assert self._process.stdout is not None
        return float(json.loads(self._process.stdout.readline()))


@contextmanager
def snapshots(top: Path) -> Iterator[Peer]:
    """A peer that has read the tree once."""
    command = [sys.executable, "-c", SNAPSHOT, str(top)]
    with bench.running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Peer(process)
