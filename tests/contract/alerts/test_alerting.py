"""Alerts from a log line to a mail: a real journal, a real conversation with a scripted relay."""

from __future__ import annotations

import email
import email.policy
import time
from collections.abc import Iterator
from datetime import datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from bridged import logs
from bridged.alerts import Alerting, refused_at_start
from bridged.alerts.alerting import HALTED, WORTH
from bridged.alerts.refused import salvaged
from bridged.config.settings import Settings
from bridged.journal import Journal, JournalUnavailable
from bridged.mail import UnsafeHeader, letter
from bridged.model import Instant, State
from bridged.relay import Outbox, Outgoing
from bridged.relay.outcome import Accepted, Misconfigured, RelayDown
from tests.support.documents import put
from tests.support.relay import Cut, Say, ScriptedRelay, Stall

PARIS = ZoneInfo("Europe/Paris")
NOON = datetime(2026, 11, 24, 12, 0, tzinfo=PARIS).timestamp()
AWAY = {"client": "Boulangerie Été", "ged": "/srv/ged/été", "reason": "Host is down"}


def smtp(relay: ScriptedRelay, sender: str = "factures@cabinet.example") -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": relay.port, "security": "plain", "sender": sender, "timeout": "5s"}


def settings(relay: ScriptedRelay, tmp_path: Path, **alerts: Any) -> Settings:
    given = {"to": ["chef@cabinet.example"]} | alerts
    clients = [{"name": "Boulangerie Été", "ged": tmp_path / "ged", "collection_email": "b@collecte.example"}]
    return Settings.model_validate({"smtp": smtp(relay), "alerts": given, "clients": clients})


def at(seconds: float) -> Instant:
    return Instant(NOON + seconds, 1000.0 + seconds)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path)
    yield journal
    journal.close()


@pytest.fixture
def second() -> Iterator[ScriptedRelay]:
    with ScriptedRelay() as relay:
        yield relay


def parsed(raw: bytes) -> EmailMessage:
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert message.defects == []
    return message


def add(journal: Journal, name: str, state: State, **columns: Any) -> None:
    values = {"deposited_at": NOON, "collection_email": "b@collecte.example"} | columns
    journal.write(lambda tx: put(tx, state, name.encode(), "Boulangerie Été", **values))


@pytest.mark.parametrize(
    ("language", "subject", "since"),
    [
        (
            "fr",
            "[bridged] Un partage est injoignable : Boulangerie Été",
            "Boulangerie Été : /srv/ged/été (Host is down), depuis le 24/11/2026 12:00",
        ),
        (
            "en",
            "[bridged] A share cannot be reached: Boulangerie Été",
            "Boulangerie Été: /srv/ged/été (Host is down), since 2026-11-24 12:00",
        ),
    ],
)
def test_an_alert_arrives_as_a_mail_that_says_it(journal, relay, tmp_path, language, subject, since):
    to = ["chef@cabinet.example", "garde@cabinet.example"]
    alerting = Alerting(journal, settings(relay, tmp_path, language=language, to=to), zone=PARIS)
    alerting.hear("folder_unreachable", AWAY)
    for second in range(60):
        alerting.step(at(second))
    mails = relay.mails
    assert [mail.recipients for mail in mails] == [(to[0],), (to[1],)]
    assert relay.sessions == 1
    message = parsed(mails[0].data)
    assert message["Subject"] == subject
    assert message["From"] == "factures@cabinet.example"
    assert message["To"] == ", ".join(to)
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Message-ID"] == parsed(mails[1].data)["Message-ID"]
    assert message["Date"].datetime.timestamp() == NOON + 10
    assert message.get_content_type() == "text/plain"
    text = message.get_content()
    assert since in text
    assert "bridged status" in text


def test_eight_hundred_shares_that_go_away_are_one_mail(journal, relay, tmp_path):
    alerting = Alerting(journal, settings(relay, tmp_path))
    for number in range(800):
        alerting.hear("folder_unreachable", {"client": f"C{number}", "ged": f"/ged/{number}", "reason": "down"})
        alerting.step(at(number / 100))
    for second in range(10, 100):
        alerting.step(at(second))
    [mail] = relay.mails
    assert "750 more" in parsed(mail.data).get_content()


