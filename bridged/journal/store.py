"""The journal: the durable record of every document and every attempt, in SQLite.

One writer discipline: whoever wants to write hands `Journal.write` a function of a `Transaction`. The first in the
queue commits for everybody who waits (a group commit), each of several inside a savepoint of its own, and nobody is
answered before the commit is on the disk: `synchronous=FULL` is what kept 10 of 10 commits over a power cut.

Paths are bytes: sqlite3 refuses text with surrogates, and a file name need not be UTF-8.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from bridged.journal.files import KNOWN_SCHEMA, Known
from bridged.model import TRANSITIONS, Document, Stamp, State, UserError

FILE_NAME: Final = "journal.sqlite"

_SCHEMA_1: Final = (
    KNOWN_SCHEMA
    + """
CREATE TABLE documents (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, client TEXT NOT NULL, ged BLOB NOT NULL,
    path BLOB NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
    inode INTEGER NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL DEFAULT '', collection_email TEXT NOT NULL, message_id TEXT NOT NULL UNIQUE,
    date TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, uncertain INTEGER NOT NULL DEFAULT 0,
    dotted INTEGER NOT NULL DEFAULT 0, deposited_at REAL NOT NULL, queued_at REAL, sent_at REAL,
    validated_at REAL, due_at REAL NOT NULL DEFAULT 0, relay_reply TEXT NOT NULL DEFAULT '',
    marker BLOB NOT NULL DEFAULT x'', marker_due REAL);
