"""A marker moved along when its document is renamed."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

from bridged.marker.finding import belongs, names_in, read
from bridged.marker.marker import Marker
from bridged.marker.writing import ALL_TAKEN, give_name, mend, sync_directory, write_at

MARKER_FOLLOWS: Final = 2.5  # seconds after a rename; until then it may prove to be a save


def follow(
    old_fd: int, old_marker_name: bytes, new_fd: int, new_document: bytes, suffix: str, hidden: bool
) -> bytes | None:
    """Move a marker after its document, content kept, and return its new name. None where there is no marker to move.

    A repetition ends a move that a crash broke off. No file is replaced. Raises OSError.
    """
    marker = read(old_fd, old_marker_name)
    if marker is None:
        return None
    for _, name in names_in(new_fd, new_document, suffix, hidden):
        if _same(old_fd, old_marker_name, new_fd, name):
            return name
        if belongs(new_fd, name, marker.message_id):
            os.unlink(old_marker_name, dir_fd=old_fd)
            return name
        with contextlib.suppress(FileExistsError):
            _move(old_fd, old_marker_name, new_fd, name, marker)
            return name
    raise OSError(errno.EEXIST, ALL_TAKEN)


def _same(one_fd: int, one: bytes, other_fd: int, other: bytes) -> bool:
    """True when two names are one entry of one directory. Two links to one file are two entries."""
    return one == other and os.path.samestat(os.fstat(one_fd), os.fstat(other_fd))


def _move(old_fd: int, old: bytes, new_fd: int, new: bytes, marker: Marker) -> None:
    try:
        give_name(old_fd, old, new_fd, new)
    except FileExistsError:
        if not mend(new_fd, new, marker):
            raise
    except OSError as error:
        if error.errno != errno.EXDEV:  # EXDEV: the folder is on another file system of the GED
            raise
        write_at(new_fd, new, marker, os.lstat(old, dir_fd=old_fd))
    sync_directory(new_fd)
    with contextlib.suppress(FileNotFoundError):  # absent where the file system has no links, because it was renamed
        os.unlink(old, dir_fd=old_fd)
