"""Markers of many clients at once, on a disk that is slow."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace

import pytest

from bridged import marking, patience
from bridged.journal import Journal
from bridged.marking import Marking
from bridged.model import Stamp, State
from bridged.patience import Patience
from bridged.shares import Shares

CLIENTS = 120


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path)
    yield journal
    journal.close()


def sent(tx, number, ged):
    columns = {
        "id": f"{number}",
        "client": f"{number}",
        "message_id": f"<{number}@x>",
        "collection_email": "a@b.example",
    }
    columns |= {"ged": ged, "path": ged + b"/facture.pdf", "stamp": Stamp(7, 100, 5, 6), "deposited_at": 1.0}
    seq = tx.add(State.WAITING, date="", **columns)
    for old, new in ((State.WAITING, State.QUEUED), (State.QUEUED, State.SENDING)):
        tx.move(seq, old, new)
    tx.move(seq, State.SENDING, State.SENT, marker_due=0.0)


def many(base, journal, calm, clients):
    """So many clients on one disk, each with a document that was sent: shares, settings, and the last one's GED."""
    shares = Shares()
    for number in range(clients):
        directory = base / f"ged {number}"
        directory.mkdir()
        (directory / "facture.pdf").write_bytes(b"x" * 100)
        ged = os.fsencode(directory)
        fd = os.open(ged, os.O_RDONLY)
        shares.found(ged, ged, fd, settled=True)
        os.close(fd)
        calm.locate(ged, "the disk")
        journal.write(lambda tx, n=number, g=ged: sent(tx, n, g))
    options = SimpleNamespace(suffix=".validated.json", hidden=False)
    return shares, SimpleNamespace(marker=options, watch=SimpleNamespace(sweep=60.0)), ged


def test_the_markers_of_many_clients_on_a_slow_disk_are_written_and_nobody_takes_it_for_one_that_hangs(
    tmp_path, journal, monkeypatch
):
    clock, silent, calls = [0.0], [], []
    calm = Patience(lambda: clock[0])
    shares, settings, ged = many(tmp_path, journal, calm, CLIENTS)
    usual_calls, usual_write, ticking = calm.calls, marking.mark.write_all, threading.Lock()

    def watched(ged, works):
        began = clock[0]
        try:
            return usual_calls(ged, works)
        finally:
            calls.append(clock[0] - began)

    def slowly(*arguments):
        with ticking:  # two at a time may be slow by turns
            clock[0] += 0.1
        silent.append(calm.silent_for(ged))
        return usual_write(*arguments)

    monkeypatch.setattr(calm, "calls", watched)
    monkeypatch.setattr(marking.mark, "write_all", slowly)
    Marking(journal, settings, calm, shares).step(100.0)
    assert [d.state for d in journal.read(lambda tx: list(tx.documents()))] == [State.VALIDATED] * CLIENTS
    assert max(silent) < 1.0  # intake has its turns meanwhile
    assert max(calls) < patience.HANGING  # else all are told to have failed


def test_a_disk_that_is_slow_to_sync_is_waited_for_by_several_markers_at_once(tmp_path, journal, monkeypatch):
    """Each directory's marker waits until another one is being written."""
    calm = Patience(time.monotonic)
    shares, settings, _ = many(tmp_path, journal, calm, 4)
    together, usual = threading.Barrier(marking.AT_ONCE, timeout=10), marking.mark.write_all
    monkeypatch.setattr(marking.mark, "write_all", lambda *a: together.wait() >= 0 and usual(*a))
    Marking(journal, settings, calm, shares).step(100.0)
    assert [d.state for d in journal.read(lambda tx: list(tx.documents()))] == [State.VALIDATED] * 4
