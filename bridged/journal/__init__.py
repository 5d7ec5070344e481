"""Every document, every attempt, every known file, in SQLite. All SQL of bridged is in here.

`values` and `packed` are public: values that the journal takes and gives.
"""

from bridged.journal.commits import Steps, Ticket
from bridged.journal.errors import JournalError, JournalUnavailable, StateConflict
from bridged.journal.store import FILE_NAME, Journal
from bridged.journal.transaction import Transaction

__all__ = [
    "FILE_NAME",
    "Journal",
    "JournalError",
    "JournalUnavailable",
    "StateConflict",
    "Steps",
    "Ticket",
    "Transaction",
]
