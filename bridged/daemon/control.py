"""The way to a running daemon: the lock that says there is one, and a socket that takes one request at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from bridged.ged import files
from bridged.model import UserError

SOCKET: Final = "control.sock"
LOCK: Final = "lock"
_LONGEST: Final = 65_536  # bytes of a request
_PATIENCE: Final = 5.0  # seconds for a request, and for the taking of its answer
_REMEDY: Final = "state_dir must be on a local disk. Set it to a directory there."
_PASSING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)
_BREATH: Final = 0.2  # seconds before the next request, when no thread or descriptor was left for one


class InstanceRunning(UserError):
    """Another instance holds the state directory."""

    exit_code = 75


class StateDirectoryUnsafe(UserError):
    """The state directory cannot be used as it is, or another user may write there."""

    exit_code = 78


def lock(state_dir: Path) -> int:
    """Take the state directory for this process, for as long as the returned descriptor is open.

    Raises InstanceRunning (exit code 75), StateDirectoryUnsafe (78) where other users may write or the directory is not
    local, or UserError (1) where its disk is full.
    """
    require_local(state_dir)
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = state_dir.stat()
        _require_ours(state_dir, status)
        fd = os.open(state_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # 1 and not 78, because the next start may find room
            why = f"The state directory {state_dir} cannot be used now ({error.strerror})"
            raise UserError(f"{why}: make room on its disk, and start again.") from error
        raise StateDirectoryUnsafe(
            f"The state directory {state_dir} cannot be used ({error.strerror}): make it writable for the daemon's"
            " user, or set state_dir."
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise InstanceRunning(
            f"Another bridged holds {state_dir}: stop it first, or give this one another state_dir."
        ) from None
    except OSError as error:  # a network file system without locks
        os.close(fd)
        raise _unusable(state_dir, "it cannot be locked", error) from None
    try:
        _require_sockets(state_dir)
    except BaseException:
        os.close(fd)
        raise
    return fd


def require_local(state_dir: Path) -> None:
    """Raises StateDirectoryUnsafe for a state directory on a file system of another machine.

    A directory that does not exist yet would be on the file system of the one above. Nothing is written.
    """
    mount = _mount_of(state_dir)
    if mount is not None and files.is_remote(mount.fstype):
        raise StateDirectoryUnsafe(
            f"The state directory {state_dir} is on {mount.source} ({mount.fstype}), a file system of another machine,"
            f" where locks and the journal cannot be trusted: {_REMEDY}"
        )


def where(state_dir: Path) -> str:
    """A sentence for a state directory on a file system that is not known as local, as FUSE is; otherwise "".

    An error of the journal there may be the file system's.
    """
    mount = _mount_of(state_dir)
    if mount is None or files.is_local(mount.fstype):
        return ""
    return f"The state directory {state_dir} is on {mount.source} ({mount.fstype}): {_REMEDY}"


def _mount_of(state_dir: Path) -> files.Mount | None:
    """The mount of the directory, or of the nearest one above that exists. None where that cannot be told."""
    for directory in (state_dir, *state_dir.parents):
        try:
            fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        try:
            return files.mount_of(fd)
        except OSError:
            return None
        finally:
            os.close(fd)
    return None


def _unusable(state_dir: Path, why: str, error: OSError) -> StateDirectoryUnsafe:
    place = where(state_dir) or f"The state directory {state_dir} cannot be used: {_REMEDY}"
    return StateDirectoryUnsafe(f"{place} What fails there: {why} ({error.strerror}).")


def _require_sockets(state_dir: Path) -> None:
    """Make a socket and remove it, because some file systems know none. The caller holds the lock."""
    try:
        with suppress(FileNotFoundError):
            (state_dir / SOCKET).unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            with _short_path(state_dir) as path:
                probe.bind(path)
            (state_dir / SOCKET).unlink()
    except OSError as error:
        if error.errno in _PASSING:
            raise UserError(f"The state directory {state_dir} cannot be used now ({error.strerror}).") from error
        raise _unusable(state_dir, "no socket can be made", error) from error


def _require_ours(state_dir: Path, status: os.stat_result) -> None:
    if status.st_uid not in (os.geteuid(), 0):
        raise StateDirectoryUnsafe(f"{state_dir} belongs to another user: chown it to the daemon's user.")
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise StateDirectoryUnsafe(f"Others can write to {state_dir}: run `chmod 0700 {state_dir}`.")


@contextmanager
def _short_path(state_dir: Path) -> Iterator[str]:
    """A path of the socket within the 108 bytes of unix(7), also where that of the directory is longer."""
    fd = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)


class ControlServer:
    """Answers requests of one JSON line each, in threads of its own. A request has at most 64 kB and takes at most 5 s.

    When `handle` raises, the client gets a sentence and `failed` the exception. Without `failed` the exception goes to
    threading.excepthook.
    """

    def __init__(
        self,
        state_dir: Path,
        handle: Callable[[dict[str, Any]], dict[str, Any]],
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        self._state_dir = state_dir
        self._handle = handle
        self._failed = failed
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)

    def start(self) -> None:
        """Listen. A socket that a crash left behind is replaced, because the caller holds the lock. Raises OSError."""
        with suppress(FileNotFoundError):
            (self._state_dir / SOCKET).unlink()
        with _short_path(self._state_dir) as path:
            self._socket.bind(path)
        os.chmod(self._state_dir / SOCKET, 0o600)
        self._socket.listen(8)
        self._thread.start()

    def close(self) -> None:
        """Take no further request."""
        self._closed.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with suppress(OSError):  # otherwise a disk that turned read-only would break off the stop
            (self._state_dir / SOCKET).unlink()

    def _serve(self) -> None:
        while True:
            try:
                self._accept()
            except (OSError, RuntimeError, MemoryError):
                # Only close() ends the service. Otherwise a moment with too many open files or threads would end it.
                if self._closed.wait(_BREATH):
                    return

    def _accept(self) -> None:
        channel, _ = self._socket.accept()
        try:
            threading.Thread(target=self._attend, args=(channel,), name="control-request", daemon=True).start()
        except BaseException:
            channel.close()  # without a thread there is no answer, so the client must not wait for one
            raise

    def _attend(self, channel: socket.socket) -> None:
        with channel:
            try:
                request = _parsed(_line(channel, _LONGEST, _PATIENCE))
            except OSError:
                return  # the client has gone, or is too slow
            if request is None:
                _reply(channel, json.dumps(_not_understood()))
                return
            try:
                answer = json.dumps(self._handle(request))
            except Exception as error:
                what = type(error).__name__
                sentence = f"The daemon could not do that, by a mistake of its own ({what}): see its log."
                _reply(channel, json.dumps({"ok": False, "error": sentence}))
                if self._failed is None:
                    raise
                self._failed(error)
                return
            _reply(channel, answer)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The request; None when it is too long or no JSON object."""
    try:
        request = json.loads(line) if len(line) <= _LONGEST else None
    except (ValueError, RecursionError):
        return None
    return request if isinstance(request, dict) else None


