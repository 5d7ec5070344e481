"""The configuration: YAML text to `Settings`, or every problem at once, each with its line and a remedy."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bridged.model import UserError
from bridged.yaml_lines import Lines, Problem, Where, read

DEFAULT_FILE: Final = Path("/etc/bridged/bridged.yaml")
LARGEST: Final = 1_000_000
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
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
_PORTS: Final = {"starttls": 587, "tls": 465, "plain": 25}


class ConfigError(UserError):
    """The configuration is refused."""

    exit_code = 78

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


# -- kinds of values


def _duration(value: Any) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", str(value).strip())
    if isinstance(value, int | float) and not isinstance(value, bool) and not found:
        raise ValueError("a duration needs its unit|Write for example 500ms, 2s, 5m, 3h or 5d.")
    if not found:
        raise ValueError(f"{value!r} is not a duration|Write for example 500ms, 2s, 5m, 3h or 5d.")
    return float(found[1]) * _UNITS[found[2]]


def _positive(value: Any) -> float:
    seconds = _duration(value)
    if seconds <= 0:
        raise ValueError("this duration must be longer than nothing|Write for example 2s.")
    return seconds


def _address(value: Any) -> str:
    text = str(value)
    local = text.partition("@")[0]
    if not _ADDRESS.fullmatch(text) or len(text) > 254 or local.startswith(".") or local.endswith(".") or ".." in local:
        raise ValueError(f"{text!r} is not an e-mail address|Write it as name@domain.example, without a display name.")
    return text


def _inner_path(value: Any) -> str:
    text = str(value)
    if not isinstance(value, str) or not text.strip("/ "):
        raise ValueError("a folder is a path|Write it as it stands below the GED, or '.' for the whole GED.")
    if text.startswith("/"):
        raise ValueError(f"{text!r} is absolute|Write it as it stands below the GED, for example Exercice 2026/Achats.")
    if ".." in text.split("/"):
        raise ValueError(f"{text!r} leads out with '..'|Name the folder as it stands below the GED.")
    if "\0" in text or "**" in text:
        raise ValueError(f"{text!r} cannot be matched|Use * for one folder name; sub-folders are included anyway.")
    return "/".join(part for part in text.split("/") if part)


def _ged(value: Any) -> Path:
    text = str(value)
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not absolute|Begin the GED's path with a slash.")
    if ".." in text.split("/") or "\0" in text:
        raise ValueError(f"{text!r} contains '..'|Write the path without it.")
    if not text.strip("/"):
        raise ValueError("a GED cannot be the whole machine|Name the client's own directory.")
    return Path(os.path.normpath("/" + text.lstrip("/")))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or any(ord(c) < 32 for c in value):
        raise ValueError("a line of text is needed here|Write it in quotes.")
    return value


def _suffix(value: Any) -> str:
    text = _text(value)
    if "/" in text or not text.startswith(".") or len(text) < 4:
        raise ValueError(f"{text!r} cannot end a marker's name|Write for example .validated.json.")
    return text


Duration = Annotated[float, BeforeValidator(_positive)]
Wait = Annotated[float, BeforeValidator(_duration)]
Address = Annotated[str, BeforeValidator(_address)]
InnerPath = Annotated[str, BeforeValidator(_inner_path)]
Text = Annotated[str, BeforeValidator(_text)]


# -- the models


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Rate(_Model):
    """`count` messages in any `seconds`."""

    count: int
    seconds: float

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        found = re.fullmatch(r"(\d+)\s*/\s*([a-z]+)", str(value).strip())
        if isinstance(value, dict):
            return value
        if not found or found[2] not in _PER or int(found[1]) < 1:
            raise ValueError(f"{value!r} is not a rate|Write for example 30/min or 500/h.")
        return {"count": int(found[1]), "seconds": _PER[found[2]]}


class Smtp(_Model):
    """The relay."""

    host: Text
    port: int = Field(default=0, ge=0, le=65535)
    security: Literal["starttls", "tls", "plain"] = "starttls"
    username: Text | None = None
    password_file: Text | None = None
    password_env: Text | None = None
    sender: Address
    ca_file: Path | None = None
    connections: int = Field(default=2, ge=1, le=50)
    rate: Rate | None = None
    timeout: Duration = 60.0

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        if isinstance(value, dict) and "port" not in value:
            return value | {"port": _PORTS.get(str(value.get("security", "starttls")), 0)}
        return value

    @model_validator(mode="after")
    def _secret(self) -> Smtp:
        if self.password_file and self.password_env:
            raise ValueError("password_file and password_env are both given|Keep one of them.")
        if (self.password_file or self.password_env) and not self.username:
            raise ValueError("there is a password but no username|Add username, or remove the password.")
        if self.username and not (self.password_file or self.password_env):
            raise ValueError("there is a username but no password|Add password_file (or password_env).")
        return self


class Retry(_Model):
    """When a deferred document is tried again."""

    first: Duration = 30.0
    max: Duration = 1800.0
    give_up_after: Duration = 432000.0
    uncertain_attempts: int = Field(default=3, ge=0)


class Watch(_Model):
    """How deposits are noticed."""

    mode: Literal["auto", "inotify", "polling"] = "auto"
    quiet: Duration = 2.0
    quiet_limit: Duration = 600.0
    sweep: Duration = 60.0
    poll: Duration = 10.0


class MarkerOptions(_Model):
    """The marker's name."""

    suffix: Annotated[str, BeforeValidator(_suffix)] = ".validated.json"
    hidden: bool = False


