"""A relay that notes when it accepted each mail, with TLS or without, and a long way to it: a process each.

relays.py accept PORT TIMES [CERTIFICATE]: the relay; each acceptance is a line of TIMES.
relays.py delay PORT BEHIND SECONDS: a proxy that holds every byte for so long, in either direction.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from benchmarks import bench

_ENDED = b"\r\n.\r\n"


class Relay:
    """Where the relay listens, and when it accepted what it did."""

    def __init__(self, port: int, times: Path) -> None:
        self.port = port
        self._times = times
        self._read = 0
        self._accepted: list[float] = []

    def accepted(self) -> list[float]:
        """The times at which the final dots were answered."""
        with self._times.open("rb") as lines:
            lines.seek(self._read)
            new = lines.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        self._accepted += [float(line) for line in whole.split()]
        return self._accepted


@contextlib.contextmanager
def relay(top: Path, certificate: Path | None = None) -> Iterator[Relay]:
    """A relay that takes every mail and keeps none, over TLS where there is a certificate."""
    times = top / "accepted"
    times.touch()
    port = bench.free_port()
    secure = [str(certificate)] if certificate else []
    with _process("accept", str(port), str(times), *secure):
        yield Relay(port, times)


@contextlib.contextmanager
def far(port: int, round_trip: float) -> Iterator[int]:
    """The port of a way to `port` on which a question and its answer take `round_trip` seconds together."""
    near = bench.free_port()
    with _process("delay", str(near), str(port), str(round_trip / 2)):
        yield near


@contextlib.contextmanager
def _process(*arguments: str) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.relays", *arguments]
    home = Path(__file__).parents[1]
    with bench.running(command, stdout=subprocess.PIPE, cwd=home) as process:
        with process.stdout:  # it says a line when it listens
            if not process.stdout.readline():
                raise RuntimeError(f"{command} did not begin")
        yield


# -- the relay


class _Conversation(asyncio.Protocol):
    """As much of SMTP as a client that does all right needs, with pipelining."""

    def __init__(self, times: BinaryIO) -> None:
        self._times = times
        self._unread = bytearray()
        self._in_mail = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._line = transport
        self._line.write(b"220 relay.example ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._unread += data
        while self._mail() if self._in_mail else self._command():
            pass

    def _mail(self) -> bool:
        end = self._unread.find(_ENDED)
        if end < 0:
            del self._unread[: -len(_ENDED)]  # what may be the beginning of the end stays
            return False
        del self._unread[: end + len(_ENDED)]
        self._in_mail = False
        self._times.write(b"%.6f\n" % time.time())
        self._line.write(b"250 2.0.0 Ok\r\n")
        return True

    def _command(self) -> bool:
        end = self._unread.find(b"\n")
        if end < 0:
            return False
        verb = bytes(self._unread[:4]).upper()
        del self._unread[: end + 1]
        if verb == b"EHLO":
            self._line.write(b"250-relay.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n")
        elif verb == b"DATA":
            self._in_mail = True
            self._unread[:0] = b"\r\n"  # so that a mail of nothing but a dot ends as well
            self._line.write(b"354 Go on\r\n")
        elif verb == b"QUIT":
            self._line.write(b"221 2.0.0 Bye\r\n")
            self._line.close()
            return False
        else:
            self._line.write(b"250 2.0.0 Ok\r\n")
        return True


async def _accept(port: int, times: BinaryIO, certificate: str | None) -> None:
    context = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Conversation(times), "127.0.0.1", port, ssl=context)
    print("listening", flush=True)
    await server.serve_forever()


# -- the long way


def _delay(port: int, behind: int, seconds: float) -> None:
    """Threads and not asyncio: epoll waits for whole milliseconds, and two of them are a tenth of 20."""
    with socket.create_server(("127.0.0.1", port), backlog=100) as server:
        print("listening", flush=True)
        while True:
            near, _ = server.accept()
            away = socket.create_connection(("127.0.0.1", behind))
            for one, other in ((near, away), (away, near)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                threading.Thread(target=_take, args=(one, waiting, seconds), daemon=True).start()
                threading.Thread(target=_hand_on, args=(other, waiting), daemon=True).start()


def _take(source: socket.socket, waiting: queue.SimpleQueue[tuple[float, bytes]], seconds: float) -> None:
    """Read at once whatever comes, so that the delay holds up no byte but by its time."""
    data = b"."
    while data:
        try:
            data = source.recv(256 * 1024)
        except OSError:
            data = b""
        waiting.put((time.monotonic() + seconds, data))


def _hand_on(target: socket.socket, waiting: queue.SimpleQueue[tuple[float, bytes]]) -> None:
    with contextlib.suppress(OSError):  # the other side has gone
        while True:
            due, data = waiting.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if not data:
                target.shutdown(socket.SHUT_WR)
                return
            target.sendall(data)


if __name__ == "__main__":
    if sys.argv[1] == "delay":
        _delay(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
    with open(sys.argv[3], "ab", buffering=0) as noted:
        asyncio.run(_accept(int(sys.argv[2]), noted, sys.argv[4] if len(sys.argv) > 4 else None))
