"""A marker found beside its document.

Every name is relative to a directory's descriptor. A client may plant links, FIFOs and files at a marker's names;
none of them is followed or opened.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Final

from bridged.marker.marker import Marker
from bridged.marker.naming import names

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
LARGEST: Final = 65_536  # bytes of a file that is read into memory; a marker is about 1 kB


def find(directory_fd: int, document: bytes, suffix: str, hidden: bool) -> Marker | None:
    """The newest valid marker beside a document; None where there is none. The caller compares its SHA-256.

    Raises OSError when the disk fails to read a file at its names. That does not prove that there is none.
    """
    found = locate(directory_fd, document, suffix, hidden)
    return None if found is None else found[1]


def locate(directory_fd: int, document: bytes, suffix: str, hidden: bool) -> tuple[bytes, Marker] | None:
    """As `find`, with the marker's name before it."""
    newest = None
    for _, name in names_in(directory_fd, document, suffix, hidden):
        if not exists(directory_fd, name):
            break
        with contextlib.suppress(PermissionError):  # another one's: ours is as readable as its document
            marker = read(directory_fd, name)
            newest = newest if marker is None else (name, marker)
    return newest


def names_in(directory_fd: int, document: bytes, suffix: str, hidden: bool) -> Iterator[tuple[int, bytes]]:
    """The numbers and names that a document's marker may have in this directory. Raises OSError."""
    return names(document, os.fsencode(suffix), hidden, _longest_name(directory_fd))


def _longest_name(directory_fd: int) -> int:
    """Bytes of the longest file name. vfat claims 1530 and means 255 characters."""
    return min(os.fpathconf(directory_fd, "PC_NAME_MAX"), 255)


def exists(directory_fd: int, name: bytes) -> bool:
    """True when a directory has an entry of this name, of any kind. Raises OSError."""
    try:
        os.lstat(name, dir_fd=directory_fd)
    except FileNotFoundError:
        return False
    return True


def belongs(directory_fd: int, name: bytes, message_id: str) -> bool:
    """True when the marker of this delivery stands at a name. Raises OSError."""
    try:
        found = read(directory_fd, name)
    except PermissionError:  # another one's: ours is as readable as its document
        return False
    return found is not None and found.message_id == message_id


def read(directory_fd: int, name: bytes) -> Marker | None:
    """The marker at a name. None where there is no file, or no regular one, or no marker. Raises OSError."""
    try:
        if not is_small_file(directory_fd, name):
            return None
        fd = os.open(name, _READ, dir_fd=directory_fd)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        # Asked again, because a FIFO may have taken the name since the lstat, and its reading would never end.
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        return Marker.from_json(file.read(LARGEST)) if regular else None


def is_small_file(directory_fd: int, name: bytes) -> bool:
    """True when a regular file stands at a name, no larger than a marker may be. Raises OSError where there is none."""
    status = os.lstat(name, dir_fd=directory_fd)
    return stat.S_ISREG(status.st_mode) and status.st_size <= LARGEST
