"""Edits of the configuration while the daemon runs: in force whole or not at all, and no document is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bridge import Bridge, until
from tests.support.relay import Late, ScriptedRelay


@pytest.fixture
def bridge(tmp_path: Path, relay: ScriptedRelay) -> Iterator[Bridge]:
    """One mode is enough here."""
    bridge = Bridge(tmp_path, relay)
    yield bridge
    if bridge.process is not None and bridge.process.poll() is None:
        bridge.stop()


def reload(bridge: Bridge) -> None:
    """Write the configuration as it is to be now, and see it in force."""
    bridge.config.write_text(bridge.text())
    answer = bridge.run("reload")
    assert answer.returncode == 0, answer.stderr
    assert "in force" in answer.stdout


def test_a_rejected_configuration_is_told_once_and_the_repaired_one_comes_into_force(bridge: Bridge) -> None:
    """By itself, without a command; the old one stays in force in between."""
    bridge.start()
    bridge.config.write_text("clients: [")
    line = bridge.wait_for("config_rejected")[0]
    assert str(bridge.config) in line["problems"][0]
    assert line["level"] == "error"
    (bridge.inbox / "meanwhile.txt").write_text("by the old one")
    until(lambda: bridge.sent()["meanwhile.txt"], "sent by the old configuration")
    assert bridge.count("config_rejected") == 1
    bridge.config.write_text(bridge.text())
    bridge.wait_for("config_reloaded")
    bridge.expect("meanwhile.txt")


def test_a_configuration_that_is_away_for_a_moment_changes_nothing(bridge: Bridge) -> None:
    """Editors remove the file and write a new one. The daemon goes on, and loads the new one."""
    bridge.start()
    bridge.config.rename(bridge.config.with_suffix(".old"))
    (bridge.inbox / "meanwhile.txt").write_text("by the old one")
    until(lambda: bridge.sent()["meanwhile.txt"], "sent by the old configuration")
    bridge.folders = "[Achats, Brouillons]"
    bridge.config.write_text(bridge.text())
    bridge.wait_for("config_reloaded")
    (bridge.ged / "Brouillons/new.txt").write_text("new")
    bridge.expect("meanwhile.txt", "new.txt")


def test_a_queued_document_goes_to_the_address_that_is_in_force(bridge: Bridge) -> None:
    """The relay was down when it was queued, and the address is corrected before it returns."""
    bridge.start()
    bridge.relay.stop_listening()
    (bridge.inbox / "a.txt").write_text("a")
    bridge.wait_for("relay_unreachable")
    bridge.folders = "[{path: Achats, collection_email: right@collecte.example}]"
    reload(bridge)
    bridge.relay.listen_again()
    bridge.expect("a.txt")
    mail = next(mail for mail in bridge.relay.mails if b"a.txt" in mail.data)
    assert mail.recipients == ("right@collecte.example",)
    assert b"\r\nTo: right@collecte.example\r\n" in mail.data


def test_another_relay_takes_over_the_queue(bridge: Bridge) -> None:
    """The old one is down for good; the new one gets everything, once."""
    bridge.start()
    bridge.relay.stop_listening()
    (bridge.inbox / "a.txt").write_text("a")
    bridge.wait_for("relay_unreachable")
    with ScriptedRelay() as other:
        bridge.relay = other
        reload(bridge)
        bridge.expect("a.txt")
        bridge.stop()


def test_an_added_client_has_existing_files_and_a_removed_client_sends_no_more(bridge: Bridge) -> None:
    """Its files are existing, its new ones go to its address; removed, its queued document is withdrawn."""
    inbox = bridge.base / "ged2/In"
    inbox.mkdir(parents=True)
    (inbox / "there.txt").write_text("existing")
    bridge.start()
    durand = (
        f"  - {{name: Durand, ged: {bridge.base}/ged2, collection_email: d@collecte.example, switched_folders: [In]}}\n"
    )
    bridge.more_clients = durand
    reload(bridge)
    (inbox / "new.txt").write_text("new")
    bridge.expect("new.txt")
    assert [mail.recipients for mail in bridge.relay.mails if b"new.txt" in mail.data] == [("d@collecte.example",)]
    bridge.relay.stop_listening()
    bridge.relay.cut_all()
    queued = bridge.count("document_queued")
    (inbox / "queued.txt").write_text("queued")
    bridge.wait_for("document_queued", queued + 1)
    bridge.more_clients = ""
    reload(bridge)
    assert [line["reason"] for line in bridge.wait_for("document_withdrawn")] == ["switched_off"]
    bridge.relay.listen_again()
    (inbox / "later.txt").write_text("nobody's")
    bridge.expect("new.txt")


def test_off_and_on_again_everything_present_is_existing(bridge: Bridge) -> None:
    """A file deposited while the folder was off is not sent, nor a sent one again. A later deposit is sent."""
    bridge.start()
    (bridge.ged / "Notes/before.txt").write_text("before")
    bridge.wait_for("document_validated")
    bridge.folders = "[Achats]"
    reload(bridge)
    (bridge.ged / "Notes/while-off.txt").write_text("while off")
    bridge.expect("before.txt")
    bridge.folders = "[Achats, Notes]"
    reload(bridge)
    (bridge.ged / "Notes/after.txt").write_text("after")
    bridge.expect("before.txt", "after.txt")
    assert bridge.count("document_missed") == 0


def test_a_pattern_switched_on_holds_existing_folders_and_new_ones(bridge: Bridge) -> None:
    """This year's content is existing; a file in it, and next year's folder, are new."""
    this_year = bridge.ged / "Exercice 2026/Achats"
    this_year.mkdir(parents=True)
    (this_year / "old.txt").write_text("old")
    bridge.start()
    bridge.folders = "[Achats, 'Exercice */Achats']"
    reload(bridge)
    (this_year / "new.txt").write_text("new")
    (bridge.ged / "Exercice 2027/Achats").mkdir(parents=True)
    (bridge.ged / "Exercice 2027/Achats/next.txt").write_text("next")
    bridge.expect("new.txt", "next.txt")


def test_a_folder_that_does_not_exist_yet_is_switched_on_and_its_content_is_new(bridge: Bridge) -> None:
    """Moved into its place with its content, while the daemon runs."""
    bridge.start()
    bridge.folders = "[Achats, Plus tard]"
    reload(bridge)
    (bridge.outside / "later").mkdir()
    (bridge.outside / "later/new.txt").write_text("new")
    (bridge.outside / "later").rename(bridge.ged / "Plus tard")
    bridge.expect("new.txt")


def test_a_reload_loses_no_waiting_deposit_and_keeps_known_files(bridge: Bridge) -> None:
    """A waiting, an existing and a validated one over three reloads and a client's new name: one mail each at most."""
    (bridge.inbox / "old.txt").write_text("old")
    bridge.start()
    (bridge.inbox / "sent.txt").write_text("sent")
    bridge.wait_for("document_validated")
    (bridge.inbox / "waits.txt").touch()
    until(lambda: '"waiting": 1' in bridge.run("status", "--json").stdout, "it waits")
    original = bridge.text
    for _ in range(3):
        reload(bridge)
    bridge.text = lambda: original().replace("name: Martin", "name: Martin et fils")  # type: ignore[method-assign]
    reload(bridge)
    (bridge.inbox / "waits.txt").write_text("at last")
    bridge.expect("sent.txt", "waits.txt")


