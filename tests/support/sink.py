"""A relay that accepts mails of any size in little memory: it keeps nothing of them but their attachments' SHA-256."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socketserver
import threading
from collections.abc import Iterator


class _Session(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"220 sink\r\n")
        for line in self.rfile:
            verb = line[:4].upper()
            if verb == b"EHLO":
                self.wfile.write(b"250-sink\r\n250 PIPELINING\r\n")
            elif verb == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                self.server.digests.append(self._digest())  # type: ignore[attr-defined]
                self.wfile.write(b"250 2.0.0 taken\r\n")
            elif verb == b"QUIT":
                return
            else:
                self.wfile.write(b"250 2.0.0 ok\r\n")

    def _digest(self) -> str:
        """The SHA-256 of the last base64 part, from its headers to the boundary, line by line."""
        digest, encoded = hashlib.sha256(), False
        for line in self.rfile:
            if line == b".\r\n":
                break
            if line.lower().startswith(b"content-transfer-encoding: base64"):
                digest, encoded = hashlib.sha256(), True
            elif line.startswith(b"--"):
                encoded = False
            elif encoded and b":" not in line and not line.startswith((b" ", b"\t")):
                digest.update(base64.b64decode(line))
        return digest.hexdigest()


class Sink(socketserver.ThreadingTCPServer):
    """Listens on `port`; `digests` has one for each mail."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.port = self.server_address[1]
        self.digests: list[str] = []


@contextlib.contextmanager
def sinking() -> Iterator[Sink]:
    """A sink that is running."""
    with Sink() as sink:
        threading.Thread(target=sink.serve_forever, daemon=True).start()
        yield sink
        sink.shutdown()
