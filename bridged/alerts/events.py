"""The log events that raise or end a condition on which a person must act. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from bridged.model import readable


class Kind(StrEnum):
    """The kinds of conditions. One mail tells conditions of one kind."""

    ACCOUNT = "account"
    QUOTA = "quota"
    SHARE = "share"
    STATE = "state"
    DISK = "disk"
    ADDRESS = "address"
    WATCHES = "watches"
    CONFIGURATION = "configuration"


RELAY: Final = frozenset({Kind.ACCOUNT, Kind.QUOTA})
_NO_ROOM: Final = ("no space left", "read-only file system", "disk quota exceeded")


@dataclass(frozen=True, slots=True)
class Raised:
    """A condition: its kind, its client, the thing concerned, and the reason."""

    kind: Kind
    client: str = ""
    what: str = ""
    why: str = ""

    @property
    def key(self) -> str:
        """The key of the condition. Two with the same key are one, also when their reasons differ."""
        named = self.kind in (Kind.SHARE, Kind.STATE, Kind.ADDRESS)
        return f"{self.kind}\n{self.client if self.kind is not Kind.ADDRESS else ''}\n{self.what if named else ''}"


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of every condition of these kinds, of that client and that thing where they are given.

    `remembered` is True for an end that only conditions from before the start may take.
    """

    kinds: frozenset[Kind]
    client: str | None = None
    what: str | None = None
    remembered: bool = False

    def ends(self, raised: Raised) -> bool:
        """True when this ends that condition. The caller compares `remembered`."""
        ours = self.client in (None, raised.client) and self.what in (None, raised.what)
        return ours and raised.kind in self.kinds


def read(event: str, fields: Mapping[str, Any]) -> tuple[Raised | Ended, ...]:
    """The conditions that a log event raises or ends; mostly none."""
    client, why = _word(fields, "client"), _word(fields, "reason")
    match event:
        case "relay_misconfigured":
            return (Raised(Kind.ACCOUNT, what=_word(fields, "relay"), why=why),)
        case "relay_throttled" if fields.get("quota"):
            return (Raised(Kind.QUOTA, what=_word(fields, "relay"), why=why),)
        case "relay_recovered":
            return (Ended(RELAY),)
        case "folder_unreachable":
            return (Raised(Kind.SHARE, client, _place(fields), why),)
        case "folder_recovered" | "folder_rebaselined":
            return (Ended(frozenset({Kind.SHARE}), client, _place(fields)),)
        case "state_failed" if fields.get("half") != "alerts" and fields.get("level", "error") == "error":
            return (Raised(Kind.STATE, what=_word(fields, "half"), why=why),)
        case "marker_failed" if any(words in why.lower() for words in _NO_ROOM):
            return (Raised(Kind.DISK, client, _word(fields, "path") or _word(fields, "document"), why),)
        case "document_held" if fields.get("address_refused"):
            return (Raised(Kind.ADDRESS, client, _address(fields) or client, why),)
        case "watch_limit_reached":
            return (Raised(Kind.WATCHES, why=why),)
        case "document_queued":
            return (Ended(frozenset({Kind.STATE})),)
        case "document_sent":
            works = Ended(frozenset({Kind.ADDRESS}), what=_address(fields))
            return (Ended(frozenset({Kind.STATE})), works, Ended(RELAY, remembered=True))
        case "document_validated" if fields.get("marker"):
            return (Ended(frozenset({Kind.DISK}), client),)
        case "document_released":  # a person has looked at it, so that a further refusal is news
            return (Ended(frozenset({Kind.ADDRESS}), client),)
    return ()


def _word(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    text = value if isinstance(value, bytes) else str("" if value is None else value).encode("utf-8", "replace")
    return readable(text)


def _place(fields: Mapping[str, Any]) -> str:
    """The GED, or a folder in it by its relative path. `.` is the GED's own directory."""
    return _word(fields, "folder") or "." if "folder" in fields else _word(fields, "ged")


def _address(fields: Mapping[str, Any]) -> str:
    given = fields.get("address_refused")
    return _word(fields, "collection_email") or (given if isinstance(given, str) and "@" in given else "")
