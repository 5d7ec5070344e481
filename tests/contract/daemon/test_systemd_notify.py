"""systemd.py against real datagram sockets, as the supervisor binds them."""

from __future__ import annotations

import os
import socket
import time
import uuid

import pytest

from bridged.daemon import systemd

DEADLINE = 10.0


@pytest.fixture(params=["path", "abstract"])
def supervisor(request, tmp_path, monkeypatch):
    """A socket in $NOTIFY_SOCKET, in both of the ways that systemd and containers name one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        name = str(tmp_path / "notify") if request.param == "path" else f"@bridged-{uuid.uuid4()}"
        bound.bind("\0" + name[1:] if name.startswith("@") else name)
        bound.settimeout(DEADLINE)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield bound


@pytest.fixture(autouse=True)
def no_watchdog(monkeypatch):
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)


def test_a_notification_arrives_as_one_datagram(supervisor):
    """Several assignments are lines of one."""
    systemd.notify("READY=1\nSTATUS=watching 3 clients, été")
    assert supervisor.recv(4096).decode() == "READY=1\nSTATUS=watching 3 clients, été"


def test_a_text_cannot_bring_in_an_assignment_of_its_own(supervisor):
    """Other line breaks and controls than ours become blanks; half a character stops nothing."""
    systemd.notify("STATUS=a\rREADY=1\x0bb\x85c\u2028WATCHDOG=trigger\x00\udce9d")
    assert supervisor.recv(4096).decode() == "STATUS=a READY=1 b c WATCHDOG=trigger  d"


def test_outside_of_systemd_nothing_happens(monkeypatch):
    """Unset and empty are the same."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "")
    systemd.notify("READY=1")


@pytest.mark.parametrize(
    "address", ["/nonexistent/notify", "relative", "@bridged-nobody", "/" + "x" * 200, "vsock:2:1"]
)
def test_a_supervisor_that_is_not_there_does_not_stop_the_daemon(monkeypatch, address):
    """It notifies in vain."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    systemd.notify("WATCHDOG=1")


def test_a_supervisor_that_has_gone_does_not_stop_the_daemon(supervisor):
    """Its socket refuses."""
    supervisor.close()
    systemd.notify("WATCHDOG=1")


def test_a_supervisor_that_no_longer_reads_does_not_block_the_daemon(supervisor):
    """Its queue is full; a notification is given up after about a second."""
    address = supervisor.getsockname()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                other.sendto(b"x", address)
    began = time.monotonic()
    systemd.notify("WATCHDOG=1")
    assert time.monotonic() - began < DEADLINE


@pytest.mark.usefixtures("collected")
def test_no_descriptor_is_left_open(supervisor):
    """It is told every few seconds, for years."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        systemd.notify("WATCHDOG=1")
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_watchdog_interval_is_systemds_in_seconds(monkeypatch):
    """WATCHDOG_USEC is in microseconds."""
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert systemd.watchdog_interval() == 30.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.watchdog_interval() == 30.0


@pytest.mark.parametrize("microseconds", ["", "0", "soon", "-1", "²"])
def test_no_watchdog_is_none(monkeypatch, microseconds):
    """Also where the variable is not a number."""
    assert systemd.watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    assert systemd.watchdog_interval() is None


def test_a_watchdog_for_another_process_is_none(monkeypatch):
    """The variables are inherited."""
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert systemd.watchdog_interval() is None
