"""A million existing files: start, memory, idle sweep and idle processor, against find, inotifywait and watchdog."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks import bench, trees
from benchmarks.figures import Figure
from bridged.config import SwitchedFolders, components, load
from bridged.ged import files
from bridged.intake import Sweep

MB = 1e6
EXTRA = 60.0  # MB that bridged may need more than watchdog alone
IDLE = 0.5  # % of a core
WATCHED = b"Watches established."
# What bridged asks for, too: without a filter watchdog hears its own walk, and its queue overflows at 10,000
# directories. With it watchdog needs less memory, so the filter is in its favour.
WATCHDOG = """
import sys, time
from watchdog.events import *
from watchdog.observers import Observer
only = [FileCreatedEvent, FileClosedEvent, FileMovedEvent, FileDeletedEvent,
        DirCreatedEvent, DirMovedEvent, DirDeletedEvent]
observer = Observer()
observer.schedule(FileSystemEventHandler(), sys.argv[1], recursive=True, event_filter=only)
observer.start()
print("ready", flush=True)
sys.stdin.read()
"""


def run(*, small: bool) -> Iterator[Figure]:
    """One tree for everything, warm for everybody."""
    count, directories = (2_000, 100) if small else (1_000_000, 50_000)
    yield from measured(count, directories, rounds=1 if small else 3, settle=1 if small else 5, idle=3 if small else 60)


def measured(count: int, directories: int, *, rounds: int, settle: float, idle: float) -> Iterator[Figure]:
    """The figures of one tree."""
    here = f"{count:,} existing files in {directories:,} directories"
    with bench.workplace() as top:
        bridge = bench.Bridge(top, bench.free_port())
        trees.grow(bridge.inbox, directories=directories, files=count)
        found(bridge)
        timers = [lambda: found(bridge), lambda: started(bridge, new=True), lambda: started(bridge, new=False)]
        peer = shutil.which("inotifywait")
        if peer is not None:
            timers.append(lambda: established(bridge))
        find, first, again, *inotifywait = bench.medians(rounds, *timers)
        yield Figure(f"start, {here}, with their journal", "s", again, "find", find, at_most=3)
        yield from at_rest(bridge, directories, here, settle, idle)
        sweep = idle_pass(bridge)
        find, swept = bench.medians(rounds, lambda: found(bridge), lambda: bench.timed(sweep))
        yield Figure(f"idle sweep, {here}", "s", swept, "find", find, at_most=0.1)
        bench.tool("inotifywait")
        yield Figure(f"start, {here}, for the first time", "s", first, "inotifywait -r", inotifywait[0], at_most=4)
        yield Figure(f"start, {here}, with their journal", "s", again, "inotifywait -r", inotifywait[0], at_most=1.5)


def at_rest(bridge: bench.Bridge, directories: int, here: str, settle: float, idle: float) -> Iterator[Figure]:
    """What the daemon needs when it has nothing to do."""
    forget(bridge)
    with bridge.run():
        all_looked_at(bridge)
        time.sleep(settle)
        memory = bench.resident(bridge.pid) / MB
        expect_watches(bridge.pid, directories)
        before = bench.cpu(bridge.pid)
        time.sleep(idle)
        used = (bench.cpu(bridge.pid) - before) / idle * 100
    with watchdog(bridge.inbox) as pid:
        time.sleep(settle)
        expect_watches(pid, directories)
        alone = bench.resident(pid) / MB
    what = f"resident memory, {here} (against watchdog's {alone:.0f} MB and {EXTRA:.0f} MB more)"
    yield Figure(what, "MB", memory, f"watchdog + {EXTRA:.0f} MB", alone + EXTRA, at_most=1)
    yield Figure(f"idle processor over {idle:g} s, {here}", "% of a core", used, "", IDLE, at_most=1)


def all_looked_at(bridge: bench.Bridge) -> None:
    """Wait until the daemon has looked at the files whose names it has read: it is busy with that until then."""
    deadline = time.monotonic() + 900
    with closing(sqlite3.connect(f"file:{bridge.base}/state/journal.sqlite?mode=ro", uri=True)) as journal:
        while journal.execute("SELECT EXISTS (SELECT 1 FROM packed)").fetchone()[0]:
            if time.monotonic() > deadline:
                raise RuntimeError("the files have not been looked at within 15 minutes")
            time.sleep(0.5)


def found(bridge: bench.Bridge) -> float:
    """Seconds that find takes."""
    command = [bench.tool("find"), str(bridge.inbox)]
    return bench.timed(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))


def established(bridge: bench.Bridge) -> float:
    """Seconds until inotifywait says that it watches everything."""
    command = [bench.tool("inotifywait"), "-m", "-r", "-e", "create,close_write,move,delete", str(bridge.inbox)]
    began = time.monotonic()
    with bench.running(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = b""
        while WATCHED not in said:
            said = process.stderr.readline()
            if not said:
                raise RuntimeError("inotifywait ended: is fs.inotify.max_user_watches too low?")
        return time.monotonic() - began


def forget(bridge: bench.Bridge) -> None:
    """The next start is the first."""
    shutil.rmtree(bridge.base / "state", ignore_errors=True)


def started(bridge: bench.Bridge, *, new: bool) -> float:
    """Seconds from the command to `daemon_ready`."""
    if new:
        forget(bridge)
    began = time.monotonic()
    with bridge.run():
        return time.monotonic() - began


@contextmanager
def watchdog(top: Path) -> Iterator[int]:
    """watchdog's observer on a tree, in a process of its own, once it watches: its pid."""
    command = [sys.executable, "-c", WATCHDOG, str(top)]
    with bench.running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("watchdog did not start")
        yield process.pid


def expect_watches(pid: int, directories: int) -> None:
    """A process that watches only a part of the tree must not look small."""
    count = bench.watches(pid)
    if count < directories:
        raise RuntimeError(f"{count} of {directories} directories watched: fs.inotify.max_user_watches?")


def idle_pass(bridge: bench.Bridge) -> Callable[[], None]:
    """bridged's own sweep of the first client, called as intake calls it, when it has already read everything."""
    settings = load(bridge.config)
    client = settings.clients[0]
    switched = SwitchedFolders(settings.clients, settings.ignore)
    sweep = Sweep(os.fsencode(client.ged), lambda directory: switched.place(directory) is not None, lambda _: None)
    patterns = [components(folder.path) for folder in client.switched_folders]

    def read(*, full: bool) -> int:
        with files.root(sweep.ged) as root_fd:
            return sum(found is not None for found in sweep.whole(root_fd, patterns, time.time(), full))

    def idle() -> None:
        assert read(full=False) == 0, "something has changed"

    assert read(full=True) > 0
    return idle
