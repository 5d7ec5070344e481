"""Dispatch: from a row of the journal to the relay's acceptance. `step` reads as the path of a document."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from bridged import brakes, files, pace
from bridged.changes import ADOPTED, IGNORED_NOW
from bridged.collectors import HEAD, neutral, objections
from bridged.folders import Place, SwitchedFolders
from bridged.journal import Journal, Transaction
from bridged.known import REPLACED
from bridged.line import Line
from bridged.logs import say, say_document, say_unreadable
from bridged.maildir import Maildir
from bridged.marking import Marking
from bridged.message import BLOCK, Mail, Readable, compose
from bridged.model import (
    Accepted,
    AddressRefused,
    Deferred,
    Document,
    Instant,
    Outcome,
    Refused,
    State,
    Uncertain,
)
from bridged.oauth import secret_of
from bridged.patience import Patience, PatientFile
from bridged.relay import Relay
from bridged.retry import next_due, tried_for
from bridged.settings import Settings
from bridged.shares import Shares

FILE_AWAY: Final = 2.0  # seconds until a queued document whose file cannot be opened is looked at again
SHARE_AWAY: Final = 15.0
MISTAKE: Final = 60.0  # seconds until a document that a mistake of ours has stopped is tried again
STATE_AWAY: Final = 5.0  # the same where the state disk has
LONG_GAP: Final = 3600.0


class Held(Exception):
    """The document is not handed to the relay: its collector would drop it, or it was sent before."""


class NotYet(Exception):
    """The same bytes are on their way as another document: what becomes of those decides."""


class Changed(Exception):
    """The document was overwritten while it was read: what was read may be half old, half new."""


class Marked(Exception):
    """The document's own marker stands beside it: it left, and a damaged journal has forgotten that."""

    def __init__(self, relay_reply: str) -> None:
        super().__init__(relay_reply)
        self.relay_reply = relay_reply


@dataclass(frozen=True, slots=True)
class Route:
    """The configuration that senders work by, replaced whole at a reload."""

    settings: Settings
    switched: SwitchedFolders
    line: Line
    maildir: Path | None = None  # in a dry run: where mails go instead of the relay


class Turns:
    """What all sessions' senders share: whose turn it is, since clients take turns, and what was told already."""

    def __init__(self) -> None:
        self.last = ""
        self.unreadable: set[int] = set()


