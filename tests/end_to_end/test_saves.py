"""Bytes that change: a save is not a deposit, a new file at an old path is one, and only whole bytes leave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import bridge as machine
from tests.support.bridge import Bridge, sha256, until
from tests.support.relay import Late, ScriptedRelay


def in_place(document: Path, text: str) -> None:
    """As `echo > file` does."""
    document.write_text(text)


def by_rename_over(document: Path, text: str) -> None:
    """As gedit, LibreOffice and rsync do."""
    temporary = document.with_name(".goutputstream-X1")
    temporary.write_text(text)
    temporary.rename(document)


def by_rename_away(document: Path, text: str) -> None:
    """As vim does: it tries the directory with a file `4913`, moves the old one away and writes anew."""
    trial = document.with_name("4913")
    trial.touch()
    trial.unlink()
    backup = document.with_name(document.name + "~")
    document.rename(backup)
    document.write_text(text)
    backup.unlink()


def by_word(document: Path, text: str) -> None:
    """As Word does: the new one under a temporary name, the old one away, the new one into its place."""
    fresh, old = document.with_name("~WRD0001.tmp"), document.with_name("~WRL0002.tmp")
    fresh.write_text(text)
    document.rename(old)
    fresh.rename(document)
    old.unlink()


SAVES = [in_place, by_rename_over, by_rename_away, by_word]
Save = Callable[[Path, str], None]


def message_ids(bridge: Bridge, name: str) -> list[bytes]:
    """The Message-IDs under which a document arrived."""
    data = [mail.data for mail in bridge.relay.mails if machine.attachment(mail.data)[0] == name]
    return [mail.split(b"Message-ID: ")[1].split(b"\r\n")[0] for mail in data]


@pytest.mark.parametrize("save", SAVES)
def test_a_validated_document_that_is_saved_again_is_not_sent_again(bridge: Bridge, save: Save) -> None:
    """One `document_changed`, one mail, and the marker still tells the bytes that were sent."""
    bridge.start()
    document = bridge.inbox / "letter.txt"
    document.write_text("first")
    bridge.wait_for("document_validated")
    save(document, "second, longer")
    bridge.wait_for("document_changed")
    bridge.expect("letter.txt")
    assert [line["document"] for line in bridge.lines("document_changed")] == ["Achats/letter.txt"]
    assert bridge.lines("document_changed")[0]["level"] == "warning"
    assert json.loads((bridge.inbox / "letter.txt.validated.json").read_text())["sha256"] == sha256(b"first")


@pytest.mark.parametrize("save", SAVES)
def test_a_queued_document_that_is_saved_again_is_sent_once_and_whole(bridge: Bridge, save: Save) -> None:
    """Old bytes or new ones, never a mixture; the marker tells which."""
    bridge.start()
    bridge.relay.stop_listening()
    document = bridge.inbox / "letter.txt"
    document.write_text("first")
    bridge.wait_for("relay_unreachable")
    save(document, "second, longer")
    bridge.relay.listen_again()
    bridge.expect("letter.txt")
    arrived = dict(bridge.arrived())["letter.txt"]
    assert arrived in (b"first", b"second, longer")
    assert json.loads((bridge.inbox / "letter.txt.validated.json").read_text())["sha256"] == sha256(arrived)


@pytest.mark.parametrize("save", SAVES)
def test_a_document_saved_on_its_way_is_sent_once_and_the_change_is_told(bridge: Bridge, save: Save) -> None:
    """The relay is slow at DATA: one mail, whole; where it has the old bytes, `document_changed` tells of the new."""
    bridge.relay.script("DATA", Late())
    bridge.start()
    document = bridge.inbox / "letter.txt"
    document.write_text("first")
    until(lambda: bridge.relay.stalled, "it is on its way")
    save(document, "second, longer")
    (bridge.inbox / "other.txt").write_text("deposited after the save")
    until(lambda: bridge.sent()["other.txt"], "the save has been noticed while the first is still on its way")
    bridge.relay.go_on()
    bridge.expect("letter.txt", "other.txt")
    arrived = dict(bridge.arrived())["letter.txt"]
    assert arrived in (b"first", b"second, longer")
    assert json.loads((bridge.inbox / "letter.txt.validated.json").read_text())["sha256"] == sha256(arrived)
    assert bridge.count("document_changed") == (arrived == b"first")


@pytest.mark.parametrize("save", [in_place, by_rename_over])
def test_with_on_overwrite_send_the_bytes_saved_while_it_is_on_its_way_are_sent_too(bridge: Bridge, save: Save) -> None:
    """The last save reaches the relay, and no earlier bytes are left over."""
    bridge.extra = "on_overwrite: send"
    bridge.relay.script("DATA", Late())
    bridge.start()
    document = bridge.inbox / "price.txt"
    document.write_text("1 EUR")
    until(lambda: bridge.relay.stalled, "it is on its way")
    save(document, "2,50 EUR")
    (bridge.inbox / "other.txt").write_text("deposited after the save")
    until(lambda: bridge.sent()["other.txt"], "the save has been noticed while the first is still on its way")
    bridge.relay.go_on()
    until(lambda: ("price.txt", b"2,50 EUR") in bridge.arrived(), "the new bytes")
    bridge.settle()
    contents = [content for name, content in bridge.arrived() if name == "price.txt"]
    assert len(contents) == len(set(contents)), contents


def test_a_burst_of_saves_is_one_warning(bridge: Bridge) -> None:
    """Auto-save is not a flood of log lines."""
    (bridge.inbox / "old.txt").write_text("old")
    bridge.start()
    for number in range(5):
        (bridge.inbox / "old.txt").write_text(f"save {number}")
    bridge.wait_for("document_changed")
    bridge.expect()
    assert bridge.count("document_changed") == 1


def test_on_overwrite_send_sends_a_validated_document_again_as_a_new_one(bridge: Bridge) -> None:
    """Two mails with a Message-ID each: the first bytes, then the others."""
    bridge.extra = "on_overwrite: send"
    bridge.start()
    (bridge.inbox / "price.txt").write_text("1 EUR")
    bridge.wait_for("document_validated")
    (bridge.inbox / "price.txt").write_text("2 EUR")
    until(lambda: bridge.sent()["price.txt"] == 2, "the second mail")
    bridge.settle()
    assert [content for name, content in bridge.arrived() if name == "price.txt"] == [b"1 EUR", b"2 EUR"]
    assert len(set(message_ids(bridge, "price.txt"))) == 2
    assert bridge.count("document_changed") == 0


def test_a_validated_document_deleted_and_created_anew_is_sent_twice_in_all(bridge: Bridge) -> None:
    """A new file at an old path, beside the marker of other bytes. With the same bytes it would be validated."""
    bridge.start()
    (bridge.inbox / "scan.txt").write_text("page")
    bridge.wait_for("document_validated")
    (bridge.inbox / "scan.txt").unlink()
    bridge.settle()
    (bridge.inbox / "scan.txt").write_text("egap")
    until(lambda: bridge.sent()["scan.txt"] == 2, "the second mail")
    bridge.settle()
    assert len(set(message_ids(bridge, "scan.txt"))) == 2


@pytest.mark.parametrize("bridge", ["inotify"], indirect=True)
def test_a_file_deleted_and_at_once_created_anew_is_a_new_file(bridge: Bridge) -> None:
    """The hints tell it from a save; only a poll cannot."""
    (bridge.inbox / "scan.txt").write_text("yesterday")
    bridge.start()
    (bridge.inbox / "scan.txt").unlink()
    (bridge.inbox / "scan.txt").write_text("today")
    bridge.expect("scan.txt")


def test_times_and_modes_of_existing_files_mean_nothing(bridge: Bridge) -> None:
    """chmod, and a copy that brings its own old times: the one is no deposit, the other is."""
    (bridge.inbox / "old.txt").write_text("old")
    (bridge.outside / "preserved.txt").write_text("from the last century")
    os.utime(bridge.outside / "preserved.txt", (9e8, 9e8))
    bridge.start()
    (bridge.inbox / "old.txt").chmod(0o600)
    shutil.copy2(bridge.outside / "preserved.txt", bridge.inbox)
    bridge.expect("preserved.txt")
    assert bridge.count("document_changed") == 0


def test_a_scanner_that_opens_and_closes_for_every_page_is_waited_for(bridge: Bridge) -> None:
    """Closed and reopened many times: one mail, with the last page."""
    bridge.start()
    script = "for page in 1 2 3 4 5 6 7 8 9 10; do echo page $page >> scan.txt; sleep 0.1; done"
    subprocess.run(["sh", "-c", script], cwd=bridge.inbox, check=True)
    bridge.expect("scan.txt")
    assert dict(bridge.arrived())["scan.txt"] == b"".join(b"page %d\n" % page for page in range(1, 11))


def test_a_padded_pdf_and_a_picture_with_a_video_behind_it_leave_without_a_warning(bridge: Bridge) -> None:
    """Office scanners pad with zeros, telephones append a video. Only the file that is cut off waits."""
    picture = b"\xff\xd8\xff\xdb\x00\x04ab\xff\xda\x00\x02" + b"photo" * 50_000
    video = (b"\0\0\0\x10ftypmp42\0\0\0\0") + (3_000_008).to_bytes(4, "big") + b"mdat" + b"v" * 3_000_000
    bridge.start()
    (bridge.inbox / "scan.pdf").write_bytes(b"%PDF-1.4\npages\n%%EOF\n" + b"\0" * 300_000)
    (bridge.inbox / "photo.jpg").write_bytes(picture + b"\xff\xd9" + video)
    (bridge.inbox / "cut.jpg").write_bytes(picture + video)
    until(lambda: len(bridge.sent()) == 2, "the whole ones are sent")
    assert bridge.sent() == {"scan.pdf": 1, "photo.jpg": 1}
    bridge.wait_for("document_validated", 2)
    assert dict(bridge.document_states())["cut.jpg"] == "waiting"
    assert {line["level"] for line in bridge.lines("document_queued")} == {"info"}


def test_a_document_cut_off_after_quiet_limit_is_sent_with_a_warning(bridge: Bridge) -> None:
    """Nothing waits for ever: after `quiet_limit` it leaves, and the log says how it looked."""
    bridge.watch = ", quiet_limit: 1500ms"
    bridge.start()
    (bridge.inbox / "cut.pdf").write_bytes(b"%PDF-1.4\nand no end")
    bridge.expect("cut.pdf")
    line = next(line for line in bridge.lines("document_queued") if line["document"] == "Achats/cut.pdf")
    assert line["level"] == "warning"
    assert "cut off" in line["warning"]


def test_an_unreadable_document_waits_with_one_warning(
    bridge: Bridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon may not read it, as an ordinary user: one warning names the permission; readable, it is sent."""
    if os.geteuid() == 0:  # root reads everything, but for these two capabilities
        powerless = tmp_path / "bridged-without-powers"
        drop = "--bounding-set=-dac_override,-dac_read_search"
        powerless.write_text(f'#!/bin/sh\nexec setpriv {drop} {machine.COMMAND} "$@"\n')
        powerless.chmod(0o755)
        monkeypatch.setattr(machine, "COMMAND", str(powerless))
    bridge.start()
    secret = bridge.outside / "secret.txt"
    secret.write_text("secret")
    secret.chmod(0o000)
    secret.rename(bridge.inbox / "secret.txt")
    line = bridge.wait_for("document_deferred")[0]
    assert line["level"] == "warning"
    assert "permission" in line["reason"]
    (bridge.inbox / "other.txt").write_text("other")
    until(lambda: bridge.sent()["other.txt"], "another document does not wait for it")
    assert bridge.count("document_deferred") == 1
    (bridge.inbox / "secret.txt").chmod(0o600)
    bridge.expect("secret.txt", "other.txt")


