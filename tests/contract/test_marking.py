"""Markers of many clients at once, on a disk that is slow."""

from __future__ import annotations

import os
import stat
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
    clock, silent = [0.0], []
    calm = Patience(lambda: clock[0])
    shares, settings, ged = many(tmp_path, journal, calm, CLIENTS)
    usual = os.fsync

    def slowly(fd):
        clock[0] += 0.3
        silent.append(calm.silent_for(ged))
        usual(fd)

    monkeypatch.setattr(marking.mark.os, "fsync", slowly)
    Marking(journal, settings, calm, shares).step(100.0)
    assert [d.state for d in journal.read(lambda tx: list(tx.documents()))] == [State.VALIDATED] * CLIENTS
    assert clock[0] > 2 * marking.DIRECTORIES * 0.3 > patience.HANGING  # files and directories, in each call
    assert max(silent) < 1.0  # intake has its turns meanwhile


def test_a_disk_with_a_journal_has_the_content_of_all_markers_to_commit_when_the_first_is_synced(
    tmp_path, journal, monkeypatch
):
    calm = Patience(time.monotonic)
    shares, settings, _ = many(tmp_path, journal, calm, 4)
    asked, usual, link = [], os.fsync, os.link
    monkeypatch.setattr(
        marking.mark.os, "fsync", lambda fd: (asked.append(stat.S_IFMT(os.fstat(fd).st_mode)), usual(fd))
    )
    monkeypatch.setattr(marking.mark.os, "link", lambda *a, **k: (asked.append("name"), link(*a, **k)))
    Marking(journal, settings, calm, shares).step(100.0)
    assert [d.state for d in journal.read(lambda tx: list(tx.documents()))] == [State.VALIDATED] * 4
    assert asked == [stat.S_IFREG] * 4 + ["name"] * 4 + [stat.S_IFDIR] * 4


def test_a_directory_in_which_no_marker_can_be_written_keeps_no_other_from_its_own(tmp_path, journal):
    calm = Patience(time.monotonic)
    shares, settings, ged = many(tmp_path, journal, calm, 4)
    os.rename(ged, ged + b" away")
    os.mkdir(ged)  # another one: its share is away
    Marking(journal, settings, calm, shares).step(100.0)
    assert [d.state for d in journal.read(lambda tx: list(tx.documents()))] == [State.VALIDATED] * 3 + [State.SENT]
