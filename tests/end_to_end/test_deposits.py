"""The truth table of deposits, row by row, through the installed command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import zipfile

import pytest

from tests.support.bridge import Bridge, sha256, until
from tests.support.packages import needs

PDF = b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n"


@pytest.mark.promise("polling")
def test_an_existing_file_is_never_sent_and_a_deposit_is(bridge: Bridge) -> None:
    """Existing stays; a new file is sent once, whole, and gets its marker."""
    (bridge.inbox / "old.pdf").write_bytes(PDF)
    bridge.start()
    (bridge.inbox / "new.pdf").write_bytes(PDF + b"new")
    bridge.expect("new.pdf")
    assert dict(bridge.arrived())["new.pdf"] == PDF + b"new"
    marker = json.loads((bridge.inbox / "new.pdf.validated.json").read_text())
    assert marker["sha256"] == sha256(PDF + b"new")
    assert marker["status"] == "validated"
    assert marker["collection_email"] == "Martin@collecte.example"
    assert not (bridge.inbox / "old.pdf.validated.json").exists()


@pytest.mark.promise("inotify")
def test_every_way_to_deposit_sends_once(bridge: Bridge) -> None:
    """Each document once by cp, cp -r, mv, mv of a directory, hard link, tar and mkdir -p."""
    out = bridge.outside
    (out / "tree/a/b").mkdir(parents=True)
    for name in ("cp.txt", "mv.txt", "tree/in-tree.txt", "tree/a/b/deep.txt", "tar.txt"):
        (out / name).write_text(name)
    shutil.copytree(out / "tree", out / "moved")
    (out / "moved/in-tree.txt").rename(out / "moved/in-moved.txt")
    (out / "moved/a/b/deep.txt").rename(out / "moved/a/b/deep-moved.txt")
    (out / "link.txt").write_text("link")
    subprocess.run(["tar", "cf", "t.tar", "tar.txt"], cwd=out, check=True)
    bridge.start()
    inbox = str(bridge.inbox)
    subprocess.run(["cp", out / "cp.txt", inbox], check=True)
    subprocess.run(["cp", "-r", out / "tree", inbox], check=True)
    subprocess.run(["mv", out / "mv.txt", inbox], check=True)
    subprocess.run(["mv", out / "moved", inbox], check=True)
    os.link(out / "link.txt", bridge.inbox / "link.txt")
    subprocess.run(["tar", "xf", out / "t.tar", "-C", inbox], check=True)
    (bridge.inbox / "x/y/z").mkdir(parents=True)
    (bridge.inbox / "x/y/z/at-once.txt").write_text("at once")
    bridge.expect(
        "cp.txt", "in-tree.txt", "deep.txt", "mv.txt", "in-moved.txt", "deep-moved.txt", "link.txt", "tar.txt",
        "at-once.txt",
    )  # fmt: skip


@needs("rsync", "unzip")
def test_rsync_and_unzip_deposit_each_document_once(bridge: Bridge) -> None:
    """rsync writes under a hidden name first, unzip sets an old time at the end."""
    (bridge.outside / "rsync.txt").write_text("rsync")
    with zipfile.ZipFile(bridge.outside / "z.zip", "w") as archive:
        archive.writestr("dir/zipped.txt", "zipped")
    bridge.start()
    subprocess.run(["rsync", "-a", bridge.outside / "rsync.txt", bridge.inbox], check=True)
    subprocess.run(["unzip", "-q", bridge.outside / "z.zip", "-d", bridge.inbox], check=True)
    bridge.expect("rsync.txt", "zipped.txt")


def test_a_temporary_name_is_sent_under_its_final_one(bridge: Bridge) -> None:
    """Uploads that rename at the end are sent once, under the final name."""
    bridge.start()
    for name, temporary in (("a.pdf", "a.pdf.part"), ("b.pdf", "b.pdf.crdownload"), ("c.pdf", ".c.pdf.x8Kq")):
        (bridge.inbox / temporary).write_bytes(PDF)
        (bridge.inbox / temporary).rename(bridge.inbox / name)
    bridge.expect("a.pdf", "b.pdf", "c.pdf")


def test_a_document_that_is_cut_off_or_empty_waits(bridge: Bridge) -> None:
    """Neither is mailed until it is whole; then once."""
    bridge.start()
    (bridge.inbox / "cut.pdf").write_bytes(PDF[:20])
    (bridge.inbox / "empty.txt").touch()
    (bridge.inbox / "other.txt").write_text("other")
    until(lambda: bridge.sent()["other.txt"], "the other document")
    assert set(bridge.sent()) == {"other.txt"}
    (bridge.inbox / "cut.pdf").write_bytes(PDF)
    (bridge.inbox / "empty.txt").write_text("no more")
    bridge.expect("other.txt", "cut.pdf", "empty.txt")
    assert dict(bridge.arrived())["cut.pdf"] == PDF


@pytest.mark.promise("inotify")
def test_a_document_somebody_still_writes_is_waited_for(bridge: Bridge) -> None:
    """The document looks finished, but it is open for writing. Its final bytes are sent."""
    bridge.start()
    with (bridge.inbox / "slow.txt").open("wb", buffering=0) as slow:
        slow.write(b"first page")
        (bridge.inbox / "other.txt").write_text("other")
        until(lambda: bridge.sent()["other.txt"], "the other document")
        assert bridge.sent()["slow.txt"] == 0
        slow.write(b", second page")
    bridge.expect("other.txt", "slow.txt")
    assert dict(bridge.arrived())["slow.txt"] == b"first page, second page"


@pytest.mark.promise("inotify")
def test_renames_are_followed(bridge: Bridge) -> None:
    """Existing stays existing, validated is not sent again and its marker moves along; so with a parent directory."""
    (bridge.inbox / "old.pdf").write_bytes(PDF)
    (bridge.inbox / "dir").mkdir()
    (bridge.inbox / "dir/old-in-dir.pdf").write_bytes(PDF + b"2")
    bridge.start()
    (bridge.inbox / "new.pdf").write_bytes(PDF + b"new")
    bridge.wait_for("document_validated")
    (bridge.inbox / "old.pdf").rename(bridge.ged / "Notes/old.pdf")
    (bridge.inbox / "new.pdf").rename(bridge.inbox / "renamed.pdf")
    (bridge.inbox / "dir").rename(bridge.ged / "Notes/other")
    marker = bridge.inbox / "renamed.pdf.validated.json"
    until(marker.exists, "the marker follows")
    until(lambda: not (bridge.inbox / "new.pdf.validated.json").exists(), "and leaves its old name")
    bridge.expect("new.pdf")


def test_a_queued_document_is_sent_under_its_new_name(bridge: Bridge) -> None:
    """The relay is down, the document is renamed, the relay comes back."""
    bridge.start()
    bridge.relay.stop_listening()
    (bridge.inbox / "first.pdf").write_bytes(PDF)
    bridge.wait_for("document_queued")
    bridge.wait_for("relay_unreachable")
    (bridge.inbox / "first.pdf").rename(bridge.ged / "Notes/second.pdf")
    bridge.relay.listen_again()
    bridge.wait_for("relay_recovered")
    bridge.expect("second.pdf")
    assert bridge.count("relay_unreachable") == 1


def test_a_document_deleted_or_moved_out_before_it_left_is_withdrawn(bridge: Bridge) -> None:
    """One warning each; nothing is sent."""
    bridge.start()
    bridge.relay.stop_listening()
    for name in ("deleted.pdf", "moved-out.pdf"):
        (bridge.inbox / name).write_bytes(PDF + name.encode())
    bridge.wait_for("document_queued", 2)
    (bridge.inbox / "deleted.pdf").unlink()
    (bridge.inbox / "moved-out.pdf").rename(bridge.outside / "moved-out.pdf")
    bridge.wait_for("document_withdrawn", 2)
    bridge.relay.listen_again()
    bridge.expect()


def test_overwriting_is_not_depositing(bridge: Bridge) -> None:
    """In place, by a rename over, and as vim and Word save: one warning each, no mail."""
    for name in ("in-place.txt", "over.txt", "vim.txt"):
        (bridge.inbox / name).write_text(name)
    bridge.start()
    (bridge.inbox / "in-place.txt").write_text("overwritten in place")
    (bridge.inbox / ".over.tmp").write_text("renamed over it")
    (bridge.inbox / ".over.tmp").rename(bridge.inbox / "over.txt")
    (bridge.inbox / "vim.txt").rename(bridge.inbox / "vim.txt~")
    (bridge.inbox / "vim.txt").write_text("saved by an editor")
    (bridge.inbox / "vim.txt~").unlink()
    changed = bridge.wait_for("document_changed", 3)
    bridge.expect()
    assert sorted(line["document"] for line in bridge.lines("document_changed")) == [
        "Achats/in-place.txt", "Achats/over.txt", "Achats/vim.txt",
    ], changed  # fmt: skip


def test_on_overwrite_send_makes_it_a_deposit(bridge: Bridge) -> None:
    """The firm asked for it: the new bytes of an existing file are sent."""
    (bridge.inbox / "old.txt").write_text("old")
    bridge.extra = "on_overwrite: send"
    bridge.start()
    (bridge.inbox / "old.txt").write_text("new bytes")
    bridge.expect("old.txt")
    assert dict(bridge.arrived())["old.txt"] == b"new bytes"


def test_a_file_created_anew_at_a_deleted_path_is_sent(bridge: Bridge) -> None:
    """`scan.txt` today is not `scan.txt` of yesterday."""
    (bridge.inbox / "scan.txt").write_text("yesterday")
    bridge.start()
    (bridge.inbox / "scan.txt").unlink()
    bridge.settle()
    (bridge.inbox / "scan.txt").write_text("today")
    bridge.expect("scan.txt")


def test_a_move_into_another_clients_folder_is_a_deposit_there(bridge: Bridge) -> None:
    """It goes to the other client's address, and only there."""
    other = bridge.base / "ged2/In"
    other.mkdir(parents=True)
    bridge.more_clients = (
        f"  - {{name: Durand, ged: {bridge.base}/ged2, collection_email: d@collecte.example, switched_folders: [In]}}\n"
    )
    (bridge.inbox / "old.txt").write_text("old")
    bridge.start()
    (bridge.inbox / "old.txt").rename(other / "old.txt")
    bridge.expect("old.txt")
    mail = next(m for m in bridge.relay.mails if b"old.txt" in m.data)
    assert b"\r\nTo: d@collecte.example\r\n" in mail.data


