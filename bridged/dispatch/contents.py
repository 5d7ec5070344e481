"""A document's bytes for its mail: of one version, or no final dot follows them.

Small documents are read whole before their turn, several in one call. Large documents are streamed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, Protocol

from bridged.ged import CalledFile, Calls, Mounts, files
from bridged.mail import BLOCK
from bridged.marker import Marking
from bridged.model import Document, by_directory


class Changed(Exception):
    """The document was overwritten while it was read, so its bytes may be half old, half new."""


class Marked(Exception):
    """The document's own marker stands beside it: it has left, and the journal has lost that."""

    def __init__(self, relay_reply: str) -> None:
        super().__init__(relay_reply)
        self.relay_reply = relay_reply


class Content(Protocol):
    """The bytes of a document."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes. b"" at the end. Raises OSError."""

    def require_unchanged(self) -> None:
        """Raises Changed unless all bytes read are of the version that was found quiet. Raises OSError."""


class InMemory:
    """A document that was read whole, and is of one version."""

    def __init__(self, data: bytes, sha256: str) -> None:
        self.sha256 = sha256
        self._data = data
        self._at = 0

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most `size`. b"" at the end."""
        block = self._data[self._at : self._at + size]
        self._at += len(block)
        return block

    def require_unchanged(self) -> None:
        """Raises nothing: the bytes are in memory."""

    def rewind(self) -> InMemory:
        """The same bytes, to be read from their beginning."""
        return InMemory(self._data, self.sha256)


class _Streamed:
    """A document that is read while it leaves."""

    def __init__(self, file: CalledFile, document: Document) -> None:
        self._file = file
        self._document = document
        self.read = file.read

    def require_unchanged(self) -> None:
        """Raises Changed unless size and times are those of the quiet version. Raises OSError."""
        _require_same(self._file.status(), self._document)


class Contents:
    """Opens documents. Thread-safe."""

    def __init__(self, calls: Calls, mounts: Mounts, marking: Marking) -> None:
        self._calls = calls
        self._mounts = mounts
        self._marking = marking

    def ahead(self, documents: Iterable[Document]) -> dict[int, InMemory | Exception]:
        """Small documents by number, or the exception that each met. One call for all documents of a mount."""
        read: dict[int, InMemory | Exception] = {}
        for group in self._calls.by_mount(documents):
            try:
                read |= self._calls.call(group[0].ged, lambda g=group: self._read_all(g))  # type: ignore[misc]
            except OSError as error:
                read |= dict.fromkeys((document.seq for document in group), error)
        return read

    @contextmanager
    def content(self, document: Document, ahead: InMemory | Exception | None) -> Iterator[Content]:
        """The bytes that `ahead` has read, or else the file. Raises Changed, Marked or OSError."""
        if isinstance(ahead, Exception):
            raise ahead
        if ahead is not None:
            yield ahead.rewind()
            return
        with CalledFile(self._calls, document.ged, lambda: self._opened(document)) as file:
            streamed = _Streamed(file, document)
            streamed.require_unchanged()
            yield streamed

    def sha256(self, document: Document, ahead: InMemory | Exception | None) -> str:
        """The digest of its bytes. Reads a large document once more than the sending does. Raises as `content` does."""
        if isinstance(ahead, InMemory):
            return ahead.sha256
        digest = hashlib.sha256()
        with self.content(document, ahead) as content:
            while block := content.read(BLOCK):
                digest.update(block)
            content.require_unchanged()
        return digest.hexdigest()

    def _opened(self, document: Document) -> BinaryIO:
        with self._mounts.at(document.ged, document.path) as root_fd:
            with files.passage(root_fd, document.relative.rpartition(b"/")[0]) as fd:
                self._require_unmarked(fd, document)
            return files.open_document(root_fd, document.relative)

    def _require_unmarked(self, directory_fd: int, document: Document) -> None:
        marker = self._marking.beside(directory_fd, document)
        if marker is not None:
            raise Marked(marker.relay_reply)

    def _read_all(self, documents: list[Document]) -> dict[int, InMemory | Exception]:
        read: dict[int, InMemory | Exception] = {}
        for here in by_directory(documents).values():
            try:
                with self._mounts.passage(here[0].ged, here[0].path) as fd:
                    for document in here:
                        read[document.seq] = self._read(fd, document)
            except OSError as error:
                for document in here:
                    read.setdefault(document.seq, error)
        return read

    def _read(self, directory_fd: int, document: Document) -> InMemory | Exception:
        self._calls.progress()
        try:
            self._require_unmarked(directory_fd, document)
            with files.opened(directory_fd, document.name) as (fd, status):
                _require_same(status, document)
                data = _read_whole(fd, document.stamp.size)
                _require_same(os.fstat(fd), document)
        except (OSError, Changed, Marked) as error:
            return error
        if len(data) != document.stamp.size:
            return Changed()
        return InMemory(data, hashlib.sha256(data).hexdigest())


def _read_whole(fd: int, size: int) -> bytes:
    """The first `size` bytes, or all of a shorter file."""
    data = os.read(fd, size)
    while len(data) < size and (more := os.read(fd, size - len(data))):
        data += more
    return data


def _require_same(status: os.stat_result, document: Document) -> None:
    if not files.stamp_of(status).same_content(document.stamp):
        raise Changed
