"""All that can be said to the journal within one commit."""

from __future__ import annotations

import sqlite3

from bridged.journal.documents import Verbs
from bridged.journal.files import Folders, KnownFiles
from bridged.journal.notes import Notes


class Transaction(Verbs, KnownFiles, Folders, Notes):
    """Documents, known files, folders and notes. It lives inside one commit or one read; never keep it."""

    def __init__(self, sql: sqlite3.Connection) -> None:
        self._sql = sql
