"""Files of a GED, reached from its descriptor and never through a link.

Each path is relative to the open directory of a GED and is walked without following a link. Otherwise a link that a
client plants would lead the daemon outside. Only regular files are opened.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import re
import signal
import stat
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, Final, NamedTuple

from bridged.ged import kernel
from bridged.model import INODE_BITS, Stamp

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# On the way down only search permission is needed: `drwx--x--x` above a readable folder is common.
_PASSAGE: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# NONBLOCK and NOCTTY, because a FIFO or a terminal may take the file's place after the lstat.
_DOCUMENT: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "other:symbolic link",
    stat.S_IFIFO: "other:FIFO",
    stat.S_IFSOCK: "other:socket",
    stat.S_IFCHR: "other:device",
    stat.S_IFBLK: "other:device",
}

# File systems on which inotify sees every writer. All others (network, FUSE, cluster, unknown) are polled.
_LOCAL: Final = frozenset(
    {
        *("ext2", "ext3", "ext4", "xfs", "btrfs", "bcachefs", "zfs", "f2fs", "jfs", "nilfs2", "reiserfs"),
        *("tmpfs", "ramfs", "rootfs", "overlay", "squashfs", "erofs", "iso9660", "udf"),
        *("vfat", "msdos", "exfat", "ntfs3", "hfsplus"),
    }
)


# File systems of another machine. A lock or a memory map there may hold for one machine only, or not at all.
_REMOTE: Final = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda"),
        *("ceph", "lustre", "gpfs", "beegfs", "orangefs"),
        *("fuse.sshfs", "fuse.rclone", "fuse.s3fs", "fuse.goofys", "fuse.davfs", "fuse.curlftpfs", "fuse.smbnetfs"),
        *("fuse.gvfsd-fuse", "fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.juicefs", "fuse.mfs"),
    }
)

# File systems whose directories tell each entry's own inode. Not overlay, because it makes inodes up.
_TELLING: Final = frozenset({"ext4", "xfs", "btrfs", "f2fs", "tmpfs"})


# Errors that tell of the share, the network or the process, and not of one file.
_ELSEWHERE: Final = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ETIMEDOUT, errno.ESHUTDOWN),
        *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE),
        *(errno.EAGAIN, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    }
)


class NotRegular(OSError):
    """A link, directory, FIFO, socket or device stands at a document's path. It was not read."""


class Names(NamedTuple):
    """The names in a directory, in the kernel's form (getdents64(2)).

    `read_ns` is nanoseconds since the epoch, by the clock of file systems' stamps, just before the reading.
    """

    records: bytes
    read_ns: int
    status: os.stat_result


class Entry(NamedTuple):
    """One name of a directory.

    `kind` is "file", "directory", or "other:" and a name. Only files have a `stamp`. A file without one is there, but
    its directory may be read and not searched.
    """

    name: bytes
    kind: str
    stamp: Stamp | None


@dataclass(frozen=True, slots=True)
class Mount:
    """The mount of a descriptor. `source` and `fstype` are as in /proc/self/mountinfo (proc(5))."""

    source: str
    fstype: str
    point: bytes


def open_root(path: bytes) -> int:
    """A descriptor of a GED's directory, which the caller closes. Raises OSError where the last component is a link."""
    # Without its last slash, because behind a slash the kernel follows a link in spite of O_NOFOLLOW.
    return os.open(path.rstrip(b"/") or b"/", _DIRECTORY)


@contextmanager
def root(path: bytes) -> Iterator[int]:
    """`open_root` for the time of a block, because a descriptor that stays open makes umount(8) fail."""
    fd = open_root(path)
    try:
        yield fd
    finally:
        os.close(fd)


def open_directory(root_fd: int, relative: bytes) -> int:
    """A descriptor of a directory below a root; b"" is the root itself, opened again.

    Raises OSError: NotADirectoryError (or ELOOP) where any component is a link, EINVAL for ".." or an
    absolute path.
    """
    return _opened_beneath(root_fd, relative, _DIRECTORY)


def open_passage(root_fd: int, relative: bytes) -> int:
    """A descriptor as of `open_directory` that can be passed and not listed: no right to read is needed."""
    return _opened_beneath(root_fd, relative, _PASSAGE)


@contextmanager
def passage(root_fd: int, relative: bytes) -> Iterator[int]:
    """`open_passage` for the time of a block."""
    fd = open_passage(root_fd, relative)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def directories(root_fd: int, *relatives: bytes) -> Iterator[tuple[int, ...]]:
    """Descriptors of several directories below a root for the time of a block."""
    with ExitStack() as stack:
        fds: list[int] = []
        for relative in relatives:
            fds.append(open_directory(root_fd, relative))
            stack.callback(os.close, fds[-1])
        yield tuple(fds)


def open_document(root_fd: int, relative: bytes) -> BinaryIO:
    """A document opened for reading. Follows no link and waits for no other process.

    Raises NotRegular when it is no regular file, BlockingIOError while another process holds it by a lease (fcntl(2),
    an oplock of Samba), OSError otherwise.
    """
    with _parent(root_fd, relative) as (directory, name):
        fd, _ = _opened(directory, name)
    try:
        os.set_blocking(fd, True)
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


