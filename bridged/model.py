"""The nouns of bridged and the states a document goes through.

Pure: no I/O, no clock. Everything here is a frozen value that any module may hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, NamedTuple


class UserError(Exception):
    """Something a person must put right: a sentence with a remedy, and the exit code it deserves."""

    exit_code: int = 1


class State(StrEnum):
    """Where a document is on its way. Every arrow between two of them is one commit of the journal."""

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
        (State.QUEUED, State.HELD),  # its address was refused, or a brake of its client's holds it
        (State.QUEUED, State.WITHDRAWN),  # left its switched folder, or switched off
        (State.SENDING, State.QUEUED),  # the relay's trouble, deferred, uncertain, or a crash
        (State.SENDING, State.WAITING),  # changed under the reading
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
    """What of a client's own holds documents for a person."""

    REVIEW = "review"
    BRAKE = "brake"
    DUPLICATES = "duplicates"
    COLLECTOR = "collector"


ALL_RULES: Final = "all"  # passed by what a person sends on purpose


# FUSE and CIFS use all 64 bits of an inode number; SQLite's integers have a sign.
INODE_BITS: Final = (1 << 63) - 1

UNSEEN: Final = -2  # the size of a file of which only name and inode are known


class Stamp(NamedTuple):
    """What `lstat(2)` says of a regular file, as far as bridged compares it.

    `same_file` follows a rename; `same_content` notices a save. Neither is used to decide what is new:
    that is knowledge by path.

    Of a file whose size is UNSEEN only the inode is known, and `ctime_ns` is when its name was read: of it too can be
    said whether it has been saved since, but not to whom its inode belonged before.
    """

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    def same_content(self, other: Stamp) -> bool:
        """Size and modification time agree. Inodes are left out: FUSE makes them up as it goes."""
        if UNSEEN in (self.size, other.size):
            unseen, seen = (self, other) if self.size == UNSEEN else (other, self)
            return seen.size == UNSEEN or min(seen.mtime_ns, seen.ctime_ns) < unseen.ctime_ns
        return (self.size, self.mtime_ns) == (other.size, other.mtime_ns)

    def same_file(self, other: Stamp) -> bool:
        """The same inode with the same content: what a rename leaves unchanged. An UNSEEN one tells by the inode."""
        return self.inode == other.inode and (UNSEEN in (self.size, other.size) or self.same_content(other))

    def not_since(self, other: Stamp) -> bool:
        """Whether `other` is the same file, which nobody has touched since this was looked at or read."""
        if self.size == UNSEEN:
            return self.inode == other.inode and other.ctime_ns < self.ctime_ns
        return self == other


def unseen(inode: int, read_ns: int) -> Stamp:
    """The stamp of a file of which a directory has told name and inode, by the kernel's coarse clock."""
    return Stamp(inode, UNSEEN, 0, read_ns)


class Document(NamedTuple):
    """One row of the journal. Times are seconds since the epoch, UTC; `path` is absolute, as bytes.

    `rule` is what holds it, if that is one of its client's; `passed` those that a person has released it from.
    A tuple, since each document is read several times on its way, and a frozen dataclass takes five times as long.
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
        """Whether a person has released it from this rule, or sent it on purpose. Another rule may still hold it."""
        return rule in self.passed.split() or ALL_RULES in self.passed.split()

    @property
    def relative(self) -> bytes:
        """The path below the GED, as log lines show it."""
        return self.path[len(self.ged) :].lstrip(b"/")


def by_directory(documents: Iterable[Document]) -> dict[bytes, list[Document]]:
    """Documents, those of one directory together, so that it need be reached only once."""
    directories: dict[bytes, list[Document]] = {}
    for document in documents:
        directories.setdefault(document.directory, []).append(document)
    return directories


# What one conversation with the relay came to. Outcomes are values; mistakes are exceptions.


_SPACES: Final = " \u00a0\u202f"  # French typography puts the narrow and the plain no-break space into names


def readable(path: bytes) -> str:
    """A path for people: UTF-8 where it is, replacement characters where not, one line, no control characters.

    Also no bidirectional or line-separator characters: a file name must not be able to forge a log line or
    to rearrange a terminal.
    """
    text = path.decode("utf-8", "replace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _SPACES else "\ufffd" for c in text)


@dataclass(frozen=True, slots=True)
class Instant:
    """A reading of both clocks: `wall` for dates (seconds since the epoch), `steady` for durations."""

    wall: float
    steady: float

    def later(self, seconds: float) -> Instant:
        """So many seconds later."""
        return Instant(self.wall + seconds, self.steady + seconds)


def utc(epoch: float) -> str:
    """An instant as the marker writes it: ISO 8601, UTC, milliseconds, `Z`."""
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
