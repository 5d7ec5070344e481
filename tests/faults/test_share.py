"""Shares that go away, come back, are others, are full, read-only or blind: real mounts, pulled from under bridged."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bridge import sha256, until
from tests.support.mounts import (
    SELDOM,
    Disk,
    FuseMounts,
    Share,
    put,
    remains,
    require,
    tree,
    use_up_bytes,
    use_up_inodes,
)
from tests.support.process import launch
from tests.support.relay import Late, ScriptedRelay, Stall

PDF = b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n"
PLAIN_AND_LAZY = pytest.mark.parametrize("how", [(), ("--lazy",)], ids=["umount", "umount-lazy"])
POLLING = pytest.mark.parametrize("share", ["polling"], indirect=True)
INOTIFY = pytest.mark.parametrize("share", ["inotify"], indirect=True)
AUTO = pytest.mark.parametrize("share", ["auto"], indirect=True)


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[FuseMounts]:
    with FuseMounts(tmp_path) as mounts:
        yield mounts


@pytest.fixture(params=["inotify", "polling"])
def share(request: pytest.FixtureRequest, tmp_path: Path, relay: ScriptedRelay, mounts: FuseMounts) -> Iterator[Share]:
    """A bridge that is not started yet, its GED still a bare directory. It ends before the mounts do."""
    share = Share(tmp_path, relay, request.param, mounts)
    yield share
    if share.process is not None and share.process.poll() is None:
        share.stop()


@pytest.fixture
def disk(mounts: FuseMounts) -> Disk:
    """The share's file system: folders, and one existing file."""
    disk = mounts.disk()
    disk.fill(**{"Achats/existing.txt": "existing", "Achats/sub/deep.txt": "existing, deep"})
    return disk


def with_documents_on_their_way(share: Share) -> dict[str, str]:
    """Started on a mounted share: one validated, one queued (the relay is down), one waiting. Their states."""
    share.start()
    (share.inbox / "validated.txt").write_text("validated")
    share.wait_for("document_validated")
    share.relay_goes()
    (share.inbox / "queued.txt").write_text("queued")
    (share.inbox / "sub/cut.pdf").write_bytes(PDF[:20])
    expected = {"validated.txt": "validated", "queued.txt": "queued", "cut.pdf": "waiting"}
    share.wait_for_states(**expected)
    return expected


# -- the same file system goes and returns


@pytest.mark.promise("inotify-umount")
@PLAIN_AND_LAZY
def test_a_share_that_goes_and_returns_changes_nothing_and_loses_nothing(
    share: Share, disk: Disk, how: tuple[str, ...]
) -> None:
    """Told once each way. No state changes meanwhile, the bare directory stays bare, and deposits by others leave."""
    bare = tree(share.ged)
    disk.mount(share.ged)
    states = with_documents_on_their_way(share)
    share.unmount(*how)
    share.wait_for("folder_unreachable")
    share.relay.listen_again()
    with disk.elsewhere() as root:
        (root / "Achats/new.txt").write_text("deposited while it was away")
        (root / "Achats/sub/cut.pdf").write_bytes(PDF)
        remains(lambda: (share.states(), tree(share.ged), share.sent()), 3)
    assert (share.states(), tree(share.ged)) == (states, bare)
    assert not any(row["reachable"] for row in map(json.loads, share.run("status", "--json").stdout.splitlines()[1:]))
    disk.mount(share.ged)
    share.wait_for("folder_recovered")
    share.expect("validated.txt", "queued.txt", "cut.pdf", "new.txt")
    assert dict(share.arrived())["cut.pdf"] == PDF
    assert (share.count("folder_unreachable"), share.count("folder_recovered")) == (1, 1)
    assert (share.count("folder_rebaselined"), share.count("document_withdrawn")) == (0, 0)
    share.unmount()
    assert tree(share.ged) == bare


@PLAIN_AND_LAZY
def test_documents_that_keep_arriving_while_the_share_comes_and_goes_leave_once(
    share: Share, disk: Disk, how: tuple[str, ...]
) -> None:
    """The server never stops: it is mounted elsewhere too, so that the kernel goes on giving hints of hidden paths."""
    bare = tree(share.ged)
    disk.mount(share.ged)
    share.start()
    names: list[str] = []
    enough = threading.Event()

    def deposit(root: Path) -> None:
        for number in itertools.count():
            name = f"{number}.txt"
            (root / "Achats" / name).write_text(name)
            names.append(name)
            if enough.wait(0.05):
                return

    with disk.elsewhere() as root:
        writer = threading.Thread(target=deposit, args=(root,))
        writer.start()
        try:
            for times in (1, 2, 3):
                share.wait_for("document_validated", 5 * times)
                share.unmount(*how)
                share.wait_for("folder_unreachable", times)
                arrived = len(names)
                until(lambda a=arrived: len(names) > a + 10, "deposits arrive while it is away")
                assert tree(share.ged) == bare
                disk.mount(share.ged)
                share.wait_for("folder_recovered", times)
        finally:
            enough.set()
            writer.join()
    share.expect(*names)
    assert {name: content.decode() for name, content in share.arrived() if name in names} == {n: n for n in names}
    assert (share.count("folder_unreachable"), share.count("folder_rebaselined")) == (3, 0)
    assert all((share.inbox / f"{name}.validated.json").exists() for name in names)