class Dispatch:
    """One session's sender. Several share a journal, a line, and the turns."""

    def __init__(
        self,
        journal: Journal,
        number: int,
        route: Route,
        turns: Turns,
        marking: Marking,
        patience: Patience,
        shares: Shares,
        random: Callable[[], float],
        clock: Callable[[], Instant],
        on_overwritten: Callable[[int, bytes], None],
    ) -> None:
        self._journal = journal
        self._number = number
        self._route = route
        self._turns = turns
        self._marking = marking
        self._patience = patience
        self._shares = shares
        self._random = random
        self._clock = clock
        self._unrecorded: tuple[Document, Outcome] | None = None
        self._stranded: tuple[Document, float] | None = None
        self._on_overwritten = on_overwritten
        self._relay = self._new_relay()
        self._stopping = threading.Event()

    def configure(self, route: Route) -> None:
        """Put a configuration in force, from the next document on."""
        self._route = route

    def abort(self) -> None:
        """Break off the message in transit, from another thread."""
        self._stopping.set()
        self._relay.abort()

    def close(self) -> None:
        """Take leave of the relay. Only when no step is under way: it would speak in the middle of a mail."""
        with suppress(sqlite3.Error, OSError):  # else the next start finds it as it is
            if self._unrecorded is not None:
                self._record(self._clock())
            if self._stranded is not None:
                self._rescue(self._clock())
        self._relay.close()

    def step(self, now: Instant) -> float:
        """Claim the next document, send it, record what came of it. Returns seconds until there may be another."""
        line = self._route.line
        if self._unrecorded is not None:
            self._record(now)
        if self._stranded is not None:
            self._rescue(now)
        if self._stopping.is_set():
            return 1.0
        if self._number >= line.sessions_allowed:
            self._relay.close()
            line.closed(self._number)
            return 1.0
        away = self._away_now()
        if not self._journal.read(lambda tx: tx.due_after("", now.wall, self._horizon(now), away)):
            return self._idle(now, away)
        if not line.may_send(now.steady):
            return max(0.05, min(1.0, line.wake_in(now.steady)))
        self._take_turn(line, now)
        return 0.0

    def _take_turn(self, line: Line, now: Instant) -> None:
        outcome, document = None, None
        try:
            document = self._claim(now)
            outcome = self._send(document, now) if document is not None else None
        except Exception as error:
            if document is not None:
                self._stranded = (document, STATE_AWAY if isinstance(error, sqlite3.OperationalError) else MISTAKE)
            raise
        finally:
            if outcome is None:
                line.give_back()
        if document is not None and outcome is not None:
            now = self._clock()  # the sending may have taken minutes
            self._unrecorded = (document, outcome)  # first: the next step enters it, whatever fails in this one
            self._report(line, document, outcome, now)
            self._record(now)

    def _record(self, now: Instant) -> None:
        """Enter what came of it, until it is in: a full disk must not make us send again what the relay took."""
        assert self._unrecorded is not None
        document, outcome = self._unrecorded
        current = self._journal.read(lambda tx: tx.document(document.seq))
        if current is not None and current.state is State.SENDING:
            self._conclude(replace(document, sha256=current.sha256), outcome, now)
        self._unrecorded = None

    def _rescue(self, now: Instant) -> None:
        """What stopped the sending must not leave the document half-way until the next start: it is queued again.

        Tried until it is in, since the disk that failed the sending fails this as well.
        """
        assert self._stranded is not None
        document, wait = self._stranded
        current = self._journal.read(lambda tx: tx.document(document.seq))
        if current is not None and current.state is State.SENDING:
            columns = {"due_at": now.wall + wait, "uncertain": current.uncertain + int(current.dotted)}
            self._journal.write(lambda tx: tx.move(document.seq, State.SENDING, State.QUEUED, dotted=0, **columns))
        self._stranded = None

    def _idle(self, now: Instant, away: Collection[bytes]) -> float:
        due = self._journal.read(lambda tx: tx.next_due(away))
        return 1.0 if due is None else max(0.02, min(1.0, due - now.wall))

    def _away_now(self) -> tuple[bytes, ...]:
        """The GEDs whose documents wait without being tried."""
        return self._shares.away() + self._patience.hanging()

    def _horizon(self, now: Instant) -> float:
        return now.wall + max(self._route.settings.retry.max, MISTAKE) + 1.0

    # -- claim

    def _claim(self, now: Instant) -> Document | None:
        route = self._route
        self._refresh_relay(route)
        refused: list[tuple[str, Document, str]] = []
        claimed = self._journal.write(lambda tx: self._next(tx, route, now, refused))
        for event, document, reason in refused:
            say_document(event, document, reason=reason)
        return claimed

    def _next(
        self, tx: Transaction, route: Route, now: Instant, refused: list[tuple[str, Document, str]]
    ) -> Document | None:
        document = self._due(tx, route, now)
        if document is None:
            return None
        self._turns.last = document.client
        place = route.switched.place(document.directory)
        standing = tx.standing(document.path, document.seq)
        gone = self._withdrawn_for(document, place, standing)
        if gone or place is None:
            tx.move(document.seq, State.QUEUED, State.WITHDRAWN, reason=gone)
            if gone == IGNORED_NOW:
                tx.forget(document.path)  # under its own name again it is a document again
            refused.append(("document_withdrawn", document, gone))
            return None
        if standing == "moved":
            tx.note(document.seq, State.QUEUED, due_at=now.wall + FILE_AWAY)
            return None
        address = place.collection_email
        reason = self._held_for(tx, document, place)
        if reason:
            tx.move(document.seq, State.QUEUED, State.HELD, reason=reason, collection_email=address)
            refused.append(("document_held", document, reason))
            return None
        later = brakes.put_off_until(tx, place, now.wall)
        if later is not None:
            reason = f"{place.collector.name} takes {place.collector.daily_cap} documents a day; it goes on then"
            tx.note(document.seq, State.QUEUED, due_at=later, reason=reason)
            refused.append(("document_deferred", document, reason))
            return None
        tx.move(document.seq, State.QUEUED, State.SENDING, collection_email=address, dotted=0)
        return replace(document, state=State.SENDING, collection_email=address)

    def _due(self, tx: Transaction, route: Route, now: Instant) -> Document | None:
        """Whose turn it is. Where the relay refuses everything, those it has not refused yet are the better probes."""
        last, horizon, away = self._turns.last, self._horizon(now), self._away_now()
        suspects = route.line.suspects()
        document = tx.due_after(last, now.wall, horizon, away, suspects)
        return document or (tx.due_after(last, now.wall, horizon, away) if suspects else None)

    def _withdrawn_for(self, document: Document, place: Place | None, standing: str) -> str:
        if place is None:
            return "switched_off"
        if standing == "replaced":
            return REPLACED
        # Where it got that name while it was being sent or held, it could not be withdrawn at once.
        return IGNORED_NOW if self._route.settings.ignored(document.name) else ""

    def _held_for(self, tx: Transaction, document: Document, place: Place) -> str:
        if document.uncertain > self._route.settings.retry.uncertain_attempts:
            return "uncertain: the connection was lost after the final dot too often; it may have arrived"
        refused = tx.refused_address(place.collection_email)
        if refused is not None:
            return _address_refused(place.collection_email, refused)
        return brakes.held_for(tx, document, place)

    def _refresh_relay(self, route: Route) -> None:
        if self._relay_smtp != route.settings.smtp:
            self._relay.close()
            self._relay = self._new_relay()

    def _new_relay(self) -> Relay | Maildir:
        smtp = self._relay_smtp = self._route.settings.smtp
        if self._route.maildir is not None:
            return Maildir(self._route.maildir)
        return Relay(smtp, secret_of(smtp))

    # -- send

    def _send(self, document: Document, now: Instant) -> Outcome | None:
        """The relay's answer, or None where the document itself stood in the way and has been put back."""
        route = self._route
        place = route.switched.place(document.directory)
        try:
            assert place is not None
            if place.client.duplicates == "hold" and document.released_at is None:
                self._require_new_bytes(document)
            with PatientFile(self._patience, document.ged, lambda: self._open(document)) as file:
                return self._deliver(document, file, place, route)
        except Changed:
            self._return(document, "overwritten before it was sent")
        except Held as held:
            self._hold(document, "held", str(held), now, attempts=0)
        except NotYet:
            self._journal.write(
                lambda tx: tx.move(document.seq, State.SENDING, State.QUEUED, due_at=now.wall + SHARE_AWAY)
            )
        except Marked as marked:
            self._accepted(document, Accepted(marked.relay_reply), now, reason=ADOPTED)
        except OSError as error:
            self._away(document, error, now)
        return None

    def _open(self, document: Document) -> BinaryIO:
        with self._shares.at(document.ged, document.path) as root_fd:
            marker = self._marking.beside(root_fd, document)
            if marker is not None:
                raise Marked(marker.relay_reply)
            return files.open_document(root_fd, document.relative)

    def _require_new_bytes(self, document: Document) -> None:
        """Read it once more than is needed to send it. Raises Held, NotYet, Changed or OSError."""
        digest = hashlib.sha256()
        with PatientFile(self._patience, document.ged, lambda: self._open(document)) as file:
            _check_unchanged(file, document)
            while block := file.read(BLOCK):
                digest.update(block)
            _check_unchanged(file, document)
        sha256 = digest.hexdigest()

        def enter(tx: Transaction) -> tuple[str, bool]:
            # Entered before it is asked: of two with the same bytes at least one sees the other.
            tx.note(document.seq, State.SENDING, sha256=sha256)
            return brakes.sent_before(tx, document, sha256)

        reason, another_on_its_way = self._journal.write(enter)
        if reason:
            raise Held(reason)
        if another_on_its_way:
            raise NotYet

    def _deliver(self, document: Document, file: PatientFile, place: Place, route: Route) -> Outcome:
        self._turns.unreadable.discard(document.seq)
        _check_unchanged(file, document)
        sender = place.client.sender or route.settings.smtp.sender
        mail = compose(
            id=document.id,
            name=document.name,
            client=document.client,
            sender=sender,
            collection_email=document.collection_email,
            subject=route.settings.subject,
            neutral=lambda subject: neutral(place.collector, subject),
            message_id=document.message_id,
            date=document.date,
        )
        size = mail.size(document.stamp.size)
        head = file.read(HEAD)
        if document.released_at is None:
            _require_accepted(document, place, head, size)
        digest = hashlib.sha256()
        chunks = _whole(mail, _Joined(head, file), file, document, digest.update)

        def before_dot() -> None:
            self._journal.write(lambda tx: tx.note(document.seq, State.SENDING, dotted=1, sha256=digest.hexdigest()))

        return self._relay.deliver(sender, document.collection_email, size, chunks, before_dot)

    def _return(self, document: Document, reason: str) -> None:
        """To intake, which waits until it can be sent."""
        self._journal.write(lambda tx: tx.move(document.seq, State.SENDING, State.WAITING, reason=reason))
        self._on_overwritten(document.seq, document.path)

    def _away(self, document: Document, error: OSError, now: Instant) -> None:
        """Gone, renamed, or the share is away: intake finds out which; until then it waits and nothing is counted."""
        missing = isinstance(error, FileNotFoundError)
        wait = FILE_AWAY if missing else SHARE_AWAY
        if isinstance(error, PermissionError) and document.seq not in self._turns.unreadable:
            self._turns.unreadable.add(document.seq)
            say_unreadable(document, error)

        def put_back(tx: Transaction) -> bool:
            known = tx.known(document.path)
            if missing and (known is None or known.document != document.seq):
                reason = "deleted or moved out of the switched folder before it was sent"
                current = tx.document(document.seq)
                if current is not None and current.path == document.path:
                    tx.move(document.seq, State.SENDING, State.WITHDRAWN, reason=reason)
                    return True
            tx.move(document.seq, State.SENDING, State.QUEUED, due_at=now.wall + wait, dotted=0)
            return False

        if self._journal.write(put_back):
            say_document("document_withdrawn", document, reason="its file is gone")

    # -- conclude

    def _conclude(self, document: Document, outcome: Outcome, now: Instant) -> None:
        if isinstance(outcome, Accepted):
            self._accepted(document, outcome, now)
        elif isinstance(outcome, Refused | AddressRefused) and self._route.line.blameless(document.seq):
            self._put_back(document)
        elif isinstance(outcome, Refused):
            self._hold(document, "refused", outcome.reply, now)
        elif isinstance(outcome, AddressRefused):
            self._hold_address(document, outcome.reply, now)
        elif isinstance(outcome, Deferred):
            self._defer(document, outcome, now)
        elif isinstance(outcome, Uncertain):
            self._uncertain(document, outcome, now)
        else:
            self._put_back(document)

    def _report(self, line: Line, document: Document, outcome: Outcome, now: Instant) -> None:
        event = line.report(outcome, now.steady, document.client, document.seq)
        pace.save(self._journal, self._relay_smtp, line, now)
        if event is None:
            return
        if event.put_back:
            self._journal.write(lambda tx: _put_all_back(tx, event.put_back))
        more: dict[str, Any] = {"quota": True} if event.quota else {}
        say(event.name, reason=event.detail, relay=self._relay_smtp.host, **more)

    def _accepted(self, document: Document, outcome: Accepted, now: Instant, reason: str = "") -> None:
        attempts = document.attempts + 1
        again = now.wall + self._route.settings.watch.sweep

        def accept(tx: Transaction) -> Document | None:
            tx.attempt(document.seq, now.wall, "accepted", outcome.reply)
            columns = {"attempts": attempts, "relay_reply": outcome.reply, "sent_at": now.wall, "reason": reason}
            tx.move(document.seq, State.SENDING, State.SENT, marker_due=again, **columns)
            return tx.document(document.seq)

        sent = self._journal.write(accept)
        assert sent is not None
        say_document("document_sent", sent, collection_email=sent.collection_email, relay_reply=outcome.reply)
        self._marking.validate(sent, now.wall)

    def _hold(self, document: Document, outcome: str, reason: str, now: Instant, attempts: int = 1) -> None:
        """`attempts`: 0 where the relay was never asked."""

        def hold(tx: Transaction) -> None:
            if not attempts:
                tx.move(document.seq, State.SENDING, State.HELD, reason=reason)
                return
            tx.attempt(document.seq, now.wall, outcome, reason)
            columns = {"attempts": document.attempts + attempts, "reason": reason, "relay_reply": reason}
            tx.move(document.seq, State.SENDING, State.HELD, **columns)

        self._journal.write(hold)
        say_document("document_held", document, reason=reason)

    def _hold_address(self, document: Document, reply: str, now: Instant) -> None:
        """Nothing for this address leaves until a person has looked: it is told once, and its queue is held with it."""
        address = document.collection_email
        reason = _address_refused(address, reply)

        def hold(tx: Transaction) -> list[Document]:
            tx.attempt(document.seq, now.wall, "refused", reply)
            columns = {"attempts": document.attempts + 1, "reason": reason, "relay_reply": reply}
            tx.move(document.seq, State.SENDING, State.HELD, **columns)
            tx.refuse_address(address, now.wall, reply)
            queue = tx.documents("state = 'queued' AND client = ?", (document.client,))
            others = [other for other in queue if self._goes_to(other) == address]
            for other in others:
                tx.move(other.seq, State.QUEUED, State.HELD, reason=reason, collection_email=address)
            return others

        others = self._journal.write(hold)
        say_document("document_held", document, reason=reason, collection_email=address, address_refused=True)
        for other in others:
            say_document("document_held", other, reason=reason, collection_email=address)

    def _goes_to(self, document: Document) -> str:
        place = self._route.switched.place(document.directory)
        return place.collection_email if place is not None else ""

    def _defer(self, document: Document, outcome: Deferred, now: Instant) -> None:
        retry = self._route.settings.retry
        attempted = [at for at, _, _ in self._journal.read(lambda tx: tx.attempts(document.seq))]
        since = document.queued_at or 0.0
        tried = tried_for([at for at in attempted if at >= since], now.wall, retry.max + LONG_GAP)
        if tried >= retry.give_up_after:
            self._hold(document, "deferred", f"given up: {outcome.reply}", now)
            return
        attempts = document.attempts + 1
        due = next_due(retry, attempts, now.wall, self._random)
        self._requeue(document, "deferred", outcome.reply, now, attempts=attempts, due_at=due)
        say_document("document_deferred", document, reason=outcome.reply, retry_in=round(due - now.wall, 1))

    def _uncertain(self, document: Document, outcome: Uncertain, now: Instant) -> None:
        retry, uncertain = self._route.settings.retry, document.uncertain + 1
        if uncertain > retry.uncertain_attempts:
            self._hold(document, "uncertain", f"uncertain too often: {outcome.detail}; it may have arrived", now)
            return
        due = next_due(retry, uncertain, now.wall, self._random)
        attempts = document.attempts + 1
        self._requeue(document, "uncertain", outcome.detail, now, attempts=attempts, uncertain=uncertain, due_at=due)
        say_document(
            "document_deferred",
            document,
            reason=f"uncertain: {outcome.detail}",
            uncertain=True,
            message_id=document.message_id,
        )

    def _requeue(self, document: Document, outcome: str, reply: str, now: Instant, **columns: float) -> None:
        def requeue(tx: Transaction) -> None:
            tx.attempt(document.seq, now.wall, outcome, reply)
            tx.move(
                document.seq,
                State.SENDING,
                State.QUEUED,
                reason=reply,
                relay_reply=reply,
                dotted=0,
                **columns,
            )

        self._journal.write(requeue)

    def _put_back(self, document: Document) -> None:
        """The relay's trouble is never the document's fault: nothing is counted."""
        self._journal.write(lambda tx: tx.move(document.seq, State.SENDING, State.QUEUED, dotted=0))


