"""The journal against real SQLite files."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sqlite3
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridged.journal import FILE_NAME, Journal, JournalError, JournalUnavailable, StateConflict, Steps, Transaction
from bridged.journal.errors import is_damaged
from bridged.journal.packed import FILE, Packed
from bridged.journal.schema import SCHEMAS
from bridged.journal.values import Query
from bridged.model import Document, Rule, State
from tests.support.documents import STAMP, change, put
from tests.support.full_disk import full_disk


def add(tx: Transaction, name: bytes = b"a.pdf", state: State = State.WAITING, client: str = "A") -> int:
    seq = put(tx, state, name, client)
    tx.know(b"/ged/in/" + name, STAMP, seq)
    return seq


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path)
    yield journal
    journal.close()


def state(journal: Journal, seq: int) -> State | None:
    document = journal.read(lambda tx: tx.document(seq))
    return None if document is None else document.state


def queued(journal: Journal, name: bytes = b"a.pdf", client: str = "A") -> Document:
    seq = journal.write(lambda tx: add(tx, name, State.QUEUED, client))
    document = journal.read(lambda tx: tx.document(seq))
    assert document is not None
    return document


def claim(journal: Journal, document: Document) -> None:
    journal.write(lambda tx: tx.claim(document, document.collection_email))


def test_a_write_is_there_after_reopening(journal: Journal, tmp_path: Path) -> None:
    """What `write` returned from is in the file, names that are not UTF-8 included."""
    seq = journal.write(lambda tx: add(tx, b"\xff\xfe.pdf"))
    journal.close()
    again = Journal(tmp_path)
    document = again.read(lambda tx: tx.document(seq))
    again.close()
    assert document is not None
    assert (document.name, document.state, document.stamp) == (b"\xff\xfe.pdf", State.WAITING, STAMP)


def test_two_senders_cannot_claim_the_same_document(journal: Journal) -> None:
    document = queued(journal)
    claim(journal, document)
    with pytest.raises(StateConflict):
        claim(journal, document)


def test_a_wish_that_raises_is_rolled_back_alone(journal: Journal) -> None:
    """Its half-done work is gone, a wish of the same time stays."""

    def fails(tx: Transaction) -> None:
        add(tx, b"half.pdf")
        raise ValueError("mistake")

    with pytest.raises(ValueError, match="mistake"):
        journal.write(fails)
    journal.write(lambda tx: add(tx, b"whole.pdf"))
    names = journal.read(lambda tx: [d.name for d in tx.documents()])
    assert names == [b"whole.pdf"]


def entering(*names: bytes, log: list[str]) -> Steps[int]:
    """Work that enters one document after the other, and says when each is in."""
    for name in names:
        yield lambda tx, n=name: add(tx, n)  # type: ignore[misc]
        log.append(name.decode())
    return len(names)


def test_several_wishes_of_one_moment_are_one_commit(journal: Journal) -> None:
    """Each goes on once what it wrote is in; who has less to write has its end before the others."""
    commits: list[str] = []
    journal._sql.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    log: list[str] = []
    ends: dict[int, int | Exception] = {}
    work = {1: entering(b"a1", b"a2", log=log), 2: entering(b"b1", log=log), 3: entering(log=log)}
    journal.together(work, ends)
    assert ends == {1: 2, 2: 1, 3: 0}
    assert log == ["a1", "b1", "a2"]
    assert len(commits) == 2
    assert journal.read(lambda tx: [d.name for d in tx.documents()]) == [b"a1", b"b1", b"a2"]


def test_a_mistake_of_one_is_its_own_end_and_its_own_rollback(journal: Journal) -> None:
    """It hears of it where it wanted to write, and may go on."""
    log: list[str] = []

    def mistaken(*, goes_on: bool) -> Steps[str]:
        def fails(tx: Transaction) -> None:
            add(tx, b"half.pdf")
            raise ValueError("mistake")

        try:
            yield fails
        except ValueError:
            if not goes_on:
                raise
        yield lambda tx: add(tx, b"after")
        return "went on"

    ends: dict[int, object] = {}
    mistakes = {2: mistaken(goes_on=True), 3: mistaken(goes_on=False), 4: broken()}
    journal.together({1: entering(b"a1", b"a2", log=log)} | mistakes, ends)
    assert [ends[1], ends[2]] == [2, "went on"]
    assert [type(ends[3]), type(ends[4])] == [ValueError, ZeroDivisionError]
    assert journal.read(lambda tx: {d.name for d in tx.documents()}) == {b"a1", b"a2", b"after"}


def broken() -> Steps[float]:
    """It fails before it wants to write anything."""
    yield from ()
    return 1 / 0


def test_a_lone_wish_that_raises_leaves_nothing_behind(journal: Journal) -> None:
    """It has no savepoint of its own: the whole commit is rolled back, and the next one is well."""
    seq = journal.write(add)

    def fails(tx: Transaction) -> None:
        tx.queue(seq, STAMP, 1.0)
        tx.queue(seq, STAMP, 1.0)

    with pytest.raises(StateConflict):
        journal.write(fails)
    assert not journal._sql.in_transaction
    assert [d.state for d in journal.read(lambda tx: tx.documents())] == [State.WAITING]
    journal.write(lambda tx: tx.queue(seq, STAMP, 1.0))


def test_many_threads_write_without_losing_one(journal: Journal) -> None:
    """Group commits answer every thread with its own result."""
    numbers: list[int] = []

    def work(prefix: str) -> None:
        for i in range(50):
            name = f"{prefix}{i}.pdf".encode()
            numbers.append(journal.write(lambda tx, n=name: add(tx, n)))  # type: ignore[misc]

    threads = [threading.Thread(target=work, args=(f"t{n}-",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(numbers)) == 200
    assert journal.read(lambda tx: len(tx.documents())) == 200


def test_clients_take_turns(journal: Journal) -> None:
    """The next document is of the client after the last one served, first come first served within it."""
    for client in "ABA":
        name = f"{client}{len(journal.read(lambda tx: tx.documents()))}".encode()
        queued(journal, name, client)
    order, last = [], ""
    for _ in range(3):
        document, *_ = journal.read(lambda tx, c=last: tx.due_after(c, 10.0, 100.0, limit=9))  # type: ignore[misc]
        order.append(document.name)
        last = document.client
        claim(journal, document)
    assert order == [b"A0", b"B1", b"A2"]


def test_the_turns_of_several_clients_are_asked_for_together(journal: Journal) -> None:
    """Each client's first, and no further than where one has more than was asked for; then from the beginning."""
    for number, client in enumerate("DBBBBACE"):
        queued(journal, b"%d" % number, client)

    def turns(after: str, limit: int) -> str:
        return "".join(d.client for d in journal.read(lambda tx: tx.due_after(after, 10.0, 100.0, limit=limit)))

    assert [turns("", 9), turns("A", 3), turns("B", 9), turns("D", 9), turns("E", 1)] == ["AB", "B", "CDE", "E", "A"]


