"""Log lines: the catalogue of events and how they are written (see docs/logs.md)."""

from __future__ import annotations

import codecs
import json
import logging
import os
import sqlite3
import sys
import threading
import unicodedata
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TextIO, TypeVar

import structlog

from bridged.model import Document, UserError, readable

T = TypeVar("T")
Fields = MutableMapping[str, Any]
Processor = Callable[[Any, str, Fields], Any]

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_FIRST: Final = ("timestamp", "level", "event", "client", "document", "id")
_LONGEST: Final = 600  # characters of one value
_LISTS: Final = (list, tuple)  # unions of types would be made anew for each value of each line
_NUMBERS: Final = (bool, int, float)
_ROOM: Final = 3900  # bytes of one line: longer ones are cut in two by pipes and syslog relays, mid-JSON


@dataclass(frozen=True, slots=True)
class Event:
    """A stable name, and the level it has unless a line says otherwise."""

    level: str


EVENTS: Final[dict[str, Event]] = {
    "daemon_started": Event("info"),
    "daemon_ready": Event("info"),
    "daemon_stopping": Event("info"),
    "daemon_stopped": Event("info"),
    "config_reloaded": Event("info"),
    "config_rejected": Event("error"),
    "folder_switched_on": Event("info"),
    "folder_switched_off": Event("info"),
    "folder_unreachable": Event("warning"),
    "folder_recovered": Event("info"),
    "folder_rebaselined": Event("warning"),
    "document_ignored": Event("warning"),
    "document_missed": Event("warning"),
    "document_queued": Event("info"),
    "document_sent": Event("info"),
    "document_validated": Event("info"),
    "document_deferred": Event("warning"),
    "document_held": Event("error"),
    "document_withdrawn": Event("warning"),
    "document_released": Event("info"),
    "document_changed": Event("warning"),
    "document_resumed": Event("info"),
    "relay_unreachable": Event("warning"),
    "relay_recovered": Event("info"),
    "relay_misconfigured": Event("error"),
    "relay_throttled": Event("warning"),
    "hints_lost": Event("warning"),
    "watch_limit_reached": Event("error"),
    "observer_restarted": Event("warning"),
    "marker_failed": Event("error"),
    "state_failed": Event("error"),
}


_listener: Callable[[str, Mapping[str, Any]], None] | None = None
_bound: Any = structlog.get_logger()


def listen(listener: Callable[[str, Mapping[str, Any]], None] | None) -> None:
    """From now on `listener` (or nobody) hears every line, also those that the level keeps from being written.

    It is called in the thread that has something to say: it must do no more than put it on a queue.
    """
    global _listener  # noqa: PLW0603 - there is one log, as there is one configuration of it
    _listener = listener


