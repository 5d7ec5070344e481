"""What the commands say of the folders and the journal. Read-only: a look changes nothing."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridged import files
from bridged.admit import ignored_directory, verdict
from bridged.config import Client, Settings
from bridged.folders import Place, SwitchedFolders, components
from bridged.journal import Journal, Transaction
from bridged.known import KnownFile, split
from bridged.mark import Marker, utc
from bridged.model import Document, State, readable
from bridged.sweep import Listing, Sweep, Unreadable

WATCH_LIMIT: Final = Path("/proc/sys/fs/inotify/max_user_watches")
MARKER_AT_MOST: Final = 65_536
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


# -- check


@dataclass(slots=True)
class Survey:
    """What is there for a configuration. `warnings` are sentences; none of them stops the daemon."""

    folders: list[dict[str, Any]] = field(default_factory=list)
    watches_needed: int = 0
    watches_available: int | None = None
    warnings: list[str] = field(default_factory=list)


def survey(settings: Settings, now: float) -> Survey:
    """Look at every GED and switched folder. Needs no secret, writes nothing, and trusts no link."""
    result = Survey(watches_available=_watch_limit())
    switched = SwitchedFolders(settings.clients, settings.ignore)
    for client in settings.clients:
        _survey_ged(result, settings, switched, client, now)
    if result.watches_available is not None and result.watches_needed > result.watches_available:
        result.warnings.append(
            f"{result.watches_needed} inotify watches are needed and {result.watches_available} may be had:"
            " what has none is found by the sweep. Raise fs.inotify.max_user_watches with sysctl."
        )
    return result


def _watch_limit() -> int | None:
    try:
        return int(WATCH_LIMIT.read_text(encoding="ascii"))
    except OSError:  # systemd's ProcSubset=pid hides it
        return None


def _survey_ged(result: Survey, settings: Settings, switched: SwitchedFolders, client: Client, now: float) -> None:
    rows: dict[str, dict[str, Any]] = {
        folder.path: {
            "client": client.name,
            "folder": folder.path,
            "collection_email": folder.collection_email or client.collection_email,
            "ged": readable(os.fsencode(client.ged)),
            "reachable": False,
            "file_system": None,
            "watch_mode": None,
            "directories": 0,
            "files": 0,
            "markers": None,
        }
        for folder in client.switched_folders
    }
    result.folders += rows.values()
    try:
        with files.root(os.fsencode(client.ged)) as root_fd:
            fstype = files.mount_of(root_fd).fstype
            mode = settings.watch.mode
            polls = mode == "polling" or (mode == "auto" and not files.is_local(fstype))
            here: dict[str, Any] = {
                "reachable": True,
                "file_system": fstype,
                "watch_mode": "polling" if polls else "inotify",
            }
            for row in rows.values():
                row.update(here)
            watched = _count(result, rows, settings, switched, client, root_fd, now)
            result.watches_needed += 0 if polls else len(watched)
    except OSError as error:
        why = "it is a link" if error.errno in {errno.ELOOP, errno.ENOTDIR} else error.strerror
        ged = readable(os.fsencode(client.ged))
        result.warnings.append(f"The GED {ged} of {client.name} cannot be opened ({why}): nothing of it is sent.")
        return
    result.warnings += [_missing(row) for row in rows.values() if not row["directories"]]


def _missing(row: Row) -> str:
    return (
        f"The switched folder {row['folder']} of {row['client']} does not exist in {row['ged']}, or cannot be"
        " read. If it appears while the daemon runs, its content is new and is sent."
    )


def _count(
    result: Survey,
    rows: dict[str, dict[str, Any]],
    settings: Settings,
    switched: SwitchedFolders,
    client: Client,
    root_fd: int,
    now: float,
) -> set[bytes]:
    """Count what is in a GED's switched folders; returns the directories that want a watch."""
    watched: set[bytes] = set()
    seen: set[bytes] = set()
    ged = os.fsencode(client.ged)
    sweep = Sweep(ged, lambda directory: switched.place(directory) is not None, watched.add)
    patterns = [components(folder.path) for folder in client.switched_folders]
    for found in sweep.whole(root_fd, patterns, now, full=True):
        place = switched.place(found.directory)
        if place is None or found.directory in seen:  # a folder within another switched folder comes up twice
            continue
        seen.add(found.directory)
        relative = found.directory[len(ged) + 1 :]
        if isinstance(found, Unreadable):
            where = readable(found.directory)
            result.warnings.append(f"{where} cannot be read ({found.why}): nothing of it is sent.")
        elif isinstance(found, Listing):
            row = rows[place.folder.path]
            row["directories"] += 1
            row["files"] += sum(e.kind == "file" and not ignored(settings, e.name) for e in found.entries)
            writable = os.access(relative or b".", os.W_OK | os.X_OK, dir_fd=root_fd, effective_ids=True)
            row["markers"] = writable and row["markers"] is not False
            if not writable:
                where = readable(found.directory)
                result.warnings.append(f"Markers cannot be written in {where}: this user may not write there.")
    return watched