def test_a_share_that_flaps_faster_than_anybody_looks_changes_nothing(share: Share, disk: Disk) -> None:
    """Unmounted and mounted again ten times at once, in the end twice over itself, noticed or not."""
    disk.mount(share.ged)
    states = with_documents_on_their_way(share)
    for number in range(10):
        share.unmount()
        disk.mount(share.ged)
        (share.inbox / f"{number}.txt").write_text(str(number))
    share.mounts.mount(share.ged, "--bind", share.ged)  # over itself, as a script does that ran once too often
    share.wait_for_states(**states, **{f"{number}.txt": "queued" for number in range(10)})
    share.relay.listen_again()
    (share.inbox / "sub/cut.pdf").write_bytes(PDF)
    share.expect("validated.txt", "queued.txt", "cut.pdf", *(f"{number}.txt" for number in range(10)))
    assert share.count("folder_unreachable") == share.count("folder_recovered")
    assert (share.count("folder_rebaselined"), share.count("document_withdrawn")) == (0, 0)
    assert share.count("document_changed") == 0


def test_a_bind_mount_that_goes_and_returns_is_the_same_and_another_one_is_not(share: Share) -> None:
    """All on one file system, so that only the root's inode tells them apart."""
    require("mount", "umount")
    one, other = share.base / "one", share.base / "other"
    for directory in (one, other):
        directory.mkdir()
        put(directory, **{"Achats/existing.txt": directory.name, f"Achats/{directory.name}.txt": "existing"})
    share.mounts.mount(share.ged, "--bind", one)
    states = with_documents_on_their_way_in(share)
    share.unmount()
    share.wait_for("folder_unreachable")
    (one / "Achats/new.txt").write_text("new")
    remains(share.states, 2)
    share.mounts.mount(share.ged, "--bind", one)
    share.wait_for("folder_recovered")
    share.wait_for_states(**states, **{"new.txt": "queued"})
    share.relay.listen_again()
    share.expect("queued.txt", "new.txt")
    share.unmount()
    share.wait_for("folder_unreachable", 2)
    share.mounts.mount(share.ged, "--bind", other)
    share.wait_for("folder_rebaselined")
    share.until_in_force()
    (share.inbox / "later.txt").write_text("later")
    share.expect("queued.txt", "new.txt", "later.txt")


def with_documents_on_their_way_in(share: Share) -> dict[str, str]:
    share.start()
    share.relay_goes()
    (share.inbox / "queued.txt").write_text("queued")
    share.wait_for_states(**{"queued.txt": "queued"})
    return {"queued.txt": "queued"}


def test_a_parent_renamed_away_and_back_changes_nothing(share: Share, disk: Disk) -> None:
    """The path is gone, the file system is not: unreachable, recovered, and a file from meanwhile is a deposit."""
    parent = share.base / "firm"
    point = parent / "client"
    point.mkdir(parents=True)
    share.ged, share.inbox = point, point / "Achats"
    disk.mount(point)
    states = with_documents_on_their_way(share)
    away = parent.rename(share.base / "firm.old")
    share.wait_for("folder_unreachable")
    (away / "client/Achats/new.txt").write_text("new")
    (away / "client/Achats/sub/cut.pdf").write_bytes(PDF)
    share.relay.listen_again()
    remains(lambda: (share.states(), share.sent()), 3)
    assert share.states() == states
    assert not parent.exists()
    away.rename(parent)
    share.expect("validated.txt", "queued.txt", "cut.pdf", "new.txt")
    assert (share.count("folder_unreachable"), share.count("folder_recovered")) == (1, 1)
    assert (share.count("folder_rebaselined"), share.count("document_withdrawn")) == (0, 0)


# -- the mount comes after the start


@pytest.mark.parametrize("folders", [True, False], ids=["bare-with-folders", "bare-and-empty"])
def test_a_mount_that_appears_after_the_very_first_start_is_never_mailed_in_bulk(
    share: Share, disk: Disk, folders: bool
) -> None:
    """No journal, a bare directory, then the share: rebaselined, although its folders are new where there were none."""
    if not folders:
        shutil.rmtree(share.ged)
        share.ged.mkdir()
    share.start()
    disk.mount(share.ged)
    share.wait_for("folder_rebaselined")
    share.until_in_force()
    (share.inbox / "later.txt").write_text("later")
    (share.inbox / "sub/later too.txt").write_text("later, deep")
    share.expect("later.txt", "later too.txt")
    assert share.count("folder_rebaselined") == 1
    assert {row["document"] for row in share.rows() if "probe" not in row["document"]} == {
        "Achats/later.txt",
        "Achats/sub/later too.txt",
    }


