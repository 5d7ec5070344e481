"""Paths are bytes, because a file name need not be UTF-8. Pure."""

from __future__ import annotations


def split(path: bytes) -> tuple[bytes, bytes]:
    """Directory and name of an absolute path."""
    directory, _, name = path.rpartition(b"/")
    return directory, name


def is_in(path: bytes, directory: bytes) -> bool:
    """True when a path is this directory, or is below it."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def limbo(path: bytes) -> bytes:
    """The path of a known file that lost its path to another file and is not found again yet. No file can be there."""
    return path + b"/"


def below(directory: bytes) -> tuple[bytes, bytes]:
    """The half-open range of paths below a directory, in the order of bytes (`/` is followed by `0`)."""
    return directory + b"/", directory + b"0"
