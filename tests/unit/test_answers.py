"""Each answer that real relays give, and the outcome the contract wants for it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.answers import Phase, Reply, classify, sentence, take_reply
from bridged.model import Accepted, Deferred, Misconfigured, Refused, RelayDown, Throttled, Uncertain

BEFORE_DOT = [phase for phase in Phase if phase is not Phase.DOT]
TRANSACTION = [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.UPLOAD, Phase.DOT]


@given(st.sampled_from(list(Phase)), st.integers(-1, 999), st.text(max_size=300))
def test_only_a_2yz_after_the_dot_is_accepted_and_only_after_it_is_anything_uncertain(phase, code, text):
    outcome = classify(phase, code, text)
    assert isinstance(outcome, Accepted) == (phase is Phase.DOT and 200 <= code < 300)
    assert isinstance(outcome, Uncertain) == (phase is Phase.DOT and code // 100 not in (2, 4, 5))


@given(st.sampled_from(list(Phase)), st.integers(400, 499), st.text(max_size=300))
def test_nothing_temporary_is_ever_refused(phase, code, text):
    assert not isinstance(classify(phase, code, text), Refused)


@pytest.mark.parametrize("phase", BEFORE_DOT)
@pytest.mark.parametrize("code", [-1, 0, 199, 250, 354, 999])
def test_an_answer_out_of_turn_before_the_dot_is_the_relays_trouble(phase, code):
    assert isinstance(classify(phase, code, "what"), RelayDown)


@pytest.mark.parametrize("phase", list(Phase))
def test_421_is_the_relays_trouble_in_every_phase_unless_it_names_too_many_connections(phase):
    assert isinstance(classify(phase, 421, "4.3.2 shutting down"), RelayDown)
    expected = RelayDown if phase is Phase.STARTTLS else Throttled
    assert isinstance(classify(phase, 421, "4.7.0 Too many connections from your host"), expected)


@pytest.mark.parametrize("phase", TRANSACTION)
@pytest.mark.parametrize(
    ("code", "text"),
    [
        (432, "4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded"),
        (432, "no words"),
        (450, "4.2.1 The user is receiving mail at a rate that prevents more"),
        (451, "4.7.0 try again"),
        (451, "4.7.500 Server busy"),
        (452, "4.5.3 Too many recipients"),
        (454, "4.7.0 Too many login attempts"),
        (450, "Requested mail action not taken: mailbox unavailable. Mail send limit exceeded."),
        (450, "4.7.1 Error: too much mail from 192.0.2.1"),
        (421, "4.7.28 unusual rate of mail"),
        (452, "Hourly limit reached"),
        (550, "5.4.5 Daily user sending limit exceeded"),
        (550, "5.4.5 no words"),
        (554, "5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException"),
        (550, "5.7.233 tenant exceeded its threshold"),
        (550, "5.7.232 trial tenant exceeded"),
        (550, "Daily sending quota exceeded"),
        (554, "Too many messages in this hour"),
        (550, "account rate limit"),
    ],
)
def test_a_relay_that_wants_fewer_mails_throttles_whatever_the_code(phase, code, text):
    assert isinstance(classify(phase, code, text), Throttled)


@pytest.mark.parametrize("phase", [Phase.RCPT, Phase.DATA, Phase.UPLOAD, Phase.DOT])
@pytest.mark.parametrize(
    ("code", "text"),
    [
        (550, "5.1.1 user unknown"),
        (550, "no such user"),
        (552, "5.2.2 mailbox full"),
        (552, "5.2.2 The recipient is over quota: sending limit"),
        (552, "5.3.4 Message size exceeds fixed limit"),
        (554, "5.7.1 content refused"),
        (550, "mailbox unavailable"),
        (554, "5.6.0 message too large for the daily limit of attachments"),
        (599, "who knows"),
        (553, "5.1.3 bad address syntax"),
    ],
)
def test_a_5yz_for_this_document_or_address_is_refused(phase, code, text):
    assert classify(phase, code, text) == Refused(f"{code} {text}")


@pytest.mark.parametrize("phase", TRANSACTION)
@pytest.mark.parametrize(
    ("code", "text"),
    [
        (450, "4.2.0 later"),
        (451, "4.3.0 temporary lookup failure"),
        (452, "4.2.2 mailbox exceeds quota limit"),
        (452, "4.3.1 insufficient system storage"),
        (450, "4.1.8 sender domain not found"),
        (451, "4.7.1 Greylisted, try again in 5 minutes"),
        (450, "no enhanced code"),
    ],
)
def test_a_4yz_for_this_document_or_address_is_deferred(phase, code, text):
    assert classify(phase, code, text) == Deferred(f"{code} {text}")


@pytest.mark.parametrize("phase", TRANSACTION)
@pytest.mark.parametrize(
    ("code", "text"),
    [
        (530, "5.7.57 Client not authenticated to send mail"),
        (530, "Must issue a STARTTLS command first"),
        (535, "5.7.139 Authentication unsuccessful"),
        (550, "5.7.60 Client does not have permissions to send as this sender"),
        (554, "5.2.252 SendAsDenied; not allowed"),
        (554, "5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException"),
        (550, "5.2.251 mailbox throttled for errors"),
        (554, "5.7.1 <a@b.example>: Relay access denied"),
        (454, "4.7.1 <a@b.example>: Relay access denied"),
        (550, "5.7.1 Unable to relay"),
        (553, "5.7.1 <us@firm.example>: Sender address rejected: not owned by user us"),
        (550, "5.1.8 sender domain does not exist"),
        (554, "5.7.1 Service unavailable; Client host [192.0.2.1] blocked using a list"),
    ],
)
def test_what_a_person_must_mend_is_a_misconfiguration(phase, code, text):
    assert classify(phase, code, text) == Misconfigured(f"{code} {text}")


@pytest.mark.parametrize("code", [534, 535, 530, 538, 504, 500, 550])
def test_any_permanent_answer_to_the_login_halts(code):
    assert isinstance(classify(Phase.AUTH, code, "no"), Misconfigured)


def test_mail_from_refused_is_the_senders_trouble_unless_it_is_the_size():
    assert isinstance(classify(Phase.MAIL, 550, "5.7.1 no"), Misconfigured)
    assert isinstance(classify(Phase.MAIL, 552, "5.2.2 sender mailbox full"), Misconfigured)
    assert isinstance(classify(Phase.MAIL, 552, "5.3.4 too big"), Refused)
    assert isinstance(classify(Phase.MAIL, 552, "too big"), Refused)


def test_a_sender_of_one_clients_own_that_is_refused_does_not_halt_the_others():
    text = "5.7.60 Client does not have permissions to send as this sender"
    assert isinstance(classify(Phase.MAIL, 553, "no", shared_sender=False), Refused)
    assert isinstance(classify(Phase.DOT, 550, text, shared_sender=False), Refused)
    assert isinstance(classify(Phase.MAIL, 530, "authenticate", shared_sender=False), Misconfigured)


def test_a_greeting_that_refuses_is_the_relays_trouble_and_a_policy_is_for_a_person():
    assert isinstance(classify(Phase.BANNER, 554, "no SMTP service here"), RelayDown)
    assert isinstance(classify(Phase.BANNER, 554, "5.7.1 your address is listed"), Misconfigured)
    assert isinstance(classify(Phase.EHLO, 451, "4.3.0 later"), RelayDown)


def test_tls_that_is_unavailable_for_now_is_the_relays_trouble():
    assert isinstance(classify(Phase.STARTTLS, 454, "4.7.0 TLS not available"), RelayDown)


def test_a_sentence_has_one_line_no_control_characters_and_the_enhanced_code_once():
    assert sentence(550, "5.1.1 no\r\n5.1.1  such\x1b[31m user\n") == "550 5.1.1 no such\ufffd[31m user"
    assert sentence(-1, "what") == "what"
    assert sentence(250, "") == "250"


@given(st.integers(-1, 999), st.text())
def test_a_sentence_is_printable_and_short(code, text):
    assert sentence(code, text).isprintable()
    assert len(sentence(code, text)) <= 504


STREAM = b"250 ok\r\n250-a\r\n250-b\n250 c\r\n354\r\n"
REPLIES = [Reply(250, "ok"), Reply(250, "a\nb\nc"), Reply(354, "")]


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_replies_are_the_same_however_the_bytes_arrive(cuts):
    edges = [0, *sorted(cuts), len(STREAM)]
    buffer, seen = bytearray(), []
    for start, end in pairwise(edges):
        buffer += STREAM[start:end]
        while (reply := take_reply(buffer)) is not None:
            seen.append(reply)
    assert seen == REPLIES
    assert buffer == b""


@given(st.binary(max_size=200))
def test_no_bytes_can_make_the_reader_fail(data):
    buffer = bytearray(data)
    while take_reply(buffer) is not None:
        pass
    assert len(buffer) <= len(data)


def test_what_is_no_smtp_and_what_never_ends_is_not_a_reply():
    assert take_reply(bytearray(b"HTTP/1.1 400\r\n250 ok\r\n")) == Reply(-1, "HTTP/1.1 400\r\n250 ok\r\n")
    assert take_reply(bytearray(b"250-more\r\n" * 10_000)) == Reply(-1, "a reply without an end")
