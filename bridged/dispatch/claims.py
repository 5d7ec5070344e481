"""Which documents leave next. They are claimed in one commit, before the first byte of any of them leaves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from bridged.config import Place, SwitchedFolders
from bridged.config.settings import Settings
from bridged.dispatch import brakes
from bridged.journal import Journal, Transaction
from bridged.line import Line
from bridged.logs import Unread, say_document
from bridged.model import Document, Instant, State
from bridged.reasons import IGNORED_NOW, REPLACED
from bridged.relay import Outbox

FILE_AWAY: Final = 2.0  # seconds until a queued document whose file cannot be opened is looked at again
MISTAKE: Final = 60.0  # seconds until a document is tried again that an exception of our code has stopped
SMALL: Final = 256 * 1024  # bytes: a larger document is streamed, and is the last that is claimed with others
TOGETHER: Final = 0.1  # seconds that documents claimed together take to leave, at the pace of the last ones
MOST: Final = 40  # documents claimed together
LOOKS: Final = 100  # documents looked at in one commit, because commits of other threads wait for it


@dataclass(frozen=True, slots=True)
class Route:
    """The configuration of the senders. A reload replaces it whole."""

    settings: Settings
    switched: SwitchedFolders
    line: Line
    maildir: Path | None = None  # takes the mails in a dry run, in place of the relay


class Shared:
    """The state that all senders share: alerts, the client whose turn was last, the pace, and warnings already told."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.last = ""
        self.takes = TOGETHER  # seconds for one document, averaged over the last ones
        self.unread: dict[int, Unread] = {}
        self.warned: set[int] = set()

    def served(self, client: str) -> None:
        """The last turn was this client's."""
        self.last = client


@dataclass(slots=True)
class _Looked:
    """The result of one commit: documents to send, and log lines of those that may not leave."""

    last: str  # the client that had the last turn
    claimed: list[Document] = field(default_factory=list)
    lines: list[tuple[str, Document, str]] = field(default_factory=list)
    replies: dict[str, str | None] = field(default_factory=dict)  # by address: the reply that refused it, or None

    def turn(self, client: str) -> None:
        """It is this client's turn."""
        self.last = client

    def refused(self, tx: Transaction, address: str) -> str | None:
        """The reply that refused this address, or None. Asked once, because one client's documents mostly go to one."""
        if address not in self.replies:
            self.replies[address] = tx.refused_address(address)
        return self.replies[address]


class Claims:
    """Claims the next documents for one sender."""

    def __init__(self, journal: Journal, shared: Shared, away: Callable[[], Collection[bytes]]) -> None:
        """`away` returns the GEDs that cannot be read now. Their documents wait."""
        self._journal = journal
        self._shared = shared
        self._away = away

    def waiting(self, route: Route, now: Instant) -> bool:
        """Whether a document is due."""
        horizon, away = _horizon(route, now), self._away()
        return self._journal.read(lambda tx: tx.any_due(now.wall, horizon, away))

    def wake_in(self, now: Instant) -> float:
        """Seconds until a document may be due, from 0.02 to 1."""
        away = self._away()
        due = self._journal.read(lambda tx: tx.next_due(away))
        return 1.0 if due is None else max(0.02, min(1.0, due - now.wall))

    def take(self, route: Route, now: Instant, most: int) -> list[Document]:
        """Claim the next documents, at most `most`. Logs each document that may not leave."""
        away = self._away()
        looked = self._journal.write(lambda tx: self._look(tx, route, now, most, away))
        self._shared.served(looked.last)
        for event, document, reason in looked.lines:
            say_document(event, document, reason=reason)
        return looked.claimed

    def _look(self, tx: Transaction, route: Route, now: Instant, most: int, away: Collection[bytes]) -> _Looked:
        looked = _Looked(self._shared.last)
        for document in islice(self._dues(tx, route, now, away, looked), LOOKS):
            claimed = _claimed(tx, document, route, now, looked)
            if claimed is not None:
                looked.claimed.append(claimed)
                if len(looked.claimed) == most or document.stamp.size > SMALL:
                    break
        return looked

    def _dues(
        self, tx: Transaction, route: Route, now: Instant, away: Collection[bytes], looked: _Looked
    ) -> Iterator[Document]:
        """Due documents, one of each client in turn. The caller must move each before the next, or it is due again.

        While the relay refuses everything, documents that it has not refused are better probes.
        """
        horizon, suspects = _horizon(route, now), route.line.suspects()
        while True:
            last = looked.last
            firsts = tx.due_after(last, now.wall, horizon, away, suspects, limit=MOST)
            if not firsts and suspects:
                firsts = tx.due_after(last, now.wall, horizon, away, limit=1)
            if not firsts:
                return
            for document in firsts:
                looked.turn(document.client)
                yield document
            if firsts[0].client == last:  # no other client has any, so one query is enough
                yield from tx.due_of(last, now.wall, horizon, away, suspects, limit=MOST)


def _claimed(tx: Transaction, document: Document, route: Route, now: Instant, looked: _Looked) -> Document | None:
    place = route.switched.place(document.directory)
    standing = tx.standing(document.path, document.seq)
    gone = _withdrawn_for(route, document, place, standing)
    if gone or place is None:
        tx.withdraw(document, gone)
        if gone == IGNORED_NOW:
            tx.forget(document.path)  # under its own name again it is a document again
        looked.lines.append(("document_withdrawn", document, gone))
        return None
    if standing == "moved":
        tx.put_off(document.seq, now.wall + FILE_AWAY)
        return None
    address = place.collection_email
    held = _held_for(tx, route, document, place, looked.refused(tx, address))
    if held is not None:
        rule, reason = held
        tx.hold_back(document.seq, reason, address, rule)
        looked.lines.append(("document_held", document, reason))
        return None
    later = brakes.put_off_until(tx, place, now.wall)
    if later is not None:
        due, reason = later
        # A due time beyond the horizon counts as due now, and would be met again and again.
        tx.put_off(document.seq, min(due, _horizon(route, now) - 1.0), reason)
        if reason != document.reason:
            looked.lines.append(("document_deferred", document, reason))
        return None
    tx.claim(document, address)
    return document._replace(state=State.SENDING, collection_email=address)


def _withdrawn_for(route: Route, document: Document, place: Place | None, standing: str) -> str:
    if place is None:
        return "switched_off"
    if standing == "replaced":
        return REPLACED
    # A rename to an ignored name withdraws no document that is being sent or held. So it is asked again here.
    return IGNORED_NOW if route.settings.ignored(document.name) else ""


def _held_for(
    tx: Transaction, route: Route, document: Document, place: Place, refused: str | None
) -> tuple[str, str] | None:
    """The client's rule that holds it ("" without one) and the reason. None when it may leave."""
    if document.uncertain > route.settings.retry.uncertain_attempts:
        return "", "uncertain: the connection was lost after the final dot too often; it may have arrived"
    if refused is not None:
        return "", address_refused(place.collection_email, refused)
    return brakes.held_for(tx, document, place)


def _horizon(route: Route, now: Instant) -> float:
    return now.wall + max(route.settings.retry.max, MISTAKE) + 1.0


def address_refused(address: str, reply: str) -> str:
    """The reason of every document that is held for a refused address."""
    return f"{reply} (the address {address} is refused, so everything for it is held)"
