"""The last steps of a document: its acceptance entered, its marker written until it stands, and moved with a rename."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, suppress
from itertools import chain
from typing import Final

from bridged import __version__
from bridged.config.settings import Settings
from bridged.ged import Away, Calls, Mounts, files
from bridged.journal import Journal, JournalError, Ticket, Transaction
from bridged.logs import say_document
from bridged.marker import finding, moving, writing
from bridged.marker.marker import Marker
from bridged.marker.moving import MARKER_FOLLOWS
from bridged.marker.writing import Written
from bridged.model import Document, State, by_directory, readable, utc
from bridged.paths import split

# Enters an acceptance. Returns the document as it is then, or None where it is no longer being sent.
Acceptance = Callable[[Transaction], Document | None]

BATCH: Final = 200  # sent documents looked at in one step
MOST: Final = 100  # markers in one call; as many files and directories are open at once
FIRST: Final = 10  # markers in the first call into a mount
WITHIN: Final = 2.0  # seconds that the next call should take, by the speed of the one before
AT_MOST: Final = 60.0  # seconds after which a call counts as hanging


class Marking:
    """The last steps of every document. One loop calls `step`; any thread may call `sent` and `beside`."""

    def __init__(
        self,
        journal: Journal,
        settings: Settings,
        calls: Calls,
        mounts: Mounts,
        *,
        dry_run: bool = False,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """In a dry run no marker is written. `wake` is called when `step` has work at once."""
        self._wake = wake
        self._accepted: deque[tuple[Acceptance, Ticket[Document | None]]] = deque()
        self._handing_over = threading.Lock()
        self._dry_run = dry_run
        self._journal = journal
        self._calls = calls
        self._mounts = mounts
        self._settings = settings
        self._told: dict[int, str] = {}
        self._together: dict[Hashable, int] = {}  # markers in the next call, by mount

    def configure(self, settings: Settings) -> None:
        """Put a configuration in force."""
        self._settings = settings

    def sent(self, enter: Acceptance) -> None:
        """Take the acceptance of a document. `enter` puts it into the journal, and is repeated until it is there.

        The log line `document_sent` and the marker follow from `step`.
        """
        with self._handing_over:  # a thread that finds the row `sent` must find it here, too
            self._accepted.append((enter, self._journal.post(enter)))
        self._wake()

    def record(self) -> int:
        """Enter the acceptances, log them, and return their number. Raises JournalError, and keeps the rest then."""
        with self._handing_over:
            taken = len(self._accepted)
        for _ in range(taken):
            enter, ticket = self._accepted[0]
            try:
                sent = self._journal.settle(ticket)
            except JournalError:
                # Posted again, because the relay has the mail: a full disk must not cause a second one.
                self._accepted[0] = (enter, self._journal.post(enter))
                raise
            except Exception:  # a defect, which must not keep the others out
                self._accepted.popleft()
                raise
            self._accepted.popleft()
            if sent is not None:
                words = {"collection_email": sent.collection_email, "relay_reply": sent.relay_reply}
                say_document("document_sent", sent, **words)
        return taken

    def step(self, now: float) -> float:
        """Write the markers that are owed, and move those that follow a rename. Returns seconds until the next step."""
        horizon = now + max(self._settings.watch.sweep, MARKER_FOLLOWS) + 1.0
        due = self._journal.read(lambda tx: tx.markers_due(now, horizon, BATCH))
        recorded = self.record()  # after the query, so that each `document_sent` comes before its `document_validated`
        sent = [document for document in due if document.state is State.SENT]
        for documents in self._calls.by_mount(sent):
            left = deque(chain.from_iterable(by_directory(documents).values()))
            while left:
                together = self._together.get(self._calls.mount_of(left[0].ged), FIRST)
                self._validate([left.popleft() for _ in range(min(together, len(left)))], now)
        for document in due:
            if document.state is State.VALIDATED:
                self._follow(document, now)
            elif document.state is not State.SENT:  # queued again: its former marker is none of this delivery
                self._settle(document, document.marker, now)
        return 0.0 if recorded or len(due) > 1 else 1.0

    def _validate(self, documents: list[Document], now: float) -> None:
        """Write markers on one mount, then enter them. A marker that cannot be written is tried again at each sweep."""
        written = self._attempts(documents, now)

        def conclude(tx: Transaction) -> list[bytes | OSError | None]:
            paths = tx.paths([document.seq for document in documents])
            return [self._conclude(tx, d, written[d.seq], paths[d.seq] == d.path, now) for d in documents]

        outcomes = self._journal.write(conclude)
        for document, outcome in zip(documents, outcomes, strict=True):
            if isinstance(outcome, OSError):
                self._tell_failure(document, outcome)
            elif outcome is not None:
                self._told.pop(document.seq, None)
                say_document("document_validated", document, marker=readable(outcome))

    def _attempts(self, documents: list[Document], now: float) -> dict[int, bytes | OSError]:
        ged, seqs, began = documents[0].ged, [document.seq for document in documents], time.monotonic()
        if self._dry_run:
            return dict.fromkeys(seqs, b"")
        written: dict[int, bytes | OSError]
        try:
            written = self._calls.call(ged, lambda: self._write(documents, now), AT_MOST)
        except OSError as error:
            written = dict.fromkeys(seqs, error)
        self._learn(self._calls.mount_of(ged), written, time.monotonic() - began)
        return written

    def _learn(self, mount: Hashable, written: Mapping[int, bytes | OSError], took: float) -> None:
        """Set the number of markers in the next call into a mount."""
        count, before = len(written), self._together.get(mount, FIRST)
        if any(isinstance(outcome, OSError) for outcome in written.values()):  # perhaps too many descriptors
            able = count // 2
        else:
            able = min(int(count * WITHIN / max(took, 1e-6)), max(before, 2 * count))
        self._together[mount] = max(1, min(MOST, able))

    def _conclude(
        self, tx: Transaction, document: Document, written: bytes | OSError, in_place: bool, now: float
    ) -> bytes | OSError | None:
        """Enter the result for one document.

        Returns the marker's name (empty where the document has left), the error, or None where it is too early.
        """
        seq, name = document.seq, written
        if isinstance(written, FileNotFoundError):
            known = tx.known(document.path)
            if known is not None and known.document == seq:  # renamed or deleted: intake tells soon
                tx.put_off_marker(document, now + MARKER_FOLLOWS)
                return None
            name = b""  # it left after it was sent, so there is no place for a marker
        if isinstance(name, OSError):
            tx.put_off_marker(document, now + self._settings.watch.sweep)
            return name
        path = document.directory + b"/" + name if name else b""
        # Renamed meanwhile: the marker follows, because no document stands beside it.
        due = None if not name or in_place else now + MARKER_FOLLOWS
        tx.validate(seq, now, path, due)
        return name

    def beside(self, directory_fd: int, document: Document) -> Marker | None:
        """The marker of this very delivery in the document's directory, or None. Raises OSError."""
        options = self._settings.marker
        marker = finding.find(directory_fd, document.name, options.suffix, options.hidden)
        return marker if marker is not None and marker.message_id == document.message_id else None

    def _write(self, documents: list[Document], now: float) -> dict[int, bytes | OSError]:
        """The name of each marker by its document's number, or the error."""
        written: dict[int, bytes | OSError] = {}
        reached: list[tuple[int, Document]] = []
        options, progress = self._settings.marker, self._calls.progress
        with ExitStack() as stack:
            for here in by_directory(documents).values():
                progress()
                try:
                    fd = stack.enter_context(self._mounts.directory(here[0].ged, here[0].path))
                except OSError as error:
                    written |= dict.fromkeys((document.seq for document in here), error)
                else:
                    reached += [(fd, document) for document in here]
            markers = [(fd, document.name, self._marker(document, now)) for fd, document in reached]
            outcomes = writing.write_all(markers, options.suffix, options.hidden, progress)
            for (fd, document), outcome in zip(reached, outcomes, strict=True):
                written[document.seq] = self._outcome(fd, document, outcome)
        return written

    def _outcome(self, directory_fd: int, document: Document, written: Written | OSError) -> bytes | OSError:
        if isinstance(written, FileNotFoundError) and _stands(directory_fd, document.name):
            return OSError(errno.EAGAIN, "somebody removed the marker's temporary file")
        if isinstance(written, OSError):
            return written
        if written.displaced:
            why = f"another file has the marker's name; the marker is {readable(written.name)}"
            say_document("marker_failed", document, reason=why, level="warning")
        return written.name

    def _marker(self, document: Document, now: float) -> Marker:
        return Marker(
            status="validated",
            document=document.name.decode("utf-8", "replace"),
            client=document.client,
            collection_email=document.collection_email,
            sha256=document.sha256,
            size=document.stamp.size,
            message_id=document.message_id,
            deposited_at=utc(document.deposited_at),
            validated_at=utc(now),
            relay_reply=document.relay_reply,
            attempts=document.attempts,
            bridged=__version__,
        )

    def _tell_failure(self, document: Document, error: OSError) -> None:
        reason = error.strerror or str(error)
        path = readable(document.path)
        # Not for a share that is away: `folder_unreachable` said so, and its markers are written when it is back.
        if self._told.get(document.seq) != reason and not isinstance(error, Away):
            self._told[document.seq] = reason
            say_document("marker_failed", document, path=path, reason=f"{reason}; tried again at each sweep")

    def _follow(self, document: Document, now: float) -> None:
        try:
            moved = self._calls.call(document.ged, lambda: self._move(document), AT_MOST)
        except (FileNotFoundError, NotADirectoryError):  # renamed once more or deleted: intake tells soon
            self._journal.write(lambda tx: _await(tx, document, now))
            return
        except OSError as error:
            again = now + self._settings.watch.sweep
            self._journal.write(lambda tx: tx.put_off_marker(document, again))
            self._tell_failure(document, error)
            return
        # Without a marker the recorded path stays, because it tells where to look after the next rename.
        self._settle(document, document.directory + b"/" + moved if moved else document.marker, now)

    def _move(self, document: Document) -> bytes | None:
        """The marker's name beside its document; None where no marker was found. FileNotFoundError: no document."""
        options, name = self._settings.marker, split(document.marker)[1]
        with self._mounts.at(document.ged, document.path) as root_fd:
            files.lstat(root_fd, document.relative)
            for directory in self._places(root_fd, document):
                self._calls.progress()
                with (
                    suppress(FileNotFoundError, NotADirectoryError),
                    files.directories(root_fd, directory, split(document.relative)[0]) as (old_fd, new_fd),
                ):
                    if moving.is_marker_of(old_fd, name, document):
                        return moving.follow(old_fd, name, new_fd, document.name, options.suffix, options.hidden)
            with files.passage(root_fd, split(document.relative)[0]) as fd:  # a person may have moved both
                found = finding.locate(fd, document.name, options.suffix, options.hidden)
        return found[0] if found is not None and found[1].message_id == document.message_id else None

    def _places(self, root_fd: int, document: Document) -> Iterator[bytes]:
        """The directories, relative to the GED, in which its marker may stand. The likeliest comes first.

        A directory above the marker may have been renamed since its path was recorded: with the document, or alone.
        """
        recorded = split(document.marker)[0][len(document.ged) + 1 :]
        yield recorded
        yield split(document.relative)[0]
        yield from moving.renamed(root_fd, recorded, split(document.marker)[1], document)

    def _settle(self, document: Document, marker: bytes, now: float) -> None:
        self._journal.write(lambda tx: _settled(tx, document, marker, now))


def _await(tx: Transaction, document: Document, now: float) -> None:
    """Look for the marker again once intake has told of the rename. Not after a deletion."""
    known = tx.known(document.path)
    if known is not None and known.document == document.seq:
        tx.put_off_marker(document, now + MARKER_FOLLOWS)
    else:
        _settled(tx, document, document.marker, now)


def _settled(tx: Transaction, document: Document, marker: bytes, now: float) -> None:
    """The marker is at this path. It is due once more where intake has told of a rename meanwhile."""
    tx.settle_marker(document, marker)
    if tx.paths([document.seq])[document.seq] != document.path:
        tx.put_off_marker(document, now + MARKER_FOLLOWS)


def _stands(directory_fd: int, name: bytes) -> bool:
    try:
        os.lstat(name, dir_fd=directory_fd)
    except OSError:
        return False
    return True
