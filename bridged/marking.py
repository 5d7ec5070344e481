"""Markers for documents that were sent: written once, retried until they stand, moved along with a rename."""

from __future__ import annotations

import errno
import os
import threading

from bridged import __version__, files, mark
from bridged.changes import MARKER_FOLLOWS
from bridged.journal import Journal
from bridged.known import split
from bridged.logs import say_document
from bridged.model import Document, State, readable
from bridged.patience import Patience
from bridged.settings import Settings
from bridged.shares import Away, Shares


class Marking:
    """The last step of every document. Thread-safe: senders mark what they sent, one loop sees to the rest."""

    def __init__(
        self, journal: Journal, settings: Settings, patience: Patience, shares: Shares, *, dry_run: bool = False
    ) -> None:
        """In a dry run no marker is written."""
        self._dry_run = dry_run
        self._journal = journal
        self._patience = patience
        self._shares = shares
        self._settings = settings
        self._told: dict[int, str] = {}
        self._lock = threading.Lock()

    def configure(self, settings: Settings) -> None:
        """Put a configuration in force."""
        self._settings = settings

    def step(self, now: float) -> float:
        """Write the markers that are still owed and move those that are to follow; seconds until the next look."""
        horizon = now + max(self._settings.watch.sweep, MARKER_FOLLOWS) + 1.0
        due = self._journal.read(lambda tx: tx.markers_due(now, horizon))
        for document in due:
            if document.state is State.SENT:
                self.validate(document, now)
            elif document.state is State.VALIDATED:
                self._follow(document, now)
            else:  # still queued: its marker of an earlier life is none of ours
                self._settle(document, document.marker)
        return 0.0 if len(due) > 1 else 1.0

    def validate(self, document: Document, now: float) -> None:
        """Write the marker, then say so in the journal. A marker that cannot be written is tried at each sweep."""
        try:
            name = self._patience.call(document.ged, lambda: self._write(document, now))
        except FileNotFoundError:
            known = self._journal.read(lambda tx: tx.known(document.path))
            if known is not None and known.document == document.seq:  # renamed, or deleted: intake soon knows which
                again = now + MARKER_FOLLOWS
                self._journal.write(lambda tx: tx.note(document.seq, document.state, marker_due=again))
                return
            name = b""  # the document left after it was sent: there is nothing to stand beside
        except OSError as error:
            self._failed(document, error, now)
            return
        path = document.directory + b"/" + name if name else b""
        self._journal.write(
            lambda tx: tx.move(
                document.seq, State.SENT, State.VALIDATED, validated_at=now, marker=path, marker_due=None
            )
        )
        self._told.pop(document.seq, None)
        say_document("document_validated", document, marker=readable(name))

    def beside(self, root_fd: int, document: Document) -> mark.Marker | None:
        """The marker of this very delivery, if it stands beside the document. Raises OSError."""
        options = self._settings.marker
        with files.directories(root_fd, document.relative.rpartition(b"/")[0]) as (fd,):
            marker = mark.find(fd, document.name, options.suffix, options.hidden)
        return marker if marker is not None and marker.message_id == document.message_id else None

    def _write(self, document: Document, now: float) -> bytes:
        if self._dry_run:
            return b""
        with self._shares.at(document.ged, document.path) as root_fd:
            files.lstat(root_fd, document.relative)
            fd = files.open_directory(root_fd, document.relative.rpartition(b"/")[0])
            try:
                options = self._settings.marker
                written = mark.write(fd, document.name, self._marker(document, now), options.suffix, options.hidden)
            except FileNotFoundError:
                files.lstat(root_fd, document.relative)  # raises the same when it is the document that has left
                raise OSError(errno.EAGAIN, "somebody removed the marker's temporary file") from None
            finally:
                os.close(fd)
        if written.displaced:
            why = f"another file has the marker's name; the marker is {readable(written.name)}"
            say_document("marker_failed", document, reason=why, level="warning")
        return written.name

    def _marker(self, document: Document, now: float) -> mark.Marker:
        return mark.Marker(
            status="validated",
            document=document.name.decode("utf-8", "replace"),
            client=document.client,
            collection_email=document.collection_email,
            sha256=document.sha256,
            size=document.stamp.size,
            message_id=document.message_id,
            deposited_at=mark.utc(document.deposited_at),
            validated_at=mark.utc(now),
            relay_reply=document.relay_reply,
            attempts=document.attempts,
            bridged=__version__,
        )

    def _failed(self, document: Document, error: OSError, now: float) -> None:
        reason = error.strerror or str(error)
        path = readable(document.path)
        # A share that is away was told of as such, and its markers are written when it is back.
        if self._told.get(document.seq) != reason and not isinstance(error, Away):
            self._told[document.seq] = reason
            say_document("marker_failed", document, path=path, reason=f"{reason}; tried again at each sweep")
        again = now + self._settings.watch.sweep
        self._journal.write(lambda tx: tx.note(document.seq, document.state, marker_due=again))

    def _follow(self, document: Document, now: float) -> None:
        try:
            moved = self._patience.call(document.ged, lambda: self._move(document))
        except FileNotFoundError:
            moved = None  # it went along with its directory, or was deleted
        except OSError as error:
            self._failed(document, error, now)
            return
        self._settle(document, document.directory + b"/" + (moved or split(document.marker)[1]))

    def _move(self, document: Document) -> bytes | None:
        directory, name = split(document.marker)
        options = self._settings.marker
        below = len(document.ged) + 1
        with (
            self._shares.at(document.ged, document.path) as root_fd,
            files.directories(root_fd, directory[below:], document.directory[below:]) as (old_fd, new_fd),
        ):
            return mark.follow(old_fd, name, new_fd, document.name, options.suffix, options.hidden)

    def _settle(self, document: Document, marker: bytes) -> None:
        self._journal.write(lambda tx: tx.note(document.seq, document.state, marker=marker, marker_due=None))
