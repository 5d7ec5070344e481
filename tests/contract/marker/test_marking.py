"""Markers of many clients at once, on a disk that is slow."""

from __future__ import annotations

import os
import resource
import stat
import time
from types import SimpleNamespace

import pytest

from bridged.ged import HANGING, Calls, Hanging, Mounts
from bridged.journal import Journal
from bridged.journal.values import Query
from bridged.marker import Marking, marking
from bridged.model import State
from tests.support.documents import put

CLIENTS = 120


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path)
    yield journal
    journal.close()


def sent(tx, number, ged):
    put(tx, State.SENT, client=f"{number}", ged=ged, path=ged + b"/facture.pdf", marker_due=0.0)


def many(base, journal, calm, clients):
    """So many clients on one disk, each with a document that was sent: shares, settings, and the last one's GED."""
    mounts = Mounts()
    for number in range(clients):
        directory = base / f"ged {number}"
        directory.mkdir()
        (directory / "facture.pdf").write_bytes(b"x" * 100)
        ged = os.fsencode(directory)
        fd = os.open(ged, os.O_RDONLY)
        mounts.found(ged, ged, fd, settled=True)
        os.close(fd)
        calm.locate(ged, "the disk")
        journal.write(lambda tx, n=number, g=ged: sent(tx, n, g))
    options = SimpleNamespace(suffix=".validated.json", hidden=False)
    return mounts, SimpleNamespace(marker=options, watch=SimpleNamespace(sweep=60.0)), ged


def test_a_slow_disk_gets_the_markers_of_many_clients_and_is_not_taken_for_hanging(tmp_path, journal, monkeypatch):
    clock, silent, took = [0.0], [], []
    calm = Calls(lambda: clock[0])
    mounts, settings, ged = many(tmp_path, journal, calm, CLIENTS)
    usual_call, usual_fsync = calm.call, os.fsync

    def watched(*arguments):
        began = clock[0]
        try:
            return usual_call(*arguments)
        finally:
            took.append(clock[0] - began)

    def slowly(fd):
        clock[0] += 0.3
        silent.append(calm.silent_for(ged))
        usual_fsync(fd)

    monkeypatch.setattr(calm, "call", watched)
    monkeypatch.setattr(marking, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(marking.writing.os, "fsync", slowly)
    Marking(journal, settings, calm, mounts).step(100.0)
    assert [d.state for d in journal.read(lambda tx: list(tx.documents()))] == [State.VALIDATED] * CLIENTS
    assert max(silent) < 1.0  # intake has its turns meanwhile
    assert max(took) < HANGING  # otherwise all would be told as failed
    assert max(took[1:]) <= marking.WITHIN + 0.001
    assert len(took) < CLIENTS / 2


@pytest.fixture
def fast(monkeypatch):
    """A disk that takes no time."""
    monkeypatch.setattr(marking, "time", SimpleNamespace(monotonic=lambda: 0.0))


@pytest.fixture
def counts(monkeypatch):
    """How many markers each call is of."""
    counts, usual = [], marking.writing.write_all
    monkeypatch.setattr(
        marking.writing, "write_all", lambda markers, *a: counts.append(len(markers)) or usual(markers, *a)
    )
    return counts


def test_on_a_fast_disk_more_and_more_markers_are_written_together(tmp_path, journal, fast, counts):
    calm = Calls(time.monotonic)
    mounts, settings, _ = many(tmp_path, journal, calm, CLIENTS)
    Marking(journal, settings, calm, mounts).step(100.0)
    assert counts == [10, 20, 40, 50]


def test_a_lack_of_descriptors_delays_markers_and_loses_none(tmp_path, journal, fast):
    calm = Calls(time.monotonic)
    mounts, settings, _ = many(tmp_path, journal, calm, CLIENTS)
    one, limits = Marking(journal, settings, calm, mounts), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 30, limits[1]))
    try:
        one.step(100.0)
        left = journal.read(lambda tx: tx.documents(Query(states=(State.SENT,))))
        for step in range(6):
            one.step(100.0 * (step + 2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert left  # some have met the limit
    assert [d.state for d in journal.read(lambda tx: list(tx.documents()))] == [State.VALIDATED] * CLIENTS


def test_failing_markers_do_not_raise_the_number_written_together(tmp_path, journal, fast, counts, monkeypatch):
    """A call that writes no marker says nothing of the speed of the disk."""
    calm = Calls(time.monotonic)
    mounts, settings, _ = many(tmp_path, journal, calm, CLIENTS)
    one = Marking(journal, settings, calm, mounts)

    def fail(ged, work, at_most):
        raise Hanging

    with monkeypatch.context() as patch:
        patch.setattr(calm, "call", fail)
        one.step(100.0)
    one.step(200.0)
    assert counts[0] == 1


def test_all_markers_are_written_before_the_first_is_synced(tmp_path, journal, monkeypatch):
    calm = Calls(time.monotonic)
    mounts, settings, _ = many(tmp_path, journal, calm, 4)
    asked, usual, link = [], os.fsync, os.link
    monkeypatch.setattr(
        marking.writing.os, "fsync", lambda fd: (asked.append(stat.S_IFMT(os.fstat(fd).st_mode)), usual(fd))
    )
    monkeypatch.setattr(marking.writing.os, "link", lambda *a, **k: (asked.append("name"), link(*a, **k)))
    Marking(journal, settings, calm, mounts).step(100.0)
    assert [d.state for d in journal.read(lambda tx: list(tx.documents()))] == [State.VALIDATED] * 4
    assert asked == [stat.S_IFREG] * 4 + ["name"] * 4 + [stat.S_IFDIR] * 4


def test_a_ged_that_is_away_keeps_no_other_from_its_markers(tmp_path, journal):
    calm = Calls(time.monotonic)
    mounts, settings, ged = many(tmp_path, journal, calm, 4)
    os.rename(ged, ged + b" away")
    os.mkdir(ged)  # another one: its share is away
    Marking(journal, settings, calm, mounts).step(100.0)
    assert [d.state for d in journal.read(lambda tx: list(tx.documents()))] == [State.VALIDATED] * 3 + [State.SENT]
