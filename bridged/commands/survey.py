"""The survey of `bridged check`: the switched folders as they are, and every hindrance. Read-only."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bridged.config import SwitchedFolders, collector, components
from bridged.config.collectors import fits
from bridged.config.settings import Client, Settings
from bridged.ged import files
from bridged.intake import Listing, Sweep, Unreadable
from bridged.model import readable

WATCH_LIMIT: Final = Path("/proc/sys/fs/inotify/max_user_watches")


@dataclass(slots=True)
class Survey:
    """The folders of a configuration. `warnings` are sentences; none of them stops the daemon."""

    folders: list[dict[str, Any]] = field(default_factory=list)
    watches_needed: int = 0
    watches_available: int | None = None
    warnings: list[str] = field(default_factory=list)


def survey(settings: Settings, now: float) -> Survey:
    """Look at every GED and switched folder. Needs no secret, writes nothing, and follows no link.

    `now` is seconds since the epoch.
    """
    result = Survey(watches_available=_watch_limit())
    switched = SwitchedFolders(settings.clients, settings.ignore)
    if settings.alerts is not None and settings.alerts.smtp is None:
        result.warnings.append(
            "alerts has no relay of its own: that the account of smtp is refused can only be told when it is over."
            " Set alerts.smtp to another account, best at another provider."
        )
    for client in settings.clients:
        result.warnings += _addresses_that_do_not_fit(client)
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


def _addresses_that_do_not_fit(client: Client) -> Iterator[str]:
    for folder in client.switched_folders:
        profile = collector(folder.collector or client.collector)
        address = folder.collection_email or client.collection_email
        if not fits(profile, address):
            yield (
                f"{address}, where {folder.path} of {client.name} goes, is no address as {profile.name} gives them out"
                f" ({', '.join(profile.domains)}). Correct collection_email, or collector."
            )


def _missing(row: Mapping[str, Any]) -> str:
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
    """Count the files in the switched folders of a GED. Returns the directories that need a watch."""
    watched: set[bytes] = set()
    seen: set[bytes] = set()
    ged = os.fsencode(client.ged)
    sweep = Sweep(ged, lambda directory: switched.place(directory) is not None, watched.add)
    patterns = [components(folder.path, settings.ignore) for folder in client.switched_folders]
    for found in sweep.whole(root_fd, patterns, now, full=True):
        if found is None:
            continue
        place = switched.place(found.directory)
        if place is None or found.directory in seen:  # a switched folder within another one is read twice
            continue
        seen.add(found.directory)
        relative = found.directory[len(ged) + 1 :]
        if isinstance(found, Unreadable):
            where = readable(found.directory)
            result.warnings.append(f"{where} cannot be read ({found.why}): nothing of it is sent.")
        elif isinstance(found, Listing):
            row = rows[place.folder.path]
            row["directories"] += 1
            row["files"] += sum(e.kind == "file" and not settings.ignored(e.name) for e in found.entries)
            writable = os.access(relative or b".", os.W_OK | os.X_OK, dir_fd=root_fd, effective_ids=True)
            row["markers"] = writable and row["markers"] is not False
            if not writable:
                where = readable(found.directory)
                result.warnings.append(f"Markers cannot be written in {where}: this user may not write there.")
    return watched
