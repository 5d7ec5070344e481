"""Turns that several GEDs have side by side: what they cost, and that nobody waits for another, or for ever."""

from __future__ import annotations

import io
import itertools
import json
import os
import sqlite3
import threading
import time

import pytest

from bridged import logs
from bridged.config import load
from bridged.ged import Calls, Mounts
from bridged.intake import Rounds
from bridged.intake.intake import Intake
from bridged.journal import Journal
from bridged.journal.values import Query
from bridged.model import Instant, State
from bridged.watching import Hint

MANY = 40
WITHIN = 20.0  # seconds


class Firm:
    """Clients whose GEDs are on one mount, and the rounds of these, stepped by hand."""

    def __init__(self, base, clients):
        self.log = io.StringIO()
        logs.configure("json", "info", self.log)
        self.base, self.ahead, self.commits = base, 0.0, 0
        self.geds = [os.fsencode(base / str(n)) for n in range(clients)]
        for n in range(clients):
            (base / str(n) / "Achats").mkdir(parents=True)
        settings = self.settings(dict.fromkeys(range(clients), "Achats"))
        settings.state_dir.mkdir()
        self.journal, self.calls = Journal(settings.state_dir), Calls(time.monotonic)
        self.journal._sql.set_trace_callback(self._count)
        self.rounds = Rounds(self.journal, self.calls, Mounts(), lambda: None, lambda: None, self.now)
        self.rounds.configure(settings, start=True)
        self.step_until(lambda: self.rounds.ready, hurry=0.0)  # a sync comes at the speed of the kernel

    def settings(self, folders):
        """The configuration that switches one folder on for each of these clients, told by number."""
        lines = [
            f"  - {{name: C{n}, ged: {self.base}/{n}, collection_email: c{n}@collecte.example,"
            f" switched_folders: [{folder}]}}"
            for n, folder in folders.items()
        ]
        config = self.base / "bridged.yaml"
        smtp = "smtp: {host: localhost, security: plain, sender: factures@cabinet.example}"
        watch = "watch: {quiet: 2s, sweep: 1h}"
        config.write_text("\n".join([smtp, watch, f"state_dir: {self.base}/state", "clients:", *lines]))
        return load(config)

    def said(self, event):
        lines = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]

    def _count(self, sql):
        self.commits += sql == "COMMIT"

    def now(self):
        return Instant(time.time() + self.ahead, time.monotonic() + self.ahead)

    def step_until(self, condition, hurry=0.1):
        """Step. `hurry` is the seconds by which the clock goes ahead at each idle step."""
        deadline = time.monotonic() + WITHIN
        while not condition():
            assert time.monotonic() < deadline, "it does not come to an end"
            if self.rounds.step(self.now()) > 0:
                time.sleep(0.02)
                self.ahead += hurry

    def seat(self, ged):
        return self.rounds._seats[ged]

    def deposit(self, ged):
        path = ged + b"/Achats/new.txt"
        with open(path, "wb") as file:
            file.write(b"a document")
        self.rounds._hand_to(ged, Hint("look", path))
        return path

    def documents(self):
        return [document.path for document in self.journal.read(lambda tx: list(tx.documents()))]

    def queued(self):
        return len(self.journal.read(lambda tx: tx.documents(Query(states=(State.QUEUED,)))))


@pytest.fixture
def opened(tmp_path):
    firms = []

    def opened(clients):
        firms.append(Firm(tmp_path, clients))
        return firms[0]

    yield opened
    for firm in firms:
        firm.rounds.close()
        firm.journal.close()


@pytest.fixture
def firm(opened):
    return opened(2)


def test_the_sync_of_each_first_pass_has_come_through_when_it_ends(opened, monkeypatch):
    """Otherwise each would wait for it in vain, and make another look in its place."""
    ends, usual = {}, Intake._all_told

    def all_told(intake, now):
        told = usual(intake, now)
        if told:  # a later pass begins without a sync
            ends.setdefault(intake.ged.path, (intake._sync.came, intake._blind))
        return told

    monkeypatch.setattr(Intake, "_all_told", all_told)
    firm = opened(MANY)
    assert ends == dict.fromkeys(firm.geds, (True, False))