def _address_refused(address: str, reply: str) -> str:
    return f"{reply} (the address {address} is refused, so everything for it is held)"


def _put_all_back(tx: Transaction, documents: Collection[int]) -> None:
    """What was refused in a row was the relay's fault: the documents, and those held with their address."""
    for seq in documents:
        document = tx.document(seq)
        if document is None:
            continue
        address = document.collection_email
        refused = tx.refused_address(address)
        tx.accept_address(address)
        reasons = (document.reason, "" if refused is None else _address_refused(address, refused))
        held = "state = 'held' AND (seq = ? OR (collection_email = ? AND reason = ?))"
        for one in list(tx.documents(held, (seq, address, reasons[1]))):
            tx.move(one.seq, State.HELD, State.QUEUED, due_at=0.0, reason="")


def _require_accepted(document: Document, place: Place, head: bytes, mail_size: int) -> None:
    """Raises Held for what the collector would drop without a word; what only may be dropped is sent."""
    found = objections(place.collector, document.name, head, document.stamp.size, mail_size)
    if found.holds:
        raise Held("; ".join(found.holds))
    if found.warnings:
        say_document("document_queued", document, warning="; ".join(found.warnings), level="warning")


class _Joined:
    """The head that was read already, and then the rest of the file."""

    def __init__(self, head: bytes, rest: PatientFile) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int, /) -> bytes:
        """As of a file."""
        if not self._head:
            return self._rest.read(size)
        block, self._head = self._head[:size], self._head[size:]
        return block


def _check_unchanged(file: PatientFile, document: Document) -> None:
    if not files.stamp_of(file.status()).same_content(document.stamp):
        raise Changed


def _whole(
    mail: Mail, content: Readable, file: PatientFile, document: Document, on_bytes: Callable[[bytes], None]
) -> Iterator[bytes]:
    """The mail's chunks; raises Changed before the end, so that no final dot follows bytes that are not one version."""
    read = 0

    def count(block: bytes) -> None:
        nonlocal read
        read += len(block)
        on_bytes(block)

    yield from mail.chunks(content, count)
    _check_unchanged(file, document)
    if read != document.stamp.size:
        raise Changed
