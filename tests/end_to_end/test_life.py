"""Start, reload, stop: the daemon's life through the installed command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from pathlib import Path

import pytest

from bridged.daemon.daemon import Daemon
from tests.support.bridge import COMMAND, Bridge, sha256, until
from tests.support.relay import Cut, Say, ScriptedRelay, Stall


@pytest.fixture(params=["inotify"])
def bridge(request: pytest.FixtureRequest, tmp_path: Path, relay: ScriptedRelay):
    """One mode is enough here."""
    bridge = Bridge(tmp_path, relay, request.param)
    yield bridge
    if bridge.process is not None and bridge.process.poll() is None:
        bridge.stop()


def edit_in_place(config: Path, text: str) -> None:
    """As `echo > file` does."""
    config.write_text(text)


def edit_by_rename(config: Path, text: str) -> None:
    """As editors do."""
    (config.parent / "edited").write_text(text)
    (config.parent / "edited").rename(config)


def edit_by_symlink(config: Path, text: str) -> None:
    """As configuration managers do."""
    version = config.parent / f"version-{time.monotonic_ns()}"
    version.write_text(text)
    (config.parent / "link").symlink_to(version)
    (config.parent / "link").rename(config)


@pytest.mark.parametrize("edit", [edit_in_place, edit_by_rename, edit_by_symlink])
def test_a_folder_switched_on_by_an_edit_holds_existing_files_and_sends_new_ones(bridge: Bridge, edit) -> None:
    """However the file is edited, it is in force by itself; nothing that was there is sent."""
    (bridge.ged / "Brouillons/there.txt").write_text("existing")
    bridge.start()
    bridge.folders = "[Achats, Notes, Brouillons]"
    edit(bridge.config, bridge.text())
    bridge.wait_for("config_reloaded")
    (bridge.ged / "Brouillons/new.txt").write_text("new")
    bridge.expect("new.txt")


def test_a_folder_switched_off_withdraws_its_queued_documents(bridge: Bridge) -> None:
    """`bridged reload` returns 0 once it is in force; nothing of the folder leaves."""
    bridge.start()
    bridge.relay.stop_listening()
    (bridge.ged / "Notes/queued.txt").write_text("queued")
    bridge.wait_for("document_queued")
    bridge.folders = "[Achats]"
    bridge.config.write_text(bridge.text())
    assert bridge.run("reload").returncode == 0
    bridge.relay.listen_again()
    bridge.expect()
    assert [line["reason"] for line in bridge.wait_for("document_withdrawn")] == ["switched_off"]
    bridge.folders = "[Achats, Notes]"
    bridge.config.write_text(bridge.text())
    assert bridge.run("reload").returncode == 0
    bridge.expect()


def test_a_refused_configuration_leaves_the_old_one_in_force(bridge: Bridge) -> None:
    """Exit 78 with every problem; the daemon goes on."""
    bridge.start()
    bridge.config.write_text(bridge.text().replace("quiet: 250ms", "quiet: soon").replace("ged:", "gedd:"))
    answer = bridge.run("reload")
    assert answer.returncode == 78
    assert "quiet" in answer.stderr
    assert "gedd" in answer.stderr
    bridge.wait_for("config_rejected")
    (bridge.inbox / "new.txt").write_text("new")
    until(lambda: bridge.sent()["new.txt"], "sent by the old configuration")


def test_sighup_reloads(bridge: Bridge) -> None:
    """The signal reloads, as a change of the file does."""
    bridge.start()
    assert bridge.process is not None
    bridge.process.send_signal(signal.SIGHUP)
    bridge.wait_for("config_reloaded")


@pytest.mark.timeout(10)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_the_midst_of_a_wait_is_heeded_after_it(number: signal.Signals) -> None:
    """A handler must not take a lock, because its own thread may hold it. Otherwise it waits for ever."""
    bridged = Daemon.__new__(Daemon)
    bridged._stop, bridged._reload_wanted, bridged._signalled = threading.Event(), threading.Event(), deque()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGIO)
    before, hook = [signal.getsignal(each) for each in numbers], threading.excepthook
    bridged._signals()
    try:
        with bridged._stop._cond, bridged._reload_wanted._cond:
            os.kill(os.getpid(), number)
            until(lambda: bridged._signalled, "the handler has run")
    finally:
        threading.excepthook = hook
        for each, handler in zip(numbers, before, strict=True):
            signal.signal(each, handler)
    bridged._heed_signals()
    assert bridged._stop.is_set() == (number != signal.SIGHUP)
    assert bridged._reload_wanted.is_set() == (number == signal.SIGHUP)


def test_a_second_instance_exits_75(bridge: Bridge) -> None:
    """One daemon per state directory."""
    bridge.start()
    second = subprocess.run(
        [COMMAND, "run", "--config", bridge.config], capture_output=True, text=True, timeout=20, check=False
    )
    assert second.returncode == 75
    assert "Another bridged" in second.stderr


def test_a_bad_configuration_exits_78_with_every_problem(bridge: Bridge) -> None:
    """Nothing starts half."""
    bridge.config.write_text("smtp: {hots: a}\nclients: 5\n")
    answer = bridge.run("run")
    assert answer.returncode == 78
    assert "Did you mean 'host'?" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_sigterm_in_mid_message_ends_within_ten_seconds_and_loses_nothing(bridge: Bridge) -> None:
    """The relay stalls at the dot; after the restart the document goes out with the same Message-ID."""
    bridge.relay.script("DOT", Stall())
    bridge.start()
    (bridge.inbox / "a.txt").write_text("a")
    until(lambda: bridge.relay.stalled, "the relay stalls")
    began = time.monotonic()
    assert bridge.stop() == 0
    assert time.monotonic() - began < 10
    bridge.start()
    until(lambda: bridge.sent()["a.txt"], "sent after the restart")
    assert bridge.count("document_resumed") >= 1


def test_a_lost_reply_to_the_dot_is_sent_again_with_the_same_message_id(bridge: Bridge) -> None:
    """Uncertain: the relay has it, we do not know; the second copy can be told to be one."""
    bridge.relay.script("DOT", Cut(keep=True))
    bridge.start()
    (bridge.inbox / "a.txt").write_text("a")
    bridge.wait_for("document_validated")
    messages = [mail.data.split(b"Message-ID: ")[1].split(b"\r\n")[0] for mail in bridge.relay.mails]
    assert len(messages) == 2
    assert len(set(messages)) == 1
    assert "uncertain" in bridge.lines("document_deferred")[0]["reason"]


def test_a_refused_document_is_held_and_released(bridge: Bridge) -> None:
    """5yz holds it with the relay's own words; others go on; `bridged release` sends it."""
    bridge.relay.script("DOT", Say("550 5.7.1 this content is refused"))
    bridge.start()
    (bridge.inbox / "a.txt").write_text("a")
    held = bridge.wait_for("document_held")[0]
    assert "this content is refused" in held["reason"]
    (bridge.inbox / "b.txt").write_text("b")
    until(lambda: bridge.sent()["b.txt"], "the other one")
    assert bridge.run("release", held["id"]).returncode == 0
    bridge.expect("a.txt", "b.txt")
    bridge.wait_for("document_released")


