"""What a client's own rules hold for a person before it leaves: a mass drop, a review, bytes that were sent before.

Asked within the transaction that claims a document. What a person has released, or sent on purpose, is past them.
"""

from __future__ import annotations

from typing import Final

from bridged.folders import Place
from bridged.journal import Transaction
from bridged.line import DAY
from bridged.model import Document, State, readable

CAP_MARGIN: Final = 60.0  # seconds: the collector's day need not begin at the second that ours does


def held_for(tx: Transaction, document: Document, place: Place) -> str:
    """Why this document is to wait for a person; empty when it may leave."""
    if document.released_at is not None:
        return ""
    client = place.client
    if client.review:
        return "it waits for a review (review: true)"
    brake = client.brake
    if brake is not None and tx.deposited_before(document, brake.within) >= brake.documents:
        return (
            f"more than {brake.documents} documents were deposited within {brake.within / 60:g} min (brake): if they"
            f" are meant to leave, release them with `bridged release --client`, or drop them"
        )
    return ""


def put_off_until(tx: Transaction, place: Place, now: float) -> float | None:
    """When the collector takes another document, where its daily cap is reached; None when it may leave now."""
    cap = place.collector.daily_cap
    if cap is None or not cap.holds:
        return None
    times = tx.accepted_since(place.collection_email, now - DAY)
    return times[cap.value - 1] + DAY + CAP_MARGIN if len(times) >= cap.value else None


def sent_before(tx: Transaction, document: Document, sha256: str) -> tuple[str, bool]:
    """Why these bytes are held as a duplicate; True instead when another's sending must first come to its end."""
    on_its_way = False
    for other in tx.same_bytes(document, sha256):
        name = readable(other.relative)
        if other.state in (State.SENT, State.VALIDATED):
            return f"{document.collection_email} got the same bytes before, as “{name}” (duplicates: hold)", False
        if other.state in (State.HELD, State.WITHDRAWN):
            return f"the same bytes may have arrived already, as “{name}” (duplicates: hold)", False
        on_its_way |= other.seq < document.seq  # the elder goes first: the two must not wait for each other
    return "", on_its_way
