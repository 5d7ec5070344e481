"""A relay that is far away and speaks TLS: the session that asks less often wins."""

from __future__ import annotations

import os
import random
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import trustme

from benchmarks import bench, relays
from benchmarks.figures import Figure

SESSIONS = 4
SIZE = 50_000


def run(*, small: bool) -> Iterator[Figure]:
    """20 and 50 ms of round trip, in user space: no privilege and no module of the kernel is needed."""
    ours_of, theirs_of = (3, 3) if small else (200, 40)
    for round_trip, mark in ((0.020, 3), (0.050, 4)):
        ours, theirs = _bridged(ours_of, round_trip), _one_session(theirs_of, round_trip)
        what = f"{ours_of:,} documents of 50 kB over {round_trip * 1000:.0f} ms and TLS"
        yield Figure(what, "/s", ours, "smtplib, one session", theirs, at_least=mark)


def _certificate(top: Path) -> tuple[Path, Path]:
    """The authority to trust, and the relay's key with its certificate."""
    authority = trustme.CA()
    trusted, own = top / "ca.pem", top / "relay.pem"
    authority.cert_pem.write_to_path(str(trusted))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(own))
    return trusted, own


def _bridged(count: int, round_trip: float) -> float:
    """Documents a second, from the first deposit to the last marker, connections and `quiet` (200 ms) included."""
    with bench.workplace() as top:
        trusted, own = _certificate(top)
        with relays.relay(top, own) as relay, relays.far(relay.port, round_trip) as port:
            made = bench.documents(top / "outside", count, SIZE)
            bridge = bench.Bridge(top, port, sessions=SESSIONS)
            written = bridge.config.read_text()
            bridge.config.write_text(written.replace("security: plain", f"security: tls, ca_file: {trusted}"))
            with bridge.run():
                began = time.monotonic()
                for path in made:
                    os.rename(path, bridge.inbox / path.name)
                bridge.wait_for(bench.VALIDATED, count)
                took = time.monotonic() - began
            assert len(relay.accepted()) == count, f"{len(relay.accepted())} mails for {count} documents"
    return count / took


class _Prompt(smtplib.SMTP_SSL):
    """smtplib at its best: without TCP_NODELAY each mail waits for a delayed acknowledgement as well (40 ms here)."""

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        sock = super()._get_socket(host, port, timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


def _one_session(count: int, round_trip: float) -> float:
    """Mails a second of one smtplib session that is kept open, from its connection to the last answer."""
    with bench.workplace() as top:
        trusted, own = _certificate(top)
        with relays.relay(top, own) as relay, relays.far(relay.port, round_trip) as port:
            context = ssl.create_default_context(cafile=str(trusted))
            mail = _mail()
            began = time.monotonic()
            with _Prompt("127.0.0.1", port, context=context) as session:
                for _ in range(count):
                    session.sendmail("factures@cabinet.example", ["c0@collecte.example"], mail)
                took = time.monotonic() - began
            assert len(relay.accepted()) == count, f"{len(relay.accepted())} mails for {count}"
    return count / took


def _mail() -> bytes:
    mail = EmailMessage()
    mail["From"] = "factures@cabinet.example"
    mail["To"] = "c0@collecte.example"
    mail["Subject"] = "facture.bin"
    mail.set_content("A document.")
    content = random.Random(bench.SEED).randbytes(SIZE)
    mail.add_attachment(content, maintype="application", subtype="octet-stream", filename="facture.bin")
    return mail.as_bytes()