def _reply(channel: socket.socket, answer: str) -> None:
    channel.settimeout(_PATIENCE)
    with suppress(OSError):  # the client has gone
        channel.sendall(answer.encode() + b"\n")


def _not_understood() -> dict[str, Any]:
    return {"ok": False, "error": "A request is one JSON object on one line, of at most 64 kB."}


def ask(state_dir: Path, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
    """The answer of the running daemon; None when no daemon runs there. `timeout` is in seconds.

    Raises UserError when the daemon cannot be reached, or does not answer in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(timeout)
        try:
            with _short_path(state_dir) as path:
                channel.connect(path)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return None
        except PermissionError:
            raise UserError(f"You may not speak to the daemon of {state_dir}: run this as root or its user.") from None
        except OSError as error:
            why = error.strerror or "it takes no request"
            raise UserError(f"The daemon of {state_dir} cannot be reached ({why}): see its log.") from None
        try:
            channel.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(_line(channel, _LONGEST * 16, timeout))
        except (OSError, ValueError):
            raise UserError("The daemon did not answer in time: see its log.") from None
        return answer if isinstance(answer, dict) else None


def _line(channel: socket.socket, longest: int, seconds: float) -> bytes:
    """The bytes up to the end of a line, or more than `longest` bytes. Raises TimeoutError after `seconds` in all."""
    line = b""
    deadline = time.monotonic() + seconds
    while not line.endswith(b"\n") and len(line) <= longest:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        channel.settimeout(left)
        part = channel.recv(longest + 1 - len(line))
        if not part:
            break
        line += part
    return line
