"""A marker written whole.

Its temporary file has no name where the file system knows such files, so that a crash leaves nothing. The file is
synced, gets its name without replacing anything, and then the directory is synced. Some shares neither link nor rename
over a file: there the marker is written at its name, and the beginning that a crash leaves there is mended.

Every name is relative to a directory's descriptor. Otherwise a link that a client plants would lead the daemon outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from bridged.marker.finding import LARGEST, belongs, exists, is_small_file, names_in
from bridged.marker.marker import Marker

ALL_TAKEN: Final = "every name for its marker is taken by another file"
_STANDING: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Errors of a file system or a kernel without hard links, flags of renameat2(2), O_TMPFILE, or syncs of directories.
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})
_NO_FLAGS: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM})
# Errors of a server that renames no file over another one, not even over an empty one.
_NO_REPLACING: Final = frozenset(
    {errno.EPERM, errno.EACCES, errno.EEXIST, errno.EINVAL, errno.EIO, errno.EOPNOTSUPP, errno.ENOSYS}
)
_NO_UNNAMED: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS})
_NO_SYNC: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
_DESCRIPTORS: Final = b"/proc/self/fd/"
_RENAME_NOREPLACE: Final = 1
_UNNAMED: Final = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
_SYNC_FILE_RANGE_WRITE: Final = 2
_libc: Final = ctypes.CDLL(None, use_errno=True)

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Written:
    """The name of a marker that stands. `displaced` is True when another file has its first name."""

    name: bytes
    displaced: bool


def write(directory_fd: int, document: bytes, marker: Marker, suffix: str, hidden: bool) -> Written:
    """Write a document's marker beside it. A marker with its Message-ID that stands already stays as it is.

    On return the marker survives a power cut. No file is ever replaced. Raises OSError when it cannot be written, and
    FileNotFoundError also when the document has left. It may be repeated then.
    """
    [written] = write_all([(directory_fd, document, marker)], suffix, hidden)
    if isinstance(written, OSError):
        raise written
    return written


def write_all(
    markers: Sequence[tuple[int, bytes, Marker]], suffix: str, hidden: bool, progress: Callable[[], None] = lambda: None
) -> list[Written | OSError]:
    """Write many markers, each told by its directory's descriptor, its document's name and its content.

    All take each step together, because the first sync then commits for all where the file system has a journal. Each
    directory is synced once. A marker that fails stops no other one; its OSError stands in its place. `progress` is
    called before each step that may wait for the disk.
    """
    with contextlib.ExitStack() as leaving:
        drafts: list[_Draft | Written | OSError] = []
        for one in markers:
            progress()
            draft = _attempt(_drafted, *one, suffix, hidden)
            drafts.append(draft)
            if isinstance(draft, _Draft):
                leaving.callback(_attempt, draft.leave)  # a failure here is passed over: the marker stands
                leaving.callback(progress)
        for step in (_Draft.begin_writing, _Draft.sync, lambda draft: _published(draft, suffix, hidden)):
            drafts = [_further(draft, step, progress) for draft in drafts]
        failures: dict[int, OSError | None] = {}
        for directory_fd in dict.fromkeys(directory_fd for directory_fd, _, _ in markers):
            progress()  # also where a marker stood already, because a crash may have come before its sync
            failures[directory_fd] = _attempt(sync_directory, directory_fd)
    return [
        outcome if isinstance(outcome, OSError) else failures[directory_fd] or outcome  # type: ignore[misc]  # no draft
        for outcome, (directory_fd, _, _) in zip(drafts, markers, strict=True)
    ]


@dataclass(slots=True)
class _Draft:
    """A marker in its temporary file, not yet under its name. `leave` closes `fd`."""

    directory_fd: int
    document: bytes
    marker: Marker
    like: os.stat_result
    fd: int
    temporary: bytes  # its name, or the path of `fd` in /proc where it has none
    published: bool = False

    def write(self) -> None:
        """Write the content, and give the file the document's permissions. Raises OSError."""
        _fill(self.fd, self.marker.to_json())
        with contextlib.suppress(OSError):  # best effort by contract
            os.fchmod(self.fd, self.like.st_mode & 0o666)

    def begin_writing(self) -> _Draft:
        """Ask the kernel to begin to write, so that the syncs that follow find most of it done (sync_file_range(2))."""
        begin = getattr(_libc, "sync_file_range", None)  # glibc has it, musl has not
        if begin is not None:
            begin(self.fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)
        return self

    def sync(self) -> _Draft:
        """Make the content durable. Raises OSError."""
        os.fsync(self.fd)
        return self

    def publish(self, name: bytes) -> None:
        """Give the file this name. Raises FileExistsError where it is taken. Durable once the directory is synced."""
        try:
            copied = self._give_name(name)
        except FileExistsError:
            if not mend(self.directory_fd, name, self.marker):
                raise
            copied = True
        if copied:
            standing = os.open(name, _STANDING, dir_fd=self.directory_fd)
            os.close(self.fd)
            self.fd = standing
            with contextlib.suppress(OSError):  # best effort by contract
                os.fchmod(self.fd, self.like.st_mode & 0o666)
        self.published = True

    def _give_name(self, name: bytes) -> bool:
        try:
            return give_name(self.directory_fd, self.temporary, self.directory_fd, name)
        except OSError as error:
            if not self.temporary.startswith(_DESCRIPTORS) or error.errno not in _NO_LINKS:
                raise
        named = _named(self.directory_fd, self.marker.message_id)  # a file without a name gets one by a link alone
        os.close(self.fd)
        self.fd, self.temporary = named
        self.write()
        self.sync()
        return give_name(self.directory_fd, self.temporary, self.directory_fd, name)

    def leave(self) -> None:
        """Remove the temporary name, give a published marker its owner, and close the file."""
        try:
            if not self.temporary.startswith(_DESCRIPTORS):
                with contextlib.suppress(FileNotFoundError):  # absent where it was renamed, without links
                    os.unlink(self.temporary, dir_fd=self.directory_fd)
            if self.published:
                _give(self.fd, self.like)
        finally:
            os.close(self.fd)


