"""The group of the commands, and everything that they share: options, exit codes, the daemon, the journal."""

from __future__ import annotations

import errno
import io
import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from bridged import __version__, daemon
from bridged.commands.output import complain, say
from bridged.config.settings import Settings
from bridged.journal import FILE_NAME, Journal
from bridged.model import UserError, readable

ANSWER_WITHIN: Final = 10.0  # seconds
PATH: Final = click.Path(path_type=bytes, readable=False)  # an unreadable file may well be asked about

config_option = click.option(
    "--config",
    "config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The configuration; else $BRIDGED_CONFIG, else /etc/bridged/bridged.yaml.",
)
dry_run_option = click.option(
    "--dry-run",
    "dry",
    is_flag=True,
    help="With mails in a Maildir instead of the relay, no markers, and a state directory of its own.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


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
            complain(str(error))
            ctx.exit(error.exit_code)
        except sqlite3.Error as error:
            complain(f"The journal cannot be used ({error}). Is its disk full, or may this user not write there?")
            ctx.exit(1)
        except OSError as error:
            if error.errno == errno.EPIPE:  # `| head` has seen enough
                raise
            where = f"{readable(os.fsencode(error.filename))}: " if error.filename else ""
            complain(f"{where}{error.strerror or error}.")
            ctx.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bridged")
def main() -> None:
    """E-mails every new document of a client's switched folders, once, to the client's collection email."""


def ask(state_dir: Path, command: str, timeout: float) -> dict[str, Any] | None:
    """The running daemon's answer; None when no daemon runs there."""
    return daemon.ask(state_dir, {"command": command}, timeout=timeout)


@contextmanager
def opened(settings: Settings) -> Iterator[Journal | None]:
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
def writable(settings: Settings) -> Iterator[Journal]:
    """The journal; UserError where the daemon has never run."""
    with opened(settings) as journal:
        if journal is None:
            raise UserError(f"There is no journal in {settings.state_dir} yet: start the daemon first (`bridged run`).")
        yield journal


def _wake(settings: Settings, released: list[str], dropped: list[str]) -> None:
    """Tell the daemon, in requests that are small enough for it."""
    for start in range(0, max(1, len(released), len(dropped)), 1000):
        part = slice(start, start + 1000)
        request = {"command": "wake", "released": released[part], "dropped": dropped[part]}
        if daemon.ask(settings.state_dir, request, ANSWER_WITHIN) is None:
            say("The daemon is stopped: what is queued is sent when it runs.")
            return


def finish(
    settings: Settings, woken: bool, refused: list[str], released: Sequence[str] = (), dropped: Sequence[str] = ()
) -> None:
    """Wake the daemon for released and dropped documents, then complain of those that were refused."""
    if woken:
        _wake(settings, list(released), list(dropped))
    if refused:
        raise UserError("\n".join(refused))