@pytest.mark.parametrize("catch_up", [False, True], ids=["", "catch-up"])
def test_a_start_before_the_mount_waits_for_the_share_that_the_journal_knows(
    share: Share, disk: Disk, catch_up: bool
) -> None:
    """Queued and waiting documents wait, and none is withdrawn. Back again, they leave; missed files stay missed."""
    share.extra = f"catch_up: {str(catch_up).lower()}"
    bare = tree(share.ged)
    disk.mount(share.ged)
    states = with_documents_on_their_way(share)
    share.stop()
    share.unmount()
    disk.fill(**{"Achats/stopped.txt": "deposited while the daemon was stopped", "Achats/sub/cut.pdf": PDF.decode()})
    share.start()
    share.wait_for("folder_unreachable")
    share.relay.listen_again()
    remains(lambda: (share.states(), share.sent(), tree(share.ged)), 3)
    assert (share.states(), tree(share.ged)) == (states, bare)
    disk.mount(share.ged)
    share.wait_for("folder_recovered")
    later = ["stopped.txt"] if catch_up else []
    until(lambda: catch_up or share.count("document_missed"), "what came while the daemon was stopped is reported")
    (share.inbox / "later.txt").write_text("later")
    share.expect("validated.txt", "queued.txt", "cut.pdf", "later.txt", *later)
    assert (share.count("document_withdrawn"), share.count("folder_rebaselined")) == (0, 0)


# -- another file system at the same place


@pytest.mark.parametrize("loop", ["same", "other"])
def test_another_file_system_at_the_same_place_is_existing(
    share: Share, disk: Disk, loop: str, mounts: FuseMounts
) -> None:
    """Rebaselined; its content stays, later deposits leave. On the same loop device, even the root's inode agrees."""
    disk.mount(share.ged)
    share.start()
    (share.inbox / "first.txt").write_text("first")
    share.wait_for("document_validated")
    share.unmount()
    share.wait_for("folder_unreachable")
    other = disk if loop == "same" else mounts.disk()
    if loop == "same":
        disk.format()
    other.fill(**{"Achats/existing.txt": "another", "Achats/first.txt": "another", "Achats/x/many.txt": "many"})
    other.mount(share.ged)
    share.wait_for("folder_rebaselined")
    share.until_in_force()
    (share.inbox / "later.txt").write_text("later")
    (share.inbox / "x/later too.txt").write_text("later, deep")
    share.expect("first.txt", "later.txt", "later too.txt")
    assert share.count("folder_rebaselined") == 1
    assert {row["document"] for row in share.rows() if row["state"] == "missed"} == set()


@pytest.mark.parametrize("seldom", [False, True], ids=["", "between-two-polls"])
@POLLING
def test_a_queued_document_is_not_sent_with_the_bytes_of_another_file_system(
    share: Share, disk: Disk, mounts: FuseMounts, seldom: bool
) -> None:
    """The name is there too, and the sender meets it first: a poll may be far off when the relay comes back."""
    share.poll = SELDOM if seldom else share.poll
    other = mounts.disk()
    other.fill(**{"Achats/queued.txt": "of another file system", "Achats/sub/cut.pdf": PDF.decode()})
    disk.mount(share.ged)
    with_documents_on_their_way(share)
    share.unmount()
    other.mount(share.ged)
    share.relay.listen_again()
    share.wait_for("folder_rebaselined")
    remains(share.sent, 3)
    (share.inbox / "later.txt").write_text("later")
    share.expect("validated.txt", "later.txt")
    assert tree(share.inbox)["queued.txt"] == b"of another file system"
    assert "queued.txt.validated.json" not in tree(share.inbox)


def test_the_same_file_system_on_another_device_goes_on_with_queued_documents(share: Share, disk: Disk) -> None:
    """A disk under another name is another share by the contract. A queued document is the same file."""
    disk.mount(share.ged)
    with_documents_on_their_way(share)
    share.unmount()
    share.wait_for("folder_unreachable")
    before = disk.device
    disk.detach()
    share.mounts.disk()  # takes the device that has become free
    disk.attach()
    assert disk.device != before
    disk.mount(share.ged)
    share.wait_for("folder_rebaselined")
    share.relay.listen_again()
    share.until_in_force()
    (share.inbox / "sub/cut.pdf").write_bytes(PDF)
    share.expect("validated.txt", "queued.txt", "cut.pdf")


# -- the bare mount point


