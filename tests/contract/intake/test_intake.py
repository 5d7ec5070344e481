"""Intake stepped by hand, in histories that take a large GED, a long pass or a moment that one seldom meets."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from bridged import logs
from bridged.config import SwitchedFolders, load
from bridged.ged import Calls, Mounts, files
from bridged.intake import Sweep, intake, switching
from bridged.intake.ged import Retired
from bridged.intake.intake import Intake
from bridged.intake.rounds import AFTER_TROUBLE
from bridged.journal import Journal, JournalUnavailable, Transaction
from bridged.model import Instant, State
from bridged.watching import Hint
from tests.support.documents import change
from tests.support.full_disk import full_disk
from tests.support.mounts import FuseMounts, require, run
from tests.support.stepping import done

LONG = 100_000.0  # seconds


class NoHints:
    """Nobody tells of anything, but of that."""

    def __init__(self) -> None:
        self.hints: Any = None
        self.numbers = itertools.count(1)

    def watch(self, directory: bytes) -> None: ...

    def missed_one(self) -> None: ...

    limited = behind = False

    def sync(self, path: bytes) -> int | None:
        self.hints.append(Hint("sync", path, number=next(self.numbers)))
        return self.hints[-1].number


class Stepped:
    """An intake whose clock is moved by hand, and whose next full pass is far away unless one is asked for."""

    def __init__(self, base: Path) -> None:
        self.most = 0.2
        self.base, self.ahead = base, 10.0  # else the directories are young, and are read again for that
        self.log = io.StringIO()
        logs.configure("json", "info", self.log)
        self.journal: Journal | None = None

    def make(self, *files: str) -> None:
        for file in files:
            path = self.base / "ged" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file)

    def start(self, folders: list[Any], more: str = "") -> None:
        settings = self._load(folders, more)
        settings.state_dir.mkdir(exist_ok=True)
        self.journal = Journal(settings.state_dir)
        self.mounts, ged = Mounts(), os.fsencode(self.base / "ged")
        self.mounts.expect(ged, ged)
        calls = Calls(time.monotonic)
        observer = NoHints()
        self.intake = Intake(ged, self.journal, calls, self.mounts, observer, lambda: None, time.monotonic)
        observer.hints = self.intake.hints
        self._configure(settings, start=True)

    def stop(self) -> None:
        self.intake.close()
        self.journal.close()

    def reload(self, folders: list[Any]) -> None:
        self._configure(self._load(folders, self.more), start=False)

    def _load(self, folders: list[Any], more: str) -> Any:
        self.more = more
        config = self.base / "bridged.yaml"
        config.write_text(
            f"smtp: {{host: localhost, security: plain, sender: factures@cabinet.example}}\n"
            f"state_dir: {self.base}/state\n{more}\nclients:\n  - name: Martin\n    ged: {self.base}/ged\n"
            f"    collection_email: martin@collecte.example\n    switched_folders: {json.dumps(folders)}\n"
        )
        return load(config)

    def _configure(self, settings: Any, *, start: bool) -> None:
        recorded = {pattern for _, pattern in self.journal.read(lambda tx: tx.folders())}
        switched = SwitchedFolders(settings.clients, settings.ignore)
        self.intake.configure(settings.clients[0], settings, switched, recorded, self.now(), start=start)

    def step(self) -> None:
        done(self.journal, self.intake.step(self.now(), self.most))

    def tell(self, kind: Any, file: Path, dest: Path | None = None) -> None:
        """A hint comes."""
        self.intake.hints.append(Hint(kind, os.fsencode(file), b"" if dest is None else os.fsencode(dest)))

    def now(self) -> Instant:
        return Instant(time.time() + self.ahead, time.monotonic() + self.ahead)

    def until_ready(self) -> None:
        for _ in range(2000):
            self.step()
            if self.intake.ready:
                return
        raise AssertionError("not ready")

    def sweeps(self, count: int = 3, *, full: bool = False) -> None:
        """So many passes, which read what has changed, as most do in a large GED; or everything."""
        for _ in range(count):
            self.ahead += 61.0
            self.intake.ged.full_due = 0.0 if full else self.now().steady + LONG
            for _ in range(20):
                self.step()

    def one_finding_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A step of a pass takes one finding, as on a slow disk."""
        ticks = itertools.count()
        self.most = 0.05
        monkeypatch.setattr(intake, "REST", 0.05)
        monkeypatch.setattr(self.intake, "_steady", lambda: 0.03 * next(ticks))

    def documents(self) -> dict[str, str]:
        prefix = len(os.fsencode(self.base / "ged")) + 1
        found = self.journal.read(lambda tx: list(tx.documents()))
        return {document.path[prefix:].decode(): document.state.value for document in found}

    def said(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]


@pytest.fixture
def stepped(tmp_path):
    (tmp_path / "ged").mkdir()
    one = Stepped(tmp_path)
    yield one
    if one.journal is not None:
        one.stop()


@pytest.fixture
def share(stepped):
    """A file system of its own inside the GED; mounts it again when called."""
    require("mount", "umount")
    point, disk = stepped.base / "ged/A/M", stepped.base / "disk"
    point.mkdir(parents=True)
    disk.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", disk)

    def mount() -> Path:
        run("mount", "--bind", disk, point)
        return point

    mount()
    yield mount
    subprocess.run(["umount", point], check=False, capture_output=True)
    run("umount", disk)