def test_a_deferred_document_is_tried_again(bridge: Bridge) -> None:
    """4yz: by the schedule, until it is accepted; its marker counts the attempts."""
    bridge.relay.script("RCPT", Say("451 4.3.0 come back"), Say("451 4.3.0 come back"))
    bridge.start()
    (bridge.inbox / "a.txt").write_text("a")
    bridge.wait_for("document_validated")
    assert json.loads((bridge.inbox / "a.txt.validated.json").read_text())["attempts"] == 3


def test_systemd_hears_ready_when_the_log_says_so(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY=1 and daemon_ready are the same instant."""
    address = f"\0bridged-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(address)
        channel.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))
        bridge.start()
        assert channel.recv(4096).startswith(b"READY=1\n")


def test_explain_tells_why(bridge: Bridge) -> None:
    """One sentence each, with and without the daemon."""
    (bridge.inbox / "old.txt").write_text("old")
    bridge.start()
    (bridge.inbox / "new.txt").write_text("new")
    bridge.wait_for("document_validated")
    for _ in range(2):
        assert "was there" in bridge.run("explain", bridge.inbox / "old.txt").stdout
        assert "Martin@collecte.example" in bridge.run("explain", bridge.inbox / "new.txt").stdout
        bridge.stop()


def test_the_password_is_never_shown(bridge: Bridge, tmp_path: Path) -> None:
    """Not in a log line, not in a marker, not in the journal, not when the login fails."""
    secret = "Tr0ub4dor-und-so"
    (tmp_path / "secret").write_text(secret)
    with ScriptedRelay(users={"user": "another"}) as relay:
        bridge.relay = relay
        text = bridge.text().replace(
            "security: plain", f"security: plain, username: user, password_file: {tmp_path}/secret"
        )
        bridge.text = lambda: text  # type: ignore[method-assign]
        bridge.start()
        (bridge.inbox / "a.txt").write_text("a")
        line = bridge.wait_for("relay_misconfigured")[0]
        assert line["level"] == "error"
        assert bridge.run("check", "--smtp").returncode == 1
        bridge.stop()
    everything = bridge.log.read_bytes() + b"".join(
        p.read_bytes() for p in (tmp_path / "state").iterdir() if p.is_file()
    )
    assert secret.encode() not in everything


def test_a_lost_journal_never_becomes_a_mass_mailing(bridge: Bridge) -> None:
    """A file is existing, and a document with its valid marker still counts as validated."""
    bridge.start()
    (bridge.inbox / "a.txt").write_text("a")
    bridge.wait_for("document_validated")
    bridge.stop()
    (bridge.inbox / "later.txt").write_text("existing for the new journal")
    for file in (bridge.base / "state").glob("journal*"):
        file.unlink()
    bridge.start()
    bridge.expect("a.txt")
    rows = [json.loads(line) for line in bridge.run("documents", "--json", "--state", "validated").stdout.splitlines()]
    assert "Achats/a.txt" in {row["document"] for row in rows}


def test_two_files_that_come_with_one_marker_are_validated_and_a_forged_one_is_sent(bridge: Bridge) -> None:
    """The journal does not know the Message-ID of their markers. Neither is mailed, and both have a row."""
    bridge.start()
    (bridge.inbox / "a.txt").write_text("a")
    bridge.wait_for("document_validated")
    bridge.stop()
    marker = (bridge.inbox / "a.txt.validated.json").read_text()
    for file in [*(bridge.base / "state").glob("journal*"), *bridge.inbox.iterdir()]:
        file.unlink()
    bridge.start()
    for name in ("one", "two", "forged"):
        content = "b" if name == "forged" else "a"
        (bridge.outside / name).mkdir()
        told = marker.replace(sha256(b"a"), sha256(content.encode()))
        (bridge.outside / name / "a.txt.validated.json").write_text(told)
        (bridge.outside / name / "a.txt").write_text(content)
    for name in ("one", "two"):
        (bridge.outside / name).rename(bridge.inbox / name)
    bridge.wait_for("document_validated", 3)
    (bridge.outside / "forged").rename(bridge.inbox / "forged")
    bridge.wait_for("document_validated", 4)
    assert [content for _, content in bridge.arrived()] == [b"a", b"b"]
    states = {row["document"]: (row["state"], row["reason"]) for row in bridge.rows()}
    adopted = ("validated", "its valid marker was beside it")
    assert states == {f"Achats/{n}/a.txt": adopted for n in ("one", "two")} | {"Achats/forged/a.txt": ("validated", "")}
    (bridge.inbox / "two/a.txt").rename(bridge.inbox / "two/b.txt")
    until((bridge.inbox / "two/b.txt.validated.json").exists, "the copy's marker follows")


def test_a_reload_cannot_move_the_state(bridge: Bridge) -> None:
    """The journal stays where it is: the new configuration is refused."""
    bridge.start()
    bridge.config.write_text(bridge.text().replace("/state\n", "/elsewhere\n"))
    assert bridge.process is not None
    bridge.process.send_signal(signal.SIGHUP)
    assert "state_dir" in bridge.wait_for("config_rejected")[0]["problems"][0]