def test_alerts_with_their_own_relay_leave_while_the_documents_relay_is_halted(journal, relay, second, tmp_path):
    relay.always("CONNECT", Say("554 5.7.1 no"))
    own = smtp(second, "alerts@cabinet.example")
    alerting = Alerting(journal, settings(relay, tmp_path, smtp=own))
    alerting.hear("relay_misconfigured", {"reason": "535 5.7.8 bad credentials", "relay": "smtp.example"})
    alerting.step(at(0))
    alerting.step(at(10))
    [mail] = second.mails
    assert mail.sender == "alerts@cabinet.example"
    assert "535 5.7.8 bad credentials" in parsed(mail.data).get_content()
    assert relay.sessions == 0


def test_alerts_try_a_halted_relay_once_an_hour_and_at_once_when_it_is_well(journal, relay, tmp_path):
    relay.always("CONNECT", Say("554 5.7.1 no"))
    alerting = Alerting(journal, settings(relay, tmp_path))
    alerting.hear("relay_misconfigured", {"reason": "535 5.7.8 bad credentials"})
    for second in range(0, int(HALTED), 5):
        alerting.step(at(second))
    assert relay.sessions == 0
    alerting.step(at(HALTED))
    alerting.step(at(HALTED + 100))
    assert relay.sessions == 1
    relay.always("CONNECT")
    alerting.hear("relay_recovered", {"reason": "250"})
    alerting.step(at(HALTED + 200))
    [mail] = relay.mails
    assert "could not be sent when it was written" in parsed(mail.data).get_content()


@pytest.mark.parametrize("restarted", [False, True])
def test_an_alert_that_was_withheld_says_so_however_soon_the_relay_is_well(journal, relay, tmp_path, restarted):
    """Otherwise a halt that is over reads like one that goes on."""
    wanted = settings(relay, tmp_path)
    alerting = Alerting(journal, wanted, zone=PARIS)
    alerting.hear("relay_misconfigured", {"reason": "535 5.7.8 bad credentials"})
    for second in range(12):
        alerting.step(at(second))
    if restarted:
        alerting = Alerting(journal, wanted, zone=PARIS)
    alerting.hear("relay_recovered", {"reason": "250"})
    alerting.step(at(14))
    [mail] = relay.mails
    message = parsed(mail.data)
    assert message["Subject"] == "[bridged] Delayed: Nothing is sent: the relay refuses the account"
    assert message.get_content().startswith("This mail could not be sent when it was written, 2026-11-24 12:00")


def test_a_halt_is_remembered_so_that_restarts_are_no_failed_logins(journal, relay, tmp_path):
    wanted = settings(relay, tmp_path)
    alerting = Alerting(journal, wanted)
    alerting.hear("relay_misconfigured", {"reason": "535"})
    for second in range(0, 60, 10):
        alerting.step(at(second))
    for start in range(100, 2000, 100):
        alerting = Alerting(journal, wanted)
        for second in range(0, 60, 10):
            alerting.step(at(start + second))
    assert relay.sessions == 0
    alerting.hear("document_sent", {"client": "A", "collection_email": "a@c.example"})
    alerting.step(at(2100))
    assert len(relay.mails) == 1


def test_a_refused_login_of_the_alerts_is_tried_again_after_a_quarter_of_an_hour(journal, relay, tmp_path):
    relay.always("MAIL", Say("530 5.7.0 authentication required"))
    alerting = Alerting(journal, settings(relay, tmp_path))
    alerting.hear("watch_limit_reached", {})
    tries = []
    for second in range(0, 3 * 3600, 10):
        before = relay.sessions
        alerting.step(at(second))
        tries += [second] * (relay.sessions - before)
    assert tries == [10, 910, 4510, 8110]


