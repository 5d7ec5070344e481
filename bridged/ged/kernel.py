"""Calls of Linux that Python does not offer. Where the kernel or the C library lacks one, the answer is None."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from functools import lru_cache
from typing import Any, Final

_C: Final = ctypes.CDLL(None, use_errno=True)
_OPENAT2: Final = 437  # the same on every architecture that Debian builds for
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
# Not known to the kernel, forbidden by a filter of system calls, disturbed by a rename, or a link is on the way, of
# which one step after the other tells more.
_ANOTHER_WAY: Final = frozenset(
    {
        errno.EINTR,
        errno.ENOSYS,
        errno.EPERM,
        errno.E2BIG,
        errno.EINVAL,
        errno.EAGAIN,
        errno.EXDEV,
        errno.ELOOP,
        errno.ENAMETOOLONG,
    }
)
# Bytes of directory entries asked for at a time: to clear more would cost more than it saves.
_RECORDS: Final = 8 * 1024

_STATX_BTIME: Final = 0x800
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_STATX_SIZE: Final = 256

_COARSE: Final = 5  # CLOCK_REALTIME_COARSE, of clock_gettime(2)


def _function(name: str, *arguments: Any, result: Any = ctypes.c_int) -> Any:
    function = getattr(_C, name, None)
    if function is not None:
        function.argtypes, function.restype = arguments, result
    return function


_syscall: Final = _function("syscall", *[ctypes.c_long] * 2, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t,
                            result=ctypes.c_long)  # fmt: skip
_getdents64: Final = _function("getdents64", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, result=ctypes.c_ssize_t)
_statx: Final = _function("statx", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)


def _error(path: bytes) -> OSError:
    """What the last call said, as Python's own would raise it."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), os.fsdecode(path) or None)


def coarse_ns() -> int:
    """The time that file systems give to what is made now: of the last tick, and never ahead of it; ns."""
    return time.clock_gettime_ns(_COARSE)


def open_beneath(directory_fd: int, relative: bytes, flags: int) -> int | None:
    """A descriptor of what is at a path below an open directory, with no link on the way (openat2(2), Linux 5.6).

    None where that must be found out step by step. Raises OSError for what is not there or not allowed.
    """
    fd = int(_syscall(_OPENAT2, directory_fd, relative, _how(flags), 24))
    if fd >= 0:
        return fd
    number = ctypes.get_errno()
    if number in _ANOTHER_WAY:
        return None
    raise _error(relative)


@lru_cache(maxsize=16)
def _how(flags: int) -> Any:
    resolve = _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS
    return ctypes.create_string_buffer(struct.pack("=QQQ", flags, 0, resolve), 24)


def records(directory_fd: int) -> bytes | None:
    """What is in a directory from where its descriptor stands, in the kernel's own form (getdents64(2), glibc 2.30).

    Raises OSError when it cannot be read to its end.
    """
    if _getdents64 is None:
        return None
    buffer = ctypes.create_string_buffer(_RECORDS)
    parts = []
    while (count := _getdents64(directory_fd, buffer, _RECORDS)) > 0:
        parts.append(ctypes.string_at(buffer, count))
    if count < 0:
        raise _error(b"")
    return b"".join(parts)


def born_ns(directory_fd: int, name: bytes) -> int | None:
    """When a file was made, which no rename changes and nobody can set (statx(2), glibc 2.28); in ns since the epoch.

    None also where the file system does not keep it. A link is not followed. Raises OSError when it is not there.
    """
    if _statx is None:
        return None
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    if _statx(directory_fd, name, _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, buffer) != 0:
        raise _error(name)
    mask = struct.unpack_from("=I", buffer, 0)[0]
    seconds, fraction = struct.unpack_from("=qI", buffer, 80)
    return int(seconds) * 10**9 + int(fraction) if mask & _STATX_BTIME else None
