"""What the configuration says of providers, signing in without a password, brakes and collectors."""

from __future__ import annotations

import pytest

from bridged.config import ConfigError, load
from bridged.presets import PROVIDERS, provider

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
def test_a_provider_presets_what_is_not_written(settings, name):
    host = "" if "host" in provider(name) else ", host: relay.example"
    smtp = settings(f"provider: {name}{host}").smtp
    preset = provider(name)
    assert smtp.host == preset.get("host", "relay.example")
    assert smtp.port == preset.get("port", 587)
    assert smtp.connections == preset.get("connections", 2)
    assert (smtp.rate is None) == ("rate" not in preset)
    assert smtp.daily_quota == preset.get("daily_quota")


def test_what_is_written_goes_before_what_is_preset(settings):
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


def test_addresses_that_differ_by_their_case_alone_are_two_only_where_the_collector_says_so(settings, problems):
    other = "\n  - {name: Dupont, ged: /srv/ged/dupont, collection_email: Martin@collecte.example, collector: %s}"
    assert "documents would mix" in problems("host: a.example", "}" + (other % "generic")[:-1])[0]
    assert len(settings("host: a.example", ", collector: clearfacts}" + (other % "clearfacts")[:-1]).clients) == 2