@pytest.fixture
def closed(monkeypatch):
    """Names of directories that may not be read; root may read all, so that permissions would not do."""
    names: set[bytes] = set()
    usual = files.open_directory

    def open_directory(root_fd, relative):
        if relative.rpartition(b"/")[2] in names:
            raise PermissionError(13, "Permission denied")
        return usual(root_fd, relative)

    monkeypatch.setattr(files, "open_directory", open_directory)
    return names


@pytest.mark.parametrize("kind", ["bindfs", "sshfs"])
def test_a_share_that_goes_in_the_middle_of_a_pass_is_told_of_once(stepped, monkeypatch, kind):
    """Not a line for each of its directories, which nobody can read now."""
    server, ged = stepped.base / "server", stepped.base / "ged"
    server.mkdir()
    with FuseMounts(stepped.base) as mounts:
        process = mounts.fuse(kind, server, ged)
        stepped.make(*(f"A/{number}/x.txt" for number in range(20)))
        stepped.start(["A"])
        stepped.until_ready()
        stepped.one_finding_at_a_time(monkeypatch)
        stepped.ahead += 61.0
        for _ in range(5):
            stepped.step()
        assert stepped.intake.ged.running is not None
        process.kill()
        process.wait(10)
        for _ in range(60):
            stepped.step()
        assert [line.get("ged") for line in stepped.said("folder_unreachable")] == [str(ged)]
        mounts.unmount(ged)
        mounts.fuse(kind, server, ged)
        monkeypatch.undo()
        stepped.sweeps()
        assert len(stepped.said("folder_recovered")) == 1
        stepped.make("A/7/new.txt")
        stepped.sweeps(full=True)  # sshfs tells whole seconds, and the directory may be of the same one
        assert stepped.documents() == {"A/7/new.txt": "queued"}
        stepped.stop()
        stepped.journal = None


@pytest.mark.parametrize("full", [False, True])
def test_a_directory_unreadable_at_first_holds_existing_files_once_it_can_be_read(stepped, closed, full):
    stepped.make("A/x.txt", "A/W/closed/old.txt")
    closed.add(b"closed")
    stepped.start(["A"])
    stepped.until_ready()
    stepped.sweeps(full=full)
    assert len(stepped.said("folder_unreachable")) == 1
    assert stepped.said("folder_recovered") == []
    closed.add(b"W")  # and the one above it, for a while
    stepped.sweeps(full=full)
    closed.discard(b"W")
    stepped.sweeps(full=full)
    closed.clear()
    stepped.sweeps()
    stepped.make("A/W/closed/new.txt")
    stepped.sweeps()
    stepped.sweeps(full=True)
    assert stepped.documents() == {"A/W/closed/new.txt": "queued"}


@pytest.mark.parametrize("old", ["A/W", "A/W/closed"])
@pytest.mark.parametrize("passing", [False, True])
def test_a_directory_unreadable_at_first_holds_existing_files_after_a_rename_too(
    stepped, closed, monkeypatch, old, passing
):
    stepped.make("A/x.txt", "A/W/closed/old.txt", *(f"A/{number}/x.txt" for number in range(20)))
    closed |= {b"closed", b"closed too"}
    stepped.start(["A"])
    stepped.until_ready()
    stepped.sweeps()
    source, dest = stepped.base / "ged" / old, stepped.base / "ged" / f"{old} too"
    with monkeypatch.context() as patch:
        if passing:  # which has been there already, and does not meet it any more
            stepped.one_finding_at_a_time(patch)
            stepped.intake.ged.read_all()
            stepped.step()
            while os.fsencode(stepped.base / "ged/A/W/closed") not in stepped.intake.ged.unread:
                stepped.step()
            assert stepped.intake.ged.running is not None
        source.rename(dest)
        stepped.tell("moved", source, dest)
        stepped.step()
    for _ in range(2):  # with what the last daemon has kept of it, too
        stepped.sweeps()
        stepped.stop()
        stepped.start(["A"])
        stepped.until_ready()
    closed.clear()
    stepped.sweeps()
    stepped.make(f"{old}/made anew.txt")
    stepped.sweeps()
    stepped.sweeps(full=True)
    assert stepped.documents() == {f"{old}/made anew.txt": "queued"}


def test_a_new_directory_unreadable_at_first_is_read_by_the_first_sweep_that_can(stepped, closed):
    stepped.make("A/x.txt")
    stepped.start(["A"])
    stepped.until_ready()
    closed.add(b"new")
    stepped.make("A/new/deep/facture.txt")
    stepped.sweeps()
    assert stepped.documents() == {}
    closed.clear()
    stepped.sweeps(2)
    assert stepped.documents() == {"A/new/deep/facture.txt": "queued"}


def test_a_file_let_in_by_a_reload_during_the_first_pass_is_existing(stepped, monkeypatch):
    stepped.make("A/B/old.txt", "A/x/old.txt", "A/y/old.txt")
    stepped.start([{"path": "A", "exclude": ["B"]}])
    stepped.one_finding_at_a_time(monkeypatch)
    while os.fsencode(stepped.base / "ged/A") not in stepped.intake.ged.sweep:
        stepped.step()
    assert not stepped.intake.ready
    stepped.reload(["A"])
    monkeypatch.undo()
    stepped.until_ready()
    stepped.sweeps()
    stepped.sweeps(full=True)
    assert stepped.documents() == {}


