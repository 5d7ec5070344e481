"""Two hundred documents through a look-alike of Microsoft 365: each once, three sessions at most, and no storm.

The daemon is the installed one on hurried clocks (see hurried.py): its minute is the look-alike's.
"""

from __future__ import annotations

import base64
import os
import smtplib
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support import look_alike
from tests.support.bridge import attachment, until
from tests.support.look_alike import Exchange, Microsoft365
from tests.support.submission import Credentials, SubmittingBridge, running

HURRIED = Path(look_alike.__file__).with_name("hurried.py")
MAILBOX = "factures@cabinet.example"
BY_20, BY_900 = 20.0, 900.0  # a minute in 3 s, an hour in 4 s
MINUTE, QUARTER, HOUR = 60.0, 900.0, 3600.0
SLACK = 0.4  # seconds of ours, in which a machine with other work still gets to an answer


class HurriedBridge(SubmittingBridge):
    """A firm with four clients and a mailbox at Microsoft 365, whose daemon's clocks go `factor` times faster."""

    def __init__(self, base: Path, server: Microsoft365, factor: float, **smtp: Any) -> None:
        super().__init__(base, server, Credentials(MAILBOX, server.users[MAILBOX]), server.ca_file, clients=4)
        self.smtp |= smtp
        self.factor, self.since = factor, time.time()

    def start(self) -> HurriedBridge:
        """As of a Bridge."""
        self.config.write_text(self.text())
        ready = self.count("daemon_ready")
        command = [sys.executable, HURRIED, str(self.factor), str(self.since), "run", "--config", self.config]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, cwd=Path(__file__).parents[2])
        until(lambda: self.count("daemon_ready") > ready, "daemon_ready")
        return self

    def deposit_many(self, count: int) -> dict[str, bytes]:
        """So many different documents, for the clients in turn: name to content."""
        documents = {
            f"facture {n}.pdf": b"%%PDF-1.4\n%d\n" % n + bytes([n % 251]) * 3000 + b"\n%%EOF\n" for n in range(count)
        }
        for number, (name, content) in enumerate(documents.items()):
            self.deposit(name, content, client=number % len(self.inboxes) + 1)
        return documents

    def gaps(self, exchanges: list[Exchange]) -> list[float]:
        """The daemon's seconds between them."""
        return [(later.at - earlier.at) * self.factor for earlier, later in pairwise(exchanges)]


@contextmanager
def provider(factor: float, **options: Any) -> Iterator[Microsoft365]:
    credentials = Credentials(MAILBOX)
    with Microsoft365({MAILBOX: credentials.password}, minute=60 / factor, **options) as server:
        yield server


def all_arrived_once(server: Microsoft365, documents: dict[str, bytes]) -> None:
    """Each document in one mail of its own, whole."""
    arrived = [attachment(mail.data) for mail in server.mails]
    assert Counter(name for name, _ in arrived) == Counter(documents.keys())
    assert dict(arrived) == documents
    ids = {
        line for mail in server.mails for line in mail.data.split(b"\r\n") if line.lower().startswith(b"message-id:")
    }
    assert len(ids) == len(documents)


# -- two hundred documents


def goes_through(server: Microsoft365, bridge: HurriedBridge, count: int, within: float) -> None:
    """So many documents leave once each, by three sessions at most; no answer is about a document or a login."""
    with running(bridge):
        documents = bridge.deposit_many(count)
        server.wait_for_mails(count, within)
        bridge.wait_for("document_validated", count)
        assert bridge.states() == {"validated": count}
    all_arrived_once(server, documents)
    assert server.most_at_once <= 3
    # A RCPT that was pipelined behind a refused MAIL is out of sequence: no verdict on anything.
    assert [each for each in server.refusals("5..") if each.reply[:3] != "503"] == []
    assert bridge.count("document_deferred") == bridge.count("document_held") == 0
    assert len(server.logins) == server.sessions < 20, server.kinds()  # every session has signed in once


def test_200_documents_are_200_mails_by_three_sessions_without_a_storm(tmp_path: Path) -> None:
    """By the preset: fewer than 20 answers in all are refusals."""
    with provider(BY_20) as server:
        goes_through(server, HurriedBridge(tmp_path, server, BY_20, provider="microsoft365"), 200, 100)
        assert len(server.refusals("4..")) < 20, server.kinds()


def test_a_limit_that_is_told_to_mail_from_is_kept_as_well(tmp_path: Path) -> None:
    """Where the envelope is pipelined, the refusal comes before the answers to the commands behind it."""
    with provider(BY_20, rate_at="MAIL") as server:
        bridge = HurriedBridge(tmp_path, server, BY_20, connections=3)
        goes_through(server, bridge, 70, 60)
        assert 0 < len(server.refusals("4..")) < 20, server.kinds()