def test_recovery_puts_back_what_was_being_sent_and_counts_a_dot_as_uncertain(journal: Journal) -> None:
    """Before the dot it is certain that nothing was accepted; after it, it is not."""
    for name in (b"early", b"late"):
        document = queued(journal, name)
        claim(journal, document)
    journal.write(lambda tx: tx.announce_dot(document.seq, "digest"))
    journal.write(lambda tx: tx.recover())
    found = {d.name: (d.state, d.uncertain) for d in journal.read(lambda tx: tx.documents())}
    assert found == {b"early": (State.QUEUED, 0), b"late": (State.QUEUED, 1)}


def test_a_newer_journal_is_refused_with_exit_78(journal: Journal, tmp_path: Path) -> None:
    """Nothing is guessed about a schema of the future."""
    journal.close()
    sql = sqlite3.connect(tmp_path / FILE_NAME)
    sql.execute("PRAGMA user_version = 99")
    sql.close()
    with pytest.raises(JournalError, match="newer") as caught:
        Journal(tmp_path)
    assert caught.value.exit_code == 78


def test_a_damaged_journal_is_refused_with_a_remedy(tmp_path: Path) -> None:
    """Not a traceback, and never an empty journal in its place."""
    (tmp_path / FILE_NAME).write_bytes(b"not a database at all" * 1000)
    with pytest.raises(JournalError, match="Move it aside"):
        Journal(tmp_path)


def opened(tmp_path: Path) -> JournalError:
    with pytest.raises(JournalError) as caught:
        Journal(tmp_path)
    return caught.value


