"""The command that forwards existing or missed documents: send."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from bridged.commands.cli import PATH, config_option, dry_run_option, finish, main, writable
from bridged.commands.explain import explained, locate
from bridged.commands.output import say
from bridged.config import Place, SwitchedFolders, find_config, load
from bridged.config.settings import Settings
from bridged.ged import files
from bridged.journal import Journal, StateConflict, Transaction
from bridged.journal.values import SPECIAL
from bridged.model import Stamp, State, readable
from bridged.names import looks_like_marker
from bridged.paths import split

if TYPE_CHECKING:
    from bridged.marker import Marker


@main.command()
@config_option
@dry_run_option
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=PATH)
def send(config: Path | None, dry: bool, paths: tuple[bytes, ...]) -> None:
    """Forward existing or missed documents on purpose."""
    settings = load(find_config(config), dry_run=dry)
    done, refused = 0, []
    with writable(settings) as journal:
        for path in dict.fromkeys(locate(settings, path) for path in paths):
            try:
                place = _send(journal, settings, path, time.time())
            except (NotSendable, StateConflict) as error:
                refused.append(f"Not sent: {str(error) or explained(settings, journal, path, dry=dry)}")
                continue
            done += 1
            say(f"Queued: {readable(path[len(place.ged) + 1 :])} for {place.collection_email}.")
    finish(settings, bool(done), refused)


class NotSendable(Exception):
    """The file is neither existing nor missed. Without a text, the sentence of `explain` is told."""


def _send(journal: Journal, settings: Settings, path: bytes, now: float) -> Place:
    switched = SwitchedFolders(settings.clients, settings.ignore)
    directory, name = split(path)
    place = switched.place(directory)
    if place is None or settings.ignored(name):
        raise NotSendable
    stamp, marker = _look(settings, place, path)
    journal.write(lambda tx: _queue(tx, settings, place, path, stamp, marker, now))
    return place


def _look(settings: Settings, place: Place, path: bytes) -> tuple[Stamp, Marker | None]:
    """The stamp of the file, and the valid marker of its bytes.

    Raises NotSendable for a link, an empty file or a copy of a marker.
    """
    from bridged.intake import HEAD  # noqa: PLC0415 - as for `check`

    relative = path[len(place.ged) + 1 :]
    name = readable(relative)
    try:
        with files.root(place.ged) as root_fd:
            if not stat.S_ISREG(files.lstat(root_fd, relative).st_mode):
                raise NotSendable
            with files.open_document(root_fd, relative) as file:
                stamp, head = files.stamp_of(os.fstat(file.fileno())), file.read(HEAD)
                marker = _marker_of(settings, root_fd, relative, stamp, file)
    except FileNotFoundError as error:
        raise NotSendable from error
    except OSError as error:
        raise NotSendable(f"“{name}” cannot be read: {error.strerror}.") from error
    if stamp.size == 0:
        raise NotSendable(f"“{name}” is empty, and an empty document is never mailed.")
    if looks_like_marker(head):
        raise NotSendable(f"“{name}” is a copy of a marker, and markers are never sent.")
    return stamp, marker


def _marker_of(settings: Settings, root_fd: int, relative: bytes, stamp: Stamp, file: BinaryIO) -> Marker | None:
    """The valid marker of these very bytes; None where there is none. Raises OSError."""
    from bridged.marker import find  # noqa: PLC0415 - as for `check`

    directory, _, name = relative.rpartition(b"/")
    with files.passage(root_fd, directory) as fd:
        marker = find(fd, name, settings.marker.suffix, settings.marker.hidden)
    valid = marker is not None and marker.size == stamp.size and marker.sha256 == files.sha256(file)
    return marker if valid else None


def _require_unmarked(place: Place, path: bytes, marker: Marker | None) -> None:
    """Raises NotSendable for a file whose marker says that these bytes were sent, although the journal does not."""
    if marker is not None:
        name, to, at = readable(path[len(place.ged) + 1 :]), marker.collection_email, marker.validated_at
        raise NotSendable(f"“{name}” has a valid marker beside it: it was sent to {to}, and validated at {at}.")


def _queue(
    tx: Transaction, settings: Settings, place: Place, path: bytes, stamp: Stamp, marker: Marker | None, now: float
) -> None:
    from bridged.intake import new_document  # noqa: PLC0415 - as for `check`

    known = tx.known(path)
    if known is None or known.stamp == SPECIAL:
        raise NotSendable
    if known.document is None:
        _require_unmarked(place, path, marker)
        seq = tx.send(new_document(settings, place, path, stamp, now), now)
    else:
        document = tx.document(known.document)
        if document is None or document.state is not State.MISSED:
            raise NotSendable
        _require_unmarked(place, path, marker)
        seq = document.seq
        tx.send_missed(seq, stamp, now)
    tx.know(path, stamp, seq)
