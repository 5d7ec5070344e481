"""Every document, every attempt, every known file, in SQLite. All SQL of bridged is in here."""

from bridged.journal.files import SPECIAL, KnownFile, Mounted
from bridged.journal.store import FILE_NAME, Journal, StateConflict, Steps, Ticket, Transaction, damaged

__all__ = [
    "FILE_NAME",
    "SPECIAL",
    "Journal",
    "KnownFile",
    "Mounted",
    "StateConflict",
    "Steps",
    "Ticket",
    "Transaction",
    "damaged",
]
