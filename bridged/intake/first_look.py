"""The first look at a directory: names, kinds and inodes at the speed of the kernel."""

from __future__ import annotations

import os
from operator import attrgetter
from typing import Final, NamedTuple

from bridged.ged import files, kernel
from bridged.journal import packed


class Look(NamedTuple):
    """A directory as it was found. `read_ns` is as in `packed.Packed`, `status` what `STATUS` takes of it."""

    records: bytes
    read_ns: int
    status: tuple[int, int, int, int]
    directories: list[bytes]


# What tells whether anything has come or gone, or another directory is there.
STATUS: Final = attrgetter("st_mtime_ns", "st_ctime_ns", "st_ino", "st_dev")


def look(root_fd: int, relative: bytes, device: int, endings: tuple[bytes, ...]) -> Look | None:
    """What is in a directory below a root; None where more must be asked than names, or there is trouble.

    `device`: of the root; another file system is not looked at. `endings` are for `packed.only_documents`. Whoever
    wants to know what comes meanwhile has asked for hints before.
    """
    try:
        fd = files.open_directory(root_fd, relative)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        read_ns = kernel.coarse_ns()
        records = kernel.records(fd) if status.st_dev == device else None
    except OSError:
        return None
    finally:
        os.close(fd)
    # Where the clock is behind the file system's own times, they would tell nothing of what came first.
    young = max(status.st_mtime_ns, status.st_ctime_ns) >= read_ns
    if records is None or young or not packed.only_documents(records, endings):
        return None
    # Of file systems that count directories in a directory's links (not btrfs) most say at once that there is none.
    directories = packed.directories(records) if status.st_nlink != 2 else []
    return Look(records, read_ns, STATUS(status), directories)
