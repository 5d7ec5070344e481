"""A real Postfix of our own, on a high loopback port, receives documents byte-identical; by a login, over TLS."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.bridge import Bridge, attachment, until
from tests.support.postfix import Postfix, require
from tests.support.submission import Credentials, Identity, SubmittingBridge, running

NAMES = [
    "Facture été n°12.pdf".encode(),
    "Facture e\u0301te\u0301 NFD.pdf".encode(),
    b"two  spaces and 'quotes' \"double\".pdf",
    b"=?utf-8?q?=0D=0AX-Evil=3A_1?=.pdf",
    b"-leading-dash.pdf",
    b"latin-\xe9\xe8.pdf",
    b"line\rbreak\nin name.pdf",
    "emoji 🧾.pdf".encode(),
    "\u202efdp.exe.pdf".encode(),
    b"semi;colon,comma=equals.pdf",
    b"n" * 200 + b".pdf",
    b"no extension",
]


@contextmanager
def started(identity: Identity | None = None) -> Iterator[Postfix]:
    """An instance that runs, and is gone afterwards."""
    base = Path(tempfile.mkdtemp(prefix="bridged-postfix-"))
    instance = Postfix(base, identity)
    instance.control("start")
    try:
        yield instance
    finally:
        instance.control("stop")
        shutil.rmtree(base)


@pytest.fixture
def postfix() -> Iterator[Postfix]:
    require()
    with started() as instance:
        yield instance


@pytest.fixture
def identity() -> Identity:
    return Identity()


@pytest.fixture
def credentials() -> Credentials:
    return Credentials()


@pytest.fixture
def submission(identity: Identity, credentials: Credentials) -> Iterator[Postfix]:
    """One that wants STARTTLS and these credentials."""
    require(sasl=True)
    with started(identity) as instance:
        instance.set_password(credentials)
        yield instance


@pytest.fixture
def bridge(submission: Postfix, identity: Identity, credentials: Credentials, tmp_path: Path) -> SubmittingBridge:
    ca_file = identity.write_authority(tmp_path / "ca.pem")
    return SubmittingBridge(tmp_path, submission, credentials, ca_file)


def test_a_real_postfix_receives_awkward_names_byte_identical(postfix: Postfix, tmp_path: Path) -> None:
    """Twelve documents, twelve mails, the same bytes, no header added by a name."""
    bridge = Bridge(tmp_path, postfix)  # type: ignore[arg-type] - only its port is used
    bridge.start()
    seeded = random.Random(7)
    contents = {name: b"%PDF-1.4\n" + seeded.randbytes(5000) + b"\n%%EOF\n" for name in NAMES}
    inbox = os.fsencode(bridge.inbox)
    for name, content in contents.items():
        (bridge.outside / "one").write_bytes(content)
        os.rename(os.fsencode(bridge.outside / "one"), inbox + b"/" + name)
    bridge.wait_for("document_validated", len(NAMES))
    until(lambda: len(postfix.received()) == len(NAMES), "all in the maildir")
    bridge.stop()
    mails = postfix.received()
    assert sorted(attachment(mail)[1] for mail in mails) == sorted(contents.values())
    assert all(b"X-Evil" not in mail.partition(b"\n\n")[0].replace(b"=?utf-8", b"") for mail in mails)
    assert {"Facture été n°12.pdf", "emoji 🧾.pdf"} <= {attachment(mail)[0] for mail in mails}


def test_a_document_arrives_signed_in_and_encrypted(
    submission: Postfix, bridge: SubmittingBridge, credentials: Credentials
) -> None:
    """Postfix itself says by which cipher and by whose login; the bytes are the document's."""
    content = b"%PDF-1.4\n" + random.Random(11).randbytes(300_000) + b"\n%%EOF\n"
    bridge.config.write_text(bridge.text())
    check = bridge.run("check", "--smtp")
    assert check.returncode == 0, check.stdout + check.stderr
    assert f"Authenticated as {credentials.user}" in " ".join(check.stdout.split())
    with running(bridge):
        bridge.deposit("facture.pdf", content)
        bridge.wait_for("document_validated")
        mail = until(submission.received, "in the maildir")
    assert len(mail) == 1
    assert attachment(mail[0]) == ("facture.pdf", content)
    head = mail[0].partition(b"\n\n")[0].decode()
    assert "(using TLSv1" in head
    assert f"(Authenticated sender: {credentials.user}@" in head
    assert credentials.password not in bridge.log.read_text() + check.stdout + check.stderr


