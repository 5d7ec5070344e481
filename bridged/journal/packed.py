"""What a first look at a directory finds, packed as the kernel gives it: names, kinds and inodes, and no more. Pure.

Records of getdents64(2): inode (8 bytes), an offset (8), the record's length (2), its kind (1), the name, zeros.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

_HEAD: Final = struct.Struct("=QQHB")
DIRECTORY: Final = 4
FILE: Final = 8
_DOTS: Final = (b".", b"..")

# What a name must have, in lower case, for it not to be a document's; a name follows its kind and ends with a zero.
# What else has such bytes (an inode, an offset) only makes us look closer. Several, each with a beginning of its own,
# since one for all would be much slower, and so would `in`.
_BEGINS: Final = (
    rb"\x08(?:[.#:\xef]|~(?:\$|wr|syncthing)|(?:eh)?thumbs|desktop[. ]|icon[\r:\xef]"
    rb"|csync_|pspb|picasa|zbth|hpothb)"
)
_COLON: Final = rb"(?::|\xef\x80[\xba\xa2])"
_HAS: Final = (
    *(rb"~\0", rb"#\0", rb"~qpdf", rb"@syno", rb"_(?:original|exiftool_tmp|_)\0"),
    rb"\.[a-z0-9]{2,8}" + _COLON,
    _COLON + rb"(?:zone|smar|afp_|com\.|encr|favi|oecu|ms-p|wofc|kavi|kdst|drop|sec\.|\{4c8|\$dat)",
    rb"\xe2\x84\xaa",  # the kelvin, which is composed to a K
)
_EXTENSIONS: Final = (
    *(b"swp", b"tmp", b"temp", b"part", b"partial", b"filepart", b"crdownload", b"opdownload", b"download", b"upload"),
    *(
        b"!ut",
        b"!qb",
        b"!bt",
        b"aria2",
        b"bc!",
        b"!sync",
        b"rsls",
        b"rsls[a-z]",
        b"dtapart",
        b"fdmdownload",
        b"downloading",
    ),
    *(b"xltd", b"lftp-pget-status", b"ffs_[a-z]+", b"nextcloud", b"owncloud", b"opencloud"),
    *(b"bak", b"orig", b"wbk", b"xlk", b"asd", b"laccdb", b"idlk", b"dwl2?"),
)
_ITSELF: Final = re.compile(rb"\x04\.\0")
# Records are whole words of 8 bytes: a kind is the third byte of a word, behind its record's length, which is at most
# 280. So two columns of bytes tell whether any kind is neither a file's nor a directory's, and which are no kinds.
_NEITHER: Final = bytes(0xFF if byte in (1, 2, 6, 10, 12, 14) else 0 for byte in range(256))
_UPPER: Final = bytes(0xFF if byte in (0, 1) else 0 for byte in range(256))


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


def has_files(records: bytes) -> bool:
    """Whether there is any regular file."""
    return next(files(records), None) is not None


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
    if _ITSELF.search(records) is None:  # the file system does not tell kinds
        return False
    # Most are, and that is seen without taking them apart.
    if not _may_be_neither(records) and not _may_be_ignored(records, endings):
        return True
    found = list(entries(records))
    names = b"".join(b"\x08%b\x00" % name for _, kind, name in found if kind == FILE)
    return {kind for _, kind, _ in found} <= {FILE, DIRECTORY} and not _may_be_ignored(names, endings)


def _may_be_neither(records: bytes) -> bool:
    kinds = int.from_bytes(records[2::8].translate(_NEITHER), "big")
    return kinds & int.from_bytes(records[1::8].translate(_UPPER), "big") != 0


def _may_be_ignored(text: bytes, endings: tuple[bytes, ...]) -> bool:
    lower = text.lower()
    return any(trait.search(lower) for trait in _traits(endings))


@lru_cache(maxsize=16)
def _traits(endings: tuple[bytes, ...]) -> tuple[re.Pattern[bytes], ...]:
    others = [re.escape(ending) + rb"\0" for ending in endings if not ending.startswith(b".")]
    extensions = [re.escape(ending[1:]) for ending in endings if ending.startswith(b".")]
    dotted = rb"\.(?:sb-|(?:%b)\0)" % b"|".join([*_EXTENSIONS, *extensions])
    return tuple(map(re.compile, (*_HAS, _BEGINS, dotted, *others)))
