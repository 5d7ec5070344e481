"""What the commands say of the folders and the journal. Read-only: a look changes nothing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridged.config import SwitchedFolders
from bridged.config.settings import Settings, Smtp
from bridged.journal import Journal
from bridged.model import Document, State, readable, utc
from bridged.paths import split

_WIDE: Final = 1000  # columns where the output is no terminal: nothing is cut off, so that it can be searched

Row = Mapping[str, Any]


def clean(text: str) -> str:
    """One line without control characters: neither a file's name nor a relay may rearrange a terminal."""
    return readable(text.encode("utf-8", "replace"))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return clean(str(value))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def lines(rows: Iterable[Row]) -> None:
    """Print one JSON object a line."""
    for row in rows:
        print(json.dumps({key: _plain(value) for key, value in row.items()}, ensure_ascii=False))


def table(rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Print some columns as a table; nothing when there are no rows."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        grid.add_column(Text(column.replace("_", " ")), overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_cell(row[column])) for column in columns))
    if grid.row_count:
        Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDE).print(grid)


def relay(smtp: Smtp) -> dict[str, Any]:
    """What a preset and the keys that override it have come to; a limit that is not set is none."""
    rate = "none" if smtp.rate is None else f"{smtp.rate.count} in {smtp.rate.seconds:g} s"
    return {
        "relay": f"{smtp.host}:{smtp.port}",
        "security": smtp.security,
        "connections": smtp.connections,
        "rate": rate,
        "daily_quota": smtp.daily_quota or "none",
        "size_limit": smtp.size_limit or "none",
    }


# -- status and documents

STATES: Final = ("existing", "waiting", "queued", "validated", "held", "withdrawn", "missed")
_COLUMN_OF: Final = {state: "queued" if state in {"sending", "sent"} else str(state) for state in State}


def status(settings: Settings, journal: Journal | None, daemon: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A row for each switched folder. Without a journal the counts are 0; without a daemon nobody watches."""
    switched = SwitchedFolders(settings.clients, settings.ignore)
    counts, since = _counts(journal, switched)
    watched = {(row["ged"], row["folder"]): row for row in (daemon or {}).get("folders", [])}
    rows = []
    for client in settings.clients:
        for folder in client.switched_folders:
            key = (os.fsencode(client.ged), folder.path)
            seen = watched.get((readable(key[0]), folder.path), {})
            rows.append(
                {
                    "client": client.name,
                    "folder": folder.path,
                    "collection_email": folder.collection_email or client.collection_email,
                    "since": date(since.get(key)),
                    "watch_mode": seen.get("watch_mode"),
                    "reachable": seen.get("reachable"),
                    **dict.fromkeys(STATES, 0),
                    **counts.get(key, {}),
                }
            )
    return rows


def _counts(
    journal: Journal | None, switched: SwitchedFolders
) -> tuple[dict[tuple[bytes, str], dict[str, int]], dict[tuple[bytes, str], float]]:
    counts: dict[tuple[bytes, str], dict[str, int]] = {}
    if journal is None:
        return counts, {}

    def add(directory: bytes, column: str, number: int) -> None:
        place = switched.place(directory)
        if place is not None:
            of = counts.setdefault((place.ged, place.folder.path), {})
            of[column] = of.get(column, 0) + number

    for path, state, number in journal.read(lambda tx: tx.counts()):
        add(split(path)[0], _COLUMN_OF[State(state)], number)
    for directory, number in journal.read(lambda tx: tx.existing_counts()):
        add(directory, "existing", number)
    return counts, journal.read(lambda tx: tx.folders())


def date(epoch: float | None) -> str | None:
    """A moment as it is told; None for one that is not on record."""
    return None if epoch is None else utc(epoch)


def documents(journal: Journal, client: str | None, state: str | None) -> list[dict[str, Any]]:
    """The journal's documents, in the order of their deposit."""
    wanted = {name: value for name, value in (("client", client), ("state", state)) if value is not None}
    where = " AND ".join(f"{name} = ?" for name in wanted) or "1"
    return journal.read(lambda tx: [_row(document) for document in tx.documents(where, tuple(wanted.values()))])


def _row(document: Document) -> dict[str, Any]:
    return {
        "id": document.id,
        "client": document.client,
        "document": readable(document.relative),
        "state": document.state.value,
        "reason": document.reason,
        "sha256": document.sha256,
        "size": document.stamp.size,
        "collection_email": document.collection_email,
        "message_id": document.message_id,
        "attempts": document.attempts,
        "deposited_at": date(document.deposited_at),
        "validated_at": date(document.validated_at),
        "relay_reply": document.relay_reply,
    }