def test_a_wrong_password_is_one_failed_login_and_loses_nothing(
    submission: Postfix, bridge: SubmittingBridge, credentials: Credentials
) -> None:
    """A person must act: one alert, one failed login however many documents wait, and all leave once it is right."""
    bridge.set_password("not " + credentials.password)
    names = [f"facture {number}.pdf" for number in range(8)]
    with running(bridge):
        for name in names:
            bridge.deposit(name, name.encode())
        bridge.wait_for("relay_misconfigured")
        bridge.wait_for("document_queued", len(names))
        bridge.deposit("later.pdf", b"later.pdf")
        bridge.wait_for("document_queued", len(names) + 1)
        assert bridge.states() == {"queued": len(names) + 1}
        assert bridge.count("relay_misconfigured") == 1
        assert submission.failed_logins() == 1
        assert submission.received() == []

        bridge.set_password(credentials.password)
        assert bridge.run("reload").returncode == 0
        bridge.wait_for("document_validated", len(names) + 1)
        until(lambda: len(submission.received()) == len(names) + 1, "all in the maildir")
    arrived = sorted(attachment(mail) for mail in submission.received())
    assert arrived == sorted((name, name.encode()) for name in [*names, "later.pdf"])
    assert submission.failed_logins() == 1
    assert bridge.count("document_held") == bridge.count("document_deferred") == 0
    assert credentials.password not in bridge.log.read_text()


def test_check_tells_of_a_wrong_password_by_one_login(
    submission: Postfix, bridge: SubmittingBridge, credentials: Credentials
) -> None:
    """`check --smtp` fails with Postfix's own words."""
    bridge.set_password("not " + credentials.password)
    bridge.config.write_text(bridge.text())
    check = bridge.run("check", "--smtp")
    assert check.returncode == 1
    assert "535" in check.stdout + check.stderr
    assert submission.failed_logins() == 1
    assert credentials.password not in check.stdout + check.stderr


@pytest.mark.parametrize("fault", ["authority", "name"])
def test_nothing_is_said_to_a_relay_whose_certificate_is_not_trusted(
    credentials: Credentials, tmp_path: Path, fault: str
) -> None:
    """An authority that is not ours, or another host's name: no login, no envelope; all waits, and one is told."""
    require(sasl=True)
    shown = Identity("smtp.another.example") if fault == "name" else Identity()
    trusted = shown if fault == "name" else Identity()
    with started(shown) as submission:
        submission.set_password(credentials)
        ca_file = trusted.write_authority(tmp_path / "ca.pem")
        bridge = SubmittingBridge(tmp_path, submission, credentials, ca_file)
        with running(bridge):
            bridge.deposit("facture.pdf", b"%PDF-1.4\n%%EOF\n")
            (alert,) = bridge.wait_for("relay_misconfigured")
            assert "not trusted" in alert["reason"]
            check = bridge.run("check", "--smtp")
            assert check.returncode == 1
            until(lambda: submission.log().count("disconnect from") == submission.sessions() == 2, "both are over")
            assert bridge.states() == {"queued": 1}
            assert bridge.count("relay_misconfigured") == 1
        # Postfix counts the commands of each session: EHLO, a STARTTLS that came to nothing, and no other.
        ended = [line for line in submission.log().splitlines() if "disconnect from" in line]
        assert all(line.endswith(" ehlo=1 starttls=0/1 commands=1/2") for line in ended), ended
        assert submission.received() == []