def not_now(error: JournalError, why: str, remedy: str) -> None:
    """It ends with 1, so that the unit starts it again, and nobody is told to throw the journal away."""
    assert error.exit_code == 1
    assert why in str(error)
    assert remedy in str(error)
    assert "Move it aside" not in str(error)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_at_the_first_start_is_no_damaged_journal(tmp_path: Path) -> None:
    """And once there is room, the same start makes the journal."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=True)
    try:
        with contextlib.suppress(OSError), (small / "filling").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        not_now(opened(small), "disk is full", "make room")
        subprocess.run(["mount", "-o", "remount,size=10m", small], check=True)
        Journal(small).close()
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_disk_without_room_for_the_file_itself_is_no_refused_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    not_now(opened(tmp_path), "No space left on device", "make room")


def test_a_journal_that_another_program_holds_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup, or somebody in sqlite3's shell."""
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **more: connect(path, **(more | {"timeout": 0.1})))
    other = connect(tmp_path / FILE_NAME, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        not_now(opened(tmp_path), "database is locked", "end what holds it open")
    finally:
        other.close()


def test_a_journal_whose_disk_fails_is_not_damaged(tmp_path: Path) -> None:
    (tmp_path / f"{FILE_NAME}-wal").mkdir()
    not_now(opened(tmp_path), "disk I/O error", "see to the disk")


def test_another_programs_database_in_its_place_is_to_be_moved_aside(tmp_path: Path) -> None:
    sql = sqlite3.connect(tmp_path / FILE_NAME)
    sql.execute("CREATE TABLE documents (something INTEGER)")
    sql.close()
    error = opened(tmp_path)
    assert error.exit_code == 78
    assert "Move it aside" in str(error)


@pytest.mark.parametrize("refusal", ["newer", "damaged"])
def test_a_refused_journal_is_closed(tmp_path: Path, refusal: str, collected: None) -> None:
    """Its connection would hold the file, and Python 3.13 warns of it."""
    file = tmp_path / FILE_NAME
    Journal(tmp_path).close()
    if refusal == "newer":
        sql = sqlite3.connect(file)
        sql.execute("PRAGMA user_version = 99")
        sql.close()
    else:
        file.write_bytes(b"not a database at all" * 1000)
    gc.disable()
    try:
        with pytest.raises(JournalError) as caught:
            Journal(tmp_path)
        open_files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    finally:
        gc.enable()
    assert caught.value
    assert str(file) not in open_files


def test_a_commit_on_a_full_disk_raises_the_journals_own_error(journal: Journal) -> None:
    with full_disk(journal), pytest.raises(JournalUnavailable, match="disk is full") as caught:
        journal.write(add)
    assert caught.value.exit_code == 1
    assert not isinstance(caught.value, sqlite3.Error)
    assert journal.read(lambda tx: tx.documents()) == []
    journal.write(add)


def malformed(_: Transaction) -> None:
    """What SQLite raises for a damaged page, and for one read of its schema that failed."""
    raise sqlite3.DatabaseError("database disk image is malformed")


def spoil(journal: Journal) -> None:
    """Overwrite all pages behind the first one."""
    journal._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with journal.path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(journal.path.stat().st_size - 4096))


@pytest.mark.parametrize("way", ["read", "write"])
def test_a_damaged_page_under_an_open_journal_raises_the_journals_own_error(journal: Journal, way: str) -> None:
    spoil(journal)
    with pytest.raises(JournalError, match="Move it aside") as caught:
        getattr(journal, way)(malformed)
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("way", ["read", "write"])
def test_a_read_that_failed_does_not_call_a_sound_journal_damaged(journal: Journal, way: str) -> None:
    """A single error of the disk at a page of the schema looks like a malformed journal."""
    seq = journal.write(add)
    with pytest.raises(JournalUnavailable) as caught:
        getattr(journal, way)(malformed)
    not_now(caught.value, "no damage", "see to its disk")
    assert state(journal, seq) is State.WAITING


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> None:
    """The next openings of a connection fail, so many."""
    usual, left = Journal._connect, [error] * times

    def connect(self: Journal, cache: int) -> sqlite3.Connection:
        if left:
            raise left.pop()
        return usual(self, cache)

    monkeypatch.setattr(Journal, "_connect", connect)


ONCE = [
    sqlite3.DatabaseError("database disk image is malformed"),
    sqlite3.OperationalError("disk I/O error"),
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.EIO, "Input/output error"),
]


@pytest.mark.parametrize("error", ONCE, ids=str)
def test_a_journal_whose_opening_fails_once_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Journal(tmp_path).close()
    failing(monkeypatch, error, 1)
    Journal(tmp_path).close()


