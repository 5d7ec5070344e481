"""The group commit: the first thread in the queue commits the wishes of all threads that wait. No SQL.

A wish is a function of a Transaction. It has no side effect and can be repeated: its effects are its result, which
the caller applies once the commit is on the disk. Otherwise an effect would outlive a commit that fails.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from bridged.journal.transaction import Transaction

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

# Work that writes now and then: it yields each wish, and goes on with the wish's result.
Steps = Generator[Callable[[Transaction], Any], Any, T]


class Ticket(Generic[T]):
    """One wish in the queue. `Journal.settle` returns its result, or raises its error."""

    def __init__(self, wish: Callable[[Transaction], T]) -> None:
        self._wish = wish
        self._result: list[T] = []
        self._error: BaseException | None = None
        self.done = False

    def grant(self, transaction: Transaction) -> None:
        """Run the wish. Only the thread that commits calls this."""
        self._result = [self._wish(transaction)]

    def fail(self, error: BaseException) -> None:
        """The wish is not granted. The first error counts."""
        self._error = self._error or error

    def end(self) -> None:
        """The commit is over, well or not."""
        self.done = True

    def outcome(self) -> T:
        """The wish's result; raises its error. Only after its end."""
        if self._error is not None:
            raise self._error
        return self._result[0]


class Commits(ABC):
    """A queue of wishes, and one commit at a time for all that are in it. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held by the thread that commits
        self._queue: list[Ticket[Any]] = []
        self._queue_lock = threading.Lock()
        self._busy_since: float | None = None

    @abstractmethod
    def _commit(self, tickets: Sequence[Ticket[Any]]) -> None:
        """Grant the tickets in one transaction. Raises nothing: each ticket holds its own error."""

    def write(self, wish: Callable[[Transaction], T]) -> T:
        """Run `wish` in a transaction and return its result once it is on the disk.

        A wish that raises is rolled back alone and raises here. Wishes of other threads may share the commit. Raises
        JournalError where the commit fails.
        """
        return self.settle(self.post(wish))

    def post(self, wish: Callable[[Transaction], T]) -> Ticket[T]:
        """Put `wish` into the next commit of any thread. Promises nothing before the ticket is settled."""
        ticket = Ticket(wish)
        with self._queue_lock:
            self._queue.append(ticket)
        return ticket

    def settle(self, ticket: Ticket[T]) -> T:
        """The result of a posted wish once it is on the disk. Commits where no other thread has."""
        with self._lock:
            if not ticket.done:
                self._commit_all()
        return ticket.outcome()

    def together(self, work: Mapping[K, Steps[T]], ends: dict[K, T | Exception]) -> None:
        """Do several pieces of work, each to its end. Their wishes of the same moment share one commit.

        Each goes on once its wish is on the disk. `ends` receives the result or the error of each at its end.
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
        except Exception as error:  # noqa: BLE001 - raised where the wish was made
            return partial(steps.throw, error)

    def flush(self) -> None:
        """Commit all posted wishes. Raises nothing: `settle` of each ticket tells of an error."""
        with self._lock:
            if self._queue:
                self._commit_all()

    def busy_for(self) -> float:
        """Seconds for which the commit under way has been going on; 0 when there is none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _commit_all(self) -> None:
        with self._queue_lock:
            tickets, self._queue = self._queue, []
        self._busy_since = time.monotonic()
        try:
            self._commit(tickets)
        finally:
            self._busy_since = None
            for ticket in tickets:
                ticket.end()
