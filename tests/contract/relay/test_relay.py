"""The relay's edge against a real socket: what each misbehaviour comes to, and that it is never guessed."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from bridged.model import UserError
from bridged.relay import Relay
from bridged.relay import relay as edge
from bridged.relay.outcome import (
    Accepted,
    AddressRefused,
    Deferred,
    Exhausted,
    Misconfigured,
    Outcome,
    Refused,
    RelayDown,
    Throttled,
    Uncertain,
)
from tests.support import relay as scripted
from tests.support.relay import OK, Action, Cut, CutAfter, Late, Say, ScriptedRelay, Stall

SENDER, TO = "invoices@firm.example", "Martin@collect.example"
BODY = b"Subject: x\r\n\r\nbody\r\n"
SECRET = "s3cret-pässword"


@pytest.fixture
def make() -> Iterator[Callable[..., Relay]]:
    made: list[Relay] = []

    def relay(server: ScriptedRelay, **changes: Any) -> Relay:
        security = {"none": "plain", "starttls": "starttls", "implicit": "tls"}[server.tls]
        values = {
            "host": server.host, "port": server.port, "security": security, "username": None,
            "sender": SENDER, "ca_file": server.ca_file, "timeout": 10.0, "auth": None, "size_limit": None,
        }  # fmt: skip
        made.append(Relay(SimpleNamespace(**(values | changes)), lambda fresh: SECRET))  # type: ignore[arg-type]
        return made[-1]

    yield relay
    for one in made:
        one.close()


@pytest.fixture
def server() -> Iterator[ScriptedRelay]:
    with ScriptedRelay() as relay:
        yield relay


def send(relay: Relay, *chunks: bytes, before_dot: Callable[[], None] = lambda: None, **changes: Any) -> Outcome:
    parts = chunks or (BODY,)
    values = {"sender": SENDER, "collection_email": TO, "size": sum(map(len, parts))} | changes
    return relay.deliver(chunks=iter(parts), before_dot=before_dot, **values)


class Away:
    """A delivery in its own thread."""

    def __init__(self, relay: Relay, *chunks: bytes) -> None:
        self.outcomes: list[Outcome] = []
        self.thread = threading.Thread(target=lambda: self.outcomes.append(send(relay, *chunks)), daemon=True)
        self.thread.start()

    def outcome(self) -> Outcome:
        self.thread.join(10)
        assert self.outcomes, "deliver() did not return"
        return self.outcomes[0]


# -- what goes well


@pytest.mark.parametrize("pipelining", [True, False])
def test_an_accepted_mail_arrives_whole_with_one_recipient_and_the_relays_words(make, pipelining):
    with ScriptedRelay(extensions=["PIPELINING"] if pipelining else [], size=10**6) as server:
        called = []
        outcome = send(make(server), BODY[:9], BODY[9:], before_dot=lambda: called.append(len(server.mails)))
        [mail] = server.mails
        assert outcome == Accepted("250 2.0.0 Ok: queued as 0001")
        assert (mail.sender, mail.recipients, mail.data) == (SENDER, (TO,), BODY)
        assert mail.options == f"SIZE={len(BODY)}"
        assert called == [0], "before_dot comes before the relay has the mail"


def test_a_body_without_a_final_line_end_and_with_dotted_lines_arrives_unchanged(make, server):
    relay = make(server)
    assert isinstance(send(relay, b".a\r\n", b".\r\n", b"..b\r\n.", b"c"), Accepted)
    assert isinstance(send(relay, BODY), Accepted)
    assert [mail.data for mail in server.mails] == [b".a\r\n.\r\n..b\r\n.c\r\n", BODY]


def test_a_session_is_kept_and_reused_with_a_reset_between_mails(make, server):
    relay = make(server)
    for _ in range(3):
        assert isinstance(send(relay), Accepted)
    relay.close()
    verbs = [line.partition(" ")[0].upper() for _, line in server.commands]
    mail = ["MAIL", "RCPT", "DATA"]
    assert server.sessions == 1
    assert verbs == ["EHLO", *mail, "RSET", *mail, "RSET", *mail, "QUIT"]


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("mechanisms", [["PLAIN", "LOGIN"], ["LOGIN"], ["XOAUTH2", "PLAIN"]])
def test_credentials_go_through_tls_by_one_mechanism(make, tls, mechanisms):
    with ScriptedRelay(tls=tls, users={"us": SECRET}, mechanisms=mechanisms) as server:
        assert isinstance(send(make(server, username="us")), Accepted)
        used = "PLAIN" if "PLAIN" in mechanisms else "LOGIN"
        assert server.logins == [(used, "us", SECRET)]


def test_a_large_body_is_streamed_through_tls(make):
    with ScriptedRelay(tls="starttls") as server:
        block = (b"x" * 76 + b"\r\n") * 1024
        assert isinstance(send(make(server), *[block] * 60), Accepted)
        assert server.mails[0].data == block * 60


def test_check_reports_tls_login_and_size_and_sends_nothing(make):
    with ScriptedRelay(tls="starttls", users={"us": SECRET}, size=5000) as server:
        told = make(server, username="us").check()
        assert [word for word in ("TLSv1", "us by PLAIN", "5000") if not any(word in line for line in told)] == []
        assert not [line for _, line in server.commands if line.startswith("MAIL")]


def test_check_raises_a_sentence_that_does_not_show_the_password(make):
    with ScriptedRelay(tls="starttls", users={"us": "another"}) as server:
        with pytest.raises(UserError, match=r"535 5\.7\.8 bad credentials.*check again") as caught:
            make(server, username="us").check()
        assert SECRET not in str(caught.value)


# -- lost before the dot: certain


BEFORE_THE_DOT: list[tuple[str, Action]] = [
    ("CONNECT", Cut()), ("CONNECT", CutAfter()), ("CONNECT", Cut(reset=True)), ("CONNECT", Cut(raw=b"22")),
    ("EHLO", Cut()), ("EHLO", CutAfter()), ("MAIL", Cut()), ("MAIL", CutAfter()), ("MAIL", Cut(reset=True)),
    ("RCPT", Cut()), ("RCPT", CutAfter()), ("RCPT", Cut(raw=b"250 2.")), ("DATA", Cut()),
    ("DATA", Cut(reset=True)), ("UPLOAD", Cut(after=1)), ("UPLOAD", Cut(after=1, reset=True)),
    ("UPLOAD", Cut(raw=b"55", after=1)), ("CONNECT", Say("junk")), ("DATA", Say("250 out of turn")),
]  # fmt: skip


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize(("phase", "action"), BEFORE_THE_DOT, ids=str)
def test_a_line_lost_before_the_dot_is_the_relays_trouble_and_certain(make, phase, action, pipelining):
    with ScriptedRelay(extensions=["PIPELINING"] if pipelining else []) as server:
        server.script(phase, action)
        relay = make(server)

        def chunks() -> Iterator[bytes]:
            yield BODY
            if phase in ("UPLOAD", "DATA"):  # the relay is given the time to leave before the dot
                server.wait_for(lambda: server.open_sessions == 0)
            yield BODY

        outcome = relay.deliver(SENDER, TO, 2 * len(BODY), chunks(), lambda: None)
        assert isinstance(outcome, RelayDown), outcome
        assert server.mails == []
        assert isinstance(send(relay), Accepted), "the next delivery opens a new session"
        assert len(server.mails) == 1


def test_a_line_lost_between_the_body_and_the_dot_is_certain(make, server):
    server.script("UPLOAD", Cut(after=len(BODY)))
    outcome = send(make(server), before_dot=lambda: server.wait_for(lambda: server.open_sessions == 0))
    assert isinstance(outcome, RelayDown)
    assert server.mails == []


@pytest.mark.parametrize("phase", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA"])
def test_a_relay_that_falls_silent_before_the_dot_is_given_up_after_the_timeout(make, server, phase):
    server.script(phase, Stall())
    outcome = send(make(server, timeout=0.2))
    assert isinstance(outcome, RelayDown)
    assert "time" in outcome.detail


class Endless(scripted._Session):
    """Has `reply[0]` as the phase in which it says `reply[1]` again and again, every `reply[2]` seconds."""

    reply = ("", b"", 0.0)

    def say(self, reply: str) -> None:
        """The challenges of AUTH LOGIN are no phase."""
        self.babble(reply[:3])
        super().say(reply)

    def answer(self, phase: str, usual: str) -> bool:
        if phase != "EHLO" or self.encrypted:
            self.babble(phase)
        return super().answer(phase, usual)

    def babble(self, phase: str) -> None:
        while phase == self.reply[0] and not self.relay._go_on.wait(self.reply[2]):
            self.sock.sendall(self.reply[1])


ENDLESS = [(phase, piece) for phase, code in [
    ("CONNECT", b"220"), ("EHLO", b"250"), ("STARTTLS", b"220"), ("334", b"334"), ("AUTH", b"235"),
    ("MAIL", b"250"), ("DATA", b"354"),
] for piece in (b"x", code + b"-more\r\n")]  # fmt: skip


@pytest.mark.parametrize(("phase", "piece"), ENDLESS, ids=str)
@pytest.mark.parametrize("every", [0.02, 0.0], ids=["a dribble", "a flood"])
def test_a_reply_that_never_ends_is_given_up_after_the_timeout_or_64_kb(make, monkeypatch, phase, piece, every):
    """It is never silent: a time-out for each read would never come, and memory would be all there is."""
    monkeypatch.setattr(scripted, "_Session", Endless)
    monkeypatch.setattr(Endless, "reply", (phase, piece if every else piece * 5000, every))
    with ScriptedRelay(tls="starttls", users={"us": SECRET}, mechanisms=["LOGIN"]) as server:
        away = Away(make(server, username="us", timeout=10.0 if not every else 0.5))
        outcome = away.outcome()
        assert isinstance(outcome, RelayDown)
        assert ("no answer in time" if every else "does not end") in outcome.detail
        server.go_on()


@pytest.mark.parametrize("end", ["", "250 2.0.0 Ok"])
def test_an_answer_to_the_dot_that_is_longer_than_64_kb_is_uncertain(make, server, end):
    """Neither believed nor collected."""
    server.script("DOT", Say("250-2.0.0 Ok\r\n" * 6000 + end))
    assert send(make(server)) == Uncertain(f"The line to {server.host}:{server.port} was lost after the final dot: "
                                           "the relay's reply does not end")  # fmt: skip
    assert isinstance(send(make(server)), Accepted)


def test_a_relay_that_stops_reading_the_upload_is_given_up_after_the_timeout(make):
    with ScriptedRelay(receive_buffer=4096) as server:
        server.script("UPLOAD", Stall(after=1))
        outcome = send(make(server, timeout=0.3), *[b"x" * 76 + b"\r\n"] * 200_000)
        assert isinstance(outcome, RelayDown)


def test_a_relay_that_is_not_there_or_has_no_name_is_unreachable(make, server):
    relay = make(server)
    server.stop_listening()
    assert isinstance(send(relay), RelayDown)
    assert isinstance(send(make(server, host="no..name")), RelayDown)


# -- lost after the dot: uncertain


@pytest.mark.parametrize("tls", ["none", "starttls"])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("action", [Cut(), Cut(reset=True), Cut(raw=b"25"), Cut(raw=b"250-2.0.0 Ok\r\n")], ids=str)
def test_a_line_lost_after_the_dot_is_uncertain(make, action, keep, tls):
    with ScriptedRelay(tls=tls) as server:
        server.script("DOT", Cut(action.raw, reset=action.reset, keep=keep))
        relay = make(server)
        assert isinstance(send(relay), Uncertain)
        assert len(server.mails) == keep
        assert isinstance(send(relay), Accepted)


def test_an_acceptance_that_only_lacks_its_line_end_was_said(make, server):
    server.script("DOT", Cut(raw=b"250 2.0.0 Ok: que", keep=True))
    assert send(make(server)) == Accepted("250 2.0.0 Ok: que")


def test_a_reply_to_the_dot_that_is_no_smtp_is_uncertain(make, server):
    server.script("DOT", Say("garbage"), Say("354 again"))
    relay = make(server)
    assert isinstance(send(relay), Uncertain)
    assert isinstance(send(relay), Uncertain)


def test_the_answer_to_the_dot_is_awaited_beyond_the_ordinary_timeout(make, server):
    server.script("DOT", Late())
    away = Away(make(server, timeout=0.2))
    server.wait_for(lambda: server.stalled == 1)
    away.thread.join(0.8)
    assert away.thread.is_alive()
    server.go_on()
    assert isinstance(away.outcome(), Accepted)


def test_the_answer_to_the_dot_is_awaited_for_ten_minutes_and_then_uncertain(make, server, monkeypatch):
    assert edge.DOT_WAIT >= 600
    monkeypatch.setattr(edge, "DOT_WAIT", 0.2)
    server.script("DOT", Stall())
    assert isinstance(send(make(server, timeout=0.1)), Uncertain)


class CuttingLine:
    """A way to a relay that passes so many bytes in one direction and then breaks in both."""

    def __init__(self, server: ScriptedRelay) -> None:
        self.server = server
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.passed = {"up": 0, "down": 0}

    def carry_one(self, direction: str, at_most: int) -> threading.Thread:
        self.passed = {"up": 0, "down": 0}
        thread = threading.Thread(target=self._carry, args=(direction, at_most), daemon=True)
        thread.start()
        return thread

    def carry_all(self, direction: str, at_most: int) -> None:
        """The first connection breaks, all others are whole; until the listener is shut down."""

        def carry() -> None:
            with contextlib.suppress(OSError):
                self._carry(direction, at_most)
                while True:
                    self._carry("neither", 0)

        threading.Thread(target=carry, daemon=True).start()

    def _carry(self, direction: str, at_most: int) -> None:
        near, _ = self.listener.accept()
        with near, socket.create_connection(("127.0.0.1", self.server.port)) as far:
            ways = {near: ("up", far), far: ("down", near)}
            while True:
                for source in select.select(list(ways), [], [])[0]:
                    way, sink = ways[source]
                    left = at_most - self.passed[way] if way == direction else 65536
                    try:
                        data = source.recv(65536)
                        sink.sendall(data[:left])
                    except OSError:
                        return
                    self.passed[way] += len(data[:left])
                    if not data or len(data) >= left:
                        return


@pytest.mark.parametrize("tls", ["none", "implicit"])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_wherever_the_line_breaks_a_mail_that_arrived_is_never_called_lost(make, direction, tls):
    with ScriptedRelay(tls=tls) as server:
        line = CuttingLine(server)
        with line.listener:
            whole = line.carry_one(direction, 10**6)
            relay = make(server, port=line.port)
            assert isinstance(send(relay), Accepted)
            relay.close()
            whole.join(10)
            total = line.passed[direction]
            seen = set()
            for at_most in range(1, total + 1, 1 if tls == "none" else 23):
                before = len(server.mails)
                carrier = line.carry_one(direction, at_most)
                relay = make(server, port=line.port)
                outcome = send(relay)
                relay.close()
                carrier.join(10)
                server.wait_for(lambda: server.open_sessions == 0)
                arrived = len(server.mails) - before
                seen.add((type(outcome).__name__, arrived))
            possible = {("RelayDown", 0), ("Uncertain", 0), ("Uncertain", 1), ("Accepted", 1)}
            assert {("RelayDown", 0), ("Accepted", 1)} <= seen <= possible


# -- answers


@pytest.mark.parametrize(
    ("phase", "reply", "kind"),
    [
        ("CONNECT", "421 4.3.2 not now", RelayDown),
        ("CONNECT", "421 4.7.0 too many connections from you", Throttled),
        ("EHLO", "451 4.3.0 later", RelayDown),
        ("MAIL", "530 5.7.0 authenticate first", Misconfigured),
        ("MAIL", "553 5.7.1 not yours", Misconfigured),
        ("MAIL", "451 4.7.0 slow down", Throttled),
        ("RCPT", "450 4.2.0 later", Deferred),
        ("RCPT", "550 5.1.1 nobody", AddressRefused),
        ("RCPT", "550 5.4.5 daily quota", Exhausted),
        ("RCPT", "421 4.3.0 bye", RelayDown),
        ("DATA", "554 5.5.1 no valid recipients", Refused),
        ("DATA", "451 4.3.0 later", Deferred),
        ("DOT", "554 5.7.1 content refused", Refused),
        ("DOT", "451 4.3.0 later", Deferred),
        ("DOT", "421 4.3.2 shutting down", RelayDown),
        ("DOT", "432 4.3.2 concurrent", Throttled),
    ],
)
@pytest.mark.parametrize("pipelining", [True, False])
def test_an_answer_is_an_outcome_in_the_relays_own_words_and_the_next_mail_goes(make, phase, reply, kind, pipelining):
    with ScriptedRelay(extensions=["PIPELINING"] if pipelining else []) as server:
        server.script(phase, Say(reply))
        relay = make(server)
        outcome = send(relay)
        words = outcome.detail if isinstance(outcome, RelayDown | Misconfigured) else outcome.reply
        said = words[: len(reply)] if kind is Misconfigured else words  # a remedy may stand behind them
        assert (type(outcome), said) == (kind, reply)
        assert server.mails == []
        assert send(relay) == Accepted("250 2.0.0 Ok: queued as 0001")
        assert server.sessions == (1 if kind in (Deferred, Refused, AddressRefused) else 2)


@pytest.mark.parametrize("pipelining", [True, False])
def test_a_refused_recipient_never_gets_a_body(make, pipelining):
    """Where commands are pipelined DATA goes along with the envelope, and is answered before anything else is sent."""
    with ScriptedRelay(extensions=["PIPELINING"] if pipelining else []) as server:
        server.script("RCPT", Say("550 5.1.1 nobody"))
        relay = make(server)
        assert isinstance(send(relay), AddressRefused)
        assert ("DATA" in [line for _, line in server.commands]) is pipelining
        assert server.uploaded == 0
        assert send(relay) == Accepted("250 2.0.0 Ok: queued as 0001")
        assert server.sessions == 1


class WaitingForNobody(scripted._Session):
    """Answers DATA with 354 although it has refused the only recipient, as RFC 2920 3.1 allows."""

    def do_data(self, _: str) -> None:
        self.say("354 go on")
        left = self.relay.left = bytearray(self.buffer)
        while True:
            left += self.more()


def test_a_relay_that_waits_for_a_body_without_a_recipient_gets_no_dot(make, server, monkeypatch):
    monkeypatch.setattr(scripted, "_Session", WaitingForNobody)
    server.script("RCPT", Say("550 5.1.1 nobody"))
    relay = make(server)
    assert isinstance(send(relay), AddressRefused)
    monkeypatch.undo()
    assert send(relay) == Accepted("250 2.0.0 Ok: queued as 0001")
    assert (server.sessions, server.left) == (2, b"")


def test_a_clients_own_sender_that_is_refused_is_that_clients_trouble(make, server):
    server.script("MAIL", Say("553 5.7.1 not yours"), Say("553 5.7.1 not yours"))
    relay = make(server)
    assert isinstance(send(relay, sender="client@firm.example"), Refused)
    assert isinstance(send(relay), Misconfigured)


@pytest.mark.parametrize("then", ["cut", "stall", "go on"])
@pytest.mark.parametrize("tls", ["none", "starttls"])
@pytest.mark.parametrize(
    ("reply", "kind"),
    [("550 5.7.1 enough", Refused), ("421 4.3.0 bye", RelayDown), ("250 2.0.0 early", RelayDown)],
)
def test_an_answer_in_mid_upload_is_read_and_nothing_more_is_uploaded(make, reply, kind, then, tls):
    with ScriptedRelay(tls=tls, receive_buffer=8192) as server:
        server.script("UPLOAD", Say(reply, after=1000, then=then))
        relay, block = make(server), (b"x" * 76 + b"\r\n") * 512
        called = []

        def chunks() -> Iterator[bytes]:
            for _ in range(2000):
                yield block

        outcome = relay.deliver(SENDER, TO, 2000 * len(block), chunks(), lambda: called.append(1))
        assert type(outcome) is kind, outcome
        assert reply in str(outcome)
        assert called == []
        assert server.uploaded < 1500 * len(block)
        assert server.mails == []


def test_an_answer_between_the_body_and_the_dot_counts_and_the_dot_stays_here(make, server):
    server.script("UPLOAD", Say("552 5.3.4 too big", after=1))
    relay = make(server)

    def wait() -> None:
        session = relay._session
        assert session is not None
        server.wait_for(session.wire.interrupted)

    assert send(relay, before_dot=wait) == Refused("552 5.3.4 too big", certain=True)
    assert server.mails == []


def test_a_mail_larger_than_size_is_refused_before_it_is_announced(make):
    with ScriptedRelay(size=100) as server:
        relay = make(server)
        words = "The mail would be 101 bytes, more than the relay's SIZE of 100 bytes"
        assert send(relay, size=101) == Refused(words, certain=True)
        assert isinstance(send(relay, size=100), Accepted)
        assert send(relay, size=101) == Refused(words, certain=True)
        assert len([line for _, line in server.commands if line.startswith("MAIL")]) == 1


def test_a_mail_over_the_configured_limit_is_refused_here_and_the_session_is_kept(make, server):
    """Whatever the relay declares: some take the mail and only then say that it was too large."""
    relay = make(server, size_limit=100)
    outcome = send(relay, size=101)
    assert isinstance(outcome, Refused)
    assert outcome.certain
    assert "smtp.size_limit of 100 bytes" in outcome.reply
    assert server.sessions == 0
    assert isinstance(send(relay, size=100), Accepted)
    assert isinstance(send(relay, size=101), Refused)
    assert isinstance(send(relay, size=100), Accepted)
    assert (server.sessions, len(server.mails)) == (1, 2)


@pytest.mark.parametrize("size", [0, ""])
def test_a_size_of_zero_or_none_is_no_limit(make, size):
    with ScriptedRelay(size=size) as server:
        assert isinstance(send(make(server)), Accepted)


@pytest.mark.parametrize("size", ["9" * 5000, "0x10", "ten", "-1"])
def test_a_size_that_is_no_number_of_bytes_is_no_limit(make, size):
    """Python refuses to read thousands of digits: an exception would be no outcome."""
    with ScriptedRelay(extensions=[f"SIZE {size}"]) as server:
        assert isinstance(send(make(server)), Accepted)


@pytest.mark.parametrize(
    ("lines", "mechanisms"),
    [
        ("auth plain", ["PLAIN"]),
        ("AUTH=LOGIN PLAIN", ["LOGIN", "PLAIN"]),
        ("AUTH PLAIN\nAUTH=LOGIN", ["PLAIN", "LOGIN"]),
        ("XAUTH PLAIN", []),
        ("SIZE 10\nAUTH", []),
        ("", []),
    ],
)
def test_mechanisms_are_read_off_the_ehlo_reply(lines, mechanisms):
    """In any case, and as relays older than the standard write them; the first line is a greeting."""
    assert edge._features(f"AUTH CRAM-MD5\n{lines}").get("AUTH", "").upper().split() == mechanisms


def test_a_relay_that_knows_no_ehlo_is_greeted_with_helo_where_no_tls_is_wanted(make, server):
    """HELO offers no features, so none is used."""
    server.script("EHLO", Say("502 5.5.2 what?"))
    assert isinstance(send(make(server)), Accepted)
    assert [line.partition(" ")[0] for _, line in server.commands][:3] == ["EHLO", "HELO", "MAIL"]


def test_features_that_a_relay_offers_before_tls_are_forgotten(make):
    """Anybody on the way may have said it: here a login that is offered in clear text only."""

    class Offering(scripted._Session):
        def do_ehlo(self, rest: str) -> None:
            if self.encrypted:
                super().do_ehlo(rest)
            else:
                self.say("250-relay.example\r\n250-AUTH PLAIN\r\n250-SIZE 5\r\n250 STARTTLS")

    with pytest.MonkeyPatch.context() as patch, ScriptedRelay(tls="starttls", users={"us": SECRET}) as server:
        patch.setattr(scripted, "_Session", Offering)
        server.mechanisms = ("XOAUTH2",)
        assert "XOAUTH2" in str(send(make(server, username="us")))
        server.mechanisms = ("LOGIN",)
        assert isinstance(send(make(server, username="us")), Accepted)
        assert [mechanism for mechanism, _, _ in server.logins] == ["LOGIN"]


@pytest.mark.parametrize("injected", ["250 injected", "250-relay.example\r\n250 AUTH PLAIN"])
def test_an_answer_that_is_sent_along_with_the_one_to_starttls_is_forgotten(make, injected):
    """Else what somebody on the way has put there would be taken for the answer to the first EHLO in TLS."""
    with ScriptedRelay(tls="starttls", users={"us": SECRET}) as server:
        server.script("STARTTLS", Say(f"220 go\r\n{injected}"))
        assert isinstance(send(make(server, username="us")), Accepted)
        assert [line.partition(" ")[0] for _, line in server.commands][:4] == ["EHLO", "STARTTLS", "EHLO", "AUTH"]


def test_a_relay_that_throttles_after_some_mails_says_so(make):
    with ScriptedRelay(throttle_after=2) as server:
        relay = make(server)
        assert [type(send(relay)) for _ in range(3)] == [Accepted, Accepted, Throttled]


# -- trust


def test_a_certificate_that_is_not_trusted_halts_and_nothing_is_sent(make):
    with ScriptedRelay(tls="starttls", users={"us": SECRET}) as server:
        outcome = send(make(server, ca_file=None, username="us"))
        assert isinstance(outcome, Misconfigured)
        assert "certificate" in outcome.detail
        assert server.logins == []


def test_a_certificate_for_another_name_is_not_trusted(make):
    with ScriptedRelay(tls="implicit", names=["other.example"]) as server:
        assert isinstance(send(make(server)), Misconfigured)


def test_a_ca_file_that_cannot_be_read_is_a_misconfiguration(make, tmp_path):
    with ScriptedRelay(tls="starttls") as server:
        outcome = send(make(server, ca_file=tmp_path / "none.pem"))
        assert isinstance(outcome, Misconfigured)
        assert "ca_file" in outcome.detail


def test_starttls_that_is_not_offered_is_never_a_fallback_to_clear_text(make, server):
    outcome = send(make(server, security="starttls"))
    assert isinstance(outcome, Misconfigured)
    assert [line.partition(" ")[0].upper() for _, line in server.commands] == ["EHLO"]


def test_starttls_that_is_unavailable_for_now_is_the_relays_trouble(make):
    with ScriptedRelay(tls="starttls") as server:
        server.script("STARTTLS", Say("454 4.7.0 TLS not available"), Cut(), Say("220 go\r\n250 injected"))
        relay = make(server)
        assert isinstance(send(relay), RelayDown)
        assert isinstance(send(relay), RelayDown)
        assert isinstance(send(relay), Accepted | RelayDown), "what was injected before TLS is not believed"


def test_tls_with_a_relay_that_speaks_clear_text_is_the_relays_trouble(make, server):
    assert isinstance(send(make(server, security="tls")), RelayDown)


def test_a_wrong_password_is_tried_once_by_one_mechanism(make):
    with ScriptedRelay(tls="starttls", users={"us": "another"}) as server:
        assert isinstance(send(make(server, username="us")), Misconfigured)
        assert len(server.logins) == 1


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_an_outcome_never_shows_the_password_even_if_the_relay_echoes_it(make, mechanism):
    import base64

    blobs = [base64.b64encode(words.encode()).decode() for words in (SECRET, f"\0us\0{SECRET}")]
    with ScriptedRelay(tls="starttls", users={"us": SECRET}, mechanisms=[mechanism]) as server:
        server.script("AUTH", Say(f"535 no: {SECRET} {' '.join(blobs)}"))
        outcome = send(make(server, username="us"))
        assert isinstance(outcome, Misconfigured)
        assert not [secret for secret in (SECRET, *blobs) if secret in outcome.detail]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [("454 4.7.0 too many logins", Throttled), ("454 later", RelayDown), ("534 5.7.9 no", Misconfigured)],
)
def test_an_answer_to_the_login_is_told_apart(make, reply, kind):
    with ScriptedRelay(tls="starttls", users={"us": SECRET}) as server:
        server.script("AUTH", Say(reply))
        assert type(send(make(server, username="us"))) is kind


def test_credentials_go_in_clear_only_to_this_machine(make, monkeypatch):
    with ScriptedRelay(users={"us": SECRET}) as server:
        assert isinstance(send(make(server, username="us")), Accepted)
        monkeypatch.setattr(edge, "_loopback", lambda sock: False)
        outcome = send(make(server, username="us"))
        assert isinstance(outcome, Misconfigured)
        assert len(server.logins) == 1


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("127.0.0.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.0.2.1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_loopback_is_told_by_the_address_that_was_reached(peer, expected):
    assert edge._loopback(SimpleNamespace(getpeername=lambda: (peer, 25))) is expected


def test_no_known_mechanism_or_no_password_is_a_misconfiguration(make):
    with ScriptedRelay(tls="starttls", users={"us": SECRET}, mechanisms=["XOAUTH2"]) as server:
        assert isinstance(send(make(server, username="us")), Misconfigured)
    with ScriptedRelay(tls="starttls", users={"us": SECRET}) as server:
        relay = make(server, username="us")
        relay._secret = lambda fresh: None
        assert isinstance(send(relay), Misconfigured)

        def missing(fresh: bool) -> str:
            raise UserError("The password file is not there. Create it.")

        relay._secret = missing
        assert send(relay) == Misconfigured("The password file is not there. Create it.")


def test_an_address_can_never_become_a_command(make, server):
    with pytest.raises(ValueError, match="address"):
        send(make(server), collection_email="a@b.example>\r\nRCPT TO:<evil@c.example")
    assert server.mails == []


# -- sessions that die, bodies that fail, being interrupted


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize(
    ("phase", "action"),
    [
        ("RSET", Cut()), ("RSET", Cut(reset=True)), ("RSET", Say("421 4.4.2 idle", then="cut")),
        ("RSET", CutAfter()), ("MAIL", Cut()), ("MAIL", Say("421 too many in this session", then="cut")),
    ],
    ids=str,
)  # fmt: skip
def test_a_kept_session_that_has_died_is_silently_reopened_once(make, phase, action, pipelining):
    with ScriptedRelay(extensions=["PIPELINING"] if pipelining else []) as server:
        relay = make(server)
        server.script(phase, *([OK] if phase == "MAIL" else []), action)
        assert isinstance(send(relay), Accepted)
        assert isinstance(send(relay), Accepted)
        assert (server.sessions, len(server.mails)) == (2, 2)


def test_a_session_that_the_relay_closed_while_idle_is_silently_reopened(make, server):
    relay = make(server)
    send(relay)
    server.cut_all()
    server.wait_for(lambda: server.open_sessions == 0)
    assert isinstance(send(relay), Accepted)


def test_a_reopened_session_that_fails_too_is_the_relays_trouble(make, server):
    relay = make(server)
    send(relay)
    server.script("RSET", Cut())
    server.script("MAIL", Cut())
    assert isinstance(send(relay), RelayDown)
    assert server.sessions == 2


def test_a_session_is_not_used_beyond_the_idle_limit(make, server, monkeypatch):
    monkeypatch.setattr(edge, "IDLE_LIMIT", -1.0)
    relay = make(server)
    assert isinstance(send(relay), Accepted)
    assert isinstance(send(relay), Accepted)
    assert server.sessions == 2


@pytest.mark.parametrize("where", ["chunks", "before_dot"])
@pytest.mark.parametrize("error", [OSError("disk gone"), KeyboardInterrupt(), TimeoutError("nfs")], ids=repr)
def test_when_the_body_or_before_dot_raises_the_line_is_cut_without_a_dot(make, server, where, error):
    def fail() -> None:
        raise error

    def chunks() -> Iterator[bytes]:
        yield BODY
        if where == "chunks":
            fail()

    relay = make(server)
    with pytest.raises(type(error)):
        relay.deliver(SENDER, TO, 100, chunks(), fail if where == "before_dot" else lambda: None)
    server.wait_for(lambda: server.open_sessions == 0)
    assert server.mails == []
    assert isinstance(send(relay), Accepted)


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
@pytest.mark.parametrize(
    ("phase", "kind"),
    [
        ("CONNECT", RelayDown),
        ("EHLO", RelayDown),
        ("RCPT", RelayDown),
        ("UPLOAD", RelayDown),
        ("DOT", Uncertain),
    ],
)
def test_abort_breaks_off_a_blocked_delivery_with_the_right_outcome(make, phase, kind, tls):
    with ScriptedRelay(tls=tls, receive_buffer=4096) as server:
        server.script(phase, Stall(after=1))
        relay = make(server, timeout=60.0)
        body = [b"x" * 76 + b"\r\n"] * 300_000 if phase == "UPLOAD" else [BODY]
        away = Away(relay, *body)
        server.wait_for(lambda: server.stalled == 1)
        relay.abort()
        assert type(away.outcome()) is kind
        assert isinstance(send(relay), RelayDown), "abort is for good"
        assert server.sessions == 1


def test_abort_breaks_off_a_connection_that_is_still_being_made(make):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(4)]
        try:
            for one in waiting:  # fill the queue: the next connection hangs
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            port = full.getsockname()[1]
            made = threading.Event()
            settings = SimpleNamespace(host="127.0.0.1", port=port, security="plain", username=None)
            settings.sender, settings.ca_file, settings.timeout = SENDER, None, 60.0
            settings.auth = settings.size_limit = None
            relay = Relay(settings, lambda fresh: None)  # type: ignore[arg-type]
            hold = relay._hold
            relay._hold = lambda sock: (hold(sock), made.set())  # type: ignore[method-assign,assignment]
            away = Away(relay)
            assert made.wait(10)
            relay.abort()
            assert isinstance(away.outcome(), RelayDown)
        finally:
            for one in waiting:
                one.close()


# -- two mails by one session


NEXT = "next@collect.example"


@pytest.mark.parametrize("tls", ["none", "implicit"])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_wherever_the_line_breaks_among_two_mails_none_that_arrived_is_called_lost(make, direction, tls):
    """No mail is repeated that was accepted. None goes to the address of the other."""
    possible = {("RelayDown", 0), ("Uncertain", 0), ("Uncertain", 1), ("Accepted", 1)}

    def two(at_most: int) -> tuple[list[tuple[str, int]], int]:
        """The outcome of both mails, how often each arrived, and how many bytes passed."""
        before, line = len(server.mails), CuttingLine(server)
        with line.listener:
            line.carry_all(direction, at_most)
            relay = make(server, port=line.port)
            outcomes = [type(send(relay)).__name__, type(send(relay, collection_email=NEXT)).__name__]
            relay.close()
            line.listener.shutdown(socket.SHUT_RDWR)
        server.wait_for(lambda: server.open_sessions == 0)
        arrived = [mail.recipients for mail in server.mails[before:]]
        return [(outcomes[0], arrived.count((TO,))), (outcomes[1], arrived.count((NEXT,)))], line.passed[direction]

    with ScriptedRelay(tls=tls) as server:
        found, total = two(10**6)
        assert found == [("Accepted", 1), ("Accepted", 1)]
        seen = set()
        for at_most in range(1, total + 1, 3 if tls == "none" else 41):
            found, _ = two(at_most)
            assert set(found) <= possible, (at_most, found)
            seen |= set(enumerate(found))
        assert {(0, ("RelayDown", 0)), (0, ("Accepted", 1)), (1, ("Accepted", 1))} <= seen
