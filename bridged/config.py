"""The configuration: YAML text to `Settings`, or every problem at once, each with its line and a remedy."""

from __future__ import annotations

import functools
import os
import re
import stat
import time
import unicodedata
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bridged.model import UserError
from bridged.patience import Patience
from bridged.yaml_lines import MOST_PROBLEMS, Lines, Problem, Where, read, shown

DEFAULT_FILE: Final = Path("/etc/bridged/bridged.yaml")
LARGEST: Final = 1_000_000
_LONGEST_WAIT: Final = 3650 * 86400.0  # a wait beyond some centuries overflows the C library's
_SECRETS: Final = ("password", "passwd", "pass", "passphrase", "mot_de_passe")
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
        raise ValueError(f"{shown(value)} is not a duration|Write for example 500ms, 2s, 5m, 3h or 5d.")
    seconds = float(found[1]) * _UNITS[found[2]]
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
    if not _is_path(text):
        raise ValueError(f"{shown(text)} cannot be a path|Write it as the folder is called.")
    return _plain_path(text)


def _plain_path(text: str) -> str:
    return "/".join(part for part in text.split("/") if part not in ("", ".")) or "."


def _is_path(text: str) -> bool:
    """Whether a file system could know it. The parents of a path of 1 MB fill the memory."""
    return _is_utf8(text) and len(text) < 4096


def _is_utf8(text: str) -> bool:
    """YAML's escapes, and the environment, can write a NUL or half of a character."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _absolute(value: Any) -> Path:
    text = str(value)
    if not text.startswith("/"):
        raise ValueError(f"{shown(text)} is not absolute|Begin it with a slash.")
    if not _is_path(text):
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


Duration = Annotated[float, BeforeValidator(_positive)]
Address = Annotated[str, BeforeValidator(_address)]
InnerPath = Annotated[str, BeforeValidator(_inner_path)]
Text = Annotated[str, BeforeValidator(_text)]
# What pydantic would take for a number or a yes (`port: true`, `connections: "2"`) is a slip of the pen.
Whole = Annotated[int, Field(strict=True)]
YesNo = Annotated[bool, Field(strict=True)]


# -- the models


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, value: Any) -> Any:
        """A key with nothing behind it is as good as no key: its default holds."""
        if not isinstance(value, dict):
            return value
        return {key: given for key, given in value.items() if given is not None or key not in cls.model_fields}


class Rate(_Model):
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


class Smtp(_Model):
    """The relay."""

    host: Annotated[str, BeforeValidator(_host)]
    port: Annotated[Whole, BeforeValidator(_port)] = Field(default=0, ge=0, le=65535)
    security: Literal["starttls", "tls", "plain"] = "starttls"
    username: Text | None = None
    password_file: Text | None = None
    password_env: Annotated[str, BeforeValidator(_variable)] | None = None
    sender: Address
    ca_file: Path | None = None
    connections: Whole = Field(default=2, ge=1, le=50)
    rate: Rate | None = None
    timeout: Duration = 60.0

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("port") is None:
            security = value.get("security") or "starttls"
            return value | {"port": _PORTS.get(str(security), 25)}
        return value


class Retry(_Model):
    """When a deferred document is tried again."""

    first: Duration = 30.0
    max: Duration = 1800.0
    give_up_after: Duration = 432000.0
    uncertain_attempts: Whole = Field(default=3, ge=0)


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
    hidden: YesNo = False


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
        return value if isinstance(value, dict) else {"path": "" if value is None else value}


class Client(_Model):
    """A customer of the firm."""

    name: Text
    ged: Annotated[Path, BeforeValidator(_ged)]
    collection_email: Address
    sender: Address | None = None
    shared_collection_email: YesNo = False
    switched_folders: tuple[SwitchedFolder, ...] = ()


def _default_state_dir() -> Path:
    """The first of systemd's StateDirectory=, of which there may be several."""
    return Path(os.environ.get("STATE_DIRECTORY", "").partition(":")[0] or "/var/lib/bridged")


class Settings(_Model):
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
    clients: tuple[Client, ...]


# -- loading


def find_config(option: Path | None) -> Path:
    """--config, else $BRIDGED_CONFIG, else /etc/bridged/bridged.yaml."""
    return option or Path(os.environ.get("BRIDGED_CONFIG") or DEFAULT_FILE)


def load(path: Path) -> Settings:
    """The settings in a file. Raises ConfigError with every problem at once, or the first hundred of them."""
    lines = read(_content(path), str(path))
    if not isinstance(lines.value, dict) and not lines.problems:
        lines.add((), "The file holds no configuration.", "Begin with smtp: and clients:.")
    if not isinstance(lines.value, dict):
        raise ConfigError(lines.found())
    _as_written(lines)
    _passwords(lines)
    settings = _validated(lines)
    _conflicts(lines)
    if lines.problems or settings is None:
        raise ConfigError(lines.found())
    return settings


