"""Deposits that wait to be quiet and whole: `waiting` rows on their way to `queued`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import BinaryIO, Final

from bridged import files, mark
from bridged.admit import looks_like_marker
from bridged.changes import ADOPTED, Effects
from bridged.folders import SwitchedFolders
from bridged.journal import Journal, Transaction
from bridged.known import REPLACED, split
from bridged.logs import say, say_document, say_unreadable
from bridged.model import Document, Instant, Stamp, State, readable
from bridged.quiet import HEAD, TAIL, Calm, looks_whole
from bridged.settings import Settings
from bridged.shares import Shares

BATCH: Final = 500
LOOK_AGAIN: Final = 1.0  # seconds between looks at a deposit that is empty, open, cut off or unreadable
MARKER_AT_MOST: Final = 65_536


@dataclass(slots=True)
class _Deposit:
    path: bytes
    calm: Calm | None = None
    due: float = 0.0
    told: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Ready:
    """What a look at a quiet deposit came to."""

    stamp: Stamp
    warning: str = ""
    ignored: str = ""
    marker: mark.Marker | None = None


class Waiting:
    """One GED's deposits that are not quiet yet. One thread at a time calls it, but `again` may be called by any."""

    def __init__(
        self, ged: bytes, journal: Journal, shares: Shares, on_queued: Callable[[], None], beat: Callable[[], None]
    ) -> None:
        """`beat` is called for each deposit that is looked at: many are no hanging file system."""
        self._beat = beat
        self._ged = ged
        self._journal = journal
        self._shares = shares
        self._on_queued = on_queued
        self._switched = SwitchedFolders(())
        self._deposits: dict[int, _Deposit] = {}
        self._saves: dict[bytes, Calm] = {}
        self._returned: SimpleQueue[int] = SimpleQueue()
        self.due = 0.0

    def configure(self, settings: Settings, switched: SwitchedFolders) -> None:
        """Put a configuration in force."""
        self._settings = settings
        self._switched = switched
        on = {seq: d for seq, d in self._deposits.items() if switched.place(split(d.path)[0]) is not None}
        self._deposits = on

    def resume(self) -> None:
        """Take up what was waiting when the daemon stopped."""
        for document in self._journal.read(
            lambda tx: list(tx.documents("state = 'waiting' AND ged = ?", (self._ged,)))
        ):
            if self._switched.place(document.directory) is not None:
                self._deposits[document.seq] = _Deposit(document.path)
                say_document("document_resumed", document, state="waiting")

    def again(self, seq: int) -> None:
        """A queued document was overwritten: it must be quiet again."""
        self._returned.put(seq)
        self.due = 0.0

    def add(self, effects: Effects, now: Instant) -> None:
        """Take up what a commit has left to wait for."""
        for seq, path in effects.waiting.items():
            deposit = self._deposits.setdefault(seq, _Deposit(path))
            deposit.path = path
            deposit.due = min(deposit.due, now.steady)
            self.due = 0.0
        for path in effects.unchanged:
            self._saves.pop(path, None)
        for path, stamp in effects.changed.items():
            self._saves[path] = Calm(stamp, now.steady)
            self.due = 0.0

    def step(self, now: Instant, examine: Callable[[bytes, Instant], None]) -> None:
        """Look at what is due: queue what is quiet, tell of saves that have ended."""
        self._take_returned()
        if self.due > now.steady:
            return
        ready: dict[int, _Ready] = {}
        mistakes: list[Exception] = []
        for seq, deposit in list(self._deposits.items()):
            if deposit.due <= now.steady and len(ready) < BATCH:
                self._beat()
                try:
                    verdict = self._look(seq, deposit, now, examine)
                except Exception as error:  # noqa: BLE001 - raised below: one deposit must not stop the others
                    mistakes.append(error)
                    continue
                if verdict is not None:
                    ready[seq] = verdict
        if ready:
            self._journal.write(lambda tx: self._decide_all(tx, ready, now))
            self._tell(ready)
        self._tell_saves(now)
        dues = [d.due for d in self._deposits.values()]
        dues += [calm.since + self._settings.watch.quiet for calm in self._saves.values()]
        self.due = min(dues, default=float("inf"))
        if mistakes:
            raise mistakes[0]

    def _take_returned(self) -> None:
        try:
            while True:
                seq = self._returned.get_nowait()
                document = self._journal.read(lambda tx, s=seq: tx.document(s))  # type: ignore[misc]
                if document is not None and document.state is State.WAITING:
                    self._deposits.setdefault(seq, _Deposit(document.path))  # it may have been renamed since
                self.due = 0.0
        except Empty:
            return

    # -- one look

    def _look(
        self, seq: int, deposit: _Deposit, now: Instant, examine: Callable[[bytes, Instant], None]
    ) -> _Ready | None:
        deposit.due = now.steady + LOOK_AGAIN
        try:
            with self._shares.at(self._ged, deposit.path) as root_fd:
                return self._observe(root_fd, seq, deposit, deposit.path[len(self._ged) + 1 :], now)
        except PermissionError as error:
            self._unreadable(seq, deposit, error)
        except OSError:  # gone, replaced by a link, or the share is away: intake finds out which
            examine(deposit.path, now)
            self._drop_if_over(seq)
        return None

    def _observe(self, root_fd: int, seq: int, deposit: _Deposit, relative: bytes, now: Instant) -> _Ready | None:
        watch = self._settings.watch
        stamp = files.stamp_of(files.lstat(root_fd, relative))
        deposit.calm = (deposit.calm or Calm(stamp, now.steady)).observe(stamp, now.steady)
        calm_for = deposit.calm.quiet_for(now.steady)
        if calm_for < watch.quiet:
            deposit.due = deposit.calm.since + watch.quiet
            return None
        with files.open_document(root_fd, relative) as document:
            if stamp.size == 0:
                return None
            unfinished = _unfinished(document, relative, stamp)
            if unfinished and calm_for < watch.quiet_limit:
                return None
            if stamp.size <= MARKER_AT_MOST and looks_like_marker(_head(document)):
                return _Ready(stamp, ignored="it is a copy of a marker")
            return _Ready(stamp, unfinished, marker=self._own_marker(root_fd, seq, relative, document, stamp))

    def _own_marker(
        self, root_fd: int, seq: int, relative: bytes, document: BinaryIO, stamp: Stamp
    ) -> mark.Marker | None:
        """A valid marker beside the very bytes it speaks of, without a row of its own: the journal was lost."""
        directory, _, name = relative.rpartition(b"/")
        options = self._settings.marker
        fd = files.open_directory(root_fd, directory)
        try:
            marker = mark.find(fd, name, options.suffix, options.hidden)
        finally:
            os.close(fd)
        if marker is None or marker.size != stamp.size:
            return None
        if self._journal.read(lambda tx: tx.message_id_known(marker.message_id, but=seq)):
            return None
        return marker if files.sha256(document) == marker.sha256 else None

    def _unreadable(self, seq: int, deposit: _Deposit, error: PermissionError) -> None:
        if "permission" in deposit.told:
            return
        deposit.told.add("permission")
        document = self._journal.read(lambda tx: tx.document(seq))
        if document is not None:
            say_unreadable(document, error)

    def _drop_if_over(self, seq: int) -> None:
        document = self._journal.read(lambda tx: tx.document(seq))
        if document is None or document.state is not State.WAITING:
            self._deposits.pop(seq, None)

    # -- what a look came to

    def _decide_all(self, tx: Transaction, ready: dict[int, _Ready], now: Instant) -> None:
        for seq, what in ready.items():
            self._decide(tx, seq, what, now)

    def _decide(self, tx: Transaction, seq: int, ready: _Ready, now: Instant) -> None:
        document = tx.document(seq)
        if document is None or document.state is not State.WAITING or document.path != self._deposits[seq].path:
            return
        standing = tx.standing(document.path, seq)
        if standing == "moved":
            return  # what is at its path is another one
        if standing == "replaced":
            tx.move(seq, State.WAITING, State.WITHDRAWN, reason=REPLACED)
            return
        if ready.ignored:
            tx.move(seq, State.WAITING, State.WITHDRAWN, reason=ready.ignored)
            tx.know(document.path, ready.stamp, None)
        elif ready.marker is not None:
            _adopt(tx, document, ready.marker, now)
        else:
            tx.move(
                seq,
                State.WAITING,
                State.QUEUED,
                stamp=ready.stamp,
                queued_at=now.wall,
                due_at=0.0,
                reason=ready.warning,
            )
            tx.know(document.path, ready.stamp, seq)

    def _tell(self, ready: dict[int, _Ready]) -> None:
        for seq, what in ready.items():
            document = self._journal.read(lambda tx, s=seq: tx.document(s))  # type: ignore[misc]
            if document is None or document.state is State.WAITING:
                continue
            self._deposits.pop(seq, None)
            if document.state is State.VALIDATED:
                say_document("document_validated", document, reason=document.reason)
            elif what.ignored:
                say_document("document_ignored", document, reason=what.ignored)
            elif document.state is State.WITHDRAWN:
                say_document("document_withdrawn", document, reason=document.reason)
            else:
                warning = {"warning": what.warning, "level": "warning"} if what.warning else {}
                say_document("document_queued", document, size=what.stamp.size, **warning)
        self._on_queued()

    def _tell_saves(self, now: Instant) -> None:
        quiet = self._settings.watch.quiet
        for path in [p for p, calm in self._saves.items() if calm.quiet_for(now.steady) >= quiet]:
            del self._saves[path]
            client = self._switched.client_of(path)
            if client is not None:
                document = readable(path[len(self._ged) + 1 :])
                say("document_changed", client=client.name, document=document, reason=self._what_follows(path))

    def _what_follows(self, path: bytes) -> str:
        known = self._journal.read(lambda tx: tx.known(path))
        seq = None if known is None else known.document
        document = None if seq is None else self._journal.read(lambda tx: tx.document(seq))
        if document is not None and document.state is State.HELD:
            return "overwritten while it was held; released, it leaves as it is then"
        return "overwritten in place; it is not sent again (on_overwrite: send would)"


def _adopt(tx: Transaction, document: Document, marker: mark.Marker, now: Instant) -> None:
    tx.move(
        document.seq,
        State.WAITING,
        State.VALIDATED,
        reason=ADOPTED,
        validated_at=now.wall,
        sha256=marker.sha256,
        message_id=marker.message_id,
        relay_reply=marker.relay_reply,
        attempts=marker.attempts,
    )


def _unfinished(document: BinaryIO, name: bytes, stamp: Stamp) -> str:
    """Why a quiet deposit does not look finished; empty when it does."""
    if files.has_writer(document.fileno()):
        return "still open for writing"
    head, tail = _head(document), _tail(document, stamp.size)
    return "" if looks_whole(name, stamp.size, head, tail) else "looks cut off"


def _head(document: BinaryIO) -> bytes:
    document.seek(0)
    return document.read(HEAD)


def _tail(document: BinaryIO, size: int) -> bytes:
    document.seek(max(0, size - TAIL))
    return document.read(TAIL)
