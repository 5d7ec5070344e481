"""The state directory: power cut, full, broken, corrupt, lost, from the future, and open to others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.bridge import Bridge, attachment, daemon, until
from tests.support.images import Disk, disk, needs_images
from tests.support.mounts import FuseMounts
from tests.support.process import (
    ended,
    launch,
    leftovers,
    mails_of,
    marker_of,
    needs_root,
    needs_strace,
    once_each,
    standing_still,
    states,
    strace,
)
from tests.support.relay import Late

pytestmark = [pytest.mark.timeout(200), pytest.mark.parametrize("bridge", ["inotify"], indirect=True)]
LOST = {"journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"}


@pytest.fixture
def state_disk(bridge: Bridge) -> Iterator[Disk]:
    """The state directory is a disk of its own."""
    with disk(bridge.base, bridge.base / "state") as made:
        yield made
        _end(bridge)


def _end(bridge: Bridge) -> None:
    if bridge.process is not None and not ended(bridge):
        bridge.stop(signal.SIGKILL)


def _deposit(path: Path, content: bytes) -> None:
    """Durably, so that a power cut of the GED's disk does not take it along."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _names(bridge: Bridge) -> set[str]:
    return {attachment(mail.data)[0] for mail in list(bridge.relay.mails)}


# -- 1. power cuts


@pytest.mark.promise("1-inotify")
@needs_images
@pytest.mark.parametrize("after", [1, 7, 15])
def test_an_acceptance_before_a_power_cut_is_in_the_journal(bridge: Bridge, state_disk: Disk, after: int) -> None:
    """Under a stream of documents: accepted is sent, validated or dotted; a second mail has the same Message-ID."""
    bridge.extra = "catch_up: true"
    (bridge.inbox / "existing.txt").write_text("existing")
    bridge.start()
    stop = threading.Event()

    def stream() -> None:
        for i in range(30):
            _deposit(bridge.inbox / f"{i}.txt", b"%d" % i)
            if stop.wait(0.05):
                return

    writer = threading.Thread(target=stream)
    writer.start()
    until(lambda: len(bridge.relay.mails) >= after, f"{after} mails")
    with standing_still(bridge):
        accepted = _names(bridge)
        state_disk.cut()
    bridge.wait_for("state_failed")
    stop.set()
    writer.join()
    bridge.stop(signal.SIGKILL)
    assert len(_names(bridge) - accepted) <= 2, "more than what was on its way in two sessions"
    state_disk.umount()
    state_disk.mount()
    found = _journal(bridge)
    for name in _names(bridge):
        state, dotted, message_id = found[name]
        assert state in ("sent", "validated") or (state == "sending" and dotted), (name, state)
        assert message_id.encode() in mails_of(bridge, name)[0]
    bridge.start()
    bridge.settle()
    files = {path.name for path in bridge.inbox.glob("[0-9]*.txt")}
    once_each(bridge, sorted(files), lambda _: 2)
    for name in files:
        marker_of(bridge.inbox / name)


def _journal(bridge: Bridge) -> dict[str, tuple[str, int, str]]:
    """The journal after a cut and before any recovery: name -> state, dotted, Message-ID."""
    sql = sqlite3.connect(bridge.base / "state/journal.sqlite")
    try:
        found = sql.execute("SELECT path, state, dotted, message_id FROM documents").fetchall()
    finally:
        sql.close()
    return {os.fsdecode(path).rpartition("/")[2]: tuple(rest) for path, *rest in found}


