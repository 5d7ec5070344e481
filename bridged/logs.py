"""Log lines: the catalogue of events, and how a line is written (docs/logs.md)."""

from __future__ import annotations

import codecs
import json
import logging
import os
import sys
import threading
import unicodedata
from collections import Counter
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
_LISTS: Final = (list, tuple)  # a tuple, because a union of types would be made anew for each value
_NUMBERS: Final = (bool, int, float)
_ROOM: Final = 3900  # bytes of one line, because pipes and syslog relays cut longer lines in two


@dataclass(frozen=True, slots=True)
class Event:
    """The level of an event, unless a line says otherwise. The catalogue holds its stable name."""

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
    """From now on `listener` hears every line, also lines below the level. None ends it.

    `listener` is called in the thread that says the line, so it must only put the line on a queue.
    """
    global _listener  # noqa: PLW0603 - there is one log, as there is one configuration of it
    _listener = listener


def configure(form: str, level: str, stream: TextIO | None = None) -> None:
    """Write lines of `level` and above to `stream` (default: stderr). `form` is console, json, or auto.

    auto is console on a terminal, and json otherwise.
    """
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
    global _bound  # noqa: PLW0603 - made once, because a million lines may follow
    _bound = structlog.get_logger().bind()
    # Silent, because watchdog logs an overflow by itself, and bridged says `hints_lost` for it.
    logging.getLogger("watchdog").setLevel(logging.CRITICAL)


class _Writer:
    """The stream. A stream that cannot be written (full disk, closed terminal) does not stop the sending of documents.

    The next line that gets through counts the failed lines as `log_failures`.
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
    """Write one line. Raises KeyError when `event` is no name of the catalogue, and nothing when the stream fails."""
    usual = EVENTS[event].level
    level = level or usual
    if not fields.get("exc_info", True):
        del fields["exc_info"]
    _let_hear(event, fields | {"level": level})
    getattr(_bound, level)(event, level=level, **fields)


def _let_hear(event: str, fields: Mapping[str, Any]) -> None:
    """Call the listener. Its exception is logged and not raised, because it is no trouble of the caller."""
    try:
        if _listener is not None:
            _listener(event, fields)
    except Exception as error:  # noqa: BLE001 - told, but not to the listener again
        what = {"half": "alerts", "reason": f"{type(error).__name__}: {error}"}
        _bound.error("state_failed", level="error", **what)


def say_document(event: str, document: Document, **fields: Any) -> None:
    """Write one line about a document, with its client, its path below the GED, and its id."""
    name = readable(document.relative)
    say(event, **({"client": document.client, "document": name, "id": document.id} | fields))


class Unread:
    """The errors that one document has met at its reading. Each error is told once, however often it comes."""

    def __init__(self) -> None:
        self._met: Counter[int | None] = Counter()

    def is_news(self, error: OSError) -> bool:
        """Note an error. True when it is to be told now.

        A lack of permission is told at once. Each other error is told when it comes again, because a share that goes
        away fails once, and is told by itself.
        """
        self._met[error.errno] += 1
        return self._met[error.errno] == (1 if isinstance(error, PermissionError) else 2)

    def times(self, error: OSError) -> int:
        """How often this error has come."""
        return self._met[error.errno]


def say_unreadable(document: Document, error: OSError) -> None:
    """Write one line about a document that waits, because bridged cannot read it."""
    why = f"it cannot be read: {error.strerror}; tried again, and sent once it can be read"
    if isinstance(error, PermissionError):
        why = f"permission denied: bridged may not read it ({error.strerror}); it is sent once it may"
    say_document("document_deferred", document, reason=why)


class Trouble:
    """Tells the exception of a part of the daemon as `state_failed`: once, until the part works again."""

    def __init__(self, half: str) -> None:
        self._half = half
        self._told = ""

    def guarded(self, step: Callable[[], T]) -> T | None:
        """The result of `step`; None when it raised, which is told."""
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
            known = isinstance(error, OSError | UserError)
            say("state_failed", half=self._half, reason=what, exc_info=not known)


def _timestamp(_logger: Any, _method: str, fields: Fields) -> Fields:
    now = datetime.now(UTC)  # noqa: TID251 - the time of the line, which decides nothing
    fields["timestamp"] = now.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
    return fields


def _clean(_logger: Any, _method: str, fields: Fields) -> Fields:
    """Shorten each value, and replace its control characters. Otherwise a file name could forge a line."""
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
    """The text with printable characters alone. The spaces of French names (U+00A0, U+202F) stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else "\ufffd" for c in text)


def _fit(_logger: Any, _method: str, fields: Fields) -> Fields:
    """Keep a line below 4 kB: long lists end with the number of entries left out, then long texts are cut."""
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
    """True when the line fits even with six bytes a character. First, because most lines are short."""
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
    # The plain traceback, because structlog's own shows the values of variables: the password.
    return structlog.dev.ConsoleRenderer(
        colors=out.isatty(),
        pad_event_to=22,
        sort_keys=False,
        exception_formatter=structlog.dev.plain_traceback,
    )


def _json(out: TextIO) -> Processor:
    """A line of JSON, with `<N>` in front for the journal of systemd (sd-daemon(3)), which takes it as the priority."""
    # ASCII alone where the stream is not UTF-8, because stderr would write `\xe9`, which is no JSON.
    ascii_only = codecs.lookup(getattr(out, "encoding", None) or "utf-8").name != "utf-8"
    encode = json.JSONEncoder(ensure_ascii=ascii_only).encode  # made once, because json.dumps makes one a line
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
