"""A marker moved along when its document is renamed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from bridged.ged import files
from bridged.marker.finding import belongs, exists, names_in, read
from bridged.marker.marker import Marker
from bridged.marker.writing import ALL_TAKEN, give_name, mend, sync_directory, write_at
from bridged.model import Document

MARKER_FOLLOWS: Final = 2.5  # seconds after a rename; until then it may prove to be a save
MOST_DIRECTORIES: Final = 1000  # directories in which a marker is looked for whose own one was renamed
_NOT_THERE: Final = (FileNotFoundError, NotADirectoryError, PermissionError)


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
            _unite(old_fd, old_marker_name, new_fd, name, marker)
            return name
        with contextlib.suppress(FileExistsError):
            _move(old_fd, old_marker_name, new_fd, name, marker)
            return name
    raise OSError(errno.EEXIST, ALL_TAKEN)


def is_marker_of(directory_fd: int, name: bytes, document: Document) -> bool:
    """True when the marker of this document stands at a name. Raises OSError.

    A copy that came with its marker bears the Message-ID of the first document. So a marker of its bytes is its own,
    unless the file of which the marker tells stands beside it.
    """
    try:
        marker = read(directory_fd, name)
    except PermissionError:  # another one's: ours is as readable as its document
        return False
    if marker is None or marker.message_id == document.message_id:
        return marker is not None
    same = (marker.sha256, marker.size) == (document.sha256, document.stamp.size)
    return same and not exists(directory_fd, os.fsencode(marker.document))


def renamed(root_fd: int, directory: bytes, name: bytes, document: Document) -> Iterator[bytes]:
    """The directories below a root that hold the marker of this document, where one of these was renamed.

    Each component of the path may have another name now. So its siblings are looked at, the nearest first.
    """
    parts, left = directory.split(b"/") if directory else [], MOST_DIRECTORIES
    for depth in reversed(range(len(parts))):
        above, beneath = parts[:depth], parts[depth + 1 :]
        siblings = _directories(root_fd, b"/".join(above))[:left]
        left -= len(siblings)
        for sibling in siblings:
            place = b"/".join([*above, sibling, *beneath])
            with contextlib.suppress(*_NOT_THERE), files.passage(root_fd, place) as fd:
                if is_marker_of(fd, name, document):
                    yield place


def _directories(root_fd: int, relative: bytes) -> list[bytes]:
    with contextlib.suppress(*_NOT_THERE), files.directories(root_fd, relative) as (fd,), os.scandir(fd) as found:
        return [os.fsencode(entry.name) for entry in found if entry.is_dir(follow_symlinks=False)]
    return []


def _same(one_fd: int, one: bytes, other_fd: int, other: bytes) -> bool:
    """True when two names are one entry of one directory. Two links to one file are two entries."""
    return one == other and os.path.samestat(os.fstat(one_fd), os.fstat(other_fd))


def _unite(old_fd: int, old: bytes, new_fd: int, new: bytes, marker: Marker) -> None:
    """Leave the new one of two names of a marker. Where the file system folds case, both may be one entry."""
    like = os.lstat(old, dir_fd=old_fd)
    if new not in map(os.fsencode, os.listdir(new_fd)):
        with contextlib.suppress(OSError):  # where the server renames no file over itself, it is written anew
            os.rename(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)
            sync_directory(new_fd)
            return
    os.unlink(old, dir_fd=old_fd)
    # Asked by the name itself, because the inodes of two directories that are one may be made up.
    if not exists(new_fd, new):
        write_at(new_fd, new, marker, like)
        sync_directory(new_fd)


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
