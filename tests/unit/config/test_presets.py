"""Providers and collectors that are known beforehand: the data files, and how a size is written."""

import re
from importlib import resources
from pathlib import Path

import pytest
import yaml

from bridged.config import collector, presets
from bridged.config.collectors import KINDS
from bridged.config.presets import COLLECTORS, PROVIDERS, provider
from bridged.config.settings import Smtp
from bridged.config.values import parse_size

ROOT = Path(__file__).resolve().parents[3]
PRESET_KEYS = {"host", "port", "security", "connections", "rate", "daily_quota", "size_limit"}
# The names that stay valid behind `provider:` and `collector:`.
PROMISED_PROVIDERS = "microsoft365 google google-relay ionos ovh ses lan custom"
PROMISED_COLLECTORS = (
    "jefacture dext pennylane inqom conciliator hubdoc autoentry datamolino quickbooks xero clearfacts generic"
)


def data(file: str) -> dict[str, dict[str, object]]:
    return yaml.safe_load((resources.files("bridged.config") / "data" / file).read_text(encoding="utf-8"))


def text(file: str) -> str:
    return (resources.files("bridged.config") / "data" / file).read_text(encoding="utf-8")


def limits() -> list[tuple[str, str, dict[str, object]]]:
    return [
        (name, what, limit)
        for name, entry in data("collectors.yaml").items()
        for what, limit in entry["limits"].items()
    ]


def test_the_names_are_those_of_the_data_files_and_those_that_were_promised() -> None:
    assert set(PROVIDERS) == set(data("providers.yaml")) == set(PROMISED_PROVIDERS.split())
    assert set(COLLECTORS) == set(data("collectors.yaml")) == set(PROMISED_COLLECTORS.split())
    assert len(PROVIDERS) == len(set(PROVIDERS))
    assert len(COLLECTORS) == len(set(COLLECTORS))


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_preset_is_accepted_by_the_configuration(name: str) -> None:
    preset = provider(name)
    assert set(preset) <= PRESET_KEYS
    known = {key: value for key, value in preset.items() if key in Smtp.model_fields}
    settings = Smtp.model_validate({"host": "smtp.example.net", "sender": "factures@cabinet.example"} | known)
    for key in {"host", "port", "security", "connections"} & set(preset):
        assert getattr(settings, key) == preset[key]
    assert (settings.rate is None) == ("rate" not in preset)
    assert type(preset.get("daily_quota", 1)) is int
    assert parse_size(preset.get("size_limit", "1MB")) >= 10**6


def test_a_preset_for_the_internet_is_encrypted_and_names_its_host() -> None:
    for name in set(PROVIDERS) - {"lan", "custom"}:
        assert provider(name)["security"] in ("starttls", "tls")
        assert provider(name)["host"]


def test_custom_presets_nothing_and_lan_the_firms_own_postfix() -> None:
    assert provider("custom") == {}
    assert provider("lan") == {"port": 25, "security": "plain", "connections": 4}


def test_the_figures_of_microsoft_365_are_those_of_a_mailbox() -> None:
    assert provider("microsoft365") == {
        "host": "smtp.office365.com",
        "port": 587,
        "security": "starttls",
        "connections": 3,
        "rate": "30/min",
        "daily_quota": 10_000,
        "size_limit": "35MB",
    }


def test_a_preset_is_a_copy_of_its_own() -> None:
    provider("lan")["port"] = 26
    assert provider("lan")["port"] == 25


def test_a_name_that_is_not_known_is_an_error() -> None:
    with pytest.raises(KeyError):
        provider("nobody")
    with pytest.raises(KeyError):
        collector("nobody")


def test_every_figure_of_a_provider_has_a_comment_with_its_source_or_without_one() -> None:
    for name, preset in data("providers.yaml").items():
        block = re.search(rf"^{name}:\n(?:  .*\n|\n(?=  ))+", text("providers.yaml"), re.MULTILINE)
        if {"rate", "daily_quota", "size_limit"} & set(preset):
            assert block, name
            assert re.search(r"https://|Unconfirmed", block[0]), name


@pytest.mark.parametrize(("name", "what", "limit"), limits(), ids=[f"{n} {w}" for n, w, _ in limits()])
def test_every_limit_of_a_collector_has_a_source_and_says_how_sure_it_is(name: str, what: str, limit: dict) -> None:
    assert set(limit) == {"value", "verified", "source"}
    read = getattr(collector(name), what)
    assert read.verified == {True: "yes", False: "no"}.get(limit["verified"], limit["verified"])
    assert read.verified in ("yes", "partly", "no")
    assert read.source == limit["source"]
    if read.verified == "yes":
        assert re.fullmatch(r"https://\S+", read.source)
    if what == "types":
        assert set(limit["value"]) == read.value <= KINDS
        assert "pdf" in read.value
    elif what in ("largest_file", "largest_image", "smallest_file", "largest_mail"):
        assert parse_size(limit["value"]) == read.value
    elif what == "avoid_in_subject":
        assert tuple(limit["value"]) == read.value
    else:
        assert limit["value"] == read.value