@pytest.mark.parametrize("error", [one for one in ONCE if not isinstance(one, sqlite3.OperationalError)], ids=str)
def test_a_sound_journal_whose_opening_fails_twice_is_for_another_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Exit code 1, after which the unit starts again. Its documents are there then."""
    first = Journal(tmp_path)
    seq = first.write(add)
    first.close()
    failing(monkeypatch, error, 2)
    not_now(opened(tmp_path), str(error.args[-1]), "Leave the journal where it is")
    again = Journal(tmp_path)
    assert state(again, seq) is State.WAITING
    again.close()


def test_the_check_of_a_journal_makes_no_file(tmp_path: Path) -> None:
    """Otherwise a deleted journal would be there again, and empty."""
    assert not is_damaged(tmp_path / FILE_NAME)
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_is_deleted_takes_no_write(journal: Journal) -> None:
    journal.path.unlink()
    with pytest.raises(JournalUnavailable, match="restart bridged"):
        journal.write(add)


def test_a_query_admits_the_documents_that_meet_all_its_fields(journal: Journal) -> None:
    for name, state, client in ((b"1", State.HELD, "A"), (b"2", State.QUEUED, "A"), (b"3", State.SENT, "B")):
        journal.write(lambda tx, n=name, s=state, c=client: add(tx, n, s, c))  # type: ignore[misc]
    journal.write(lambda tx: change(tx, 1, reason="550 no", collection_email="x@collecte.example"))

    def found(**fields: Any) -> str:
        return b"".join(d.name for d in journal.read(lambda tx: tx.documents(Query(**fields)))).decode()

    assert found() == "123"
    assert found(limit=2) == "12"
    assert found(states=(State.QUEUED, State.SENT)) == "23"
    assert found(states=(State.QUEUED, State.SENT), client="B") == "3"
    assert found(client="A") == "12"
    assert found(path=b"/ged/in/2") == "2"
    assert found(ged=b"/other") == ""
    assert found(id="A-b'1'") == "1"
    assert found(collection_email="x@collecte.example", reason="550 no") == "1"
    assert found(collection_email="x@collecte.example", reason="550") == ""


def plan(journal: Journal, ask: Callable[[Transaction], object]) -> list[str]:
    """How SQLite finds the rows that a query asks for."""
    asked: list[str] = []
    sql = sqlite3.connect(journal.path)
    sql.set_trace_callback(asked.append)
    ask(Transaction(sql))
    sql.set_trace_callback(None)
    plans = [row[3] for statement in asked for row in sql.execute(f"EXPLAIN QUERY PLAN {statement}")]
    sql.close()
    return plans


def test_a_claim_finds_documents_of_a_large_journal_by_the_index_with_fewest_rows(journal: Journal) -> None:
    """By address there are as many as were ever sent there."""
    document = queued(journal)
    assert plan(journal, lambda tx: tx.under_way("a@collecte.example")) == [
        "SEARCH documents USING INDEX documents_by_state (state=?)"
    ]
    assert plan(journal, lambda tx: tx.same_bytes(document, "ab" * 32))[0] == (
        "SEARCH documents USING INDEX documents_by_content (sha256=? AND collection_email=?)"
    )


def test_a_known_file_is_found_by_its_identity(journal: Journal) -> None:
    """What a rename leaves unchanged leads back to the old path."""
    journal.write(lambda tx: add(tx, b"old.pdf"))
    found = journal.read(lambda tx: tx.same_files(STAMP))
    assert [known.path for known in found] == [b"/ged/in/old.pdf"]


def test_forgetting_a_directory_leaves_its_neighbours(journal: Journal) -> None:
    """`in` and `in2` share a prefix, not a fate."""
    journal.write(lambda tx: [tx.know(p, STAMP, None) for p in (b"/g/in/a", b"/g/in/sub/b", b"/g/in2/c")])
    assert sorted(journal.read(lambda tx: tx.directories_below(b"/g/in"))) == [b"/g/in", b"/g/in/sub"]
    journal.write(lambda tx: tx.forget_in(b"/g/in"))
    assert journal.read(lambda tx: tx.known(b"/g/in/a")) is None
    assert journal.read(lambda tx: tx.known(b"/g/in2/c")) is not None


def test_the_journal_file_is_for_its_owner_only(journal: Journal) -> None:
    """Nobody else reads the names of a client's documents."""
    assert journal.path.stat().st_mode & 0o077 == 0


