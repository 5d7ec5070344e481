"""The commands about held documents: release and drop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from bridged.commands.cli import PATH, config_option, dry_run_option, finish, main, writable
from bridged.commands.explain import locate
from bridged.commands.output import say
from bridged.config import find_config, load
from bridged.config.settings import Settings
from bridged.journal import Journal, Transaction
from bridged.journal.values import Query
from bridged.model import Document, State, UserError, readable
from bridged.paths import is_in

DROPPED: Final = "dropped by a person"
F = TypeVar("F", bound=Callable[..., Any])


def _choice(function: F) -> F:
    """Add the options that choose held documents: by id, by client, by folder, and of these by reason."""
    client = click.option("--client", metavar="N", help="Every held document of this client.")
    folder = click.option("--folder", metavar="PATH", type=PATH, help="Every held document in this folder and below.")
    told = "Of those only the ones that are held for a reason with this in it, as `brake`."
    reason = click.option("--reason", metavar="TEXT", help=told)
    return click.argument("ids", metavar="ID...", nargs=-1)(client(folder(reason(function))))


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The held documents that a person chose: these ids, or those of a client, below a folder, with a reason."""

    ids: tuple[str, ...]
    client: str | None
    below: bytes | None
    reason: str | None

    def has(self, document: Document) -> bool:
        """True when a held document is chosen by client, folder and reason."""
        ours = self.client in (None, document.client) and (self.below is None or is_in(document.path, self.below))
        return ours and (self.reason is None or self.reason.casefold() in document.reason.casefold())


def _chosen(
    settings: Settings, ids: tuple[str, ...], client: str | None, folder: bytes | None, reason: str | None
) -> _Chosen:
    if ids and reason is not None:
        raise click.UsageError("--reason narrows --client, --folder and --all; ids name their documents already.")
    return _Chosen(ids, client, None if folder is None else locate(settings, folder), reason)


@main.command()
@config_option
@dry_run_option
@_choice
@click.option("--all", "everything", is_flag=True, help="Release every held document.")
def release(
    config: Path | None,
    dry: bool,
    ids: tuple[str, ...],
    client: str | None,
    folder: bytes | None,
    reason: str | None,
    everything: bool,
) -> None:
    """Put held documents back in the queue. The rule that held one does not hold it again.

    --client and --folder leave a document that may have arrived already, because a release could send it twice.
    """
    if sum(map(bool, (ids, client, folder, everything))) != 1:
        raise click.UsageError("Name the documents to release: ids, or --client, or --folder, or --all.")
    settings = load(find_config(config), dry_run=dry)
    chosen, now = _chosen(settings, ids, client, folder, reason), time.time()
    with writable(settings) as journal:
        _require_client(settings, journal, client)
        done, left, refused = journal.write(
            lambda tx: _each_held(tx, chosen, _Release(tx, now), careful=not everything)
        )
    for document in done:
        say(f"Released: {readable(document.relative)} of {document.client} is queued again.")
    _tell_uncertain([document for document in done if not ids and _may_have_arrived(document)], left)
    if not ids and not done and not left:
        say("No document is held." if everything and reason is None else "No such document is held.")
    finish(settings, bool(done), refused, released=[document.id for document in done])


@main.command()
@config_option
@dry_run_option
@_choice
def drop(
    config: Path | None, dry: bool, ids: tuple[str, ...], client: str | None, folder: bytes | None, reason: str | None
) -> None:
    """Decide that held documents are never sent. Their files stay where they are."""
    if sum(map(bool, (ids, client, folder))) != 1:
        raise click.UsageError("Name the documents to drop: ids, or --client, or --folder.")
    settings = load(find_config(config), dry_run=dry)
    chosen = _chosen(settings, ids, client, folder, reason)
    with writable(settings) as journal:
        _require_client(settings, journal, client)
        done, _, refused = journal.write(lambda tx: _each_held(tx, chosen, _Drop(tx), careful=False))
    for document in done:
        say(f"Dropped: {readable(document.relative)} of {document.client} is not sent.")
    if not ids and not done:
        say("No such document is held.")
    finish(settings, bool(done), refused, dropped=[document.id for document in done])


def _require_client(settings: Settings, journal: Journal, name: str | None) -> None:
    """Raise UserError for a client that neither configuration nor journal knows, because its name is mistyped."""
    names = [client.name for client in settings.clients]
    if name is None or name in names or journal.read(lambda tx: tx.documents(Query(client=name, limit=1))):
        return
    names += [held for held, *_ in journal.read(Transaction.held)]
    folded = {one.casefold(): one for one in reversed(names)}
    near = get_close_matches(name.casefold(), folded, 1, 0.5)
    remedy = f"Did you mean {folded[near[0]]!r}?" if near else "`bridged status` lists them."
    raise UserError(f"There is no client {name!r}, neither in the configuration nor in the journal. {remedy}")


def _may_have_arrived(document: Document) -> bool:
    """True when the line was lost after a dot, so that the collector may have the mail already."""
    return document.uncertain > 0 or document.reason.startswith("uncertain")


def _tell_uncertain(released: Sequence[Document], left: Sequence[Document]) -> None:
    for document in released:
        say(f"Warning: {readable(document.relative)} may have arrived already, and then leaves a second time.")
    if left:
        for document in left:
            say(f"Left: {readable(document.relative)} of {document.client} may have arrived already.")
        say(
            f"Left because a release could send them a second time: {len(left)}. Look for them at the collector, then"
            f" release by id what is not there: bridged release {' '.join(document.id for document in left)}"
        )


class _Release:
    """The release of one held document, and of its address."""

    verb = "release"

    def __init__(self, tx: Transaction, now: float) -> None:
        self._tx = tx
        self._now = now

    def __call__(self, document: Document) -> None:
        self._tx.release(document, self._now)
        self._tx.accept_address(document.collection_email)


class _Drop:
    """The drop of one held document."""

    verb = "drop"

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx

    def __call__(self, document: Document) -> None:
        self._tx.withdraw(document, DROPPED)


def _each_held(
    tx: Transaction, chosen: _Chosen, act: _Release | _Drop, *, careful: bool
) -> tuple[list[Document], list[Document], list[str]]:
    """Release or drop the chosen documents. Returns the done ones, the left ones, and a sentence for each refused id.

    `careful` leaves a document that may have arrived already, unless its id is given.
    """
    done, left, refused = [], [], []
    if chosen.ids:
        found = {d.id: d for one in dict.fromkeys(chosen.ids) for d in tx.documents(Query(id=one))}
        unknown = [one for one in chosen.ids if one not in found]
        refused = [f"There is no document {one} in the journal; `bridged documents` lists them." for one in unknown]
    else:
        found = {d.id: d for d in tx.documents(Query(states=(State.HELD,))) if chosen.has(d)}
    for document in found.values():
        if document.state is not State.HELD:
            refused.append(f"{document.id} is {document.state}, not held, so there is nothing to {act.verb}.")
        elif careful and not chosen.ids and _may_have_arrived(document):
            left.append(document)
        else:
            act(document)
            done.append(document)
    return done, left, refused
