"""Turns that several GEDs have side by side, and what becomes of those whose neighbour has much to do."""

from __future__ import annotations

import os
import sqlite3
import threading
import time

import pytest

from bridged.config import load
from bridged.journal import Journal
from bridged.model import Instant
from bridged.patience import Patience
from bridged.rounds import Rounds
from bridged.shares import Shares
from bridged.watch import Hint
from tests.bridge import until


def now():
    return Instant(time.time(), time.monotonic())


class Firm:
    """Two clients on one disk, and the rounds of their GEDs."""

    def __init__(self, base):
        clients = ""
        for name in ("Martin", "Dupont"):
            (base / name / "Achats").mkdir(parents=True)
            clients += f"  - {{name: {name}, ged: {base}/{name}, collection_email: {name}@collecte.example,"
            clients += " switched_folders: [Achats]}\n"
        config = base / "bridged.yaml"
        config.write_text(
            "smtp: {host: localhost, security: plain, sender: factures@cabinet.example}\n"
            f"watch: {{sweep: 1h}}\nstate_dir: {base}/state\nclients:\n{clients}"
        )
        settings = load(config)
        settings.state_dir.mkdir()
        self.journal, self.patience = Journal(settings.state_dir), Patience(time.monotonic)
        self.rounds = Rounds(self.journal, self.patience, Shares(), lambda: None, lambda: None, now)
        self.rounds.configure(settings, start=True)
        self.martin, self.dupont = (os.fsencode(base / name) for name in ("Martin", "Dupont"))
        self.step_until(lambda: self.rounds.ready)

    def step_until(self, condition):
        def stepped():
            self.rounds.step(now())
            return condition()

        until(stepped, "it comes to that")

    def documents(self):
        return [document.path for document in self.journal.read(lambda tx: list(tx.documents()))]

    def deposit(self, ged):
        path = ged + b"/Achats/new.pdf"
        with open(path, "wb") as file:
            file.write(b"%PDF")
        self.rounds._hand_to(ged, Hint("look", path))
        return path


@pytest.fixture
def firm(tmp_path):
    firm = Firm(tmp_path)
    yield firm
    firm.rounds.close()
    firm.journal.close()


def test_a_ged_that_has_much_to_do_keeps_those_beside_it_from_no_turn(firm, monkeypatch):
    """Ten thousand files were unpacked there: the others' deposits are not to wait for that."""
    done = threading.Event()

    def long(_now, _most):
        while not done.wait(0.01):
            firm.patience.beat()
            yield lambda tx: None
        return 60.0

    for ged in (firm.martin, firm.dupont):
        firm.rounds._seats[ged].due = 0.0
    with monkeypatch.context() as patch:
        patch.setattr(firm.rounds._seats[firm.martin].intake, "step", long)
        firm.rounds.step(now())
    path = firm.deposit(firm.dupont)
    firm.step_until(lambda: firm.documents() == [path])
    assert firm.rounds._seats[firm.martin].turn is not None
    done.set()
    other = firm.deposit(firm.martin)
    firm.step_until(lambda: firm.documents() == [path, other])


def test_what_one_ged_raises_is_its_own(firm, monkeypatch):
    def fails(_now, _most):
        yield lambda tx: tx.move(99, *[None] * 2)

    monkeypatch.setattr(firm.rounds._seats[firm.martin].intake, "step", fails)
    paths = [firm.deposit(ged) for ged in (firm.martin, firm.dupont)]
    firm.step_until(lambda: firm.documents() == paths[1:])
    troubles = {ged: seat.failing_since < now().steady for ged, seat in firm.rounds._seats.items()}
    assert troubles == {firm.martin: True, firm.dupont: False}


def test_all_have_their_turns_again_when_the_disk_was_full(firm, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    paths = {firm.deposit(ged) for ged in (firm.martin, firm.dupont)}
    with monkeypatch.context() as patch:
        patch.setattr(firm.journal, "_grant_all", full)
        firm.step_until(lambda: all(seat.failing_since < now().steady for seat in firm.rounds._seats.values()))
    firm.step_until(lambda: set(firm.documents()) == paths)
