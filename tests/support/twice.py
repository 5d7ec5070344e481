"""A journal that runs each wish twice, the first time in a savepoint that is rolled back.

A wish with a side effect shows: the second run meets the effect of the first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from bridged.journal import Journal, Ticket, Transaction

Grant = Callable[[Journal, Ticket[Any], Transaction], None]
once: Grant = Journal._grant


def twice(journal: Journal, ticket: Ticket[Any], transaction: Transaction) -> None:
    """In the place of `Journal._grant`."""
    sql = journal._sql
    sql.execute("SAVEPOINT rehearsal")
    raised = _raised(ticket, transaction)
    if not sql.in_transaction:
        raise sqlite3.OperationalError("the rehearsal has ended the transaction")
    sql.execute("ROLLBACK TO rehearsal")
    sql.execute("RELEASE rehearsal")
    once(journal, ticket, transaction)
    if raised is not None:
        raise AssertionError("a wish has raised at first, and was granted when it was repeated") from raised


def _raised(ticket: Ticket[Any], transaction: Transaction) -> Exception | None:
    try:
        ticket.grant(transaction)
    except Exception as error:
        return error
    return None


def run_wishes_twice() -> None:
    """For the rest of this process."""
    Journal._grant = twice  # type: ignore[method-assign]
