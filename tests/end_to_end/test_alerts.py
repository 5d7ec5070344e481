"""The firm is told by mail when a person must act: the installed daemon, and the relays at the far end."""

from __future__ import annotations

import email
import email.policy
import json
import subprocess
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.support.bridge import COMMAND, Bridge, until
from tests.support.relay import Received, Say, ScriptedRelay

OFFICE = "bureau@cabinet.example"


@pytest.fixture
def second() -> Iterator[ScriptedRelay]:
    """The relay of the alerts alone."""
    with ScriptedRelay() as relay:
        yield relay


@pytest.fixture
def bridge(tmp_path: Path, relay: ScriptedRelay) -> Iterator[Bridge]:
    bridge = Bridge(tmp_path, relay)
    yield bridge
    if bridge.process is not None and bridge.process.poll() is None:
        bridge.stop()


def alerts(relay: ScriptedRelay | None = None, language: str = "fr") -> str:
    own = ""
    if relay is not None:
        own = f", smtp: {{host: 127.0.0.1, port: {relay.port}, security: plain, sender: alertes@cabinet.example}}"
    return f"alerts: {{to: [{OFFICE}], language: {language}{own}}}"


def letters(relay: ScriptedRelay) -> list[tuple[Received, EmailMessage]]:
    """The mails to the office."""
    return [
        (mail, email.message_from_bytes(mail.data, policy=email.policy.default))
        for mail in list(relay.mails)
        if OFFICE in str(email.message_from_bytes(mail.data, policy=email.policy.default)["To"])
    ]


def one_letter(relay: ScriptedRelay) -> EmailMessage:
    (found,) = until(lambda: letters(relay), "an alert arrives", 30)
    return found[1]


def test_a_halted_account_is_told_through_the_relay_of_the_alerts_and_documents_wait(bridge, second):
    bridge.extra = alerts(second)
    bridge.relay.always("MAIL", Say("530 5.7.57 Client not authenticated to send mail"))
    bridge.start()
    (bridge.inbox / "facture.txt").write_bytes(b"a document")
    bridge.wait_for("relay_misconfigured")
    letter = one_letter(second)
    assert str(letter["Subject"]).startswith("[bridged]")
    assert "530 5.7.57" in letter.get_content()
    assert bridge.count("document_held") == 0
    bridge.stop()
    bridge.start()  # in the middle of the halt: told once
    bridge.relay.always("MAIL")
    assert bridge.run("reload").returncode == 0
    bridge.wait_for("document_validated")
    assert len(letters(second)) == 1
    assert not letters(bridge.relay)


def test_a_refused_address_is_told_through_the_relay_of_the_documents(bridge):
    bridge.extra = alerts(language="en")
    bridge.relay.script("RCPT", Say("550 5.1.1 no such user"))
    bridge.start()
    (bridge.inbox / "facture.txt").write_bytes(b"a document")
    bridge.wait_for("document_held")
    text = one_letter(bridge.relay).get_content()
    assert "Martin@collecte.example" in text
    assert "550 5.1.1 no such user" in text


@pytest.mark.promise
def test_a_configuration_that_is_refused_at_start_is_told_and_the_exit_code_stays(bridge, second):
    bridge.extra = alerts(second)
    bridge.config.write_text(bridge.text().replace("switched_folders", "swiched_folders"))
    command = [COMMAND, "run", "--config", bridge.config]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 78
    assert "swiched_folders" in run.stderr
    assert "swiched_folders" in one_letter(second).get_content()


def test_an_alert_relay_that_is_dead_stops_no_document_and_no_stop(bridge, second):
    bridge.extra = alerts(second)
    second.stop_listening()
    bridge.relay.script("RCPT", Say("550 5.1.1 no such user"))
    bridge.more_clients = (
        f"  - {{name: Dupont, ged: {bridge.base}/dupont, collection_email: dupont@collecte.example,"
        " switched_folders: [Achats]}\n"
    )
    (bridge.base / "dupont" / "Achats").mkdir(parents=True)
    bridge.start()
    (bridge.inbox / "1.txt").write_bytes(b"1")
    bridge.wait_for("document_held")
    line = bridge.wait_for("state_failed")[0]
    assert (line["half"], line["level"]) == ("alerts", "warning")
    (bridge.base / "dupont" / "Achats" / "2.txt").write_bytes(b"2")
    bridge.wait_for("document_validated")
    assert bridge.stop() == 0
    states = {json.loads(row)["state"] for row in bridge.run("documents", "--json").stdout.splitlines()}
    assert states == {"held", "validated"}


def test_a_dry_run_alerts_nobody(bridge, second):
    bridge.extra = alerts(second)
    bridge.config.write_text(bridge.text().replace("switched_folders", "swiched_folders"))
    command = [COMMAND, "run", "--dry-run", "--config", bridge.config]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 78
    assert not second.mails


def with_smtp(bridge: Bridge, keys: str) -> None:
    """Further keys below `smtp:` from now on."""
    bridge.text = lambda: Bridge.text(bridge).replace("security: plain,", f"security: plain, {keys},", 1)
    bridge.config.write_text(bridge.text())


def test_a_daily_quota_that_is_used_up_is_named_after_a_restart_and_its_end_is_told(bridge):
    with_smtp(bridge, "daily_quota: 2")
    bridge.start()
    for number in range(3):
        (bridge.inbox / f"{number}.txt").write_bytes(b"document %d" % number)
    first = bridge.wait_for("relay_throttled")[0]
    bridge.stop()
    bridge.start()
    line = bridge.wait_for("relay_throttled", 2)[1]
    assert (line["quota"], line["reason"]) == (True, first["reason"])
    assert "smtp.daily_quota" in line["reason"]
    assert "reload" not in line["remedy"]  # which could do nothing here
    assert "smtp.daily_quota" in bridge.run("status").stdout
    with_smtp(bridge, "daily_quota: 20")
    assert bridge.run("reload").returncode == 0
    bridge.wait_for("relay_recovered")
    until(lambda: len(bridge.sent()) == 3, "the rest leaves")