@contextmanager
def opened(directory_fd: int, name: bytes) -> Iterator[tuple[int, os.stat_result]]:
    """A document of an open directory: its descriptor, and its fstat(2). Raises as `open_document` does."""
    fd, status = _opened(directory_fd, name)
    try:
        yield fd, status
    finally:
        os.close(fd)


def _opened(directory_fd: int, name: bytes) -> tuple[int, os.stat_result]:
    _require_regular(os.lstat(name, dir_fd=directory_fd), name)
    fd = os.open(name, _DOCUMENT, dir_fd=directory_fd)
    try:
        status = os.fstat(fd)
        _require_regular(status, name)  # again, because another file may have the name since the lstat
    except BaseException:
        os.close(fd)
        raise
    return fd, status


def lstat(root_fd: int, relative: bytes) -> os.stat_result:
    """The status of a path below a root (stat(2)). No link is followed, on the way or at the end."""
    with _parent(root_fd, relative) as (directory, name):
        return os.lstat(name, dir_fd=directory)


def remove(root_fd: int, relative: bytes) -> None:
    """Remove one file; of a link, the link itself. Does nothing when the file is absent. OSError for a directory."""
    with suppress(FileNotFoundError), _parent(root_fd, relative) as (directory, name):
        os.unlink(name, dir_fd=directory)


def is_unreadable(error: OSError) -> bool:
    """True when the file is there and cannot be read: no permission, or its disk fails (EIO).

    False when the file has gone, another thing has taken its place, its share is away, or it is busy.
    """
    return not isinstance(error, NotRegular) and error.errno not in _ELSEWHERE