def test_a_failing_alert_is_told_once_and_tried_again_ever_more_rarely(journal, relay, tmp_path, said):
    relay.always("MAIL", Say("451 4.3.0 try later"))
    alerting = Alerting(journal, settings(relay, tmp_path))
    alerting.hear("watch_limit_reached", {"reason": "no more"})
    tries = []
    for second in range(0, 3 * 3600, 10):
        before = relay.sessions
        alerting.step(at(second))
        tries += [second] * (relay.sessions - before)
    assert tries == [10, 70, 370, 1270, 4870, 8470]
    assert [(line["event"], line["half"], line["level"]) for line in said] == [("state_failed", "alerts", "warning")]
    relay.always("MAIL")
    alerting.step(at(3 * 3600 + 2000))
    assert len(relay.mails) == 1


def test_an_address_that_accepted_is_not_sent_to_again(journal, relay, tmp_path):
    relay.script("RCPT", Say("550 5.1.1 unknown"))
    to = ["a@cabinet.example", "b@cabinet.example"]
    alerting = Alerting(journal, settings(relay, tmp_path, to=to))
    alerting.hear("watch_limit_reached", {})
    for second in range(0, 200, 10):
        alerting.step(at(second))
    assert [mail.recipients for mail in relay.mails] == [("b@cabinet.example",), ("a@cabinet.example",)]


def test_an_alert_that_can_never_leave_is_given_up_after_days(journal, relay, tmp_path):
    relay.always("RCPT", Say("550 5.1.1 unknown"))
    alerting = Alerting(journal, settings(relay, tmp_path))
    alerting.hear("watch_limit_reached", {})
    for hour in range(int(WORTH / 3600) + 3):
        alerting.step(at(hour * 3600))
    sessions = relay.sessions
    assert sessions > 60
    for hour in range(100, 200):
        alerting.step(at(hour * 3600))
    assert relay.sessions == sessions


def test_the_log_line_of_a_failing_alert_makes_no_alert(journal, relay, tmp_path):
    """The loop itself listens here: its own line must not come back as news."""
    relay.always("MAIL", Say("451 4.3.0 try later"))
    alerting = Alerting(journal, settings(relay, tmp_path))
    logs.listen(alerting.hear)
    try:
        alerting.hear("watch_limit_reached", {})
        for second in range(0, 1000, 10):
            alerting.step(at(second))
    finally:
        logs.listen(None)
    relay.always("MAIL")
    for second in range(1000, 9000, 10):
        alerting.step(at(second))
    assert len(relay.mails) == 1


def test_a_restart_repeats_no_alert_and_sends_those_that_could_not_leave(journal, relay, tmp_path):
    relay.script("CONNECT", Cut())
    wanted = settings(relay, tmp_path)
    alerting = Alerting(journal, wanted)
    alerting.hear("folder_unreachable", AWAY)
    alerting.step(at(0))
    alerting.step(at(10))
    assert relay.mails == []
    alerting = Alerting(journal, wanted)
    alerting.step(at(20))
    assert len(relay.mails) == 1
    alerting = Alerting(journal, wanted)
    alerting.hear("folder_unreachable", AWAY)
    for second in range(30, 300, 10):
        alerting.step(at(second))
    assert len(relay.mails) == 1


def test_a_state_directory_that_cannot_be_written_is_told_all_the_same(journal, relay, tmp_path, monkeypatch):
    def full(_: object) -> None:
        raise JournalUnavailable("database or disk is full")

    alerting = Alerting(journal, settings(relay, tmp_path))
    monkeypatch.setattr(journal, "write", full)
    alerting.hear("state_failed", {"half": "intake", "reason": "database or disk is full", "level": "error"})
    for second in range(100):
        alerting.step(at(second))
    [mail] = relay.mails
    assert "database or disk is full" in parsed(mail.data).get_content()


@pytest.mark.parametrize("kept", ["", "null", "[]", "{}", '{"ledger": 1}', "no JSON", '{"ledger": {}, "mailings": []}'])
def test_a_memory_of_alerts_that_cannot_be_read_stops_nothing(journal, relay, tmp_path, kept):
    journal.write(lambda tx: tx.keep("alerts", kept))
    alerting = Alerting(journal, settings(relay, tmp_path))
    alerting.hear("watch_limit_reached", {})
    alerting.step(at(0))
    alerting.step(at(10))
    assert len(relay.mails) == 1


