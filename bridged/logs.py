"""Log lines: the catalogue of events and how they are written (see docs/logs.md)."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import structlog

from bridged.model import Document, readable

Fields = MutableMapping[str, Any]

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_FIRST: Final = ("timestamp", "level", "event", "client", "document", "id")
_LONGEST: Final = 600  # characters of one value, so that an event stays below 4 kB
_MOST: Final = 4  # entries of one list


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


def configure(form: str, level: str, stream: TextIO | None = None) -> None:
    """Write to `stream` (stderr) as `form` says: console, json, or auto (console on a terminal)."""
    out = stream or sys.stderr
    console = form == "console" or (form == "auto" and out.isatty())
    renderer = _console(out) if console else structlog.processors.JSONRenderer(ensure_ascii=False)
    processors: list[Any] = [_timestamp, _clean, _ordered, structlog.processors.format_exc_info, renderer]
    if not console and _is_journal(out):
        processors = [_remember_level, *processors, _priority]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    # watchdog reports an overflow on its own logger; the watcher says `hints_lost` for it.
    logging.getLogger("watchdog").setLevel(logging.CRITICAL)


def say(event: str, *, level: str = "", **fields: Any) -> None:
    """One line. `event` is a name of the catalogue: another one is a mistake and raises KeyError."""
    level = level or EVENTS[event].level
    if not fields.get("exc_info", True):
        del fields["exc_info"]
    structlog.get_logger().bind(level=level, **fields).log(_LEVELS[level], event)


def say_document(event: str, document: Document, **fields: Any) -> None:
    """One line about a document."""
    name = readable(document.relative)
    say(event, **({"client": document.client, "document": name, "id": document.id} | fields))


def _timestamp(_logger: Any, _method: str, fields: Fields) -> Fields:
    now = datetime.now(UTC)  # noqa: TID251 - a line's own time; nothing is decided by it
    fields["timestamp"] = now.strftime("%Y-%m-%dT%H:%M:%S.") + f"{now.microsecond // 1000:03d}Z"
    return fields


def _clean(_logger: Any, _method: str, fields: Fields) -> Fields:
    """No control characters, so that a name cannot forge a line; nothing long."""
    for key, value in fields.items():
        if isinstance(value, str):
            fields[key] = _short(value)
        elif isinstance(value, list | tuple):
            fields[key] = [_short(str(item)) for item in value[:_MOST]]
    return fields


def _short(text: str) -> str:
    line = "".join(c if c.isprintable() else "\ufffd" for c in text.replace("\n", "; "))
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _ordered(_logger: Any, _method: str, fields: Fields) -> Fields:
    first = {key: fields[key] for key in _FIRST if key in fields}
    return first | {key: value for key, value in fields.items() if key not in first}


def _console(out: TextIO) -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(colors=out.isatty(), pad_event_to=22, sort_keys=False)


def _remember_level(logger: Any, _method: str, fields: Fields) -> Fields:
    logger.bridged_priority = _PRIORITIES[fields["level"]]
    return fields


def _priority(logger: Any, _method: str, line: str) -> str:
    """sd-daemon(3): `<N>` in front makes `journalctl -p err` work."""
    return f"<{logger.bridged_priority}>{line}"


def _is_journal(out: TextIO) -> bool:
    try:
        status = os.fstat(out.fileno())
    except (OSError, ValueError):  # a stream in memory has no descriptor
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
