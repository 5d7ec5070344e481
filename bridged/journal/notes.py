"""Small values that outlive the daemon, and the addresses that the relay has refused."""

from __future__ import annotations

import sqlite3


class Notes:
    """The part of a transaction that keeps values."""

    _sql: sqlite3.Connection

    def kept(self, key: str) -> str | None:
        """The value under this key; None where there is none."""
        row = self._sql.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def keep(self, key: str, value: str) -> None:
        """Keep a small value, in the place of the one before."""
        self._sql.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (key, value))

    def refused_address(self, collection_email: str) -> str | None:
        """The relay's words when it refused this address; None where it has not, or where it may be tried again."""
        row = self._sql.execute("SELECT reply FROM refused_addresses WHERE address = ?", (collection_email,)).fetchone()
        return None if row is None else str(row[0])

    def refuse_address(self, collection_email: str, at: float, reply: str) -> None:
        """Nothing leaves for this address until `accept_address`."""
        self._sql.execute("INSERT OR REPLACE INTO refused_addresses VALUES (?, ?, ?)", (collection_email, at, reply))

    def accept_address(self, collection_email: str) -> None:
        """The address may be tried again."""
        self._sql.execute("DELETE FROM refused_addresses WHERE address = ?", (collection_email,))
