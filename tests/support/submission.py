"""Helpers for the tests of providers: a certificate, a login, and a bridge that signs in."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import trustme

from tests.support.bridge import Bridge


class Listens(Protocol):
    """A server on 127.0.0.1."""

    port: int


class Identity:
    """A certificate that an authority of our own has issued for these names."""

    def __init__(self, *names: str) -> None:
        self.authority = trustme.CA()
        self.certificate = self.authority.issue_cert(*names or ("localhost", "127.0.0.1"))

    def write(self, directory: Path) -> Path:
        """Key and chain in one file that only its owner reads."""
        path = directory / "identity.pem"
        path.touch(mode=0o600)
        self.certificate.private_key_and_cert_chain_pem.write_to_path(path)
        return path

    def write_authority(self, path: Path) -> Path:
        """The value of smtp.ca_file for a client that trusts this identity."""
        self.authority.cert_pem.write_to_path(path)
        return path


@dataclass
class Credentials:
    """A login, made for one test."""

    user: str = "factures"
    password: str = field(default_factory=lambda: secrets.token_urlsafe(18), repr=False)


class SubmittingBridge(Bridge):
    """A Bridge that signs in over STARTTLS. `smtp` has further or other keys; None takes one out.

    `clients` is how many there are; each has a GED, a switched folder `Achats` and an address of its own.
    """

    retry = "first: 300ms, max: 1s"

    def __init__(self, base: Path, server: Any, credentials: Credentials, ca_file: Path, clients: int = 1) -> None:
        super().__init__(base, server)
        self.smtp: dict[str, Any] = {
            "host": "localhost",
            "port": server.port,
            "security": "starttls",
            "ca_file": ca_file,
            "username": credentials.user,
            "password_file": base / "password",
            "sender": "factures@cabinet.example",
        }
        self.set_password(credentials.password)
        self.inboxes = [self.inbox]
        for number in range(2, clients + 1):
            self._add_client(number)

    def _add_client(self, number: int) -> None:
        ged = self.base / f"ged{number}"
        self.inboxes.append(ged / "Achats")
        self.inboxes[-1].mkdir(parents=True)
        self.more_clients += (
            f"  - {{name: Client {number}, ged: {ged}, collection_email: client{number}@collecte.example,"
            " switched_folders: [Achats]}\n"
        )

    def set_password(self, password: str) -> None:
        """Write the password file. The daemon reads it when it signs in."""
        path = self.base / "password"
        path.touch(mode=0o600)
        path.write_text(password)

    def text(self) -> str:
        """The configuration as it is to be now."""
        usual = super().text().splitlines()
        given = ", ".join(f"{key}: {value}" for key, value in self.smtp.items() if value is not None)
        return "\n".join([f"smtp: {{{given}}}", f"retry: {{{self.retry}}}", *usual[2:], ""])

    def states(self) -> Counter[str]:
        """How many documents are in each state."""
        return Counter(state for _, state in self.document_states())

    def deposit(self, name: str, content: bytes, client: int = 1) -> None:
        """As a scanner's software does it: written elsewhere, then renamed in."""
        outside = self.inboxes[client - 1].parent / name  # no switched folder, and the same file system
        outside.write_bytes(content)
        os.rename(outside, self.inboxes[client - 1] / name)


@contextmanager
def running(bridge: SubmittingBridge) -> Iterator[SubmittingBridge]:
    """Start the bridge, and always stop it at the end."""
    try:
        bridge.start()
        yield bridge
    finally:
        if bridge.process is not None and bridge.process.poll() is None:
            bridge.stop()
