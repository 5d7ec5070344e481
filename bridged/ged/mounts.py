"""The file systems of the GEDs, as intake found them. A document is opened on the same file system or not at all.

Between two looks a share may go and leave its bare mount point, or another share may take its place. Either may hold a
file of the same name, whose bytes must not leave.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from bridged.ged import files


class Away(OSError):
    """The share is away, or another file system is there. The caller concludes nothing and writes nothing."""

    def __init__(self) -> None:
        super().__init__(errno.EHOSTDOWN, "its share is away, or another file system is there")


@dataclass(frozen=True, slots=True)
class _Found:
    device: int
    inode: int
    fsid: int
    settled: bool

    def require(self, fd: int, *, settled: bool) -> int:
        """The device of `fd`, if `fd` is on this file system; otherwise raises Away."""
        status = os.fstat(fd)
        same = (status.st_dev, status.st_ino) == (self.device, self.inode)
        if not same or (settled and os.fstatvfs(fd).f_fsid != self.fsid):
            raise Away
        return status.st_dev


class Mounts:
    """The mount points of each GED: the GED itself, and the file systems mounted inside it. Thread-safe."""

    def __init__(self) -> None:
        self._points: dict[bytes, dict[bytes, _Found | None]] = {}
        self._away: dict[bytes, None] = {}  # GEDs; kept, because each claim asks for them and a firm has 1,000 GEDs
        self._telling = threading.Lock()
        self._leased: dict[int, str] = {}  # device and source of each mount that has granted a lease

    def away(self) -> tuple[bytes, ...]:
        """The GEDs from which no document can be sent now."""
        return tuple(self._away.copy())

    def _tell(self, ged: bytes) -> None:
        """Note whether a GED is away, after a change. The lock keeps an older change from being noted last."""
        with self._telling:
            points = self._points.get(ged)
            root = None if points is None else points.get(ged)
            if points is None or (root is not None and root.settled):
                self._away.pop(ged, None)
            else:
                self._away[ged] = None

    def expect(self, ged: bytes, point: bytes) -> None:
        """A file system belongs there, and has not been found yet."""
        self._points.setdefault(ged, {}).setdefault(point, None)
        self._tell(ged)

    def found(self, ged: bytes, point: bytes, fd: int, *, settled: bool) -> None:
        """The file system of `fd` is at `point`. Not `settled`: no pass has read it yet, and none of it may be sent."""
        status = os.fstat(fd)
        here = _Found(status.st_dev, status.st_ino, os.fstatvfs(fd).f_fsid, settled)
        points = self._points.setdefault(ged, {})
        before = points.get(point)
        # An unsettled file system stays unsettled when it is found again, because no pass has read it yet.
        if before is not None and not before.settled and replace(before, settled=True) == replace(here, settled=True):
            here = before
        points[point] = here
        self._tell(ged)

    def settle(self, ged: bytes) -> None:
        """A pass has read the file systems of a GED: their documents may be sent."""
        points = self._points.get(ged, {})
        points.update({p: replace(found, settled=True) for p, found in points.items() if found is not None})
        self._tell(ged)

    def forget(self, ged: bytes, point: bytes) -> None:
        """No file system belongs at `point` any more; where that is the GED, the GED is no longer configured."""
        if point == ged:
            self._points.pop(ged, None)
        else:
            self._points.get(ged, {}).pop(point, None)
        self._tell(ged)

    def lost(self, ged: bytes, point: bytes) -> None:
        """The file system is away."""
        self._points.setdefault(ged, {})[point] = None
        self._tell(ged)

    def has_writer(self, fd: int) -> bool | None:
        """As `files.has_writer`, and None where this mount may refuse every lease. Raises OSError.

        A server that grants no oplocks or delegations refuses each lease as if the file had a writer. So on a file
        system that is not local a refusal counts only once its mount has granted a lease, of any file.
        """
        told = files.has_writer(fd)
        if told is None:
            return None
        device = os.fstat(fd).st_dev
        if told is False and device in self._leased:
            return False
        mount = files.mount_of(fd)
        if told is False:
            self._leased[device] = mount.source
            return False
        # The source as well, because a later mount may get the device's number.
        return True if files.is_local(mount.fstype) or self._leased.get(device) == mount.source else None

    @contextmanager
    def at(self, ged: bytes, path: bytes, *, settled: bool = True) -> Iterator[int]:
        """The GED's descriptor for a touch of `path`, for the time of a block. Raises Away.

        A descriptor that is kept longer would keep umount(8) from unmounting the share. With `settled` the file system
        must have been read by a pass, and its id must be the same. Without, device and inode are compared alone: the
        next look mends a look that was wrong.
        """
        root_fd, device = self._root_of(ged, path, settled=settled)
        try:
            with suppress(FileNotFoundError, NotADirectoryError):  # the caller's own touch raises it again
                os.close(_directory(ged, path, root_fd, device, files.open_passage))
            yield root_fd
        finally:
            os.close(root_fd)

    @contextmanager
    def passage(self, ged: bytes, path: bytes, *, settled: bool = True) -> Iterator[int]:
        """A descriptor of the directory of `path`, which may be searched and need not be readable. Raises OSError."""
        fd = self._open(ged, path, files.open_passage, settled=settled)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def directory(self, ged: bytes, path: bytes, *, settled: bool = True) -> Iterator[int]:
        """A descriptor of the directory of `path`, open for reading: it can be listed and synced. Raises OSError."""
        fd = self._open(ged, path, files.open_directory, settled=settled)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open(self, ged: bytes, path: bytes, opener: Callable[[int, bytes], int], *, settled: bool) -> int:
        root_fd, device = self._root_of(ged, path, settled=settled)
        try:
            return _directory(ged, path, root_fd, device, opener)
        finally:
            os.close(root_fd)

    def _root_of(self, ged: bytes, path: bytes, *, settled: bool) -> tuple[int, int]:
        """The GED's descriptor, which the caller closes, and the device of `path`."""
        points = self._points.get(ged, {})
        above = sorted(p for p in list(points) if p == ged or path.startswith(p + b"/"))
        root_fd, device = _root(ged), -1
        try:
            for point in above or [ged]:
                device = self._require(points.get(point), root_fd, point[len(ged) + 1 :], settled=settled)
        except BaseException:
            os.close(root_fd)
            raise
        return root_fd, device

    def _require(self, found: _Found | None, root_fd: int, relative: bytes, *, settled: bool) -> int:
        if found is None or (settled and not found.settled):
            raise Away
        if not relative:
            return found.require(root_fd, settled=settled)
        try:
            fd = files.open_passage(root_fd, relative)
        except (FileNotFoundError, NotADirectoryError):
            raise Away from None
        try:
            return found.require(fd, settled=settled)
        finally:
            os.close(fd)


def _directory(ged: bytes, path: bytes, root_fd: int, device: int, opener: Callable[[int, bytes], int]) -> int:
    """A descriptor of the directory of a path, if it is on that device; otherwise raises Away."""
    fd = opener(root_fd, path.rpartition(b"/")[0][len(ged) + 1 :])
    try:
        there = os.fstat(fd).st_dev
    except BaseException:
        os.close(fd)
        raise
    if there != device:
        os.close(fd)
        raise Away
    return fd


def _root(ged: bytes) -> int:
    try:
        return files.open_root(ged)
    except (FileNotFoundError, NotADirectoryError):
        raise Away from None
