"""The socket beneath a conversation: a connection, bytes out, replies in. Each has a deadline, except DNS."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final, NoReturn

from bridged.relay.replies import Reply, sentence, take_reply

_LONGEST: Final = 64 * 1024  # bytes of a relay that are read and not taken yet


class Lost(Exception):
    """The line broke or fell silent. No OSError, because an OSError is the trouble of the document's file."""


class Interrupted(Exception):
    """The relay began a reply during the upload."""


class Wire:
    """Bytes and replies on one socket that never blocks without a deadline. `sent` counts the bytes handed over."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._poll = select.poll()
        self._buffer = bytearray()
        self.sent = 0

    def send(self, data: bytes, timeout: float, *, heed: bool = False) -> None:
        """Hand all of `data` to the kernel. Raises Lost, also when no byte goes out for `timeout` seconds.

        With `heed`, raises Interrupted when the relay begins a reply.
        """
        view = memoryview(data)
        deadline = time.monotonic() + timeout
        while view:
            if heed and self.interrupted():
                raise Interrupted
            count = self._write(view, deadline, heed=heed)
            if count:  # a new deadline, because the time-out is for a line that stands still
                view = view[count:]
                self.sent += count
                deadline = time.monotonic() + timeout

    def _write(self, view: memoryview, deadline: float, *, heed: bool) -> int:
        """The number of bytes that the kernel took; 0 after a wait for room, in which replies are read."""
        try:
            return self._sock.send(view)
        except (BlockingIOError, ssl.SSLWantWriteError):
            events = select.POLLIN | select.POLLOUT
        except ssl.SSLWantReadError:
            events = select.POLLIN
        except OSError as error:
            self._broken(error, heed=heed)
        self._wait(events, deadline)
        self._read()
        return 0

    def reply(self, timeout: float) -> Reply:
        """The next whole reply. Raises Lost, also when the whole has not come within `timeout` seconds.

        A reply that dribbles counts as silence, because otherwise it would hold the session for ever.
        """
        deadline = time.monotonic() + timeout
        while (reply := take_reply(self._buffer)) is None:
            try:
                self._more(deadline)
            except Lost:
                if not self._spoken():
                    raise
                self._buffer += b"\r\n"
        return reply

    def _more(self, deadline: float) -> None:
        """Wait for bytes and read them. The deadline holds also for a line that is never silent."""
        if time.monotonic() > deadline:
            raise Lost("no answer in time")
        # First from TLS, because poll(2) does not see the bytes that TLS has read already.
        if not (isinstance(self._sock, ssl.SSLSocket) and self._read()):
            self._wait(select.POLLIN, deadline)
            self._read()

    def interrupted(self) -> bool:
        """True when bytes of the relay have arrived."""
        return bool(self._buffer) or self._read()

    def _read(self) -> bool:
        room = _LONGEST - len(self._buffer)
        if room <= 0:
            raise Lost("the relay's reply does not end")
        try:
            data = self._sock.recv(room)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            raise Lost(why(error)) from error
        if not data:
            raise Lost("the relay closed the connection")
        self._buffer += data
        return True

    def _wait(self, events: int, deadline: float) -> None:
        self._poll.register(self._sock, events)
        if not self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise Lost("no answer in time")

    def _broken(self, error: OSError, *, heed: bool) -> NoReturn:
        """The line broke during a write: a reply that came before it (a 550 in the upload) still counts."""
        with contextlib.suppress(Lost):
            while self._read():
                pass
        if heed and self._buffer:
            raise Interrupted from error
        raise Lost(why(error)) from error

    def _spoken(self) -> bool:
        """True for a positive last line that only lacks its end. It counts, because doubt would make a duplicate."""
        last = bytes(self._buffer).rpartition(b"\n")[2]
        return len(last) >= 4 and last[:1] == b"2" and last[:3].isdigit() and last[3:4] == b" "


def connected(host: str, port: int, timeout: float, hold: Callable[[socket.socket], None]) -> socket.socket:
    """A TCP connection to the first address that answers, within `timeout` seconds each. Raises OSError.

    `hold` gets each socket before it may block, so that another thread can shut it.
    """
    failure: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout)
            hold(sock)
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # otherwise each mail waits 40 ms
            return sock
        except OSError as error:
            sock.close()
            failure = error
    raise failure or OSError("the name has no address")


def why(error: Exception) -> str:
    """An error in a few words, on one line."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return sentence(0, words) or type(error).__name__
