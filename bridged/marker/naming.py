"""A marker's names, in order of preference, each short enough for its file system. Pure."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator
from typing import Final

MOST: Final = 99  # names of one document's marker


def names(document: bytes, suffix: bytes, hidden: bool, longest: int) -> Iterator[tuple[int, bytes]]:
    """Each name with its number, from 1. No name is longer than `longest` bytes, unless the suffix alone is longer."""
    dot = b"." if hidden else b""
    for number in range(1, MOST + 1):
        end = _numbered(suffix, number)
        yield number, dot + _shortened(document, longest - len(dot) - len(end)) + end


def _numbered(suffix: bytes, number: int) -> bytes:
    """`.validated.json` -> `.validated-2.json`"""
    if number == 1:
        return suffix
    stem, extension = posixpath.splitext(suffix)
    return stem + b"-%d" % number + extension


def _shortened(document: bytes, room: int) -> bytes:
    """The name cut to `room` bytes between two characters. Its extension stays, and a hash tells it from others."""
    if len(document) <= room:
        return document
    stem, extension = posixpath.splitext(document)
    extension = extension if len(extension) <= 16 else b""
    end = b"~" + hashlib.sha256(document).hexdigest()[:8].encode() + extension
    cut = max(room - len(end), 0)
    while cut and stem[cut : cut + 1] and stem[cut] & 0xC0 == 0x80:  # never within a character of UTF-8
        cut -= 1
    return stem[:cut] + end