class LogOptions(_Model):
    """How log lines are written."""

    format: Literal["auto", "console", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class SwitchedFolder(_Model):
    """A folder of the GED for which the bridge is on."""

    path: InnerPath
    collection_email: Address | None = None
    exclude: tuple[InnerPath, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class Client(_Model):
    """A customer of the firm."""

    name: Text
    ged: Annotated[Path, BeforeValidator(_ged)]
    collection_email: Address
    sender: Address | None = None
    shared_collection_email: bool = False
    switched_folders: tuple[SwitchedFolder, ...] = ()

    def addresses(self) -> set[str]:
        """Every collection email of the client."""
        return {self.collection_email} | {f.collection_email for f in self.switched_folders if f.collection_email}


class Settings(_Model):
    """The whole configuration."""

    smtp: Smtp
    retry: Retry = Retry()
    subject: Text = "{document}"
    watch: Watch = Watch()
    marker: MarkerOptions = MarkerOptions()
    ignore: tuple[Text, ...] = ()
    catch_up: bool = False
    on_overwrite: Literal["ignore", "send"] = "ignore"
    state_dir: Path = Field(default_factory=lambda: Path(os.environ.get("STATE_DIRECTORY", "/var/lib/bridged")))
    log: LogOptions = LogOptions()
    clients: tuple[Client, ...]

    @model_validator(mode="after")
    def _checked(self) -> Settings:
        wrong = sorted(set(re.findall(r"\{[^}]*\}?", self.subject)) - {"{document}", "{client}"})
        if wrong:
            raise ValueError(f"subject: {wrong[0]} is unknown|Use {{document}} and {{client}} only.")
        if not self.state_dir.is_absolute():
            raise ValueError("state_dir is not absolute|Begin it with a slash.")
        return self


# -- loading


def find_config(option: Path | None) -> Path:
    """--config, else $BRIDGED_CONFIG, else /etc/bridged/bridged.yaml."""
    return option or Path(os.environ.get("BRIDGED_CONFIG") or DEFAULT_FILE)


def load(path: Path) -> Settings:
    """The settings in a file. Raises ConfigError with every problem at once."""
    lines = read(_content(path), str(path))
    if not isinstance(lines.value, dict) and not lines.problems:
        lines.add((), "The file holds no configuration.", "Begin with smtp: and clients:.")
    if not isinstance(lines.value, dict):
        raise ConfigError(lines.problems)
    _passwords(lines)
    settings = _validated(lines)
    _conflicts(lines)
    if lines.problems or settings is None:
        raise ConfigError(sorted(lines.problems, key=lambda p: p.line))
    return settings


def _content(path: Path) -> str:
    def refuse(message: str, remedy: str) -> ConfigError:
        return ConfigError([Problem(str(path), 1, "", message, remedy)])

    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise refuse(
            f"The file cannot be read: {error.strerror}.", "Create it, or name another with --config."
        ) from None
    if len(raw) > LARGEST:
        raise refuse("The file is larger than 1 MB.", "This is hardly a configuration of bridged.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise refuse("The file is not UTF-8.", "Save it as UTF-8 text.") from None


def _passwords(lines: Lines) -> None:
    smtp = lines.value.get("smtp")
    for key in ("password", "pass", "passwd"):
        if isinstance(smtp, dict) and key in smtp:
            del smtp[key]
            remedy = "Put it into a file of its own and name that with password_file."
            lines.add(("smtp", key), "A password must not stand in this file.", remedy)


def _validated(lines: Lines) -> Settings | None:
    try:
        return Settings.model_validate(lines.value)
    except ValidationError as error:
        for one in error.errors(include_url=False, include_input=True):
            where: Where = tuple(part for part in one["loc"] if not _is_ours(part))
            lines.add(where, *_sentence(one, where))
        return None


def _is_ours(part: str | int) -> bool:
    """Union members are named by pydantic in a location; the file does not."""
    return isinstance(part, str) and part.startswith("function-")


def _sentence(error: Any, where: Where) -> tuple[str, str]:
    kind, given = error["type"], error.get("input")
    if kind == "missing":
        return "This is required.", f"Add `{where[-1]}:`."
    if kind == "extra_forbidden":
        return _unknown_key(where)
    message = str(error["msg"]).removeprefix("Value error, ")
    sentence, _, remedy = message.partition("|")
    if kind in ("literal_error", "enum"):
        remedy = f"Write {error['ctx']['expected']}."
        sentence = f"{given!r} is not one of the choices"
    if kind in ("model_type", "dict_type"):
        sentence, remedy = "This must be a mapping", "Write `key: value` lines below it."
    elif kind == "tuple_type":
        sentence, remedy = "This must be a list", "Begin each entry with a dash."
    return sentence[:1].upper() + sentence[1:].rstrip(".") + ".", remedy or "Correct the value."


def _unknown_key(where: Where) -> tuple[str, str]:
    model = _model_at(where[:-1])
    near = get_close_matches(str(where[-1]), list(model.model_fields) if model else [], 1, 0.5)
    remedy = f"Did you mean {near[0]!r}?" if near else "Remove it, or look the key up in the sample configuration."
    return f"The key {where[-1]!r} is unknown.", remedy


def _model_at(where: Where) -> type[_Model] | None:
    names = tuple(part for part in where if isinstance(part, str))
    places: dict[tuple[str, ...], type[_Model]] = {
        (): Settings,
        ("smtp",): Smtp,
        ("retry",): Retry,
        ("watch",): Watch,
        ("marker",): MarkerOptions,
        ("log",): LogOptions,
        ("clients",): Client,
        ("clients", "switched_folders"): SwitchedFolder,
    }
    return places.get(names)


# -- what one entry cannot know of another. It reads the raw values, so that it is told along with the rest.


def _conflicts(lines: Lines) -> None:
    clients = lines.value.get("clients")
    entries = [(i, c) for i, c in enumerate(clients) if isinstance(c, dict)] if isinstance(clients, list) else []
    _same_names(lines, entries)
    _overlapping_geds(lines, entries)
    _shared_addresses(lines, entries)
    _same_folders(lines, entries)


Entries = list[tuple[int, dict[str, Any]]]


def _same_names(lines: Lines, entries: Entries) -> None:
    seen: dict[str, int] = {}
    for i, client in entries:
        name = str(client.get("name", "")).casefold()
        if name and name in seen:
            first = lines.line(("clients", seen[name], "name"))
            lines.add(
                ("clients", i, "name"),
                f"Two clients have this name (the other on line {first}).",
                "Rename one.",
            )
        seen.setdefault(name, i)


def _overlapping_geds(lines: Lines, entries: Entries) -> None:
    geds = [(i, os.path.realpath(str(c["ged"]))) for i, c in entries if str(c.get("ged", "")).startswith("/")]
    for n, (i, ged) in enumerate(geds):
        for j, other in geds[:n]:
            if os.path.commonpath([ged, other]) in (ged, other):
                first = lines.line(("clients", j, "ged"))
                message = f"This GED overlaps with the one on line {first}."
                lines.add(("clients", i, "ged"), message, "Give each client a directory of its own.")


def _shared_addresses(lines: Lines, entries: Entries) -> None:
    owners: dict[str, int] = {}
    for i, client in entries:
        for where, address in _addresses(i, client):
            first = owners.setdefault(address.casefold(), i)
            both = client.get("shared_collection_email") is True and (
                dict(entries)[first].get("shared_collection_email") is True
            )
            if first != i and not both:
                line = lines.line(("clients", first, "collection_email"))
                message = f"The client on line {line} has this collection email too: documents would mix."
                lines.add(where, message, "Correct it, or set shared_collection_email: true on both clients.")


def _addresses(i: int, client: dict[str, Any]) -> Iterator[tuple[Where, str]]:
    if isinstance(client.get("collection_email"), str):
        yield ("clients", i, "collection_email"), client["collection_email"]
    folders = client.get("switched_folders")
    for n, folder in enumerate(folders if isinstance(folders, list) else []):
        if isinstance(folder, dict) and isinstance(folder.get("collection_email"), str):
            yield ("clients", i, "switched_folders", n, "collection_email"), folder["collection_email"]


def _same_folders(lines: Lines, entries: Entries) -> None:
    for i, client in entries:
        seen: set[str] = set()
        folders = client.get("switched_folders")
        for n, folder in enumerate(folders if isinstance(folders, list) else []):
            path = str(folder.get("path") if isinstance(folder, dict) else folder).strip("/")
            if path in seen:
                where = ("clients", i, "switched_folders", n)
                lines.add(where, f"The folder {path!r} is listed twice.", "Remove one of the two.")
            seen.add(path)


# -- the secret and the schema


def password(smtp: Smtp) -> str | None:
    """The relay's password, read at the moment it is needed; None where none is configured."""
    if smtp.password_env:
        secret = os.environ.get(smtp.password_env)
        if not secret:
            raise UserError(f"The environment variable {smtp.password_env} (smtp.password_env) is not set: set it.")
        return secret
    if not smtp.password_file:
        return None
    path = Path(os.environ.get("CREDENTIALS_DIRECTORY", "")) / smtp.password_file
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"The password file {path} (smtp.password_file) cannot be read ({why}): correct it.") from None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the configuration, as it is written: durations are text, a folder may be a bare path."""
    schema = Settings.model_json_schema()
    definitions = schema["$defs"]
    definitions["Rate"] = {
        "type": "string",
        "pattern": r"^\d+\s*/\s*(s|sec|m|min|h|hour|d|day)$",
        "title": "Rate",
    }
    for model, keys in _DURATIONS.items():
        for key in keys:
            field = definitions[model]["properties"][key]
            default = {"default": _written(field["default"])} if "default" in field else {}
            title = field.get("title", key)
            definitions[model]["properties"][key] = {
                "type": "string",
                "pattern": _PATTERN,
                "title": title,
            } | default
    items = definitions["Client"]["properties"]["switched_folders"]["items"]
    definitions["Client"]["properties"]["switched_folders"]["items"] = {"anyOf": [{"type": "string"}, items]}
    schema["properties"]["state_dir"].setdefault("default", "/var/lib/bridged")
    schema["properties"]["retry"].pop("default", None)
    schema["properties"]["watch"].pop("default", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "bridged"} | schema


_PATTERN: Final = r"^\d+(\.\d+)?(ms|s|m|h|d)$"
_DURATIONS: Final = {
    "Smtp": ("timeout",),
    "Retry": ("first", "max", "give_up_after"),
    "Watch": ("quiet", "quiet_limit", "sweep", "poll"),
}


def _written(seconds: float) -> str:
    unit = next(u for u in ("d", "h", "m", "s", "ms") if seconds >= _UNITS[u])
    return f"{seconds / _UNITS[unit]:g}{unit}"