def test_a_folder_excluded_and_let_in_within_a_pass_is_met_by_every_sweep(stepped, monkeypatch):
    stepped.make("A/B/old.txt", "A/x/old.txt")
    stepped.start(["A"])
    stepped.until_ready()
    stepped.sweeps()
    stepped.reload([{"path": "A", "exclude": ["B"]}])
    stepped.one_finding_at_a_time(monkeypatch)
    stepped.step()
    stepped.step()
    stepped.reload(["A"])
    monkeypatch.undo()
    stepped.sweeps()
    stepped.make("A/B/new.txt")
    stepped.sweeps(2)
    assert stepped.documents() == {"A/B/new.txt": "queued"}


def test_files_that_are_never_looked_at_hurry_no_pass(stepped, monkeypatch):
    """They were excluded between the look at the names and that at the files."""
    stepped.make("A/B/old.txt", "A/x/old.txt")
    stepped.start(["A"])
    stepped.until_ready()
    stepped.reload([{"path": "A", "exclude": ["B"]}])
    passes = []
    usual = Sweep.whole
    monkeypatch.setattr(Sweep, "whole", lambda s, f, p, n, full: passes.append(full) or usual(s, f, p, n, full))
    stepped.sweeps(full=True)
    assert stepped.intake.ged.unseen_until
    passes.clear()
    stepped.sweeps()
    assert passes == [False] * 3


@pytest.fixture(params=["names read", "looked at"])
def existing(request, stepped):
    """A file that was there before, of which only the name is known, or more."""
    stepped.make("A/scan.txt", "A/other.txt")
    stepped.start(["A"])
    stepped.until_ready()
    if request.param == "looked at":
        stepped.sweeps(full=True)
        assert not stepped.intake.ged.unseen_until
    else:
        assert stepped.intake.ged.unseen_until
    time.sleep(0.02)  # a tick of the clock by which files are made
    return stepped.base / "ged/A/scan.txt"


def anew(file: Path, content: str) -> None:
    """Delete it and make it again; most file systems give its inode number to the new one."""
    file.unlink()
    file.write_text(content)


def test_a_late_hint_tells_that_a_save_seen_by_a_sweep_is_a_new_file(stepped, existing):
    """The sweep meets it first. The hints of a deposit that was sent already say nothing new."""
    anew(existing, "today")
    stepped.sweeps(1, full=True)
    assert stepped.documents() == {}
    for _ in range(2):
        stepped.tell("gone", existing)
        stepped.tell("look", existing)
        stepped.step()
    stepped.sweeps()
    assert stepped.documents() == {"A/scan.txt": "queued"}
    assert len(stepped.said("document_queued")) == 1


def test_a_late_hint_is_none_of_a_file_that_was_overwritten_in_place(stepped, existing):
    """It was made anew, and that was queued; then it was saved, and told of. Later hints of the former say nothing."""
    anew(existing, "today")
    stepped.tell("gone", existing)
    stepped.step()
    stepped.sweeps()
    assert stepped.documents() == {"A/scan.txt": "queued"}
    (seq,) = stepped.journal.read(lambda tx: [document.seq for document in tx.documents()])
    stepped.journal.write(lambda tx: change(tx, seq, state=State.VALIDATED.value))
    time.sleep(0.02)
    existing.write_text("today, and once more")
    stepped.sweeps(1, full=True)
    stepped.tell("gone", existing)
    stepped.sweeps()
    assert stepped.documents() == {"A/scan.txt": "validated"}
    assert len(stepped.said("document_changed")) == 1


@pytest.fixture
def validated(stepped):
    """A document that was sent and validated."""
    stepped.start(["A"])
    (stepped.base / "ged/A").mkdir()
    stepped.until_ready()
    stepped.make("A/scan.txt")
    stepped.sweeps()
    (seq,) = stepped.journal.read(lambda tx: [document.seq for document in tx.documents()])
    stepped.journal.write(lambda tx: change(tx, seq, state=State.VALIDATED.value))
    return stepped.base / "ged/A/scan.txt"


def failing_step(stepped):
    """A step whose first commit fails, and the wait after which it is tried again."""
    with full_disk(stepped.journal), pytest.raises(JournalUnavailable):
        stepped.step()
    stepped.ahead += AFTER_TROUBLE


@pytest.mark.parametrize("failures", [1, 3])
def test_an_editor_s_save_whose_commit_fails_is_not_a_new_document(stepped, validated, failures):
    """The rename is in the journal; the commit of the new file fails, and the step is tried again."""
    aside = validated.with_name("scan.txt~")
    validated.rename(aside)
    stepped.tell("moved", validated, aside)
    stepped.step()
    validated.write_text("saved anew")
    stepped.tell("look", validated)
    for _ in range(failures):
        failing_step(stepped)
    stepped.sweeps()
    assert stepped.documents() == {"A/scan.txt": "validated"}
    assert len(stepped.said("document_changed")) == 1


