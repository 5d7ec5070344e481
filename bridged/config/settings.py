"""What the configuration says: its values and their kinds, as pydantic models. Loading them is `config`'s."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from bridged.config.lines import shown
from bridged.config.presets import PROVIDERS, CollectorName, ProviderName, parse_size, provider
from bridged.names import verdict

_LONGEST_WAIT: Final = 3650 * 86400.0  # a wait beyond some centuries overflows the C library's
UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PER: Final = {
    "s": 1.0,
    "sec": 1.0,
    "min": 60.0,
    "m": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
}
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS: Final = re.compile(rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~.-]{{1,64}}@{_LABEL}(?:\.{_LABEL})+")
_LIMITS: Final = ("rate", "daily_quota", "size_limit")  # `none` takes a preset one away
_PORTS: Final = {"starttls": 587, "tls": 465, "plain": 25}


# -- kinds of values


def _duration(value: Any) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", str(value).strip())
    if isinstance(value, int | float) and not isinstance(value, bool) and not found:
        raise ValueError("a duration needs its unit|Write for example 500ms, 2s, 5m, 3h or 5d.")
    if not found:
        raise ValueError(f"{shown(value)} is not a duration|Write for example 500ms, 2s, 5m, 3h or 5d.")
    seconds = float(found[1]) * UNITS[found[2]]
    if seconds > _LONGEST_WAIT:
        raise ValueError(f"{shown(value)} is too long|Write at most 3650d.")
    return seconds


def _positive(value: Any) -> float:
    seconds = _duration(value)
    if seconds <= 0:
        raise ValueError("this duration must be longer than nothing|Write for example 2s.")
    return seconds


def _address(value: Any) -> str:
    text = str(value)
    local = text.partition("@")[0]
    if not _ADDRESS.fullmatch(text) or len(text) > 254 or local.startswith(".") or local.endswith(".") or ".." in local:
        raise ValueError(
            f"{shown(text)} is not an e-mail address|Write it as name@domain.example, without a display name."
        )
    return text


def _inner_path(value: Any) -> str:
    text = str(value)
    if not isinstance(value, str) or not text.strip("/ "):
        raise ValueError("a folder is a path|Write it as it stands below the GED, or '.' for the whole GED.")
    if text.startswith("/"):
        raise ValueError(
            f"{shown(text)} is absolute|Write it as it stands below the GED, for example Exercice 2026/Achats."
        )
    if ".." in text.split("/"):
        raise ValueError(f"{shown(text)} leads out with '..'|Name the folder as it stands below the GED.")
    if "**" in text:
        raise ValueError(f"{shown(text)} cannot be matched|Use * for one folder name; sub-folders are included anyway.")
    if not is_path(text):
        raise ValueError(f"{shown(text)} cannot be a path|Write it as the folder is called.")
    return plain_path(text)


def plain_path(text: str) -> str:
    """A path below a GED without what says nothing: `./Achats/` is `Achats`."""
    return "/".join(part for part in text.split("/") if part not in ("", ".")) or "."


def is_path(text: str) -> bool:
    """Whether a file system could know it. The parents of a path of 1 MB fill the memory."""
    return is_utf8(text) and len(text) < 4096


def is_utf8(text: str) -> bool:
    """YAML's escapes, and the environment, can write a NUL or half of a character."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _absolute(value: Any) -> Path:
    text = str(value)
    if not text.startswith("/"):
        raise ValueError(f"{shown(text)} is not absolute|Begin it with a slash.")
    if not is_path(text):
        raise ValueError(f"{shown(text)} cannot be a path|Write it as the directory is called.")
    return Path(os.path.normpath("/" + text.lstrip("/")))


def _ged(value: Any) -> Path:
    text = str(value)
    if ".." in text.split("/"):
        raise ValueError(f"{shown(text)} contains '..'|Write the path without it.")
    path = _absolute(value)
    if path == Path("/"):
        raise ValueError("a GED cannot be the whole machine|Name the client's own directory.")
    return path