@PLAIN_AND_LAZY
def test_a_file_on_the_bare_mount_point_is_neither_sent_nor_marked(
    share: Share, disk: Disk, how: tuple[str, ...]
) -> None:
    """New names, and the very names of documents that are queued, waiting and validated; all wait for the share."""
    disk.mount(share.ged)
    states = with_documents_on_their_way(share)
    share.unmount(*how)
    share.wait_for("folder_unreachable")
    put(share.ged, **{f"Achats/{name}": "written on the bare mount point" for name in ("new.txt", *states)})
    put(share.ged, **{"Achats/sub/cut.pdf": PDF.decode() + "%bare\n%%EOF\n", "Notes/note.txt": "bare"})
    bare = tree(share.ged)
    share.relay.listen_again()
    remains(lambda: (share.states(), share.sent(), tree(share.ged)), 4)
    assert (share.states(), tree(share.ged)) == (states, bare)
    disk.mount(share.ged)
    share.wait_for("folder_recovered")
    (share.inbox / "sub/cut.pdf").write_bytes(PDF)
    share.expect("validated.txt", "queued.txt", "cut.pdf")
    arrived = dict(share.arrived())
    assert (arrived["queued.txt"], arrived["cut.pdf"]) == (b"queued", PDF)
    share.unmount()
    assert tree(share.ged) == bare


def test_files_on_the_bare_mount_point_at_a_start_are_not_sent_nor_missed(share: Share, disk: Disk) -> None:
    """Started over the bare directory, which holds a file of a queued name. The document waits for the share."""
    disk.mount(share.ged)
    states = with_documents_on_their_way(share)
    share.stop()
    share.unmount()
    put(share.ged, **{"Achats/queued.txt": "bare", "Achats/sub/cut.pdf": PDF.decode(), "Achats/new.txt": "bare"})
    bare = tree(share.ged)
    share.relay.listen_again()
    share.start()
    share.wait_for("folder_unreachable")
    remains(lambda: (share.states(), share.sent(), tree(share.ged)), 4)
    assert (share.states(), tree(share.ged)) == (states, bare)
    disk.mount(share.ged)
    (share.inbox / "sub/cut.pdf").write_bytes(PDF + b"%whole\n%%EOF\n")
    share.expect("validated.txt", "queued.txt", "cut.pdf")
    assert dict(share.arrived())["queued.txt"] == b"queued"
    assert share.count("document_missed") == 0


# -- markers that cannot be written


@pytest.mark.promise
@INOTIFY
def test_a_marker_on_a_share_gone_read_only_is_told_once_and_written_when_it_may(share: Share, disk: Disk) -> None:
    """`remount,ro`, as the kernel does after an error of the disk: one mail, with or without a marker."""
    disk.format()
    disk.fill()
    disk.mount(share.ged)
    sent_without_marker(share, lambda: disk.remount(share.ged, "ro"), "Read-only file system")
    disk.remount(share.ged, "rw")
    marker_at_last(share)


@INOTIFY
@pytest.mark.parametrize(("use_up", "options"), [(use_up_bytes, ()), (use_up_inodes, ("-N", "64"))])
def test_a_marker_on_a_share_that_is_full_is_told_once_and_written_when_it_fits(
    share: Share, mounts: FuseMounts, use_up, options
) -> None:
    """Out of blocks, or of inodes: one mail, no half marker, no temporary file left."""
    disk = mounts.disk(*options)
    disk.fill()
    disk.mount(share.ged)
    filler: list[Path] = []
    sent_without_marker(share, lambda: filler.extend(use_up(share.ged / "Brouillons")), "No space left on device")
    for name in filler:
        name.unlink()
    marker_at_last(share)


def sent_without_marker(share: Share, break_it, reason: str) -> None:
    """A document leaves while its marker cannot be written; that is an error, told once."""
    share.start()
    share.relay_goes()
    (share.inbox / "a.txt").write_text("a")
    share.wait_for("document_queued")
    break_it()
    share.relay.listen_again()
    (line,) = share.wait_for("marker_failed")
    assert line["level"] == "error"
    assert line["path"] == str(share.inbox / "a.txt")
    assert reason in line["reason"]
    remains(lambda: (share.count("marker_failed"), share.sent(), share.states(), tree(share.inbox)), 3)
    assert share.states() == {"a.txt": "sent"}
    assert tree(share.inbox) == {"a.txt": b"a"}


def marker_at_last(share: Share) -> None:
    """Within a sweep, whole, and without another mail."""
    share.wait_for("document_validated")
    marker = json.loads((share.inbox / "a.txt.validated.json").read_text())
    assert (marker["status"], marker["sha256"]) == ("validated", sha256(b"a"))
    assert set(tree(share.inbox)) == {"a.txt", "a.txt.validated.json"}
    share.expect("a.txt")
    assert share.count("marker_failed") == 1