def test_without_a_rate_bridged_learns_from_the_refusals_alone(tmp_path: Path) -> None:
    """No rate is configured. bridged may be refused more often, and loses and doubles no document."""
    with provider(BY_20) as server:
        goes_through(server, HurriedBridge(tmp_path, server, BY_20, connections=3), 200, 110)
        assert 0 < len(server.refusals("4..")) < 40, server.kinds()


@pytest.mark.parametrize("connections_at", ["CONNECT", "AUTH", "DATA"])
def test_more_connections_than_are_allowed_become_fewer(tmp_path: Path, connections_at: Any) -> None:
    """Six are configured where three are allowed: the refusals are few, and every document leaves once."""
    factor = 60.0
    with provider(factor, connections_at=connections_at) as server:
        server.per_minute = 10_000
        bridge = HurriedBridge(tmp_path, server, factor, connections=6)
        with running(bridge):
            documents = bridge.deposit_many(60)
            server.wait_for_mails(60, 60)
            bridge.wait_for("document_validated", 60)
        all_arrived_once(server, documents)
        assert len(server.refusals("432")) < 20, server.kinds()  # none, where few sessions were quick enough
        assert bridge.count("document_deferred") == bridge.count("document_held") == 0


@pytest.mark.parametrize("connections", [3, 1])
def test_an_alert_opens_no_session_beyond_those_that_are_allowed(tmp_path: Path, connections: int) -> None:
    """A session of its own beside those of the documents would be refused, and theirs throttled with it."""
    factor = 20.0
    with provider(factor) as server:
        server.per_minute, server.connections = 10_000, connections
        bridge = HurriedBridge(tmp_path, server, factor, connections=connections)
        bridge.extra = "alerts: {to: [bureau@cabinet.example]}"
        with running(bridge):
            documents = bridge.deposit_many(40)
            server.wait_for_mails(40, 60)
            os.rename(bridge.inboxes[3].parent, tmp_path / "gone")  # a share goes away

            def alerts() -> int:
                return sum(mail.recipients == ("bureau@cabinet.example",) for mail in server.mails)

            for number in range(100):  # the sessions of the documents are kept open
                if alerts():
                    break
                name, content = f"more {number}.pdf", b"%%PDF-1.4\n%d\n%%%%EOF\n" % number
                bridge.deposit(name, content, client=number % 3 + 1)
                documents[name] = content
                time.sleep(0.1)
            until(lambda: len(server.mails) == len(documents) + 1, "all have left")
        assert alerts() == 1
        assert server.most_at_once <= connections
        assert server.refusals() == []
        assert bridge.count("relay_throttled") == 0


# -- a mailbox that may not sign in


def test_a_mailbox_without_smtp_auth_is_one_alert_and_one_login(tmp_path: Path) -> None:
    """However many documents wait: none is held, none is tried, and all leave once the administrator has acted."""
    with provider(BY_20) as server:
        server.auth_disabled = True
        bridge = HurriedBridge(tmp_path, server, BY_20, provider="microsoft365")
        with running(bridge):
            documents = bridge.deposit_many(12)
            (alert,) = bridge.wait_for("relay_misconfigured")
            assert "5.7.139" in alert["reason"]
            assert "aka.ms/smtp_auth_disabled" in alert["reason"]
            bridge.wait_for("document_queued", 12)
            server.wait_for(lambda: server.open_sessions == 0)
            assert bridge.states() == {"queued": 12}
            assert len(server.failed_logins()) == len(server.logins) == 1
            server.auth_disabled = False
            assert bridge.run("reload").returncode == 0
            bridge.wait_for("document_validated", 12)
        all_arrived_once(server, documents)
        assert len(server.failed_logins()) == 1
        assert bridge.count("relay_misconfigured") == bridge.count("relay_recovered") == 1


def test_a_refused_sign_in_is_tried_after_a_quarter_of_an_hour_then_hourly(tmp_path: Path) -> None:
    """Each try is one more failed login: exactly one at a time, and never earlier."""
    with provider(BY_900) as server:
        server.auth_disabled = True
        bridge = HurriedBridge(tmp_path, server, BY_900, provider="microsoft365")
        with running(bridge):
            documents = bridge.deposit_many(1)
            server.wait_for(lambda: len(server.failed_logins()) == 4, 20)
            first, *later = bridge.gaps(server.failed_logins())
            server.auth_disabled = False
            bridge.wait_for("document_validated")
        all_arrived_once(server, documents)
        slack = SLACK * BY_900
        assert QUARTER - 1 <= first <= QUARTER * 1.2 + slack
        assert all(HOUR - 1 <= gap <= HOUR * 1.2 + slack for gap in later), later
        assert len(server.failed_logins()) == 4
        assert bridge.count("relay_misconfigured") == 1


