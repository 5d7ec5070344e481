"""The demonstration: a GED, a relay and the daemon itself, all temporary and on this machine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP as MAIL_POLICY
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

from aiosmtpd.smtp import SMTP, Envelope, Session

import bridged
from bridged.model import UserError, readable

WITHIN: Final = 10.0  # seconds for a step, which takes about one
SUFFIX: Final = ".validated.json"
CLIENT: Final = "Boulangerie Martin"
COLLECTION_EMAIL: Final = "martin@collecte.example"
EXISTING: Final = "Achats/Facture de l'an dernier.pdf"

Say = Callable[[str], None]


class DemoFailed(UserError):
    """A step of the demonstration failed; the sentence names the step."""


def show(say: Say) -> None:
    """Show three deposits, three mails and three markers, each as it happens. Raises DemoFailed."""
    with (
        _ended_by_sigterm(),
        tempfile.TemporaryDirectory(prefix="bridged-demo-") as temporary,
        _relay() as relay,
    ):
        place = Path(temporary)
        ged = place / "ged"
        _write(ged / EXISTING, _pdf("last year"))
        with _daemon(_configuration(place, ged, relay.port), place / "daemon.log"):
            say(f"relay     listening on 127.0.0.1:{relay.port}; it keeps every mail to itself")
            say(f"existing  {EXISTING}: was there before the daemon, so it must not be sent")
            say(f"daemon    ready; “Achats” of {CLIENT} is switched on")
            for name, content in _deposits():
                _follow(ged / "Achats" / name, content, relay, say)
        _nothing_else(relay, ged)
        say("done      three deposits, three mails, three markers; the existing file was not sent")


def _deposits() -> Iterator[tuple[str, bytes]]:
    yield "Facture été n°12.pdf", _pdf("Facture 12")
    yield "Ticket de caisse.png", _png()
    # A decomposed accent as macOS writes it, quotation marks, and an attempt to add a header.
    table = "date;libellé;montant\n2026-11-24;Farine;48,20\n"
    yield 'Releve\u0301 "août"\r\nBcc: nobody@other.example;.csv', table.encode()


def _follow(path: Path, content: bytes, relay: _Relay, say: Say) -> None:
    """Follow one document from its deposit to its marker."""
    name = readable(os.fsencode(path.name))
    say("")
    say(f"deposit   Achats/{name} ({len(content)} bytes)")
    _write(path, content)
    mail = relay.next_mail(name)
    for header in ("From", "To", "Subject", "Message-ID", "Date"):
        say(f"mail      {header}: {mail.message[header]}")
    attachment = next(mail.message.iter_attachments(), None)
    received = attachment.get_payload(decode=True) if attachment is not None else None
    if not isinstance(received, bytes) or received != content:
        raise DemoFailed(f"The mail for {name} does not hold the document's bytes.")
    if mail.recipients != [COLLECTION_EMAIL]:
        raise DemoFailed(f"The mail for {name} went to {', '.join(mail.recipients)} and not to {COLLECTION_EMAIL}.")
    digest = hashlib.sha256(received).hexdigest()
    say(f"mail      attachment of {len(received)} bytes, SHA-256 {digest}: unchanged")
    for line in json.dumps(_marker(path), ensure_ascii=False, indent=1).splitlines():
        say(f"marker    {line}")


def _marker(path: Path) -> Any:
    beside = path.with_name(path.name + SUFFIX)
    _wait(beside.exists, f"No marker appeared beside {readable(os.fsencode(path.name))} within {WITHIN:g} s.")
    return json.loads(beside.read_text(encoding="utf-8"))


def _nothing_else(relay: _Relay, ged: Path) -> None:
    if not relay.mails.empty():
        raise DemoFailed("The relay received a mail that no deposit explains.")
    if (ged / (EXISTING + SUFFIX)).exists():
        raise DemoFailed("The existing file was marked as sent.")


def _wait(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + WITHIN
    while not condition():
        if time.monotonic() > deadline:
            raise DemoFailed(otherwise)
        time.sleep(0.02)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does. Otherwise the daemon and the temporary files would be left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- the relay


@dataclass(frozen=True, slots=True)
class _Mail:
    recipients: list[str]
    message: EmailMessage


class _Relay:
    """An SMTP server that keeps every mail."""

    def __init__(self) -> None:
        self.mails: SimpleQueue[_Mail] = SimpleQueue()
        self.port = 0

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802, ARG002
        """Keep a mail. aiosmtpd calls it by this name."""
        content = envelope.content
        assert isinstance(content, bytes)
        message = message_from_bytes(content, policy=MAIL_POLICY)
        assert isinstance(message, EmailMessage)
        self.mails.put(_Mail(list(envelope.rcpt_tos), message))
        return "250 2.0.0 Ok: kept by the demonstration"

    def next_mail(self, name: str) -> _Mail:
        """The next mail. Raises DemoFailed when none comes within 10 s."""
        try:
            return self.mails.get(timeout=WITHIN)
        except Empty:
            raise DemoFailed(f"No mail for {name} reached the relay within {WITHIN:g} s.") from None


@contextmanager
def _relay() -> Iterator[_Relay]:
    relay = _Relay()
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(
        loop.create_server(lambda: SMTP(relay, hostname="demo.example", loop=loop), "127.0.0.1", 0)
    )
    relay.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, name="relay", daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        asyncio.run_coroutine_threadsafe(_close(server), loop).result(WITHIN)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(WITHIN)
        loop.close()


async def _close(server: asyncio.Server) -> None:
    """Stop listening and end the open sessions."""
    server.close()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


# -- the daemon


def _configuration(place: Path, ged: Path, port: int) -> Path:
    file = place / "bridged.yaml"
    settings = {
        "smtp": {
            "host": "127.0.0.1",
            "port": port,
            "security": "plain",
            "sender": "factures@cabinet.example",
        },
        "watch": {"quiet": "300ms", "sweep": "2s", "poll": "1s"},
        "state_dir": str(place / "state"),
        "log": {"format": "json", "level": "info"},
        "clients": [
            {
                "name": CLIENT,
                "ged": str(ged),
                "collection_email": COLLECTION_EMAIL,
                "switched_folders": ["Achats"],
            }
        ],
    }
    (place / "state").mkdir(mode=0o700)
    file.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML, and quotes every temporary path
    return file


@contextmanager
def _daemon(config: Path, log: Path) -> Iterator[None]:
    """The real daemon in a process of its own. It is ready on entry, and ended with SIGTERM on exit."""
    command = [sys.executable, "-m", "bridged", "run", "--config", str(config)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=file, env=_environment())  # noqa: S603
    try:
        _wait(
            lambda: _told(log, "daemon_ready") or process.poll() is not None,
            f"It was not ready in {WITHIN:g} s.",
        )
        if process.poll() is not None:
            raise DemoFailed(f"The daemon did not start. Its last words: {_last_words(log)}")
        yield
        process.terminate()
        if process.wait(WITHIN) != 0:
            raise DemoFailed(f"The daemon did not stop cleanly. Its last words: {_last_words(log)}")
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"The daemon did not stop within {WITHIN:g} s of SIGTERM.") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    """The environment without the variables of a systemd service, and with this very package first in PYTHONPATH."""
    service = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "STATE_DIRECTORY"}
    ours = {name: value for name, value in os.environ.items() if name not in service}
    package = str(Path(bridged.__file__).resolve().parents[1])
    return ours | {"PYTHONPATH": os.pathsep.join(filter(None, (package, ours.get("PYTHONPATH"))))}


def _told(log: Path, event: str) -> bool:
    return f'"{event}"' in log.read_text(encoding="utf-8", errors="replace")


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "it had none"


# -- the documents


def _pdf(text: str) -> bytes:
    """A PDF of one page, with the table of offsets that a viewer needs."""
    drawing = f"BT /F1 24 Tf 72 720 Td ({text}) Tj ET".encode("ascii")
    objects = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources 6 0 R >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawing), drawing),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Font << /F1 5 0 R >> >>",
    )
    content, offsets = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        offsets.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    start = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + table
    end = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(content))
    return content + start + end


def _png() -> bytes:
    """A small grey picture."""
    width, height = 64, 64
    rows = b"".join(b"\0" + bytes((x * 4 + y) % 256 for x in range(width)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