def test_an_exception_of_the_delivery_does_not_leave_the_step(journal, relay, tmp_path, said):
    def broken(*_: object) -> dict[str, Any]:
        raise UnsafeHeader("no")

    alerting = Alerting(journal, settings(relay, tmp_path), deliver=broken)
    alerting.hear("watch_limit_reached", {})
    for second in range(0, 100, 10):
        assert alerting.step(at(second)) > 0
    assert [line["event"] for line in said] == ["state_failed"]


def test_alerts_that_are_not_configured_are_not_sent_until_they_are(journal, relay, tmp_path):
    wanted = settings(relay, tmp_path)
    alerting = Alerting(journal, wanted.model_copy(update={"alerts": None}))
    alerting.hear("folder_unreachable", AWAY)
    alerting.step(at(0))
    alerting.step(at(100))
    assert relay.sessions == 0
    alerting.configure(wanted)
    alerting.step(at(200))
    assert len(relay.mails) == 1


# -- through the relay of the documents


OK = Accepted("250 2.0.0 Ok")


def taken(outbox: Outbox, wanted: Settings) -> list[Outgoing]:
    """Every mail that waits, in the hands of a session."""
    return list(iter(lambda: outbox.take(wanted.smtp, lambda: True), None))


def test_an_alert_waits_in_the_outbox_and_counts_for_the_quota_once_accepted(journal, relay, tmp_path):
    outbox, wanted = Outbox(), settings(relay, tmp_path)
    alerting = Alerting(journal, wanted, outbox)
    alerting.hear("watch_limit_reached", {})
    for second in range(30):
        alerting.step(at(second))
    assert outbox.take(wanted.smtp, lambda: False) is None
    (mail,) = taken(outbox, wanted)
    assert mail.to == "chef@cabinet.example"
    alerting.step(at(30))
    assert taken(outbox, wanted) == [], "the mail is under way"
    outbox.conclude(mail, OK)
    alerting.step(at(31))
    alerting.step(at(10_000))
    assert taken(outbox, wanted) == []
    assert [outcome for _, outcome in journal.read(lambda tx: tx.tried_since(0.0))] == ["accepted"]
    assert relay.sessions == 0


@pytest.mark.parametrize("outcome", [RelayDown("no route"), UnsafeHeader("no")], ids=["relay", "mistake"])
def test_an_alert_that_a_session_could_not_send_is_offered_again_after_a_minute(
    journal, relay, tmp_path, said, outcome
):
    outbox, wanted = Outbox(), settings(relay, tmp_path)
    alerting = Alerting(journal, wanted, outbox)
    alerting.hear("watch_limit_reached", {})
    alerting.step(at(0))
    alerting.step(at(10))
    (mail,) = taken(outbox, wanted)
    outbox.conclude(mail, outcome)
    alerting.step(at(20))
    alerting.step(at(79))
    assert taken(outbox, wanted) == []
    alerting.step(at(80))
    (again,) = taken(outbox, wanted)
    assert (again.letter, again.to) == (mail.letter, mail.to)
    assert parsed(again.data)["Message-ID"] == parsed(mail.data)["Message-ID"]
    assert [(line["event"], line["half"]) for line in said] == [("state_failed", "alerts")]


@pytest.mark.parametrize("more", [{"alerts": None}, {"relay": 1}], ids=["no alerts", "another relay"])
def test_a_reload_takes_waiting_alerts_back_from_the_outbox(journal, relay, second, tmp_path, more):
    outbox, wanted = Outbox(), settings(relay, tmp_path)
    alerting = Alerting(journal, wanted, outbox)
    alerting.hear("watch_limit_reached", {})
    alerting.step(at(0))
    alerting.step(at(10))
    other = settings(second, tmp_path) if "relay" in more else wanted.model_copy(update=more)
    assert taken(outbox, settings(second, tmp_path)) == [], "it was written for the other relay"
    alerting.configure(other)
    alerting.step(at(11))
    assert taken(outbox, wanted) == []
    assert len(taken(outbox, other)) == ("relay" in more)