def ignored(settings: Settings, path: bytes) -> str | None:
    """None for a document's name; else why a file of that name is ignored."""
    name = split(path)[1]
    return verdict(name, extra=settings.ignore, marker=settings.marker.suffix, hidden=settings.marker.hidden)


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
                    "since": _date(since.get(key)),
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


def _date(epoch: float | None) -> str | None:
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
        "deposited_at": _date(document.deposited_at),
        "validated_at": _date(document.validated_at),
        "relay_reply": document.relay_reply,
    }


# -- explain

_NAMES: Final = {
    "hidden": "its name is that of a hidden file",
    "temporary": "its name is that of a temporary file",
    "system": "its name is one that the system uses for itself",
    "ignored by configuration": "`ignore` in the configuration names it",
}


def locate(settings: Settings, path: bytes) -> bytes:
    """A path as bridged knows it: absolute, links on the way resolved, but not one at its end.

    A GED that is itself configured through a link keeps its configured name.
    """
    parent, name = os.path.split(path.rstrip(b"/") or b"/")
    whole = name in {b"", b".", b".."}
    real = os.path.realpath(path) if whole else os.path.join(os.path.realpath(parent or b"."), name)
    for client in settings.clients:
        ged = os.fsencode(client.ged)
        root = os.path.realpath(ged)
        if real == root or real.startswith(root + b"/"):
            return ged + real[len(root) :]
    return real


class Explainer:
    """Says why a file was or was not sent."""

    def __init__(self, settings: Settings, journal: Journal | None, *, running: bool) -> None:
        """`running`: whether the daemon runs. What becomes of a file it has not seen depends on it."""
        self._settings = settings
        self._journal = journal
        self._running = running
        self._switched = SwitchedFolders(settings.clients, settings.ignore)

    def sentence(self, path: bytes) -> str:
        """One sentence about a path that `locate` returned."""
        ged = self._switched.ged_of(path)
        name = readable(path if ged is None else path[len(ged) + 1 :] or path)
        return clean(f"“{name}” {self._why(path, ged)}.")

    def _why(self, path: bytes, ged: bytes | None) -> str:
        if ged is None:
            outside = "is in no client's GED, so bridged has nothing to do with it"
            return outside if os.path.lexists(path) else "does not exist"
        known, document = self._recorded(path)
        kind, status = _look(ged, path)
        if document is not None:
            return _story(document, status, self._settings, self._last_attempt(document))
        if kind == "missing":
            return "does not exist, and the journal knows of no document there"
        place = self._switched.place(split(path)[0])
        if kind == "directory":
            return self._directory(path)
        if place is None:
            return self._off(path, ged)
        why = ignored(self._settings, path)
        if why is not None:
            return _ignored(ged, path, why)
        if kind.startswith("other:"):
            what = kind.removeprefix("other:")
            return f"is a {what}: it is never followed or opened, and only regular files are sent"
        if known is not None:
            return self._existing(place)
        return kind if status is None else self._unseen(place)

    def _recorded(self, path: bytes) -> tuple[KnownFile | None, Document | None]:
        return (None, None) if self._journal is None else self._journal.read(lambda tx: _recorded(tx, path))

    def _last_attempt(self, document: Document) -> float | None:
        tried = [] if self._journal is None else self._journal.read(lambda tx: tx.attempts(document.seq))
        return max((at for at, _, _ in tried), default=None)

    def _since(self, place: Place) -> float | None:
        folders = {} if self._journal is None else self._journal.read(lambda tx: tx.folders())
        return folders.get((place.ged, place.folder.path))

    def _directory(self, path: bytes) -> str:
        place = self._switched.place(path)
        if place is None:
            return "is a directory where the bridge is off"
        return (
            f"is a directory in the switched folder “{place.folder.path}” of {place.client.name}, switched on"
            f" {_on(self._since(place))}; ask about a file in it"
        )

    def _off(self, path: bytes, ged: bytes) -> str:
        directory = split(path)[0]
        plain = [_without_excludes(client) for client in self._settings.clients]
        place = SwitchedFolders(plain, self._settings.ignore).place(directory)
        if place is not None:
            return f"is not sent: `exclude` of the switched folder “{place.folder.path}” leaves it out"
        for part in directory[len(ged) :].split(b"/"):
            why = ignored_directory(part, self._settings.ignore) if part else None
            if why is not None:
                return f"is not sent: it lies below “{readable(part)}”, where nothing is a document ({why})"
        client = self._switched.client_of(path)
        assert client is not None
        return f"is in the GED of {client.name}, but in none of its switched folders, so it is not sent"

    def _existing(self, place: Place) -> str:
        return (
            f"is existing: it was there when its folder “{place.folder.path}” was switched on"
            f" ({_on(self._since(place))}) or came into view again, so it is not sent;"
            " `bridged send` forwards it on purpose"
        )

    def _unseen(self, place: Place) -> str:
        since = self._since(place)
        folder, watch = place.folder.path, self._settings.watch
        if since is None:
            return (
                f"is not known yet: the daemon has not had the folder “{folder}” in force, and what is there"
                " when it first has counts as existing and is not sent"
            )
        if self._running:
            within = max(watch.sweep, watch.poll)
            return (
                f"is a deposit that the daemon has not seen yet: its folder is switched on {_on(since)},"
                f" and a sweep finds it within about {within:g} s"
            )
        catch_up = self._settings.catch_up
        then = "sent, since `catch_up` is true" if catch_up else "recorded as missed and not sent"
        return (
            f"was deposited while the daemon was stopped, in a folder that is switched on {_on(since)}:"
            f" when it starts, the file is {then}"
        )


