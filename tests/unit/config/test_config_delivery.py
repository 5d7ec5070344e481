"""The configuration of providers, of signing in without a password, of brakes and of collectors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.config import ConfigError, load
from bridged.config.conflicts import _shared_addresses
from bridged.config.lines import Lines
from bridged.config.presets import PROVIDERS, provider

CLIENTS = """
clients:
  - {name: Martin, ged: /srv/ged/martin, collection_email: martin@collecte.example, switched_folders: [Achats]%s}
"""


@pytest.fixture
def settings(tmp_path):
    def of(smtp, client="", more=""):
        file = tmp_path / "bridged.yaml"
        file.write_text(f"smtp: {{sender: factures@cabinet.example, {smtp}}}\n{more}{CLIENTS % client}")
        return load(file)

    return of


@pytest.fixture
def problems(settings):
    def of(smtp, client="", more=""):
        with pytest.raises(ConfigError) as refused:
            settings(smtp, client, more)
        return [f"{problem.where}: {problem.message} {problem.remedy}" for problem in refused.value.problems]

    return of


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_provider_presets_the_keys_that_are_not_written(settings, name):
    host = "" if "host" in provider(name) else ", host: relay.example"
    smtp = settings(f"provider: {name}{host}").smtp
    preset = provider(name)
    assert smtp.host == preset.get("host", "relay.example")
    assert smtp.port == preset.get("port", 587)
    assert smtp.connections == preset.get("connections", 2)
    assert (smtp.rate is None) == ("rate" not in preset)
    assert smtp.daily_quota == preset.get("daily_quota")


def test_a_written_key_goes_before_a_preset_one(settings):
    smtp = settings("provider: microsoft365, host: relay.example, connections: 1, rate: 5/min, size_limit: 5MB").smtp
    assert (smtp.host, smtp.port, smtp.connections) == ("relay.example", 587, 1)
    assert (smtp.rate.count, smtp.size_limit, smtp.daily_quota) == (5, 5_000_000, 10_000)


def test_a_preset_limit_is_taken_away_by_none(settings):
    smtp = settings("provider: microsoft365, rate: none, daily_quota: none, size_limit: none").smtp
    assert (smtp.rate, smtp.daily_quota, smtp.size_limit, smtp.connections) == (None, None, None, 3)
    assert settings("host: relay.example, rate: none").smtp.rate is None


def test_the_preset_port_belongs_to_the_preset_security(settings):
    assert settings("provider: microsoft365, security: tls").smtp.port == 465
    assert settings("provider: ionos, security: starttls").smtp.port == 587
    assert settings("provider: ionos, security: tls").smtp.port == 465
    assert settings("provider: lan, host: mail.cabinet.example, security: tls").smtp.port == 465
    assert settings("provider: microsoft365, security: tls, port: 2465").smtp.port == 2465


def test_the_firms_own_postfix_offers_starttls_on_the_port_where_it_listens(settings):
    lan = "provider: lan, host: mail.cabinet.example"
    assert settings(f"{lan}, security: starttls").smtp.port == 25
    assert settings(f"{lan}, security: starttls, port: 587").smtp.port == 587


def test_without_a_preset_a_host_is_required(problems):
    assert problems("provider: lan") == ["smtp.host: This is required. Add `host:`."]
    assert "is not one of the choices" in problems("provider: m365, host: a.example")[0]


AUTH = "username: factures@cabinet.example, host: relay.example, auth: "


def test_signing_in_without_a_password_needs_all_of_one_way(settings, problems):
    whole = settings(AUTH + "{method: xoauth2, tenant: 0001, client_id: 12, client_secret_file: s}").smtp.auth
    assert (whole.tenant, whole.client_id) == ("0001", "12"), "they are names, whatever YAML makes of them"
    assert settings(AUTH + "{method: xoauth2, service_account_file: g}").smtp.auth.service_account_file == "g"
    assert "client_secret_file" in problems(AUTH + "{method: xoauth2, tenant: a, client_id: b}")[0]
    mixed = problems(AUTH + "{method: xoauth2, tenant: a, service_account_file: g}")
    assert mixed[0].startswith("smtp.auth.tenant: This does not go with service_account_file.")
    assert "no username" in problems("host: a.example, auth: {method: xoauth2, service_account_file: g}")[0]
    both = problems(AUTH + "{method: xoauth2, service_account_file: g}, password_file: p")
    assert "Keep one of the two ways" in both[0]
    assert "is unknown" in problems(AUTH + "{method: xoauth2, service_account_file: g, client_secret: hush}")[0]


@pytest.mark.parametrize("url", ["http://login.example/token", "ftp://127.0.0.1/", "https://a:b@login.example/", "x"])
def test_a_token_endpoint_is_asked_over_tls_or_on_this_machine(settings, problems, url):
    auth = AUTH + "{method: xoauth2, service_account_file: g, token_url: '%s'}"
    assert "token endpoint" in problems(auth % url)[0]
    assert settings(auth % "https://login.example/token").smtp.auth.token_url
    assert settings(auth % "http://127.0.0.1:8080/token").smtp.auth.token_url


def test_brakes_are_off_until_they_are_written(settings, problems):
    client = settings("host: relay.example").clients[0]
    assert (client.brake, client.duplicates, client.review, client.collector) == (None, "send", False, "generic")
    client = settings("host: a.example", ", brake: {documents: 300, within: 10m}, duplicates: hold").clients[0]
    assert (client.brake.documents, client.brake.within, client.duplicates) == (300, 600.0, "hold")
    assert "brake.documents" in problems("host: a.example", ", brake: {documents: 0, within: 10m}")[0]
    assert "brake.within: This is required" in problems("host: a.example", ", brake: {documents: 3}")[0]
    assert "is not one of the choices" in problems("host: a.example", ", collector: dxt")[0]


def test_the_case_of_an_address_counts_only_where_both_collectors_say_so(settings, problems):
    other = "\n  - {name: Dupont, ged: /srv/ged/dupont, collection_email: %s, collector: %s}"

    def two(first, address, second):
        return f", collector: {first}}}" + (other % (address, second))[:-1]

    for first, second in (("generic", "generic"), ("clearfacts", "generic"), ("generic", "clearfacts")):
        assert "documents would mix" in problems("host: a.example", two(first, "Martin@collecte.example", second))[0]
    for address in ("martin@collecte.example", "martin@Collecte.example"):
        assert "documents would mix" in problems("host: a.example", two("clearfacts", address, "clearfacts"))[0]
    found = settings("host: a.example", two("clearfacts", "Martin@collecte.example", "clearfacts"))
    assert len(found.clients) == 2


def test_an_address_written_alike_is_one_when_either_collector_tells_case(problems):
    other = "\n  - {name: %s, ged: /srv/ged/%s, collection_email: Dupont@collecte.example, collector: %s}"
    for first, second in (("clearfacts", "generic"), ("generic", "clearfacts")):
        two = "}" + other % ("a", "a", first) + (other % ("b", "b", second))[:-1]
        assert "clients[2].collection_email: The client on line" in problems("host: a.example", two)[0]


ADDRESSES = st.tuples(st.integers(0, 4), st.sampled_from(["x@a.example", "X@a.example", "x@A.example"]), st.booleans())


@given(st.lists(ADDRESSES, max_size=8), st.frozensets(st.integers(0, 4)))
def test_an_address_is_refused_exactly_when_an_earlier_client_has_the_same(folders, shared):
    """The result is that of comparing each address with each."""
    clients = [{"shared_collection_email": i in shared, "switched_folders": []} for i in range(5)]
    for owner, address, tells_case in folders:
        folder = {"path": "A", "collection_email": address, "collector": "clearfacts" if tells_case else "generic"}
        clients[owner]["switched_folders"].append(folder)
    lines = Lines("file", {"clients": clients})
    _shared_addresses(lines, list(enumerate(clients)))
    every = [(i, n, folder) for i, client in enumerate(clients) for n, folder in enumerate(client["switched_folders"])]

    def same(one, other):
        both = one["collector"] == other["collector"] == "clearfacts"
        left, right = (f["collection_email"].partition("@")[0] for f in (one, other))
        return left == right if both else left.casefold() == right.casefold()

    mixed = [
        f"clients[{i}].switched_folders[{n}].collection_email"
        for at, (i, n, folder) in enumerate(every)
        if any(j != i and not {i, j} <= shared and same(folder, other) for j, _, other in every[:at])
    ]
    # Of three that are the same, a pair may be told by another's: none is missed altogether, and none is made up.
    found = [problem.where for problem in lines.problems]
    assert set(found) <= set(mixed)
    assert bool(found) == bool(mixed)


FOLDER = ", switched_folders: [{path: A, collection_email: alerts@cabinet.example}]"


@pytest.mark.parametrize(
    ("to", "where"),
    [
        ("Martin@collecte.example", "alerts.to: "),
        ("[chef@cabinet.example, martin@collecte.example]", "alerts.to[1]: "),
        ("[alerts@cabinet.example]", "alerts.to[0]: "),
    ],
)
def test_an_alert_never_goes_to_a_collector(problems, settings, to, where):
    other = "}\n  - {name: B, ged: /srv/ged/b, collection_email: b@collecte.example" + FOLDER
    found = problems("host: a.example", other, f"alerts: {{to: {to}}}")
    assert [one.startswith(where) for one in found] == [True]
    assert "is a collection email" in found[0]
    assert settings("host: a.example", more="alerts: {to: [chef@cabinet.example]}").alerts


@pytest.mark.parametrize(
    ("smtp", "client", "more", "told"),
    [
        ("", "", "alerts: {to: []}", "alerts.to: This list is empty. Write at least one entry."),
        ("", ", brake: {documents: 0, within: 1h}", "", "brake.documents: 0 is too small. Write at least 1."),
        (", daily_quota: 0", "", "", "smtp.daily_quota: 0 is too small. Write at least 1."),
        (", connections: 51", "", "", "smtp.connections: 51 is too large. Write at most 50."),
        (", port: 70000", "", "", "smtp.port: 70000 is too large. Write at most 65535."),
    ],
)
def test_a_value_that_is_too_small_or_too_large_is_told_in_our_words(problems, smtp, client, more, told):
    (found,) = problems("host: a.example" + smtp, client, more)
    assert found.endswith(told)
