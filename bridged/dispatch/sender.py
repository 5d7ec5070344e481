"""Dispatch: from a row of the journal to the relay's acceptance. `step` reads as the path of a document."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from bridged.config import Place
from bridged.dispatch import brakes
from bridged.dispatch.claims import (
    FILE_AWAY,
    MISTAKE,
    MOST,
    SMALL,
    TOGETHER,
    Claims,
    Route,
    Shared,
    address_refused,
)
from bridged.dispatch.contents import Changed, Content, Contents, InMemory, Marked
from bridged.dispatch.objections import HEAD, neutral, objections
from bridged.ged import Calls, Mounts, is_unreadable
from bridged.journal import Journal, JournalError, JournalUnavailable, Transaction
from bridged.journal.values import Attempt, Query
from bridged.line import Line, LineEvent, keep, next_due, tried_for
from bridged.logs import Unread, say, say_document, say_unreadable
from bridged.mail import Mail, Readable, compose
from bridged.marker import Marking
from bridged.model import Document, Instant, Rule, State
from bridged.reasons import ADOPTED
from bridged.relay import Maildir, Outgoing, Relay, secret_of
from bridged.relay.outcome import Accepted, AddressRefused, Deferred, Outcome, Refused, Uncertain

SHARE_AWAY: Final = 15.0  # seconds until a document on a share that cannot be read is tried again
UNREADABLE: Final = 600.0  # seconds at most until a document is tried again that the disk fails to read
ELDER_FIRST: Final = 2.0  # seconds, up to twice, until a document is tried again whose bytes another one is sending
STATE_AWAY: Final = 5.0  # seconds until a document is tried again that the state disk has stopped
LONG_GAP: Final = 3600.0  # seconds beyond retry.max between two attempts that are no time of trying


class Held(Exception):
    """The document is held for its client's rule before the relay is asked."""

    def __init__(self, rule: Rule, reason: str) -> None:
        super().__init__(reason)
        self.rule = rule


class NotYet(Exception):
    """Another document with the same bytes is being sent. Its outcome decides."""


@dataclass(frozen=True, slots=True)
class _Stranded:
    """A claimed document that did not leave, to be queued again in `wait` seconds. `tried`: it may have left."""

    document: Document
    wait: float
    tried: bool