def _attempt(work: Callable[..., R], *arguments: Any) -> R | OSError:
    try:
        return work(*arguments)
    except OSError as error:
        return error


def _further(
    draft: _Draft | Written | OSError, step: Callable[[_Draft], _Draft | Written], progress: Callable[[], None]
) -> _Draft | Written | OSError:
    """The draft after one more step. An error, or a marker that stands, takes no further step."""
    if not isinstance(draft, _Draft):
        return draft
    progress()
    return _attempt(step, draft)


def _drafted(directory_fd: int, document: bytes, marker: Marker, suffix: str, hidden: bool) -> _Draft | Written:
    """The marker that stands already, because that needs no room on a full disk; otherwise a draft."""
    like = os.lstat(document, dir_fd=directory_fd)
    for number, name in names_in(directory_fd, document, suffix, hidden):
        if not exists(directory_fd, name):
            break
        if belongs(directory_fd, name, marker.message_id):
            return Written(name, number > 1)
    return _draft(directory_fd, document, marker, like)


def _draft(directory_fd: int, document: bytes, marker: Marker, like: os.stat_result) -> _Draft:
    """A draft with its content written. Raises OSError, and leaves no file then."""
    draft = _Draft(directory_fd, document, marker, like, *_temporary(directory_fd, marker.message_id))
    try:
        draft.write()
    except BaseException:
        draft.leave()
        raise
    return draft


def _published(draft: _Draft, suffix: str, hidden: bool) -> Written:
    """Give the draft the first free name, unless this very marker stands at one before."""
    os.lstat(draft.document, dir_fd=draft.directory_fd)  # asked again: the document may have left during the syncs
    for number, name in names_in(draft.directory_fd, draft.document, suffix, hidden):
        try:
            draft.publish(name)
        except FileExistsError:
            if not belongs(draft.directory_fd, name, draft.marker.message_id):
                continue
        return Written(name, number > 1)
    raise OSError(errno.EEXIST, ALL_TAKEN)


def _give(fd: int, like: os.stat_result) -> None:
    """Give the marker the document's owner and group. A failure is no error, by contract.

    Only after the file has its name, because where the sticky bit is set only the owner may rename.
    """
    try:
        os.fchown(fd, like.st_uid, like.st_gid)
    except OSError:
        with contextlib.suppress(OSError):
            os.fchown(fd, -1, like.st_gid)


def _temporary(directory_fd: int, message_id: str) -> tuple[int, bytes]:
    """A new file and its name. A file that a client planted at that name is left alone."""
    return _unnamed(directory_fd) or _named(directory_fd, message_id)


def _unnamed(directory_fd: int) -> tuple[int, bytes] | None:
    """A file without a name. None where the file system knows no such files, or /proc shows none."""
    if not _shows_descriptors():
        return None
    try:
        fd = os.open(b".", _UNNAMED, 0o600, dir_fd=directory_fd)
    except OSError as error:
        if error.errno not in _NO_UNNAMED:
            raise
        return None
    return fd, _DESCRIPTORS + b"%d" % fd


@functools.cache
def _shows_descriptors() -> bool:
    return os.path.isdir(_DESCRIPTORS)


def _stem(of: bytes) -> bytes:
    return b".bridged-" + hashlib.sha256(of).hexdigest()[:16].encode()