def stamp_of(status: os.stat_result) -> Stamp:
    """The fields of a stat result that bridged compares."""
    return Stamp(status.st_ino & INODE_BITS, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def kind_of(mode: int) -> str:
    """The kind of a file mode, as in `Entry.kind`."""
    return _KINDS.get(stat.S_IFMT(mode), "other:unknown")


def entry_of(name: bytes, status: os.stat_result) -> Entry:
    """The entry that a stat result makes."""
    kind = kind_of(status.st_mode)
    return Entry(name, kind, stamp_of(status) if kind == "file" else None)


def listing(directory_fd: int) -> list[Entry]:
    """The entries of a directory, links not followed. A file that is deleted meanwhile is left out.

    Raises OSError when the directory cannot be read to its end, because half a listing would look like deletions.
    Not for two threads at once, because a descriptor has one position.
    """
    with os.scandir(directory_fd) as found:
        entries = [_entry(item) for item in found]
    return [entry for entry in entries if entry is not None]


def names(root_fd: int, relative: bytes, device: int) -> Names | None:
    """The names in a directory below a root. None where it is on another file system than `device`, or without them.

    Raises OSError when the directory cannot be opened or read to its end.
    """
    fd = open_directory(root_fd, relative)
    try:
        status = os.fstat(fd)
        read_ns = kernel.coarse_ns()
        records = kernel.records(fd) if status.st_dev == device else None
    finally:
        os.close(fd)
    return None if records is None else Names(records, read_ns, status)


def born_ns(root_fd: int, relative: bytes) -> int | None:
    """The time of birth of a file below a root, in nanoseconds since the epoch; None where it is not kept."""
    with _parent(root_fd, relative) as (directory, name):
        return kernel.born_ns(directory, name)


def sha256(document: BinaryIO) -> str:
    """The SHA-256 of a whole document, in hexadecimal, read block by block."""
    document.seek(0)
    digest = hashlib.sha256()
    while block := document.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def has_writer(fd: int) -> bool | None:
    """True while a process seems to have a file open for writing; None where file system or rights do not tell.

    `fd` must be open for reading alone. Sees the writers of this machine (smbd included), and of no other. A network
    file system asks its server, and one that grants no leases looks like a writer: see `Mounts.has_writer`. The read
    lease (fcntl(2)) is given back at once, so that a process that opens the file meanwhile hardly waits.
    """
    try:
        # The kernel's signal is SIGURG, which a process ignores by default, because SIGIO would end it.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def mount_of(fd: int) -> Mount:
    """The mount of an open file or directory. OSError (ENODEV) when its file system has been unmounted."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        number = next(line.split()[1] for line in info if line.startswith(b"mnt_id:"))
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            if line.partition(b" ")[0] == number:
                return _mount(line)
    raise OSError(errno.ENODEV, "its file system has been unmounted")


class Location(NamedTuple):
    """A directory by its file system and its path there. It is the same by each mount of that file system."""

    device: bytes
    path: bytes


class MountTable:
    """The mounts of this process at one moment. No file system is touched to ask it."""

    def __init__(self) -> None:
        self._by_number: dict[bytes, tuple[bytes, Location]] = {}
        with open("/proc/self/mountinfo", "rb") as table:
            for line in table:
                number, _, device, root, point = line.split(b" ")[:5]
                self._by_number[number] = (_unescaped(point), Location(device, _unescaped(root)))
        self._at = dict(self._by_number.values())  # the last mount of a point covers those before
        self._points = sorted(self._at)

    def location(self, fd: int) -> Location | None:
        """The location of an open directory; None where the table does not have its mount. Raises OSError."""
        with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
            number = next(line.split()[1] for line in info if line.startswith(b"mnt_id:"))
        path = os.readlink(f"/proc/self/fd/{fd}".encode())
        point, root = self._by_number.get(number, (b"", None))
        if root is None or not path.startswith(point):
            return None
        below = path[len(point.rstrip(b"/")) :].rstrip(b"/")
        return Location(root.device, root.path.rstrip(b"/") + below or b"/")

    def below(self, path: bytes) -> list[Location]:
        """The locations that are mounted below a path."""
        prefix = path.rstrip(b"/") + b"/"
        first = bisect_left(self._points, prefix)
        inner = itertools.takewhile(lambda point: point.startswith(prefix), self._points[first:])
        return [self._at[point] for point in inner]


def is_mounted(point: bytes) -> bool:
    """True when the mount table names a mount at this path."""
    with open("/proc/self/mountinfo", "rb") as table:
        return any(_mount(line).point == point for line in table)


def mounts_below(root_fd: int) -> list[bytes]:
    """The mount points below a directory, as paths relative to it."""
    top = os.readlink(f"/proc/self/fd/{root_fd}".encode()).rstrip(b"/") + b"/"
    with open("/proc/self/mountinfo", "rb") as table:
        points = [_mount(line).point for line in table]
    return [point[len(top) :] for point in points if point.startswith(top)]


def tells_names(root_fd: int, fstype: str) -> bool:
    """True when directories here tell each entry's kind and inode, as lstat(2) does, and files have a time of birth.

    The time of birth tells a file from an earlier one with the same inode. Old ext4 and XFS keep none.
    """
    try:
        return fstype in _TELLING and kernel.born_ns(root_fd, b".") is not None
    except OSError:
        return False


def is_local(fstype: str) -> bool:
    """True when every change on this type of file system goes through this kernel, so that inotify sees it."""
    return fstype in _LOCAL


def is_remote(fstype: str) -> bool:
    """True for a type of file system that is known to be another machine's. Of an unknown type it is not told."""
    return fstype in _REMOTE


@contextmanager
def _parent(root_fd: int, relative: bytes) -> Iterator[tuple[int, bytes]]:
    """The directory of a path, open for the time of a block, and the last component. No link on the way."""
    *way, name = _components(relative) or [b"."]
    if not way:
        yield root_fd, name
        return
    directory = _opened_beneath(root_fd, b"/".join(way), _PASSAGE)
    try:
        yield directory, name
    finally:
        os.close(directory)


def _opened_beneath(root_fd: int, relative: bytes, flags: int) -> int:
    """A directory below a root, no link on the way: by one call, or step by step where the call returns None."""
    if b".." in relative:  # refused here, because the kernel admits a path that goes up and stays below the root
        _components(relative)
    fd = kernel.open_beneath(root_fd, relative or b".", flags)
    if fd is not None:
        return fd
    *way, name = _components(relative) or [b"."]
    directory = root_fd
    try:
        for component in way:
            inner = os.open(component, _PASSAGE, dir_fd=directory)
            if directory != root_fd:
                os.close(directory)
            directory = inner
        return os.open(name, flags, dir_fd=directory)
    finally:
        if directory != root_fd:
            os.close(directory)


def _components(relative: bytes) -> list[bytes]:
    parts = [part for part in relative.split(b"/") if part not in (b"", b".")]
    # An absolute path is refused, because the kernel would not start at the root.
    if relative.startswith(b"/") or b".." in parts:
        raise OSError(errno.EINVAL, "this path leads out of its GED", os.fsdecode(relative))
    return parts


def _require_regular(status: os.stat_result, relative: bytes) -> None:
    if not stat.S_ISREG(status.st_mode):
        what = kind_of(status.st_mode).removeprefix("other:")
        raise NotRegular(errno.EINVAL, f"not a regular file but a {what}", os.fsdecode(relative))


def _entry(item: os.DirEntry[str]) -> Entry | None:
    name = os.fsencode(item.name)  # back to bytes, because scandir of a descriptor always gives text
    if item.is_dir(follow_symlinks=False):
        return Entry(name, "directory", None)
    try:
        status = item.stat(follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            return Entry(name, "file", stamp_of(status))
    except FileNotFoundError:
        return None
    except OSError:
        # An entry all the same. Otherwise the file would look deleted. The caller's open raises the reason.
        return Entry(name, "file" if item.is_file(follow_symlinks=False) else "other:unreadable", None)
    return entry_of(name, status)


def _mount(line: bytes) -> Mount:
    before, _, after = line.rstrip(b"\n").partition(b" - ")
    fstype, source = after.split(b" ")[:2]
    return Mount(_text(source), _text(fstype), _unescaped(before.split(b" ")[4]))


def _unescaped(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), field)


def _text(field: bytes) -> str:
    # Not surrogates, because the journal keeps it as text, and sqlite3 refuses them.
    return _unescaped(field).decode("utf-8", "backslashreplace")