def test_a_late_rename_of_a_replaced_file_whose_commit_fails_is_still_followed(stepped, validated):
    """A sweep meets the successor first. The commit that follows the filed document fails, and is tried again."""
    stepped.make("A/filed/other.txt")
    filed = validated.parent / "filed" / "scan.txt"
    stepped.sweeps()
    validated.rename(filed)
    validated.write_text("the next scan")
    stepped.tell("look", validated)
    stepped.step()
    stepped.tell("look", filed)
    failing_step(stepped)
    stepped.sweeps()
    found = {d.path.rpartition(b"/A/")[2]: d.state for d in stepped.journal.read(lambda tx: tx.documents())}
    assert found == {b"filed/scan.txt": "validated", b"filed/other.txt": "queued", b"scan.txt": "queued"}


def test_a_document_overwritten_while_the_state_disk_fails_is_looked_at_later(stepped, monkeypatch):
    """It is in no row's way: only the sender's word makes intake look at it again."""
    stepped.start(["A"])
    stepped.make("A/scan.txt")
    stepped.until_ready()
    stepped.make("A/new.txt")
    stepped.sweeps()
    (document,) = stepped.journal.read(lambda tx: tx.documents())
    stepped.journal.write(lambda tx: tx.unsettle(document, "overwritten before it was sent"))
    stepped.intake.waiting.again(document.seq)
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "document", unreadable)
        with pytest.raises(JournalUnavailable):
            stepped.step()
    stepped.sweeps()
    assert stepped.documents() == {"A/new.txt": "queued"}


def unreadable(*_):
    raise sqlite3.OperationalError("unable to open database file")


def test_a_file_made_anew_where_one_was_sent_is_new_also_after_a_failed_commit(stepped, validated):
    """The hint of the deletion is the only proof, and the failed step has taken it."""
    anew(validated, "today")
    stepped.tell("gone", validated)
    failing_step(stepped)
    stepped.sweeps()
    assert [d.state for d in stepped.journal.read(lambda tx: list(tx.documents()))] == ["validated", "queued"]


def test_an_overwritten_file_that_was_sent_is_not_sent_again_for_a_late_hint(stepped):
    stepped.make("A/scan.txt")
    stepped.start(["A"], "on_overwrite: send")
    stepped.until_ready()
    file = stepped.base / "ged/A/scan.txt"
    anew(file, "today")
    stepped.sweeps()
    stepped.tell("gone", file)
    stepped.sweeps()
    assert len(stepped.said("document_queued")) == 1


def test_a_late_hint_of_a_queued_file_made_anew_makes_no_second_document(stepped):
    """The sweep has put the new content into the place of the old: it leaves, once."""
    stepped.start([{"path": "A"}])
    stepped.until_ready()
    stepped.make("A/scan.txt")
    stepped.sweeps()
    file = stepped.base / "ged/A/scan.txt"
    anew(file, "today")
    stepped.sweeps()
    stepped.tell("gone", file)
    stepped.sweeps()
    assert stepped.documents() == {"A/scan.txt": "queued"}


def test_one_new_file_makes_no_search_for_the_old_files_beside_it(stepped, monkeypatch):
    """That takes long in a large GED, and may be 2,000 times."""
    stepped.make(*(f"A/x/{number}.txt" for number in range(50)))
    stepped.start(["A"])
    stepped.until_ready()
    searched = []
    usual = type(stepped.intake._compare)._left
    monkeypatch.setattr(type(stepped.intake._compare), "_left", lambda s, p, *a: searched.append(p) or usual(s, p, *a))
    stepped.make("A/x/new.txt")
    stepped.sweeps(1)
    assert [path.rpartition(b"/")[2] for path in searched[:1]] == [b"new.txt"]
    assert {path.rpartition(b"/")[2] for path in searched} == {b"new.txt"}
    stepped.sweeps(full=True)
    assert not stepped.intake.ged.unseen_until
    assert stepped.documents() == {"A/x/new.txt": "queued"}


def test_a_first_pass_does_not_search_the_journal_for_what_it_has_just_entered(stepped, monkeypatch):
    """Of a million files that takes half a second, before anybody is told that the daemon is ready."""
    stepped.make("A/x/old.txt", "A/y/other.txt")
    stepped.start(["A"])
    asked = []
    usual = Transaction.unseen_until
    monkeypatch.setattr(Transaction, "unseen_until", lambda tx, ged: asked.append(ged) or usual(tx, ged))
    stepped.until_ready()
    assert stepped.intake.ged.unseen_until == usual(Transaction(stepped.journal._sql), stepped.intake.ged.path)
    assert not asked
    stepped.sweeps(full=True)
    assert asked
    assert not stepped.intake.ged.unseen_until


def test_after_a_first_pass_the_journal_is_not_asked_for_each_directorys_files(stepped, monkeypatch):
    """Of 50,000 directories that takes a tenth of a second, before anybody is told that the daemon is ready."""
    stepped.make("A/x/old.txt", "A/y/other.txt")
    stepped.start(["A"])
    asked = []
    usual = Transaction.directories_below
    monkeypatch.setattr(Transaction, "directories_below", lambda tx, path: asked.append(path) or usual(tx, path))
    stepped.until_ready()
    assert not asked


