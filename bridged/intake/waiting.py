"""Deposits that wait to be quiet and whole: `waiting` rows on their way to `queued`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import chain
from queue import Empty, SimpleQueue
from typing import Any, Final

from bridged.config import SwitchedFolders
from bridged.config.settings import Settings
from bridged.ged import Mounts, files
from bridged.intake.changes import Effects, proof_of
from bridged.intake.quiet import HEAD, Calm, looks_whole
from bridged.journal import Journal, JournalError, Steps, Transaction
from bridged.journal.values import Query
from bridged.logs import Unread, say, say_document, say_unreadable
from bridged.marker import Marker, locate
from bridged.model import Document, Instant, Stamp, State, readable
from bridged.names import looks_like_marker
from bridged.paths import split
from bridged.reasons import ADOPTED, REPLACED

BATCH: Final = 500
LOOK_AGAIN: Final = 1.0  # seconds between looks at a deposit that is empty, open, cut off or unreadable
READ_AGAIN: Final = 15.0  # seconds between readings of a deposit that looked cut off and has not changed since
MARKER_AT_MOST: Final = 65_536


@dataclass(slots=True)
class _Deposit:
    path: bytes
    calm: Calm | None = None
    due: float = 0.0
    unread: Unread = field(default_factory=Unread)
    cut_off: Calm | None = None  # the version that looked cut off, and the instant of its reading

    def observe(self, stamp: Stamp, now: float) -> float:
        """Note a look. Returns the seconds without a change."""
        self.calm = (self.calm or Calm(stamp, now)).observe(stamp, now)
        return self.calm.quiet_for(now)

    def is_known_cut_off(self, stamp: Stamp, now: float) -> bool:
        """True when this version was read lately. Otherwise a large one would be read at every look."""
        known = self.cut_off
        return known is not None and known.stamp == stamp and 0 <= now - known.since < READ_AGAIN

    def note_cut_off(self, stamp: Stamp, now: float) -> None:
        """Remember that the version was read and looks cut off."""
        self.cut_off = Calm(stamp, now)


@dataclass(frozen=True, slots=True)
class _Ready:
    """The result of a look at a quiet deposit."""

    stamp: Stamp
    warning: str = ""
    ignored: str = ""
    marker: tuple[bytes, Marker] | None = None  # the name and the marker of these very bytes


@dataclass(frozen=True, slots=True)
class _Decided:
    """A deposit waits no longer. The line that tells of it is said once the commit is on the disk."""

    event: str
    document: Document
    fields: dict[str, Any]


class _Over:
    """A deposit waits no longer; intake has told of it."""


class Waiting:
    """One GED's deposits that are not quiet yet. One thread at a time calls it; any thread may call `again`."""

    def __init__(
        self,
        ged: bytes,
        journal: Journal,
        mounts: Mounts,
        on_queued: Callable[[], None],
        progress: Callable[[], None],
        polled: Callable[[], bool],
    ) -> None:
        """`progress` is called at each look. Otherwise many deposits would count as a hanging file system.

        `polled` tells whether the GED is polled now. There a deposit is opened at each look, because a network file
        system asks its server at an open. It is quiet after a poll without a change, because a client of the server
        may write behind.
        """
        self._polled = polled
        self._beat = progress
        self._ged = ged
        self._journal = journal
        self._mounts = mounts
        self._on_queued = on_queued
        self._switched = SwitchedFolders(())
        self._deposits: dict[int, _Deposit] = {}
        self._plans: list[tuple[float, int]] = []  # a heap: the instant (steady) of each look, and its deposit
        self._saves: dict[bytes, Calm] = {}
        self._returned: SimpleQueue[int] = SimpleQueue()
        self.due = 0.0

    def configure(self, settings: Settings, switched: SwitchedFolders) -> None:
        """Put a configuration in force."""
        self._settings = settings
        self._switched = switched
        on = {seq: d for seq, d in self._deposits.items() if switched.place(split(d.path)[0]) is not None}
        self._deposits = on

    @property
    def _quiet(self) -> float:
        """Seconds without a change after which a deposit is quiet."""
        watch = self._settings.watch
        return max(watch.quiet, watch.poll) if self._polled() else watch.quiet

    @property
    def _look_again(self) -> float:
        return max(LOOK_AGAIN, self._settings.watch.poll) if self._polled() else LOOK_AGAIN

    def resume(self) -> None:
        """Take up the deposits that were waiting when the daemon stopped."""
        waiting = Query(states=(State.WAITING,), ged=self._ged)
        for document in self._journal.read(lambda tx: tx.documents(waiting)):
            if self._switched.place(document.directory) is not None:
                self._plan(document.seq, self._deposits.setdefault(document.seq, _Deposit(document.path)), 0.0)
                say_document("document_resumed", document, state="waiting")

    def again(self, seq: int) -> None:
        """A queued document was overwritten: it must be quiet again."""
        self._returned.put(seq)
        self.due = 0.0

    def add(self, effects: Effects, now: Instant, looked: float) -> None:
        """Take up the deposits and saves of a commit. Its files were looked at by the instant `looked` (steady)."""
        for seq, (path, stamp) in effects.waiting.items():
            deposit = self._deposits.setdefault(seq, _Deposit(path))
            deposit.path = path
            if stamp is not None and deposit.calm is None and not self._polled():
                deposit.observe(stamp, looked)
                self._plan(seq, deposit, looked + self._settings.watch.quiet)
            else:
                self._plan(seq, deposit, now.steady)
        for path in effects.unchanged:
            self._saves.pop(path, None)
        for path, stamp in effects.changed.items():
            self._saves[path] = Calm(stamp, now.steady)
            self.due = min(self.due, now.steady + self._settings.watch.quiet)

    def step(self, now: Instant, examine: Callable[[bytes, Instant], Steps[None]]) -> Steps[None]:
        """Look at the due deposits, queue the quiet ones, tell of saves that have ended.

        `examine` looks again at a path whose file has gone.
        """
        self._take_returned(now)
        if self.due > now.steady:
            return
        ready: dict[int, _Ready] = {}
        lost: dict[int, bytes] = {}
        mistakes: list[Exception] = []
        for group in self._take_due(now):
            self._look_at(group, now, ready, lost, mistakes)
        for seq, path in lost.items():
            yield from examine(path, now)
            self._drop_if_over(seq)
        if ready:
            outcomes = yield lambda tx: [self._decide(tx, seq, what, now) for seq, what in ready.items()]
            self._tell(ready, outcomes)
        self._tell_saves(now)
        dues = [calm.since + self._settings.watch.quiet for calm in self._saves.values()]
        self.due = min([*dues, self._next_plan()])
        if mistakes:
            raise mistakes[0]

    def _plan(self, seq: int, deposit: _Deposit, due: float) -> None:
        """Look at a deposit then. An earlier plan stays in the heap, void, and is passed over."""
        deposit.due = due
        heappush(self._plans, (due, seq))
        self.due = min(self.due, due)

    def _next_plan(self) -> float:
        """The instant of the first look. Void plans are removed; otherwise they would wake this GED in vain."""
        while self._plans:
            due, seq = self._plans[0]
            deposit = self._deposits.get(seq)
            if deposit is not None and deposit.due == due:
                return due
            heappop(self._plans)
        return float("inf")

    def _take_due(self, now: Instant) -> list[list[tuple[int, _Deposit]]]:
        """The due deposits by directory, so that each directory is reached once. Each is planned again."""
        groups: dict[bytes, list[tuple[int, _Deposit]]] = {}
        for _ in range(BATCH):
            if self._next_plan() > now.steady:
                break
            _, seq = heappop(self._plans)
            deposit = self._deposits[seq]
            groups.setdefault(split(deposit.path)[0], []).append((seq, deposit))
        for seq, deposit in chain.from_iterable(groups.values()):
            self._plan(seq, deposit, now.steady + self._look_again)
        return list(groups.values())

    def _take_returned(self, now: Instant) -> None:
        try:
            while True:
                seq = self._returned.get_nowait()
                document = self._returned_document(seq)
                if document is not None and document.state is State.WAITING:  # it may have been renamed since
                    self._plan(seq, self._deposits.setdefault(seq, _Deposit(document.path)), now.steady)
        except Empty:
            return

    def _returned_document(self, seq: int) -> Document | None:
        try:
            return self._journal.read(lambda tx: tx.document(seq))
        except JournalError:
            self._returned.put(seq)  # otherwise it would wait until the next start
            raise

    # -- one look

    def _look_at(
        self,
        group: list[tuple[int, _Deposit]],
        now: Instant,
        ready: dict[int, _Ready],
        lost: dict[int, bytes],
        mistakes: list[Exception],
    ) -> None:
        """Look at the deposits of one directory. The trouble of one deposit does not stop the others."""
        path, left = group[0][1].path, deque(group)
        try:
            with self._mounts.passage(self._ged, path) as fd:
                while left:
                    self._look(fd, *left.popleft(), now, ready, lost, mistakes)
        except OSError as error:
            for seq, deposit in left:
                if isinstance(error, PermissionError):
                    self._unreadable(seq, deposit, error)
                else:
                    lost[seq] = deposit.path

    def _look(
        self,
        directory_fd: int,
        seq: int,
        deposit: _Deposit,
        now: Instant,
        ready: dict[int, _Ready],
        lost: dict[int, bytes],
        mistakes: list[Exception],
    ) -> None:
        self._beat()
        try:
            verdict = self._observe(directory_fd, seq, deposit, split(deposit.path)[1], now)
            if verdict is not None:
                ready[seq] = verdict
        except OSError as error:
            if files.is_unreadable(error):
                self._unreadable(seq, deposit, error)
            else:  # gone, replaced by a link, or the share is away: `examine` tells
                lost[seq] = deposit.path
        except Exception as error:  # noqa: BLE001 - `step` raises it after the other deposits were looked at
            mistakes.append(error)

    def _observe(self, directory_fd: int, seq: int, deposit: _Deposit, name: bytes, now: Instant) -> _Ready | None:
        stamp = self._stamp(directory_fd, name)
        calm_for = deposit.observe(stamp, now.steady)
        if calm_for < self._quiet:
            self._plan(seq, deposit, now.steady + self._quiet - calm_for)
            return None
        with files.opened(directory_fd, name) as (fd, _):
            if stamp.size == 0:
                return None
            head = os.pread(fd, HEAD, 0)
            unfinished = self._unfinished(fd, deposit, name, stamp, head, now)
            if unfinished and calm_for < self._settings.watch.quiet_limit:
                return None
            if stamp.size <= MARKER_AT_MOST and looks_like_marker(head):
                return _Ready(stamp, ignored="it is a copy of a marker")
            return _Ready(stamp, unfinished, marker=self._marker_of(directory_fd, name, fd, stamp))

    def _stamp(self, directory_fd: int, name: bytes) -> Stamp:
        """The stamp of a deposit now. On a polled GED it is asked of an open file."""
        if self._polled():
            with suppress(PermissionError), files.opened(directory_fd, name) as (_, status):  # told when it is quiet
                return files.stamp_of(status)
        return files.stamp_of(os.lstat(name, dir_fd=directory_fd))

    def _unfinished(self, fd: int, deposit: _Deposit, name: bytes, stamp: Stamp, head: bytes, now: Instant) -> str:
        """Why a quiet deposit does not look finished; empty when it does."""

        def read(position: int, length: int) -> bytes:
            self._beat()
            return os.pread(fd, max(0, min(length, stamp.size - position)), position)

        if self._mounts.has_writer(fd):
            return "still open for writing"
        if not deposit.is_known_cut_off(stamp, now.steady):
            if looks_whole(name, stamp.size, head, read):
                return ""
            deposit.note_cut_off(stamp, now.steady)
        return "looks cut off"

    def _marker_of(self, directory_fd: int, name: bytes, fd: int, stamp: Stamp) -> tuple[bytes, Marker] | None:
        """The name and the valid marker of these very bytes; None where there is none."""
        options = self._settings.marker
        found = locate(directory_fd, name, options.suffix, options.hidden)
        if found is None or found[1].size != stamp.size:
            return None
        with open(fd, "rb", closefd=False) as document:
            return found if files.sha256(document) == found[1].sha256 else None

    def _unreadable(self, seq: int, deposit: _Deposit, error: OSError) -> None:
        if not deposit.unread.is_news(error):
            return
        document = self._journal.read(lambda tx: tx.document(seq))
        if document is not None:
            say_unreadable(document, error)

    def _drop_if_over(self, seq: int) -> None:
        document = self._journal.read(lambda tx: tx.document(seq))
        if document is None or document.state is not State.WAITING:
            self._deposits.pop(seq, None)

    # -- the end of a wait

    def _decide(self, tx: Transaction, seq: int, ready: _Ready, now: Instant) -> _Decided | _Over | None:
        """The end of a deposit's wait; None where it goes on waiting."""
        document = tx.document(seq)
        if document is None or document.state is not State.WAITING:
            return _Over()
        standing = tx.standing(document.path, seq)
        if document.path != self._deposits[seq].path or standing == "moved":
            return None  # another file is at its path
        if standing == "replaced":
            tx.withdraw(document, REPLACED)
            return _Decided("document_withdrawn", document, {"reason": REPLACED})
        if ready.ignored:
            tx.withdraw(document, ready.ignored)
            tx.know(document.path, ready.stamp, None)
            return _Decided("document_ignored", document, {"reason": ready.ignored})
        if ready.marker is not None and _adopted(tx, document, ready.stamp, *ready.marker, now):
            return _Decided("document_validated", document, {"reason": ADOPTED})
        tx.queue(seq, ready.stamp, now.wall, ready.warning)
        tx.know(document.path, ready.stamp, seq)
        warning = {"warning": ready.warning, "level": "warning"} if ready.warning else {}
        return _Decided("document_queued", document, {"size": ready.stamp.size, **warning})

    def _tell(self, ready: Iterable[int], outcomes: Iterable[_Decided | _Over | None]) -> None:
        self._on_queued()  # first, because the log may be slow
        for seq, outcome in zip(ready, outcomes, strict=True):
            if outcome is not None:
                self._deposits.pop(seq, None)
            if isinstance(outcome, _Decided):
                say_document(outcome.event, outcome.document, **outcome.fields)

    def _tell_saves(self, now: Instant) -> None:
        quiet = self._settings.watch.quiet
        for path in [p for p, calm in self._saves.items() if calm.quiet_for(now.steady) >= quiet]:
            client, reason = self._switched.client_of(path), self._what_follows(path)
            del self._saves[path]
            if client is not None:
                document = readable(path[len(self._ged) + 1 :])
                say("document_changed", client=client.name, document=document, reason=reason)

    def _what_follows(self, path: bytes) -> str:
        known = self._journal.read(lambda tx: tx.known(path))
        seq = None if known is None else known.document
        document = None if seq is None else self._journal.read(lambda tx: tx.document(seq))
        if document is not None and document.state is State.HELD:
            return "overwritten while it was held; released, it leaves as it is then"
        return "overwritten in place; it is not sent again (on_overwrite: send would)"


def _adopted(tx: Transaction, document: Document, stamp: Stamp, name: bytes, marker: Marker, now: Instant) -> bool:
    """Enter a deposit as validated by the marker of its bytes. False where the marker is forged.

    Within the transaction that enters it, because two files may come with markers of one Message-ID at once.
    """
    proof = tx.proven(proof_of(marker), document.message_id, document.seq)
    if proof is None:
        return False
    tx.adopt_deposit(document.seq, proof, now.wall)
    tx.settle_marker(document._replace(state=State.VALIDATED), document.directory + b"/" + name)
    tx.know(document.path, stamp, document.seq)
    return True
