"""Many clients at a time: what their deposits cost, and that nobody waits for ever."""

from __future__ import annotations

import itertools
import os
import time

import pytest

from bridged.config import load
from bridged.journal import Journal
from bridged.model import Instant, State
from bridged.patience import Patience
from bridged.rounds import Rounds
from bridged.shares import Shares

CLIENTS = 40
WITHIN = 20.0  # seconds


class Firm:
    """Clients whose GEDs are on one mount, and an intake whose clock is moved by hand."""

    def __init__(self, base):
        self.base, self.ahead = base, 0.0
        clients = [
            f"  - {{name: C{n}, ged: {base}/{n}, collection_email: c{n}@collecte.example, switched_folders: [Achats]}}"
            for n in range(CLIENTS)
        ]
        for n in range(CLIENTS):
            (base / str(n) / "Achats").mkdir(parents=True)
        config = base / "bridged.yaml"
        smtp = "smtp: {host: 127.0.0.1, security: plain, sender: factures@cabinet.example}"
        config.write_text("\n".join([smtp, "watch: {quiet: 2s}", f"state_dir: {base}/state", "clients:", *clients]))
        settings = load(config)
        settings.state_dir.mkdir()
        self.commits = 0
        self.journal = Journal(settings.state_dir)
        self.journal._sql.set_trace_callback(self._count)
        self.patience = Patience(time.monotonic)
        self.rounds = Rounds(self.journal, self.patience, Shares(), lambda: None, lambda: None, self.now)
        self.rounds.configure(settings, start=True)
        self.until(lambda: self.rounds.ready)

    def _count(self, sql: str) -> None:
        self.commits += sql == "COMMIT"

    def now(self) -> Instant:
        return Instant(time.time() + self.ahead, time.monotonic() + self.ahead)

    def until(self, condition) -> None:
        deadline = time.monotonic() + WITHIN
        while not condition():
            assert time.monotonic() < deadline, "it does not come to an end"
            if self.rounds.step(self.now()) > 0:
                time.sleep(0.02)
                self.ahead += 0.1

    def deposit(self, name: str = "facture.txt") -> None:
        for n in range(CLIENTS):
            (self.base / str(n) / "Achats" / name).write_text(name)

    def states(self) -> list[State]:
        return [document.state for document in self.journal.read(lambda tx: list(tx.documents()))]

    def seat(self, n: int):
        return self.rounds._seats[os.fsencode(self.base / str(n))]


@pytest.fixture
def firm(tmp_path):
    firm = Firm(tmp_path)
    yield firm
    firm.rounds.close()
    firm.journal.close()


def test_deposits_of_many_clients_at_a_time_are_a_few_commits(firm):
    """What each costs must not grow with the number of clients: one after the other, each would take two commits."""
    before = firm.commits
    firm.deposit()
    firm.until(lambda: firm.states() == [State.QUEUED] * CLIENTS)
    assert firm.commits - before < CLIENTS / 2


def test_a_ged_whose_turn_raises_is_the_only_one_that_is_late(firm, monkeypatch):
    """It is tried again, and the mistake is told once."""
    failing = firm.seat(7).intake
    with monkeypatch.context() as patch:
        patch.setattr(failing, "_begin_anew", lambda: 1 / 0)
        firm.deposit()
        firm.until(lambda: firm.states() == [State.QUEUED] * (CLIENTS - 1))
        assert firm.seat(7).failing_since < float("inf")
    firm.until(lambda: firm.states() == [State.QUEUED] * CLIENTS)
    assert firm.seat(7).failing_since == float("inf")


def test_a_turn_for_which_there_is_no_thread_is_given_again(firm, monkeypatch):
    """Else its GEDs would wait for ever: nothing would be due, and no turn would end."""
    tries = itertools.count()
    start = firm.patience.start

    def sometimes(ged, work):
        if next(tries) < 3:
            raise RuntimeError("can't start new thread")
        return start(ged, work)

    monkeypatch.setattr(firm.patience, "start", sometimes)
    firm.deposit()
    for _ in range(3):
        with pytest.raises(RuntimeError):
            firm.until(lambda: False)
    firm.until(lambda: firm.states() == [State.QUEUED] * CLIENTS)
