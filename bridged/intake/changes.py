"""The truth table of deposits: from a difference between the folders and the knowledge of them to the documents.

It runs inside one transaction and touches no file: the file system is asked before. Its effects are a value, applied
once the transaction is on the disk. Otherwise they would outlive a commit that fails.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, Literal, TypeVar

from bridged.config import Place, SwitchedFolders
from bridged.config.settings import Settings
from bridged.journal import Transaction
from bridged.journal.packed import Packed
from bridged.journal.values import SPECIAL, KnownFile, NewDocument, Proof
from bridged.mail import frozen_date, new_message_id
from bridged.marker import MARKER_FOLLOWS, Marker
from bridged.model import UNSEEN, Document, Instant, Stamp, State, readable, unseen
from bridged.paths import limbo, split
from bridged.reasons import IGNORED_NOW

# A name renamed away within its directory and written anew within this time (seconds) is an editor saving.
TOMBSTONE: Final = 2.0
# A file whose name was taken by another one is recognised for this time (seconds) where only sweeps see renames.
REPLACED: Final = 600.0
# A sweep takes a file that was deleted and made anew for a save; the hint that tells them apart may come so much later.
TOLD_LATE: Final = 60.0
Unknown = Literal["existing", "missed", "deposit"]
NOT_SENT_YET: Final = frozenset({State.WAITING, State.QUEUED})


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A name that was renamed away: until when it is remembered, where to, and which document it was."""

    until: float
    away: bytes
    document: int | None
    unseen_at: int = 0  # ns; of an unseen file: when its name was read


@dataclass(frozen=True, slots=True)
class Saved:
    """A file that was told of as overwritten: until when a late hint may contradict, and what stood there before."""

    until: float
    before: Stamp


K = TypeVar("K")
M = TypeVar("M", Tombstone, Saved)
Identity = tuple[int, int, int]


class Draft(Generic[K, M]):
    """A mapping as it is to be after the commit. The mapping itself stays as it is until `apply`."""

    def __init__(self, now: dict[K, M]) -> None:
        self._now: dict[K, M] = now
        self._changes: dict[K, M | None] = {}

    def get(self, key: K) -> M | None:
        """The value, changes included; None where there is none."""
        return self._changes[key] if key in self._changes else self._now.get(key)

    def put(self, key: K, value: M | None) -> None:
        """The value from the commit on; None: none."""
        self._changes[key] = value

    def take(self, key: K) -> M | None:
        """The value, which is gone from the commit on."""
        value = self.get(key)
        if value is not None:
            self.put(key, None)
        return value

    def apply(self) -> None:
        """The commit is on the disk. To be called once, before the mapping is changed otherwise."""
        for key, value in self._changes.items():
            if value is None:
                self._now.pop(key, None)
            else:
                self._now[key] = value


@dataclass(frozen=True, slots=True)
class Memories:
    """The memory of one GED as it is to be after the commit."""

    tombstones: Draft[bytes, Tombstone]
    replaced: Draft[Identity, Tombstone]
    saved: Draft[bytes, Saved]

    def apply(self) -> None:
        """The commit is on the disk."""
        self.tombstones.apply()
        self.replaced.apply()
        self.saved.apply()


