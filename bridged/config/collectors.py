"""The profile of a collector: the documents that it accepts, as far as a source tells. Pure.

The figures stand in a data file, which `presets` reads. A figure without a confirmation warns and never holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

Verified = Literal["yes", "partly", "no"]
Value = TypeVar("Value")

OTHER: Final = "other"
IMAGES: Final = frozenset({"jpeg", "png", "gif", "tiff", "bmp", "webp", "heic"})
WORDS: Final = {
    "pdf": "PDF",
    "jpeg": "JPEG",
    "png": "PNG",
    "gif": "GIF",
    "tiff": "TIFF",
    "bmp": "BMP",
    "webp": "WebP",
    "heic": "HEIC",
    "xml": "XML",
    "zip": "ZIP",
    "text": "plain text",
    "csv": "CSV",
    "word": "Word document",
    "excel": "Excel workbook",
    "opendocument": "OpenDocument file",
    OTHER: "file of this kind",
}
KINDS: Final = frozenset(WORDS)


@dataclass(frozen=True)
class Limit(Generic[Value]):
    """One limit of a collector, how sure it is, and the source that says so."""

    value: Value
    verified: Verified
    source: str

    @property
    def holds(self) -> bool:
        """True when a document may be held for this limit. An unconfirmed limit only warns."""
        return self.verified != "no"


@dataclass(frozen=True)
class Profile:
    """A collector as far as it is known. A limit of None is not known, and objects to nothing. Sizes are bytes."""

    key: str
    name: str
    domains: tuple[str, ...] = ()
    types: Limit[frozenset[str]] | None = None
    largest_file: Limit[int] | None = None
    largest_image: Limit[int] | None = None
    smallest_file: Limit[int] | None = None
    largest_mail: Limit[int] | None = None
    daily_cap: Limit[int] | None = None
    case_sensitive: Limit[bool] | None = None
    avoid_in_subject: Limit[tuple[str, ...]] | None = None


def fits(profile: Profile, address: str) -> bool:
    """True when the collector may have given out this address, also when its domains are not known."""
    domain = address.rpartition("@")[2].casefold()
    return not profile.domains or any(f".{domain}".endswith(f".{known}") for known in profile.domains)