def _text(value: Any) -> str:
    if (
        not isinstance(value, str)
        or not value.strip()
        or any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in value)
    ):
        raise ValueError("a line of text is needed here|Write it in quotes.")
    return value


def _host(value: Any) -> str:
    """Without quoting it: `smtp://user:password@host` is what people paste here."""
    if not re.fullmatch(r"[\w:.-]+", _text(value)):
        raise ValueError("a host is a bare name or an IP address|Write for example smtp.example.net.")
    return str(value)


def _port(value: Any) -> Any:
    if value == 0 and not isinstance(value, bool):
        raise ValueError("0 is not a port|Write for example 587, or leave it out.")
    return value


def _subject(value: Any) -> str:
    text = _text(value)
    wrong = sorted(set(re.findall(r"\{[^}]*\}?", text)) - {"{document}", "{client}"})
    if wrong:
        raise ValueError(f"{shown(wrong[0])} is unknown|Use {{document}} and {{client}} only.")
    return text


def _suffix(value: Any) -> str:
    text = _text(value)
    # `.pdf` would make every document look like a marker, and nothing would ever be sent.
    if "/" in text or not re.fullmatch(r"\.[^.]+\.[^.]+|.*\.json", text) or len(text) < 4 or text[0] != ".":
        raise ValueError(f"{shown(text)} cannot end a marker's name|Write for example .validated.json.")
    return text


def _variable(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(value)):  # not shown: it may be the password itself
        raise ValueError("this is not the name of an environment variable|Give the variable's name, not its value.")
    return str(value)


def _pattern(value: Any) -> str:
    text = _text(value)
    if not text.strip("*?.") or "/" in text:
        raise ValueError(f"{shown(text)} would match every name, or none|Write a file name pattern such as '*.bak'.")
    return text


def _time_of_day(value: Any) -> str:
    text = str(value)
    if not re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", text):
        raise ValueError(f'{shown(text)} is not a time of day|Write for example "18:00".')
    return text.zfill(5)


def _token_url(value: Any) -> str:
    """Over TLS, or to this machine: whoever reads the request can send mail as the firm."""
    url = urlsplit(_text(value))
    private = url.scheme == "https" or (url.scheme, url.hostname) == ("http", "127.0.0.1")
    if not private or not url.hostname or url.username:
        raise ValueError("a token endpoint is an https:// address|Write it as the provider gives it, or leave it out.")
    return str(value)


def _one_or_more(value: Any) -> Any:
    """`to: office@cabinet.example` is as clear as a list of one."""
    return [value] if isinstance(value, str) else value


Size = Annotated[int, BeforeValidator(parse_size)]
Duration = Annotated[float, BeforeValidator(_positive)]
Address = Annotated[str, BeforeValidator(_address)]
InnerPath = Annotated[str, BeforeValidator(_inner_path)]
Text = Annotated[str, BeforeValidator(_text)]
# What pydantic would take for a number or a yes (`port: true`, `connections: "2"`) is a slip of the pen.
Whole = Annotated[int, Field(strict=True)]
YesNo = Annotated[bool, Field(strict=True)]


# -- the models


