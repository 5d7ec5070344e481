"""The journal's file: SQLite behind the group commit, its opening and its health.

`synchronous=FULL` keeps each commit over a power cut: 10 of 10 in a trial. Paths are bytes, because sqlite3 refuses
text with surrogates and a file name need not be UTF-8.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from bridged.journal.commits import Commits, Ticket
from bridged.journal.errors import JournalError, JournalUnavailable, is_passing, opening, translated, unusable
from bridged.journal.schema import SCHEMA_VERSION, SCHEMAS
from bridged.journal.transaction import Transaction

FILE_NAME: Final = "journal.sqlite"
_WRITER_CACHE: Final = 8000  # kB
_READER_CACHE: Final = 2000  # kB

T = TypeVar("T")


class Journal(Commits):
    """The journal's file. Threads may share it; several processes may hold it at once."""

    def __init__(self, state_dir: Path, *, create: bool = True) -> None:
        """Open `state_dir`'s journal; raises JournalError with a remedy when it is absent, damaged or newer.

        An opening that fails is tried once more. A journal counts as damaged only when a check of all of it says so.
        """
        super().__init__()
        self.path = state_dir / FILE_NAME
        if not create and not self.path.exists():
            raise JournalError(f"There is no journal in {state_dir} yet: start the daemon with `bridged run` first.")
        self._readers: list[sqlite3.Connection] = []
        with opening(self.path):
            try:
                self._open()
            except (sqlite3.Error, OSError) as error:
                if not is_passing(error):
                    raise
                self._open()  # once more, because one failed read or one lack of descriptors damages nothing

    def _open(self) -> None:
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        self._identity = self._on_disk()
        self._sql = self._connect(_WRITER_CACHE)
        try:
            self._migrate()
            self._sql.execute("SELECT 1 FROM sqlite_master").fetchone()  # reads the schema, while a failure is repaired
        except BaseException:
            self._sql.close()
            raise

    def read(self, wish: Callable[[Transaction], T]) -> T:
        """Run `wish` against the last commit, without waiting for a writer. Raises JournalError where it fails."""
        try:
            sql = self._reader()
            try:
                return wish(Transaction(sql))
            finally:
                self._readers.append(sql)
        except sqlite3.Error as error:
            raise translated(self.path, error) from error

    def close(self) -> None:
        """Commit all posted wishes, and close every connection that is not in use."""
        self.flush()
        with self._lock:
            self._sql.close()
        while self._readers:
            self._readers.pop().close()

    def _reader(self) -> sqlite3.Connection:
        """A connection of its own for each read under way, and no more than there were at a time."""
        try:
            return self._readers.pop()
        except IndexError:
            return self._connect(_READER_CACHE)

    def _on_disk(self) -> tuple[int, int]:
        status = os.stat(self.path)
        return status.st_dev, status.st_ino

    def _require_file(self) -> None:
        """Raises JournalUnavailable for a deleted journal: its commits would be gone at the stop.

        The same where it cannot be looked at. Otherwise a sender would take that for an error of a document's file.
        """
        try:
            if self._on_disk() == self._identity:
                return
        except FileNotFoundError:
            pass
        except OSError as error:
            raise JournalUnavailable(unusable(error)) from error
        raise JournalUnavailable(unusable(f"{self.path} was deleted or replaced: restart bridged"))

    def _commit(self, tickets: Sequence[Ticket[Any]]) -> None:
        try:
            self._require_file()
            self._sql.execute("BEGIN IMMEDIATE")
            self._grant_all(tickets, Transaction(self._sql))
            self._sql.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - each ticket of the commit raises it
            self._fail(tickets, error)
            if self._sql.in_transaction:
                with suppress(sqlite3.Error):  # the tickets hold the error; the next BEGIN raises while this one lasts
                    self._sql.execute("ROLLBACK")

    def _fail(self, tickets: Sequence[Ticket[Any]], error: BaseException) -> None:
        told = translated(self.path, error)
        if told is not error:
            told.__cause__ = error
        for ticket in tickets:
            ticket.fail(told)

    def _grant_all(self, tickets: Sequence[Ticket[Any]], transaction: Transaction) -> None:
        """A lone wish needs no savepoint: it is rolled back with the commit."""
        if len(tickets) == 1:
            self._grant(tickets[0], transaction)
            return
        for ticket in tickets:
            self._grant_alone(ticket, transaction)

    def _grant_alone(self, ticket: Ticket[Any], transaction: Transaction) -> None:
        self._sql.execute("SAVEPOINT wish")
        try:
            self._grant(ticket, transaction)
        except sqlite3.OperationalError:
            raise  # the disk's trouble is every ticket's
        except Exception as error:  # noqa: BLE001 - raised again in the thread of the wish
            self._fail([ticket], error)
            self._sql.execute("ROLLBACK TO wish")
        self._sql.execute("RELEASE wish")

    def _grant(self, ticket: Ticket[Any], transaction: Transaction) -> None:
        ticket.grant(transaction)

    def _connect(self, cache: int) -> sqlite3.Connection:
        sql = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            sql.execute("PRAGMA journal_mode = WAL")
            sql.execute("PRAGMA synchronous = FULL")
            sql.execute(f"PRAGMA cache_size = -{cache}")
            sql.execute("PRAGMA wal_autocheckpoint = 4000")  # pages: the same ones are changed again and again
        except BaseException:
            sql.close()
            raise
        return sql

    def _migrate(self) -> None:
        version = self._sql.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise JournalError(
                f"The journal {self.path} was written by a newer bridged (schema {version}, this one knows"
                f" {SCHEMA_VERSION}): install that version again, or give this one another state_dir."
            )
        for number, schema in enumerate(SCHEMAS[version:], version + 1):
            self._sql.executescript(f"BEGIN IMMEDIATE; {schema} PRAGMA user_version = {number}; COMMIT;")