class Memory:
    """Names that were lately renamed away, files whose name another file has taken, and saves.

    It lives outside the journal and changes only after a commit, by `Memories.apply`.
    """

    def __init__(self) -> None:
        self._tombstones: dict[bytes, Tombstone] = {}
        self._replaced: dict[Identity, Tombstone] = {}
        self._saved: dict[bytes, Saved] = {}
        self._failed_at: float | None = None

    @property
    def awaits_save(self) -> bool:
        """Whether a name was renamed away lately, so that a new file there would be a save."""
        return bool(self._tombstones)

    def draft(self) -> Memories:
        """For one transaction."""
        return Memories(Draft(self._tombstones), Draft(self._replaced), Draft(self._saved))

    def prolong(self, began: float, seconds: float) -> None:
        """The step that began then took so long. A new file at a name renamed away in it is only followed now."""
        for name, tomb in self._tombstones.items():
            if tomb.until >= began + TOMBSTONE:
                self._tombstones[name] = replace(tomb, until=tomb.until + seconds)

    def fail(self, began: float) -> None:
        """A step that began then has failed: its files are judged by a later step."""
        self._failed_at = began if self._failed_at is None else self._failed_at

    def resume(self, now: float) -> None:
        """A step begins. The time since a failed step does not count, because no file could be judged in it."""
        if self._failed_at is None:
            return
        since, self._failed_at = self._failed_at, None
        self._tombstones = _prolonged(self._tombstones, since, now - since)
        self._replaced = _prolonged(self._replaced, since, now - since)
        self._saved = _prolonged(self._saved, since, now - since)

    def expire(self, now: float) -> None:
        """Forget each memory after its time."""
        self._tombstones = {name: tomb for name, tomb in self._tombstones.items() if tomb.until >= now}
        self._replaced = {file: tomb for file, tomb in self._replaced.items() if tomb.until >= now}
        self._saved = {path: saved for path, saved in self._saved.items() if saved.until >= now}


def _prolonged(memories: dict[K, M], since: float, seconds: float) -> dict[K, M]:
    """Those that lasted at that instant last so much longer."""
    return {
        key: replace(memory, until=memory.until + seconds) if memory.until >= since else memory
        for key, memory in memories.items()
    }


@dataclass(slots=True)
class Effects:
    """The effects of one transaction, applied after its commit: log lines, deposits to wait for, saves to tell of."""

    memories: Memories
    lines: list[tuple[str, Document | None, dict[str, Any]]] = field(default_factory=list)
    waiting: dict[int, tuple[bytes, Stamp | None]] = field(default_factory=dict)  # the stamp, if it was just looked at
    changed: dict[bytes, Stamp] = field(default_factory=dict)
    unchanged: list[bytes] = field(default_factory=list)
    revisit: set[bytes] = field(default_factory=set)
    missed: dict[str, int] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)