@needs_images
def test_markers_survive_a_power_cut_of_the_geds_disk_or_are_written_again(bridge: Bridge) -> None:
    """A document told as validated has its marker after the cut. None is half, and none is missing in the end."""
    with disk(bridge.base, bridge.ged) as ged:
        try:
            for folder in ("Achats", "Notes"):
                (bridge.ged / folder).mkdir()
            os.sync()
            bridge.start()
            names = [f"{i}.txt" for i in range(12)]
            for name in names:
                _deposit(bridge.inbox / name, name.encode())
            bridge.wait_for("document_validated", 5)
            told = [line["document"].removeprefix("Achats/") for line in bridge.lines("document_validated")]
            with standing_still(bridge):
                ged.cut()
            bridge.stop(signal.SIGKILL)
            ged.umount()
            ged.mount()
            for name in told:
                marker_of(bridge.inbox / name)
            for path in bridge.inbox.glob("*.validated.json"):
                json.loads(path.read_text())
            bridge.start()
            bridge.settle()
            once_each(bridge, names, lambda _: 2)
            for name in names:
                marker_of(bridge.inbox / name)
            assert leftovers(bridge.ged) == []
        finally:
            _end(bridge)


# -- 2. a full, or broken, state disk


def _failed(bridge: Bridge) -> None:
    line = bridge.wait_for("state_failed")[0]
    assert line["level"] == "error"
    assert "Traceback" not in json.dumps(line)


@needs_images
def test_deposits_while_the_state_disk_is_full_leave_once_there_is_room(bridge: Bridge, state_disk: Disk) -> None:
    """`state_failed` is said, nothing is sent meanwhile, and then everything, once."""
    bridge.start()
    state_disk.fill()
    names = [f"{i}.txt" for i in range(5)]
    for name in names:
        (bridge.inbox / name).write_text(name)
    _failed(bridge)
    time.sleep(3)  # the directory is no longer young when there is room again
    recorded = len(bridge.relay.mails)
    assert recorded == 0
    state_disk.free()
    bridge.expect(*names)
    assert set(states(bridge).values()) == {"validated"}


@needs_images
@pytest.mark.parametrize("phase", ["DATA", "DOT"])
def test_a_state_disk_that_fills_up_in_mid_message(bridge: Bridge, state_disk: Disk, phase: str) -> None:
    """Before the dot: the message is given up, and leaves when there is room. After it: it is not sent again."""
    bridge.relay.script(phase, Late())
    bridge.start()
    (bridge.inbox / "a.txt").write_text("a")
    until(lambda: bridge.relay.stalled, "it is on its way")
    state_disk.fill()
    bridge.relay.go_on()
    _failed(bridge)
    assert len(bridge.relay.mails) == (phase == "DOT")
    time.sleep(2)
    state_disk.free()
    until(lambda: bridge.sent()["a.txt"], "it is sent, a minute later at the latest", 75)
    bridge.expect("a.txt")
    assert set(states(bridge).values()) == {"validated"}
    marker_of(bridge.inbox / "a.txt")


@needs_images
def test_a_state_disk_that_is_full_during_the_first_look_causes_no_mass_mailing(
    bridge: Bridge, state_disk: Disk
) -> None:
    """The existing files could not be recorded: they are existing all the same once there is room."""
    for folder in range(60):
        directory = bridge.inbox / f"folder-{folder}"
        directory.mkdir()
        for i in range(100):
            (directory / f"existing-{folder}-{i}-{'x' * 60}.txt").write_text("existing")
    state_disk.fill(400_000)
    launch(bridge)
    _failed(bridge)
    state_disk.free()
    until(lambda: bridge.count("daemon_ready"), "daemon_ready")
    (bridge.inbox / "folder-7").rename(bridge.inbox / "renamed")  # read again at once; the others at the next sweep
    (bridge.inbox / "renamed/later.txt").write_text("later")
    bridge.expect("later.txt")


@needs_images
def test_after_a_full_disk_a_deposit_in_a_large_ged_is_found_within_a_sweep(bridge: Bridge, state_disk: Disk) -> None:
    """The hint came and the sweep looked while nothing could be recorded: the next sweep looks again."""
    for i in range(4000):
        (bridge.ged / "Notes" / f"{i}").mkdir()
    bridge.start()
    time.sleep(4)  # so that no directory is young, and the next full pass is far away
    state_disk.fill()
    (bridge.ged / "Notes/7/a.txt").write_text("a")
    _failed(bridge)
    time.sleep(4)
    state_disk.free()
    until(lambda: bridge.sent()["a.txt"], "it is sent within a few sweeps of a second", 10)
    bridge.expect("a.txt")


