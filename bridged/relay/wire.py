"""The raw socket beneath a conversation: a connection, bytes out, replies in, each with a deadline but DNS."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final, NoReturn

from bridged.relay.replies import Reply, sentence, take_reply

_LONGEST: Final = 64 * 1024  # of what a relay said and nobody has taken yet


class Lost(Exception):
    """The line broke or fell silent. Not an OSError: those of the document's file must pass through."""


class Interrupted(Exception):
    """The relay began to answer while we were still uploading."""


class Wire:
    """Bytes and replies on one socket that never blocks without a deadline."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._poll = select.poll()
        self._buffer = bytearray()
        self.sent = 0

    def send(self, data: bytes, timeout: float, *, heed: bool = False) -> None:
        """Hand all of `data` to the kernel. With `heed`, raise Interrupted when the relay says something."""
        view = memoryview(data)
        deadline = time.monotonic() + timeout
        while view:
            if heed and self.interrupted():
                raise Interrupted
            count = self._write(view, deadline, heed=heed)
            if count:  # the time-out is for a line that stands still
                view = view[count:]
                self.sent += count
                deadline = time.monotonic() + timeout

    def _write(self, view: memoryview, deadline: float, *, heed: bool) -> int:
        """What the kernel took; 0 after waiting for room; what came meanwhile is read."""
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
        """The next whole reply, within `timeout` for all of it: to dribble is to be silent."""
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
        """Read what comes before the deadline, which holds for a line that is never silent as well."""
        if time.monotonic() > deadline:
            raise Lost("no answer in time")
        # Of what TLS has read already poll(2) knows nothing; else what was just asked for is hardly here yet.
        if not (isinstance(self._sock, ssl.SSLSocket) and self._read()):
            self._wait(select.POLLIN, deadline)
            self._read()

    def interrupted(self) -> bool:
        """Whether anything has arrived that nobody asked for."""
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
        """The line broke while writing: what the relay said before (a 550 in mid-upload) still counts."""
        with contextlib.suppress(Lost):
            while self._read():
                pass
        if heed and self._buffer:
            raise Interrupted from error
        raise Lost(why(error)) from error

    def _spoken(self) -> bool:
        """A positive last line that only lacks its end: it was said; doubting it makes a duplicate."""
        last = bytes(self._buffer).rpartition(b"\n")[2]
        return len(last) >= 4 and last[:1] == b"2" and last[:3].isdigit() and last[3:4] == b" "


def connected(host: str, port: int, timeout: float, hold: Callable[[socket.socket], None]) -> socket.socket:
    """A TCP connection to the first address that answers; `hold` is told of each socket before it may block."""
    failure: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout)
            hold(sock)
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else 40 ms of waiting a mail
            return sock
        except OSError as error:
            sock.close()
            failure = error
    raise failure or OSError("the name has no address")


def why(error: Exception) -> str:
    """What went wrong in a few words, on one line."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return sentence(0, words) or type(error).__name__