class Model(BaseModel):
    """A mapping of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, value: Any) -> Any:
        """A key with nothing behind it is as good as no key: its default holds."""
        if not isinstance(value, dict):
            return value
        return {key: given for key, given in value.items() if given is not None or key not in cls.model_fields}


class Rate(Model):
    """`count` messages in any `seconds`."""

    count: int = Field(ge=1)
    seconds: float = Field(gt=0)

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return value
        found = re.fullmatch(r"(\d{1,9})\s*/\s*([a-z]+)", str(value).strip())
        if not found or found[2] not in _PER or int(found[1]) < 1:
            raise ValueError(f"{shown(value)} is not a rate|Write for example 30/min or 500/h.")
        return {"count": int(found[1]), "seconds": _PER[found[2]]}


class OAuth(Model):
    """How to sign in without a password: as an application (Microsoft 365) or a service account (Google Workspace)."""

    method: Literal["xoauth2"]
    tenant: Text | None = None
    client_id: Text | None = None
    client_secret_file: Text | None = None
    service_account_file: Text | None = None
    token_url: Annotated[str, BeforeValidator(_token_url)] | None = None


class Smtp(Model):
    """The relay. What `provider` presets holds where nothing else is written."""

    provider: ProviderName = "custom"
    host: Annotated[str, BeforeValidator(_host)]
    port: Annotated[Whole, BeforeValidator(_port)] = Field(default=0, ge=0, le=65535)
    security: Literal["starttls", "tls", "plain"] = "starttls"
    username: Text | None = None
    password_file: Text | None = None
    password_env: Annotated[str, BeforeValidator(_variable)] | None = None
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
            preset.pop("port", None)  # where TLS comes first, nothing else is understood; STARTTLS has the plain port
        merged = preset | written
        merged = {key: given for key, given in merged.items() if given != "none" or key not in _LIMITS}
        merged.setdefault("port", _PORTS.get(str(merged.get("security", "starttls")), 25))
        return merged


class Retry(Model):
    """When a deferred document is tried again."""

    first: Duration = 30.0
    max: Duration = 1800.0
    give_up_after: Duration = 432000.0
    uncertain_attempts: Whole = Field(default=3, ge=0)


class Watch(Model):
    """How deposits are noticed."""

    mode: Literal["auto", "inotify", "polling"] = "auto"
    quiet: Duration = 2.0
    quiet_limit: Duration = 600.0
    sweep: Duration = 60.0
    poll: Duration = 10.0


class MarkerOptions(Model):
    """The marker's name."""

    suffix: Annotated[str, BeforeValidator(_suffix)] = ".validated.json"
    hidden: YesNo = False


class LogOptions(Model):
    """How log lines are written."""

    format: Literal["auto", "console", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Brake(Model):
    """More than `documents` of one client `within` this time (seconds) are a mistake until a person says otherwise."""

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
    ged: Annotated[Path, BeforeValidator(_ged)]
    collection_email: Address
    sender: Address | None = None
    collector: CollectorName = "generic"
    brake: Brake | None = None
    duplicates: Literal["send", "hold"] = "send"
    review: YesNo = False
    shared_collection_email: YesNo = False
    switched_folders: tuple[SwitchedFolder, ...] = ()


class Alerts(Model):
    """Who is told, by mail, when a person must act; `digest` is a local time of day."""

    to: Annotated[tuple[Address, ...], BeforeValidator(_one_or_more)] = Field(min_length=1)
    digest: Annotated[str, BeforeValidator(_time_of_day)] | None = None
    language: Literal["fr", "en"] = "en"
    smtp: Smtp | None = None


def _default_state_dir() -> Path:
    """The first of systemd's StateDirectory=, of which there may be several."""
    return Path(os.environ.get("STATE_DIRECTORY", "").partition(":")[0] or "/var/lib/bridged")


class Settings(Model):
    """The whole configuration."""

    smtp: Smtp
    retry: Retry = Retry()
    subject: Annotated[str, BeforeValidator(_subject)] = "{document}"
    watch: Watch = Watch()
    marker: MarkerOptions = MarkerOptions()
    ignore: tuple[Annotated[str, BeforeValidator(_pattern)], ...] = ()
    catch_up: YesNo = False
    on_overwrite: Literal["ignore", "send"] = "ignore"
    state_dir: Annotated[Path, BeforeValidator(_absolute)] = Field(default_factory=_default_state_dir)
    log: LogOptions = LogOptions()
    alerts: Alerts | None = None
    clients: tuple[Client, ...]

    def ignored(self, name: bytes) -> str | None:
        """None for a document's name; else why a file of that name is ignored."""
        return verdict(name, extra=self.ignore, marker=self.marker.suffix, hidden=self.marker.hidden)