@AUTO
def test_on_an_sshfs_share_of_a_plain_server_markers_are_written_and_follow(share: Share) -> None:
    """Neither links nor renames over a file are there. A marker half written by a crash is ended."""
    server = on_fuse(share, "sshfs-plain")
    share.start()
    share.relay_goes()
    (server / "Achats/begun.txt").write_text("begun")
    share.wait_for("document_queued")
    (server / "Achats/begun.txt.validated.json").write_text('{\n  "status": "validated",\n  "docu')
    (server / "Achats/foreign.txt").write_text("foreign")
    (server / "Achats/foreign.txt.validated.json").write_text("of another")
    share.relay.listen_again()
    share.expect("begun.txt", "foreign.txt")
    share.wait_for("document_validated", 2)
    for name, marker in (("begun", "begun.txt.validated.json"), ("foreign", "foreign.txt.validated-2.json")):
        assert json.loads((server / "Achats" / marker).read_text())["sha256"] == sha256(name.encode())
    assert (server / "Achats/foreign.txt.validated.json").read_text() == "of another"
    (server / "Achats/begun.txt").rename(server / "Notes/filed.txt")
    until((server / "Notes/filed.txt.validated.json").exists, "the marker moves along")
    until(lambda: not (server / "Achats/begun.txt.validated.json").exists(), "and leaves its old name")
    assert not [name for name in tree(server) if name.endswith(".tmp")]
    assert [line["level"] for line in share.lines("marker_failed")] == ["warning"]  # for the file of another


# -- where inotify is blind


@pytest.mark.promise("bindfs-auto")
@AUTO
@pytest.mark.parametrize("kind", ["bindfs", "sshfs"])
def test_a_fuse_share_is_polled_without_being_told_to(share: Share, kind: str) -> None:
    """This kernel is not told of writes on the server. Polling is chosen by itself, and finds them."""
    server = on_fuse(share, kind)
    share.start()
    for command in ("status", "check"):
        found = [json.loads(line) for line in share.run(command, "--json").stdout.splitlines()]
        assert {row["watch_mode"] for row in found if "watch_mode" in row} == {"polling"}, command
    put(server, **{"Achats/new.txt": "new", "Achats/a/b/deep.txt": "deep"})
    share.expect("new.txt", "deep.txt")
    for name in ("new.txt", "a/b/deep.txt"):
        marker = json.loads((server / f"Achats/{name}.validated.json").read_text())
        assert marker["sha256"] == sha256((server / "Achats" / name).read_bytes())
    assert not [name for name in tree(server) if name.endswith(".tmp")]


@AUTO
@pytest.mark.parametrize("kind", ["bindfs", "sshfs"])
def test_renames_and_deletions_on_a_fuse_server_are_followed_within_a_poll(share: Share, kind: str) -> None:
    """Renamed: existing stays, queued leaves under the new name, validated not again. Deleted: withdrawn, then new."""
    server = on_fuse(share, kind)
    share.start()
    (server / "Achats/validated.txt").write_text("validated")
    share.wait_for("document_validated")
    share.relay_goes()
    for name in ("queued.txt", "deleted.txt"):
        (server / "Achats" / name).write_text(name)
    share.wait_for("document_queued", 3)
    (server / "Achats/existing.txt").rename(server / "Notes/existing moved.txt")
    (server / "Achats/validated.txt").rename(server / "Notes/validated moved.txt")
    (server / "Achats/queued.txt").rename(server / "Achats/queued moved.txt")
    (server / "Achats/deleted.txt").unlink()
    (line,) = share.wait_for("document_withdrawn")
    assert line["document"] == "Achats/deleted.txt"
    (server / "Achats/deleted.txt").write_text("deposited anew")
    share.relay.listen_again()
    share.expect("validated.txt", "queued moved.txt", "deleted.txt")
    assert dict(share.arrived())["deleted.txt"] == b"deposited anew"
    until((server / "Notes/validated moved.txt.validated.json").exists, "the marker moves along")
    assert not (server / "Achats/validated.txt.validated.json").exists()


@AUTO
@pytest.mark.parametrize("kind", ["bindfs", "sshfs"])
def test_a_fuse_share_whose_process_dies_is_unreachable_until_it_is_mounted_again(share: Share, kind: str) -> None:
    """`Transport endpoint is not connected`: nothing is concluded; new inode numbers for all are no saves."""
    server = on_fuse(share, kind)
    share.start()
    (server / "Achats/validated.txt").write_text("validated")
    share.wait_for("document_validated")
    share.relay_goes()
    (server / "Achats/queued.txt").write_text("queued")
    share.wait_for("document_queued", 2)
    share.fuse.kill()
    share.fuse.wait(10)
    with pytest.raises(OSError, match="not connected"):
        os.listdir(share.ged)
    share.wait_for("folder_unreachable")
    share.relay.listen_again()
    put(server, **{"Achats/0 first.txt": "new", "Notes/note.txt": "note"})
    remains(lambda: (share.states(), share.sent()), 3)
    share.unmount()
    remains(lambda: (share.states(), share.sent()), 1)
    share.mounts.fuse(kind, server, share.ged)
    share.wait_for("folder_recovered")
    share.expect("validated.txt", "queued.txt", "0 first.txt", "note.txt")
    assert (share.count("folder_unreachable"), share.count("folder_rebaselined")) == (1, 0)
    assert (share.count("document_withdrawn"), share.count("document_changed")) == (0, 0)


