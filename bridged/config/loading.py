"""The configuration: YAML text to `Settings`, or every problem at once, each with its line and a remedy."""

from __future__ import annotations

import functools
import os
import stat
import time
import unicodedata
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from bridged.config.lines import MOST_PROBLEMS, Lines, Problem, Where, read, shown
from bridged.config.presets import COLLECTORS, collector
from bridged.config.settings import (
    Alerts,
    Brake,
    Client,
    LogOptions,
    MarkerOptions,
    Model,
    OAuth,
    Retry,
    Settings,
    Smtp,
    SwitchedFolder,
    Watch,
    is_path,
    plain_path,
)
from bridged.ged import Calls
from bridged.model import UserError

DEFAULT_FILE: Final = Path("/etc/bridged/bridged.yaml")
LARGEST: Final = 1_000_000
DRY_RUN: Final = "dry-run"  # the state directory of a dry run, in the real one
_SECRETS: Final = ("password", "passwd", "pass", "passphrase", "mot_de_passe")


class ConfigError(UserError):
    """The configuration is refused."""

    exit_code = 78

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


# -- loading


def find_config(option: Path | None) -> Path:
    """--config, else $BRIDGED_CONFIG, else /etc/bridged/bridged.yaml."""
    return option or Path(os.environ.get("BRIDGED_CONFIG") or DEFAULT_FILE)


def load(path: Path, *, dry_run: bool = False) -> Settings:
    """The settings in a file. Raises ConfigError with every problem at once, or the first hundred of them.

    A dry run has a state directory of its own, below the real one, and alerts nobody.
    """
    lines = read(_content(path), str(path))
    if not isinstance(lines.value, dict) and not lines.problems:
        lines.add((), "The file holds no configuration.", "Begin with smtp: and clients:.")
    if not isinstance(lines.value, dict):
        raise ConfigError(lines.found())
    as_written(lines)
    _passwords(lines)
    settings = _validated(lines)
    _conflicts(lines)
    if lines.problems or settings is None:
        raise ConfigError(lines.found())
    if dry_run:
        return settings.model_copy(update={"state_dir": settings.state_dir / DRY_RUN, "alerts": None})
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


def as_written(lines: Lines) -> None:
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
    ("smtp", "auth", "tenant"),
    ("smtp", "auth", "client_id"),
    ("alerts", "digest"),
    ("alerts", "smtp", "username"),
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
    elif kind in _BOUNDS:
        most, write = _BOUNDS[kind]
        sentence, remedy = f"{shown(given)} is too {most}", f"Write at {write} {error['ctx'].popitem()[1]}."
    elif kind in _WRONG_TYPES:
        sentence, remedy = _WRONG_TYPES[kind]
    return sentence[:1].upper() + sentence[1:].rstrip(".") + ".", remedy or "Correct the value."