@pytest.mark.parametrize("name", COLLECTORS)
def test_a_profile_has_the_name_and_the_domains_of_the_data_file(name: str) -> None:
    entry, profile = data("collectors.yaml")[name], collector(name)
    assert set(entry) == {"name", "domains", "limits"}
    assert (profile.key, profile.name, list(profile.domains)) == (name, entry["name"], entry["domains"])
    assert all(re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", domain) for domain in profile.domains)
    known = {what for what in presets._READERS if getattr(profile, what) is not None}
    assert known == set(entry["limits"])


def test_the_generic_collector_has_no_limits() -> None:
    assert data("collectors.yaml")["generic"]["limits"] == {}


def test_a_value_that_the_data_file_should_not_hold_raises() -> None:
    limit = {"value": "6MB", "verified": "yes", "source": "a page"}
    entry = {"name": "A", "domains": [], "limits": {"largest_file": limit}}
    assert presets._profile("a", entry).largest_file
    for wrong in (
        entry | {"limits": {"largest": limit}},
        entry | {"limits": {"largest_file": limit | {"verified": "maybe"}}},
        entry | {"limits": {"largest_file": limit | {"source": ""}}},
        entry | {"limits": {"largest_file": limit | {"note": "x"}}},
        entry | {"limits": {"largest_file": limit | {"value": "6"}}},
        entry | {"limits": {"types": limit | {"value": ["pfd"]}}},
        entry | {"limits": {"daily_cap": limit | {"value": True}}},
        entry | {"limits": {"case_sensitive": limit | {"value": "yes"}}},
        entry | {"limits": {"avoid_in_subject": limit | {"value": [" #"]}}},
        entry | {"size": 1},
        {"name": "A", "domains": []},
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            presets._profile("a", wrong)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("25MB", 25_000_000),
        ("6 MB", 6_000_000),
        ("1.5mb", 1_500_000),
        ("30kB", 30_000),
        ("30KiB", 30_720),
        ("35MiB", 36_700_160),
        ("1GB", 10**9),
        ("2GiB", 2 * 2**30),
        (" 512B ", 512),
    ],
)
def test_a_size_is_read_as_it_is_written(written: str, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        (25, "a size needs its unit"),
        (2.5, "a size needs its unit"),
        ("25", "'25' is not a size"),
        ("25 Mo", "'25 Mo' is not a size"),
        ("-1MB", "'-1MB' is not a size"),
        ("MB", "'MB' is not a size"),
        ("", "'' is not a size"),
        (True, "True is not a size"),
        (None, "None is not a size"),
        ([1], "This list is not a size"),
        ("9" * 400 + "GB", "is not a size"),
        ("\u0663MB", "is not a size"),
        ("0MB", "this size must be more than nothing"),
    ],
)
def test_a_text_that_is_no_size_is_refused_with_a_remedy(written: object, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_size(written)
    message, _, remedy = str(caught.value).partition("|")
    assert sentence in message
    assert remedy == "Write for example 25MB."


# -- the pages


def sections(page: str) -> dict[str, str]:
    """The sections of a page of `docs`, by their titles."""
    parts = re.split(r"^## (.+)\n", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def table(text: str, header: str) -> list[list[str]]:
    lines = text.splitlines()
    if header not in lines:
        return []
    rows = []
    for line in lines[lines.index(header) + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def written(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_the_page_of_providers_has_a_section_for_each_with_the_figures_of_the_data() -> None:
    found = sections("providers.md")
    assert set(found) >= set(PROVIDERS)
    page = (ROOT / "docs/providers.md").read_text(encoding="utf-8")
    keys = ("host", "port", "security", "connections", "rate", "daily_quota", "size_limit")
    rows = table(page, f"| provider | {' | '.join(keys)} |")
    dash = "\N{EN DASH}"
    assert rows == [
        [f"[`{name}`](#{name})", *(str(provider(name).get(key, dash)) for key in keys)] for name in PROVIDERS
    ]
    for name in PROVIDERS:
        assert f"provider: {name}" in found[name]


def test_the_yaml_of_the_page_of_providers_has_known_keys_only() -> None:
    page = (ROOT / "docs/providers.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block)["smtp"] for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    assert {block["provider"] for block in blocks} == set(PROVIDERS)
    for block in blocks:
        assert set(block) <= PRESET_KEYS | {"provider", "username", "password_file", "sender", "auth", "timeout"}
        assert set(block.get("auth", {})) <= {
            *("method", "tenant", "client_id", "client_secret_file", "service_account_file")
        }
        assert block["sender"].endswith("@cabinet.example")
        assert block.get("host") or provider(block["provider"])["host"]
        known = {key: value for key, value in block.items() if key in Smtp.model_fields}
        Smtp.model_validate({"host": "smtp.example.net"} | known)


@pytest.mark.parametrize("name", COLLECTORS)
def test_the_page_of_collectors_has_the_figures_domains_and_sources_of_the_data_file(name: str) -> None:
    section, entry = sections("collectors.md")[name], data("collectors.yaml")[name]
    rows = table(section, "| limit | value | verified | source |")
    assert [[what, value.replace("`", ""), sure, source] for what, value, sure, source in rows] == [
        [what, written(limit["value"]), getattr(collector(name), what).verified, limit["source"]]
        for what, limit in entry["limits"].items()
    ]
    line = re.search(r"^Domains: (.*)\.$", section, re.MULTILINE)
    assert (line is None) == (name == "generic")
    if line:
        assert re.findall(r"`([^`]+)`", line[1]) == entry["domains"]
        assert bool(entry["domains"]) == (line[1] != "not known")


def test_the_page_of_collectors_names_no_other_collector() -> None:
    assert set(sections("collectors.md")) == set(COLLECTORS)