def on_fuse(share: Share, kind: str) -> Path:
    """The GED is a FUSE mount of the directory that is returned: write there as other machines do."""
    server = share.base / "server"
    server.mkdir()
    put(server, **{"Achats/existing.txt": "existing"})
    share.sweep = "1h"  # only polling may find anything
    share.fuse = share.mounts.fuse(kind, server, share.ged)
    return server


@AUTO
def test_a_document_on_a_server_that_refuses_every_lease_leaves_without_a_warning(share: Share) -> None:
    """EAGAIN for every file is no proof of a writer: size and time over a poll decide."""
    server = on_fuse(share, "bindfs")
    launch(share, (), ["leases_are_refused"])
    share.wait_for("daemon_ready")
    (server / "Achats/facture.txt").write_text("facture")
    share.expect("facture.txt")
    assert {line["level"] for line in share.lines("document_queued")} == {"info"}


@AUTO
@pytest.mark.parametrize("kind", ["bindfs", "sshfs"])
def test_a_file_that_a_server_writes_with_pauses_longer_than_quiet_leaves_whole(share: Share, kind: str) -> None:
    """Nobody tells of a writer on the server. Between two equal looks lies a whole `poll`."""
    share.poll = "4s"
    server = on_fuse(share, kind)
    share.start()
    with (server / "Achats/slow.txt").open("w") as writer:
        for piece in range(8):
            writer.write(f"piece {piece}\n")
            writer.flush()
            time.sleep(1.5)  # quiet is 250 ms
    share.expect("slow.txt")
    assert dict(share.arrived())["slow.txt"].count(b"piece") == 8


# -- disks that fail


@INOTIFY
@pytest.mark.parametrize("size", [100, 3_000_000], ids=["small", "large"])
def test_a_document_that_its_disk_fails_to_read_is_told_once_and_sent_when_it_can_be_read(
    share: Share, size: int
) -> None:
    """By the look of intake and by the sender, which streams a large document. Others go on meanwhile."""
    trouble = share.inbox / ".eio"
    launch(share, (), ["a_disk_fails"])
    share.wait_for("daemon_ready")
    trouble.touch()
    (share.inbox / "bad while it waits.txt").write_bytes(b"w" * size)
    share.wait_for("document_deferred")
    trouble.unlink()
    share.wait_for_states(**{"bad while it waits.txt": "validated"})
    share.relay_goes()
    (share.inbox / "bad in the queue.txt").write_bytes(b"q" * size)
    share.wait_for_states(**{"bad in the queue.txt": "queued"})
    trouble.touch()
    share.relay.listen_again()
    share.wait_for("document_deferred", 2)
    (share.inbox / "good.txt").write_text("good")
    share.wait_for_states(**{"good.txt": "validated"})
    time.sleep(2)
    assert [line["document"] for line in share.lines("document_deferred")] == [
        "Achats/bad while it waits.txt",
        "Achats/bad in the queue.txt",
    ]
    trouble.unlink()
    share.expect("bad while it waits.txt", "bad in the queue.txt", "good.txt")


# -- permissions


@pytest.fixture
def ordinary(request: pytest.FixtureRequest, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch) -> Iterator[Share]:
    """A share whose daemon and commands run as an ordinary user; pytest's own directories are closed to that one."""
    require("setpriv")
    with tempfile.TemporaryDirectory(prefix="share-") as name:
        base = Path(name)
        script = base / "as-nobody"
        from tests.support.bridge import COMMAND

        script.write_text(f'#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups {COMMAND} "$@"\n')
        script.chmod(0o755)
        base.chmod(0o755)
        monkeypatch.setattr("tests.support.bridge.COMMAND", str(script))
        share = Share(base, relay, request.param, FuseMounts(base))
        (base / "state").mkdir(mode=0o700)
        (share.inbox / "sub").mkdir()
        for directory in (base / "state", share.ged, share.inbox, share.inbox / "sub", share.ged / "Notes"):
            os.chown(directory, 65534, 65534)
        share.config.write_text(share.text())
        tried = share.run("check")
        if tried.returncode != 0:
            pytest.skip(f"an ordinary user cannot run the command of this virtual environment: {tried.stderr[-200:]}")
        yield share
        if share.process is not None and share.process.poll() is None:
            share.stop()


