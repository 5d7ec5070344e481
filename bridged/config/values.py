"""Kinds of values: a value of the file becomes a duration, a size, an address or a path. Pure.

Each parser raises ValueError with "sentence|remedy", which `problems` takes apart.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from bridged.config.lines import shown

_LONGEST_WAIT: Final = 3650 * 86400.0  # seconds; a wait of some centuries overflows the C library's time
UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
PER: Final = {
    "s": 1.0,
    "sec": 1.0,
    "min": 60.0,
    "m": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
}
_BYTES: Final = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS: Final = re.compile(rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~.-]{{1,64}}@{_LABEL}(?:\.{_LABEL})+")


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


def parse_size(value: Any) -> int:
    """The bytes of a size as it is written: `25MB` or `30KiB`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError("a size needs its unit|Write for example 25MB.")  # noqa: TRY004 - for pydantic
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s?([kmg]i?b|b)", str(value).strip(), re.ASCII | re.IGNORECASE)
    if not found:
        raise ValueError(f"{shown(value)} is not a size|Write for example 25MB.")
    size = round(float(found[1]) * _BYTES[found[2].lower()])
    if size < 1:
        raise ValueError("this size must be more than nothing|Write for example 25MB.")
    return size


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
    """A path below a GED without empty parts and dots: `./Achats/` is `Achats`."""
    return "/".join(part for part in text.split("/") if part not in ("", ".")) or "."


def is_path(text: str) -> bool:
    """True for a text that a file system may have as a path, of less than 4096 characters.

    The length counts, because the parents of a path of 1 MB fill the memory.
    """
    return is_utf8(text) and len(text) < 4096


def is_utf8(text: str) -> bool:
    """True without a NUL and without half of a character; escapes of YAML and the environment may hold both."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _absolute(value: Any) -> Path:
    text = str(value)
    if not text.startswith("/"):
        raise ValueError(f"{shown(text)} is not absolute|Begin it with a slash.")
    if not is_path(text):
        raise ValueError(f"{shown(text)} cannot be a path|Write it as the directory is called.")
    return Path(posixpath.normpath("/" + text.lstrip("/")))


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
    """The value is not quoted in the problem, because people paste `smtp://user:password@host` here."""
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
    # Two dots or .json, because with `.pdf` every document would look like a marker and none would be sent.
    if "/" in text or not re.fullmatch(r"\.[^.]+\.[^.]+|.*\.json", text) or len(text) < 4 or text[0] != ".":
        raise ValueError(f"{shown(text)} cannot end a marker's name|Write for example .validated.json.")
    return text


def _variable(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(value)):  # not quoted, because it may be the password itself
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
    """Over TLS or to this machine, because a reader of the request could send mail as the firm."""
    url = urlsplit(_text(value))
    private = url.scheme == "https" or (url.scheme, url.hostname) == ("http", "127.0.0.1")
    if not private or not url.hostname or url.username:
        raise ValueError("a token endpoint is an https:// address|Write it as the provider gives it, or leave it out.")
    return str(value)


def _one_or_more(value: Any) -> Any:
    """A single address becomes a list of one."""
    return [value] if isinstance(value, str) else value


# Strict, because pydantic would take `port: true` for 1 and `connections: "2"` for 2.
Whole = Annotated[int, Field(strict=True)]
YesNo = Annotated[bool, Field(strict=True)]
Text = Annotated[str, BeforeValidator(_text)]
Duration = Annotated[float, BeforeValidator(_positive)]
Size = Annotated[int, BeforeValidator(parse_size)]
Address = Annotated[str, BeforeValidator(_address)]
Addresses = Annotated[tuple[Address, ...], BeforeValidator(_one_or_more)]
Directory = Annotated[Path, BeforeValidator(_absolute)]
GedPath = Annotated[Path, BeforeValidator(_ged)]
InnerPath = Annotated[str, BeforeValidator(_inner_path)]
Host = Annotated[str, BeforeValidator(_host)]
Port = Annotated[Whole, BeforeValidator(_port)]
TokenUrl = Annotated[str, BeforeValidator(_token_url)]
Variable = Annotated[str, BeforeValidator(_variable)]
Subject = Annotated[str, BeforeValidator(_subject)]
Suffix = Annotated[str, BeforeValidator(_suffix)]
Pattern = Annotated[str, BeforeValidator(_pattern)]
TimeOfDay = Annotated[str, BeforeValidator(_time_of_day)]
