"""The nouns of bridged, and the states of a document.

Pure: no I/O, no clock. Each value is frozen, and any module may hold it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, NamedTuple


class UserError(Exception):
    """A person must put something right: a sentence with a remedy, and the exit code of the command."""

    exit_code: int = 1


class State(StrEnum):
    """The states of a document (docs/states.md). Every transition between two of them is one commit of the journal."""

    WAITING = "waiting"
    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    VALIDATED = "validated"
    HELD = "held"
    WITHDRAWN = "withdrawn"
    MISSED = "missed"


TRANSITIONS: Final[frozenset[tuple[State | None, State]]] = frozenset(
    {
        (None, State.WAITING),  # a deposit was seen
        (None, State.MISSED),  # deposited while the daemon was stopped
        (None, State.QUEUED),  # `bridged send` of an existing document
        (None, State.VALIDATED),  # a valid marker without a row: the journal was lost
        (State.WAITING, State.QUEUED),  # quiet
        (State.WAITING, State.WITHDRAWN),  # left its switched folder, or proved to be no document
        (State.WAITING, State.VALIDATED),  # came with its valid marker
        (State.QUEUED, State.WAITING),  # overwritten before it left: must be quiet again
        (State.QUEUED, State.SENDING),  # claimed; committed before the first byte
        (State.QUEUED, State.HELD),  # its address was refused, or a rule of its client holds it
        (State.QUEUED, State.WITHDRAWN),  # left its switched folder, or switched off
        (State.SENDING, State.QUEUED),  # the relay's trouble, deferred, uncertain, or a crash
        (State.SENDING, State.WAITING),  # changed while it was read
        (State.SENDING, State.WITHDRAWN),  # switched off between claim and sending
        (State.SENDING, State.HELD),  # refused, given up, or uncertain too often
        (State.SENDING, State.SENT),  # the relay accepted it; committed before the marker
        (State.SENT, State.VALIDATED),  # the marker is written
        (State.HELD, State.QUEUED),  # released
        (State.HELD, State.WITHDRAWN),  # dropped, or deleted while it was held
        (State.MISSED, State.QUEUED),  # `bridged send` of a missed document
    }
)


class Rule(StrEnum):
    """A client's own causes to hold a document for a person."""

    REVIEW = "review"
    BRAKE = "brake"
    DUPLICATES = "duplicates"
    COLLECTOR = "collector"


ALL_RULES: Final = "all"  # in `Document.passed`: a person sent the document on purpose

INODE_BITS: Final = (1 << 63) - 1  # without the 64th bit, because SQLite's integers have a sign

UNSEEN: Final = -2  # the size in the stamp of a file of which only name and inode are known


class Stamp(NamedTuple):
    """The fields of lstat(2) that bridged compares, of a regular file. Times are nanoseconds since the epoch.

    `same_file` follows a rename, and `same_content` notices a save. Neither decides that a file is new: the known files
    decide it, by their paths.

    A stamp whose size is UNSEEN knows the inode alone, and its `ctime_ns` is the time at which the name was read. It
    tells a save since then, and not to which file the inode belonged before.
    """

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    def same_content(self, other: Stamp) -> bool:
        """True when size and modification time agree. Inodes are not compared, because FUSE makes them up."""
        if UNSEEN in (self.size, other.size):
            unseen, seen = (self, other) if self.size == UNSEEN else (other, self)
            return seen.size == UNSEEN or min(seen.mtime_ns, seen.ctime_ns) < unseen.ctime_ns
        return (self.size, self.mtime_ns) == (other.size, other.mtime_ns)

    def same_file(self, other: Stamp) -> bool:
        """True when inode and content agree, as after a rename. With an UNSEEN stamp the inode decides alone."""
        return self.inode == other.inode and (UNSEEN in (self.size, other.size) or self.same_content(other))

    def not_since(self, other: Stamp) -> bool:
        """True when `other` is the same file, untouched since this stamp was taken."""
        if self.size == UNSEEN:
            return self.inode == other.inode and other.ctime_ns < self.ctime_ns
        return self == other


def unseen(inode: int, read_ns: int) -> Stamp:
    """The stamp of a file of which a directory has told name and inode; `read_ns` is of the kernel's coarse clock."""
    return Stamp(inode, UNSEEN, 0, read_ns)


class Document(NamedTuple):
    """One row of the journal. Times are seconds since the epoch, UTC; `path` is absolute, as bytes.

    `rule` names the client's own rule that holds it, and `passed` the rules from which a person released it.
    `uncertain` counts the mails that may have arrived. `dotted` is true while the final dot may have gone.
    A tuple, because each document is read several times on its way, and a frozen dataclass takes five times as long.
    """

    seq: int
    id: str
    client: str
    ged: bytes
    path: bytes
    state: State
    reason: str
    stamp: Stamp
    sha256: str
    collection_email: str
    message_id: str
    date: str
    attempts: int
    uncertain: int
    dotted: bool
    deposited_at: float
    queued_at: float | None
    sent_at: float | None
    validated_at: float | None
    due_at: float
    relay_reply: str
    marker: bytes
    rule: str
    passed: str

    @property
    def name(self) -> bytes:
        """The last component of the path."""
        return self.path.rpartition(b"/")[2]

    @property
    def directory(self) -> bytes:
        """The directory that holds the document."""
        return self.path.rpartition(b"/")[0]

    def has_passed(self, rule: Rule) -> bool:
        """True when a person released it from this rule, or sent it on purpose. Another rule may still hold it."""
        return rule in self.passed.split() or ALL_RULES in self.passed.split()

    @property
    def relative(self) -> bytes:
        """The path below the GED, as log lines show it."""
        return self.path[len(self.ged) :].lstrip(b"/")


def by_directory(documents: Iterable[Document]) -> dict[bytes, list[Document]]:
    """The documents of each directory, because one descriptor of the directory is enough for all of them."""
    directories: dict[bytes, list[Document]] = {}
    for document in documents:
        directories.setdefault(document.directory, []).append(document)
    return directories


_SPACES: Final = " \u00a0\u202f"  # French typography puts the narrow and the plain no-break space into names


def readable(path: bytes) -> str:
    """A path for people: one line of printable characters. Bytes that are not UTF-8 become replacement characters.

    Control, bidirectional and line-separator characters are replaced as well. Otherwise a file name could forge a log
    line or rearrange a terminal.
    """
    text = path.decode("utf-8", "replace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _SPACES else "\ufffd" for c in text)


@dataclass(frozen=True, slots=True)
class Instant:
    """A reading of both clocks, in seconds: `wall` since the epoch, for dates; `steady` for durations."""

    wall: float
    steady: float

    def later(self, seconds: float) -> Instant:
        """The instant so many seconds later, by both clocks."""
        return Instant(self.wall + seconds, self.steady + seconds)


def utc(epoch: float) -> str:
    """Seconds since the epoch as the marker writes them: ISO 8601, UTC, milliseconds, `Z`."""
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