def test_a_directory_gone_while_a_first_pass_is_broken_off_is_not_known_after_it(stepped, monkeypatch):
    """The pass that is made again does not meet it; the journal has it from the one before."""
    stepped.make("A/x/old.txt", "A/y/other.txt")
    stepped.start(["A"])
    stepped.one_finding_at_a_time(monkeypatch)
    gone, ged = stepped.intake.ged.path + b"/A/x", stepped.intake.ged
    while not stepped.journal.read(lambda tx: tx.known_in(gone)):
        stepped.step()
    assert not stepped.intake.ready
    ged.read_all()
    ged.sweep.forget()
    shutil.rmtree(gone)
    stepped.until_ready()
    assert all(known.gone_at for known in stepped.journal.read(lambda tx: tx.known_in(gone)).values())


@pytest.mark.parametrize("batch", [1, 3, 500])
def test_a_first_pass_whose_commit_fails_is_made_again(stepped, monkeypatch, batch):
    """What was read before the disk was full is not taken for known, whichever thread was to enter it."""
    monkeypatch.setattr(intake, "BATCH", batch)
    stepped.make(*(f"A/{number}/old.txt" for number in range(10)))
    stepped.start(["A"])
    with full_disk(stepped.journal, failures=2), pytest.raises(JournalUnavailable):
        stepped.until_ready()
    assert not stepped.intake.ready
    stepped.until_ready()
    ged = stepped.intake.ged.path
    assert all(stepped.journal.read(lambda tx, n=n: tx.known_in(ged + b"/A/%d" % n)) for n in range(10))
    stepped.sweeps(full=True)
    assert stepped.documents() == {}


def test_the_findings_of_a_first_pass_are_in_the_journal_when_its_step_ends(stepped, monkeypatch):
    """Whoever follows hints, or is killed, between two steps finds there what was read."""
    monkeypatch.setattr(intake, "BATCH", 3)
    stepped.make(*(f"A/{number}/old.txt" for number in range(10)), "A/4/.hidden", "A/7/x.tmp")
    stepped.start(["A"])
    stepped.one_finding_at_a_time(monkeypatch)
    while not stepped.intake.ready:
        stepped.step()
        met = [directory for directory in stepped.intake.ged.sweep._seen if directory[-1:].isdigit()]
        assert all(stepped.journal.read(lambda tx, d=d: tx.known_in(d)) for d in met)
    assert len(met) == 10


def test_a_directory_that_a_first_pass_watches_is_in_the_journal_when_the_step_ends(stepped, monkeypatch):
    """Otherwise a hint of a removed file would be followed first, and the file become known after it."""
    watched = set()
    monkeypatch.setattr(NoHints, "watch", lambda _, directory: watched.add(directory))
    directories = [f"A/{number:03}" for number in range(40)]
    stepped.make(*(f"{directory}/old.txt" for directory in directories))
    stepped.start(["A"])
    stepped.one_finding_at_a_time(monkeypatch)
    steps = 0
    while not stepped.intake.ready:
        stepped.step()
        steps += 1
        read = [directory for directory in watched if directory[-3:].isdigit()]
        assert all(stepped.journal.read(lambda tx, d=d: tx.known_in(d)) for d in read)
    assert len(read) == len(directories)
    assert steps > 3


def told_late(stepped, monkeypatch, *late):
    """The hints that come between asking for a sync and its coming, given by a function each time."""
    batches, numbers = list(late), itertools.count(1)

    def sync(_, path):
        number, batch = next(numbers), batches.pop(0)() if batches else []
        stepped.intake.hints.extend([*batch, Hint("sync", path, number=number)])
        return number

    monkeypatch.setattr(NoHints, "sync", sync)
    return batches


def amid_a_pass(stepped, monkeypatch, above="A"):
    """A pass that is at work: a directory that it has not read yet, and one that it has."""
    ged = stepped.intake.ged
    stepped.one_finding_at_a_time(monkeypatch)
    stepped.step()
    directories = [ged.path + b"/%s/%d" % (above.encode(), number) for number in range(6)]
    while sum(directory in ged.sweep for directory in directories) < 3:
        stepped.step()
    assert ged.running is not None
    *_, unread = (directory for directory in directories if directory not in ged.sweep)
    return unread, next(directory for directory in directories if directory in ged.sweep)


def nothing_leaves_but_what_is_new(stepped, monkeypatch):
    monkeypatch.undo()
    stepped.sweeps(full=True)
    assert stepped.documents() == {}
    stepped.make("A/new.txt")
    stepped.sweeps()
    assert stepped.documents() == {"A/new.txt": "queued"}


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_file_moved_in_a_first_pass_into_a_read_directory_is_existing(stepped, monkeypatch, what):
    """And its hint comes late: the pass has ended by then, and has met it nowhere."""
    stepped.make(*(f"A/{number}/old.txt" for number in range(6)))
    stepped.start(["A"])
    unread, read = amid_a_pass(stepped, monkeypatch)
    os.rename(unread if what == "directory" else unread + b"/old.txt", read + b"/moved")
    late = told_late(stepped, monkeypatch, lambda: [Hint("look", read + b"/moved")])
    stepped.until_ready()
    assert late == []
    nothing_leaves_but_what_is_new(stepped, monkeypatch)