def configure(form: str, level: str, stream: TextIO | None = None) -> None:
    """Write to `stream` (stderr) as `form` says: console, json, or auto (console on a terminal)."""
    out = stream or sys.stderr
    console = form == "console" or (form == "auto" and out.isatty())
    renderer: Processor = _console(out) if console else _json(out)
    writer = _Writer(out)
    structlog.configure(
        processors=[_timestamp, writer.confess, structlog.processors.format_exc_info, _clean, _ordered, _fit, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    global _bound  # noqa: PLW0603 - made once, and not for each of a million lines
    _bound = structlog.get_logger().bind()
    # watchdog reports an overflow on its own logger; the watcher says `hints_lost` for it.
    logging.getLogger("watchdog").setLevel(logging.CRITICAL)


class _Writer:
    """The stream. One that cannot be written (full disk, closed terminal) must not stop the sending of documents.

    A line that failed is not silent: the next one that gets through tells their number as `log_failures`.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._failures = 0

    def msg(self, line: str) -> None:
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except OSError:
                self._failures += 1
            else:
                self._failures = 0

    debug = info = warning = error = msg

    def confess(self, _logger: Any, _method: str, fields: Fields) -> Fields:
        if self._failures:
            fields["log_failures"] = self._failures
        return fields


def say(event: str, *, level: str = "", **fields: Any) -> None:
    """One line. `event` is a name of the catalogue: another one is a mistake and raises KeyError."""
    usual = EVENTS[event].level
    level = level or usual
    if not fields.get("exc_info", True):
        del fields["exc_info"]
    _let_hear(event, fields | {"level": level})
    getattr(_bound, level)(event, level=level, **fields)


def _let_hear(event: str, fields: Mapping[str, Any]) -> None:
    """What goes wrong in the listener is not the trouble of whoever has something to say."""
    try:
        if _listener is not None:
            _listener(event, fields)
    except Exception as error:  # noqa: BLE001 - told, but not to the listener again
        what = {"half": "alerts", "reason": f"{type(error).__name__}: {error}"}
        _bound.error("state_failed", level="error", **what)


def say_document(event: str, document: Document, **fields: Any) -> None:
    """One line about a document."""
    name = readable(document.relative)
    say(event, **({"client": document.client, "document": name, "id": document.id} | fields))


def say_unreadable(document: Document, error: PermissionError) -> None:
    """One line about a document that waits because it may not be read."""
    why = f"permission denied: bridged may not read it ({error.strerror}); it is sent once it may"
    say_document("document_deferred", document, reason=why)


class Trouble:
    """What a part of the daemon raised: told as `state_failed` once, until it goes well again. No silent stall."""

    def __init__(self, half: str) -> None:
        self._half = half
        self._told = ""

    def guarded(self, step: Callable[[], T]) -> T | None:
        """The step's result, or None when it raised."""
        try:
            result = step()
        except Exception as error:  # noqa: BLE001 - told, and the others go on
            self._tell(error)
            return None
        self._told = ""
        return result

    def _tell(self, error: Exception) -> None:
        what = f"{type(error).__name__}: {error}"
        if what != self._told:
            self._told = what
            known = isinstance(error, sqlite3.Error | OSError | UserError)
            say("state_failed", half=self._half, reason=what, exc_info=not known)


def _timestamp(_logger: Any, _method: str, fields: Fields) -> Fields:
    now = datetime.now(UTC)  # noqa: TID251 - a line's own time; nothing is decided by it
    fields["timestamp"] = now.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
    return fields


def _clean(_logger: Any, _method: str, fields: Fields) -> Fields:
    """No control characters, so that a name cannot forge a line; nothing long."""
    for key, value in fields.items():
        if key == "exception":
            fields[key] = "\n".join(_printable(line) for line in str(value)[-_ROOM // 2 :].split("\n"))
        elif isinstance(value, _LISTS):
            fields[key] = [_short(_plain(item)) for item in value]
        elif value is not None and not isinstance(value, _NUMBERS):
            fields[key] = _short(_plain(value))
    return fields


def _plain(value: Any) -> str:
    return readable(value) if isinstance(value, bytes) else str(value)


def _short(text: str) -> str:
    return _cut(_printable(text[: 2 * _LONGEST].replace("\n", "; ")), _LONGEST)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _printable(text: str) -> str:
    """The spaces of French names (U+00A0, U+202F) are printable too, whatever Python says."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else "\ufffd" for c in text)


def _fit(_logger: Any, _method: str, fields: Fields) -> Fields:
    """Below 4 kB: lists end with how many entries are left out, and then the longest texts are shortened."""
    if _surely_fits(fields):
        return fields
    left_out: dict[str, int] = {}
    longest = _LONGEST
    while _size(fields) > _ROOM and longest > 1:
        key, items = max(
            ((k, v) for k, v in fields.items() if isinstance(v, list)), key=lambda pair: len(pair[1]), default=("", [])
        )
        if len(items) > 2:
            known = items[:-1] if key in left_out else items
            kept = known[: max(1, len(known) * 3 // 4)]
            left_out[key] = left_out.get(key, 0) + len(known) - len(kept)
            fields[key] = [*kept, f"… and {left_out[key]} more"]
            continue
        longest = longest * 3 // 4
        for name, value in fields.items():
            if isinstance(value, str) and name not in ("timestamp", "level", "event"):
                fields[name] = value[-longest:] if name == "exception" else _cut(value, longest)
            elif isinstance(value, list):
                fields[name] = [_cut(item, longest) for item in value]
    return fields


def _surely_fits(fields: Fields) -> bool:
    """Without writing it out: a character is at most six bytes, and most lines are short."""
    room = _ROOM
    for key, value in fields.items():
        if isinstance(value, list):
            return False
        room -= 6 * (len(key) + (len(value) if isinstance(value, str) else 20) + 1)
    return room > 0


def _size(fields: Fields) -> int:
    return len(json.dumps(fields, ensure_ascii=False).encode())


def _ordered(_logger: Any, _method: str, fields: Fields) -> Fields:
    first = {key: fields[key] for key in _FIRST if key in fields}
    return first | {key: value for key, value in fields.items() if key not in first}


def _console(out: TextIO) -> structlog.dev.ConsoleRenderer:
    # A traceback with the values of variables, which structlog prefers, would show the password.
    return structlog.dev.ConsoleRenderer(
        colors=out.isatty(),
        pad_event_to=22,
        sort_keys=False,
        exception_formatter=structlog.dev.plain_traceback,
    )


def _json(out: TextIO) -> Processor:
    """sd-daemon(3): `<N>` in front makes `journalctl -p err` work."""
    # `\xe9`, which stderr writes for what its encoding does not have, would not be JSON.
    ascii_only = codecs.lookup(getattr(out, "encoding", None) or "utf-8").name != "utf-8"
    encode = json.JSONEncoder(ensure_ascii=ascii_only).encode  # json.dumps would make one for each line
    journal = _is_journal(out)

    def render(_logger: Any, _method: str, fields: Fields) -> str:
        prefix = f"<{_PRIORITIES[fields['level']]}>" if journal else ""
        return prefix + encode(fields)

    return render


def _is_journal(out: TextIO) -> bool:
    try:
        status = os.fstat(out.fileno())
    except (OSError, ValueError):  # a stream in memory has no descriptor
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
