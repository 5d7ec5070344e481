"""Pydantic's errors as sentences, each with a remedy."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Final

from pydantic import ValidationError

from bridged.config.lines import MOST_PROBLEMS, Lines, Where, shown
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
)


def note(error: ValidationError, lines: Lines) -> None:
    """Add a problem to `lines` for each of pydantic's errors. After the hundredth only their number grows."""
    errors = error.errors(include_url=False, include_input=True)
    lines.more += len(errors[MOST_PROBLEMS:])
    for one in errors[:MOST_PROBLEMS]:
        where: Where = tuple(part for part in one["loc"] if not _is_ours(part))
        if one["type"] != "missing" and where[-1:] == ("path",) and where not in lines.lines:
            where = where[:-1]  # a bare string stands for its path
        lines.add(where, *_sentence(one, where, lines))


def _is_ours(part: str | int) -> bool:
    """True for a part of a location that pydantic adds to name a member of a union; the file has no such part."""
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
