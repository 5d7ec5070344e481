"""Folders switched off: their documents are withdrawn. And the row of a new document of a switched folder."""

from __future__ import annotations

import secrets
from collections.abc import Collection

from bridged.config import Place, SwitchedFolders
from bridged.config.settings import Settings
from bridged.journal import Journal, Transaction
from bridged.journal.values import NewDocument, Query
from bridged.logs import say, say_document
from bridged.mail import frozen_date, new_message_id
from bridged.model import Document, Stamp, State, readable


def new_document(settings: Settings, place: Place, path: bytes, stamp: Stamp, now: float) -> NewDocument:
    """A document's row. Its id, Message-ID and Date are made here, once, and never again."""
    identity = secrets.token_hex(8)
    sender = place.client.sender or settings.smtp.sender
    return NewDocument(
        id=identity,
        client=place.client.name,
        ged=place.ged,
        path=path,
        stamp=stamp,
        collection_email=place.collection_email,
        message_id=new_message_id(identity, sender),
        date=frozen_date(now),
        deposited_at=now,
    )


def switch_off(
    journal: Journal, ged: bytes, patterns: Collection[str], switched: SwitchedFolders, client: str = ""
) -> None:
    """Switch these folders off and withdraw their documents that have not left.

    `client` is the client's name, empty where no configuration of this run names it.
    """
    whose = {"client": client} if client else {}
    for pattern in patterns:
        for document in journal.write(lambda tx, p=pattern: _switched_off(tx, ged, p, switched)):  # type: ignore[misc]
            say_document("document_withdrawn", document, reason="switched_off")
        say("folder_switched_off", **whose, ged=readable(ged), folder=pattern)


def _switched_off(tx: Transaction, ged: bytes, pattern: str, switched: SwitchedFolders) -> list[Document]:
    """Forget the folder and withdraw its documents that have not left. Files of other folders are not touched."""
    tx.switch_off(ged, pattern)
    for directory in tx.directories_below(ged):
        if switched.place(directory) is None:
            tx.forget_in(directory)
    return _withdrawn_off(tx, ged, switched)


def withdraw_off(journal: Journal, ged: bytes, switched: SwitchedFolders) -> None:
    """Withdraw the documents that have not left and lie where the bridge is off now."""
    for document in journal.write(lambda tx: _withdrawn_off(tx, ged, switched)):
        say_document("document_withdrawn", document, reason="switched_off")


def _withdrawn_off(tx: Transaction, ged: bytes, switched: SwitchedFolders) -> list[Document]:
    left = tx.documents(Query(states=(State.WAITING, State.QUEUED), ged=ged))
    withdrawn = [document for document in left if switched.place(document.directory) is None]
    for document in withdrawn:
        tx.withdraw(document, "switched_off")
    return withdrawn
