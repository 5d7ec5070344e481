"""The values that the journal takes and gives. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from bridged.model import Stamp, State

# A special file (link, FIFO, socket, device) is known by this stamp, so that one warning tells of it.
SPECIAL: Final = Stamp(0, -1, 0, 0)


@dataclass(frozen=True, slots=True)
class Query:
    """Documents that meet all of these. A field that is not given admits every document.

    The result is in the order of deposit. `limit`: so many at most; -1: all.
    """

    states: tuple[State, ...] = ()
    id: str | None = None
    client: str | None = None
    ged: bytes | None = None
    path: bytes | None = None
    collection_email: str | None = None
    reason: str | None = None
    limit: int = -1


@dataclass(frozen=True, slots=True)
class NewDocument:
    """A document that enters the journal. Its id, Message-ID and Date are never made again."""

    id: str
    client: str
    ged: bytes
    path: bytes
    stamp: Stamp
    collection_email: str
    message_id: str
    date: str
    deposited_at: float


@dataclass(frozen=True, slots=True)
class Proof:
    """A delivery that a valid marker tells of. It stands for the row that the journal has lost."""

    message_id: str
    sha256: str
    relay_reply: str
    attempts: int


class Attempt(NamedTuple):
    """One mail handed to the relay: when (seconds since the epoch), its outcome, the relay's words."""

    at: float
    outcome: str
    reply: str


@dataclass(frozen=True, slots=True)
class KnownFile:
    """One known path. `gone_at`: seconds since the epoch when the file was found gone; None while it is there."""

    path: bytes
    stamp: Stamp
    document: int | None
    gone_at: float | None


@dataclass(frozen=True, slots=True)
class Mounted:
    """The place of a GED when it was last seen. It tells the same file system from another."""

    source: str
    point: bytes
    inode: int
    fsid: str

    @property
    def place(self) -> tuple[str, bytes]:
        """Common to all GEDs on this mount."""
        return self.source, self.point

    def same(self, other: Mounted) -> bool:
        """The same file system. Its own id is compared too, because a loop device and root inode 2 serve many."""
        return (self.source, self.inode, self.fsid) == (other.source, other.inode, other.fsid)
