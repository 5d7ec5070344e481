"""The control socket and the log when a handler raises, a request trickles, or a disk is full."""

from __future__ import annotations

import io
import json
import socket
import threading
import time

import pytest
import structlog

from bridged import logs
from bridged.daemon import control
from bridged.daemon.control import SOCKET, ControlServer, ask

WITHIN = 10.0


@pytest.fixture
def state_dir(tmp_path):
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def _as_before():
    yield
    structlog.reset_defaults()
    logs._bound = structlog.get_logger()


@pytest.mark.parametrize("error", [ValueError("a"), OSError("a"), RuntimeError("a"), TimeoutError("a")])
def test_a_defect_in_the_handler_is_a_sentence_for_the_client_and_an_exception_here(state_dir, error):
    """Not "did not answer in time", and not "your request was wrong": it is the daemon's own mistake."""
    failures, told = [], threading.Event()

    def handle(request):
        if request:
            raise error
        return {"ok": True}

    server = ControlServer(state_dir, handle, lambda failure: (failures.append(failure), told.set()))
    server.start()
    try:
        answer = ask(state_dir, {"command": "status"}, WITHIN)
        assert answer["ok"] is False
        assert type(error).__name__ in answer["error"]
        assert told.wait(WITHIN)
        assert failures == [error]
        assert ask(state_dir, {}, WITHIN) == {"ok": True}
    finally:
        server.close()


def test_an_answer_that_is_no_json_is_a_mistake_of_the_handler(state_dir):
    failures, told = [], threading.Event()
    server = ControlServer(state_dir, lambda _: {"path": b"x"}, lambda failure: (failures.append(failure), told.set()))
    server.start()
    try:
        assert ask(state_dir, {}, WITHIN)["ok"] is False
        assert told.wait(WITHIN)
        assert isinstance(failures[0], TypeError)
    finally:
        server.close()


@pytest.mark.parametrize(("length", "accepted"), [(65_536, True), (65_537, False), (130_000, False)])
def test_a_request_has_at_most_64_kb_to_the_byte(state_dir, length, accepted):
    server = ControlServer(state_dir, lambda _: {"ok": True})
    server.start()
    try:
        padding = "x" * (length - len(json.dumps({"a": ""})) - 1)
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(WITHIN)
            channel.connect(str(state_dir / SOCKET))
            channel.sendall(json.dumps({"a": padding}).encode() + b"\n")
            assert json.loads(channel.recv(4096))["ok"] is accepted
    finally:
        server.close()


def test_a_request_that_trickles_is_given_up_after_its_time(state_dir, monkeypatch):
    """One byte now and then would otherwise keep a thread and a descriptor of the daemon for days."""
    monkeypatch.setattr(control, "_PATIENCE", 0.3)
    server = ControlServer(state_dir, lambda _: {"ok": True})
    server.start()
    try:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(0.02)
            channel.connect(str(state_dir / SOCKET))
            deadline = time.monotonic() + WITHIN
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                while time.monotonic() < deadline:
                    channel.send(b" ")
                    threading.Event().wait(0.02)
    finally:
        server.close()


class Full(io.StringIO):
    """A stream whose disk is full for a while."""

    full = True

    def write(self, text):
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


@pytest.mark.usefixtures("_as_before")
def test_a_full_disk_under_the_log_stops_no_document_and_is_told_afterwards():
    """A `say` that raised would end the thread of a loop: documents would wait for good, and silently."""
    stream = Full()
    logs.configure("json", "info", stream)
    logs.say("document_sent")
    logs.say("document_validated")
    stream.full = False
    logs.say("daemon_ready")
    logs.say("daemon_ready")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["log_failures"] == 2
    assert "log_failures" not in second


@pytest.mark.usefixtures("_as_before")
def test_an_event_outside_the_catalogue_raises_also_with_a_level_of_its_own():
    logs.configure("json", "info", io.StringIO())
    with pytest.raises(KeyError):
        logs.say("document_snet", level="warning")