def _content(path: Path) -> str:
    def refuse(message: str, remedy: str) -> ConfigError:
        return ConfigError([Problem(str(path), 1, "", message, remedy)])

    try:
        # O_NONBLOCK: a FIFO at this path must be refused, not waited for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise refuse("This is not a regular file.", "Name a YAML file with --config.")
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


def _as_written(lines: Lines) -> None:
    """Where people name something, `2026` and `No` are names, although YAML reads a number and a boolean."""
    for where, text in lines.texts.items():
        if tuple(part for part in where if isinstance(part, str)) in _NAMES:
            parent = lines.value
            for part in where[:-1]:
                parent = parent[part]
            parent[where[-1]] = text


_NAMES: Final = {
    ("ignore",),
    ("smtp", "username"),
    ("clients", "name"),
    ("clients", "switched_folders"),
    ("clients", "switched_folders", "path"),
    ("clients", "switched_folders", "exclude"),
}


def _passwords(lines: Lines) -> None:
    for where in [w for w in reversed(lines.lines) if w and str(w[-1]).casefold() in _SECRETS]:
        parent = lines.value
        for part in where[:-1]:
            parent = parent[part]
        del parent[where[-1]]
        remedy = "Put it into a file of its own and name that with smtp.password_file."
        lines.add(where, "A password must not stand in this file.", remedy)


def _validated(lines: Lines) -> Settings | None:
    try:
        return Settings.model_validate(lines.value)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=True)
        lines.more += len(errors[MOST_PROBLEMS:])
        for one in errors[:MOST_PROBLEMS]:
            where: Where = tuple(part for part in one["loc"] if not _is_ours(part))
            if one["type"] != "missing" and where[-1:] == ("path",) and where not in lines.lines:
                where = where[:-1]  # a bare string is the path
            lines.add(where, *_sentence(one, where, lines))
        return None


def _is_ours(part: str | int) -> bool:
    """Union members are named by pydantic in a location; the file does not."""
    return isinstance(part, str) and part.startswith("function-")


def _sentence(error: Any, where: Where, lines: Lines) -> tuple[str, str]:
    kind, given = error["type"], error.get("input")
    if kind == "missing":
        if where in lines.lines:
            return "This is required, and nothing stands here.", f"Write it behind `{where[-1]}:`."
        return "This is required.", f"Add `{where[-1]}:`."
    if kind == "extra_forbidden":
        return _unknown_key(where)
    message = str(error["msg"]).removeprefix("Value error, ")
    sentence, _, remedy = message.partition("|")
    if kind in ("literal_error", "enum"):
        remedy = f"Write {error['ctx']['expected']}."
        sentence = f"{shown(given)} is not one of the choices"
    elif kind in _WRONG_TYPES:
        sentence, remedy = _WRONG_TYPES[kind]
    return sentence[:1].upper() + sentence[1:].rstrip(".") + ".", remedy or "Correct the value."


_MAPPING: Final = ("This must be a mapping", "Write `key: value` lines below it.")
_NUMBER: Final = ("This must be a whole number", "Write it with digits only, without quotes.")
_WRONG_TYPES: Final = {
    "model_type": _MAPPING,
    "dict_type": _MAPPING,
    "tuple_type": ("This must be a list", "Begin each entry with a dash."),
    "int_type": _NUMBER,
    "int_from_float": _NUMBER,
    "int_parsing_size": _NUMBER,
    "bool_type": ("This must be true or false", "Write one of the two, without quotes."),
    "path_type": ("This must be a path", "Write it as text."),
}


def _unknown_key(where: Where) -> tuple[str, str]:
    model = _model_at(where[:-1])
    near = get_close_matches(str(where[-1])[:60], list(model.model_fields) if model else [], 1, 0.5)
    remedy = f"Did you mean {near[0]!r}?" if near else "Remove it, or look the key up in the sample configuration."
    return f"The key {shown(where[-1])} is unknown.", remedy


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
    _login(lines)
    _state_in_ged(lines)
    clients = lines.value.get("clients")
    if clients == []:  # a half-written file must not switch everything off
        lines.add(("clients",), "There is no client.", "Add one, as in the sample configuration.")
    entries = [(i, c) for i, c in enumerate(clients) if isinstance(c, dict)] if isinstance(clients, list) else []
    _same_names(lines, entries)
    _overlapping_geds(lines, entries)
    _shared_addresses(lines, entries)
    _same_folders(lines, entries)