def test_an_address_of_an_alert_that_waits_for_its_turn_gets_it_later(journal, relay, tmp_path, said):
    outbox, to = Outbox(), [f"{name}@cabinet.example" for name in "abc"]
    wanted = settings(relay, tmp_path, to=to)
    alerting = Alerting(journal, wanted, outbox)
    alerting.hear("watch_limit_reached", {})
    alerting.step(at(0))
    alerting.step(at(10))
    turns = iter([True, True, False])
    first = list(iter(lambda: outbox.take(wanted.smtp, lambda: next(turns)), None))
    for mail in first:
        outbox.conclude(mail, OK)
    alerting.step(at(11))
    assert [mail.to for mail in first + taken(outbox, wanted)] == to
    assert said == []


def test_while_the_documents_relay_is_in_trouble_one_alert_an_hour_is_offered(journal, relay, tmp_path):
    outbox, wanted = Outbox(), settings(relay, tmp_path)
    alerting = Alerting(journal, wanted, outbox)
    alerting.hear("relay_misconfigured", {"reason": "535 5.7.8 bad credentials"})
    alerting.hear("watch_limit_reached", {})
    offered = []
    for second in range(0, 7400, 10):
        alerting.step(at(second))
        for mail in taken(outbox, wanted):
            offered.append(second)
            outbox.conclude(mail, Misconfigured("535 5.7.8 bad credentials"))
    assert offered == [3600, 7210]
    alerting.hear("relay_recovered", {})
    alerting.step(at(7500))
    assert len(taken(outbox, wanted)) >= 1


def test_an_acceptance_at_the_stop_is_not_repeated_after_the_next_start(journal, relay, tmp_path):
    outbox, wanted = Outbox(), settings(relay, tmp_path)
    alerting = Alerting(journal, wanted, outbox)
    alerting.hear("watch_limit_reached", {})
    alerting.step(at(0))
    alerting.step(at(10))
    (mail,) = taken(outbox, wanted)
    outbox.conclude(mail, OK)
    alerting.close(at(11))
    started = Outbox()
    Alerting(journal, wanted, started).step(at(20))
    assert taken(started, wanted) == []


def test_with_a_relay_of_their_own_alerts_leave_the_outbox_empty(journal, relay, second, tmp_path):
    outbox, wanted = Outbox(), settings(relay, tmp_path, smtp=smtp(second))
    alerting = Alerting(journal, wanted, outbox)
    alerting.hear("watch_limit_reached", {})
    for seconds in range(15):
        alerting.step(at(seconds))
        assert taken(outbox, wanted) == []
    assert len(second.mails) == 1


# -- the digest


def test_a_digest_tells_of_held_late_and_missed_documents(journal, relay, tmp_path):
    alerting = Alerting(journal, settings(relay, tmp_path, digest="18:00"), zone=PARIS)
    alerting.step(at(0))
    add(journal, "held", State.HELD, reason="550 no")
    add(journal, "old", State.QUEUED, queued_at=NOON)
    add(journal, "new", State.QUEUED, queued_at=NOON + 6 * 3600 - 60)
    add(journal, "missed", State.MISSED, deposited_at=NOON + 5)
    add(journal, "long missed", State.MISSED, deposited_at=NOON - 5)
    alerting.step(at(6 * 3600 - 1))
    assert relay.mails == []
    alerting.step(at(6 * 3600))
    alerting.step(at(6 * 3600 + 1))
    [mail] = relay.mails
    message = parsed(mail.data)
    assert message["Subject"] == "[bridged] Daily digest: 1 held, 1 late, 1 missed"
    assert "Boulangerie Été: 1 (550 no)" in message.get_content()
    assert "Boulangerie Été: 1, since 2026-11-24 12:00" in message.get_content()


def test_there_is_no_digest_when_there_is_nothing_to_tell(journal, relay, tmp_path):
    alerting = Alerting(journal, settings(relay, tmp_path, digest="18:00"), zone=PARIS)
    for hour in range(100):
        alerting.step(at(hour * 3600))
    assert relay.sessions == 0