def test_links_and_special_files_are_warned_of_once_and_never_opened(bridge: Bridge) -> None:
    """A link, a FIFO and a socket: three warnings, no mail, no hang."""
    bridge.start()
    (bridge.inbox / "link.pdf").symlink_to("/etc/passwd")
    (bridge.inbox / "linked-directory").symlink_to("/etc")
    os.mkfifo(bridge.inbox / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(bridge.inbox, os.O_PATH)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
        bridge.wait_for("document_ignored", 4)
        bridge.expect()
    assert bridge.count("document_ignored") == 4


def test_ignored_names_are_ignored_and_no_others(bridge: Bridge) -> None:
    """Hidden, temporary and system names never leave; names that only resemble them do."""
    bridge.start()
    for name in (
        ".x",
        "~$x.docx",
        ".~lock.x#",
        "a.tmp",
        "a.part",
        "Thumbs.db",
        "desktop.ini",
        "._x",
        "x:Zone.Identifier",
        *("a.bak", "a.orig", "a.pdf_original", "a.txt_exiftool_tmp", "a.txt:stream", "a.txt\uf03astream"),
        *("sync.ffs_db", "a.txt.ffs_tmp", "a.txt.nextcloud", ":2eDS_Store", "a.txt@SynoEAStream"),
    ):
        (bridge.inbox / name).write_text("no")
    for name in ("@eaDir", "#recycle", ".Trash-1000", "System Volume Information", ":2eAppleDouble", "a.ffs_tmp"):
        (bridge.inbox / name).mkdir()
        (bridge.inbox / name / "inside.txt").write_text("no")
    documents = ("notes~$2.txt", "template.tmp.txt", "Facture 12:30.txt", "backup.txt", "original.txt")
    for name in documents:
        (bridge.inbox / name).write_text("yes")
    bridge.expect(*documents)


@pytest.mark.promise("inotify")
def test_markers_and_their_copies_are_never_sent(bridge: Bridge) -> None:
    """Copied, renamed or moved: a marker is not a document."""
    bridge.start()
    (bridge.inbox / "a.txt").write_text("a")
    bridge.wait_for("document_validated")
    marker = bridge.inbox / "a.txt.validated.json"
    shutil.copy(marker, bridge.inbox / "a.txt.validated (1).json")
    shutil.copy(marker, bridge.inbox / "Copie de a.txt.validated.json")
    shutil.copy(marker, bridge.inbox / "renamed.json")
    bridge.expect("a.txt")


def test_a_file_deposited_while_the_daemon_is_stopped_is_missed(bridge: Bridge) -> None:
    """Reported once per folder, listed, not sent; `bridged send` sends it on purpose."""
    bridge.start()
    bridge.stop()
    (bridge.inbox / "missed.txt").write_text("missed")
    (bridge.inbox / "missed2.txt").write_text("missed too")
    bridge.start()
    bridge.settle()
    lines = bridge.lines("document_missed")
    assert [line["count"] for line in lines] == [2]
    listed = bridge.run("documents", "--state", "missed", "--json").stdout.splitlines()
    assert {json.loads(line)["document"] for line in listed} == {"Achats/missed.txt", "Achats/missed2.txt"}
    assert bridge.run("send", bridge.inbox / "missed.txt").returncode == 0
    bridge.expect("missed.txt")


def test_catch_up_sends_a_file_deposited_while_the_daemon_is_stopped(bridge: Bridge) -> None:
    """Files that existed before the first start are still not sent."""
    (bridge.inbox / "old.txt").write_text("old")
    bridge.extra = "catch_up: true"
    bridge.start()
    bridge.stop()
    (bridge.inbox / "meanwhile.txt").write_text("meanwhile")
    bridge.start()
    bridge.expect("meanwhile.txt")


def test_a_kill_loses_nothing_and_sends_nothing_twice(bridge: Bridge) -> None:
    """Queued while the relay is down, killed, restarted: each once, with the Message-ID it had."""
    bridge.start()
    bridge.relay.stop_listening()
    for i in range(5):
        (bridge.inbox / f"{i}.txt").write_text(str(i))
    bridge.wait_for("document_queued", 5)
    before = {json.loads(line)["message_id"] for line in bridge.run("documents", "--json").stdout.splitlines()}
    bridge.stop(signal.SIGKILL)
    bridge.relay.listen_again()
    bridge.start()
    bridge.expect(*(f"{i}.txt" for i in range(5)))
    for message_id in before:
        assert sum(message_id.encode() in mail.data for mail in bridge.relay.mails) == 1


def test_folders_that_appear_later_are_switched_on_by_their_pattern(bridge: Bridge) -> None:
    """Next year's folder and one that did not exist yet: their content is new. Excluded sub-folders stay off."""
    bridge.folders = (
        "[Achats, 'Exercice */Achats', Plus tard,"
        " {path: Frais, collection_email: frais@collecte.example, exclude: [Brouillons]}]"
    )
    bridge.start()
    (bridge.ged / "Exercice 2027/Achats/11").mkdir(parents=True)
    (bridge.ged / "Exercice 2027/Achats/11/next.txt").write_text("next year")
    (bridge.ged / "Exercice 2027/Ventes").mkdir()
    (bridge.ged / "Exercice 2027/Ventes/no.txt").write_text("not switched")
    (bridge.ged / "Plus tard").mkdir()
    (bridge.ged / "Plus tard/later.txt").write_text("later")
    (bridge.ged / "Frais/Brouillons").mkdir(parents=True)
    (bridge.ged / "Frais/Brouillons/draft.txt").write_text("draft")
    (bridge.ged / "Frais/own.txt").write_text("own address")
    bridge.expect("next.txt", "later.txt", "own.txt")
    mail = next(m for m in bridge.relay.mails if b"own.txt" in m.data)
    assert b"\r\nTo: frais@collecte.example\r\n" in mail.data


@pytest.mark.promise("inotify")
def test_a_star_switches_on_no_directory_of_a_system_and_a_full_name_does(bridge: Bridge) -> None:
    """A recycle bin, a snapshot and the like hold deleted and old files, at every level and also when made later."""
    systems = ("#recycle", "@eaDir", ".snapshot", ".Trash-1000", "$RECYCLE.BIN", ".git")
    bridge.folders = "[Achats, '*/Achats', '*/*/Scans', .scans/Achats]"
    (bridge.ged / "#recycle/Achats").mkdir(parents=True)
    (bridge.ged / "Site").mkdir()
    bridge.start()
    for name in systems:
        for directory in (bridge.ged / name / "Achats", bridge.ged / "Site" / name / "Scans"):
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "deleted.txt").write_text("deleted")
    for directory in (bridge.ged / "Site/Achats", bridge.ged / ".scans/Achats"):
        directory.mkdir(parents=True)
        (directory / f"{directory.parent.name}.txt".lstrip(".")).write_text("a deposit")
    bridge.expect("Site.txt", "scans.txt")


