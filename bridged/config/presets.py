"""Providers and collectors that are known beforehand, from the data files of the package.

`settings` merges the preset of a provider under the keys of the configuration.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any, Final, Literal, get_args

import yaml

from bridged.config.collectors import KINDS, Limit, Profile, Verified
from bridged.config.values import parse_size

# Literals, because the type checker and pydantic need them. A test compares them with the data files.
ProviderName = Literal["microsoft365", "google", "google-relay", "ionos", "ovh", "ses", "lan", "custom"]
CollectorName = Literal[
    "jefacture",
    "dext",
    "pennylane",
    "inqom",
    "conciliator",
    "hubdoc",
    "autoentry",
    "datamolino",
    "quickbooks",
    "xero",
    "clearfacts",
    "generic",
]
PROVIDERS: Final[tuple[str, ...]] = get_args(ProviderName)
COLLECTORS: Final[tuple[str, ...]] = get_args(CollectorName)

# YAML makes true and false of a bare yes and no.
_VERIFIED: Final[dict[Any, Verified]] = {True: "yes", "yes": "yes", "partly": "partly", False: "no", "no": "no"}


def provider(name: str) -> dict[str, object]:
    """A new dictionary of the keys that a provider presets, as a person would write them.

    Raises KeyError for a name outside PROVIDERS.
    """
    return dict(_data("providers.yaml")[name])


def collector(name: str) -> Profile:
    """The profile of a collector. Raises KeyError for a name outside COLLECTORS."""
    return _profiles()[name]


@functools.cache
def _data(file: str) -> dict[str, dict[str, Any]]:
    text = resources.files("bridged.config").joinpath("data", file).read_text(encoding="utf-8")
    data: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return data


@functools.cache
def _profiles() -> dict[str, Profile]:
    return {key: _profile(key, entry) for key, entry in _data("collectors.yaml").items()}


def _profile(key: str, entry: dict[str, Any]) -> Profile:
    """The profile of one entry. Raises TypeError or ValueError for each value that it should not hold."""
    (name, domains, limits) = (entry[part] for part in ("name", "domains", "limits"))
    if len(entry) != 3:
        raise ValueError(f"{key} has more than a name, domains and limits.")
    return Profile(
        key=key,
        name=name,
        domains=tuple(domains),
        **{what: _limit(f"{key}: {what}", _READERS[what], **limit) for what, limit in limits.items()},
    )


def _limit(where: str, reader: Any, *, value: Any, verified: Any, source: str) -> Limit[Any]:
    sure = _VERIFIED.get(verified)
    if sure is None or not source:
        raise ValueError(f"{where} needs a source, and verified: yes, partly or no.")
    return Limit(reader(value), sure, source)


def _kinds(value: list[str]) -> frozenset[str]:
    if unknown := set(value) - KINDS:
        raise ValueError(f"{sorted(unknown)} are no kinds of document.")
    return frozenset(value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is no number of documents.")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false.")  # noqa: TRY004 - a value of a file, not an argument
    return value


def _signs(value: list[str]) -> tuple[str, ...]:
    if not value or any(not item or item.strip() != item for item in value):
        raise ValueError(f"{value!r} are no signs or words.")
    return tuple(value)


_READERS: Final = {
    "types": _kinds,
    "largest_file": parse_size,
    "largest_image": parse_size,
    "smallest_file": parse_size,
    "largest_mail": parse_size,
    "daily_cap": _count,
    "case_sensitive": _truth,
    "avoid_in_subject": _signs,
}
