"""The Maildir of a dry run (maildir(5)), which any mail program shows. No mail leaves the machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bridged.relay.outcome import Accepted, Outcome, Refused, RelayDown


class _Unwritable(Exception):
    """The disk of the Maildir does not take the mail."""


@contextmanager
def _ours() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Unwritable(error.strerror or str(error)) from error


def _sync_directory(path: Path) -> None:
    """Sync a directory, so that a name in it survives a power cut (fsync(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Maildir:
    """Takes the place of the relay in a dry run. A mail is whole in `new/`, or absent (maildir(5))."""

    def __init__(self, path: Path, size_limit: int | None = None) -> None:
        """`size_limit` in bytes is the relay's: a mail above it is refused here as well."""
        self._path = path
        self._size_limit = size_limit
        self._aborted = threading.Event()

    def deliver(
        self,
        sender: str,  # noqa: ARG002 - as the relay is called; both addresses stand in the mail itself
        collection_email: str,  # noqa: ARG002
        size: int,
        chunks: Iterator[bytes],
        before_dot: Callable[[], None],
    ) -> Outcome:
        """Write one mail, and return Accepted. RelayDown when the disk does not take it, Refused above `size_limit`.

        An exception of `chunks` or `before_dot` is raised, and no mail is left.
        """
        most = self._size_limit
        if most is not None and size > most:
            words = f"The mail would be {size} bytes, more than smtp.size_limit of {most} bytes"
            return Refused(words, certain=True)
        name = f"{os.getpid()}.{threading.get_ident()}.{os.urandom(8).hex()}.bridged,S={size}"
        try:
            self._write(name, chunks, before_dot)
        except _Unwritable as error:
            return RelayDown(f"The Maildir {self._path} cannot be written: {error}")
        return Accepted(f"250 dry run: not sent, written as {name}")

    def _write(self, name: str, chunks: Iterator[bytes], before_dot: Callable[[], None]) -> None:
        temporary, final = self._path / "tmp" / name, self._path / "new" / name
        with _ours():
            for part in ("tmp", "new", "cur"):
                (self._path / part).mkdir(mode=0o700, parents=True, exist_ok=True)
            file = open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")  # noqa: SIM115
        try:
            with file:
                for chunk in chunks:  # not in `_ours`, because its OSError is the document's trouble
                    with _ours():
                        file.write(chunk)
                    if self._aborted.is_set():
                        raise _Unwritable("abandoned by us")
                before_dot()
                with _ours():
                    file.flush()
                    os.fsync(file.fileno())
            with _ours():
                temporary.rename(final)
                _sync_directory(final.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def abort(self) -> None:
        """Write no further mail, and break off the one under way. From any thread."""
        self._aborted.set()

    def close(self) -> None:
        """Do nothing, because no file is open between two mails."""
