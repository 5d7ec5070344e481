"""Paths are bytes: a file name need not be UTF-8."""

from __future__ import annotations


def split(path: bytes) -> tuple[bytes, bytes]:
    """Directory and name of an absolute path."""
    directory, _, name = path.rpartition(b"/")
    return directory, name


def is_in(path: bytes, directory: bytes) -> bool:
    """Whether a path is a directory, or is below it."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def limbo(path: bytes) -> bytes:
    """Where a file's row stands when another has taken its path and it is not found again yet: no file can be there."""
    return path + b"/"


def below(directory: bytes) -> tuple[bytes, bytes]:
    """The half-open range of paths below a directory, in the order of bytes."""
    return directory + b"/", directory + b"0"
