"""The commands that look at the journal: status and documents. Read-only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from bridged.commands.cli import ANSWER_WITHIN, ask, config_option, dry_run_option, json_option, main, opened
from bridged.commands.output import date, lines, say, table
from bridged.config import SwitchedFolders, find_config, load
from bridged.config.settings import Settings
from bridged.journal import Journal
from bridged.journal.values import Query
from bridged.model import Document, State, readable, utc
from bridged.paths import split

STATES: Final = ("existing", "waiting", "queued", "validated", "held", "withdrawn", "missed")
_COLUMN_OF: Final = {state: "queued" if state in {"sending", "sent"} else str(state) for state in State}


@main.command()
@config_option
@dry_run_option
@json_option
def status(config: Path | None, dry: bool, as_json: bool) -> None:
    """Show the daemon, the relay, and every switched folder with its counts."""
    settings = load(find_config(config), dry_run=dry)
    daemon = ask(settings.state_dir, "status", ANSWER_WITHIN)
    with opened(settings) as journal:
        rows = folder_rows(settings, journal, daemon)
    if as_json:
        lines([_head(daemon), *rows])
        return
    say(_daemon_sentence(daemon))
    columns = ("client", "folder", "since", "watch_mode", "reachable", *STATES)
    table(rows, columns)


def _head(daemon: Mapping[str, Any] | None) -> dict[str, Any]:
    if daemon is None:
        return {"daemon": "stopped", "pid": None, "since": None, "relay": None, "relay_detail": None}
    relay = daemon["relay"]
    head = {"daemon": "running", "pid": daemon["pid"], "since": utc(daemon["since"])}
    return {**head, "relay": relay["state"], "relay_detail": relay["detail"]}


def _daemon_sentence(daemon: Mapping[str, Any] | None) -> str:
    if daemon is None:
        return "The daemon is stopped; what is known of the relay went with it."
    relay, since = daemon["relay"], utc(daemon["since"])
    detail = f" ({relay['detail']})" if relay["detail"] else ""
    return f"The daemon is running since {since} (pid {daemon['pid']}); the relay is {relay['state']}{detail}."


@main.command()
@config_option
@dry_run_option
@click.option("--client", metavar="N", help="Only this client's.")
@click.option("--state", type=click.Choice([state.value for state in State]), help="Only those in this state.")
@json_option
def documents(config: Path | None, dry: bool, client: str | None, state: str | None, as_json: bool) -> None:
    """List the journal's documents, in the order of their deposit."""
    settings = load(find_config(config), dry_run=dry)
    with opened(settings) as journal:
        rows = [] if journal is None else document_rows(journal, client, state)
    if as_json:
        lines(rows)
    else:
        columns = ("id", "client", "document", "state", "attempts", "deposited_at", "validated_at", "reason")
        table(rows, columns)


def folder_rows(settings: Settings, journal: Journal | None, daemon: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A row for each switched folder. Without a journal the counts are 0. Without a daemon the watch mode is None."""
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


def document_rows(journal: Journal, client: str | None, state: str | None) -> list[dict[str, Any]]:
    """The journal's documents, in the order of their deposit."""
    query = Query(client=client, states=() if state is None else (State(state),))
    return journal.read(lambda tx: [_row(document) for document in tx.documents(query)])


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