def test_a_digest_due_while_bridged_was_stopped_goes_once_at_the_next_start(journal, relay, tmp_path):
    wanted = settings(relay, tmp_path, digest="18:00")
    Alerting(journal, wanted, zone=PARIS).step(at(0))
    add(journal, "missed", State.MISSED, deposited_at=NOON + 5)
    for start in (20, 21, 22):
        Alerting(journal, wanted, zone=PARIS).step(at(start * 3600))
    assert len(relay.mails) == 1


def test_a_client_that_has_fallen_silent_is_in_one_digest(journal, relay, tmp_path):
    for day in range(10):
        add(journal, str(day), State.VALIDATED, deposited_at=NOON + day * 86400)
    alerting = Alerting(journal, settings(relay, tmp_path, digest="18:00"))
    for day in range(10, 60):
        alerting.step(at(day * 86400))
        alerting.step(at(day * 86400 + 1))
    [mail] = relay.mails
    assert parsed(mail.data)["Subject"] == "[bridged] Daily digest: 1 silent"


# -- a start that is refused

REFUSED = """\
smtp: {{host: 127.0.0.1, port: {port}, security: plain, sender: factures@cabinet.example}}
alerts:
  to: chef@cabinet.example
# the people
  language: fr

clients:
  - {{name: A, ged: relative, collection_email: nobody}}
"""


@pytest.mark.parametrize("slip", ["", "clients: twice\n", "x: [unclosed\n", "\ty: 1\n"])
def test_a_refused_configuration_is_told_to_the_addresses_in_it(relay, tmp_path, slip):
    file = tmp_path / "bridged.yaml"
    file.write_text(REFUSED.format(port=relay.port) + slip)
    refused_at_start(file, ["bridged.yaml, line 7: the GED is relative.", "another"], NOON)
    [mail] = relay.mails
    message = parsed(mail.data)
    assert message["Subject"] == "[bridged] bridged ne démarre pas : sa configuration est refusée"
    assert "- bridged.yaml, line 7: the GED is relative." in message.get_content()
    assert "- another" in message.get_content()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "smtp: 1\nalerts: 2\n",
        "alerts: {to: chef@cabinet.example}\n",
        "alerts: {to: nobody}\nsmtp: {host: a.example, sender: a@b.example}\n",
        "alerts: {to: a@b.example}\nsmtp: {host: a.example, sender: a@b.example, securty: tls}\n",
        "alerts: {to: a@b.example, smtp: {host: a.example}}\nsmtp: {host: a.example, sender: a@b.example}\n",
        "alerts: {to: a@b.example}\nsmtp: {host: a.example, sender: a@b.example}\nx: {collection_email: A@b.example}",
        "alerts: {too: a@b.example}\nsmtp: {host: a.example, sender: a@b.example}\n",
        "\0",
    ],
)
def test_no_address_and_no_relay_of_a_refused_configuration_is_guessed(text):
    assert salvaged(text) is None


def test_the_alerts_own_relay_is_enough_when_the_documents_relay_is_the_mistake():
    found = salvaged("smtp: 1\nalerts: {to: a@b.example, smtp: {host: a.example, sender: a@b.example}}\n")
    assert found is not None
    assert found[1].host == "a.example"


@pytest.mark.parametrize(
    "more",
    ["digest: 18:00", "digest: 25 o'clock", "langage: fr", "language: de", "language: [fr]", "digest: 0800"],
)
@pytest.mark.parametrize("slip", ["", "x: [unclosed\n"])
def test_a_mistake_outside_alerts_does_not_stop_the_alert_of_a_refused_start(more, slip):
    text = f"alerts:\n  to: chef@cabinet.example\n  {more}\nsmtp: {{host: a.example, sender: a@b.example}}\n{slip}"
    found = salvaged(text)
    assert found is not None
    assert found[0].to == ("chef@cabinet.example",)


def test_not_even_a_refusal_is_told_to_a_collector():
    smtp = "smtp: {host: a.example, sender: a@b.example}\n"
    found = salvaged(
        f"{smtp}alerts: {{to: [a@b.example, C@d.example]}}\nclients: [{{collection_email: 'c@d.example'}}]"
    )
    assert found is not None
    assert found[0].to == ("a@b.example",)


