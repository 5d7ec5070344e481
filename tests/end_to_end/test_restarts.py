"""Stops, kills, and changes meanwhile: no document is lost, sent twice, or sent in arrears."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.support.bridge import Bridge, sha256, until
from tests.support.relay import Stall

PDF = b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n"


def rows(bridge: Bridge, *options: str) -> list[dict[str, str]]:
    """The rows of `bridged documents`."""
    return [json.loads(line) for line in bridge.run("documents", "--json", *options).stdout.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_queued_documents_survive_a_restart_with_the_relay_still_down(bridge: Bridge, number: int) -> None:
    """Stopped or killed, started again, and only then the relay returns: each once, with the Message-ID it had."""
    bridge.start()
    bridge.relay.stop_listening()
    names = [f"{i}.txt" for i in range(4)]
    for name in names:
        (bridge.inbox / name).write_text(name)
    bridge.wait_for("document_queued", 4)
    before = {row["document"]: row["message_id"] for row in rows(bridge)}
    bridge.stop(number)
    bridge.start()
    bridge.wait_for("relay_unreachable", 2)
    assert bridge.count("document_resumed") == 4
    bridge.relay.listen_again()
    bridge.expect(*names)
    for message_id in before.values():
        assert sum(message_id.encode() in mail.data for mail in bridge.relay.mails) == 1


@pytest.mark.parametrize("bridge", ["inotify"], indirect=True)
def test_a_kill_after_the_dot_sends_again_under_the_same_message_id(bridge: Bridge) -> None:
    """The relay has the mail and we died before we knew: the one duplicate there may be can be told."""
    bridge.relay.script("DOT", Stall(keep=True))
    bridge.start()
    (bridge.inbox / "a.txt").write_text("a")
    until(lambda: bridge.relay.stalled, "the relay has read the dot")
    bridge.stop(signal.SIGKILL)
    bridge.start()
    bridge.wait_for("document_validated")
    bridge.settle()
    mails = [mail.data for mail in bridge.relay.mails if b"a.txt" in mail.data and b"probe" not in mail.data]
    assert len(mails) == 2
    assert mails[0] == mails[1]
    assert any(line["uncertain"] for line in bridge.lines("document_resumed"))


def test_a_deposit_that_waited_at_the_stop_goes_on_after_the_start(bridge: Bridge) -> None:
    """Cut off when the daemon stopped, completed while it was stopped: sent once, whole, not missed."""
    bridge.start()
    (bridge.inbox / "cut.pdf").write_bytes(PDF[:20])
    until(lambda: [row["state"] for row in rows(bridge)] == ["waiting"], "it waits")
    bridge.stop()
    (bridge.inbox / "cut.pdf").write_bytes(PDF)
    bridge.start()
    bridge.expect("cut.pdf")
    assert dict(bridge.arrived())["cut.pdf"] == PDF
    assert bridge.count("document_missed") == 0


def test_queued_documents_changed_or_deleted_while_stopped(bridge: Bridge) -> None:
    """Overwritten: sent once, whole. Deleted: withdrawn with one warning."""
    bridge.start()
    bridge.relay.stop_listening()
    for name in ("changed.txt", "deleted.txt"):
        (bridge.inbox / name).write_text("first")
    bridge.wait_for("document_queued", 2)
    bridge.stop()
    (bridge.inbox / "changed.txt").write_text("second, longer")
    (bridge.inbox / "deleted.txt").unlink()
    bridge.relay.listen_again()
    bridge.start()
    bridge.expect("changed.txt")
    arrived = dict(bridge.arrived())["changed.txt"]
    assert arrived == b"second, longer"
    assert json.loads((bridge.inbox / "changed.txt.validated.json").read_text())["sha256"] == sha256(arrived)
    until(lambda: bridge.count("document_withdrawn"), "withdrawn")
    assert [line["document"] for line in bridge.lines("document_withdrawn")] == ["Achats/deleted.txt"]


def test_missed_documents_are_reported_once_per_folder_and_not_at_every_start(bridge: Bridge) -> None:
    """Two folders, two lines; a second start says nothing new."""
    bridge.start()
    bridge.stop()
    (bridge.inbox / "sub").mkdir()
    for name in ("Achats/one.txt", "Achats/sub/two.txt", "Notes/three.txt"):
        (bridge.ged / name).write_text(name)
    bridge.start()
    bridge.stop()
    bridge.start()
    bridge.expect()
    assert sorted((line["folder"], line["count"]) for line in bridge.lines("document_missed")) == [
        ("Achats", 2),
        ("Notes", 1),
    ]
    assert {row["document"] for row in rows(bridge, "--state", "missed")} == {
        "Achats/one.txt",
        "Achats/sub/two.txt",
        "Notes/three.txt",
    }


def test_catch_up_sends_directories_and_deposits_that_a_kill_missed(bridge: Bridge) -> None:
    """However the daemon ended and however deep the file lies; each once, over two more starts."""
    bridge.extra = "catch_up: true"
    bridge.start()
    bridge.stop(signal.SIGKILL)
    (bridge.inbox / "a/b").mkdir(parents=True)
    (bridge.inbox / "a/b/deep.txt").write_text("deep")
    bridge.start()
    bridge.expect("deep.txt")
    bridge.stop()
    bridge.start()
    bridge.expect("deep.txt")


def test_saves_while_the_daemon_is_stopped_send_nothing(bridge: Bridge) -> None:
    """An existing and a validated document overwritten meanwhile: no mail, neither is missed."""
    (bridge.inbox / "old.txt").write_text("old")
    bridge.start()
    (bridge.inbox / "sent.txt").write_text("sent")
    bridge.wait_for("document_validated")
    bridge.stop()
    for name in ("old.txt", "sent.txt"):
        (bridge.inbox / name).write_text("saved meanwhile")
    bridge.start()
    bridge.expect("sent.txt")
    assert bridge.count("document_missed") == 0


@pytest.mark.parametrize("bridge", ["inotify"], indirect=True)
def test_a_marker_that_was_not_written_before_a_kill_is_written_after_the_start(bridge: Bridge) -> None:
    """Deleted markers stay deleted, unwritten ones are written, and neither sends anything."""
    bridge.start()
    (bridge.inbox / "a.txt").write_text("a")
    bridge.wait_for("document_validated")
    (bridge.inbox / "a.txt.validated.json").unlink()
    bridge.stop(signal.SIGKILL)
    bridge.start()
    bridge.expect("a.txt")


@pytest.mark.parametrize("bridge", ["inotify"], indirect=True)
@pytest.mark.parametrize(
    ("phase", "number"), [("CONNECT", signal.SIGTERM), ("DATA", signal.SIGINT), ("UPLOAD", signal.SIGTERM)]
)
def test_a_stalled_relay_does_not_keep_the_daemon_from_stopping(bridge: Bridge, phase: str, number: int) -> None:
    """At any stage: exit 0 within ten seconds, `daemon_stopped` logged, and the document is sent after the start."""
    bridge.relay.script(phase, Stall())
    bridge.start()
    (bridge.inbox / "a.txt").write_text("a")
    until(lambda: bridge.relay.stalled, "the relay stalls")
    began = time.monotonic()
    assert bridge.stop(number) == 0
    assert time.monotonic() - began < 10
    assert bridge.lines()[-1]["event"] == "daemon_stopped"
    bridge.start()
    bridge.expect("a.txt")


@pytest.mark.promise("inotify")
@pytest.mark.parametrize("bridge", ["inotify"], indirect=True)
def test_a_document_deleted_and_replaced_while_it_is_sent_leaves_once_at_most(
    bridge: Bridge,
) -> None:
    """The line is lost before the dot: the first has left its folder, and only the second is sent, once."""
    bridge.relay.script("UPLOAD", Stall())
    bridge.start()
    (bridge.inbox / "scan.txt").write_text("the first")
    until(lambda: bridge.relay.stalled, "it is being sent")
    (bridge.inbox / "scan.txt").unlink()
    time.sleep(3)  # until it is known to be gone
    (bridge.inbox / "scan.txt").write_text("the second one")
    bridge.wait_for("document_queued", 2)
    bridge.relay.cut_all()
    bridge.expect("scan.txt")
    assert dict(bridge.arrived())["scan.txt"] == b"the second one"
    assert sorted(row["state"] for row in rows(bridge) if "scan" in row["document"]) == ["validated", "withdrawn"]
