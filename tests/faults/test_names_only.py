"""After the very first look only names and inodes of existing files are known, until all have been looked at.

No change of them in that time sends one, and no new file is taken for one of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.bridge import Bridge, until
from tests.support.process import journal, launch, ready_or_ended, rows
from tests.support.relay import ScriptedRelay

OLD = ("one.txt", "two.txt", "three.txt", "sub/four.txt", "sub/deep/five.txt")
RESTED = 2.2  # seconds after which a directory is no longer read again for its youth alone
HINTS = {"hints": ["names_only"], "sweeps": ["names_only", "no_hints"]}


@pytest.fixture
def bridge(tmp_path: Path, relay: ScriptedRelay) -> Iterator[Bridge]:
    bridge = Bridge(tmp_path, relay)
    for name in OLD:
        path = bridge.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (bridge.inbox / "empty").mkdir()
    time.sleep(RESTED)
    yield bridge
    if bridge.process is not None and bridge.process.poll() is None:
        bridge.stop()


def begin(bridge: Bridge, faults: list[str]) -> None:
    ready = bridge.count("daemon_ready")
    launch(bridge, (), faults)
    assert ready_or_ended(bridge, ready)


def packed(bridge: Bridge) -> int:
    return int(journal(bridge, "SELECT COUNT(*) FROM packed")[0][0])


def unseen(bridge: Bridge) -> int:
    return int(journal(bridge, "SELECT COUNT(*) FROM known WHERE size = -2")[0][0])


def renamed(bridge: Bridge) -> None:
    (bridge.inbox / "one.txt").rename(bridge.inbox / "uno.txt")


def filed(bridge: Bridge) -> None:
    (bridge.inbox / "one.txt").rename(bridge.inbox / "empty" / "one.txt")


def taken_to_another_folder(bridge: Bridge) -> None:
    (bridge.inbox / "one.txt").rename(bridge.ged / "Notes" / "one.txt")


def directory_renamed(bridge: Bridge) -> None:
    (bridge.inbox / "sub").rename(bridge.inbox / "other")


def overwritten(bridge: Bridge) -> None:
    (bridge.inbox / "one.txt").write_bytes(b"other bytes")


def saved_by_an_editor(bridge: Bridge) -> None:
    (bridge.inbox / "one.new~").write_bytes(b"other bytes")
    (bridge.inbox / "one.new~").rename(bridge.inbox / "one.txt")


def touched(bridge: Bridge) -> None:
    os.utime(bridge.inbox / "one.txt", (4e9, 4e9))
    (bridge.inbox / "two.txt").chmod(0o600)


def swapped(bridge: Bridge) -> None:
    (bridge.inbox / "one.txt").rename(bridge.inbox / ".one")
    (bridge.inbox / "two.txt").rename(bridge.inbox / "one.txt")
    (bridge.inbox / ".one").rename(bridge.inbox / "two.txt")


def renamed_onto_another(bridge: Bridge) -> None:
    (bridge.inbox / "one.txt").rename(bridge.inbox / "two.txt")


def renamed_and_touched(bridge: Bridge) -> None:
    os.utime(bridge.inbox / "one.txt", (4e9, 4e9))
    (bridge.inbox / "one.txt").rename(bridge.inbox / "empty" / "uno.txt")


def deleted(bridge: Bridge) -> None:
    (bridge.inbox / "one.txt").unlink()
    shutil.rmtree(bridge.inbox / "sub")


DONE = (
    *(renamed, filed, taken_to_another_folder, directory_renamed, overwritten, saved_by_an_editor, touched),
    *(swapped, renamed_onto_another, renamed_and_touched, deleted),
)


@pytest.mark.promise("renamed-hints")
@pytest.mark.parametrize("way", HINTS)
@pytest.mark.parametrize("done", DONE)
def test_an_existing_file_changed_or_moved_is_not_sent(
    bridge: Bridge, done: Callable[[Bridge], None], way: str
) -> None:
    begin(bridge, HINTS[way])
    assert packed(bridge) == 3
    done(bridge)
    bridge.settle()
    time.sleep(2.5)  # a file that is gone is buried after 2 s, and one found after that is new
    bridge.expect()
    bridge.stop()
    bridge.start()  # this one looks at all of it
    bridge.expect()
    until(lambda: packed(bridge) == unseen(bridge) == 0, "all have been looked at")


@pytest.mark.parametrize("done", DONE)
def test_an_existing_file_changed_or_moved_while_the_daemon_is_stopped_is_not_sent(
    bridge: Bridge, done: Callable[[Bridge], None]
) -> None:
    """As far as can be told then: `catch_up` is on."""
    bridge.extra = "catch_up: true"
    begin(bridge, HINTS["hints"])
    bridge.stop(signal.SIGKILL)
    done(bridge)
    bridge.start()
    bridge.expect()


def of_the_same_inode(old: Path, new: Path, before: os.stat_result) -> bool:
    """A new file in the place of a deleted one gets its inode, and has its times. Whether it could be had."""
    old.unlink()
    made: list[Path] = []
    for number in range(200):
        new.write_bytes(old.name.encode())
        if new.stat().st_ino == before.st_ino:
            os.utime(new, ns=(before.st_mtime_ns, before.st_mtime_ns))
            return True
        made.append(new.rename(new.parent / f".{number}"))
    return False


@pytest.mark.parametrize("way", HINTS)
@pytest.mark.parametrize("stopped", [False, True], ids=["seen", "stopped"])
def test_a_new_file_with_inode_size_and_time_of_a_deleted_one_is_new(bridge: Bridge, way: str, stopped: bool) -> None:
    bridge.extra = "catch_up: true"
    begin(bridge, HINTS[way])
    old, new = bridge.inbox / "one.txt", bridge.inbox / "empty" / "new.txt"
    before = old.stat()
    if stopped:
        bridge.stop()
    if not of_the_same_inode(old, new, before):
        pytest.skip("this file system does not give a number again so soon")
    if stopped:
        begin(bridge, HINTS[way])
    bridge.expect("new.txt")


@pytest.mark.parametrize("way", HINTS)
def test_of_a_file_that_is_filed_and_scanned_anew_the_new_one_is_sent(bridge: Bridge, way: str) -> None:
    begin(bridge, HINTS[way])
    (bridge.inbox / "one.txt").rename(bridge.inbox / "empty" / "one.txt")
    (bridge.inbox / "one.txt").write_bytes(b"the next scan")
    bridge.expect("one.txt")
    assert [content for name, content in bridge.arrived() if name == "one.txt"] == [b"the next scan"]


@pytest.mark.parametrize("way", HINTS)
def test_new_files_among_them_are_sent_once(bridge: Bridge, way: str) -> None:
    begin(bridge, HINTS[way])
    for name in ("new.txt", "sub/new too.txt", "empty/and this.txt"):
        (bridge.inbox / name).write_bytes(name.encode())
    bridge.expect("new.txt", "new too.txt", "and this.txt")
    assert packed(bridge) == 1  # only `deep` has not been touched
    bridge.stop()
    bridge.start()
    bridge.expect("new.txt", "new too.txt", "and this.txt")
    until(lambda: packed(bridge) == 0, "all have been looked at")


def test_all_are_looked_at_soon(bridge: Bridge) -> None:
    bridge.start()
    until(lambda: packed(bridge) == 0, "all have been looked at", within=5)
    assert unseen(bridge) == 0
    sizes = journal(bridge, "SELECT name, size, document FROM known ORDER BY name")
    assert sizes == sorted((os.fsencode(Path(name).name), len(name), None) for name in OLD)
    bridge.expect()


def test_existing_files_can_be_counted_explained_and_sent_on_purpose(bridge: Bridge) -> None:
    begin(bridge, HINTS["hints"])
    counted = [line for line in bridge.run("status", "--json").stdout.splitlines() if '"existing"' in line]
    assert any('"existing": 5' in line for line in counted), counted
    told = bridge.run("explain", os.fspath(bridge.inbox / "one.txt"))
    assert told.returncode == 0, told.stderr
    assert bridge.run("send", os.fspath(bridge.inbox / "one.txt")).returncode == 0
    bridge.expect("one.txt")
    assert {row["document"] for row in rows(bridge)} >= {"Achats/one.txt"}