def test_a_file_moved_once_more_before_its_hint_is_followed_is_existing(stepped, monkeypatch):
    """Its first hint finds nothing, and the second one comes behind the sync."""
    stepped.make(*(f"A/{number}/old.txt" for number in range(6)))
    stepped.start(["A"])
    unread, read = amid_a_pass(stepped, monkeypatch)
    moved, final = read + b"/moved.txt", read + b"/final.txt"
    os.rename(unread + b"/old.txt", moved)

    def once_more():
        os.rename(moved, final)
        return [Hint("look", moved)]

    late = told_late(stepped, monkeypatch, once_more, lambda: [Hint("moved", moved, final)])
    stepped.until_ready()
    assert late == []
    nothing_leaves_but_what_is_new(stepped, monkeypatch)


def test_a_file_moved_in_the_pass_after_an_exclusion_is_lifted_is_existing(stepped, monkeypatch):
    stepped.make("A/in.txt", *(f"A/B/{number}/old.txt" for number in range(6)))
    stepped.start([{"path": "A", "exclude": ["B"]}])
    stepped.until_ready()
    stepped.sweeps()
    stepped.reload(["A"])
    unread, read = amid_a_pass(stepped, monkeypatch, "A/B")
    os.rename(unread + b"/old.txt", read + b"/moved.txt")
    late = told_late(stepped, monkeypatch, lambda: [Hint("look", read + b"/moved.txt")])
    while stepped.intake.ged.running is not None:
        stepped.step()
    assert late == []
    nothing_leaves_but_what_is_new(stepped, monkeypatch)


def test_a_file_moved_in_a_first_pass_and_unreadable_for_an_instant_is_existing(stepped, monkeypatch):
    stepped.make(*(f"A/{number}/old.txt" for number in range(6)))
    stepped.start(["A"])
    unread, read = amid_a_pass(stepped, monkeypatch)
    moved, usual, failing = read + b"/moved.txt", stepped.intake._compare.lstats, [1]
    os.rename(unread + b"/old.txt", moved)

    def lstats(paths):
        looked = dict(usual(paths))
        if moved in paths and failing:
            failing.pop()
            looked[moved] = OSError(5, "Input/output error")
        return looked

    monkeypatch.setattr(stepped.intake._compare, "lstats", lstats)
    told_late(stepped, monkeypatch, lambda: [Hint("look", moved)])
    while failing:
        stepped.step()
    stepped.ahead += intake.TRY_AGAIN
    stepped.until_ready()
    nothing_leaves_but_what_is_new(stepped, monkeypatch)


def test_a_parent_of_a_switched_folder_renamed_in_a_first_pass_holds_existing_files(stepped, monkeypatch):
    """Its hint says nothing of what it leads to."""
    stepped.make(*(f"{way}/in/{number}/old.txt" for way in "abcd" for number in range(3)))
    stepped.start(["*/in"])
    stepped.one_finding_at_a_time(monkeypatch)
    ged = stepped.intake.ged
    stepped.step()
    while sum(ged.path + b"/%s/in" % way in ged.sweep for way in (b"a", b"b", b"c", b"d")) < 2:
        stepped.step()
    *_, unread = (way for way in "abcd" if os.fsencode(f"{stepped.base}/ged/{way}/in") not in ged.sweep)
    source, dest = stepped.base / "ged" / unread, stepped.base / "ged/moved"
    source.rename(dest)
    late = told_late(stepped, monkeypatch, lambda: [Hint("moved", os.fsencode(source), os.fsencode(dest))])
    stepped.until_ready()
    assert late == []
    monkeypatch.undo()
    stepped.sweeps(full=True)
    assert stepped.documents() == {}


def test_a_tree_that_takes_the_place_of_another_one_in_a_first_pass_holds_existing(stepped, monkeypatch):
    """Both hints come together, when there is a directory of that name again."""
    stepped.make(*(f"A/{tree}/{number}/old-{tree}.txt" for tree in "abcdef" for number in range(3)))
    stepped.start(["A"])
    stepped.one_finding_at_a_time(monkeypatch)
    above, ged = stepped.base / "ged/A", stepped.intake.ged

    def read(tree):
        return sum(os.fsencode(above / tree / str(number)) in ged.sweep for number in range(3))

    stepped.step()
    while all(read(tree) < 3 for tree in "abcdef"):
        stepped.step()
    known = next(tree for tree in "abcdef" if read(tree) == 3)
    unread = next(tree for tree in "abcdef" if not read(tree))
    moves = [(above / known, above / "z"), (above / unread, above / known)]
    for source, dest in moves:
        source.rename(dest)
    hints = [Hint("moved", os.fsencode(source), os.fsencode(dest)) for source, dest in moves]
    told_late(stepped, monkeypatch, lambda: hints)
    stepped.until_ready()
    nothing_leaves_but_what_is_new(stepped, monkeypatch)


@pytest.mark.parametrize("polling", [True, False])
def test_a_file_gone_between_two_looks_of_a_first_pass_is_not_known_after_it(stepped, monkeypatch, polling):
    """Else a new file of its name would be taken for a save of it."""
    stepped.make(*(f"A/{number}/old.txt" for number in range(6)))
    stepped.start(["A"], "watch: {mode: polling}" if polling else "")
    monkeypatch.setattr(NoHints, "sync", lambda *_: None)
    _, read = amid_a_pass(stepped, monkeypatch)
    os.unlink(read + b"/old.txt")
    stepped.ahead += 10.0  # and the directory is no longer young
    stepped.until_ready()
    monkeypatch.undo()
    stepped.sweeps()
    Path(os.fsdecode(read), "old.txt").write_text("new")
    stepped.sweeps()
    assert list(stepped.documents().values()) == ["queued"]


