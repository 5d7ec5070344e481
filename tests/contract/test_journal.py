"""The journal against real SQLite files."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from bridged.journal import _SCHEMAS, FILE_NAME, Journal, JournalError, StateConflict, Transaction
from bridged.model import Stamp, State

STAMP = Stamp(7, 100, 5, 6)


def add(tx: Transaction, name: bytes = b"a.pdf", state: State = State.WAITING, client: str = "A") -> int:
    identity = f"{client}-{name!r}"
    seq = tx.add(
        state,
        id=identity,
        client=client,
        ged=b"/ged",
        path=b"/ged/in/" + name,
        stamp=STAMP,
        collection_email="a@collecte.example",
        message_id=f"<{identity}@cabinet.example>",
        date="",
        deposited_at=1.0,
    )
    tx.know(b"/ged/in/" + name, STAMP, seq)
    return seq


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path)


def test_a_write_is_there_after_reopening(journal: Journal, tmp_path: Path) -> None:
    """What `write` returned from is in the file, names that are not UTF-8 included."""
    seq = journal.write(lambda tx: add(tx, b"\xff\xfe.pdf"))
    journal.close()
    document = Journal(tmp_path).read(lambda tx: tx.document(seq))
    assert document is not None
    assert (document.name, document.state, document.stamp) == (b"\xff\xfe.pdf", State.WAITING, STAMP)


def test_a_transition_that_is_not_in_the_table_is_refused(journal: Journal) -> None:
    """There is no way from waiting to sent."""
    seq = journal.write(add)
    with pytest.raises(StateConflict):
        journal.write(lambda tx: tx.move(seq, State.WAITING, State.SENT))


def test_a_transition_from_a_state_the_document_has_left_is_refused(journal: Journal) -> None:
    """Compare-and-set: two senders cannot claim the same document."""
    seq = journal.write(add)
    journal.write(lambda tx: tx.move(seq, State.WAITING, State.QUEUED))
    journal.write(lambda tx: tx.move(seq, State.QUEUED, State.SENDING))
    with pytest.raises(StateConflict):
        journal.write(lambda tx: tx.move(seq, State.QUEUED, State.SENDING))


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
    assert journal.read(lambda tx: len(list(tx.documents()))) == 200


def test_clients_take_turns(journal: Journal) -> None:
    """The next document is of the client after the last one served, first come first served within it."""
    for client in "ABA":
        name = f"{client}{len(journal.read(lambda tx: list(tx.documents())))}".encode()
        seq = journal.write(lambda tx, n=name, c=client: add(tx, n, client=c))  # type: ignore[misc]
        journal.write(lambda tx, s=seq: tx.move(s, State.WAITING, State.QUEUED, due_at=0.0))  # type: ignore[misc]
    order, last = [], ""
    for _ in range(3):
        document = journal.read(lambda tx, c=last: tx.due_after(c, 10.0, 100.0))  # type: ignore[misc]
        assert document is not None
        order.append(document.name)
        last = document.client
        journal.write(lambda tx, s=document.seq: tx.move(s, State.QUEUED, State.SENDING))  # type: ignore[misc]
    assert order == [b"A0", b"B1", b"A2"]


def test_recovery_puts_back_what_was_being_sent_and_counts_a_dot_as_uncertain(journal: Journal) -> None:
    """Before the dot it is certain that nothing was accepted; after it, it is not."""
    for name, dotted in ((b"early", 0), (b"late", 1)):
        seq = journal.write(lambda tx, n=name: add(tx, n))  # type: ignore[misc]
        journal.write(lambda tx, s=seq: tx.move(s, State.WAITING, State.QUEUED))  # type: ignore[misc]
        journal.write(lambda tx, s=seq: tx.move(s, State.QUEUED, State.SENDING))  # type: ignore[misc]
        journal.write(lambda tx, s=seq, d=dotted: tx.note(s, State.SENDING, dotted=d))  # type: ignore[misc]
    journal.write(lambda tx: tx.recover())
    found = {d.name: (d.state, d.uncertain) for d in journal.read(lambda tx: list(tx.documents()))}
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
    sql.executescript(f"{_SCHEMAS[0]} PRAGMA user_version = 1;")
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
    (document,) = journal.read(lambda tx: list(tx.documents()))
    assert (document.id, document.state, document.released_at) == ("id-1", State.HELD, None)
    journal.write(lambda tx: tx.move(document.seq, State.HELD, State.QUEUED, released_at=9.0))
    journal.write(lambda tx: tx.keep("pace", "slow"))
    journal.close()
    again = Journal(tmp_path)
    assert again.read(lambda tx: (tx.document(document.seq).released_at, tx.kept("pace"))) == (9.0, "slow")  # type: ignore[union-attr]
