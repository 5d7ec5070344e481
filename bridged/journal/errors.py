"""The journal's errors. SQLite's own end here: outside the package nobody meets one."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from bridged.model import UserError


class JournalError(UserError):
    """The journal cannot be used as it is. The sentence names the remedy."""

    exit_code = 78


class JournalUnavailable(JournalError):
    """The journal is as it was, but cannot be used now. A later attempt may succeed."""

    exit_code = 1


class JournalBusy(JournalUnavailable):
    """Another program holds the journal."""


class JournalDamaged(JournalError):
    """SQLite has read the whole journal, and cannot use it."""

    def __init__(self, path: Path, error: Exception) -> None:
        super().__init__(
            f"The journal {path} cannot be read ({error}). Move it aside and start again: what is in the folders"
            " then counts as existing and is not sent, and valid markers still count."
        )


class JournalMisused(JournalError):
    """A wish is a mistake of bridged, as a value that the journal cannot hold. The journal is as it was."""

    exit_code = 1


class StateConflict(Exception):
    """A document is not in the state that the caller expects: another writer has moved it."""


_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
# Remedies by SQLite's primary result code: the place or the moment is at fault, not the journal.
_REMEDIES: Final = {
    sqlite3.SQLITE_FULL: "make room on its disk",
    sqlite3.SQLITE_IOERR: "make room on its disk, or see to the disk if it is failing (the kernel's log tells)",
    sqlite3.SQLITE_BUSY: "end what holds it open",
    sqlite3.SQLITE_LOCKED: "end what holds it open",
    sqlite3.SQLITE_READONLY: "make it and its directory writable for this user",
    sqlite3.SQLITE_PERM: "make it and its directory writable for this user",
    sqlite3.SQLITE_CANTOPEN: "make it and its directory readable and writable for this user",
}
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
# Errors of the moment: no file is to blame, and the next start may not meet them.
_PASSING: Final = {
    errno.EMFILE: "let this service open more files",
    errno.ENFILE: "let this machine open more files",
    errno.ENOMEM: "give this machine more memory",
    errno.EIO: "see to the disk if it is failing (the kernel's log tells)",
    errno.ETIMEDOUT: "see to the disk if it is failing (the kernel's log tells)",
}
_PART: Final = 1 << 20  # bytes of a journal that are read at a time
# Of these no page of the journal is to blame, and no moment: a later attempt fails as well.
_MISTAKES: Final = (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.IntegrityError, sqlite3.DataError)


def unusable(why: object) -> str:
    """The sentence of an open journal that cannot be used."""
    return f"The journal cannot be used ({why}). Is its disk full, or may this user not write there?"


def translated(path: Path, error: BaseException) -> BaseException:
    """The journal's error for an error of SQLite while the journal is open. Any other error stays as it is."""
    if not isinstance(error, sqlite3.Error):
        return error
    if isinstance(error, _MISTAKES):
        return JournalMisused(f"A mistake of bridged: the journal does not take this ({error}).")
    if not isinstance(error, sqlite3.OperationalError):
        return JournalDamaged(path, error) if is_damaged(path) else _sound(path, error)
    kind = JournalBusy if _code(error) in _BUSY else JournalUnavailable
    return kind(unusable(error))


def is_damaged(path: Path) -> bool:
    """True when SQLite reads the whole journal by a connection of its own, and finds it damaged.

    False where the check cannot be made. SQLite calls a journal malformed after one failed read of its schema.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=30)) as sql:
            return bool(sql.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",))
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True


def is_passing(error: Exception) -> bool:
    """True for an error of an opening that may be over at once, or that must be met twice to be believed."""
    if isinstance(error, sqlite3.Error):
        return _code(error) not in (*_BUSY, sqlite3.SQLITE_FULL)
    return isinstance(error, OSError) and error.errno in _PASSING


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Raises JournalError for each error of SQLite, and of the file system, while the journal is opened.

    No connection to the journal may be open in this process. Otherwise the look at its bytes would drop their locks.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        remedy = _REMEDIES.get(_code(error))
        if remedy is None:
            raise JournalDamaged(path, error) from error
        raise _unavailable(path, error, remedy, busy=_code(error) in _BUSY) from error
    except sqlite3.DatabaseError as error:
        why = _unreadable(path)
        if why is not None:
            raise _unavailable(path, why, _REMEDIES[sqlite3.SQLITE_IOERR]) from error
        raise (JournalDamaged(path, error) if is_damaged(path) else _sound(path, error)) from error
    except OSError as error:
        remedy = _REMEDIES[sqlite3.SQLITE_FULL] if error.errno in _NO_ROOM else _PASSING.get(error.errno or 0)
        if remedy is not None:
            raise _unavailable(path, error.strerror, remedy) from error
        raise JournalError(f"The journal {path} cannot be opened: {error.strerror}.") from error


def _unreadable(path: Path) -> str | None:
    """None when the disk gives all bytes of the journal; otherwise its error. A failing disk proves no damage."""
    try:
        for name in (path, path.with_name(f"{path.name}-wal")):
            with suppress(FileNotFoundError), name.open("rb", buffering=0) as file:
                while file.read(_PART):
                    pass
    except OSError as error:
        return error.strerror or str(error)
    return None


def _sound(path: Path, error: Exception) -> JournalUnavailable:
    return _unavailable(path, f"a read failed: {error}; a check of all of it finds no damage", "see to its disk")


def _unavailable(path: Path, why: object, remedy: str, *, busy: bool = False) -> JournalUnavailable:
    words = f"The journal {path} cannot be used now ({why}): {remedy}, and start again."
    kind = JournalBusy if busy else JournalUnavailable
    return kind(f"{words} Leave the journal where it is, nothing in it is lost.")


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for an error that Python has raised itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