@pytest.mark.parametrize("ordinary", ["inotify", "polling"], indirect=True)
def test_permissions_taken_from_the_ged_and_given_back_withdraw_nothing(ordinary: Share) -> None:
    """Closed by its owner for a while: unreachable, recovered, and a file from meanwhile is a deposit."""
    share = ordinary
    (share.inbox / "existing.txt").write_text("existing")
    states = with_documents_on_their_way(share)
    os.chown(share.ged, 0, 0)
    share.ged.chmod(0o700)
    share.wait_for("folder_unreachable")
    share.relay.listen_again()
    (share.inbox / "new.txt").write_text("new")
    (share.inbox / "sub/cut.pdf").write_bytes(PDF)
    remains(lambda: (share.states(), share.sent()), 3)
    assert share.states() == states
    share.ged.chmod(0o755)
    share.expect("validated.txt", "queued.txt", "cut.pdf", "new.txt")
    assert (share.count("folder_unreachable"), share.count("folder_recovered")) == (1, 1)
    assert (share.count("folder_rebaselined"), share.count("document_withdrawn")) == (0, 0)
    assert (share.inbox / "new.txt.validated.json").exists()


@pytest.mark.parametrize("ordinary", ["inotify", "polling"], indirect=True)
def test_permissions_taken_from_one_folder_and_given_back_withdraw_nothing(ordinary: Share) -> None:
    """A switched folder and a directory in it closed, the GED open: nothing is concluded of their content."""
    share = ordinary
    (share.inbox / "sub/existing.txt").write_text("existing")
    states = with_documents_on_their_way(share)
    for directory in (share.inbox / "sub", share.inbox):
        os.chown(directory, 0, 0)
        directory.chmod(0o700)
    share.wait_for("folder_unreachable")
    share.relay.listen_again()
    (share.inbox / "new.txt").write_text("new")
    (share.inbox / "sub/cut.pdf").write_bytes(PDF)
    remains(lambda: (share.states(), share.sent()), 4)
    assert share.states() == states
    for directory in (share.inbox, share.inbox / "sub"):
        os.chown(directory, 65534, 65534)
    share.expect("validated.txt", "queued.txt", "cut.pdf", "new.txt")
    assert share.count("document_withdrawn") == 0


# -- in the middle of a sending


@INOTIFY
@pytest.mark.parametrize("returns", [True, False], ids=["cut-while-away", "goes-on-while-away"])
def test_a_share_that_goes_in_the_middle_of_an_upload_ends_it_once_and_whole(
    share: Share, disk: Disk, returns: bool
) -> None:
    """Half of it is at the relay when the share is pulled. An open file can still be read; a cut mail is repeated."""
    content = os.urandom(6 << 20)
    disk.mount(share.ged)
    share.relay.script("UPLOAD", Stall(after=100_000) if returns else Late())
    share.start()
    with disk.elsewhere() as root:
        (root / "Achats/incoming.tmp").write_bytes(content)
        (root / "Achats/incoming.tmp").rename(root / "Achats/large.bin")
    until(lambda: share.relay.stalled, "the upload is under way")
    share.unmount("--lazy")
    share.wait_for("folder_unreachable")
    assert share.states() == {"large.bin": "sending"}
    bare = tree(share.ged)
    share.relay.go_on()
    until(lambda: share.states() != {"large.bin": "sending"}, "the sending has ended")
    remains(lambda: (share.states(), share.sent(), tree(share.ged)), 3)
    assert tree(share.ged) == bare
    disk.mount(share.ged)
    share.expect("large.bin")
    assert dict(share.arrived())["large.bin"] == content
    until((share.inbox / "large.bin.validated.json").exists, "its marker")


@INOTIFY
@pytest.mark.parametrize("same_name", [False, True], ids=["", "bare-has-the-name"])
def test_a_marker_owed_when_the_share_goes_is_written_when_it_returns(
    share: Share, disk: Disk, same_name: bool
) -> None:
    """Accepted by the relay while the share is away: one mail, `sent` until then, nothing on the bare mount point."""
    disk.mount(share.ged)
    share.relay.script("DOT", Late())
    share.start()
    (share.inbox / "a.txt").write_text("a")
    until(lambda: share.relay.stalled, "the relay has the whole mail")
    share.unmount("--lazy")  # the sender still has the document open
    share.wait_for("folder_unreachable")
    if same_name:
        put(share.ged, **{"Achats/a.txt": "bare"})
    bare = tree(share.ged)
    share.relay.go_on()
    share.wait_for("document_sent")
    remains(lambda: (share.states(), tree(share.ged)), 3)
    assert (share.states(), tree(share.ged)) == ({"a.txt": "sent"}, bare)
    disk.mount(share.ged)
    share.wait_for("document_validated")
    assert json.loads((share.inbox / "a.txt.validated.json").read_text())["sha256"] == sha256(b"a")
    share.expect("a.txt")