def _state_in_ged(lines: Lines) -> None:
    state = str(lines.value.get("state_dir") or "")
    clients = lines.value.get("clients") if state.startswith("/") and _is_path(state) else []
    for client in clients if isinstance(clients, list) else []:
        ged = str(client.get("ged", "")) if isinstance(client, dict) else ""
        if ged.startswith("/") and os.path.commonpath([ged, state]) == os.path.normpath(ged):
            lines.add(
                ("state_dir",), "The journal would lie inside a GED.", "Keep it in a directory of the daemon's own."
            )


Entries = list[tuple[int, dict[str, Any]]]


def _login(lines: Lines) -> None:
    smtp = lines.value.get("smtp")
    given = {key for key, value in smtp.items() if value} if isinstance(smtp, dict) else set()
    files = sorted(given & {"password_file", "password_env"})
    if len(files) == 2:
        lines.add(("smtp", "password_env"), "password_file and password_env are both given.", "Keep one of them.")
    if files and "username" not in given:
        lines.add(("smtp", files[0]), "There is a password but no username.", "Add username, or remove the password.")
    if "username" in given and not files:
        lines.add(("smtp", "username"), "There is a username but no password.", "Add password_file (or password_env).")


def _same_names(lines: Lines, entries: Entries) -> None:
    seen: dict[str, int] = {}
    for i, client in entries:
        name = unicodedata.normalize("NFC", str(client.get("name") or "").strip().casefold())
        if name and name in seen:
            first = lines.line(("clients", seen[name], "name"))
            lines.add(
                ("clients", i, "name"),
                f"Two clients have this name (the other on line {first}).",
                "Rename one.",
            )
        seen.setdefault(name, i)


def _overlapping_geds(lines: Lines, entries: Entries) -> None:
    """A link does not hide an overlap. In order of their parts, what lies in a GED follows it: one look for each."""
    texts = [(i, str(client.get("ged"))) for i, client in entries]
    absolute = [(i, text) for i, text in texts if text.startswith("/") and _is_path(text)]
    real = _resolved([text for _, text in absolute])
    outer: tuple[str, ...] = ()
    owner = -1
    for parts, i in sorted((Path(ged).parts, i) for (i, _), ged in zip(absolute, real, strict=True)):
        if owner < 0 or parts[: len(outer)] != outer:
            outer, owner = parts, i
            continue
        message = f"This GED overlaps with the one on line {lines.line(('clients', min(i, owner), 'ged'))}."
        lines.add(("clients", max(i, owner), "ged"), message, "Give each client a directory of its own.")


def _resolved(geds: Sequence[str]) -> Iterator[str]:
    """Each with its links followed. One on a share that hangs is taken by its name: the others must be reloadable."""
    patience, hanging = Patience(time.monotonic), 0
    for ged in geds:
        real = os.path.normpath(ged)
        if hanging < 3:
            call = patience.start(os.fsencode(ged), functools.partial(os.path.realpath, ged))
            if call.wait(1.0):
                real = call.result()
            else:
                hanging += 1
        yield real


def _shared_addresses(lines: Lines, entries: Entries) -> None:
    owners: dict[str, int] = {}
    shared = {i for i, client in entries if client.get("shared_collection_email") is True}
    for i, client in entries:
        for where, address in _addresses(i, client):
            first = owners.setdefault(address.casefold(), i)
            if first != i and not {first, i} <= shared:
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
            given = folder.get("path") if isinstance(folder, dict) else folder
            path = (
                unicodedata.normalize("NFC", _plain_path(given))
                if isinstance(given, str) and given[:1] != "/"
                else None
            )
            if path in seen:
                where = ("clients", i, "switched_folders", n)
                lines.add(where, f"The folder {shown(path)} is listed twice.", "Remove one of the two.")
            if path is not None:
                seen.add(path)


# -- the secret and the schema


def password(smtp: Smtp) -> str | None:
    """The relay's password, read at the moment it is needed; None where none is configured.

    Raises UserError, which never shows it.
    """
    if smtp.password_env:
        place = f"The environment variable {smtp.password_env} (smtp.password_env)"
        secret = os.environ.get(smtp.password_env, "")
        if not secret:
            raise UserError(f"{place} is not set: set it.")
        if not _is_utf8(secret):
            raise UserError(f"{place} is not UTF-8: set it again.")
        return secret
    return _secret_file(smtp.password_file) if smtp.password_file else None


def _secret_file(name: str) -> str:
    credentials = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if not os.path.isabs(name) and not credentials:
        raise UserError(
            f"The password file {name} (smtp.password_file) cannot be read: it is relative to $CREDENTIALS_DIRECTORY,"
            " which systemd sets. Run this under systemd, or name the file by its absolute path."
        )
    path = Path(credentials) / name
    try:
        secret = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"The password file {path} (smtp.password_file) cannot be read ({why}): correct it.") from None
    if not secret:
        raise UserError(f"The password file {path} (smtp.password_file) is empty: write the password into it.")
    return secret


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
