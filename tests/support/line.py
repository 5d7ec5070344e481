"""Helpers for the tests of a bad line: a bridge with any `smtp:`, and relays that break the protocol."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from tests.support.bridge import Bridge
from tests.support.relay import ScriptedRelay

SECRET = "hunter2-très-secret"


class LineBridge(Bridge):
    """A Bridge whose `smtp:` has further settings; with TLS and a login where its relay has them."""

    smtp = "timeout: 1s"

    def text(self) -> str:
        """The configuration as it is to be now."""
        security, login = "plain", ""
        if self.relay.tls == "starttls":
            security = f"starttls, ca_file: {self.relay.ca_file}"
        if self.relay.users:
            login = f", username: us, password_file: {self.base}/password"
        return super().text().replace("security: plain", f"security: {security}{login}, {self.smtp}")

    def relay_state(self) -> str:
        """The state of the relay by `bridged status`."""
        return str(json.loads(self.run("status", "--json").stdout.splitlines()[0])["relay"])

    def row(self, name: str) -> dict[str, Any]:
        """The row of the document with this name."""
        found = [row for row in self.rows() if row["document"].rpartition("/")[2] == name]
        assert len(found) == 1, found
        return found[0]


@contextmanager
def line_bridge(base: Path, relay: Any) -> Iterator[LineBridge]:
    """A LineBridge that is not started yet, and is always stopped at the end."""
    (base / "password").write_text(SECRET)
    (base / "password").chmod(0o600)
    bridge = LineBridge(base, relay)
    try:
        yield bridge
    finally:
        relay.go_on()
        if bridge.process is not None and bridge.process.poll() is None:
            bridge.stop()


def with_login(receive_buffer: int | None = None) -> ScriptedRelay:
    """A relay with every phase there is."""
    return ScriptedRelay(tls="starttls", users={"us": SECRET}, receive_buffer=receive_buffer)


class RawRelay:
    """A server on 127.0.0.1 whose conversation is a function of the socket; closed when that returns."""

    tls, users = "none", ()

    def __init__(self, talk: Callable[[socket.socket, RawRelay], None]) -> None:
        self._talk = talk
        self.over = threading.Event()
        self.sessions = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listener.getsockname()[:2]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def go_on(self) -> None:
        """Let every conversation end."""
        self.over.set()

    def _accept(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                return
            self.sessions += 1
            thread = threading.Thread(target=self._serve, args=(channel,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, channel: socket.socket) -> None:
        with channel, contextlib.suppress(OSError):
            channel.settimeout(20)
            self._talk(channel, self)


def dribble(channel: socket.socket, relay: RawRelay, piece: bytes, every: float) -> None:
    """Send a piece again and again, so that the line never falls silent."""
    while not relay.over.wait(every):
        channel.sendall(piece)


def stays(look: Callable[[], Any], value: Any, during: float) -> None:
    """For absence: a condition that holds over a bounded time of observation."""
    deadline = time.monotonic() + during
    while time.monotonic() < deadline:
        assert look() == value
        time.sleep(0.05)