class Sender:
    """The sender of one session. Several senders share the journal, the line and `Shared`."""

    def __init__(
        self,
        journal: Journal,
        number: int,
        route: Route,
        shared: Shared,
        marking: Marking,
        calls: Calls,
        mounts: Mounts,
        random: Callable[[], float],
        clock: Callable[[], Instant],
        on_overwritten: Callable[[int, bytes], None],
    ) -> None:
        self._journal = journal
        self._number = number
        self._route = route
        self._shared = shared
        self._marking = marking
        self._claims = Claims(journal, shared, lambda: mounts.away() + calls.hanging())
        self._reading = Contents(calls, mounts, marking)
        self._random = random
        self._clock = clock
        self._unrecorded: tuple[Document, Outcome, Line] | None = None
        self._stranded: list[_Stranded] = []
        self._on_overwritten = on_overwritten
        self._relay = self._new_relay(route)
        self._stopping = threading.Event()

    def configure(self, route: Route) -> None:
        """Put a configuration in force from the next document on, from any thread."""
        self._route = route

    def finish(self) -> None:
        """Begin no further document, from another thread. The mail in transit may come to its end."""
        self._stopping.set()

    def abort(self) -> None:
        """Break off the mail in transit, from another thread."""
        self._stopping.set()
        self._relay.abort()

    def close(self) -> None:
        """Close the session. Not during a step, because QUIT would become a line of the mail."""
        with suppress(JournalError, OSError):  # the next start recovers a document that cannot be recorded now
            self._mend(self._clock())
        self._relay.close()

    def step(self, now: Instant) -> float:
        """Claim the next documents, send them, and record the outcomes. Returns the seconds until the next step."""
        line = self._route.line
        if self._number >= line.sessions_allowed:
            # Close the session first. Otherwise a journal that refuses the record would keep it open.
            self._relay.close()
            self._mend(now)
            return 1.0
        try:
            self._mend(now)
        finally:  # a state disk that fails `_mend` is a reason for an alert
            self._mail_alerts(self._route)
        if self._stopping.is_set():
            return 1.0
        wait = self._wait(line, now)
        if wait > 0:
            self._journal.flush()  # otherwise an acceptance waits for the marking, which a share may hold up
            return wait
        self._take_turns(line, now)
        return 0.0

    def _wait(self, line: Line, now: Instant) -> float:
        """Seconds until a document may leave. 0 when one is due and its turn was given."""
        if not self._claims.waiting(self._route, now):
            return self._claims.wake_in(now)
        return 0.0 if line.may_send(now.steady) else max(0.05, min(1.0, line.wake_in(now.steady)))

    def _mend(self, now: Instant) -> None:
        if self._unrecorded is not None:
            self._record(now)
        if self._stranded:
            self._rescue(now)

    def _take_turns(self, line: Line, now: Instant) -> None:
        """Claim documents together and send them. A document that does not leave after all is put back.

        The turn that was given is for the first document. Each of the others takes its own.
        """
        route, claimed = self._route, deque[Document]()
        try:
            self._refresh_relay(route)
            claimed.extend(self._claims.take(route, now, self._most(line)))
        finally:
            if not claimed:
                line.give_back()
        given = bool(claimed)
        try:
            ahead = self._reading.ahead(document for document in claimed if document.stamp.size <= SMALL)
            while claimed and (given or self._may_go_on(route)):
                given = False
                document = claimed.popleft()
                self._take_turn(route, document, ahead.pop(document.seq, None))
        finally:
            if given:
                line.give_back()
            if claimed:
                self._stranded += [_Stranded(document, 0.0, tried=False) for document in claimed]
                self._rescue(self._clock())

    def _most(self, line: Line) -> int:
        """How many documents to claim: as many as leave within TOGETHER, at least one; one where turns are rationed."""
        return max(1, min(MOST, int(TOGETHER / self._shared.takes))) if line.unhurried else 1

    def _may_go_on(self, route: Route) -> bool:
        """Take a turn for the next document that was claimed. None at a stop, and none after a reload."""
        in_force = self._route is route and not self._stopping.is_set()
        return in_force and route.line.may_send(self._clock().steady)

    def _take_turn(self, route: Route, document: Document, ahead: InMemory | Exception | None) -> None:
        outcome, began = None, self._clock()
        try:
            outcome = self._send(route, document, ahead, began)
        except Exception as error:
            wait = STATE_AWAY if isinstance(error, JournalUnavailable) else MISTAKE
            self._stranded.append(_Stranded(document, wait, tried=True))
            raise
        finally:
            if outcome is None:
                route.line.give_back()
        if outcome is not None:
            self._shared.unread.pop(document.seq, None)
            now = self._clock()  # a second time, because the sending may have taken minutes
            self._shared.takes = max(1e-6, (7 * self._shared.takes + now.steady - began.steady) / 8)
            # First, so that the next step records it where this one fails.
            self._unrecorded = (document, outcome, route.line)
            self._report(route.line, document, outcome, now)
            self._record(now)

    def _record(self, now: Instant) -> None:
        """Record the outcome, at each step until it is recorded. Otherwise a full disk would make us send it again."""
        assert self._unrecorded is not None
        document, outcome, line = self._unrecorded
        if isinstance(outcome, Accepted):
            self._accepted(document, outcome, now)
        else:
            current = self._journal.read(lambda tx: tx.document(document.seq))
            if current is not None and current.state is State.SENDING:
                self._conclude(document._replace(sha256=current.sha256), outcome, line, now)
        if isinstance(outcome, Accepted | Refused | AddressRefused):
            self._shared.warned.discard(document.seq)
        self._unrecorded = None

    def _rescue(self, now: Instant) -> None:
        """Queue the stranded documents again, at each step until it is recorded.

        Otherwise they would wait for the next start. The disk that failed the sending may fail this, too.
        """

        def put_back(tx: Transaction) -> None:
            for one in self._stranded:
                current = tx.document(one.document.seq)
                if current is not None and current.state is State.SENDING:
                    tx.requeue(current.seq, now.wall + one.wait, uncertain=current.dotted and one.tried)

        self._journal.write(put_back)
        self._stranded.clear()

    def _refresh_relay(self, route: Route) -> None:
        if self._relay_smtp != route.settings.smtp:
            self._relay.close()
            self._relay = self._new_relay(route)

    def _new_relay(self, route: Route) -> Relay | Maildir:
        smtp = self._relay_smtp = route.settings.smtp
        if route.maildir is not None:
            return Maildir(route.maildir, smtp.size_limit)
        return Relay(smtp, secret_of(smtp))

    # -- alerts

    def _mail_alerts(self, route: Route) -> None:
        """Send the alerts of the outbox, before the next claim. Raises nothing: an alert stops no document.

        Not between claimed documents, because a relay that hangs on an alert would keep them in `sending`.
        """
        while not self._stopping.is_set():
            turn = partial(route.line.may_send_alert, self._clock().steady)
            mail = self._shared.outbox.take(route.settings.smtp, turn)
            if mail is None:
                return
            outcome = self._alert_outcome(route, mail)
            event = route.line.report_alert(self._clock().steady, accepted=isinstance(outcome, Accepted))
            self._shared.outbox.conclude(mail, outcome)
            self._say_line(event)

    def _alert_outcome(self, route: Route, mail: Outgoing) -> Outcome | Exception:
        try:
            self._refresh_relay(route)
            return self._relay.deliver(
                mail.smtp.sender, mail.to, len(mail.data), iter([mail.data]), _no_dot_to_announce
            )
        except Exception as error:  # noqa: BLE001 - told by the alerts, and tried again
            return error

    # -- send

    def _send(
        self, route: Route, document: Document, ahead: InMemory | Exception | None, now: Instant
    ) -> Outcome | None:
        """The outcome, or None when the document could not be sent and its row is moved on."""
        place = route.switched.place(document.directory)
        try:
            assert place is not None
            if place.client.duplicates == "hold" and not document.has_passed(Rule.DUPLICATES):
                self._require_new_bytes(document, ahead)
            with self._reading.content(document, ahead) as content:
                return self._deliver(document, content, place, route)
        except Changed:
            self._return(document, "overwritten before it was sent")
        except Held as held:
            self._hold(document, "held", str(held), now, rule=held.rule)
        except NotYet:
            due = now.wall + ELDER_FIRST * (1 + self._random())  # otherwise two may wait for each other for ever
            self._journal.write(lambda tx: tx.requeue(document.seq, due))
        except Marked as marked:
            self._accepted(document, Accepted(marked.relay_reply), now, reason=ADOPTED)
        except OSError as error:
            self._away(document, error, now)
        return None

    def _require_new_bytes(self, document: Document, ahead: InMemory | Exception | None) -> None:
        """Raises Held or NotYet for bytes that were or are being sent, and as `Contents.sha256` does."""
        sha256 = self._reading.sha256(document, ahead)

        def enter(tx: Transaction) -> tuple[str, bool]:
            # Noted before the query, so that of two with the same bytes at least one sees the other.
            tx.enter_digest(document.seq, sha256)
            return brakes.sent_before(tx, document, sha256)

        reason, another_on_its_way = self._journal.write(enter)
        if reason:
            raise Held(Rule.DUPLICATES, reason)
        if another_on_its_way:
            raise NotYet

    def _deliver(self, document: Document, content: Content, place: Place, route: Route) -> Outcome:
        sender = _sender(place, route)
        mail = _composed(document, place, route)
        size = mail.size(document.stamp.size)
        head = content.read(HEAD)
        if not document.has_passed(Rule.COLLECTOR):
            self._require_accepted(document, place, head, size)
        digest = hashlib.sha256()
        on_bytes = _unheeded if isinstance(content, InMemory) else digest.update
        chunks = _whole(mail, _Joined(head, content), content, document, on_bytes)

        def before_dot() -> None:
            sha256 = content.sha256 if isinstance(content, InMemory) else digest.hexdigest()
            self._journal.write(lambda tx: tx.announce_dot(document.seq, sha256))

        return self._relay.deliver(sender, document.collection_email, size, chunks, before_dot)

    def _require_accepted(self, document: Document, place: Place, head: bytes, mail_size: int) -> None:
        """Raises Held when the collector would drop the document without a word. Warns when it may."""
        found = objections(place.collector, document.name, head, document.stamp.size, mail_size)
        if found.holds:
            raise Held(Rule.COLLECTOR, "; ".join(found.holds))
        if found.warnings and document.seq not in self._shared.warned:  # once for all tries
            self._shared.warned.add(document.seq)
            say_document("document_queued", document, warning="; ".join(found.warnings), level="warning")

    def _return(self, document: Document, reason: str) -> None:
        """Return the document to intake until it is quiet. Its releases end, because they were of another version."""
        self._journal.write(lambda tx: tx.unsettle(document, reason))
        self._on_overwritten(document.seq, document.path)

    def _away(self, document: Document, error: OSError, now: Instant) -> None:
        """Withdraw a deleted document. Otherwise put it back uncounted: intake finds out whether it was renamed."""
        missing = isinstance(error, FileNotFoundError)
        wait = FILE_AWAY if missing else SHARE_AWAY
        if is_unreadable(error):
            unread = self._shared.unread.setdefault(document.seq, Unread())
            if unread.is_news(error):
                say_unreadable(document, error)
            if not isinstance(error, PermissionError):  # seldom, because a long mail is broken off at each try
                wait = min(UNREADABLE, SHARE_AWAY * unread.times(error))

        def put_back(tx: Transaction) -> bool:
            known = tx.known(document.path)
            if missing and (known is None or known.document != document.seq):
                reason = "deleted or moved out of the switched folder before it was sent"
                current = tx.document(document.seq)
                if current is not None and current.path == document.path:
                    tx.withdraw(document, reason)
                    return True
            tx.requeue(document.seq, now.wall + wait)
            return False

        if self._journal.write(put_back):
            say_document("document_withdrawn", document, reason="its file is gone")

    # -- conclude

    def _conclude(self, document: Document, outcome: Outcome, line: Line, now: Instant) -> None:
        if isinstance(outcome, Refused):
            self._hold(document, "refused", outcome.reply, now, line=line)
        elif isinstance(outcome, AddressRefused):
            self._hold_address(document, outcome.reply, line, now)
        elif isinstance(outcome, Deferred):
            self._defer(document, outcome, now)
        elif isinstance(outcome, Uncertain):
            self._uncertain(document, outcome, now)
        else:
            self._journal.write(lambda tx: _put_back(tx, document))

    def _report(self, line: Line, document: Document, outcome: Outcome, now: Instant) -> None:
        event = line.report(outcome, now.steady, document.client, document.seq)
        if event is not None and event.put_back:
            # Before the breaker is kept. Otherwise a kill between the two would leave them held.
            self._journal.write(lambda tx: _put_all_back(tx, event.put_back))
        keep(self._journal, self._relay_smtp, line, now)
        self._say_line(event)

    def _say_line(self, event: LineEvent | None) -> None:
        if event is not None:
            more: dict[str, Any] = {"quota": True} if event.quota else {}
            say(event.name, reason=event.detail, relay=self._relay_smtp.host, **more)

    def _accepted(self, document: Document, outcome: Accepted, now: Instant, reason: str = "") -> None:
        def accept(tx: Transaction) -> Document | None:
            current = tx.document(document.seq)
            if current is None or current.state is not State.SENDING:
                return None
            tx.accept(document.seq, Attempt(now.wall, "accepted", outcome.reply), reason)
            return current._replace(state=State.SENT, attempts=document.attempts + 1, relay_reply=outcome.reply)

        self._marking.sent(accept)

    def _hold(
        self,
        document: Document,
        outcome: str,
        reason: str,
        now: Instant,
        *,
        rule: str = "",
        line: Line | None = None,
    ) -> None:
        """`rule`: the client's rule, when the relay was not asked. `line`: the refusal may prove the relay's fault."""

        def hold(tx: Transaction) -> bool:
            if line is not None and line.blameless(document.seq):
                _put_back(tx, document)
                return False
            tx.hold(document.seq, reason, rule, None if rule else Attempt(now.wall, outcome, reason))
            return True

        if self._journal.write(hold):
            say_document("document_held", document, reason=reason)

    def _hold_address(self, document: Document, reply: str, line: Line, now: Instant) -> None:
        """Hold the document and all queued ones for the same address until a person acts. Logs the address once."""
        address = document.collection_email
        reason = address_refused(address, reply)

        def hold(tx: Transaction) -> list[Document] | None:
            if line.blameless(document.seq):
                _put_back(tx, document)
                return None
            tx.hold(document.seq, reason, attempt=Attempt(now.wall, "refused", reply))
            tx.refuse_address(address, now.wall, reply)
            queue = tx.documents(Query(states=(State.QUEUED,), client=document.client))
            others = [other for other in queue if self._goes_to(other) == address]
            for other in others:
                tx.hold_back(other.seq, reason, address)
            return others

        others = self._journal.write(hold)
        if others is None:
            return
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
        due = next_due(retry, document.attempts + 1, now.wall, self._random)
        attempt = Attempt(now.wall, "deferred", outcome.reply)
        self._journal.write(lambda tx: tx.requeue(document.seq, due, attempt))
        say_document("document_deferred", document, reason=outcome.reply, retry_in=round(due - now.wall, 1))

    def _uncertain(self, document: Document, outcome: Uncertain, now: Instant) -> None:
        retry, uncertain = self._route.settings.retry, document.uncertain + 1
        if uncertain > retry.uncertain_attempts:
            self._hold(document, "uncertain", f"uncertain too often: {outcome.detail}; it may have arrived", now)
            return
        due = next_due(retry, uncertain, now.wall, self._random)
        attempt = Attempt(now.wall, "uncertain", outcome.detail)
        self._journal.write(lambda tx: tx.requeue(document.seq, due, attempt, uncertain=True))
        say_document(
            "document_deferred",
            document,
            reason=f"uncertain: {outcome.detail}",
            uncertain=True,
            message_id=document.message_id,
        )


