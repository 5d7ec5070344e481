"""The truth table of deposits: from a difference between the folders and the knowledge of them to the documents.

It runs inside one transaction and touches no file: the file system is asked before. Its effects are a value, applied
once the transaction is on the disk. Otherwise they would outlive a commit that fails.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, Literal, TypeVar

from bridged.config import Place, SwitchedFolders
from bridged.config.settings import Settings
from bridged.intake.switching import new_document
from bridged.journal import Transaction
from bridged.journal.packed import Packed
from bridged.journal.values import SPECIAL, KnownFile, Proof
from bridged.marker import MARKER_FOLLOWS, Marker
from bridged.model import UNSEEN, Document, Instant, Stamp, State, readable, unseen
from bridged.paths import limbo, split
from bridged.reasons import IGNORED_NOW

# Seconds. A name renamed away within its directory and written anew within them is an editor's save.
TOMBSTONE: Final = 2.0
# Seconds for which a file whose name was taken is recognised elsewhere, where only sweeps see renames.
REPLACED: Final = 600.0
# Seconds for which a late hint may tell that a save was a deletion and a new file: a sweep cannot tell them apart.
TOLD_LATE: Final = 60.0
Unknown = Literal["existing", "missed", "deposit"]
NOT_SENT_YET: Final = frozenset({State.WAITING, State.QUEUED})


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A name that was renamed away: its end (steady seconds), the new path, and the document."""

    until: float
    away: bytes
    document: int | None
    unseen_at: int = 0  # ns when the name of an unseen file was read; 0 for others


@dataclass(frozen=True, slots=True)
class Saved:
    """A file that was told of as overwritten: its end (steady seconds), and the stamp before."""

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
    waiting: dict[int, tuple[bytes, Stamp | None]] = field(default_factory=dict)  # the stamp if just looked at
    changed: dict[bytes, Stamp] = field(default_factory=dict)
    unchanged: list[bytes] = field(default_factory=list)
    revisit: set[bytes] = field(default_factory=set)
    missed: dict[str, int] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)


class Changes:
    """Judges the differences that were found, within one transaction."""

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

    # -- found

    def found(
        self,
        place: Place,
        path: bytes,
        stamp: Stamp,
        unknown: Unknown,
        left: Collection[bytes],
        born_ns: int | None = None,
    ) -> None:
        """A regular file is at `path`: new, changed, renamed, or as it was.

        `left`: known paths of the same GED that this very file had left when it was looked at. `born_ns`: its time of
        birth, asked only where it may be an unseen file.
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
        """Another known file was renamed to its path. The displaced file may have been renamed, too.

        Until it is found or buried, its row stands as gone at a path that no file can have.
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
        """The first look at a directory: its files are existing."""
        self._tx.know_all(directory, names)

    def packed(self, found: Sequence[Packed]) -> None:
        """The first looks at several directories, as the kernel gives them."""
        self._tx.pack(found)

    def seen(self, directory: bytes, read_ns: int, names: Sequence[tuple[bytes, Stamp]]) -> None:
        """A later look: these files are as they were when their names were read."""
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
        """Nothing is at `path`. A rename may still explain a known file."""
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
        """The file at `path` was deleted or moved out. Another file may be there now."""
        known = self._tx.known(path)
        if known is not None:
            self.bury(known)

    def deleted_before(self, path: bytes, stamp: Stamp, born_ns: int | None) -> None:
        """A late hint of a deletion: the file at `path` now is known already.

        Nothing is new unless a sweep met the file first and took it for a save. It was no save where the file has
        another inode than the one before, or was born after that one was looked at.
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
        """A hint says that the file at `source` was renamed to `dest`. `still`: the stamp at `source` now."""
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
        """The document goes by this path from now on. Its marker follows, and so does its wait for quiet."""
        self._tx.repath(document.seq, path, self._now.wall + MARKER_FOLLOWS)
        if document.state is State.WAITING:
            self.effects.waiting[document.seq] = path, None

    def bury(self, known: KnownFile) -> None:
        """The file has left and no rename explains it: its document is withdrawn, its path unknown."""
        self._tx.forget(known.path)
        self._memories.saved.put(known.path, None)
        document = self._document(known.document)
        if document is None:
            return
        if document.state in NOT_SENT_YET or document.state is State.HELD:
            self._withdraw(document, "deleted or moved out of the switched folder before it was sent")

    # -- judged

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
        """Another file system holds a file of the same name: it is existing. The queued file is another one."""
        self.bury(known)
        self._tx.know(known.path, stamp, None)

    def _overwritten(
        self, place: Place, path: bytes, stamp: Stamp, document: Document | None, *, send: bool = True
    ) -> None:
        """`send` is false for a file that was overwritten while the daemon was stopped: that is not retroactive."""
        if document is not None and document.state is State.QUEUED:
            self._tx.unsettle(document, "overwritten while it was queued")
            self.effects.waiting[document.seq] = path, None
        elif document is not None and document.state is State.SENDING:
            # Judged again after the sending, because the sender may hold the old file open and never see the new one.
            self._tx.know(path, document.stamp, document.seq)
            self.effects.revisit.add(path)
        elif document is not None and document.state is State.WAITING:
            return  # it waits to be quiet already
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
        """Only a file that was born before the names were read is told by its inode."""
        file = _identity(unseen(stamp.inode, 0))
        former = self._memories.replaced.get(file)
        if former is None or born_ns is None or born_ns >= former.unseen_at:
            return None
        return self._memories.replaced.take(file)

    def _filed_away(self, former: Tombstone, path: bytes, stamp: Stamp) -> None:
        """The file that was at `former.away` is here. A sweep met its successor first.

        In the same directory it is an editor's backup. Elsewhere it was filed, and its successor is a new file.
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