def test_a_password_that_is_wrong_is_one_login(tmp_path: Path) -> None:
    """535 5.7.3: the session is not used for another try."""
    with provider(BY_20) as server:
        bridge = HurriedBridge(tmp_path, server, BY_20, provider="microsoft365")
        bridge.set_password("another")
        with running(bridge):
            bridge.deposit_many(1)
            (alert,) = bridge.wait_for("relay_misconfigured")
            assert "535 5.7.3" in alert["reason"]
            server.wait_for(lambda: server.open_sessions == 0)
            assert bridge.states() == {"queued": 1}
        assert [login[:2] for login in server.logins] == [("LOGIN", MAILBOX)]


# -- a quota that is used up


def bursts(bridge: HurriedBridge, exchanges: list[Exchange]) -> list[list[Exchange]]:
    """Refusals that came within a minute of each other."""
    found = [[exchanges[0]]] if exchanges else []
    for exchange, gap in zip(exchanges[1:], bridge.gaps(exchanges), strict=True):
        if gap > MINUTE * 5:
            found.append([])
        found[-1].append(exchange)
    return found


def test_a_daily_quota_keeps_every_document_and_asks_once_an_hour(tmp_path: Path) -> None:
    """554 5.2.0 pauses all, and counts against no document. The probe of the next hour ends the pause."""
    with provider(BY_900) as server:
        server.quota, server.per_minute = 10, 10_000
        bridge = HurriedBridge(tmp_path, server, BY_900, provider="microsoft365")
        with running(bridge):
            documents = bridge.deposit_many(25)
            (alert,) = bridge.wait_for("relay_throttled")
            assert "554 5.2.0" in alert["reason"]
            server.wait_for(lambda: len(bursts(bridge, server.refusals("554"))) == 4, 25)
            until(lambda: bridge.states() == {"validated": 10, "queued": 15}, "the probe is recorded")
            asked = bursts(bridge, server.refusals("554"))
            server.quota = None
            bridge.wait_for("document_validated", 25)
        all_arrived_once(server, documents)
        assert len(asked[0]) <= 3, "one for each session that was in the middle of a mail"
        assert [len(burst) for burst in asked[1:]] == [1, 1, 1]
        gaps = bridge.gaps([burst[-1] for burst in asked])
        assert all(HOUR - MINUTE <= gap <= HOUR * 1.2 + SLACK * BY_900 for gap in gaps), gaps
        assert bridge.count("relay_throttled") == bridge.count("relay_recovered") == 1
        assert bridge.count("document_held") == bridge.count("document_deferred") == 0


def test_a_restart_does_not_shorten_the_pause_for_a_quota(tmp_path: Path) -> None:
    """The pace is kept: a service manager that restarts the daemon must not make it hammer."""
    with provider(BY_900) as server:
        server.quota, server.per_minute = 3, 10_000
        bridge = HurriedBridge(tmp_path, server, BY_900, provider="microsoft365")
        with running(bridge):
            documents = bridge.deposit_many(6)
            bridge.wait_for("relay_throttled")
            server.wait_for(lambda: server.open_sessions == 0 or len(server.refusals("554")) <= 3)
            assert bridge.stop() == 0
            before = len(server.refusals("554"))
            bridge.start()
            server.wait_for(lambda: len(server.refusals("554")) > before, 15)
            asked = server.refusals("554")[before - 1 : before + 1]
            server.quota = None
            bridge.wait_for("document_validated", 6)
        all_arrived_once(server, documents)
        (gap,) = bridge.gaps(asked)
        assert gap >= HOUR - MINUTE


# -- the look-alike itself: the tests above rest on its limits


@pytest.fixture
def server() -> Iterator[Microsoft365]:
    with Microsoft365({MAILBOX: "right"}, {MAILBOX: "a-token"}, minute=1.0) as server:
        yield server


def connect(server: Microsoft365) -> smtplib.SMTP:
    client = smtplib.SMTP("localhost", server.port, timeout=10)
    client.starttls(context=ssl.create_default_context(cafile=str(server.ca_file)))
    return client


def signed_in(server: Microsoft365) -> smtplib.SMTP:
    client = connect(server)
    try:
        client.login(MAILBOX, "right")
    except smtplib.SMTPException:
        client.close()
        raise
    return client


