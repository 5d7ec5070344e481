"""The command that says in one sentence why a file was or was not sent: explain. Read-only."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bridged.commands.cli import ANSWER_WITHIN, PATH, ask, config_option, dry_run_option, main, opened
from bridged.commands.output import clean, date, say
from bridged.config import Place, SwitchedFolders, find_config, load
from bridged.config.settings import Client, Settings
from bridged.ged import files
from bridged.journal import Journal, Transaction
from bridged.journal.values import KnownFile, Query
from bridged.model import Document, State, readable, utc
from bridged.names import ignored_directory
from bridged.paths import split

if TYPE_CHECKING:
    from bridged.marker import Marker

MARKER_AT_MOST: Final = 65_536
_NAMES: Final = {
    "hidden": "its name is that of a hidden file",
    "temporary": "its name is that of a temporary file",
    "system": "its name is one that the system uses for itself",
    "ignored by configuration": "`ignore` in the configuration names it",
}


@main.command()
@config_option
@dry_run_option
@click.argument("path", type=PATH)
def explain(config: Path | None, dry: bool, path: bytes) -> None:
    """Say why a file was or was not sent."""
    settings = load(find_config(config), dry_run=dry)
    with opened(settings) as journal:
        say(explained(settings, journal, locate(settings, path), dry=dry))


def explained(settings: Settings, journal: Journal | None, path: bytes, *, dry: bool) -> str:
    """The sentence about a path that `locate` returned. Asks whether the daemon runs."""
    running = ask(settings.state_dir, "status", ANSWER_WITHIN) is not None
    return Explainer(settings, journal, running=running, dry_run=dry).sentence(path)


def locate(settings: Settings, path: bytes) -> bytes:
    """The path by which bridged knows a file: absolute, with the links on the way resolved, but not one at its end.

    A GED that is configured through a link keeps its configured name.
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
    """The journal and the configuration, asked why a file was or was not sent."""

    def __init__(self, settings: Settings, journal: Journal | None, *, running: bool, dry_run: bool = False) -> None:
        """`running` is True while the daemon runs, because a file that it has not seen is a deposit then.

        `dry_run` is True when settings and journal are those of a dry run, because its mails went to a Maildir.
        """
        self._settings = settings
        self._journal = journal
        self._running = running
        self._dry_run = dry_run
        self._switched = SwitchedFolders(settings.clients, settings.ignore)

    def sentence(self, path: bytes) -> str:
        """One sentence about a path that `locate` returned."""
        ged = self._switched.ged_of(path)
        name, why = readable(path if ged is None else path[len(ged) + 1 :] or path), self._why(path, ged)
        if self._dry_run:  # a command in the sentence must find the journal of the dry run
            why = re.sub("`bridged (release|send)", r"`bridged \1 --dry-run", why)
        return clean(f"“{name}” {why}.")

    def _why(self, path: bytes, ged: bytes | None) -> str:
        if ged is None:
            outside = "is in no client's GED, so bridged has nothing to do with it"
            return outside if os.path.lexists(path) else "does not exist"
        known, document = self._recorded(path)
        kind, status = _look(ged, path)
        if document is not None and self._dry_run and document.sent_at is not None:
            return _written(document, status, self._settings)
        if document is not None:
            return _story(document, status, self._settings, self._last_attempt(document))
        if kind == "missing":
            return "does not exist, and the journal knows of no document there"
        place = self._switched.place(split(path)[0])
        if kind == "directory":
            return self._directory(path)
        if place is None:
            return self._off(path, ged)
        why = self._settings.ignored(split(path)[1])
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
    """The known file at a path, and its document. Of several documents at a path the known file names one."""
    known = tx.known(path)
    if known is not None and known.document is not None:
        return known, tx.document(known.document)
    last = max(tx.documents(Query(path=path)), key=lambda document: document.seq, default=None)
    copy = last is not None and last.state is State.WITHDRAWN and "marker" in last.reason
    return known, last if known is None or copy else None


def _look(ged: bytes, path: bytes) -> tuple[str, os.stat_result | None]:
    """The kind of the entry at a path, or "missing", or the end of a sentence about the failure."""
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
    from bridged.marker import Marker  # noqa: PLC0415 - it brings the log along, and no other command needs it

    try:
        with files.root(ged) as root_fd, files.open_document(root_fd, path[len(ged) + 1 :]) as file:
            return Marker.from_json(file.read(MARKER_AT_MOST))
    except OSError:  # the answer is then made of its name alone
        return None


def _without_excludes(client: Client) -> Client:
    folders = tuple(folder.model_copy(update={"exclude": ()}) for folder in client.switched_folders)
    return client.model_copy(update={"switched_folders": folders})


def _on(epoch: float | None) -> str:
    return "at a date that is not on record" if epoch is None else f"since {utc(epoch)}"


def _story(document: Document, status: os.stat_result | None, settings: Settings, tried: float | None) -> str:
    deposited = f"was deposited on {utc(document.deposited_at)}"
    queued = f"{deposited}, queued on {date(document.queued_at) or 'a date that is not on record'}"
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
        accepted = f"accepted by the relay on {date(document.sent_at)} ({document.relay_reply})"
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


def _written(document: Document, status: os.stat_result | None, settings: Settings) -> str:
    """The sentence about a document that a dry run wrote to its Maildir."""
    maildir = readable(os.fsencode(settings.state_dir / "Maildir"))
    wrote = f"a dry run wrote its mail for {document.collection_email} to {maildir} on {date(document.sent_at)}"
    return f"was not sent: {wrote}{_after(document, status)}"


def _validated(document: Document, status: os.stat_result | None) -> str:
    validated = f"validated on {date(document.validated_at)}"
    after = _after(document, status)
    if document.sent_at is None:
        return f"counts as sent: it was {validated}, because {document.reason}{after}"
    sent = f"was sent to {document.collection_email} on {utc(document.sent_at)} and {validated}"
    return f"{sent}; the relay said: {document.relay_reply}{after}"


def _after(document: Document, status: os.stat_result | None) -> str:
    changed = status is not None and not files.stamp_of(status).same_content(document.stamp)
    return "; it has been overwritten since, and is not sent again" if changed else ""