_MAPPING: Final = ("This must be a mapping", "Write `key: value` lines below it.")
_NUMBER: Final = ("This must be a whole number", "Write it with digits only, without quotes.")
_BOUNDS: Final = {"greater_than_equal": ("small", "least"), "less_than_equal": ("large", "most")}
_WRONG_TYPES: Final = {
    "model_type": _MAPPING,
    "dict_type": _MAPPING,
    "tuple_type": ("This must be a list", "Begin each entry with a dash."),
    "too_short": ("This list is empty", "Write at least one entry."),
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


def _model_at(where: Where) -> type[Model] | None:
    names = tuple(part for part in where if isinstance(part, str))
    places: dict[tuple[str, ...], type[Model]] = {
        (): Settings,
        ("smtp",): Smtp,
        ("smtp", "auth"): OAuth,
        ("alerts",): Alerts,
        ("alerts", "smtp"): Smtp,
        ("alerts", "smtp", "auth"): OAuth,
        ("retry",): Retry,
        ("watch",): Watch,
        ("marker",): MarkerOptions,
        ("log",): LogOptions,
        ("clients",): Client,
        ("clients", "brake"): Brake,
        ("clients", "switched_folders"): SwitchedFolder,
    }
    return places.get(names)


# -- what one entry cannot know of another. It reads the raw values, so that it is told along with the rest.


def _conflicts(lines: Lines) -> None:
    _login(lines, ("smtp",), lines.value.get("smtp"))
    _state_in_ged(lines)
    clients = lines.value.get("clients")
    if clients == []:  # a half-written file must not switch everything off
        lines.add(("clients",), "There is no client.", "Add one, as in the sample configuration.")
    entries = [(i, c) for i, c in enumerate(clients) if isinstance(c, dict)] if isinstance(clients, list) else []
    alerts = lines.value.get("alerts")
    if isinstance(alerts, dict):
        _login(lines, ("alerts", "smtp"), alerts.get("smtp"))
        _alerts_to_a_collector(lines, alerts.get("to"), entries)
    _same_names(lines, entries)
    _overlapping_geds(lines, entries)
    _shared_addresses(lines, entries)
    _same_folders(lines, entries)


def _state_in_ged(lines: Lines) -> None:
    state = str(lines.value.get("state_dir") or "")
    clients = lines.value.get("clients") if state.startswith("/") and is_path(state) else []
    for client in clients if isinstance(clients, list) else []:
        ged = str(client.get("ged", "")) if isinstance(client, dict) else ""
        if ged.startswith("/") and os.path.commonpath([ged, state]) == os.path.normpath(ged):
            lines.add(
                ("state_dir",), "The journal would lie inside a GED.", "Keep it in a directory of the daemon's own."
            )


Entries = list[tuple[int, dict[str, Any]]]


def _login(lines: Lines, where: Where, smtp: Any) -> None:
    given = {key for key, value in smtp.items() if value} if isinstance(smtp, dict) else set()
    files = sorted(given & {"password_file", "password_env"})
    if len(files) == 2:
        lines.add((*where, "password_env"), "password_file and password_env are both given.", "Keep one of them.")
    if files and "username" not in given:
        lines.add((*where, files[0]), "There is a password but no username.", "Add username, or remove the password.")
    if "username" in given and not files and "auth" not in given:
        lines.add((*where, "username"), "There is a username but no password.", "Add password_file (or password_env).")
    if "auth" in given:
        _oauth(lines, (*where, "auth"), smtp["auth"], given)


def _oauth(lines: Lines, where: Where, auth: Any, beside: set[str]) -> None:
    if beside & {"password_file", "password_env"}:
        lines.add(where, "There is a password beside auth.", "Keep one of the two ways to sign in.")
    if "username" not in beside:
        lines.add(where, "There is no username, whose mailbox is to send.", "Add smtp.username.")
    given = {key for key, value in auth.items() if value} if isinstance(auth, dict) else set()
    application = ("tenant", "client_id", "client_secret_file")
    missing = [key for key in application if key not in given]
    if "service_account_file" in given:
        for key in sorted(given.intersection(application)):
            lines.add((*where, key), "This does not go with service_account_file.", "Keep one of the two.")
    elif missing:
        remedy = "Microsoft 365 needs all three of them, Google Workspace service_account_file instead."
        lines.add(where, f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.", remedy)


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
    absolute = [(i, text) for i, text in texts if text.startswith("/") and is_path(text)]
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
    calls, hanging = Calls(time.monotonic), 0
    for ged in geds:
        real = os.path.normpath(ged)
        if hanging < 3:
            call = calls.start(os.fsencode(ged), functools.partial(os.path.realpath, ged))
            if call.wait(1.0):
                real = call.result()
            else:
                hanging += 1
        yield real


def _shared_addresses(lines: Lines, entries: Entries) -> None:
    """Case tells two addresses apart only where the collectors of both say so, and the domain's never does."""
    owners: dict[tuple[str, str], list[int]] = {}
    shared = {i for i, client in entries if client.get("shared_collection_email") is True}
    for i, client in entries:
        for where, address in _addresses(i, client):
            matters, folded = _case_matters(client, where, lines), address.casefold()
            local, _, domain = address.rpartition("@")
            same = ("as it is", f"{local}@{domain.casefold()}")
            others = [same, ("caseless", folded)] if matters else [("of any kind", folded)]
            found = (first for key in others for first in owners.get(key, ()) if first != i)
            first = next((one for one in found if not {one, i} <= shared), None)
            if first is not None:
                line = lines.line(("clients", first, "collection_email"))
                message = f"The client on line {line} has this collection email too: documents would mix."
                lines.add(where, message, "Correct it, or set shared_collection_email: true on both clients.")
            for key in (same, ("of any kind", folded), *([] if matters else [("caseless", folded)])):
                _note_owner(owners.setdefault(key, []), i, shared)


def _alerts_to_a_collector(lines: Lines, to: Any, entries: Entries) -> None:
    """What a collector gets, it books, and an alert is no invoice."""
    owners = {address.casefold(): where for i, client in entries for where, address in _addresses(i, client)}
    people = {("alerts", "to", n): one for n, one in enumerate(to)} if isinstance(to, list) else {("alerts", "to"): to}
    for where, address in people.items():
        owner = owners.get(address.casefold()) if isinstance(address, str) else None
        if owner is not None:
            message = f"On line {lines.line(owner)} this is a collection email, where an alert is taken for an invoice."
            lines.add(where, message, "Name the mailbox of a person.")


def _note_owner(owners: list[int], i: int, shared: set[int]) -> None:
    """Two of them are enough, and one that does not share: each further client is compared with no more."""
    if i not in owners and (len(owners) < 2 or (i not in shared and shared.issuperset(owners))):
        owners.append(i)


def _case_matters(client: dict[str, Any], where: Where, lines: Lines) -> bool:
    """Whether the collector gives out addresses that differ by their case alone."""
    folder = lines.value["clients"][where[1]]["switched_folders"][where[3]] if len(where) > 3 else client
    name = folder.get("collector") or client.get("collector")
    limit = collector(name).case_sensitive if name in COLLECTORS else None
    return limit is not None and limit.value and limit.holds


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
                unicodedata.normalize("NFC", plain_path(given)) if isinstance(given, str) and given[:1] != "/" else None
            )
            if path in seen:
                where = ("clients", i, "switched_folders", n)
                lines.add(where, f"The folder {shown(path)} is listed twice.", "Remove one of the two.")
            if path is not None:
                seen.add(path)