@pytest.mark.parametrize("why", ["polling", "no sync", "limited", "silent"])
def test_a_file_moved_in_a_first_pass_without_hints_is_existing(stepped, monkeypatch, why):
    stepped.make(*(f"A/{number}/old.txt" for number in range(6)))
    stepped.start(["A"], "watch: {mode: polling}" if why == "polling" else "")
    if why == "no sync":
        monkeypatch.setattr(NoHints, "sync", lambda *_: None)
    if why == "limited":
        monkeypatch.setattr(NoHints, "limited", True)
        told_late(stepped, monkeypatch)
    if why == "silent":

        def sync(*_):
            stepped.ahead += intake.TOLD_WITHIN
            return 1

        monkeypatch.setattr(NoHints, "sync", sync)
    unread, read = amid_a_pass(stepped, monkeypatch)
    os.rename(unread + b"/old.txt", read + b"/moved.txt")
    stepped.until_ready()
    nothing_leaves_but_what_is_new(stepped, monkeypatch)


def test_an_observer_that_says_nothing_is_waited_for_only_as_long_as_it_is_behind(stepped, monkeypatch):
    monkeypatch.setattr(NoHints, "sync", lambda *_: 1)
    monkeypatch.setattr(NoHints, "behind", True)
    stepped.make("A/old.txt")
    stepped.start(["A"])
    for _ in range(20):
        stepped.ahead += 1.0
        stepped.step()
    assert not stepped.intake.ready
    monkeypatch.setattr(NoHints, "behind", False)
    for _ in range(3):
        stepped.step()
    assert stepped.intake.ready


def test_hints_that_never_end_do_not_delay_the_first_pass_for_ever(stepped, monkeypatch):
    stepped.make("A/old.txt")
    busy = Hint("look", os.fsencode(stepped.base / "ged/A/busy.txt"))
    told_late(stepped, monkeypatch, *[lambda: [busy]] * 1000)
    stepped.start(["A"])
    for _ in range(20):
        stepped.step()
    assert not stepped.intake.ready
    stepped.ahead += intake.TOLD_WITHIN
    for _ in range(3):
        stepped.step()
    assert stepped.intake.ready


def test_the_sync_of_a_pass_that_was_given_up_is_none_of_the_next_one(stepped, monkeypatch):
    """It may come when the next one has begun, or has asked for its own."""
    asked = []

    def sync(_, path):
        asked.append(path)
        return len(asked)

    monkeypatch.setattr(NoHints, "sync", sync)
    stepped.make(*(f"A/{number}/old.txt" for number in range(6)))
    stepped.start(["A"])
    for _ in range(3):
        stepped.step()
    stepped.intake.look_anew("whole")
    stepped.one_finding_at_a_time(monkeypatch)
    stepped.step()
    assert stepped.intake.ged.running is not None
    assert len(asked) == 1
    for number, ready in ((1, False), (1, False), (2, True)):
        stepped.intake.hints.append(Hint("sync", asked[0], number=number))
        for _ in range(20):
            stepped.step()
        assert stepped.intake.ready == ready
    assert len(asked) == 2


def test_times_read_for_a_client_are_not_kept_when_it_is_removed_before_the_commit(stepped):
    """Else a start with that client again would take what lies there for known, and then for new."""
    stepped.make("A/x/old.txt", "A/x/.hidden", "A/y/old.txt", "A/y/.hidden")
    stepped.start(["A"])
    ged, steps, answer = stepped.intake.ged, stepped.intake.step(stepped.now(), stepped.most), None
    with pytest.raises(Retired):
        while True:
            try:
                wish = steps.send(answer)
            except StopIteration:
                steps, answer = stepped.intake.step(stepped.now(), stepped.most), None
                continue
            if ged.in_force and not ged.retired:  # the pass has ended, and what it has read is to be kept now
                ged.retired = True
                switching.switch_off(stepped.journal, ged.path, ["A"], SwitchedFolders(()))
            try:
                answer = stepped.journal.write(wish)
            except Retired as error:
                steps.throw(error)
    stepped.stop()
    stepped.start(["A"])
    stepped.until_ready()
    stepped.make("A/x/new.txt")
    stepped.sweeps()
    assert list(stepped.documents()) == ["A/x/new.txt"]


def test_a_deposit_looked_at_late_in_a_long_turn_is_quiet_from_that_look_on(stepped, monkeypatch):
    """Others have their turns side by side with it, and there may be much to do for them."""
    stepped.make("A/old.txt")
    stepped.start(["A"])
    stepped.until_ready()
    monkeypatch.setattr(stepped.intake, "_steady", lambda: stepped.now().steady)

    def hint(file):
        stepped.make(file)
        stepped.intake.hints.append(Hint("look", os.fsencode(stepped.base / "ged" / file)))

    hint("A/growing.txt")
    stepped.step()
    stepped.ahead += 3.0
    hint("A/other.txt")
    steps = stepped.intake.step(stepped.now(), stepped.most)
    wish = next(steps)
    stepped.ahead += 5.0
    with (stepped.base / "ged/A/growing.txt").open("a") as file:
        file.write("more")
    with pytest.raises(StopIteration):
        while True:
            wish = steps.send(stepped.journal.write(wish))
    stepped.ahead += 0.1
    stepped.step()
    assert stepped.documents()["A/growing.txt"] == "waiting"
    stepped.ahead += 2.0
    stepped.step()
    assert stepped.documents()["A/growing.txt"] == "queued"