def test_deposits_of_many_clients_at_a_time_are_a_few_commits(opened):
    """What each costs must not grow with the number of clients: one after the other, each would take two commits."""
    firm = opened(MANY)
    before = firm.commits
    for ged in firm.geds:
        firm.deposit(ged)
    firm.step_until(lambda: firm.queued() == MANY)
    assert firm.commits - before < MANY / 2


def test_a_ged_whose_turn_raises_is_the_only_one_that_is_late(opened, monkeypatch):
    """It is tried again."""
    firm = opened(MANY)
    failing = firm.seat(firm.geds[7])
    with monkeypatch.context() as patch:
        patch.setattr(failing.intake, "_begin_anew", lambda: 1 / 0)
        for ged in firm.geds:
            firm.deposit(ged)
        firm.step_until(lambda: firm.queued() == MANY - 1)
        assert failing.failing_since < float("inf")
    firm.step_until(lambda: firm.queued() == MANY)
    assert failing.failing_since == float("inf")


def test_a_turn_for_which_there_is_no_thread_is_given_again(firm, monkeypatch):
    """Else its GEDs would wait for ever: nothing would be due, and no turn would end."""
    tries = itertools.count()
    start = firm.calls.start

    def sometimes(ged, work):
        if next(tries) < 3:
            raise RuntimeError("can't start new thread")
        return start(ged, work)

    monkeypatch.setattr(firm.calls, "start", sometimes)
    for ged in firm.geds:
        firm.deposit(ged)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            firm.step_until(lambda: False)
    firm.step_until(lambda: firm.queued() == len(firm.geds))


def test_a_ged_that_has_much_to_do_keeps_those_beside_it_from_no_turn(firm, monkeypatch):
    """Ten thousand files were unpacked there: the others' deposits are not to wait for that."""
    busy, beside = firm.geds
    done = threading.Event()

    def long(_now, _most):
        while not done.wait(0.01):
            firm.calls.progress()
            yield lambda tx: None
        return 60.0

    for ged in firm.geds:
        firm.seat(ged).due = 0.0
    with monkeypatch.context() as patch:
        patch.setattr(firm.seat(busy).intake, "step", long)
        firm.rounds.step(firm.now())
    path = firm.deposit(beside)
    firm.step_until(lambda: firm.documents() == [path])
    assert firm.seat(busy).turn is not None
    done.set()
    other = firm.deposit(busy)
    firm.step_until(lambda: firm.documents() == [path, other])


def test_an_error_of_one_ged_stops_no_other(firm, monkeypatch):
    def fails(_now, _most):
        yield lambda tx: tx.requeue(99)

    failing, beside = firm.geds
    monkeypatch.setattr(firm.seat(failing).intake, "step", fails)
    paths = [firm.deposit(ged) for ged in firm.geds]
    firm.step_until(lambda: firm.documents() == paths[1:])
    assert firm.seat(failing).failing_since < float("inf")
    assert firm.seat(beside).failing_since == float("inf")


def test_all_have_their_turns_again_when_the_disk_was_full(firm, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    paths = {firm.deposit(ged) for ged in firm.geds}
    with monkeypatch.context() as patch:
        patch.setattr(firm.journal, "_grant_all", full)
        firm.step_until(lambda: all(firm.seat(ged).failing_since < float("inf") for ged in firm.geds))
    firm.step_until(lambda: set(firm.documents()) == paths)


def test_folder_switched_off_names_its_client_also_where_that_is_removed(opened):
    firm = opened(3)
    firm.rounds.configure(firm.settings({0: "Achats", 1: "Notes"}), start=False)
    firm.step_until(lambda: len(firm.said("folder_switched_off")) == 2)
    told = {(line["client"], line["folder"]) for line in firm.said("folder_switched_off")}
    assert told == {("C1", "Achats"), ("C2", "Achats")}


def test_folder_switched_off_after_a_stop_has_no_client_where_that_was_removed(opened):
    firm = opened(2)
    rounds = Rounds(firm.journal, firm.calls, Mounts(), lambda: None, lambda: None, firm.now)
    rounds.configure(firm.settings({0: "Achats"}), start=True)
    rounds.close()
    (line,) = firm.said("folder_switched_off")
    assert "client" not in line
    assert line["ged"] == os.fsdecode(firm.geds[1])
