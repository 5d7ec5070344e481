"""A state disk that is full for some commits of a journal."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bridged.journal import Journal


class _FullDisk:
    """A connection whose next commits fail."""

    def __init__(self, sql: sqlite3.Connection, failures: int) -> None:
        self._sql = sql
        self._failures = failures

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        if statement == "COMMIT" and self._failures:
            self._failures -= 1
            raise sqlite3.OperationalError("database or disk is full")
        return self._sql.execute(statement, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sql, name)


@contextmanager
def full_disk(journal: Journal, failures: int = 1) -> Iterator[None]:
    """The next commits of the journal fail, so many, as long as the block lasts."""
    usual = journal._sql
    journal._sql = _FullDisk(usual, failures)  # type: ignore[assignment]
    try:
        yield
    finally:
        journal._sql = usual
