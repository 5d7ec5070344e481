"""A real Exim of our own. An accepted mail arrives once and whole; a refusal is told in words of Exim."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bridge import attachment, until
from tests.support.exim import LIMIT, Exim
from tests.support.submission import Credentials, Identity, SubmittingBridge, running


@pytest.fixture
def credentials() -> Credentials:
    return Credentials()


@pytest.fixture
def identity() -> Identity:
    return Identity()


@pytest.fixture
def exim(identity: Identity, credentials: Credentials) -> Iterator[Exim]:
    base = Path(tempfile.mkdtemp(prefix="bridged-exim-"))
    instance = None
    try:
        instance = Exim(base, identity, credentials)
        instance.start()
        yield instance
    finally:
        if instance is not None:
            instance.stop()
        shutil.rmtree(base)


@pytest.fixture
def bridge(exim: Exim, identity: Identity, credentials: Credentials, tmp_path: Path) -> SubmittingBridge:
    """Three clients: Martin, whose address works, one whose address is closed, and one that Exim lets wait."""
    ca_file = identity.write_authority(tmp_path / "ca.pem")
    bridge = SubmittingBridge(tmp_path, exim, credentials, ca_file, clients=3)
    bridge.more_clients = bridge.more_clients.replace("client2@", "gone@").replace("client3@", "slow@")
    return bridge


def pdf(seed: int, size: int) -> bytes:
    return b"%PDF-1.4\n" + random.Random(seed).randbytes(size) + b"\n%%EOF\n"


def test_documents_arrive_at_exim_once_and_whole(
    exim: Exim, bridge: SubmittingBridge, credentials: Credentials
) -> None:
    """Signed in by AUTH PLAIN over TLS, as Exim's log and headers say; the bytes are the documents'."""
    bridge.config.write_text(bridge.text())
    check = bridge.run("check", "--smtp")
    assert check.returncode == 0, check.stdout + check.stderr
    assert f"up to {LIMIT} bytes" in " ".join(check.stdout.split())
    documents = {f"Facture été n°{number}.pdf": pdf(number, 20_000) for number in range(20)}
    with running(bridge):
        for name, content in documents.items():
            bridge.deposit(name, content)
        bridge.wait_for("document_validated", len(documents))
        until(lambda: exim.count().total() >= len(documents), "all in the maildir")
    mails = exim.received()
    assert mails.keys() == {"Martin@collecte.example"}
    arrived = [attachment(raw) for raw in mails["Martin@collecte.example"]]
    assert sorted(arrived) == sorted(documents.items())
    assert all(b"with esmtpsa" in raw for raw in mails["Martin@collecte.example"])
    assert exim.log().count(f"A=plain:{credentials.user}") == len(documents)


def test_an_address_refused_by_exim_holds_its_document_and_others_go_on(exim: Exim, bridge: SubmittingBridge) -> None:
    """550 5.1.1 is of that address alone."""
    with running(bridge):
        bridge.deposit("for a closed address.pdf", pdf(1, 2000), client=2)
        bridge.deposit("before.pdf", pdf(2, 2000))
        (held,) = bridge.wait_for("document_held")
        bridge.deposit("after.pdf", pdf(3, 2000))
        bridge.wait_for("document_validated", 2)
        until(lambda: exim.count().total() == 2, "the others are in the maildir")
        assert bridge.states() == {"held": 1, "validated": 2}
        rows = {row["document"].rpartition("/")[2]: row for row in bridge.rows()}
    words = "550 5.1.1 <gone@collecte.example>: this collection address has been closed"
    assert words in held["reason"]
    assert words in rows["for a closed address.pdf"]["reason"]
    assert exim.count() == {"Martin@collecte.example": 2}
    assert bridge.count("relay_misconfigured") == bridge.count("relay_unreachable") == 0


def test_a_document_over_exims_message_size_limit_is_held_before_any_of_it_is_sent(
    exim: Exim, bridge: SubmittingBridge
) -> None:
    """The encoded mail counts: 160,000 bytes of document are 219,000 of mail."""
    with running(bridge):
        bridge.deposit("too large.pdf", pdf(4, 160_000))
        (held,) = bridge.wait_for("document_held")
        bridge.deposit("just fits.pdf", pdf(5, 145_000))
        bridge.wait_for("document_validated")
        until(lambda: exim.count().total() == 1, "the other is in the maildir")
    assert f"SIZE of {LIMIT} bytes" in held["reason"]
    (raw,) = exim.received()["Martin@collecte.example"]
    assert attachment(raw) == ("just fits.pdf", pdf(5, 145_000))
    assert "rejected" not in exim.log()  # neither MAIL with that SIZE nor DATA was tried


def test_a_document_deferred_by_exim_is_tried_again_until_it_is_accepted(exim: Exim, bridge: SubmittingBridge) -> None:
    """Greylisting is of one address. Other addresses do not wait, and bridged does not take it for a throttle."""
    exim.greylist(True)
    with running(bridge):
        bridge.deposit("slow.pdf", pdf(6, 2000), client=3)
        (deferred, *_) = bridge.wait_for("document_deferred", 2)
        assert "451 4.7.1 greylisted" in deferred["reason"]
        bridge.deposit("meanwhile.pdf", pdf(7, 2000))
        bridge.wait_for("document_validated")
        exim.greylist(False)
        bridge.wait_for("document_validated", 2)
        until(lambda: exim.count().total() == 2, "both are in the maildir")
    assert exim.count() == {"Martin@collecte.example": 1, "slow@collecte.example": 1}
    assert attachment(exim.received()["slow@collecte.example"][0]) == ("slow.pdf", pdf(6, 2000))
    assert bridge.count("relay_throttled") == bridge.count("document_held") == 0
