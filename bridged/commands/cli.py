"""The commands. Each says what it did in sentences; a mistake of the user's ends in one, and an exit code."""

from __future__ import annotations

import errno
import getpass
import io
import json
import os
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from bridged import __version__, daemon
from bridged.commands import report
from bridged.commands.explain import Explainer, locate
from bridged.commands.report import clean
from bridged.config import DRY_RUN, ConfigError, Place, SwitchedFolders, find_config, json_schema, load
from bridged.config.settings import Settings, Smtp
from bridged.ged import files
from bridged.journal import FILE_NAME, SPECIAL, Journal, StateConflict, Transaction
from bridged.model import ALL_RULES, Document, Stamp, State, UserError, readable, utc
from bridged.names import looks_like_marker
from bridged.paths import is_in, split

if TYPE_CHECKING:
    from bridged.commands.survey import Survey

RELOAD_WITHIN: Final = 120.0  # seconds; a folder of a million files takes a while to be read
ANSWER_WITHIN: Final = 10.0
DROPPED: Final = "dropped by a person"
F = TypeVar("F", bound=Callable[..., Any])


class Commands(click.Group):
    """A group whose commands end in a sentence and an exit code for whatever a person can mend."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal that knows no é still gets the rest
        try:
            return super().invoke(ctx)
        except UserError as error:
            _complain(str(error))
            ctx.exit(error.exit_code)
        except sqlite3.Error as error:
            _complain(f"The journal cannot be used ({error}). Is its disk full, or may this user not write there?")
            ctx.exit(1)
        except OSError as error:
            if error.errno == errno.EPIPE:  # `| head` has seen enough
                raise
            where = f"{readable(os.fsencode(error.filename))}: " if error.filename else ""
            _complain(f"{where}{error.strerror or error}.")
            ctx.exit(1)


def _complain(text: str) -> None:
    for line in text.splitlines():
        click.echo(clean(line), err=True)


def _say(text: str) -> None:
    click.echo(clean(text))


def _config(function: F) -> F:
    kind = click.Path(path_type=Path)
    told = "The configuration; else $BRIDGED_CONFIG, else /etc/bridged/bridged.yaml."
    return click.option("--config", "config", metavar="FILE", type=kind, help=told)(function)


_dry_run = click.option(
    "--dry-run",
    "dry",
    is_flag=True,
    help="With mails in a Maildir instead of the relay, no markers, and a state directory of its own.",
)
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
_PATH = click.Path(path_type=bytes, readable=False)  # an unreadable file may well be asked about
_paths = click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=_PATH)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bridged")
def main() -> None:
    """E-mails every new document of a client's switched folders, once, to the client's collection email."""


@main.command()
@_config
@_dry_run
def run(config: Path | None, dry: bool) -> None:
    """Run the daemon in the foreground, until SIGTERM or SIGINT."""
    raise SystemExit(daemon.run(find_config(config), dry_run=dry))


# -- what is


@main.command()
@_config
@click.option(
    "--smtp",
    is_flag=True,
    help="Also connect to the relay (and that of the alerts), check TLS and sign in; sends nothing.",
)
@_json
def check(config: Path | None, smtp: bool, as_json: bool) -> None:
    """Validate the configuration, and show client, folder and address with what is there."""
    settings = load(find_config(config))
    from bridged.commands.survey import survey  # noqa: PLC0415 - intake, and with it the observer

    found = survey(settings, time.time())
    summary = {"watches_needed": found.watches_needed, "watches_available": found.watches_available}
    if as_json:
        more = {"smtp": report.relay(settings.smtp), "user": _user(), "warnings": found.warnings}
        report.lines([*found.folders, {**summary, **more}])
    else:
        _show(found, report.relay(settings.smtp))
    if smtp:
        _check_relays(settings, as_json=as_json)


def _show(found: Survey, relay: Mapping[str, Any]) -> None:
    report.table(found.folders, ("client", "folder", "collection_email", "directories", "files", "markers"))
    geds = {row["ged"]: row for row in found.folders}.values()
    report.table(geds, ("client", "ged", "reachable", "file_system", "watch_mode"))
    available = "an unknown number" if found.watches_available is None else found.watches_available
    report.table([relay], tuple(relay))
    _say(f"{found.watches_needed} inotify watches are needed; {available} may be had.")
    for warning in found.warnings:
        _say(f"Warning: {warning}")
    _say(f"The configuration is valid. Rights were checked as the user {_user()}.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as containers have
        return str(os.geteuid())


def _check_relays(settings: Settings, *, as_json: bool) -> None:
    """Both are tried, also where one cannot be used."""
    relays = {"relay": settings.smtp}
    if settings.alerts is not None and settings.alerts.smtp is not None:
        relays["alerts_relay"] = settings.alerts.smtp
    failed = []
    for key, smtp in relays.items():
        about = "The relay of the alerts (alerts.smtp): " if key == "alerts_relay" else ""
        try:
            sentences = _check_relay(smtp)
        except UserError as error:
            failed.append(f"{about}{error}")
            continue
        if as_json:
            report.lines([{key: sentences}])
        else:
            for sentence in sentences:
                _say(f"{about}{sentence}")
    if failed:
        # 1 and not 78, also where the password cannot be read: the configuration itself was valid.
        raise UserError("\n".join(failed))


def _check_relay(smtp: Smtp) -> list[str]:
    from bridged.relay import Relay, secret_of  # noqa: PLC0415 - only this command speaks to the relay

    relay = Relay(smtp, secret_of(smtp))
    try:
        return relay.check()
    finally:
        relay.close()


@main.command()
@_config
@_dry_run
@_json
def status(config: Path | None, dry: bool, as_json: bool) -> None:
    """Show the daemon, the relay, and every switched folder with its counts."""
    settings = load(find_config(config), dry_run=dry)
    daemon = _ask(settings.state_dir, "status", ANSWER_WITHIN)
    with _journal(settings) as journal:
        rows = report.status(settings, journal, daemon)
    if as_json:
        report.lines([_head(daemon), *rows])
        return
    _say(_daemon_sentence(daemon))
    columns = ("client", "folder", "since", "watch_mode", "reachable", *report.STATES)
    report.table(rows, columns)


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
@_config
@_dry_run
@click.option("--client", metavar="N", help="Only this client's.")
@click.option("--state", type=click.Choice([state.value for state in State]), help="Only those in this state.")
@_json
def documents(config: Path | None, dry: bool, client: str | None, state: str | None, as_json: bool) -> None:
    """List the journal's documents, in the order of their deposit."""
    settings = load(find_config(config), dry_run=dry)
    with _journal(settings) as journal:
        rows = [] if journal is None else report.documents(journal, client, state)
    if as_json:
        report.lines(rows)
    else:
        columns = ("id", "client", "document", "state", "attempts", "deposited_at", "validated_at", "reason")
        report.table(rows, columns)