def test_reload_without_a_daemon_says_so(bridge: Bridge) -> None:
    """Exit 1 and a sentence; 78 with every problem where the file itself is wrong."""
    bridge.config.write_text(bridge.text())
    answer = bridge.run("reload")
    assert answer.returncode == 1
    assert "No daemon is running" in answer.stderr
    bridge.config.write_text(bridge.text().replace("quiet: 250ms", "quiet: soon").replace("ged:", "gedd:"))
    answer = bridge.run("reload")
    assert answer.returncode == 78
    assert "quiet" in answer.stderr
    assert "gedd" in answer.stderr


@pytest.mark.promise
def test_a_file_that_an_exclusion_or_an_ignored_name_hid_is_existing_when_lifted(bridge: Bridge) -> None:
    """Old drafts and backups are not mailed because a line was deleted. A file after the reload is new."""
    bridge.folders = "[{path: Achats, exclude: [Entwurf]}, Notes]"
    bridge.extra = 'ignore: ["*.old"]'
    (bridge.inbox / "Entwurf").mkdir()
    (bridge.inbox / "Entwurf/draft.txt").write_text("draft")
    bridge.start()
    (bridge.inbox / "Entwurf/later.txt").write_text("a later draft")
    (bridge.inbox / "old.old").write_text("backup")
    bridge.settle()
    bridge.folders, bridge.extra = "[Achats, Notes]", ""
    bridge.config.write_text(bridge.text())
    assert bridge.run("reload").returncode == 0
    (bridge.inbox / "Entwurf/new.txt").write_text("new")
    (bridge.inbox / "new.old").write_text("new")
    bridge.expect("new.txt", "new.old")


@pytest.mark.promise
def test_fewer_sessions_say_no_goodbye_into_the_mail_that_one_is_sending(bridge: Bridge) -> None:
    """A reload from two sessions to one while both upload: each mail arrives once and whole, and no other."""
    content = {f"{i}.txt": bytes([65 + i]) * 9_000_000 for i in range(2)}
    bridge.relay.script("UPLOAD", Late(), Late())
    bridge.start()
    for name, one in content.items():
        (bridge.inbox / name).write_bytes(one)
    until(lambda: bridge.relay.stalled == 2, "both sessions upload")
    text = bridge.text().replace("sender: factures", "connections: 1, sender: factures")
    bridge.config.write_text(text)
    threading.Timer(7.5, bridge.relay.go_on).start()  # the dismissed session has 6 s to finish, and 2 s for a goodbye
    bridge.run("reload")
    bridge.relay.go_on()
    bridge.expect(*content)
    assert dict(bridge.arrived()).items() >= content.items()
    assert not any(b"QUIT" in mail.data for mail in bridge.relay.mails)
