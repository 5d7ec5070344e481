"""The models of the configuration: its keys, their kinds of values, their defaults."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bridged.config.lines import shown
from bridged.config.presets import PROVIDERS, CollectorName, ProviderName, provider
from bridged.config.values import (
    PER,
    Address,
    Addresses,
    Directory,
    Duration,
    GedPath,
    Host,
    InnerPath,
    Pattern,
    Port,
    Size,
    Subject,
    Suffix,
    Text,
    TimeOfDay,
    TokenUrl,
    Variable,
    Whole,
    YesNo,
)
from bridged.names import verdict

_LIMITS: Final = ("rate", "daily_quota", "size_limit")  # `none` takes away the limit that a provider presets
_PORTS: Final = {"starttls": 587, "tls": 465, "plain": 25}


class Model(BaseModel):
    """A mapping of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, value: Any) -> Any:
        """Drop each known key with nothing behind it, so that its default holds."""
        if not isinstance(value, dict):
            return value
        return {key: given for key, given in value.items() if given is not None or key not in cls.model_fields}


class Rate(Model):
    """At most `count` mails in any `seconds`."""

    count: int = Field(ge=1)
    seconds: float = Field(gt=0)

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return value
        found = re.fullmatch(r"(\d{1,9})\s*/\s*([a-z]+)", str(value).strip())
        if not found or found[2] not in PER or int(found[1]) < 1:
            raise ValueError(f"{shown(value)} is not a rate|Write for example 30/min or 500/h.")
        return {"count": int(found[1]), "seconds": PER[found[2]]}


class OAuth(Model):
    """How to sign in without a password: as an application (Microsoft 365) or a service account (Google Workspace)."""

    method: Literal["xoauth2"]
    tenant: Text | None = None
    client_id: Text | None = None
    client_secret_file: Text | None = None
    service_account_file: Text | None = None
    token_url: TokenUrl | None = None


class Smtp(Model):
    """The relay. The preset of `provider` holds for each key that is not written."""

    provider: ProviderName = "custom"
    host: Host
    port: Port = Field(default=0, ge=0, le=65535)
    security: Literal["starttls", "tls", "plain"] = "starttls"
    username: Text | None = None
    password_file: Text | None = None
    password_env: Variable | None = None
    auth: OAuth | None = None
    sender: Address
    ca_file: Path | None = None
    connections: Whole = Field(default=2, ge=1, le=50)
    rate: Rate | None = None
    daily_quota: Whole | None = Field(default=None, ge=1)
    size_limit: Size | None = None
    timeout: Duration = 60.0

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        written = {key: given for key, given in value.items() if given is not None}
        name = written.get("provider")
        preset = provider(name) if isinstance(name, str) and name in PROVIDERS else {}
        securities = (preset.get("security"), written.get("security", preset.get("security")))
        if "tls" in securities and len(set(securities)) > 1:
            preset.pop("port", None)  # TLS from the first byte needs a port of its own; STARTTLS shares the plain one
        merged = preset | written
        merged = {key: given for key, given in merged.items() if given != "none" or key not in _LIMITS}
        merged.setdefault("port", _PORTS.get(str(merged.get("security", "starttls")), 25))
        return merged


class Retry(Model):
    """The times after which a deferred document is tried again."""

    first: Duration = 30.0
    max: Duration = 1800.0
    give_up_after: Duration = 432000.0
    uncertain_attempts: Whole = Field(default=3, ge=0)


class Watch(Model):
    """The ways in which a deposit is noticed, and their intervals."""

    mode: Literal["auto", "inotify", "polling"] = "auto"
    quiet: Duration = 2.0
    quiet_limit: Duration = 600.0
    sweep: Duration = 60.0
    poll: Duration = 10.0


class MarkerOptions(Model):
    """The name of a marker."""

    suffix: Suffix = ".validated.json"
    hidden: YesNo = False


class LogOptions(Model):
    """The form and the level of log lines."""

    format: Literal["auto", "console", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Brake(Model):
    """More than `documents` of one client `within` this time are held for a person."""

    documents: Whole = Field(ge=1)
    within: Duration


class SwitchedFolder(Model):
    """A folder of the GED for which the bridge is on."""

    path: InnerPath
    collection_email: Address | None = None
    collector: CollectorName | None = None
    exclude: tuple[InnerPath, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else {"path": "" if value is None else value}


class Client(Model):
    """A customer of the firm."""

    name: Text
    ged: GedPath
    collection_email: Address
    sender: Address | None = None
    collector: CollectorName = "generic"
    brake: Brake | None = None
    duplicates: Literal["send", "hold"] = "send"
    review: YesNo = False
    shared_collection_email: YesNo = False
    switched_folders: tuple[SwitchedFolder, ...] = ()


class Alerts(Model):
    """The addresses of the alerts. `digest` is a local time of day; without it there is no digest."""

    to: Addresses = Field(min_length=1)
    digest: TimeOfDay | None = None
    language: Literal["fr", "en"] = "en"
    smtp: Smtp | None = None


def _default_state_dir() -> Path:
    """The first directory of $STATE_DIRECTORY, which systemd sets to all of StateDirectory=, with colons between."""
    return Path(os.environ.get("STATE_DIRECTORY", "").partition(":")[0] or "/var/lib/bridged")


class Settings(Model):
    """The whole configuration."""

    smtp: Smtp
    retry: Retry = Retry()
    subject: Subject = "{document}"
    watch: Watch = Watch()
    marker: MarkerOptions = MarkerOptions()
    ignore: tuple[Pattern, ...] = ()
    catch_up: YesNo = False
    on_overwrite: Literal["ignore", "send"] = "ignore"
    state_dir: Directory = Field(default_factory=_default_state_dir)
    log: LogOptions = LogOptions()
    alerts: Alerts | None = None
    clients: tuple[Client, ...]

    def ignored(self, name: bytes) -> str | None:
        """None for the name of a document; otherwise the reason for which a file of this name is ignored."""
        return verdict(name, extra=self.ignore, marker=self.marker.suffix, hidden=self.marker.hidden)
