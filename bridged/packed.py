"""What a first look at a directory finds, packed as the kernel gives it: names, kinds and inodes, and no more. Pure.

Records of getdents64(2): inode (8 bytes), an offset (8), the record's length (2), its kind (1), the name, zeros.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

_HEAD: Final = struct.Struct("=QQHB")
DIRECTORY: Final = 4
FILE: Final = 8
_DOTS: Final = (b".", b"..")

# What a name must have, in lower case, for it not to be a document's; a name follows its kind and ends with a zero.
# What else has such bytes (an inode, an offset) only makes us look closer. Several, since one would be much slower.
_BEGINS: Final = re.compile(rb"\x08(?:[.#]|~\$|(?:eh)?thumbs|desktop\.ini|icon\r)")
_ENDS: Final = re.compile(
    rb"\.(?:sb-|(?:swp|te?mp|part|partial|filepart|crdownload|opdownload|download|upload|!ut|!qb|!bt|aria2)\x00)"
)
_HAS: Final = (b"~\0", b"#\0", b"zone.identifier", b"\xe2\x84\xaa")  # the last, the kelvin, is composed to a K
# A kind follows the record's length, which is a multiple of 8 from 24 to 280.
_NEITHER: Final = re.compile(
    rb"[\x01\x02\x06\x0a\x0c\x0e](?:(?<=[^\x00]\x00.)|(?<=[\x00\x08\x10\x18]\x01.))", re.DOTALL
)


class Packed(NamedTuple):
    """A directory as a first look finds it: what the kernel gives, and when it was read.

    `read_ns` is of the coarse clock that file systems use, just before: what has a later time, or this, came since.
    `times` and `children` are as the sweep's Times; None where they do not tell.
    """

    directory: bytes
    records: bytes
    read_ns: int
    times: int | None
    children: int


def entries(records: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Inode, kind and name of everything but the directory itself and the one above it."""
    at, end = 0, len(records)
    while at < end:
        inode, _, length, kind = _HEAD.unpack_from(records, at)
        name = records[at + _HEAD.size : at + length].partition(b"\0")[0]
        if name not in _DOTS:
            yield inode, kind, name
        at += length


def files(records: bytes) -> Iterator[tuple[bytes, int]]:
    """Name and inode of each regular file."""
    return ((name, inode) for inode, kind, name in entries(records) if kind == FILE)


def inode(number: int) -> bytes:
    """The bytes that stand for an inode in the records."""
    return struct.pack("=Q", number)


def directories(records: bytes) -> list[bytes]:
    """The names of the directories."""
    return [name for _, kind, name in entries(records) if kind == DIRECTORY]


def only_documents(records: bytes, endings: tuple[bytes, ...]) -> bool:
    """Whether every file is regular and its name that of a document, as far as can be told from names.

    `endings`: what else, in lower case, a name must end with for it not to be a document's.
    """
    if b"\x04.\x00" not in records:  # the file system does not tell kinds
        return False
    # Most are, and that is seen without taking them apart.
    if _NEITHER.search(records) is None and not _may_be_ignored(records, endings):
        return True
    found = list(entries(records))
    names = b"".join(b"\x08%b\x00" % name for _, kind, name in found if kind == FILE)
    return {kind for _, kind, _ in found} <= {FILE, DIRECTORY} and not _may_be_ignored(names, endings)


def _may_be_ignored(text: bytes, endings: tuple[bytes, ...]) -> bool:
    lower = text.lower()
    found = any(has in lower for has in _HAS) or any(ending + b"\0" in lower for ending in endings)
    return found or _BEGINS.search(lower) is not None or _ENDS.search(lower) is not None
