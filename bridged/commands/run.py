"""The commands that start or steer a daemon: run, reload, demo."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from bridged import daemon
from bridged.commands.cli import ANSWER_WITHIN, ask, config_option, dry_run_option, main
from bridged.commands.output import say
from bridged.config import DRY_RUN, ConfigError, find_config, load
from bridged.config.settings import Settings
from bridged.model import UserError

RELOAD_WITHIN: Final = 120.0  # seconds, in which a daemon reads a folder of a million files


@main.command()
@config_option
@dry_run_option
def run(config: Path | None, dry: bool) -> None:
    """Run the daemon in the foreground, until SIGTERM or SIGINT."""
    raise SystemExit(daemon.run(find_config(config), dry_run=dry))


@main.command()
@config_option
@dry_run_option
def reload(config: Path | None, dry: bool) -> None:
    """Make the running daemon read its configuration, and wait for the verdict."""
    try:
        settings = load(find_config(config), dry_run=dry)
    except ConfigError:
        # A broken file does not name the state directory. A daemon at the default one logs its verdict.
        usual = Settings.model_fields["state_dir"].get_default(call_default_factory=True)
        with suppress(UserError, OSError):
            ask(usual / DRY_RUN if dry else usual, "reload", ANSWER_WITHIN)
        raise
    verdict = ask(settings.state_dir, "reload", RELOAD_WITHIN)
    if verdict is None:
        raise UserError(f"No daemon is running with the state directory {settings.state_dir}: there is none to reload.")
    if not verdict["ok"]:
        raise Refused("\n".join(verdict.get("problems") or [str(verdict.get("error"))]))
    say("The configuration is in force.")


class Refused(UserError):
    """The daemon refused the configuration, and the old one stays in force."""

    exit_code = ConfigError.exit_code


@main.command()
@config_option
def demo(config: Path | None) -> None:  # noqa: ARG001 - every command takes it; the demonstration has its own
    """Show the whole thing on this machine, with an embedded relay: deposits, mails, markers."""
    from bridged.commands.demo import show  # noqa: PLC0415 - it loads an SMTP server

    show(say)