@pytest.mark.parametrize("slip", ["", "x: [unclosed\n"])
def test_the_relay_of_a_refused_configuration_is_read_as_it_is_written(slip):
    """A number is a username, although YAML reads it as an integer."""
    login = "username: 0012345, password_file: p"
    smtp = f"{{host: a.example, sender: a@b.example, {login}}}"
    found = salvaged(f"smtp: {smtp}\nalerts: {{to: a@b.example}}\n{slip}")
    assert found is not None
    assert found[1].username == "0012345"
    found = salvaged(f"smtp: 1\nalerts: {{to: a@b.example, smtp: {smtp}}}\n{slip}")
    assert found is not None
    assert found[1].username == "0012345"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("alerts: {to: nobody}\n", 1),
        ("alerts: {to: a@b.example}\nsmtp: {host: a.example, securty: tls}\n", 1),
        ("alerts:\n  to: {\nsmtp: {host: a.example, sender: a@b.example}\n", 1),
        ("alerts:\nclients: twice\n", 0),
        ("smtp: {host: a.example, sender: a@b.example}\n", 0),
        ("x: [unclosed\n", 0),
    ],
)
def test_a_refused_start_without_an_address_is_logged_where_alerts_are_wanted(tmp_path, said, text, count):
    file = tmp_path / "bridged.yaml"
    file.write_text(text)
    refused_at_start(file, ["x"], NOON)
    assert [(line["event"], line["half"]) for line in said] == [("state_failed", "alerts")] * count
    assert all("not good by itself" in line["reason"] for line in said)


def test_a_refused_start_is_not_held_up_by_a_relay_that_says_nothing(relay, tmp_path, said):
    relay.script("DOT", Stall())
    file = tmp_path / "bridged.yaml"
    file.write_text(REFUSED.format(port=relay.port))
    begun = time.monotonic()
    refused_at_start(file, ["x"], NOON, within=1.0)
    assert 0.9 < time.monotonic() - begun < 5
    assert [line["half"] for line in said] == ["alerts"]


def test_a_refused_start_without_a_file_raises_nothing(tmp_path, said):
    refused_at_start(tmp_path / "none.yaml", ["x"], NOON)
    assert [line["event"] for line in said] == ["state_failed"]


# -- what they stand on


def test_a_log_line_is_written_although_its_listener_fails(capsys):
    def broken(*_: object) -> None:
        raise RuntimeError("deaf")

    logs.configure("json", "info")
    logs.listen(broken)
    try:
        logs.say("hints_lost", reason="x")
    finally:
        logs.listen(None)
    lines = capsys.readouterr().err
    assert "deaf" in lines
    assert "hints_lost" in lines


@pytest.mark.parametrize("bad", ["a@b.example\r\nBcc: c@d.example", "a@b.example, c@d.example", "nobody"])
def test_a_letter_goes_to_plain_addresses_only(bad):
    with pytest.raises(UnsafeHeader):
        letter(sender="a@b.example", to=[bad], subject="s", text="t", message_id="<1@x.example>", date="d")


def test_a_letter_carries_any_text_exactly():
    text = "été\n.\n..x\nFrom nobody\n" + "ü" * 300_000 + "\n"
    subject = "=?utf-8?q?=0D=0AX-Evil=3A_1?= é\r\nX-Evil: 2 " + "long " * 100
    raw = letter(
        sender="a@b.example",
        to=["a@b.example"] * 30,
        subject=subject,
        text=text,
        message_id="<1@x.example>",
        date="Tue, 24 Nov 2026 11:00:00 +0000",
    )
    message = parsed(raw)
    assert message.get_content().replace("\r\n", "\n") == text
    assert message["X-Evil"] is None
    assert message["Subject"].split(" ")[0] == "=?utf-8?q?=0D=0AX-Evil=3A_1?="
    assert len(message["To"].addresses) == 30
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    assert raw.endswith(b"\r\n")
    assert b"\n." not in raw