@pytest.mark.promise("inotify")
def test_a_folder_named_in_full_has_its_own_address_before_one_with_a_star(bridge: Bridge) -> None:
    """In any order of the lines. An exclusion of one line leaves on a directory that another line covers."""
    bridge.folders = (
        "[Achats, 'Exercice */Achats', {path: Exercice 2026/Achats, collection_email: special@collecte.example,"
        " exclude: [Bons]}, {path: Exercice 2026, collection_email: year@collecte.example}]"
    )
    for year in ("2025", "2026"):
        (bridge.ged / f"Exercice {year}" / "Achats" / "Bons").mkdir(parents=True)
        (bridge.ged / f"Exercice {year}" / "Notes").mkdir()
    bridge.start()
    deposits = {
        "Exercice 2025/Achats/any.txt": "Martin",
        "Exercice 2026/Achats/special.txt": "special",
        "Exercice 2026/Achats/Bons/next.txt": "Martin",
        "Exercice 2026/Notes/year.txt": "year",
    }
    for path in deposits:
        (bridge.ged / path).write_text(path)
    bridge.expect("any.txt", "special.txt", "next.txt", "year.txt")
    sent = {row["document"]: row["collection_email"].partition("@")[0] for row in bridge.rows()}
    assert {path: sent[path] for path in deposits} == deposits
