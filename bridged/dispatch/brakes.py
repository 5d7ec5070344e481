"""The client's own rules that hold a document for a person: a mass drop, a review, bytes that were sent before.

The transaction that claims a document asks them. A release passes the rule that held the document, and no other rule,
because that one was not told yet. A document of `bridged send` passes all of them.
"""

from __future__ import annotations

from typing import Final

from bridged.config import Place
from bridged.journal import Transaction
from bridged.line import DAY
from bridged.model import Document, Rule, State, readable

UNDER_WAY: Final = 5.0  # seconds until documents under way, which may use up a daily cap, have left
CAP_MARGIN: Final = 60.0  # seconds, because the collector's day may begin a little later than ours


def held_for(tx: Transaction, document: Document, place: Place) -> tuple[Rule, str] | None:
    """The rule that holds this document for a person, and the reason. None when it may leave."""
    brake = place.client.brake
    if place.client.review and not document.has_passed(Rule.REVIEW):
        return Rule.REVIEW, "it waits for a review (review: true)"
    if brake is None or document.has_passed(Rule.BRAKE):
        return None
    if tx.deposited_before(document, brake.within) < brake.documents:
        return None
    return Rule.BRAKE, (
        f"more than {brake.documents} documents were deposited within {brake.within / 60:g} min (brake): if they"
        f" are meant to leave, release them with `bridged release --client NAME --reason brake`, or drop them"
    )


def put_off_until(tx: Transaction, place: Place, now: float) -> tuple[float, str] | None:
    """When the collector takes another document (seconds since the epoch), and the reason. None below its daily cap."""
    cap = place.collector.daily_cap
    if cap is None or not cap.holds:
        return None
    times = tx.accepted_since(place.collection_email, now - DAY)
    reason = f"{place.collector.name} takes {cap.value} documents a day ({cap.source}); it goes on then"
    if len(times) >= cap.value:
        return times[cap.value - 1] + DAY + CAP_MARGIN, reason
    return (now + UNDER_WAY, reason) if len(times) + tx.under_way(place.collection_email) >= cap.value else None


def sent_before(tx: Transaction, document: Document, sha256: str) -> tuple[str, bool]:
    """The reason to hold these bytes as a duplicate, or "". True: another document with them must first end."""
    on_its_way = False
    for other in tx.same_bytes(document, sha256):
        name = readable(other.relative)
        if other.state in (State.SENT, State.VALIDATED):
            return f"{document.collection_email} got the same bytes before, as “{name}” (duplicates: hold)", False
        if other.state in (State.HELD, State.WITHDRAWN):
            return f"the same bytes may have arrived already, as “{name}” (duplicates: hold)", False
        # The document whose digest is there came first. Of two in doubt, both have theirs from before: the elder did.
        both_in_doubt = other.uncertain > 0 and document.uncertain > 0
        on_its_way |= other.seq < document.seq or (other.state is State.SENDING and not both_in_doubt)
    return "", on_its_way