def submit(client: smtplib.SMTP) -> tuple[int, bytes]:
    client.mail(MAILBOX)
    client.rcpt("martin@collecte.example")
    return client.data(b"Subject: one\r\n\r\none\r\n")


def test_the_look_alike_offers_microsofts_extensions_and_nothing_before_tls(server: Microsoft365) -> None:
    with smtplib.SMTP("localhost", server.port, timeout=10) as client:
        client.ehlo()
        assert "auth" not in client.esmtp_features
        assert client.docmd("AUTH LOGIN")[0] == 530
    with connect(server) as client:
        client.ehlo()
        assert client.esmtp_features["auth"].split() == ["LOGIN", "XOAUTH2"]
        assert client.esmtp_features["size"] == "157286400"
        assert {"pipelining", "chunking", "8bitmime"} <= client.esmtp_features.keys()
        assert client.docmd("MAIL FROM:<factures@cabinet.example>")[0] == 530


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (f"user={MAILBOX}\x01auth=Bearer a-token\x01\x01", 235),
        (f"user={MAILBOX}\x01auth=Bearer another\x01\x01", 535),
        (f"user={MAILBOX}\x01auth=Bearer a-token\x01", 535),
        (f"user={MAILBOX}\x01auth=bearer:a-token\x01\x01", 535),
        ("user=somebody@cabinet.example\x01auth=Bearer a-token\x01\x01", 535),
        (f"\0{MAILBOX}\0a-token", 535),
    ],
)
def test_the_look_alike_takes_a_bearer_token_exactly(server: Microsoft365, words: str, code: int) -> None:
    with connect(server) as client:
        client.ehlo()
        assert client.docmd(f"AUTH XOAUTH2 {base64.b64encode(words.encode()).decode()}")[0] == code
    with connect(server) as client:
        client.ehlo()
        assert client.docmd("AUTH XOAUTH2") == (334, b"")
        assert client.docmd(base64.b64encode(words.encode()).decode())[0] == code
    assert len(server.failed_logins()) == (0 if code == 235 else 2)


def test_the_look_alike_lets_thirty_messages_through_in_a_minute_of_any_mailbox(server: Microsoft365) -> None:
    with signed_in(server) as one, signed_in(server) as other:
        begun = time.monotonic()
        codes = [submit(client)[0] for client in [one, other] * 16]
        assert time.monotonic() - begun < server.minute, "too slow a machine to tell"
        assert codes == [250] * 30 + [432] * 2
        until(lambda: submit(one)[0] == 250, "a minute later there is room again", 5)
    assert server.most_in_a_minute() == 30


@pytest.mark.parametrize("place", ["CONNECT", "AUTH", "DATA"])
def test_the_look_alike_refuses_a_fourth_connection_until_one_has_gone(server: Microsoft365, place: Any) -> None:
    server.connections_at = place
    three = [signed_in(server) for _ in range(3)]

    def fourth() -> tuple[int, bytes]:
        try:
            with signed_in(server) as client:
                return submit(client)
        except (smtplib.SMTPConnectError, smtplib.SMTPAuthenticationError, smtplib.SMTPDataError) as error:
            return error.smtp_code, error.smtp_error  # type: ignore[return-value]

    code, words = fourth()
    assert code == 432
    assert b"Concurrent connections limit exceeded" in words
    three.pop().close()  # without a QUIT
    assert fourth()[0] == 250
    three.pop().quit()
    assert fourth()[0] == 250
    assert [submit(client)[0] for client in three] == [250]
    for client in three:
        client.close()
    assert server.most_at_once == 4


def test_the_look_alike_refuses_by_quota_and_by_policy(server: Microsoft365) -> None:
    server.quota = 1
    with signed_in(server) as client:
        assert submit(client)[0] == 250
        assert submit(client) == (554, look_alike.QUOTA_USED_UP[4:].encode())
        server.quota = None
        assert submit(client)[0] == 250
    assert len(server.mails) == 2
    server.auth_disabled = True
    with connect(server) as client, pytest.raises(smtplib.SMTPAuthenticationError, match=r"5\.7\.139"):
        client.login(MAILBOX, "right")


def test_the_look_alike_takes_a_message_in_chunks(server: Microsoft365) -> None:
    with signed_in(server) as client:
        client.mail(MAILBOX)
        client.rcpt("martin@collecte.example")
        client.send(b"BDAT 14\r\nSubject: one\r\nBDAT 7 LAST\r\n\r\n.\r\n\r\n")
        assert client.getreply()[0] == 250
        assert client.getreply()[0] == 250
    assert [mail.data for mail in server.mails] == [b"Subject: one\r\n\r\n.\r\n\r\n"]