def _recorded(tx: Transaction, path: bytes) -> tuple[KnownFile | None, Document | None]:
    """What the journal has at a path. What is known of it says which of several documents it is, if any."""
    known = tx.known(path)
    if known is not None and known.document is not None:
        return known, tx.document(known.document)
    last = max(tx.documents("path = ?", (path,)), key=lambda document: document.seq, default=None)
    copy = last is not None and last.state is State.WITHDRAWN and "marker" in last.reason
    return known, last if known is None or copy else None


def _look(ged: bytes, path: bytes) -> tuple[str, os.stat_result | None]:
    """The kind of what is at a path, "missing", or a sentence's end that says why it cannot be told."""
    try:
        with files.root(ged) as root_fd:
            status = files.lstat(root_fd, path[len(ged) + 1 :])
            return files.kind_of(status.st_mode), status
    except FileNotFoundError:
        if os.path.isdir(ged):
            return "missing", None
        return (
            f"cannot be looked at: its GED {readable(ged)} is away, and nothing is concluded from that",
            None,
        )
    except OSError as error:
        return f"cannot be looked at ({error.strerror}), so the daemon waits until it can be", None


def _ignored(ged: bytes, path: bytes, why: str) -> str:
    if why != "marker":
        return f"is ignored: {_NAMES.get(why, why)}"
    marker = _marker(ged, path)
    if marker is None:
        return "is ignored: its name is that of a marker, and markers are never sent"
    return f"is the marker of “{marker.document}”, validated on {marker.validated_at}; markers are never sent"


def _marker(ged: bytes, path: bytes) -> Marker | None:
    try:
        with files.root(ged) as root_fd, files.open_document(root_fd, path[len(ged) + 1 :]) as file:
            return Marker.from_json(file.read(MARKER_AT_MOST))
    except OSError:  # its name alone is enough to answer
        return None


def _without_excludes(client: Client) -> Client:
    folders = tuple(folder.model_copy(update={"exclude": ()}) for folder in client.switched_folders)
    return client.model_copy(update={"switched_folders": folders})


def _on(epoch: float | None) -> str:
    return "at a date that is not on record" if epoch is None else f"since {utc(epoch)}"


def _story(document: Document, status: os.stat_result | None, settings: Settings, tried: float | None) -> str:
    deposited = f"was deposited on {utc(document.deposited_at)}"
    queued = f"{deposited}, queued on {_date(document.queued_at) or 'a date that is not on record'}"
    address, reason = document.collection_email, document.reason.rstrip(".")
    if document.state is State.WAITING:
        why = reason or f"it must be unchanged for {settings.watch.quiet:g} s, whole and readable"
        return f"{deposited} and waits to be quiet before it is sent: {why}"
    if document.state is State.QUEUED:
        last = f" ({reason})" if reason else ""
        if tried is not None:
            last = f"; the last answer, on {utc(tried)}, was: {reason}"
        due = f"; not tried again before {utc(document.due_at)}" if document.due_at else ""
        return f"{queued} and waits to be sent to {address}{last}{due}"
    if document.state is State.SENDING:
        return f"{queued} and is being sent to {address} at this moment"
    if document.state is State.SENT:
        accepted = f"accepted by the relay on {_date(document.sent_at)} ({document.relay_reply})"
        return f"was sent to {address}: {accepted}; its marker is still to be written"
    if document.state is State.VALIDATED:
        return _validated(document, status)
    if document.state is State.HELD:
        remedy = f"`bridged release {document.id}` puts it back in the queue"
        since = "" if tried is None else f" since {utc(tried)}"
        return f"{queued} and is held{since}: {reason}; {remedy}"
    if document.state is State.MISSED:
        found = f"found at the start on {utc(document.deposited_at)}"
        return f"was deposited while the daemon was stopped, {found}, and not sent; `bridged send` forwards it"
    withdrawn = "its folder was switched off" if reason == "switched_off" else reason
    return f"{deposited} and withdrawn, so it was not sent: {withdrawn}"


def _validated(document: Document, status: os.stat_result | None) -> str:
    validated = f"validated on {_date(document.validated_at)}"
    changed = status is not None and not files.stamp_of(status).same_content(document.stamp)
    after = "; it has been overwritten since, and is not sent again" if changed else ""
    if document.sent_at is None:
        return f"counts as sent: it was {validated}, because {document.reason}{after}"
    sent = f"was sent to {document.collection_email} on {utc(document.sent_at)} and {validated}"
    return f"{sent}; the relay said: {document.relay_reply}{after}"