def test_a_journal_of_the_first_schema_goes_on_with_all_that_it_holds(tmp_path: Path) -> None:
    """A firm that installs the next version keeps its documents, and what it adds works from then on."""
    sql = sqlite3.connect(tmp_path / FILE_NAME)
    sql.executescript(f"{SCHEMAS[0]} PRAGMA user_version = 1;")
    row = (
        "id-1",
        "A",
        b"/ged",
        b"/ged/in/a.pdf",
        "held",
        7,
        100,
        5,
        6,
        "a@collecte.example",
        "<1@cabinet.example>",
        "",
        1.0,
    )
    columns = "id, client, ged, path, state, inode, size, mtime_ns, ctime_ns"
    columns += ", collection_email, message_id, date, deposited_at"
    sql.execute(f"INSERT INTO documents ({columns}) VALUES ({', '.join('?' * len(row))})", row)
    sql.commit()
    sql.close()
    journal = Journal(tmp_path)
    (document,) = journal.read(lambda tx: tx.documents())
    assert (document.id, document.state, document.passed) == ("id-1", State.HELD, "")
    journal.write(lambda tx: tx.release(document._replace(rule="review"), 2.0))
    journal.write(lambda tx: tx.keep("pace", "slow"))
    journal.close()
    again = Journal(tmp_path)
    assert again.read(lambda tx: (tx.document(document.seq).passed, tx.kept("pace"))) == ("review", "slow")  # type: ignore[union-attr]
    again.close()


def test_a_document_released_under_the_second_schema_is_past_all_rules(tmp_path: Path) -> None:
    """A document that a person has released just before the new version was installed is not held again."""
    sql = sqlite3.connect(tmp_path / FILE_NAME)
    sql.executescript(f"{SCHEMAS[0]} {SCHEMAS[1]} PRAGMA user_version = 2;")
    columns = "id, client, ged, path, state, inode, size, mtime_ns, ctime_ns, collection_email, message_id, date"
    row = ("A", b"/ged", b"/ged/a.pdf", "queued", 7, 100, 5, 6, "a@collecte.example")
    for number, released_at in ((1, 9.0), (2, None)):
        values = (str(number), *row, f"<{number}@cabinet.example>", "", 1.0, released_at)
        sql.execute(f"INSERT INTO documents ({columns}, deposited_at, released_at) VALUES ({'?, ' * 13}?)", values)
    sql.commit()
    sql.close()
    journal = Journal(tmp_path)
    documents = journal.read(lambda tx: tx.documents())
    journal.close()
    assert [document.has_passed(Rule.REVIEW) for document in documents] == [True, False]


def packed_directory(name: bytes, times: int, *files: bytes) -> Packed:
    records = b"".join((struct.pack("=QQHB", 7, 0, 40, FILE) + file).ljust(40, b"\0") for file in files)
    return Packed(b"/ged/in/" + name, records, 5, times, 0)


def test_first_looks_are_entered_together_also_where_a_directory_is_on_record(journal):
    journal.write(lambda tx: tx.keep_times([(b"/ged/in/b", 1, 0), (b"/ged/in/c", 1, 0)], ()))
    journal.write(lambda tx: tx.pack([packed_directory(b"c", 2, b"old.pdf")]))
    found = [packed_directory(b"a", 3, b"1.pdf", b"2.pdf"), packed_directory(b"b", 3, b"3.pdf")]
    found += [packed_directory(b"c", 3), packed_directory(b"d", 3), packed_directory(b"e", 3, b"4.pdf")]
    journal.write(lambda tx: tx.pack(found))
    known = {one.directory: set(journal.read(lambda tx, d=one.directory: tx.known_in(d))) for one in found}
    expected = [{b"1.pdf", b"2.pdf"}, {b"3.pdf"}, set(), set(), {b"4.pdf"}]
    assert list(known.values()) == expected
    assert journal.read(lambda tx: tx.directories_below(b"/ged")) == [b"/ged/in/a", b"/ged/in/b", b"/ged/in/e"]
    times = {directory: times for directory, times, _ in journal.read(lambda tx: tx.times_below(b"/ged"))}
    assert times == {b"/ged/in/a": 3, b"/ged/in/d": 3, b"/ged/in/e": 3}  # of the others the next pass will tell


def test_a_journal_that_cannot_be_looked_at_takes_no_write(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(_: Journal) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as context:
        context.setattr(Journal, "_on_disk", look)
        with pytest.raises(JournalUnavailable):
            journal.write(add)
    assert journal.write(add)


def test_a_wish_that_breaks_a_constraint_does_not_tell_of_a_damaged_journal(journal: Journal) -> None:
    def break_it(tx: Transaction) -> None:
        add(tx, b"a.pdf")
        tx._sql.execute("UPDATE documents SET id = NULL")

    with pytest.raises(JournalError) as told:
        journal.write(break_it)
    assert not isinstance(told.value, JournalUnavailable)
    assert told.value.exit_code == 1
    assert "Move it aside" not in str(told.value)
