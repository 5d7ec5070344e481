"""Alerts that leave by a session of the documents, with a real journal, a real sender and a scripted relay."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridged.relay import Outgoing
from bridged.relay.outcome import Accepted, AddressRefused, RelayDown
from tests.support.firm import Firm
from tests.support.relay import Cut, Late, Say, ScriptedRelay

OFFICE = "bureau@cabinet.example"


@pytest.fixture
def firm(tmp_path: Path, relay: ScriptedRelay) -> Iterator[Firm]:
    firm = Firm(tmp_path, relay, "polling")
    firm.start()
    yield firm
    if firm.alive:
        firm.stop()


def queue(firm: Firm, count: int) -> None:
    """So many documents, quiet and queued."""
    for number in range(count):
        (firm.base / "Martin/Achats" / f"{number}.txt").write_text(f"document {number}")
    firm.look(until=lambda: [document.state for document in firm.rows()] == ["queued"] * count)


def alert(firm: Firm, to: str = OFFICE) -> Outgoing:
    smtp = firm.sender._route.settings.smtp
    return Outgoing("alert-1", smtp, to, b"Subject: alert\r\n\r\nsomething happened\r\n")


def recipients(relay: ScriptedRelay) -> list[str]:
    return [recipient for mail in relay.mails for recipient in mail.recipients]


def test_an_alert_leaves_by_the_session_of_the_documents_before_the_next_claim(firm, relay):
    queue(firm, 3)
    firm.shared.takes = 60.0  # seconds: each document is claimed alone
    relay.script("DOT", Late())
    away = threading.Thread(target=firm.sender.step, args=(firm.now(),), daemon=True)
    away.start()
    relay.wait_for(lambda: relay.stalled == 1)
    firm.outbox.offer([alert(firm)])
    relay.go_on()
    away.join(10)
    firm.sender.step(firm.now())
    assert [to == OFFICE for to in recipients(relay)] == [False, True, False]
    assert relay.sessions == 1
    [(mail, outcome)] = firm.outbox.collect()
    assert mail.to == OFFICE
    assert isinstance(outcome, Accepted)
    firm.deliver()
    assert {document.state for document in firm.rows()} == {"validated"}


def test_an_alert_leaves_where_no_document_is_due(firm, relay):
    firm.outbox.offer([alert(firm)])
    assert firm.sender.step(firm.now()) > 0
    assert recipients(relay) == [OFFICE]


def test_an_alert_leaves_while_the_state_disk_takes_nothing(firm, relay, monkeypatch):
    """It may be the alert of that disk."""
    queue(firm, 1)
    usual, written = firm.journal.write, []

    def full(wish):
        """The claim is written, and no wish after it."""
        written.append(wish)
        if len(written) > 1:
            raise sqlite3.OperationalError("database or disk is full")
        return usual(wish)

    monkeypatch.setattr(firm.journal, "write", full)
    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError):
            firm.sender.step(firm.now())
    firm.outbox.offer([alert(firm)])
    with pytest.raises(sqlite3.OperationalError):
        firm.sender.step(firm.now())
    assert recipients(relay) == [OFFICE]
    monkeypatch.undo()
    firm.deliver()  # it is put back
    firm.deliver()
    assert recipients(relay) == [OFFICE, "martin@collecte.example"]


@pytest.mark.parametrize(
    ("phase", "action", "kind"),
    [("RCPT", Say("550 5.1.1 nobody"), AddressRefused), ("MAIL", Cut(), RelayDown)],
    ids=["address", "relay"],
)
def test_a_refused_alert_keeps_no_document_and_tells_the_line_nothing(firm, relay, phase, action, kind):
    queue(firm, 1)
    relay.script(phase, action)
    firm.outbox.offer([alert(firm), alert(firm, "garde@cabinet.example")])
    firm.deliver()
    assert isinstance(firm.outbox.collect()[0][1], kind)
    expected = [] if kind is RelayDown else ["garde@cabinet.example"]
    assert recipients(relay) == [*expected, "martin@collecte.example"]
    assert firm.line.state == "up"
    assert firm.said("relay_unreachable") == []


def test_a_mistake_in_an_alert_is_its_outcome_and_keeps_no_document(firm, relay):
    queue(firm, 1)
    firm.outbox.offer([alert(firm, "a@b.example>\r\nRCPT TO:<evil@c.example")])
    firm.deliver()
    [(_, outcome)] = firm.outbox.collect()
    assert isinstance(outcome, ValueError)
    assert recipients(relay) == ["martin@collecte.example"]
    assert firm.said("state_failed") == []


def test_an_alert_for_another_relay_than_the_senders_stays_in_the_outbox(firm, relay):
    other = alert(firm).smtp.model_copy(update={"sender": "other@cabinet.example"})
    firm.outbox.offer([Outgoing("alert-1", other, OFFICE, b"Subject: x\r\n\r\nx\r\n")])
    firm.sender.step(firm.now())
    assert recipients(relay) == []
    assert firm.outbox.take(other, lambda: True) is not None
