"""Which documents are claimed together, with a real journal."""

from __future__ import annotations

import io
import os

import pytest

from bridged import logs
from bridged.config import SwitchedFolders, load
from bridged.dispatch import Route, Shared
from bridged.dispatch.claims import Claims
from bridged.journal import Journal
from bridged.journal.values import Query
from bridged.line import Line
from bridged.model import Instant, Stamp, State
from bridged.relay import Outbox
from tests.support.documents import put

NOW = Instant(1000.0, 1000.0)


class Queue:
    """Documents of some clients, queued in a given order, and one sender's claims."""

    def __init__(self, base):
        logs.configure("json", "info", io.StringIO())
        clients = [
            f"  - {{name: {name}, ged: {base}/{name}, collection_email: {name}@collecte.example,"
            " switched_folders: [In]}"
            for name in "ABC"
        ]
        config = base / "bridged.yaml"
        smtp = "smtp: {host: 127.0.0.1, security: plain, sender: factures@cabinet.example}"
        config.write_text("\n".join([smtp, f"state_dir: {base}/state", "clients:", *clients]))
        settings = load(config)
        settings.state_dir.mkdir()
        self.base, self.shared, self.away = base, Shared(Outbox()), ()
        self.journal = Journal(settings.state_dir)
        switched = SwitchedFolders(settings.clients, settings.ignore)
        self.route = Route(settings, switched, Line(settings.retry, 4))
        self.claims = Claims(self.journal, self.shared, lambda: self.away)

    def add(self, names: str) -> None:
        """`A1 B1`: the first letter is the client's."""
        for name in names.split():
            ged = os.fsencode(self.base / name[0])
            path = ged + b"/In/" + name.encode()
            places = {"ged": ged, "path": path, "collection_email": f"{name[0]}@collecte.example"}
            places["stamp"] = Stamp(len(path), 10, 5, 6)

            def enter(tx, name=name, places=places):
                seq = put(tx, State.QUEUED, name.encode(), client=name[0], **places)
                tx.know(places["path"], places["stamp"], seq)

            self.journal.write(enter)

    def take(self, most: int = 16) -> str:
        return " ".join(document.name.decode() for document in self.claims.take(self.route, NOW, most))


@pytest.fixture
def queue(tmp_path):
    queue = Queue(tmp_path)
    yield queue
    queue.journal.close()


def test_a_lone_clients_documents_are_claimed_by_deposit_up_to_the_given_number(queue):
    queue.add("A1 A2 A3 A4 A5")
    assert [queue.take(2), queue.take(2), queue.take(2), queue.take(2)] == ["A1 A2", "A3 A4", "A5", ""]


def test_clients_take_turns_within_a_claim_and_from_one_to_the_next(queue):
    """Whoever has many documents does not keep the others waiting; who is alone at the end has all the turns."""
    queue.add("A1 A2 A3 A4 B1 C1 C2")
    assert queue.take(2) == "A1 B1"
    assert queue.take(3) == "C1 A2 C2"
    queue.add("B2")
    assert queue.take() == "A3 B2 A4"


def test_documents_that_are_not_due_or_on_a_share_that_is_away_are_passed_over(queue):
    queue.add("A1 A2")
    queue.add("B1")
    queue.journal.write(lambda tx: tx.put_off(1, NOW.wall + 5))
    queue.away = (os.fsencode(queue.base / "B"),)
    assert queue.take() == "A2"
    queue.away = ()
    assert queue.take() == "B1"
    assert not queue.claims.waiting(queue.route, NOW)
    assert queue.claims.waiting(queue.route, Instant(NOW.wall + 5, NOW.steady))


def test_a_refused_address_holds_each_document_that_goes_there_and_no_other(queue):
    queue.add("A1 A2 A3 B1")
    queue.journal.write(lambda tx: tx.refuse_address("A@collecte.example", 1.0, "550 no such user"))
    assert queue.take() == "B1"
    held = queue.journal.read(lambda tx: [d.name for d in tx.documents(Query(states=(State.HELD,)))])
    assert held == [b"A1", b"A2", b"A3"]
