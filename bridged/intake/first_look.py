"""The first look at a directory: names, kinds and inodes at the speed of the kernel."""

from __future__ import annotations

from operator import attrgetter
from typing import Final, NamedTuple

from bridged.ged import files
from bridged.journal import packed

# The fields that change when an entry comes or goes, or when another directory takes the place.
STATUS: Final = attrgetter("st_mtime_ns", "st_ctime_ns", "st_ino", "st_dev")


class Look(NamedTuple):
    """A directory at its first look. `read_ns` is as in `packed.Packed`; `status` is the result of `STATUS`."""

    records: bytes
    read_ns: int
    status: tuple[int, int, int, int]
    directories: list[bytes]


def look(root_fd: int, relative: bytes, device: int, endings: tuple[bytes, ...]) -> Look | None:
    """The names in a directory below a root. None where names are not enough, or where it cannot be read.

    `device` is the root's; another file system is not looked at. `endings` are for `packed.only_documents`. The caller
    has asked for hints before; otherwise a file that comes after the reading would be missed.
    """
    try:
        found = files.names(root_fd, relative, device)
    except OSError:
        return None
    # Where the clock is behind the stamps of the file system, `read_ns` does not tell earlier files from later ones.
    if found is None or max(found.status.st_mtime_ns, found.status.st_ctime_ns) >= found.read_ns:
        return None
    if not packed.only_documents(found.records, endings):
        return None
    # ext4, xfs, f2fs and tmpfs count a directory's directories in its links: two say that there is none.
    directories = packed.directories(found.records) if found.status.st_nlink != 2 else []
    return Look(found.records, found.read_ns, STATUS(found.status), directories)
