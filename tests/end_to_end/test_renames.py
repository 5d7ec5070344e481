"""Names that move: a document keeps its identity within a client's switched folders, and loses it outside."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest

from tests.support.bridge import Bridge, sha256, until
from tests.support.relay import Late, Say, Stall


def marker_of(document: Path) -> Path:
    """Where the marker of a document stands."""
    return document.with_name(document.name + ".validated.json")


def another_client(bridge: Bridge) -> Path:
    """A second client with a GED of its own; its switched folder."""
    inbox = bridge.base / "ged2/In"
    inbox.mkdir(parents=True)
    bridge.more_clients = (
        f"  - {{name: Durand, ged: {bridge.base}/ged2, collection_email: d@collecte.example, switched_folders: [In]}}\n"
    )
    return inbox


def test_a_validated_document_moved_between_switched_folders_takes_its_marker_along(bridge: Bridge) -> None:
    """No second mail leaves, and the content of the marker stays."""
    bridge.start()
    here, there = bridge.inbox / "sent.txt", bridge.ged / "Notes/moved.txt"
    here.write_text("sent")
    bridge.wait_for("document_validated")
    content = marker_of(here).read_bytes()
    here.rename(there)
    until(marker_of(there).exists, "the marker follows")
    assert marker_of(there).read_bytes() == content
    until(lambda: not marker_of(here).exists(), "and leaves the old place")
    bridge.expect("sent.txt")


def test_a_renamed_parent_directory_takes_everything_along(bridge: Bridge) -> None:
    """Existing stays existing, validated is not sent again, queued is sent once; nothing appears at the old place."""
    (bridge.inbox / "dir/sub").mkdir(parents=True)
    (bridge.inbox / "dir/sub/old.txt").write_text("old")
    bridge.start()
    (bridge.inbox / "dir/sub/sent.txt").write_text("sent")
    bridge.wait_for("document_validated")
    bridge.relay.stop_listening()
    bridge.relay.cut_all()
    (bridge.inbox / "dir/sub/queued.txt").write_text("queued")
    bridge.wait_for("document_queued", 2)
    (bridge.inbox / "dir").rename(bridge.ged / "Notes/renamed")
    bridge.relay.listen_again()
    bridge.expect("sent.txt", "queued.txt")
    moved = bridge.ged / "Notes/renamed/sub"
    until(marker_of(moved / "queued.txt").exists, "the marker at the new place")
    assert marker_of(moved / "sent.txt").exists()
    assert not (bridge.inbox / "dir").exists()
    assert bridge.count("document_withdrawn") == 0


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_markers_move_along_when_a_document_and_then_its_directory_are_renamed_at_once(
    bridge: Bridge, stopped: bool
) -> None:
    """One document stays in its directory, another is filed elsewhere before that directory is renamed."""
    (bridge.inbox / "dir").mkdir()
    bridge.start()
    for name in ("stays.txt", "filed.txt"):
        (bridge.inbox / "dir" / name).write_text(name)
    bridge.wait_for("document_validated", 2)
    if stopped:
        bridge.stop()
    (bridge.inbox / "dir/stays.txt").rename(bridge.inbox / "dir/stays anew.txt")
    (bridge.inbox / "dir/filed.txt").rename(bridge.ged / "Notes/filed anew.txt")
    (bridge.inbox / "dir").rename(bridge.inbox / "dir anew")
    if stopped:
        bridge.start()
    expected = {"Achats/dir anew/stays anew.txt.validated.json", "Notes/filed anew.txt.validated.json"}
    until(lambda: {str(p.relative_to(bridge.ged)) for p in bridge.ged.rglob("*.json")} == expected, "markers move")
    bridge.expect("stays.txt", "filed.txt")


def test_existing_files_that_change_names_in_a_chain_or_a_circle_stay_existing(bridge: Bridge) -> None:
    """One renamed twice at once, two that swap their names: no mail."""
    for name in ("chain", "one", "two"):
        (bridge.inbox / f"{name}.txt").write_text(name)
    bridge.start()
    (bridge.inbox / "chain.txt").rename(bridge.inbox / "link.txt")
    (bridge.inbox / "link.txt").rename(bridge.ged / "Notes/end.txt")
    (bridge.inbox / "one.txt").rename(bridge.inbox / ".away")
    (bridge.inbox / "two.txt").rename(bridge.inbox / "one.txt")
    (bridge.inbox / ".away").rename(bridge.inbox / "two.txt")
    bridge.expect()


def test_a_directory_whose_place_another_takes_in_an_instant_stays_existing(bridge: Bridge) -> None:
    """The former is then deleted. A hint of it under its former name says nothing of the new one."""
    for number in range(20):
        for directory in (f"{number}/site", f"{number}/site.new"):
            (bridge.inbox / directory).mkdir(parents=True)
            for name in "abc":
                (bridge.inbox / directory / f"{name}.txt").write_text(f"{directory} {name}")
    bridge.start()
    for number in range(20):
        here = bridge.inbox / str(number)
        (here / "site").rename(here / "site.old")
        (here / "site.new").rename(here / "site")
        shutil.rmtree(here / "site.old")
    (bridge.inbox / "0/site/later.txt").write_text("later")
    bridge.expect("later.txt")


def test_a_new_file_where_another_was_filed_away_from_is_sent(bridge: Bridge) -> None:
    """The scanner always writes `scan.txt`; yesterday's is filed in another switched folder, today's is new."""
    (bridge.inbox / "scan.txt").write_text("yesterday")
    bridge.start()
    (bridge.inbox / "scan.txt").rename(bridge.ged / "Notes/filed.txt")
    (bridge.inbox / "scan.txt").write_text("today")
    bridge.expect("scan.txt")
    assert dict(bridge.arrived())["scan.txt"] == b"today"


def test_a_file_and_a_directory_moved_in_from_a_folder_that_is_not_switched_are_sent(bridge: Bridge) -> None:
    """Same GED, same file system, old times: still deposits."""
    drafts = bridge.ged / "Brouillons"
    (drafts / "dir").mkdir()
    for name in ("draft.txt", "dir/inside.txt"):
        (drafts / name).write_text(name)
        os.utime(drafts / name, (1e9, 1e9))
    bridge.start()
    (drafts / "draft.txt").rename(bridge.inbox / "draft.txt")
    (drafts / "dir").rename(bridge.inbox / "dir")
    bridge.expect("draft.txt", "inside.txt")


def test_a_hard_link_to_an_existing_document_is_a_deposit(bridge: Bridge) -> None:
    """Both names are there, so nothing was renamed: the new name is sent, the old one is not."""
    (bridge.inbox / "old.txt").write_text("old")
    bridge.start()
    (bridge.inbox / "linked.txt").hardlink_to(bridge.inbox / "old.txt")
    bridge.expect("linked.txt")


def test_a_queued_document_moved_to_another_client_goes_to_that_one_only(bridge: Bridge) -> None:
    """Withdrawn here, a deposit there."""
    other = another_client(bridge)
    bridge.start()
    bridge.relay.stop_listening()
    (bridge.inbox / "wrong-client.txt").write_text("belongs to Durand")
    bridge.wait_for("document_queued")
    (bridge.inbox / "wrong-client.txt").rename(other / "wrong-client.txt")
    bridge.wait_for("document_withdrawn")
    bridge.relay.listen_again()
    bridge.expect("wrong-client.txt")
    assert [m.recipients for m in bridge.relay.mails if b"wrong-client" in m.data] == [("d@collecte.example",)]


def test_a_deposit_renamed_before_it_is_quiet_is_sent_under_its_final_name(bridge: Bridge) -> None:
    """Explorer makes `Nouveau document`, the person types the name."""
    bridge.start()
    (bridge.inbox / "Nouveau document.txt").touch()
    until(lambda: bridge.run("status", "--json").stdout.count('"waiting": 1'), "it waits")
    (bridge.inbox / "Nouveau document.txt").rename(bridge.inbox / "Courrier.txt")
    (bridge.inbox / "Courrier.txt").write_text("written at last")
    bridge.expect("Courrier.txt")


def test_a_queued_document_renamed_to_a_temporary_name_and_back_is_sent_once(bridge: Bridge) -> None:
    """Under an ignored name it is withdrawn; under its own again it is a document again."""
    bridge.start()
    bridge.relay.stop_listening()
    (bridge.inbox / "a.txt").write_text("a")
    bridge.wait_for("document_queued")
    (bridge.inbox / "a.txt").rename(bridge.inbox / "a.txt.part")
    bridge.wait_for("document_withdrawn")
    (bridge.inbox / "a.txt.part").rename(bridge.inbox / "a.txt")
    bridge.wait_for("document_queued", 2)
    bridge.relay.listen_again()
    bridge.expect("a.txt")


@pytest.mark.parametrize("was", ["sending", "held"])
def test_a_sending_or_held_document_renamed_to_a_temporary_name_does_not_leave(bridge: Bridge, was: str) -> None:
    """While it is being sent, or held, its state stays; when its turn comes again its name decides."""
    bridge.relay.script(*(("MAIL", Stall()) if was == "sending" else ("DOT", Say("550 5.7.1 no"))))
    bridge.start()
    (bridge.inbox / "a.txt").write_text("a")
    until(lambda: bridge.relay.stalled or bridge.count("document_held"), was)
    (bridge.inbox / "a.txt").rename(bridge.inbox / "a.txt.part")
    until(lambda: '"Achats/a.txt.part"' in bridge.run("documents", "--json").stdout, "the rename was seen")
    bridge.relay.go_on()
    bridge.run("release", "--all")
    assert bridge.wait_for("document_withdrawn")[0]["reason"] == "renamed to a name that is ignored"
    (bridge.inbox / "a.txt.part").rename(bridge.inbox / "a.txt")
    bridge.expect("a.txt")


def test_renames_while_the_daemon_is_stopped_are_no_deposits(bridge: Bridge) -> None:
    """Neither sent nor missed; the marker follows after the start, and a queued one is sent under its new name."""
    (bridge.inbox / "old.txt").write_text("old")
    bridge.start()
    (bridge.inbox / "sent.txt").write_text("sent")
    bridge.wait_for("document_validated")
    bridge.relay.stop_listening()
    bridge.relay.cut_all()
    (bridge.inbox / "queued.txt").write_text("queued")
    bridge.wait_for("document_queued", 2)
    bridge.stop()
    for name in ("old.txt", "sent.txt", "queued.txt"):
        (bridge.inbox / name).rename(bridge.ged / f"Notes/new-{name}")
    bridge.relay.listen_again()
    bridge.start()
    bridge.expect("sent.txt", "new-queued.txt")
    until(marker_of(bridge.ged / "Notes/new-sent.txt").exists, "the marker follows")
    assert bridge.count("document_missed") == 0


def test_a_foreign_file_at_the_markers_name_is_left_alone(bridge: Bridge) -> None:
    """The next free name is taken, one `marker_failed` says so, and deleting a marker sends nothing again."""
    name = "foreign.txt"
    bridge.start()
    foreign = marker_of(bridge.inbox / name)
    foreign.write_text("somebody's own notes")
    (bridge.inbox / name).write_text("content")
    bridge.wait_for("document_validated")
    second = bridge.inbox / f"{name}.validated-2.json"
    assert json.loads(second.read_text())["sha256"] == sha256(b"content")
    assert foreign.read_text() == "somebody's own notes"
    assert bridge.count("marker_failed") == 1
    second.unlink()
    bridge.expect(name)


def test_a_file_moved_out_and_in_again_while_it_is_queued_is_sent_once(bridge: Bridge) -> None:
    """A wrong drag and drop, undone at leisure: withdrawn, then a deposit of its own."""
    bridge.start()
    bridge.relay.stop_listening()
    (bridge.inbox / "a.txt").write_text("a")
    bridge.wait_for("document_queued")
    (bridge.inbox / "a.txt").rename(bridge.outside / "a.txt")
    bridge.wait_for("document_withdrawn")
    (bridge.outside / "a.txt").rename(bridge.inbox / "a.txt")
    bridge.wait_for("document_queued", 2)
    bridge.relay.listen_again()
    bridge.expect("a.txt")
    assert bridge.count("document_withdrawn") == 1


def test_a_directory_moved_out_withdraws_all_that_is_queued_in_it(bridge: Bridge) -> None:
    """One warning for each document. A file that is moved in again is sent, existing or not."""
    (bridge.inbox / "dir/sub").mkdir(parents=True)
    (bridge.inbox / "dir/old.txt").write_text("old")
    bridge.start()
    bridge.relay.stop_listening()
    for name in ("dir/a.txt", "dir/sub/b.txt"):
        (bridge.inbox / name).write_text(name)
    bridge.wait_for("document_queued", 2)
    (bridge.inbox / "dir").rename(bridge.outside / "dir")
    bridge.wait_for("document_withdrawn", 2)
    bridge.relay.listen_again()
    bridge.expect()
    (bridge.outside / "dir").rename(bridge.inbox / "dir")
    bridge.expect("old.txt", "a.txt", "b.txt")
    assert {line["level"] for line in bridge.lines("document_withdrawn")} == {"warning"}


def test_folder_names_match_however_their_accents_are_written(bridge: Bridge) -> None:
    """The configuration says `Été 2026` in one form of Unicode, a Mac made the folder in the other."""
    decomposed = bridge.ged / unicodedata.normalize("NFD", "Été 2026")
    decomposed.mkdir()
    bridge.folders = f"[Achats, '{unicodedata.normalize('NFC', 'Été 2026')}']"
    bridge.start()
    (decomposed / "new.txt").write_text("new")
    bridge.expect("new.txt")


def test_a_document_renamed_on_its_way_is_sent_once_and_marked_under_its_new_name(bridge: Bridge) -> None:
    """The relay is slow at DATA: the mail has the old name, the marker stands beside the new one."""
    bridge.relay.script("DATA", Late())
    bridge.start()
    (bridge.inbox / "before.txt").write_text("content")
    until(lambda: bridge.relay.stalled, "it is on its way")
    (bridge.inbox / "before.txt").rename(bridge.ged / "Notes/after.txt")
    (bridge.inbox / "other.txt").write_text("deposited after the rename")
    until(lambda: bridge.sent()["other.txt"], "the rename has been noticed")
    bridge.relay.go_on()
    bridge.expect("before.txt", "other.txt")
    until(marker_of(bridge.ged / "Notes/after.txt").exists, "the marker beside the new name")
    assert not marker_of(bridge.inbox / "before.txt").exists()
    assert bridge.count("document_withdrawn") == 0


def test_a_document_deleted_while_it_is_on_its_way_is_sent_once_and_leaves_no_orphan(bridge: Bridge) -> None:
    """It is too late to withdraw it: one mail leaves, no marker is written, and the journal gives the reason."""
    bridge.relay.script("DATA", Late())
    bridge.start()
    (bridge.inbox / "gone.txt").write_text("content")
    until(lambda: bridge.relay.stalled, "it is on its way")
    (bridge.inbox / "gone.txt").unlink()
    (bridge.inbox / "other.txt").write_text("deposited after the deletion")
    until(lambda: bridge.sent()["other.txt"], "the deletion has been noticed")
    bridge.relay.go_on()
    bridge.expect("gone.txt", "other.txt")
    rows = [json.loads(line) for line in bridge.run("documents", "--json").stdout.splitlines()]
    row = next(row for row in rows if row["document"] == "Achats/gone.txt")
    assert row["relay_reply"].startswith("250 ")
    assert row["state"] != "withdrawn"


def test_a_queued_document_renamed_over_the_place_of_one_that_left_it_is_sent(bridge: Bridge) -> None:
    """Both renames fall between two looks, or into a stop. Each file stays the same document, and none is a save."""
    bridge.start()
    (bridge.inbox / "sent.txt").write_text("sent")
    bridge.wait_for("document_validated")
    bridge.relay.stop_listening()
    bridge.relay.cut_all()
    (bridge.inbox / "queued.txt").write_text("queued, and not yet sent")
    bridge.wait_for("document_queued", 2)
    bridge.stop()
    (bridge.inbox / "sent.txt").rename(bridge.ged / "Notes/archived.txt")
    (bridge.inbox / "queued.txt").rename(bridge.inbox / "sent.txt")
    bridge.relay.listen_again()
    bridge.start()
    until(lambda: len(bridge.sent()) == 1 and bridge.sent()["sent.txt"] == 2, "the queued one, under its new name")
    bridge.settle()
    assert dict(bridge.arrived())["sent.txt"] == b"queued, and not yet sent"
    assert bridge.count("document_withdrawn") == 0
    assert bridge.count("document_missed") == 0
    assert bridge.count("document_changed") == 0
