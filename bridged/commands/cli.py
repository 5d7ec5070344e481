"""The group of the commands, with all that they share: options, exit codes, the daemon, the journal."""

from __future__ import annotations

import errno
import io
import os
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

ANSWER_WITHIN: Final = 10.0  # seconds in which a daemon must answer
PATH: Final = click.Path(
    path_type=bytes, readable=False
)  # not `readable`, because a person may ask about an unreadable file

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
    """A group of commands. An error that a person can mend ends in a sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. An error that is a defect is raised."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # otherwise a terminal without é would end the command
        try:
            return super().invoke(ctx)
        except UserError as error:
            complain(str(error))
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno == errno.EPIPE:  # click ends quietly where the reader has gone, as in `| head`
                raise
            where = f"{readable(os.fsencode(error.filename))}: " if error.filename else ""
            complain(f"{where}{error.strerror or error}.")
            ctx.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bridged")
def main() -> None:
    """E-mails every new document of a client's switched folders, once, to the client's collection email."""


def ask(state_dir: Path, command: str, timeout: float) -> dict[str, Any] | None:
    """The answer of the running daemon. None when no daemon runs with this state directory."""
    return daemon.ask(state_dir, {"command": command}, timeout=timeout)


@contextmanager
def opened(settings: Settings) -> Iterator[Journal | None]:
    """The journal, closed at the end. None where no daemon has ever run."""
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
    """The journal, closed at the end. Raises UserError where no daemon has ever run."""
    with opened(settings) as journal:
        if journal is None:
            raise UserError(f"There is no journal in {settings.state_dir} yet: start the daemon first (`bridged run`).")
        yield journal


def _wake(settings: Settings, released: list[str], dropped: list[str]) -> None:
    """Tell the daemon of these ids, in requests of a thousand, because it refuses a longer line."""
    for start in range(0, max(1, len(released), len(dropped)), 1000):
        part = slice(start, start + 1000)
        request = {"command": "wake", "released": released[part], "dropped": dropped[part]}
        if daemon.ask(settings.state_dir, request, ANSWER_WITHIN) is None:
            say("The daemon is stopped: what is queued is sent when it runs.")
            return


def finish(
    settings: Settings, woken: bool, refused: list[str], released: Sequence[str] = (), dropped: Sequence[str] = ()
) -> None:
    """Wake the daemon if there is work for it, then raise UserError with the refusals, if there are any."""
    if woken:
        _wake(settings, list(released), list(dropped))
    if refused:
        raise UserError("\n".join(refused))