def test_configured_names_and_more_system_names_are_ignored(bridge: Bridge) -> None:
    """`ignore` adds to the built-in names, in every folder and at every depth."""
    bridge.extra = 'ignore: ["*.old", Privat]'
    bridge.start()
    for name in ("$RECYCLE.BIN", ".stversions", ".snapshot", ".@__thumb", "Privat", "sub/@eaDir"):
        (bridge.inbox / name).mkdir(parents=True)
        (bridge.inbox / name / "inside.txt").write_text("no")
    for name in ("a.old", "a.filepart", "a.crdownload", ".DS_Store", "THUMBS.DB", "sub/b.old", "sub/._b.txt"):
        (bridge.inbox / name).write_text("no")
    for name in ("a.old.txt", "thumbs.db.txt", "sub/partition.txt", "sub/x.partial.txt"):
        (bridge.inbox / name).write_text("yes")
    bridge.expect("a.old.txt", "thumbs.db.txt", "partition.txt", "x.partial.txt")


@pytest.mark.parametrize("bridge", ["inotify"], indirect=True)
def test_directories_made_and_filled_at_once_lose_nothing(bridge: Bridge, relay: ScriptedRelay) -> None:
    """Sixty documents in directories that are younger than any watch: each once."""
    bridge.start()
    names = [f"{number}.txt" for number in range(60)]
    for number, name in enumerate(names):
        directory = bridge.inbox / f"{number % 7}/{number % 5}/{number}"
        directory.mkdir(parents=True)
        (directory / name).write_text(name)
    until(lambda: set(names) <= set(bridge.sent()), "all of them")
    bridge.expect(*names)
    assert relay.most_sessions <= 2