@needs_images
def test_a_state_disk_that_turns_read_only_is_told_and_nothing_is_sent_twice(bridge: Bridge, state_disk: Disk) -> None:
    """As after a disk's error: `state_failed`, no mail, a stop in time; repaired and started again, all is well."""
    bridge.extra = "catch_up: true"
    bridge.start()
    (bridge.inbox / "before.txt").write_text("before")
    bridge.wait_for("document_validated")
    state_disk.break_down()
    (bridge.inbox / "after.txt").write_text("after")
    _failed(bridge)
    time.sleep(2)
    assert _names(bridge) == {"before.txt"}
    assert bridge.stop() == 0
    state_disk.umount()
    state_disk.mount()
    bridge.start()
    bridge.expect("before.txt", "after.txt")


# -- 3. a corrupt journal


def _try(bridge: Bridge, before: Sequence[str] = ()) -> str:
    """Start the daemon, perhaps behind a command; its complaint where it refuses, empty where it is ready."""
    complaint = bridge.base / "complaint"
    bridge.config.write_text(bridge.text())
    with complaint.open("wb") as log:
        bridge.process = subprocess.Popen([*before, *daemon(), "run", "--config", bridge.config], stderr=log)
    until(lambda: ended(bridge) or "daemon_ready" in complaint.read_text(), "refused, or ready")
    return complaint.read_text() if ended(bridge) else ""


def _garbage(journal: Path) -> None:
    with journal.open("r+b") as file:
        file.write(os.urandom(4096))


def _middle(journal: Path) -> None:
    size = journal.stat().st_size
    with journal.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))