@main.command()
@_config
@_dry_run
@click.argument("path", type=_PATH)
def explain(config: Path | None, dry: bool, path: bytes) -> None:
    """Say why a file was or was not sent."""
    settings = load(find_config(config), dry_run=dry)
    with _journal(settings) as journal:
        _say(_explained(settings, journal, locate(settings, path), dry=dry))


def _explained(settings: Settings, journal: Journal | None, path: bytes, *, dry: bool) -> str:
    running = _ask(settings.state_dir, "status", ANSWER_WITHIN) is not None
    return Explainer(settings, journal, running=running, dry_run=dry).sentence(path)


# -- what to do


def _choice(function: F) -> F:
    """Which held documents are meant: by id, by client, by folder, and of these by their reason."""
    client = click.option("--client", metavar="N", help="Every held document of this client.")
    folder = click.option("--folder", metavar="PATH", type=_PATH, help="Every held document in this folder and below.")
    told = "Of those only the ones that are held for a reason with this in it, as `brake`."
    reason = click.option("--reason", metavar="TEXT", help=told)
    return click.argument("ids", metavar="ID...", nargs=-1)(client(folder(reason(function))))


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Which held documents a person means: these ids; or of all those of a client, below a folder, with a reason."""

    ids: tuple[str, ...]
    client: str | None
    below: bytes | None
    reason: str | None

    def has(self, document: Document) -> bool:
        """Whether a held document is meant, where no ids are given."""
        ours = self.client in (None, document.client) and (self.below is None or is_in(document.path, self.below))
        return ours and (self.reason is None or self.reason.casefold() in document.reason.casefold())


def _chosen(
    settings: Settings, ids: tuple[str, ...], client: str | None, folder: bytes | None, reason: str | None
) -> _Chosen:
    if ids and reason is not None:
        raise click.UsageError("--reason narrows --client, --folder and --all; ids name their documents already.")
    return _Chosen(ids, client, None if folder is None else locate(settings, folder), reason)


@main.command()
@_config
@_dry_run
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
    """Put held documents back in the queue. They leave, whatever brake or collector's limit had held them.

    What may have arrived already is left by --client and --folder: a release could send it a second time.
    """
    if sum(map(bool, (ids, client, folder, everything))) != 1:
        raise click.UsageError("Name the documents to release: ids, or --client, or --folder, or --all.")
    settings = load(find_config(config), dry_run=dry)
    chosen, now = _chosen(settings, ids, client, folder, reason), time.time()
    with _writable(settings) as journal:
        _require_client(settings, journal, client)
        done, left, refused = journal.write(
            lambda tx: _each_held(tx, chosen, _Release(tx, now), careful=not everything)
        )
    for document in done:
        _say(f"Released: {readable(document.relative)} of {document.client} is queued again.")
    _tell_uncertain([document for document in done if not ids and _may_have_arrived(document)], left)
    if not ids and not done and not left:
        _say("No document is held." if everything and reason is None else "No such document is held.")
    _finish(settings, bool(done), refused, released=[document.id for document in done])


@main.command()
@_config
@_dry_run
@_choice
def drop(
    config: Path | None, dry: bool, ids: tuple[str, ...], client: str | None, folder: bytes | None, reason: str | None
) -> None:
    """Decide that held documents are never sent. Their files stay where they are."""
    if sum(map(bool, (ids, client, folder))) != 1:
        raise click.UsageError("Name the documents to drop: ids, or --client, or --folder.")
    settings = load(find_config(config), dry_run=dry)
    chosen = _chosen(settings, ids, client, folder, reason)
    with _writable(settings) as journal:
        _require_client(settings, journal, client)
        done, _, refused = journal.write(lambda tx: _each_held(tx, chosen, _Drop(tx), careful=False))
    for document in done:
        _say(f"Dropped: {readable(document.relative)} of {document.client} is not sent.")
    if not ids and not done:
        _say("No such document is held.")
    _finish(settings, bool(done), refused, dropped=[document.id for document in done])


def _require_client(settings: Settings, journal: Journal, name: str | None) -> None:
    """Nothing held of a client that there is not is a slip of the pen, and no success."""
    names = [client.name for client in settings.clients]
    if name is None or name in names or journal.read(lambda tx: next(tx.documents("client = ?", (name,), 1), None)):
        return
    names += [held for held, *_ in journal.read(Transaction.held)]
    folded = {one.casefold(): one for one in reversed(names)}
    near = get_close_matches(name.casefold(), folded, 1, 0.5)
    remedy = f"Did you mean {folded[near[0]]!r}?" if near else "`bridged status` lists them."
    raise UserError(f"There is no client {name!r}, neither in the configuration nor in the journal. {remedy}")


def _may_have_arrived(document: Document) -> bool:
    """Whether the line was lost after a final dot: the mail may be at the collector already."""
    return document.uncertain > 0 or document.reason.startswith("uncertain")


def _tell_uncertain(released: Sequence[Document], left: Sequence[Document]) -> None:
    for document in released:
        _say(f"Warning: {readable(document.relative)} may have arrived already, and then leaves a second time.")
    if left:
        for document in left:
            _say(f"Left: {readable(document.relative)} of {document.client} may have arrived already.")
        _say(
            f"Left because a release could send them a second time: {len(left)}. Look for them at the collector, then"
            f" release by id what is not there: bridged release {' '.join(document.id for document in left)}"
        )


class _Release:
    """What a release does to one held document. Its address may be tried again, too."""

    verb = "release"

    def __init__(self, tx: Transaction, now: float) -> None:
        self._tx = tx
        self._now = now

    def __call__(self, document: Document) -> None:
        passed = " ".join(dict.fromkeys([*document.passed.split(), *document.rule.split()]))
        columns = {"due_at": 0.0, "reason": "", "uncertain": 0, "queued_at": self._now, "passed": passed, "rule": ""}
        self._tx.move(document.seq, State.HELD, State.QUEUED, **columns)
        self._tx.accept_address(document.collection_email)


class _Drop:
    """What a drop does to one held document."""

    verb = "drop"

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx

    def __call__(self, document: Document) -> None:
        self._tx.move(document.seq, State.HELD, State.WITHDRAWN, reason=DROPPED)


def _each_held(
    tx: Transaction, chosen: _Chosen, act: _Release | _Drop, *, careful: bool
) -> tuple[list[Document], list[Document], list[str]]:
    """Do it to those that were chosen: what was done, what was left, and in sentences what cannot be done.

    `careful` leaves what may have arrived already, unless it is named by its id.
    """
    done, left, refused = [], [], []
    if chosen.ids:
        found = {d.id: d for one in dict.fromkeys(chosen.ids) for d in tx.documents("id = ?", (one,))}
        unknown = [one for one in chosen.ids if one not in found]
        refused = [f"There is no document {one} in the journal; `bridged documents` lists them." for one in unknown]
    else:
        found = {d.id: d for d in tx.documents("state = 'held'") if chosen.has(d)}
    for document in found.values():
        if document.state is not State.HELD:
            refused.append(f"{document.id} is {document.state}, not held, so there is nothing to {act.verb}.")
        elif careful and not chosen.ids and _may_have_arrived(document):
            left.append(document)
        else:
            act(document)
            done.append(document)
    return done, left, refused


@main.command()
@_config
@_dry_run
@_paths
def send(config: Path | None, dry: bool, paths: tuple[bytes, ...]) -> None:
    """Forward existing or missed documents on purpose."""
    settings = load(find_config(config), dry_run=dry)
    done, refused = 0, []
    with _writable(settings) as journal:
        for path in dict.fromkeys(locate(settings, path) for path in paths):
            try:
                place = _send(journal, settings, path, time.time())
            except (NotSendable, StateConflict) as error:
                refused.append(f"Not sent: {str(error) or _explained(settings, journal, path, dry=dry)}")
                continue
            done += 1
            _say(f"Queued: {readable(path[len(place.ged) + 1 :])} for {place.collection_email}.")
    _finish(settings, bool(done), refused)


class NotSendable(Exception):
    """The file is neither existing nor missed; without a text, the explanation of it says what it is."""


def _send(journal: Journal, settings: Settings, path: bytes, now: float) -> Place:
    switched = SwitchedFolders(settings.clients, settings.ignore)
    directory, name = split(path)
    place = switched.place(directory)
    if place is None or settings.ignored(name):
        raise NotSendable
    stamp = _stamp(place, path)
    journal.write(lambda tx: _queue(tx, settings, place, path, stamp, now))
    return place


def _stamp(place: Place, path: bytes) -> Stamp:
    """The identity of the bytes that will be sent; refuses what is never sent, on purpose or not."""
    from bridged.intake import HEAD  # noqa: PLC0415 - as for `check`

    relative = path[len(place.ged) + 1 :]
    name = readable(relative)
    try:
        with files.root(place.ged) as root_fd:
            if not stat.S_ISREG(files.lstat(root_fd, relative).st_mode):
                raise NotSendable
            with files.open_document(root_fd, relative) as file:
                stamp, head = files.stamp_of(os.fstat(file.fileno())), file.read(HEAD)
    except FileNotFoundError as error:
        raise NotSendable from error
    except OSError as error:
        raise NotSendable(f"“{name}” cannot be read: {error.strerror}.") from error
    if stamp.size == 0:
        raise NotSendable(f"“{name}” is empty, and an empty document is never mailed.")
    if looks_like_marker(head):
        raise NotSendable(f"“{name}” is a copy of a marker, and markers are never sent.")
    return stamp


def _queue(tx: Transaction, settings: Settings, place: Place, path: bytes, stamp: Stamp, now: float) -> None:
    from bridged.intake import enter  # noqa: PLC0415 - as for `check`

    known = tx.known(path)
    if known is None or known.stamp == SPECIAL:
        raise NotSendable
    purpose = {"queued_at": now, "reason": "sent on purpose", "passed": ALL_RULES}
    if known.document is None:
        seq = enter(tx, settings, place, path, stamp, State.QUEUED, now, **purpose)
    else:
        document = tx.document(known.document)
        if document is None or document.state is not State.MISSED:
            raise NotSendable
        seq = document.seq
        tx.move(seq, State.MISSED, State.QUEUED, stamp=stamp, due_at=0.0, **purpose)
    tx.know(path, stamp, seq)


def _wake(settings: Settings, released: list[str], dropped: list[str]) -> None:
    """Tell the daemon, in requests that are small enough for it."""
    for start in range(0, max(1, len(released), len(dropped)), 1000):
        part = slice(start, start + 1000)
        request = {"command": "wake", "released": released[part], "dropped": dropped[part]}
        if daemon.ask(settings.state_dir, request, ANSWER_WITHIN) is None:
            _say("The daemon is stopped: what is queued is sent when it runs.")
            return


def _finish(
    settings: Settings, woken: bool, refused: list[str], released: Sequence[str] = (), dropped: Sequence[str] = ()
) -> None:
    if woken:
        _wake(settings, list(released), list(dropped))
    if refused:
        raise UserError("\n".join(refused))


@main.command()
@_config
@_dry_run
def reload(config: Path | None, dry: bool) -> None:
    """Make the running daemon read its configuration, and wait for the verdict."""
    try:
        settings = load(find_config(config), dry_run=dry)
    except ConfigError:
        # The file does not tell where the state directory is; a daemon at the default place logs its verdict.
        usual = Settings.model_fields["state_dir"].get_default(call_default_factory=True)
        with suppress(UserError, OSError):
            _ask(usual / DRY_RUN if dry else usual, "reload", ANSWER_WITHIN)
        raise
    verdict = _ask(settings.state_dir, "reload", RELOAD_WITHIN)
    if verdict is None:
        raise UserError(f"No daemon is running with the state directory {settings.state_dir}: there is none to reload.")
    if not verdict["ok"]:
        raise Refused("\n".join(verdict.get("problems") or [str(verdict.get("error"))]))
    _say("The configuration is in force.")


class Refused(UserError):
    """The daemon refused the configuration, and the old one stays in force."""

    exit_code = ConfigError.exit_code


@main.command()
@_config
def schema(config: Path | None) -> None:  # noqa: ARG001 - every command takes it
    """Print the JSON Schema of the configuration."""
    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@main.command()
@_config
def demo(config: Path | None) -> None:  # noqa: ARG001 - every command takes it; the demonstration has its own
    """Show the whole thing on this machine, with an embedded relay: deposits, mails, markers."""
    from bridged.commands.demo import show  # noqa: PLC0415 - it brings an SMTP server along

    show(_say)


# -- the daemon and the journal


def _ask(state_dir: Path, command: str, timeout: float) -> dict[str, Any] | None:
    """The running daemon's answer; None when no daemon runs there."""
    return daemon.ask(state_dir, {"command": command}, timeout=timeout)


@contextmanager
def _journal(settings: Settings) -> Iterator[Journal | None]:
    """The journal; None where the daemon has never run."""
    if not os.path.lexists(settings.state_dir / FILE_NAME):
        yield None
        return
    journal = Journal(settings.state_dir, create=False)
    try:
        yield journal
    finally:
        journal.close()


@contextmanager
def _writable(settings: Settings) -> Iterator[Journal]:
    with _journal(settings) as journal:
        if journal is None:
            raise UserError(f"There is no journal in {settings.state_dir} yet: start the daemon first (`bridged run`).")
        yield journal


if __name__ == "__main__":
    main()