def _sender(place: Place, route: Route) -> str:
    return place.client.sender or route.settings.smtp.sender


def _composed(document: Document, place: Place, route: Route) -> Mail:
    return compose(
        id=document.id,
        name=document.name,
        client=document.client,
        sender=_sender(place, route),
        collection_email=document.collection_email,
        subject=route.settings.subject,
        neutral=lambda subject: neutral(place.collector, subject),
        message_id=document.message_id,
        date=document.date,
    )


def _put_back(tx: Transaction, document: Document) -> None:
    """Queue the document again uncounted, because the trouble is the relay's."""
    tx.requeue(document.seq)


def _put_all_back(tx: Transaction, documents: Collection[int]) -> None:
    """Queue the documents of a row of refusals again, and all that are held with their addresses."""
    for seq in documents:
        document = tx.document(seq)
        if document is None:
            continue
        address = document.collection_email
        refused = tx.refused_address(address)
        tx.accept_address(address)
        if document.state is State.HELD:
            tx.release(document)
        if refused is not None:
            reason = address_refused(address, refused)
            for other in tx.documents(Query(states=(State.HELD,), collection_email=address, reason=reason)):
                tx.release(other)


def _no_dot_to_announce() -> None:
    """An alert has no row in the journal."""


def _unheeded(_: bytes) -> None:
    """Takes no digest, because the digest of a document in memory is known."""


class _Joined:
    """The head that was already read, followed by the rest of the file."""

    def __init__(self, head: bytes, rest: Readable) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most `size`. b"" at the end. Raises as the rest does."""
        if not self._head:
            return self._rest.read(size)
        block, self._head = self._head[:size], self._head[size:]
        return block


def _whole(
    mail: Mail, joined: Readable, content: Content, document: Document, on_bytes: Callable[[bytes], None]
) -> Iterator[bytes]:
    """The mail's chunks. Raises Changed before its end, so that no dot follows bytes of two versions."""
    read = 0

    def count(block: bytes) -> None:
        nonlocal read
        read += len(block)
        on_bytes(block)

    yield from mail.chunks(joined, count)
    content.require_unchanged()
    if read != document.stamp.size:
        raise Changed