def _halved(journal: Path) -> None:
    os.truncate(journal, journal.stat().st_size // 2 // 4096 * 4096)


def _emptied(journal: Path) -> None:
    os.truncate(journal, 0)


def _wal_gone(journal: Path) -> None:
    journal.with_name("journal.sqlite-wal").unlink()


def _wal_garbage(journal: Path) -> None:
    wal = journal.with_name("journal.sqlite-wal")
    with wal.open("r+b") as file:
        file.seek(wal.stat().st_size // 2)
        file.write(os.urandom(8192))


DAMAGES = [
    (_garbage, signal.SIGTERM),
    (_middle, signal.SIGTERM),
    (_halved, signal.SIGTERM),
    (_emptied, signal.SIGTERM),
    (_wal_gone, signal.SIGKILL),
    (_wal_garbage, signal.SIGKILL),
]


@pytest.mark.parametrize(("damage", "number"), DAMAGES)
def test_a_corrupt_journal_is_refused_with_a_remedy_or_works_and_mails_nothing(
    bridge: Bridge, damage: Any, number: int
) -> None:
    """78 and a remedy, or it works. Moved aside: all files are existing, valid markers count, later deposits leave."""
    for i in range(20):
        (bridge.inbox / f"existing-{i}.txt").write_text("existing")
    bridge.start()
    sent = [f"{i}.txt" for i in range(4)]
    for name in sent:
        (bridge.inbox / name).write_text(name)
    bridge.wait_for("document_validated", 4)
    bridge.stop(number)
    foreign = bridge.inbox / "existing-0.txt.validated.json"
    foreign.write_text('{"status": "validated"}')
    journal = bridge.base / "state/journal.sqlite"
    damage(journal)
    complaint = _try(bridge)
    assert "Traceback" not in complaint
    if complaint:
        assert bridge.process is not None
        assert bridge.process.returncode == 78, complaint
        assert "ove it aside" in complaint
    else:
        time.sleep(3)
        bridge.stop()
        _ = [p.unlink() for p in bridge.inbox.glob("probe-*")]
    assert set(_names(bridge)) == set(sent)
    for name in LOST:
        path = journal.with_name(name)
        if path.exists():
            path.rename(journal.with_name(f"aside-{name}"))
    bridge.start()
    (bridge.inbox / "later.txt").write_text("later")
    bridge.expect(*sent, "later.txt")
    found = {n: s for n, s in states(bridge).items() if not n.startswith("probe-")}
    assert found == dict.fromkeys([*sent, "later.txt"], "validated")


FAILED_READS = [("pread64", "EIO", n) for n in (1, 4, 5, 9)] + [("openat", "EMFILE", n) for n in (1, 2, 3)]


@pytest.mark.promise("pread64-EIO-4-inotify")
@needs_strace
@pytest.mark.parametrize(("call", "error", "number"), FAILED_READS)
def test_one_failed_read_at_a_start_does_not_call_the_journal_damaged(
    bridge: Bridge, call: str, error: str, number: int
) -> None:
    """It starts all the same, or ends with 1 for the unit to start it again. Its documents are there then."""
    bridge.start()
    (bridge.inbox / "before.txt").write_text("before")
    bridge.wait_for("document_validated")
    bridge.stop()
    journal = bridge.base / "state/journal.sqlite"
    paths = [argument for name in ("", "-wal", "-shm") for argument in ("-P", f"{journal}{name}")]
    complaint = _try(bridge, [*strace(bridge.base / "trace", **{call: f"error={error}:when={number}"}), *paths])
    assert "INJECTED" in (bridge.base / "trace").read_text()
    assert "ove it aside" not in complaint
    if complaint:
        assert bridge.process is not None
        assert bridge.process.returncode == 1, complaint
        assert "disk" in complaint or "open" in complaint
    else:
        bridge.stop()
    bridge.start()
    (bridge.inbox / "after.txt").write_text("after")
    bridge.expect("before.txt", "after.txt")


# -- 4. a lost journal


@pytest.mark.promise
def test_without_its_journal_a_ged_of_fifty_files_and_their_markers_is_not_mailed(bridge: Bridge) -> None:
    """Forty were sent, ten not: all are existing, the forty count as validated."""
    for i in range(10):
        (bridge.inbox / f"existing-{i}.txt").write_text("existing")
    bridge.start()
    sent = [f"{i}.txt" for i in range(40)]
    for name in sent:
        (bridge.inbox / name).write_text(name)
    bridge.wait_for("document_validated", 40)
    bridge.stop()
    shutil.rmtree(bridge.base / "state")
    bridge.start()
    bridge.expect(*sent)
    found = {n: s for n, s in states(bridge).items() if not n.startswith("probe-")}
    assert found == dict.fromkeys(sent, "validated")


def test_a_journal_that_is_deleted_under_the_running_daemon_is_told(bridge: Bridge) -> None:
    """Written to a file without a name, every promise ends with the process: an error, and no document goes out."""
    bridge.start()
    (bridge.inbox / "before.txt").write_text("before")
    bridge.wait_for("document_validated")
    for name in LOST:
        (bridge.base / "state" / name).unlink(missing_ok=True)
    (bridge.inbox / "after.txt").write_text("after")
    bridge.wait_for("state_failed")
    assert _names(bridge) == {"before.txt"}


# -- 5. a journal of a newer version


def test_a_journal_of_a_newer_version_is_refused_and_left_alone(bridge: Bridge) -> None:
    """78; the sentence names both versions; not a byte has changed."""
    bridge.start()
    bridge.stop()
    journal = bridge.base / "state/journal.sqlite"
    sql = sqlite3.connect(journal)
    known = sql.execute("PRAGMA user_version").fetchone()[0]
    sql.execute("PRAGMA user_version = 99")
    sql.close()
    before = journal.read_bytes()
    complaint = _try(bridge)
    assert bridge.process is not None
    assert bridge.process.returncode == 78
    assert "99" in complaint
    assert f"knows {known}" in complaint
    assert journal.read_bytes() == before
    assert not journal.with_name("journal.sqlite-wal").exists()


# -- 6. open to others


@pytest.mark.promise
def test_another_user_cannot_read_the_state_even_under_umask_000(bridge: Bridge) -> None:
    """The directory 0700, every file in it 0600, as long as it runs and afterwards."""
    ready = bridge.count("daemon_ready")
    launch(bridge, ["sh", "-c", 'umask 000; exec "$@"', "sh"])
    until(lambda: bridge.count("daemon_ready") > ready, "daemon_ready")
    (bridge.inbox / "a.txt").write_text("a")
    bridge.expect("a.txt")
    state = bridge.base / "state"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in state.iterdir()}
    assert set(modes) == LOST | {"lock", "control.sock"}
    assert set(modes.values()) == {0o600}, modes


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_state_directory_that_others_may_write_is_refused(bridge: Bridge, mode: int) -> None:
    """78 with the command that mends it; nothing is created there."""
    state = bridge.base / "state"
    state.mkdir()
    state.chmod(mode)
    complaint = _try(bridge)
    assert bridge.process is not None
    assert bridge.process.returncode == 78
    assert f"chmod 0700 {state}" in complaint
    assert list(state.iterdir()) == []


@needs_root
def test_a_state_directory_of_another_user_is_refused(bridge: Bridge) -> None:
    """78; also when it is reached by a link."""
    other = bridge.base / "elsewhere"
    other.mkdir(mode=0o700)
    os.chown(other, 12345, 12345)
    (bridge.base / "state").symlink_to(other)
    complaint = _try(bridge)
    assert bridge.process is not None
    assert bridge.process.returncode == 78
    assert "another user" in complaint
    assert list(other.iterdir()) == []


def test_a_state_directory_may_be_a_link_to_a_larger_disk(bridge: Bridge) -> None:
    """An administrator links it when /var is full. It works, and the modes are the same there."""
    other = bridge.base / "elsewhere"
    other.mkdir(mode=0o700)
    (bridge.base / "state").symlink_to(other)
    bridge.start()
    (bridge.inbox / "a.txt").write_text("a")
    bridge.expect("a.txt")
    assert {path.name for path in other.iterdir()} == LOST | {"lock", "control.sock"}


@pytest.mark.parametrize("name", ["lock", "control.sock", "journal.sqlite"])
def test_a_link_at_one_of_its_names_does_not_make_it_write_elsewhere(bridge: Bridge, name: str) -> None:
    """Refused with 78, or replaced: the file that it points to is as it was, and none is created by a dangling one."""
    state, victim = bridge.base / "state", bridge.base / "victim"
    state.mkdir(mode=0o700)
    (state / name).symlink_to(victim)
    complaint = _try(bridge)
    assert not victim.exists()
    assert "Traceback" not in complaint
    if complaint:
        assert bridge.process is not None
        assert bridge.process.returncode == 78
        assert str(state) in complaint


# -- 7. on a share


@pytest.mark.promise("inotify")
def test_a_state_directory_on_a_share_is_refused_by_check_and_at_the_start(bridge: Bridge) -> None:
    """78 with the directory, its file system and the remedy; `Function not implemented` alone helps nobody."""
    (bridge.base / "server").mkdir()
    (bridge.base / "state").mkdir(mode=0o700)
    with FuseMounts(bridge.base) as mounts:
        mounts.fuse("sshfs", bridge.base / "server", bridge.base / "state")
        complaint = _try(bridge)
        assert bridge.process is not None
        assert bridge.process.returncode == 78
        checked = bridge.run("check")
        assert checked.returncode == 78
        for told in (complaint, checked.stderr):
            assert f"The state directory {bridge.base}/state is on server:" in told
            assert "(fuse.sshfs)" in told
            assert "must be on a local disk" in told
        assert list((bridge.base / "server").iterdir()) == []


def test_a_state_directory_on_a_fuse_disk_of_this_machine_works(bridge: Bridge) -> None:
    """Storage systems pool disks by FUSE. Locks, sockets and the journal work there."""
    (bridge.base / "disk").mkdir(mode=0o700)
    (bridge.base / "state").mkdir(mode=0o700)
    with FuseMounts(bridge.base) as mounts:
        mounts.fuse("bindfs", bridge.base / "disk", bridge.base / "state")
        bridge.start()
        (bridge.inbox / "a.txt").write_text("a")
        bridge.expect("a.txt")
        assert bridge.stop() == 0