@pytest.mark.parametrize(("idle", "outcome"), [(0.0, {}), (2.5, {"A/old.txt": "waiting"})])
def test_a_save_that_comes_while_a_turn_takes_long_is_a_save(stepped, monkeypatch, idle, outcome):
    """The hint of the new file is followed at the next turn, however soon it came."""
    stepped.make("A/old.txt")
    stepped.start(["A"])
    stepped.until_ready()
    stepped.sweeps(full=True)
    monkeypatch.setattr(stepped.intake, "_steady", lambda: stepped.now().steady)
    old, new = (stepped.base / "ged/A" / name for name in ("old.txt", "old.txt~"))
    old.rename(new)
    stepped.intake.hints.append(Hint("moved", os.fsencode(old), os.fsencode(new)))
    steps = stepped.intake.step(stepped.now(), stepped.most)
    wish = next(steps)
    stepped.ahead += 5.0
    with pytest.raises(StopIteration):
        while True:
            wish = steps.send(stepped.journal.write(wish))
    stepped.ahead += idle
    stepped.make("A/old.txt")
    stepped.intake.hints.append(Hint("look", os.fsencode(old)))
    stepped.step()
    assert stepped.documents() == outcome


def test_where_files_have_no_time_of_birth_they_are_looked_at_first(stepped, monkeypatch):
    """Else a renamed one could not be told from a new one."""
    stepped.make("A/x/old.txt", "A/y/other.txt")
    monkeypatch.setattr(files.kernel, "born_ns", lambda *_: None)
    stepped.start(["A"])
    stepped.until_ready()
    assert stepped.intake.ged.unseen_until == 0
    (stepped.base / "ged/A/x/old.txt").rename(stepped.base / "ged/A/y/old.txt")
    stepped.sweeps()
    assert stepped.documents() == {}


def test_where_the_clock_is_behind_the_files_they_are_looked_at_first(stepped, monkeypatch):
    stepped.make("A/x/old.txt", "A/y/other.txt")
    monkeypatch.setattr(files.kernel, "coarse_ns", lambda: time.time_ns() - 3600 * 10**9)
    stepped.start(["A"])
    stepped.until_ready()
    (stepped.base / "ged/A/x/old.txt").rename(stepped.base / "ged/A/y/old.txt")
    stepped.sweeps()
    assert stepped.documents() == {}
    assert stepped.said("document_changed") == []


def test_a_new_file_on_a_mount_in_a_ged_is_sent_after_a_restart(stepped, share):
    """Nothing there is of another file system than what was there."""
    stepped.make("A/M/a/old.txt", "A/M/b/old.txt")
    stepped.start(["A"])
    stepped.until_ready()
    stepped.sweeps()
    stepped.stop()
    stepped.start(["A"])
    stepped.until_ready()
    stepped.make("A/M/a/new.txt", "A/M/2026/new too.txt")
    stepped.intake.hints.append(Hint("look", os.fsencode(stepped.base / "ged/A/M/2026")))
    stepped.sweeps()
    assert stepped.documents() == {"A/M/a/new.txt": "queued", "A/M/2026/new too.txt": "queued"}
    assert stepped.said("folder_rebaselined") == []


def test_a_mount_in_a_ged_unmounted_during_a_pass_is_away_and_not_gone(stepped, share, monkeypatch):
    stepped.make(*(f"A/M/{name}/old.txt" for name in "abcde"))
    stepped.start(["A"])
    stepped.until_ready()
    stepped.sweeps(full=True)
    point = stepped.base / "ged/A/M"
    stepped.make("A/M/a/queued.txt")
    stepped.sweeps()
    ged = stepped.intake.ged
    stepped.one_finding_at_a_time(monkeypatch)
    ged.read_all()
    looked = []
    monkeypatch.setattr(ged.sweep, "_read", lambda *a, usual=ged.sweep._read: looked.append(a[1]) or usual(*a))
    while os.fsencode(point) not in looked:
        stepped.step()
    run("umount", point)
    monkeypatch.undo()
    stepped.sweeps()
    share()
    stepped.sweeps()
    stepped.sweeps(full=True)
    assert stepped.documents() == {"A/M/a/queued.txt": "queued"}


def test_a_pass_asked_for_during_a_long_one_begins_right_after_it(stepped, monkeypatch):
    """A share that answers again asks for it. The end of the long pass would put the next one off by its duration."""
    stepped.make(*(f"A/{number}/old.txt" for number in range(6)))
    stepped.start(["A"])
    stepped.until_ready()
    stepped.one_finding_at_a_time(monkeypatch)
    stepped.ahead += 3600.0
    stepped.intake.ged.read_all()
    for _ in range(3):
        stepped.step()
    assert stepped.intake.ged.running is not None
    stepped.make("A/new.txt")  # the pass has read A already
    stepped.intake.look_anew("soon")
    for _ in range(60):
        stepped.step()
    assert list(stepped.documents()) == ["A/new.txt"]