class Changes:
    """Decides, within one transaction, what the found differences mean."""

    def __init__(
        self,
        tx: Transaction,
        settings: Settings,
        switched: SwitchedFolders,
        memory: Memory,
        now: Instant,
    ) -> None:
        self._tx = tx
        self._settings = settings
        self._switched = switched
        self._now = now
        self._memories = memory.draft()
        self.effects = Effects(self._memories)

    # -- what was found

    def found(
        self,
        place: Place,
        path: bytes,
        stamp: Stamp,
        unknown: Unknown,
        left: Collection[bytes],
        born_ns: int | None = None,
    ) -> None:
        """A regular file is at `path`. Whether it is new, changed or renamed is decided here.

        `left`: known paths of the same GED which the very same file has left, when it was looked at. `born_ns` is when
        it was made, where that was asked because it may be one of which only the inode is known.
        """
        known = self._tx.known(path)
        if known is not None and known.gone_at is not None:
            self.bury(known)  # deleted, and later a file created at the same path: a new file
            known = None
        if known is not None and known.stamp == SPECIAL:
            self._tx.forget(path)
            known = None
        if known is not None and left and not known.stamp.same_file(stamp):
            self._displaced(known)
            self._followed(place, path, stamp, left, born_ns)
        elif known is not None:
            self._known_again(place, known, stamp, unknown)
        elif not self._saved(place, path, stamp) and not self._followed(place, path, stamp, left, born_ns):
            self._unknown(place, path, stamp, unknown)

    def _displaced(self, known: KnownFile) -> None:
        """Another known file was renamed to its path. It may have been renamed itself, and be found further on.

        Until it is, or is buried, its row stands as gone at a path that no file can have.
        """
        away = limbo(known.path)
        before = self._tx.known(away)
        if before is not None:
            self.bury(before)
        self._tx.forget(known.path)
        self._tx.know(away, known.stamp, known.document)
        self.missing(away)

    def special(self, path: bytes, kind: str, unknown: Unknown) -> None:
        """A link, FIFO, socket or device is at `path`: never followed, never opened, one warning."""
        known = self._tx.known(path)
        if known is not None and known.stamp == SPECIAL:
            return
        if known is not None:
            self.bury(known)
        self._tx.know(path, SPECIAL, None)
        if unknown == "deposit":
            why = {"reason": f"it is a {kind}; only regular files are documents", "level": "warning"}
            self._say("document_ignored", None, path=path, **why)

    def existing(self, directory: bytes, names: Iterable[tuple[bytes, Stamp]]) -> None:
        """The first look at a directory: what is there was there before."""
        self._tx.know_all(directory, names)

    def packed(self, found: Sequence[Packed]) -> None:
        """The same of several, as the kernel gives it."""
        self._tx.pack(found)

    def seen(self, directory: bytes, read_ns: int, names: Sequence[tuple[bytes, Stamp]]) -> None:
        """A later look: these are as they were when their names were read."""
        self._tx.see(directory, read_ns, names)

    def adopt(self, place: Place, path: bytes, stamp: Stamp, marker: Marker) -> None:
        """An existing file with its valid marker and no row: it was sent, the journal was lost."""
        if self._tx.known(path) is not None:
            return
        if self._tx.message_id_known(marker.message_id):  # its row is there: the folder was off for a while
            self._tx.know(path, stamp, None)
            return
        new = new_document(self._settings, place, path, stamp, self._now.wall)
        self._tx.know(path, stamp, self._tx.adopt(new, proof_of(marker), self._now.wall))

    def missing(self, path: bytes) -> None:
        """Nothing is at `path`; if it was known, a rename may still explain it."""
        known = self._tx.known(path)
        if known is None or known.gone_at is not None:
            return
        if known.stamp == SPECIAL:
            self._tx.forget(path)
        else:
            self._tx.mark_gone(path, self._now.wall)
            self.effects.gone.add(path)

    def missing_directory(self, directory: bytes) -> None:
        """A whole directory is gone."""
        for inner in self._tx.directories_below(directory):
            for known in self._tx.known_in(inner).values():
                self.missing(known.path)

    def deleted(self, path: bytes) -> None:
        """The file at `path` is known to have been deleted or moved out, whatever is there now."""
        known = self._tx.known(path)
        if known is not None:
            self.bury(known)

    def deleted_before(self, path: bytes, stamp: Stamp, born_ns: int | None) -> None:
        """The same, told only when what is at `path` now, born then, is known already.

        If it was a deposit, nothing is new. If a sweep has met it before the hint came, and took it for a save, it was
        none: it has another inode than what stood there before, or the file was made since that was looked at.
        """
        saved = self._memories.saved.get(path)
        if saved is None:
            return
        before = saved.before
        if before.inode != stamp.inode or born_ns is None or born_ns > before.ctime_ns:
            self.effects.changed.pop(path, None)
            self.effects.unchanged.append(path)
            self.deleted(path)

    def moved(self, source: bytes, dest: bytes, still: Stamp | None) -> None:
        """A hint says that the file at `source` was renamed to `dest`; `still` is what stands at `source` now."""
        known = self._tx.known(source)
        if known is not None and known.stamp != SPECIAL and not (still is not None and still.same_file(known.stamp)):
            self.renamed(known, dest)

    def renamed(self, known: KnownFile, path: bytes) -> None:
        """A known file is now at `path` of the same client: its document follows."""
        replaced = self._tx.known(path)
        if replaced is not None:
            self.bury(replaced)
        self._tx.forget(known.path)
        self._memories.saved.put(known.path, None)
        self._tx.know(path, known.stamp, known.document)
        if split(known.path)[0] == split(path)[0]:
            until = self._now.steady + TOMBSTONE
            self._memories.tombstones.put(known.path, Tombstone(until, path, known.document))
        document = self._document(known.document)
        if document is None:
            return
        self._carry(document, path)
        if document.state in NOT_SENT_YET and self._verdict(path):
            self._withdraw(document, IGNORED_NOW)
            self._tx.forget(path)

    def _carry(self, document: Document, path: bytes) -> None:
        """The document goes by this path from now on; its marker follows, and so does the wait for quiet."""
        self._tx.repath(document.seq, path, self._now.wall + MARKER_FOLLOWS)
        if document.state is State.WAITING:
            self.effects.waiting[document.seq] = path, None

    def bury(self, known: KnownFile) -> None:
        """The file has left and nothing explains it: its document is withdrawn, its path unknown."""
        self._tx.forget(known.path)
        self._memories.saved.put(known.path, None)
        document = self._document(known.document)
        if document is None:
            return
        if document.state in NOT_SENT_YET or document.state is State.HELD:
            self._withdraw(document, "deleted or moved out of the switched folder before it was sent")

    # -- what it means

    def _known_again(self, place: Place, known: KnownFile, stamp: Stamp, unknown: Unknown) -> None:
        if known.stamp == stamp:
            return
        self._tx.know(known.path, stamp, known.document)
        if known.stamp.same_content(stamp):
            return
        if known.stamp.inode != stamp.inode:
            until, unseen_at = self._now.steady + REPLACED, known.stamp.ctime_ns * (known.stamp.size == UNSEEN)
            tomb = Tombstone(until, known.path, known.document, unseen_at)
            self._memories.replaced.put(_identity(known.stamp), tomb)
        if unknown == "existing":
            self._another_file(known, stamp)
        else:
            self._overwritten(place, known.path, stamp, self._document(known.document), send=unknown == "deposit")
            if known.path in self.effects.changed:
                saved = self._memories.saved.get(known.path)
                before = known.stamp if saved is None else saved.before
                self._memories.saved.put(known.path, Saved(self._now.steady + TOLD_LATE, before))

    def _another_file(self, known: KnownFile, stamp: Stamp) -> None:
        """Another file system holds a file of the same name: it is existing, and not the one that was queued."""
        self.bury(known)
        self._tx.know(known.path, stamp, None)

    def _overwritten(
        self, place: Place, path: bytes, stamp: Stamp, document: Document | None, *, send: bool = True
    ) -> None:
        """`send` is false for what was overwritten while the daemon was stopped: that is not retroactive either."""
        if document is not None and document.state is State.QUEUED:
            self._tx.unsettle(document, "overwritten while it was queued")
            self.effects.waiting[document.seq] = path, None
        elif document is not None and document.state is State.SENDING:
            # The sender may hold the old file open and never see the new one: judged again when it has ended.
            self._tx.know(path, document.stamp, document.seq)
            self.effects.revisit.add(path)
        elif document is not None and document.state is State.WAITING:
            return  # it must be quiet before it leaves anyway
        elif send and self._settings.on_overwrite == "send" and not self._verdict(path):
            self._deposit(place, path, stamp)
        elif not self._verdict(path):
            self.effects.changed[path] = stamp

    def _saved(self, place: Place, path: bytes, stamp: Stamp) -> bool:
        """An editor that renames the known path away and writes a new file there is saving."""
        tomb = self._memories.tombstones.get(path)
        if tomb is None or tomb.until < self._now.steady or self._verdict(path):
            return False
        self._memories.tombstones.put(path, None)
        away = self._tx.known(tomb.away)
        if away is not None:
            self._tx.know(away.path, away.stamp, None)
        self._tx.know(path, stamp, tomb.document)
        document = self._document(tomb.document)
        if document is not None:
            self._carry(document, path)
            if document.state is State.WITHDRAWN:  # queued, renamed to an ignored name, saved anew: not sent yet
                self._deposit(place, path, stamp)
                return True
        self._overwritten(place, path, stamp, document)
        return True

    def _followed(self, place: Place, path: bytes, stamp: Stamp, left: Collection[bytes], born_ns: int | None) -> bool:
        for former_path in left:
            for known in (self._tx.known(former_path), self._tx.known(limbo(former_path))):
                if known is not None and _may_be(known.stamp, stamp):  # it may be another file's by now
                    self.renamed(known, path)
                    return True
        former = self._memories.replaced.take(_identity(stamp)) or self._replaced_unseen(stamp, born_ns)
        if former is None or self._switched.ged_of(former.away) != place.ged or former.away == path:
            return False
        self._filed_away(former, path, stamp)
        return True

    def _replaced_unseen(self, stamp: Stamp, born_ns: int | None) -> Tombstone | None:
        """An inode says which file it was only of one that was there before the names were read."""
        file = _identity(unseen(stamp.inode, 0))
        former = self._memories.replaced.get(file)
        if former is None or born_ns is None or born_ns >= former.unseen_at:
            return None
        return self._memories.replaced.take(file)

    def _filed_away(self, former: Tombstone, path: bytes, stamp: Stamp) -> None:
        """The file that used to be at `former.away` is here, and a sweep met its successor first.

        In the same directory that is an editor's backup. Elsewhere it was filed, and its successor is a new file.
        """
        if split(former.away)[0] == split(path)[0]:
            self._tx.know(path, stamp, None)
            return
        self._tx.know(path, stamp, former.document)
        document = self._document(former.document)
        if document is not None:
            self._carry(document, path)
        successor = self._tx.known(former.away)
        place = self._switched.place(split(former.away)[0])
        if successor is not None and successor.gone_at is None and place is not None:
            self.effects.changed.pop(former.away, None)
            self.effects.unchanged.append(former.away)
            self._deposit(place, former.away, successor.stamp)

    def _unknown(self, place: Place, path: bytes, stamp: Stamp, unknown: Unknown) -> None:
        if self._verdict(path):
            return
        if unknown == "existing":
            self._tx.know(path, stamp, None)
        elif unknown == "missed":
            self._miss(place, path, stamp)
        else:
            self._deposit(place, path, stamp)

    def _deposit(self, place: Place, path: bytes, stamp: Stamp) -> None:
        seq = self._tx.deposit(new_document(self._settings, place, path, stamp, self._now.wall))
        self._tx.know(path, stamp, seq)
        self.effects.waiting[seq] = path, stamp

    def _miss(self, place: Place, path: bytes, stamp: Stamp) -> None:
        seq = self._tx.miss(new_document(self._settings, place, path, stamp, self._now.wall))
        self._tx.know(path, stamp, seq)
        folder = place.folder.path
        self.effects.missed[folder] = self.effects.missed.get(folder, 0) + 1

    def _withdraw(self, document: Document, reason: str) -> None:
        self._tx.withdraw(document, reason)
        self._say("document_withdrawn", document, reason=reason)

    def _verdict(self, path: bytes) -> str | None:
        return self._settings.ignored(split(path)[1])

    def _document(self, seq: int | None) -> Document | None:
        return None if seq is None else self._tx.document(seq)

    def _say(self, event: str, document: Document | None, path: bytes | None = None, **fields: Any) -> None:
        if path is not None:
            ged = self._switched.ged_of(path) or b""
            client = self._switched.client_of(path)
            fields |= {"client": client.name if client else "", "document": readable(path[len(ged) + 1 :])}
        self.effects.lines.append((event, document, fields))


def _may_be(known: Stamp, stamp: Stamp) -> bool:
    return known.inode == stamp.inode if known.size == UNSEEN else known.same_content(stamp)


def _identity(stamp: Stamp) -> Identity:
    return stamp.inode, stamp.size, stamp.mtime_ns


def proof_of(marker: Marker) -> Proof:
    """The delivery that a valid marker tells of."""
    return Proof(marker.message_id, marker.sha256, marker.relay_reply, marker.attempts)


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
