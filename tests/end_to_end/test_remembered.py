"""A restart reads only changed directories. No existing file is sent for that, by any rules."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bridge import Bridge, until
from tests.support.relay import ScriptedRelay


@pytest.fixture
def bridge(tmp_path: Path, relay: ScriptedRelay) -> Iterator[Bridge]:
    bridge = Bridge(tmp_path, relay)
    (bridge.inbox / "old").mkdir()
    for name in ("a.txt", "b.old", "old/c.txt"):
        (bridge.inbox / name).write_bytes(name.encode())
    yield bridge
    if bridge.process is not None and bridge.process.poll() is None:
        bridge.stop()


def remembered(bridge: Bridge) -> set[str]:
    """The directories whose times the journal keeps."""
    sql = sqlite3.connect(f"file:{bridge.base}/state/journal.sqlite?mode=ro", uri=True)
    try:
        paths = [row[0] for row in sql.execute("SELECT path FROM directories WHERE times IS NOT NULL")]
    finally:
        sql.close()
    return {str(Path(path.decode()).relative_to(bridge.ged)) for path in paths}


def run_until_remembered(bridge: Bridge) -> None:
    bridge.start()
    until(lambda: remembered(bridge) >= {"Achats", "Achats/old", "Notes"}, "the times are kept")


def nothing_leaves(bridge: Bridge) -> None:
    """Also not at the pass that reads everything, which is the first after the start."""
    for _ in range(2):
        bridge.settle()
    assert {name for name in bridge.sent() if not name.startswith("probe-")} == set()


def test_a_file_deposited_during_a_stop_is_missed_and_an_existing_one_stays_so(bridge):
    run_until_remembered(bridge)
    bridge.stop()
    (bridge.inbox / "old" / "missed.txt").write_bytes(b"meanwhile")
    (bridge.inbox / "new").mkdir()
    (bridge.inbox / "new" / "too.txt").write_bytes(b"meanwhile too")
    bridge.start()
    assert bridge.lines("document_missed")[0]["count"] == 2
    nothing_leaves(bridge)


def test_an_ignored_name_that_is_one_no_longer_after_a_restart_is_no_deposit(bridge):
    """The directory has not changed, but it was read by other rules."""
    bridge.extra = 'ignore: ["*.old"]'
    run_until_remembered(bridge)
    bridge.stop()
    bridge.extra = ""
    bridge.start()
    assert bridge.lines("document_missed") == []
    nothing_leaves(bridge)


def test_an_exclusion_that_is_lifted_after_a_restart_makes_no_deposits(bridge):
    bridge.folders = "[{path: Achats, exclude: [old]}, Notes]"
    bridge.start()
    until(lambda: remembered(bridge) >= {"Achats", "Notes"}, "the times are kept")
    bridge.stop()
    bridge.folders = "[Achats, Notes]"
    bridge.start()
    nothing_leaves(bridge)


@pytest.mark.parametrize("restart", [True, False])
def test_a_folder_off_for_a_while_holds_existing_files_despite_remembered_times(bridge, restart):
    run_until_remembered(bridge)
    for folders in ("[Notes]", "[Achats, Notes]"):
        bridge.folders = folders
        bridge.config.write_text(bridge.text())
        assert bridge.run("reload").returncode == 0
        if folders == "[Notes]":
            assert remembered(bridge) == {"Notes"}
            (bridge.inbox / "while-off.txt").write_bytes(b"while it was off")
    if restart:
        bridge.stop()
        bridge.start()
    nothing_leaves(bridge)


def test_a_save_during_a_stop_is_not_sent_though_on_overwrite_is_send(bridge):
    """`on_overwrite: send` is not retroactive: such a restart has to read everything."""
    bridge.extra = "on_overwrite: send"
    run_until_remembered(bridge)
    bridge.stop()
    (bridge.inbox / "a.txt").write_bytes(b"saved while nobody looked")
    bridge.start()
    nothing_leaves(bridge)
    (bridge.inbox / "a.txt").write_bytes(b"saved while it is running")
    until(lambda: bridge.sent()["a.txt"], "saved while it runs, it is sent")


def test_documents_and_their_markers_outlive_the_restarts(bridge):
    run_until_remembered(bridge)
    (bridge.inbox / "new.txt").write_bytes(b"new")
    bridge.wait_for("document_validated")
    bridge.stop()
    bridge.start()
    (bridge.inbox / "second.txt").write_bytes(b"second")
    bridge.expect("new.txt", "second.txt")


@pytest.mark.promise("an exclusion is lifted")
@pytest.mark.parametrize("how", ["an exclusion is lifted", "a name is no longer ignored"])
def test_a_file_that_the_rules_hid_before_a_stop_is_no_deposit_despite_catch_up(bridge, how):
    """`catch_up` sends the files deposited while the daemon was stopped, and no others."""
    bridge.extra = "catch_up: true\n" + ("ignore: ['*.old']" if "ignored" in how else "")
    bridge.folders = "[{path: Achats, exclude: [old]}, Notes]" if "exclusion" in how else bridge.folders
    bridge.start()
    until(lambda: remembered(bridge) >= {"Achats", "Notes"}, "the times are kept")
    bridge.stop()
    (bridge.inbox / "meanwhile.txt").write_bytes(b"meanwhile")
    bridge.extra, bridge.folders = "catch_up: true", "[Achats, Notes]"
    bridge.start()
    bridge.expect("meanwhile.txt")
