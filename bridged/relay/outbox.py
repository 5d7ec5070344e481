"""Mails that are no documents, on their way from the thread that writes them to a thread that sends them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridged.relay.outcome import Outcome, is_relays

if TYPE_CHECKING:
    from bridged.config.settings import Smtp


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One mail for one address, ready for the wire. Mails of the same `letter` differ in their address only."""

    letter: str
    smtp: Smtp  # the relay that it was written for
    to: str
    data: bytes


class Outbox:
    """Where mails wait for a session of the documents. Thread-safe; keeps nothing over a restart."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Outgoing] = []
        self._taken: list[Outgoing] = []
        self._concluded: list[tuple[Outgoing, Outcome | Exception]] = []

    def offer(self, mails: Sequence[Outgoing]) -> None:
        """Let these mails wait, in the place of all that waited. A mail that is being sent does not wait as well."""
        with self._lock:
            under_way = {(mail.letter, mail.to) for mail in self._unsettled()}
            self._waiting = [mail for mail in mails if (mail.letter, mail.to) not in under_way]

    def take(self, smtp: Smtp, turn: Callable[[], bool]) -> Outgoing | None:
        """The first mail, to be sent and then concluded. None without a mail for `smtp`, or when `turn` says False."""
        with self._lock:
            if not self._waiting or self._waiting[0].smtp != smtp or not turn():
                return None
            mail = self._waiting.pop(0)
            self._taken.append(mail)
            return mail

    def conclude(self, mail: Outgoing, outcome: Outcome | Exception) -> None:
        """The outcome of a mail that was taken. When it is the relay's trouble, no other mail waits any more."""
        with self._lock:
            self._taken.remove(mail)
            self._concluded.append((mail, outcome))
            if is_relays(outcome):
                self._waiting.clear()

    def collect(self) -> list[tuple[Outgoing, Outcome | Exception]]:
        """Every mail that was concluded since the last call, with its outcome."""
        with self._lock:
            concluded, self._concluded = self._concluded, []
            return concluded

    def _unsettled(self) -> list[Outgoing]:
        return self._taken + [mail for mail, _ in self._concluded]