def _named(directory_fd: int, message_id: str) -> tuple[int, bytes]:
    stem = _stem(message_id.encode())
    for number in ("", "-2", "-3", "-4", "-5", "-6", "-7", "-8"):
        name = stem + number.encode() + b".tmp"
        with contextlib.suppress(FileExistsError):
            return os.open(name, _CREATE, 0o600, dir_fd=directory_fd), name
    # Not FileExistsError, because that means that the marker's own name is taken.
    raise OSError(errno.EBUSY, "every name for the marker's temporary file is taken", os.fsdecode(stem))


def write_at(directory_fd: int, name: bytes, marker: Marker, like: os.stat_result) -> None:
    """Write a marker at this very name, whole or not at all. Raises FileExistsError where the name is taken.

    The file gets the permissions, the owner and the group of `like`.
    """
    draft = _draft(directory_fd, name, marker, like)
    try:
        draft.sync()
        draft.publish(name)
    finally:
        draft.leave()


def give_name(old_fd: int, old: bytes, new_fd: int, new: bytes) -> bool:
    """Give a file another name. Raises FileExistsError where it is taken. The old name stays where links exist.

    True when the new name is another file, with the same content and synced: the old one stays.
    """
    unnamed = old.startswith(_DESCRIPTORS)  # open(2), O_TMPFILE: the link in /proc leads to the file itself
    try:
        os.link(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd, follow_symlinks=unnamed)
    except OSError as error:
        if unnamed or error.errno not in _NO_LINKS:
            raise
        return _rename(old_fd, old, new_fd, new)
    return False


def _rename(old_fd: int, old: bytes, new_fd: int, new: bytes) -> bool:
    """Rename, for file systems without hard links (FAT, many of FUSE). True as of `give_name`."""
    if _libc.renameat2(old_fd, old, new_fd, new, _RENAME_NOREPLACE) == 0:
        return False
    code = ctypes.get_errno()
    if code not in _NO_FLAGS:
        raise OSError(code, os.strerror(code), os.fsdecode(new))
    # Reserve the name, then replace the reservation, because without the flag a rename would replace any file.
    fd = os.open(new, _CREATE, 0o600, dir_fd=new_fd)
    try:
        return _replaced(old_fd, old, new_fd, new, fd)
    except BaseException:
        os.unlink(new, dir_fd=new_fd)
        raise
    finally:
        os.close(fd)


def _replaced(old_fd: int, old: bytes, new_fd: int, new: bytes, reserved: int) -> bool:
    """Rename over a reserved name. True where the share refuses that, and the content was copied there."""
    try:
        os.rename(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)
    except OSError as error:
        if error.errno not in _NO_REPLACING:
            raise
    else:
        return False
    source = os.open(old, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=old_fd)
    try:
        like = os.fstat(source)
        _fill(reserved, os.read(source, LARGEST))
    finally:
        os.close(source)
    with contextlib.suppress(OSError):  # best effort by contract
        os.fchmod(reserved, like.st_mode & 0o666)
    os.fsync(reserved)
    _give(reserved, like)
    return True


def mend(directory_fd: int, name: bytes, marker: Marker) -> bool:
    """Write a marker whole and synced at a name where a crash has left its beginning. False for any other file there.

    An empty file is a beginning only where links are unknown, because a marker gets its name whole elsewhere. Raises
    OSError.
    """
    content = marker.to_json()
    try:
        if not is_small_file(directory_fd, name):
            return False
        fd = os.open(name, _STANDING, dir_fd=directory_fd)
    except (FileNotFoundError, PermissionError):
        return False
    try:
        begun = os.read(fd, LARGEST)
        if Marker.from_json(begun) is not None or not _is_beginning(begun, content):
            return False
        if not begun.strip(b"\0") and _knows_links(directory_fd, name):
            return False
        os.lseek(fd, 0, os.SEEK_SET)
        _fill(fd, content)
        os.ftruncate(fd, len(content))
        os.fsync(fd)
    finally:
        os.close(fd)
    return True


def _knows_links(directory_fd: int, name: bytes) -> bool:
    """True unless the file system refuses a hard link to this file. A name that is taken hides that refusal."""
    probe = _stem(name) + b".tmp"
    try:
        os.link(name, probe, src_dir_fd=directory_fd, dst_dir_fd=directory_fd, follow_symlinks=False)
    except FileExistsError:
        return True
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    os.unlink(probe, dir_fd=directory_fd)
    return True


def _is_beginning(begun: bytes, content: bytes) -> bool:
    """True when `begun` begins as `content` does, up to the time of the attempt. A power cut may leave zeros behind."""
    lasting = content.partition(b'  "validated_at"')[0]
    begun = begun.rstrip(b"\0")
    return lasting.startswith(begun) or begun.startswith(lasting)


def _fill(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def sync_directory(directory_fd: int) -> None:
    """Make the names in a directory durable, where its file system syncs directories. Raises OSError."""
    try:
        os.fsync(directory_fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:  # some network file systems cannot sync a directory
            raise
