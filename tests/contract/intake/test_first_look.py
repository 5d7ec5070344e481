"""A first look at a large GED, a part of it by a second process: nothing depends on that process, whatever it does."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from bridged.config import components
from bridged.ged import files
from bridged.intake import Listing, Sweep, first_look
from bridged.journal.packed import Packed, entries
from tests.support.bridge import until

LATER = 10.0  # seconds from now: no directory is young any more
MONTHS, SUPPLIERS = 3, 300
RESTED = 0.1  # seconds, after which the coarse clock has gone on


@pytest.fixture(scope="module")
def ged(tmp_path_factory):
    """Enough of a tree, with names that take a closer look, and paths that together are longer than a pipe."""
    top = tmp_path_factory.mktemp("ged")
    deep = "/".join(["exercice " + "x" * 180] * 3)
    for month in range(MONTHS):
        for supplier in range(SUPPLIERS):
            directory = top / "Achats" / deep / f"{month:02}" / f"{supplier:03} Ménuiserie"
            directory.mkdir(parents=True)
            (directory / f"facture-{month}-{supplier}.pdf").touch()
            if supplier % 50 == 0:
                (directory / ".caché").touch()
                (directory / "lien").symlink_to("/")
                (directory / "vide").mkdir()
    time.sleep(RESTED)
    return os.fsencode(top)


@pytest.fixture
def started(monkeypatch):
    """The second processes that were started, real ones."""
    processes = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            processes.append(self)

    monkeypatch.setattr(first_look.subprocess, "Popen", Recorded)
    may_start(monkeypatch)
    return processes


def may_start(monkeypatch):
    monkeypatch.setattr(first_look, "WORTH", 10)
    monkeypatch.setattr(first_look, "_WAITS", 10_000)
    monkeypatch.setattr(first_look.os, "sched_getaffinity", lambda _: {0, 1})


def one(ged, watch=lambda _: None):
    sweep = Sweep(ged, lambda _: True, watch)
    sweep.packs = lambda _: True
    return sweep


def walked(sweep, root_fd, after=LATER):
    return (found for found in sweep.whole(root_fd, [components("Achats")], time.time() + after, full=True) if found)


def passed(sweep):
    with files.root(sweep.ged) as root_fd:
        return list(walked(sweep, root_fd))


def told(found):
    """What is told of each directory, and how, but for when it was read; each is told of once."""
    by_directory = {}
    for one in found:
        assert one.directory not in by_directory
        if isinstance(one, Packed):
            names = sorted(name for _, _, name in entries(one.records))
            by_directory[one.directory] = "packed", names, one.times, one.children
        else:
            assert isinstance(one, Listing)
            by_directory[one.directory] = "listed", sorted(entry.name for entry in one.entries)
    return by_directory


@pytest.fixture
def alone(ged, monkeypatch):
    """What a sweep tells that has no second process."""
    with monkeypatch.context() as patch:
        patch.setattr(first_look.os, "sched_getaffinity", lambda _: {0})
        return told(passed(one(ged)))


def test_what_is_looked_at_beside_is_told_of_as_it_would_be_without(ged, alone, started):
    sweep = one(ged)
    assert told(passed(sweep)) == alone
    assert len(alone) > MONTHS * SUPPLIERS
    assert {how for how, *_ in alone.values()} == {"packed", "listed"}
    assert len(started) == 1
    assert started[0].returncode is not None
    assert all(directory in sweep for directory in alone)


def test_a_few_directories_are_not_worth_a_second_process(ged, started, monkeypatch):
    monkeypatch.setattr(first_look, "WORTH", MONTHS * SUPPLIERS + 100)
    passed(one(ged))
    assert started == []


def test_of_two_geds_one_has_a_second_process_and_the_other_one_after_it(ged, alone, started):
    with files.root(ged) as root_fd:
        running = walked(one(ged), root_fd)
        until(lambda: next(running) and started, "it is started")
        assert told(passed(one(ged))) == alone
        assert len(started) == 1
        running.close()
    assert told(passed(one(ged))) == alone
    assert len(started) == 2


def test_nobody_waits_for_it_to_be_there(ged, alone, started, monkeypatch, tmp_path):
    """It takes a tenth of a second, in which hundreds of directories are looked at without it."""
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(0o700)
    monkeypatch.setattr(first_look, "_WAITS", 0)
    monkeypatch.setattr(first_look.sys, "executable", str(silent))
    assert told(passed(one(ged))) == alone
    assert len(started) == 1


def test_where_it_is_killed_all_are_told_of_all_the_same(ged, alone, started):
    found, killed = [], False
    with files.root(ged) as root_fd:
        for one_found in walked(one(ged), root_fd):
            found.append(one_found)
            if not killed and started and len(found) > SUPPLIERS // 2:
                os.kill(started[0].pid, signal.SIGKILL)
                killed = started[0].wait() == -signal.SIGKILL
    assert killed
    # What it owed is looked at more closely than it need have been.
    assert {directory: how[1] for directory, how in told(found).items()} == {d: how[1] for d, how in alone.items()}


@pytest.mark.parametrize("executable", ["/nonexistent/python", "/bin/true", "", None])
def test_where_it_cannot_be_started_all_are_told_of_all_the_same(ged, alone, monkeypatch, executable):
    may_start(monkeypatch)
    monkeypatch.setattr(first_look.sys, "executable", executable)
    assert told(passed(one(ged))) == alone


def test_where_it_is_another_version_all_are_told_of_all_the_same(ged, alone, started, monkeypatch):
    """Installed while the daemon runs, and what is added to its configuration is looked at for the first time."""
    usual = first_look.Beside._received

    def received(beside):
        if beside._is_there and beside._connection is not None:
            beside._connection = Unreadable(beside._connection)
        return usual(beside)

    class Unreadable:
        def __init__(self, connection):
            self.close = connection.close

        def recv(self):
            raise TypeError("Look.__new__() got an unexpected argument")

    monkeypatch.setattr(first_look.Beside, "_received", received)
    found = told(passed(one(ged)))
    assert {directory: how[1] for directory, how in found.items()} == {d: how[1] for d, how in alone.items()}
    assert len(started) == 1


def test_a_directory_is_watched_before_it_is_read(ged, started):
    """What comes after that is told by a hint; so what comes in the very moment must have been read."""
    new = set()

    def watch(directory):
        path = directory + b"/meanwhile.pdf"
        with open(path, "wb"):
            new.add(path)

    try:
        found = told(passed(one(ged, watch)))
        assert started
        for directory, (_, names, *_) in found.items():
            assert b"meanwhile.pdf" in names, directory
        assert {os.path.dirname(path) for path in new} >= found.keys()
    finally:
        for path in new:
            os.unlink(path)
        time.sleep(RESTED)


@pytest.mark.parametrize("after", [1, 10, 100, 400, 700])
def test_at_a_pause_nothing_that_was_read_is_untold(ged, alone, started, after):
    """Else a hint of what happens then would be followed first, and then contradicted by what was read before it."""
    watched, found = [], []
    sweep = one(ged, watched.append)
    with files.root(ged) as root_fd:
        running = walked(sweep, root_fd)
        found += [next(running) for _ in range(after)]
        sweep.pauses = True
        while sweep.owed:
            found.append(next(running))
        assert len(found) <= after + 3 * first_look._PART
        assert set(watched) - {ged} == told(found).keys()
        sweep.pauses = False
        found += running
    assert told(found) == alone
    assert started


def test_a_pass_that_is_given_up_leaves_no_process(ged, started):
    with files.root(ged) as root_fd:
        running = walked(one(ged), root_fd)
        until(lambda: next(running) and started, "it is started")
        running.close()
        assert started[0].returncode is not None


def test_it_ends_with_whoever_has_started_it(ged):
    """`kill -9` of the daemon leaves nobody behind, who would keep the share from being unmounted."""
    program = (
        "import os, signal, sys; from bridged.ged import files; from bridged.intake import first_look;"
        "first_look.WORTH, first_look._WAITS, first_look.os.sched_getaffinity = 1, 10_000, lambda _: {0, 1};"
        "root_fd = files.open_root(sys.argv[1].encode());"
        "beside = first_look.Beside(root_fd, os.fstat(root_fd).st_dev, ());"
        "beside.ask([sys.argv[1].encode() + b'/Achats'] * 1000, sys.argv[1].encode(), lambda _: True);"
        "assert beside.answer(wait=True)[1];"
        "print(beside._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [first_look.sys.executable, "-c", program, os.fsdecode(ged)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert ended.stderr == ""
    pid = int(ended.stdout)
    until(lambda: not os.path.exists(f"/proc/{pid}") or b") Z " in _stat(pid), "it has ended")


def _stat(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return b") Z "
