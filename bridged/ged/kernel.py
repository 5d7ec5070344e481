"""Calls of Linux that Python does not offer. They return None where the kernel or the C library lacks the call."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from functools import lru_cache
from typing import Any, Final

_C: Final = ctypes.CDLL(None, use_errno=True)
_OPENAT2: Final = 437  # the number of the call, the same on every architecture of Debian
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
# Errors after which the path is walked step by step. The kernel does not know the call, a filter forbids it, a rename
# disturbed it, or a link is on the way, which a step names.
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
_RECORDS: Final = 8 * 1024  # bytes of directory entries in one call; clearing a larger buffer costs more than it saves

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
    """The error of the last call, as Python's own calls raise it."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), os.fsdecode(path) or None)


def coarse_ns() -> int:
    """Nanoseconds since the epoch by the clock that file systems stamp files with. Never ahead of their stamps."""
    return time.clock_gettime_ns(_COARSE)


def open_beneath(directory_fd: int, relative: bytes, flags: int) -> int | None:
    """A descriptor of a path below an open directory, with no link on the way (openat2(2), Linux 5.6).

    None where the caller must walk the path step by step. Raises OSError when the path is absent or forbidden.
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
    """The entries of a directory from its descriptor's position, in the kernel's form (getdents64(2), glibc 2.30).

    Raises OSError when the directory cannot be read to its end.
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
    """A file's time of birth, in nanoseconds since the epoch (statx(2), glibc 2.28). No rename and no user changes it.

    None where the file system keeps no time of birth. Follows no link. Raises OSError when the file is absent.
    """
    if _statx is None:
        return None
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    if _statx(directory_fd, name, _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, buffer) != 0:
        raise _error(name)
    mask = struct.unpack_from("=I", buffer, 0)[0]
    seconds, fraction = struct.unpack_from("=qI", buffer, 80)
    return int(seconds) * 10**9 + int(fraction) if mask & _STATX_BTIME else None
