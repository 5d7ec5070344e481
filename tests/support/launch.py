"""`bridged`, really run, with some things broken: `python tests/support/launch.py FAULT[,FAULT] run --config FILE`.

A fault that strikes once does so when the kernel tells of a file named `.fault` (a hidden name: never a document).
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from bridged.commands import cli
from bridged.daemon import daemon
from bridged.dispatch import contents, sender
from bridged.ged import files
from bridged.intake import rounds, sweep
from bridged.journal import Journal
from bridged.marker import writing
from bridged.watching import inotify

TRIGGER = b".fault"
STALLED = 1.5  # seconds


class Fault(Exception):
    """A mistake of ours, thrown on purpose."""


def reader_dies() -> None:
    """The thread that reads the kernel's queue ends: its callback raises."""
    usual, struck = inotify.DirectoryEmitter.on_event, threading.Event()

    def on_event(self, event):
        if event.name == TRIGGER and not struck.is_set():
            struck.set()
            raise Fault
        usual(self, event)

    inotify.DirectoryEmitter.on_event = on_event


def emitter_dies() -> None:
    """The emitter's own thread ends."""
    on_event, queue_events, struck = inotify.DirectoryEmitter.on_event, inotify.DirectoryEmitter.queue_events, []

    def noticing(self, event):
        on_event(self, event)
        if event.name == TRIGGER and not struck:
            struck.append(self)
            self._half.set()

    def raising(self, timeout):
        if self in struck:
            raise Fault
        queue_events(self, timeout)

    inotify.DirectoryEmitter.on_event, inotify.DirectoryEmitter.queue_events = noticing, raising


def observer_dies() -> None:
    """The thread that calls the handlers ends: one of them raises."""
    usual, struck = inotify._ToHints.dispatch, threading.Event()

    def dispatch(self, event):
        if os.path.basename(os.fsencode(event.src_path)) == TRIGGER and not struck.is_set():
            struck.set()
            raise Fault
        usual(self, event)

    inotify._ToHints.dispatch = dispatch


def observer_falls_silent() -> None:
    """Every thread lives, and no hint comes out any more. The next observer is well."""
    usual, deaf = inotify.Watcher._put, []

    def put(self, hint):
        if hint.path.endswith(b"/" + TRIGGER) and not deaf:
            deaf.append(self)
        if self not in deaf:
            usual(self, hint)

    inotify.Watcher._put = put


def intake_stands_still() -> None:
    """Its thread lives, but its step does not return while there is a file named `stall` beside the configuration."""
    usual = rounds.Rounds.step
    stall = Path(sys.argv[sys.argv.index("--config") + 1]).with_name("stall")

    def step(self, now):
        while stall.exists():
            time.sleep(0.05)
        return usual(self, now)

    rounds.Rounds.step = step
    daemon.STALLED = STALLED


def names_only() -> None:
    """After the first look nothing is looked at that is as it was: for long only its name and inode are known."""
    usual = sweep.Sweep.whole
    sweep.Sweep.whole = lambda self, fd, patterns, now, full: usual(self, fd, patterns, now, full and bool(self.packs))


def clock_is_off() -> None:
    """The wall clock is off by the seconds in the file $CLOCK_OFFSET. time.monotonic is not, as after a real jump."""
    real, offset = time.time, Path(os.environ["CLOCK_OFFSET"])

    def off():
        try:
            return real() + float(offset.read_text())
        except ValueError:  # the test is just writing the file
            return off()

    time.time = off


def no_hints() -> None:
    """The kernel's queue says nothing."""
    inotify.DirectoryEmitter.on_event = lambda *_: None


def leases_are_refused() -> None:
    """Each lease is refused, as by a server without oplocks or delegations."""

    def refusing(fd, command, *rest):
        if command == fcntl.F_SETLEASE:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fcntl.fcntl(fd, command, *rest)

    files.fcntl = SimpleNamespace(**(vars(fcntl) | {"fcntl": refusing}))


def a_disk_fails() -> None:
    """Files named `bad` fail to be read while their directory holds a file `.eio`; soon tried again."""
    sender.SHARE_AWAY = 0.5

    def check(fd):
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.name.startswith("bad") and path.with_name(".eio").exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def failing(usual):
        return lambda fd, *rest: (check(fd), usual(fd, *rest))[1]

    class Streamed(io.BufferedReader):
        def read(self, size=-1):
            check(self.fileno())
            return super().read(size)

    os.read, os.pread, fdopen = failing(os.read), failing(os.pread), os.fdopen
    os.fdopen = lambda fd, mode: Streamed(io.FileIO(fd)) if mode == "rb" else fdopen(fd, mode)


def killed_at_a_commit() -> None:
    """SIGKILL right before ($KILL_WHEN is `before`) or right after the commit number $KILL_COMMIT of all threads.

    The count begins when the file $KILL_FROM exists, or at once without that variable.
    """
    usual, number, when = Journal._commit_all, int(os.environ["KILL_COMMIT"]), os.environ["KILL_WHEN"]
    commits = 0

    def commit_all(self):  # by one thread at a time: the caller holds the lock of the journal
        nonlocal commits
        commits += os.path.exists(os.environ.get("KILL_FROM", "/"))
        if commits == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        usual(self)
        if commits == number and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    Journal._commit_all = commit_all


def one_thread_commits() -> None:
    """One thread makes all commits, because strace counts system calls by thread."""
    usual, wanted = Journal._commit_all, queue.SimpleQueue()

    def commit_for_ever():
        while True:
            journal, done = wanted.get()
            usual(journal)
            done.set()

    def commit_all(self):
        done = threading.Event()
        wanted.put((self, done))
        done.wait()

    Journal._commit_all = commit_all
    threading.Thread(target=commit_for_ever, name="commits", daemon=True).start()


def temporary_files_have_names() -> None:
    """As on a file system that knows no O_TMPFILE."""
    writing._unnamed = lambda _: None


def marking_hangs() -> None:
    """No marker is written: the file system does not answer."""
    writing.write_all = lambda *_: time.sleep(3600)


def reading_fails_once() -> None:
    """A mistake of ours before the first document is handed over."""
    usual, struck = contents.Contents.ahead, threading.Event()

    def ahead(self, documents):
        if not struck.is_set():
            struck.set()
            raise Fault
        return usual(self, documents)

    contents.Contents.ahead = ahead


def much_leaves_together() -> None:
    """However slow the machine is: as many as may be are claimed at once."""
    sender.TOGETHER = 1000.0


def wishes_run_twice() -> None:
    """No fault: each wish runs twice, so that a side effect in one of them shows."""
    sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[2]))
    from tests.support import twice

    twice.run_wishes_twice()


FAULTS = {
    f.__name__: f
    for f in (
        reader_dies,
        emitter_dies,
        observer_dies,
        observer_falls_silent,
        intake_stands_still,
        leases_are_refused,
        a_disk_fails,
        killed_at_a_commit,
        one_thread_commits,
        temporary_files_have_names,
        marking_hangs,
        reading_fails_once,
        much_leaves_together,
        names_only,
        no_hints,
        clock_is_off,
        wishes_run_twice,
    )
}

if __name__ == "__main__":
    for name in sys.argv.pop(1).split(","):
        FAULTS[name]()
    threading.excepthook = lambda _: None  # a thrown Fault needs no traceback between the log lines
    cli.main()