# -- a share inside the GED


@PLAIN_AND_LAZY
def test_a_share_mounted_inside_the_ged_goes_and_returns_like_a_whole_one(
    share: Share, disk: Disk, how: tuple[str, ...]
) -> None:
    """One switched folder is a mount of its own: the others go on, and it is never mailed in bulk at its return."""
    inner = on_inner_share(share, disk)
    states = with_documents_on_their_way(share)
    share.mounts.unmount(inner, *how)
    share.wait_for("folder_unreachable")
    bare = tree(inner)
    with disk.elsewhere() as root:
        (root / "new.txt").write_text("new")
        (root / "sub/cut.pdf").write_bytes(PDF)
    share.relay.listen_again()
    (share.ged / "Notes/note.txt").write_text("the others go on")
    share.wait_for_states(**{"note.txt": "validated"})  # the other folder goes on
    remains(lambda: (share.states(), share.sent(), tree(inner)), 4)
    assert ({k: v for k, v in share.states().items() if k != "note.txt"}, tree(inner)) == (states, bare)
    disk.mount(inner)
    share.expect("validated.txt", "queued.txt", "cut.pdf", "new.txt", "note.txt")
    assert share.count("document_withdrawn") == 0


@pytest.mark.parametrize("catch_up", [False, True], ids=["", "catch-up"])
def test_a_start_before_the_inner_mount_withdraws_nothing_and_mails_nothing_in_bulk(
    share: Share, disk: Disk, catch_up: bool
) -> None:
    """The journal knows the files of a folder that is bare now: its documents wait, its existing files stay known."""
    share.extra = f"catch_up: {str(catch_up).lower()}"
    inner = on_inner_share(share, disk)
    states = with_documents_on_their_way(share)
    share.stop()
    share.mounts.unmount(inner)
    share.start()
    share.relay.listen_again()
    remains(lambda: (share.states(), share.sent()), 4)
    assert share.states() == states
    disk.mount(inner)
    (inner / "sub/cut.pdf").write_bytes(PDF)
    (inner / "later.txt").write_text("later")
    share.expect("validated.txt", "queued.txt", "cut.pdf", "later.txt")


@pytest.mark.promise("Achats-inotify")
@pytest.mark.parametrize("share", ["inotify"], indirect=True)
@pytest.mark.parametrize("bound", [".", "Achats"])
def test_two_geds_that_are_one_directory_by_a_bind_mount_are_refused(share: Share, bound: str) -> None:
    """By `check`, at the start and by a reload, with both names. Otherwise each document would go to both."""
    require("mount", "umount")
    share.inbox.mkdir(parents=True, exist_ok=True)
    second = share.base / "second"
    second.mkdir()
    share.mounts.mount(second, "--bind", share.ged / bound)
    share.start()
    share.more_clients = (
        f"  - {{name: Dupont, ged: {second}, collection_email: dupont@collecte.example, switched_folders: [.]}}\n"
    )
    share.config.write_text(share.text())
    for command in ("check", "reload", "run"):
        refused = share.run(command)
        assert refused.returncode == 78, refused.stderr
        assert "By a mount, the GEDs of 'Dupont' and 'Martin'" in refused.stderr
        assert "Unmount it" in refused.stderr
    share.wait_for("config_rejected")
    (share.inbox / "a.txt").write_text("a")
    share.expect("a.txt")
    share.mounts.unmount(second)
    assert share.run("check").returncode == 0


def on_inner_share(share: Share, disk: Disk) -> Path:
    """`Achats` is a mount of its own in a GED on the root file system."""
    with disk.elsewhere() as root:
        put(root, **{"existing.txt": "existing", "sub/deep.txt": "existing, deep"})
    disk.mount(share.inbox)
    return share.inbox


def test_a_bind_mount_inside_the_ged_is_a_share_like_any_other(share: Share) -> None:
    """Of the same file system: nothing but the mount table tells it from a directory."""
    require("mount", "umount")
    source = share.base / "source"
    (source / "sub").mkdir(parents=True)
    (source / "existing.txt").write_text("existing")
    share.mounts.mount(share.inbox, "--bind", source)
    states = with_documents_on_their_way(share)
    share.mounts.unmount(share.inbox)
    share.wait_for("folder_unreachable")
    (source / "new.txt").write_text("new")
    (source / "sub/cut.pdf").write_bytes(PDF)
    share.relay.listen_again()
    remains(lambda: (share.states(), share.sent()), 4)
    assert share.states() == states
    share.mounts.mount(share.inbox, "--bind", source)
    share.expect("validated.txt", "queued.txt", "cut.pdf", "new.txt")
    assert share.count("document_withdrawn") == 0