CREATE INDEX documents_by_state ON documents (state, client, seq);
CREATE INDEX documents_by_path ON documents (path);
CREATE INDEX documents_by_marker ON documents (marker_due) WHERE marker_due IS NOT NULL;
CREATE TABLE attempts (document INTEGER NOT NULL, at REAL NOT NULL, outcome TEXT NOT NULL, reply TEXT NOT NULL);
CREATE INDEX attempts_by_document ON attempts (document);
"""
)
_SCHEMA_2: Final = """
ALTER TABLE documents ADD COLUMN released_at REAL;
CREATE TABLE kept (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE refused_addresses (address TEXT PRIMARY KEY, at REAL NOT NULL, reply TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX attempts_by_time ON attempts (at);
CREATE INDEX documents_by_client ON documents (client, deposited_at);
CREATE INDEX documents_by_address ON documents (collection_email, sent_at);
CREATE INDEX documents_by_content ON documents (sha256, collection_email) WHERE sha256 <> '';
"""
_SCHEMA_3: Final = """
ALTER TABLE documents ADD COLUMN rule TEXT NOT NULL DEFAULT '';
ALTER TABLE documents ADD COLUMN passed TEXT NOT NULL DEFAULT '';
UPDATE documents SET passed = 'all' WHERE released_at IS NOT NULL;
ALTER TABLE directories ADD COLUMN times INTEGER;
ALTER TABLE directories ADD COLUMN children INTEGER;
ALTER TABLE folders ADD COLUMN read INTEGER NOT NULL DEFAULT 1;
CREATE TABLE packed (directory INTEGER PRIMARY KEY, read_ns INTEGER NOT NULL, records BLOB NOT NULL);
"""
_SCHEMAS: Final = (
    _SCHEMA_1,
    _SCHEMA_2,
    _SCHEMA_3,
)  # each is what its version adds: a new journal goes through all of them
SCHEMA_VERSION: Final = len(_SCHEMAS)

_COLUMNS: Final = (
    "seq, id, client, ged, path, state, reason, inode, size, mtime_ns, ctime_ns, sha256, collection_email, message_id,"
    " date, attempts, uncertain, dotted, deposited_at, queued_at, sent_at, validated_at, due_at, relay_reply, marker,"
    " rule, passed"
)
_DUE: Final = "(due_at <= ? OR due_at > ?)"

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class JournalError(UserError):
    """The journal cannot be used as it is; the sentence says what to do."""

    exit_code = 78


class JournalUnavailable(JournalError):
    """The journal is what it was, but cannot be used now: another start may find it well."""

    exit_code = 1


class StateConflict(Exception):
    """A document was not in the state that the caller took for granted: somebody else moved it first."""


def _document(row: tuple[Any, ...]) -> Document:
    """By position: the columns stand in the order of the fields."""
    stamp, dotted = Stamp(*row[7:11]), bool(row[17])
    values: tuple[Any, ...] = (*row[:5], State(row[5]), row[6], stamp, *row[11:17], dotted, *row[18:])
    return Document(*values)


class Transaction(Known):
    """All that can be said to the journal. Lives inside one commit; never keep it."""

    # -- reading

    def document(self, seq: int) -> Document | None:
        """The document of that number."""
        return next(self.documents("seq = ?", (seq,)), None)

    def documents(
        self, where: str = "1", arguments: tuple[Any, ...] = (), limit: int = -1, order: str = "seq"
    ) -> Iterator[Document]:
        """Documents in the order of their deposit. `where` and `order` are SQL of this package, never of a user."""
        sql = f"SELECT {_COLUMNS} FROM documents WHERE {where} ORDER BY {order} LIMIT ?"  # noqa: S608 - constants only
        return map(_document, self.sql.execute(sql, (*arguments, limit)))

    def due_after(
        self,
        client: str,
        now: float,
        horizon: float,
        away: Collection[bytes] = (),
        but: Collection[int] = (),
        *,
        limit: int,
    ) -> list[Document]:
        """Whose turns come after that of `client`, in the order of the alphabet: the first queued document of each
        that is due. Some of them, `limit` at most; none only where none is due.

        A due time beyond `horizon` cannot have come from the retry schedule: the clock jumped back, so it is due.
        Documents of the GEDs `away` cannot be read now and are passed over, and so are those in `but`.
        """
        due = f"state = 'queued' AND {_DUE} AND {_not_in(away)} AND {_not_in(but, 'seq')}"
        for turn in (" AND client > ?", " AND client <= ?"):
            firsts: list[Document] = []
            for document in self.documents(due + turn, (now, horizon, *away, *but, client), limit, "client, seq"):
                if firsts and firsts[-1].client == document.client:
                    break  # who comes behind so many is asked for next time
                firsts.append(document)
            if firsts:
                return firsts
        return []

    def due_of(
        self,
        client: str,
        now: float,
        horizon: float,
        away: Collection[bytes] = (),
        but: Collection[int] = (),
        *,
        limit: int,
    ) -> list[Document]:
        """The queued documents of one client that are due, by the same rules, in the order of their deposit."""
        due = f"state = 'queued' AND client = ? AND {_DUE} AND {_not_in(away)} AND {_not_in(but, 'seq')}"
        return list(self.documents(due, (client, now, horizon, *away, *but), limit))

    def any_due(self, now: float, horizon: float, away: Collection[bytes] = ()) -> bool:
        """Whether there is one, of any client."""
        sql = f"SELECT 1 FROM documents WHERE state = 'queued' AND {_DUE} AND {_not_in(away)} LIMIT 1"  # noqa: S608
        return self.sql.execute(sql, (now, horizon, *away)).fetchone() is not None

    def next_due(self, away: Collection[bytes] = ()) -> float | None:
        """When the next queued document is due, as seconds since the epoch; those of the GEDs `away` apart."""
        sql = f"SELECT MIN(due_at) FROM documents WHERE state = 'queued' AND {_not_in(away)}"  # noqa: S608 - marks only
        row = self.sql.execute(sql, tuple(away)).fetchone()
        return None if row[0] is None else float(row[0])

    def markers_due(self, now: float, horizon: float, limit: int) -> list[Document]:
        """Sent documents whose marker is to be written and validated ones whose marker is to follow a rename.

        A time beyond `horizon` nobody has set: the clock jumped back, so it is due.
        """
        sql = f"SELECT {_COLUMNS} FROM documents WHERE marker_due IS NOT NULL AND (marker_due <= ? OR marker_due > ?)"  # noqa: S608
        return list(map(_document, self.sql.execute(sql + " ORDER BY marker_due LIMIT ?", (now, horizon, limit))))

    def counts(self) -> list[tuple[bytes, str, int]]:
        """(directory-bearing path, state) is too fine: (path, state, 1) rows are summed by the caller's folders."""
        return self.sql.execute("SELECT path, state, 1 FROM documents").fetchall()

    def message_id_known(self, message_id: str, but: int = 0) -> bool:
        """Whether a document of this journal, `but` that one, has that Message-ID."""
        known = "SELECT 1 FROM documents WHERE message_id = ? AND seq <> ?"
        return self.sql.execute(known, (message_id, but)).fetchone() is not None

    def attempts(self, seq: int) -> list[tuple[float, str, str]]:
        """Every attempt at a document: when, what came of it, the relay's words."""
        return self.sql.execute(
            "SELECT at, outcome, reply FROM attempts WHERE document = ? ORDER BY at", (seq,)
        ).fetchall()

    def tried_since(self, at: float) -> list[tuple[float, str]]:
        """When the relay was handed a document since then, and what came of it, in that order."""
        return self.sql.execute("SELECT at, outcome FROM attempts WHERE at > ? ORDER BY at", (at,)).fetchall()

    def deposited_before(self, document: Document, within: float) -> int:
        """How many documents its client had deposited `within` so many seconds before this one, missed ones apart."""
        sql = "SELECT COUNT(*) FROM documents WHERE client = ? AND deposited_at > ? AND seq < ? AND state <> 'missed'"
        row = self.sql.execute(sql, (document.client, document.deposited_at - within, document.seq)).fetchone()
        return int(row[0])

    def accepted_since(self, collection_email: str, at: float) -> list[float]:
        """When the relay accepted a document for an address since then, the latest first."""
        sql = "SELECT sent_at FROM documents WHERE collection_email = ? AND sent_at > ? ORDER BY sent_at DESC"
        return [row[0] for row in self.sql.execute(sql, (collection_email, at))]

    def under_way(self, collection_email: str) -> int:
        """How many documents for an address are being sent just now."""
        sql = "SELECT COUNT(*) FROM documents WHERE state = 'sending' AND collection_email = ?"
        return int(self.sql.execute(sql, (collection_email,)).fetchone()[0])

    def same_bytes(self, document: Document, sha256: str) -> list[Document]:
        """Other documents with these bytes that have left for the same address, may have, or are on their way."""
        on_the_way = "state IN ('sending', 'sent', 'validated') OR uncertain > 0"
        where = f"sha256 = ? AND collection_email = ? AND seq <> ? AND ({on_the_way})"
        return list(self.documents(where, (sha256, document.collection_email, document.seq)))

    def refused_address(self, collection_email: str) -> str | None:
        """The relay's words when it refused this address, if nobody has released it since."""
        row = self.sql.execute("SELECT reply FROM refused_addresses WHERE address = ?", (collection_email,)).fetchone()
        return None if row is None else str(row[0])

    def held(self) -> list[tuple[str, str, int]]:
        """What is held: client, reason, how many."""
        sql = "SELECT client, reason, COUNT(*) FROM documents WHERE state = 'held' GROUP BY client, reason"
        return self.sql.execute(f"{sql} ORDER BY client, reason").fetchall()

    def late(self, before: float) -> list[tuple[str, int, float]]:
        """What has been on its way since `before` or longer, and is not sent: client, how many, since when."""
        since = "CASE state WHEN 'waiting' THEN deposited_at ELSE COALESCE(queued_at, deposited_at) END"
        late = f"state IN ('waiting', 'queued', 'sending') AND {since} <= ?"
        sql = f"SELECT client, COUNT(*), MIN({since}) FROM documents WHERE {late} GROUP BY client ORDER BY client"  # noqa: S608 - constants only
        return self.sql.execute(sql, (before,)).fetchall()

    def missed_since(self, since: float) -> list[tuple[str, int]]:
        """What was found to be missed since then: client, how many."""
        missed = "state = 'missed' AND deposited_at > ?"
        sql = f"SELECT client, COUNT(*) FROM documents WHERE {missed} GROUP BY client ORDER BY client"  # noqa: S608 - constants only
        return self.sql.execute(sql, (since,)).fetchall()

    def active_days(self, since: float) -> list[tuple[str, str]]:
        """The days (local time, ISO 8601) on which each client has deposited something."""
        day = "date(deposited_at, 'unixepoch', 'localtime')"
        return self.sql.execute(
            f"SELECT DISTINCT client, {day} FROM documents WHERE deposited_at > ? ORDER BY 1, 2",  # noqa: S608 - constants only
            (since,),
        ).fetchall()

    def kept(self, key: str) -> str | None:
        """What was kept under this key."""
        row = self.sql.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    # -- writing

    def keep(self, key: str, value: str) -> None:
        """Keep a small value, in the place of the one before."""
        self.sql.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (key, value))

    def refuse_address(self, collection_email: str, at: float, reply: str) -> None:
        """Nothing is to be sent there until somebody releases a document of it."""
        self.sql.execute("INSERT OR REPLACE INTO refused_addresses VALUES (?, ?, ?)", (collection_email, at, reply))

    def accept_address(self, collection_email: str) -> None:
        """The address may be tried again."""
        self.sql.execute("DELETE FROM refused_addresses WHERE address = ?", (collection_email,))

    def add(self, state: State, **columns: Any) -> int:
        """Enter a document in its first state; returns its number."""
        if (None, state) not in TRANSITIONS:
            raise StateConflict(f"no document begins as {state}")
        stamp: Stamp = columns.pop("stamp")
        columns |= {"state": state.value, **_stamp_columns(stamp)}
        names = ", ".join(columns)
        marks = ", ".join("?" * len(columns))
        cursor = self.sql.execute(
            f"INSERT INTO documents ({names}) VALUES ({marks})",  # noqa: S608 - names are keyword arguments
            tuple(columns.values()),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def move(self, seq: int, old: State, new: State, **columns: Any) -> None:
        """One transition, compare-and-set: raises StateConflict unless exactly this row was in `old`."""
        if (old, new) not in TRANSITIONS:
            raise StateConflict(f"there is no way from {old} to {new}")
        if not self._update(seq, old, columns | {"state": new.value}):
            raise StateConflict(f"document {seq} is no longer {old}")

    def note(self, seq: int, state: State, **columns: Any) -> None:
        """Change columns of a document that must be in `state`, without a transition."""
        if not self._update(seq, state, columns):
            raise StateConflict(f"document {seq} is no longer {state}")

    def repath(self, seq: int, path: bytes, marker_due: float | None) -> None:
        """The document was renamed. A marker that exists follows at `marker_due`."""
        self.sql.execute(
            "UPDATE documents SET path = ?,"
            " marker_due = CASE WHEN marker <> x'' THEN ? ELSE marker_due END WHERE seq = ?",
            (path, marker_due, seq),
        )

    def paths(self, seqs: Collection[int]) -> dict[int, bytes]:
        """The paths that documents go by now."""
        sql = f"SELECT seq, path FROM documents WHERE seq IN ({', '.join('?' * len(seqs))})"  # noqa: S608 - marks only
        return dict(self.sql.execute(sql, tuple(seqs)))

    def attempt(self, seq: int, at: float, outcome: str, reply: str) -> None:
        """Record an attempt."""
        self.sql.execute("INSERT INTO attempts VALUES (?, ?, ?, ?)", (seq, at, outcome, reply))

    def recover(self) -> list[Document]:
        """Start-up is the recovery: what was `sending` goes back to queued, uncertain where the dot had gone."""
        interrupted = list(self.documents("state = 'sending'"))
        for document in interrupted:
            more = 1 if document.dotted else 0
            self.move(
                document.seq,
                State.SENDING,
                State.QUEUED,
                due_at=0.0,
                dotted=0,
                uncertain=document.uncertain + more,
            )
        self.sql.execute("UPDATE documents SET marker_due = 0 WHERE state = 'sent'")
        return interrupted

    def _update(self, seq: int, state: State, columns: dict[str, Any]) -> bool:
        stamp = columns.pop("stamp", None)
        if stamp is not None:
            columns |= _stamp_columns(stamp)
        sets = ", ".join(f"{name} = ?" for name in columns)
        cursor = self.sql.execute(
            f"UPDATE documents SET {sets} WHERE seq = ? AND state = ?",  # noqa: S608 - names are keyword arguments
            (*columns.values(), seq, state.value),
        )
        return cursor.rowcount == 1


def _not_in(values: Collection[object], column: str = "ged") -> str:
    return f"{column} NOT IN ({', '.join('?' * len(values))})"


def _stamp_columns(stamp: Stamp) -> dict[str, int]:
    return {
        "inode": stamp.inode,
        "size": stamp.size,
        "mtime_ns": stamp.mtime_ns,
        "ctime_ns": stamp.ctime_ns,
    }


# Work that has to write now and then: it yields what it wants to write, and goes on with what came of it.
Steps = Generator[Callable[[Transaction], Any], Any, T]


class Ticket(Generic[T]):
    """One caller's wish in the queue of a group commit. `Journal.settle` says what came of it."""

    def __init__(self, wish: Callable[[Transaction], T]) -> None:
        self.wish = wish
        self.done = False
        self.result: list[T] = []
        self.error: BaseException | None = None


class Journal:
    """The journal's file. Safe to share between threads; several processes may hold it at once."""

    def __init__(self, state_dir: Path, *, create: bool = True) -> None:
        """Open `state_dir`'s journal; raises JournalError with a remedy when it is absent, damaged or newer."""
        self.path = state_dir / FILE_NAME
        if not create and not self.path.exists():
            raise JournalError(f"There is no journal in {state_dir} yet: start the daemon with `bridged run` first.")
        self._lock = threading.Lock()
        self._queue: list[Ticket[Any]] = []
        self._queue_lock = threading.Lock()
        self._readers: list[sqlite3.Connection] = []
        self._busy_since: float | None = None
        with _sentences(self.path):
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            self._identity = self._on_disk()
            self._sql = self._connect()
            self._migrate()

    def write(self, wish: Callable[[Transaction], T]) -> T:
        """Run `wish` in a transaction and return its result once it is on the disk.

        A wish that raises is rolled back alone and raises here. Wishes of other threads may share the commit.
        """
        return self.settle(self.post(wish))

    def post(self, wish: Callable[[Transaction], T]) -> Ticket[T]:
        """Let the next commit run `wish`, whoever makes it. Promises nothing before the ticket is settled."""
        ticket = Ticket(wish)
        with self._queue_lock:
            self._queue.append(ticket)
        return ticket

    def settle(self, ticket: Ticket[T]) -> T:
        """The result of what was posted once it is on the disk; commits where nobody else has."""
        with self._lock:
            if not ticket.done:
                self._commit_all()
        if ticket.error is not None:
            raise ticket.error
        return ticket.result[0]

    def together(self, work: Mapping[K, Steps[T]], ends: dict[K, T | Exception]) -> None:
        """Do several pieces of work in this thread, side by side: what they write at a time is one commit.

        Each goes on once what it has written is on the disk. What it has returned, or raised, is put into `ends` then.
        """
        go_on: dict[K, Callable[[], Callable[[Transaction], Any]]] = {k: steps.__next__ for k, steps in work.items()}
        while go_on:
            tickets: dict[K, Ticket[Any]] = {}
            for key, step in go_on.items():
                try:
                    tickets[key] = self.post(step())
                except StopIteration as end:
                    ends[key] = end.value
                except Exception as error:  # noqa: BLE001 - its own end; the others go on
                    ends[key] = error
            go_on = {key: self._answered(ticket, work[key]) for key, ticket in tickets.items()}

    def _answered(self, ticket: Ticket[Any], steps: Steps[Any]) -> Callable[[], Callable[[Transaction], Any]]:
        try:
            return partial(steps.send, self.settle(ticket))
        except Exception as error:  # noqa: BLE001 - raised where it was to be written
            return partial(steps.throw, error)

    def flush(self) -> None:
        """Commit what was posted. Whoever settles its ticket hears of what fails."""
        with self._lock:
            if self._queue:
                self._commit_all()

    def read(self, wish: Callable[[Transaction], T]) -> T:
        """Run `wish` against the last commit, without waiting for a writer."""
        try:
            sql = self._readers.pop()
        except IndexError:  # as many as there are readers at a time, whatever threads come and go
            sql = self._connect(cache=2000)
        try:
            return wish(Transaction(sql))
        finally:
            self._readers.append(sql)

    def busy_for(self) -> float:
        """How long (seconds) the commit under way has been going on; 0 when there is none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """Commit what was posted, and close every connection that nobody uses."""
        self.flush()
        with self._lock:
            self._sql.close()
        while self._readers:
            self._readers.pop().close()

    def _on_disk(self) -> tuple[int, int]:
        status = os.stat(self.path)
        return status.st_dev, status.st_ino

    def _require_file(self) -> None:
        """What is written to a deleted file is gone at the stop."""
        if self._on_disk() != self._identity:
            raise sqlite3.OperationalError(f"{self.path} was deleted or replaced: restart bridged")

    def _commit_all(self) -> None:
        with self._queue_lock:
            tickets, self._queue = self._queue, []
        self._busy_since = time.monotonic()
        try:
            self._require_file()
            self._sql.execute("BEGIN IMMEDIATE")
            self._grant_all(tickets, Transaction(self._sql))
            self._sql.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - the disk's own trouble is every ticket's; each raises it
            for ticket in tickets:
                ticket.error = ticket.error or error
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")
        finally:
            self._busy_since = None
            for ticket in tickets:
                ticket.done = True

    def _grant_all(self, tickets: Sequence[Ticket[Any]], transaction: Transaction) -> None:
        """A wish that is alone needs no savepoint: it is rolled back with the commit."""
        if len(tickets) == 1:
            tickets[0].result.append(tickets[0].wish(transaction))
            return
        for ticket in tickets:
            self._grant(ticket, transaction)

    def _grant(self, ticket: Ticket[Any], transaction: Transaction) -> None:
        self._sql.execute("SAVEPOINT wish")
        try:
            ticket.result.append(ticket.wish(transaction))
        except sqlite3.OperationalError:
            raise
        except Exception as error:  # noqa: BLE001 - raised again in the thread whose wish it was
            ticket.error = error
            self._sql.execute("ROLLBACK TO wish")
        self._sql.execute("RELEASE wish")

    def _connect(self, cache: int = 8000) -> sqlite3.Connection:
        sql = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
        sql.execute("PRAGMA journal_mode = WAL")
        sql.execute("PRAGMA synchronous = FULL")
        sql.execute(f"PRAGMA cache_size = -{cache}")  # kB
        sql.execute("PRAGMA wal_autocheckpoint = 4000")  # pages: the same ones are changed again and again
        return sql

    def _migrate(self) -> None:
        version = self._sql.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise JournalError(
                f"The journal {self.path} was written by a newer bridged (schema {version}, this one knows"
                f" {SCHEMA_VERSION}): install that version again, or give this one another state_dir."
            )
        for number, schema in enumerate(_SCHEMAS[version:], version + 1):
            self._sql.executescript(f"BEGIN IMMEDIATE; {schema} PRAGMA user_version = {number}; COMMIT;")


def damaged(path: Path, error: Exception) -> JournalError:
    """What to do about a journal that SQLite cannot read."""
    return JournalError(
        f"The journal {path} cannot be read ({error}). Move it aside and start again: what is in the folders"
        " then counts as existing and is not sent, and valid markers still count."
    )


# What only the place or the moment is to blame for, by SQLite's primary result code.
_REMEDIES: Final = {
    sqlite3.SQLITE_FULL: "make room on its disk",
    sqlite3.SQLITE_IOERR: "make room on its disk, or see to the disk if it is failing (the kernel's log tells)",
    sqlite3.SQLITE_BUSY: "end what holds it open",
    sqlite3.SQLITE_LOCKED: "end what holds it open",
    sqlite3.SQLITE_READONLY: "make it and its directory writable for this user",
    sqlite3.SQLITE_PERM: "make it and its directory writable for this user",
    sqlite3.SQLITE_CANTOPEN: "make it and its directory readable and writable for this user",
}
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


def _unavailable(path: Path, error: Exception, remedy: str) -> JournalUnavailable:
    why = (error.strerror if isinstance(error, OSError) else None) or error
    words = f"The journal {path} cannot be used now ({why}): {remedy}, and start again."
    return JournalUnavailable(f"{words} Leave the journal where it is, nothing in it is lost.")


@contextmanager
def _sentences(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        remedy = _REMEDIES.get(error.sqlite_errorcode & 0xFF)
        raise damaged(path, error) if remedy is None else _unavailable(path, error, remedy) from error
    except sqlite3.DatabaseError as error:
        raise damaged(path, error) from error
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise _unavailable(path, error, _REMEDIES[sqlite3.SQLITE_FULL]) from error
        raise JournalError(f"The journal {path} cannot be opened: {error.strerror}.") from error
