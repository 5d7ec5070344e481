"""The commands about the configuration: check and schema."""

from __future__ import annotations

import getpass
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridged.commands.cli import config_option, json_option, main
from bridged.commands.output import lines, say, table
from bridged.config import find_config, json_schema, load
from bridged.config.settings import Settings, Smtp
from bridged.daemon import require_local
from bridged.model import UserError

if TYPE_CHECKING:
    from bridged.commands.survey import Survey


@main.command()
@config_option
@click.option(
    "--smtp",
    is_flag=True,
    help="Also connect to the relay (and that of the alerts), check TLS and sign in; sends nothing.",
)
@json_option
def check(config: Path | None, smtp: bool, as_json: bool) -> None:
    """Validate the configuration, and show each client, folder and address with its files and rights."""
    settings = load(find_config(config))
    require_local(settings.state_dir)
    from bridged.commands.survey import survey  # noqa: PLC0415 - it loads intake and the observer

    found = survey(settings, time.time())
    summary = {"watches_needed": found.watches_needed, "watches_available": found.watches_available}
    if as_json:
        more = {"smtp": _relay(settings.smtp), "user": _user(), "warnings": found.warnings}
        lines([*found.folders, {**summary, **more}])
    else:
        _show(found, _relay(settings.smtp))
    if smtp:
        _check_relays(settings, as_json=as_json)


def _show(found: Survey, relay: Mapping[str, Any]) -> None:
    table(found.folders, ("client", "folder", "collection_email", "directories", "files", "markers"))
    geds = {row["ged"]: row for row in found.folders}.values()
    table(geds, ("client", "ged", "reachable", "file_system", "watch_mode"))
    available = "an unknown number" if found.watches_available is None else found.watches_available
    table([relay], tuple(relay))
    say(f"{found.watches_needed} inotify watches are needed; {available} may be had.")
    for warning in found.warnings:
        say(f"Warning: {warning}")
    say(f"The configuration is valid. Rights were checked as the user {_user()}.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in a container
        return str(os.geteuid())


def _check_relays(settings: Settings, *, as_json: bool) -> None:
    """Try both relays, also when the first one cannot be used."""
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
            lines([{key: sentences}])
        else:
            for sentence in sentences:
                say(f"{about}{sentence}")
    if failed:
        # 1 and not 78, because the configuration itself is valid.
        raise UserError("\n".join(failed))


def _check_relay(smtp: Smtp) -> list[str]:
    from bridged.relay import Relay, secret_of  # noqa: PLC0415 - no other command needs the relay

    relay = Relay(smtp, secret_of(smtp))
    try:
        return relay.check()
    finally:
        relay.close()


def _relay(smtp: Smtp) -> dict[str, Any]:
    """The relay as preset and keys make it, for a table. A limit that is not set is `none`."""
    rate = "none" if smtp.rate is None else f"{smtp.rate.count} in {smtp.rate.seconds:g} s"
    return {
        "relay": f"{smtp.host}:{smtp.port}",
        "security": smtp.security,
        "connections": smtp.connections,
        "rate": rate,
        "daily_quota": smtp.daily_quota or "none",
        "size_limit": smtp.size_limit or "none",
    }


@main.command()
@config_option
def schema(config: Path | None) -> None:  # noqa: ARG001 - every command takes it
    """Print the JSON Schema of the configuration."""
    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
