"""The replies of real relays, the row of the table that decides each, and the outcome that the contract wants."""

from __future__ import annotations

import dataclasses
import re
import time
from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.relay.outcome import (
    Accepted,
    AddressRefused,
    Deferred,
    Exhausted,
    Misconfigured,
    Refused,
    RelayDown,
    Throttled,
    Uncertain,
)
from bridged.relay.reactions import ROWS, Row
from bridged.relay.replies import Phase, Reply, classify, row_of, sentence, take_reply

BANNER, EHLO, STARTTLS, AUTH, RSET = Phase.BANNER, Phase.EHLO, Phase.STARTTLS, Phase.AUTH, Phase.RSET
MAIL, RCPT, DATA, UPLOAD, DOT = Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.UPLOAD, Phase.DOT
BEFORE_DOT = [phase for phase in Phase if phase is not DOT]
TRANSACTION = [MAIL, RCPT, DATA, UPLOAD, DOT]

# Replies of relays, each under the row that decides it.
EXAMPLES: dict[str, list[tuple[Phase, int, str]]] = {
    "accepted": [(DOT, 250, "2.0.0 Ok: queued as 4Xy"), (DOT, 250, "Ok 0102018f-000000")],
    "no-verdict": [(DOT, 354, "go on"), (DOT, -1, "HTTP/1.1 400")],
    "out-of-turn": [(RCPT, 354, "go on"), (BANNER, -1, "SSH-2.0-OpenSSH"), (AUTH, 250, "2.1.0 Ok")],
    "tls-later": [
        (STARTTLS, 454, "4.7.0 TLS not available due to local problem"),
        (STARTTLS, 421, "too many connections"),
    ],
    "tls-refused": [(STARTTLS, 502, "5.5.1 Unrecognized command"), (STARTTLS, 554, "5.7.0 no")],
    "connections": [
        (BANNER, 421, "4.7.0 mx.example Error: too many connections from 192.0.2.1"),
        (BANNER, 421, "Too many concurrent SMTP connections; please try again later."),
        (AUTH, 421, "4.7.0 too many connections"),
        (AUTH, 535, "5.7.0 Maximum number of concurrent sessions reached"),
        (BANNER, 554, "5.7.1 too many connections from your host"),
        (MAIL, 421, "too many in this session"),
        (RCPT, 450, "4.7.1 too many connections, try again in an hour"),
    ],
    "sign-in-too-often": [
        (AUTH, 454, "4.7.0 Too many login attempts, please try again later. x1 - gsmtp"),
        (AUTH, 450, "4.7.1 rate limit exceeded"),
    ],
    "sign-in-later": [
        (AUTH, 454, "4.7.0 Temporary authentication failure"),
        (AUTH, 454, "4.7.0 Cannot authenticate due to temporary system problem. Try again later."),
        (AUTH, 435, "Unable to authenticate at present"),
    ],
    "m365-smtp-auth-off": [
        (
            AUTH,
            535,
            f"5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the {where}. Visit x.",
        )
        for where in ("Mailbox", "Tenant")
    ],
    "m365-policy": [
        (AUTH, 535, "5.7.139 Authentication unsuccessful, blocked by Conditional Access"),
        (
            AUTH,
            535,
            "5.7.139 Authentication unsuccessful, user is locked by your organization's security defaults policy.",
        ),
        (AUTH, 535, "5.7.139 Authentication unsuccessful, the request did not meet the criteria to be authenticated"),
    ],
    "m365-password": [
        (AUTH, 535, "5.7.139 Authentication unsuccessful, the user credentials were incorrect. [X.PROD]")
    ],
    "m365-basic-retired": [
        (AUTH, 550, "5.7.30 Basic authentication is not supported for Client Submission."),
        (MAIL, 550, "5.7.30 no words"),
        (AUTH, 535, "5.7.139 Authentication unsuccessful, basic authentication is disabled."),
    ],
    "m365-no-right": [
        (AUTH, 535, "5.7.3 Authentication unsuccessful [AM0PR01.EURPRD01.PROD.OUTLOOK.COM]"),
        (AUTH, 535, "5.7.139 Authentication unsuccessful"),
    ],
    "google-app-password": [
        (AUTH, 534, "5.7.9 Application-specific password required. For more information, go to\n5.7.9 x - gsmtp"),
        (AUTH, 535, "5.7.1 Application-specific\n5.7.1 password required"),
        (AUTH, 534, "5.7.9 no words"),
    ],
    "google-web-login": [
        (AUTH, 534, "5.7.14 <https://accounts.example/signin> Please log in"),
        (AUTH, 535, "5.7.1 Please log in with your web browser and then try again."),
    ],
    "google-password": [(AUTH, 535, "5.7.8 Username and Password not accepted. For more information, go to\n5.7.8 x")],
    "ses-password": [(AUTH, 535, "Authentication Credentials Invalid")],
    "encrypt-first": [
        (AUTH, 530, "5.7.0 Must issue a STARTTLS command first"),
        (MAIL, 530, "Must issue a STARTTLS command first"),
        (AUTH, 538, "5.7.11 Encryption required for requested authentication mechanism"),
    ],
    "sign-in-refused": [
        (AUTH, 535, "5.7.8 Error: authentication failed: UGFzc3dvcmQ6"),
        (AUTH, 535, "Incorrect authentication data"),
        (AUTH, 535, "5.7.139 Authentication unsuccessful, account locked. Contact your administrator."),
        (AUTH, 504, "5.7.4 Unrecognized Authentication Type"),
    ],
    "relay-denied": [
        (RCPT, 550, "5.7.1 host is not permitted to relay through this server"),
        (RCPT, 554, "5.7.1 <a@b.example>: Relay access denied"),
        (RCPT, 454, "4.7.1 <a@b.example>: Relay access denied"),
        (RCPT, 550, "relay not permitted"),
        (RCPT, 550, "5.7.1 Unable to relay"),
        (RCPT, 550, "5.7.64 TenantAttribution; no"),
        (MAIL, 550, "5.7.1 Invalid credentials for relay"),
        (RCPT, 553, "sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)"),
    ],
    "sign-in-first": [
        (RCPT, 550, "5.7.1 You must authenticate before sending"),
        (MAIL, 550, "5.7.1 Client was not authenticated"),
        (MAIL, 530, "5.7.57 Client not authenticated to send mail. [X.PROD]"),
        (MAIL, 550, "5.7.57 no words"),
        (RCPT, 451, "4.7.0 Authentication required"),
        (MAIL, 530, "5.7.0 authenticate first"),
        (MAIL, 503, "AUTH first"),
    ],
    "host-doubted": [
        (RCPT, 450, "4.7.25 Client host rejected: cannot find your hostname, [192.0.2.1]"),
        (RCPT, 450, "4.7.1 <x>: Helo command rejected: Host not found"),
    ],
    "greylisted": [
        (RCPT, 451, "4.7.1 Greylisted, try again in 5 minutes"),
        (DATA, 450, "4.2.0 <a@b.example>: Recipient address rejected: Graylisted, 1 hour limit"),
    ],
    "sender-doubted": [
        (MAIL, 450, "4.1.8 <us@firm.example>: Sender address rejected: Domain not found"),
        (RCPT, 450, "4.1.8 <us@firm.example>: Sender address rejected: Domain not found"),
        (DOT, 451, "4.1.7 bad sender address"),
    ],
    "relay-full": [(MAIL, 452, "4.3.1 no room"), (MAIL, 452, "insufficient system storage")],
    "mailbox-full-for-now": [
        (DOT, 452, "4.3.4 mail too large for now"),
        (RCPT, 452, "recipient over quota"),
        (RCPT, 452, "4.2.2 The email account that you tried to reach is over quota."),
        (RCPT, 452, "4.2.2 limit exceeded"),
        (DOT, 452, "mailbox exceeds quota limit: mailbox full"),
        (RCPT, 452, "4.5.3 Domain policy size per transaction exceeded"),
    ],
    "daily-limit": [
        (DOT, 454, "Throttling failure: Daily message quota exceeded."),
        (DOT, 454, "4.7.0 Throttling failure: Daily message quota exceeded."),
        (MAIL, 421, "4.7.28 daily limit exceeded"),
        (RCPT, 452, "Hourly limit reached"),
        (RCPT, 451, "4.7.1 You have sent too many mails in the last 24 hours"),
        (RCPT, 450, "Domain firm.example has exceeded the max emails per hour (500/500 (100%)) allowed"),
    ],
    "m365-threads": [
        (DOT, 432, "4.3.2 STOREDRV.ClientSubmit; sender thread count [Hostname=X.PROD]"),
        (MAIL, 432, "no words"),
    ],
    "google-rate": [(RCPT, 450, "4.2.1 The user you are trying to contact is receiving mail too quickly.")],
    "policy-for-now": [(MAIL, 451, "4.7.500 Server busy. Please try again later"), (RCPT, 451, "4.7.0 try again")],
    "recipients": [(RCPT, 452, "4.5.3 try again")],
    "ses-rate": [(DOT, 454, "4.7.0 no words")],
    "slower": [
        (RCPT, 450, "Throttled"),
        (RCPT, 450, "4.7.1 rate-limited"),
        (RCPT, 450, "rate too high"),
        (RCPT, 450, "Please slow down"),
        (RCPT, 450, "4.7.1 submission limit"),
        (RCPT, 450, "4.7.1 sending quota"),
        (RCPT, 450, "relaying limit reached"),
        (RCPT, 450, "you exceeded your quota"),
        (DOT, 454, "Throttling failure: Maximum sending rate exceeded."),
        (RCPT, 450, "Requested mail action not taken: mailbox unavailable\nMail send limit exceeded."),
        (RCPT, 450, "4.7.1 Error: too much mail from 192.0.2.1"),
        (MAIL, 421, "4.7.28 Our system has detected an unusual rate of mail"),
        (BANNER, 421, "Rate limit reached. Please try again later"),
        (MAIL, 452, "4.3.2 Connection rate limit exceeded."),
    ],
    "closing": [(phase, 421, "4.3.2 shutting down") for phase in Phase if phase is not STARTTLS],
    "no-network-mail": [(MAIL, 450, "4.3.2 System not accepting network messages"), (DOT, 453, "4.3.2 later")],
    "link-later": [(EHLO, 451, "4.3.0 later"), (BANNER, 450, "not now"), (RSET, 451, "later")],
    "later": [
        (RCPT, 450, "4.2.0 later"),
        (DOT, 451, "4.3.0 Mail server temporarily rejected message."),
        (DOT, 452, "4.3.1 Insufficient system storage"),
        (RCPT, 450, "4.1.1 <a@b.example>: Recipient address rejected: unverified address"),
        (RCPT, 451, "Temporary local problem - please try later"),
    ],
    "quota-named": [
        (DOT, 554, "5.2.2 Submission quota exceeded"),
        (DOT, 550, "5.2.2 SubmissionQuotaExceeded"),
        (DOT, 554, "The message can't be submitted because the sender's submission quota was exceeded"),
        (DOT, 554, "5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException"),
        (DOT, 554, "5.2.0 STOREDRV.Submission.Exception:OutboundSpamException; Actual verdict is RefuseQuota."),
    ],
    "quota-code": [
        (RCPT, 550, "5.4.5 Daily user sending limit exceeded. For more information"),
        (DOT, 550, "5.4.5 no words"),
        (DOT, 550, "5.1.90 Your message can't be sent because you've reached your daily limit for message recipients"),
        *((RCPT, 550, f"5.7.{code} no words") for code in (232, 233, 236, 508, 705)),
    ],
    "sender-mailbox-full": [
        (
            DOT,
            554,
            "5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionQuotaExceeded",
        ),
        (DOT, 554, "5.2.2 mailbox full; MapiExceptionShutoffQuotaExceeded"),
        (MAIL, 552, "5.2.2 sender mailbox full"),
    ],
    "send-as-denied": [
        (RCPT, 550, "5.2.252 no words"),
        (MAIL, 550, "you are not authorized to send from this address"),
        (DOT, 550, "5.7.60 no words"),
        (DOT, 554, "5.2.252 SendAsDenied; us@firm.example not allowed to send as them@firm.example"),
        (DOT, 554, "5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied"),
        (RCPT, 553, "5.7.1 <us@firm.example>: Sender address rejected: not owned by user them"),
        (DOT, 550, "Client does not have permissions to send as this sender"),
    ],
    "blocked-at-provider": [
        *((DOT, 550, f"5.7.{code} no words") for code in (501, 502, 503, 506, 509, 511, 606, 649, 708, 750)),
        (DOT, 554, "5.2.0 STOREDRV.Submission.Exception:OutboundSpamException; Actual verdict is Suspend."),
        (DOT, 550, "5.7.501 Access denied, spam abuse detected"),
    ],
    "m365-hammered": [
        *((DOT, 550, f"5.2.{code} Sender throttled due to continuous errors") for code in (251, 253, 254, 255)),
    ],
    "m365-daily": [(DOT, 554, "5.2.0 STOREDRV.Submission.Exception; no words")],
    "sender-refused": [
        (DOT, 550, "the sender's mailbox is locked"),
        (DOT, 550, "5.1.8 Access denied, bad outbound sender"),
        (RCPT, 553, "5.1.7 no words"),
        (DOT, 550, "5.7.26 This mail is unauthenticated"),
        (RCPT, 550, "5.1.0 <us@firm.example>: Sender address rejected: User unknown in virtual mailbox table"),
        (RCPT, 550, "Verification failed for <us@firm.example>\nUnrouteable address\nSender verify failed"),
    ],
    "collector-rate": [
        (DOT, 550, "5.2.121 Recipient's per hour message receive limit from specific sender exceeded"),
        (RCPT, 550, "5.2.1 The user you are trying to contact is receiving email at a rate that prevents additional"),
    ],
    "address-code": [
        *(
            (RCPT, 550, f"{code} no words")
            for code in ("5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.2.1", "5.7.504", "5.7.505")
        ),
        (DOT, 550, "5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup"),
        (RCPT, 550, "5.4.1 Recipient address rejected: Access denied. [X.PROD]"),
        (RCPT, 550, "no such user here (#5.1.1)"),
        (
            RCPT,
            550,
            "5.1.1 The email account that you tried to reach does not exist. Please try\n5.1.1 double-checking",
        ),
        (RCPT, 556, "5.1.10 Recipient address has null MX"),
    ],
    "too-large-code": [
        (DOT, 552, "5.3.4 no words"),
        (MAIL, 552, "5.3.4 Message size exceeds fixed limit"),
        (DOT, 552, "5.2.3 Your message exceeded Google's message size limits."),
    ],
    "mailbox-full": [
        (RCPT, 552, "5.2.2 the sending limit"),
        (RCPT, 550, "user over quota: daily limit"),
        (RCPT, 550, "the mailbox is full: sending limit"),
        (DOT, 552, "mailbox storage exceeded the size"),
    ],
    "content-code": [
        (DOT, 554, "5.6.0 Mail message is malformed. Not accepted."),
        (UPLOAD, 554, "5.6.0 no"),
        (DATA, 554, "5.6.0 no"),
        (DOT, 550, "5.6.11 Invalid characters"),
        (RCPT, 554, "5.6.0 a mail for the daily sending limit of attachments"),
    ],
    "sign-in-code": [(DOT, 550, f"5.7.{code} no words") for code in (3, 8, 9, 14, 139)],
    "sign-in-basic": [(RCPT, code, "no words") for code in (530, 534, 535, 538)],
    "too-large-at-mail": [(MAIL, 552, "no words")],
    "too-large": [
        (DOT, 552, "exceeded the maximum size"),
        (DOT, 552, "Message size exceeds maximum permitted"),
        (DOT, 552, "Message is too long"),
        (UPLOAD, 554, "message too big for system"),
        (MAIL, 554, "too large"),
        (DOT, 554, "your mail exceeded the message size limit"),
    ],
    "quota": [
        (DOT, 550, "Daily sending quota exceeded"),
        (DOT, 554, "Too many messages in this hour"),
        (RCPT, 550, "sorry, too many emails (#5.7.1)"),
        (RCPT, 550, "5.7.1 Daily SMTP relay limit exceeded for customer."),
        (DOT, 550, "5.7.1 Email quota exceeded."),
        (RCPT, 550, "Domain firm.example has exceeded the max defers and failures per hour (5/5 (100%)) allowed."),
        (BANNER, 554, "5.7.1 outgoing limit"),
        (DOT, 550, "You (firm) have reached your message limit"),
    ],
    "too-fast": [
        (RCPT, 550, "too many logins"),
        (RCPT, 550, "you send too fast"),
        (RCPT, 550, "slow down"),
        (MAIL, 550, "account rate limit"),
        (
            DOT,
            550,
            "5.7.1 Our system has detected an unusual rate of unsolicited mail originating from your IP address.",
        ),
        (DOT, 550, "5.7.1 This mail has been rate limited."),
        (BANNER, 554, "throttled"),
    ],
    "host-blocked": [
        (RCPT, 554, "5.7.1 blocked using a list"),
        (RCPT, 554, "5.7.1 <x.example>: Client host rejected: Access denied"),
        (RCPT, 554, "5.7.1 Service unavailable; Client host [192.0.2.1] blocked using a list"),
        (BANNER, 550, "IP source blocked. Client host blocked for spamming issues."),
        (DOT, 550, "5.7.1 The IP you're using to send mail is not authorized to send email directly to our servers."),
        (RCPT, 550, "5.7.25 no words"),
    ],
    "ses-unverified": [(DOT, 554, "Message rejected: Email address is not verified. The following identities failed")],
    "sending-stopped": [
        (DOT, 554, "Message rejected: Sending paused for this account."),
        (DOT, 554, "Access denied: User is not authorized to perform ses:SendRawEmail"),
        (DOT, 550, "5.7.0 Mail Sending denied."),
        (RCPT, 550, "5.7.1 your account has been suspended"),
    ],
    "mail-refused": [
        (MAIL, 550, "5.7.1 no"),
        (MAIL, 553, "5.7.1 not yours"),
        (MAIL, 550, "5.1.1 no"),
        (MAIL, 552, "5.0.0 x"),
    ],
    "address": [
        (RCPT, 550, "no such user"),
        (RCPT, 550, "Requested action not taken: mailbox unavailable"),
        (RCPT, 550, "5.5.0 Requested action not taken: mailbox unavailable"),
        (RCPT, 550, "Unknown User"),
        (RCPT, 554, "5.7.1 <a@b.example>: Recipient address rejected: user unknown"),
        (RCPT, 550, "Unrouteable address"),
        (RCPT, 553, "the account a@b.example does not exist"),
        (RCPT, 501, "Invalid RCPT TO address provided"),
    ],
    "content": [
        (DOT, 554, "malware found"),
        (DOT, 554, "the message is infected"),
        (DOT, 554, "5.7.1 Message rejected as SPAM"),
        (DOT, 554, "Phishing"),
        (DOT, 554, "this file type is not taken"),
        (DOT, 550, "malformed header"),
        (DOT, 552, "5.7.0 This message was blocked because its content presents a potential security issue."),
        (DOT, 554, "5.7.1 content refused"),
        (DOT, 550, "This message contains a virus (Eicar)"),
        (DOT, 550, "5.7.1 Our system has detected that this message is likely unsolicited mail."),
        (UPLOAD, 554, "5.7.1 attachment type not allowed"),
    ],
    "greeting-policy": [(BANNER, 554, "5.7.1 your address is listed"), (EHLO, 550, "5.7.1 Helo rejected")],
    "link-refused": [(BANNER, 554, "No SMTP service here"), (EHLO, 502, "5.5.2 what?"), (RSET, 550, "5.7.1 no")],
    "refused": [
        (DOT, 599, "who knows"),
        (RCPT, 554, "5.7.1 no"),
        (DATA, 554, "5.5.1 Error: no valid recipients"),
        (DATA, 550, "mailbox unavailable"),
        (DOT, 550, "no such user"),
        (RCPT, 552, "exceeded storage allocation"),
    ],
}
EACH = [
    pytest.param(name, *said, id=f"{name}: {said[0].name} {said[1]}") for name in EXAMPLES for said in EXAMPLES[name]
]
BY_NAME = {row.name: row for row in ROWS}
NOTHING = Row("nothing", frozenset(Phase), "(?s:.*)", lambda _: Accepted("nobody has decided this"), "this test")
# The only rows whose wording counts as permanent in a 4yz.
MENDED_BY_A_PERSON = {"relay-denied", "sign-in-first"}
WORDS = sorted({word for said in chain(*EXAMPLES.values()) for word in said[2].split()})


@pytest.mark.parametrize(("name", "phase", "code", "text"), EACH)
def test_a_reply_is_decided_by_its_own_row(name, phase, code, text):
    assert row_of(phase, code, text).name == name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_has_its_own_name_a_source_and_an_example(row):
    assert row.source
    assert [other.name for other in ROWS].count(row.name) == 1
    assert EXAMPLES[row.name]
    assert not row.remedy or (row.remedy[0].isupper() and row.remedy.endswith("."))


def test_every_example_stands_under_a_row_of_the_table():
    assert set(EXAMPLES) == set(BY_NAME)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_table_without_a_row_decides_an_example_of_it_otherwise(row):
    """A row that changes no outcome has no place in the table."""
    rest = [*(other for other in ROWS if other is not row), NOTHING]
    noticed = [
        said
        for said in EXAMPLES[row.name]
        if any(
            row_of(*said, rest).outcome(said[0], "x", shared_sender=shared)
            != row.outcome(said[0], "x", shared_sender=shared)
            for shared in (True, False)
        )
    ]
    assert noticed


def alternatives(pattern: str) -> list[str]:
    """The parts of a pattern between the bars that stand in no bracket."""
    parts, depth = [""], 0
    for token in re.findall(r"\\.|\[[^]]*\]|.", pattern):
        depth += {"(": 1, ")": -1}.get(token, 0)
        if token == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    return parts


PROOFS = {(kind, proof): None for row in ROWS for kind in ("enhanced", "wording") if (proof := getattr(row, kind))}


@pytest.mark.parametrize(("kind", "proof"), PROOFS)
def test_each_code_and_each_wording_of_a_proof_decides_something_by_itself(kind, proof):
    """A pattern that no reply needs is a guess: without it, an example must find another row."""
    rows = [row for row in ROWS if getattr(row, kind) == proof]
    parts = alternatives(proof)
    for part in parts:
        rest = "|".join(other for other in parts if other is not part) or "nothing at all"
        table = [dataclasses.replace(row, **{kind: rest}) if row in rows else row for row in (*ROWS, NOTHING)]
        assert any(row_of(*said, table).name != row.name for row in rows for said in EXAMPLES[row.name]), part


@given(st.sampled_from(list(Phase)), st.integers(-1, 999), st.text(max_size=300), st.booleans())
def test_only_a_2yz_to_the_dot_is_accepted_and_only_the_dot_leaves_uncertainty(phase, code, text, shared):
    outcome = classify(phase, code, text, shared_sender=shared)
    assert isinstance(outcome, Accepted) == (phase is Phase.DOT and 200 <= code < 300)
    assert isinstance(outcome, Uncertain) == (phase is Phase.DOT and code // 100 not in (2, 4, 5))


texts = st.text(max_size=300) | st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)


@given(st.sampled_from(list(Phase)), st.integers(400, 499), texts, st.booleans())
def test_a_4yz_never_refuses_a_document(phase, code, text, shared):
    outcome = classify(phase, code, text, shared_sender=shared)
    assert not isinstance(outcome, Refused | AddressRefused)
    assert not isinstance(outcome, Misconfigured) or row_of(phase, code, text).name in MENDED_BY_A_PERSON


@given(st.sampled_from(list(Phase)), st.integers(500, 599), texts)
def test_a_5yz_never_defers_a_document(phase, code, text):
    assert not isinstance(classify(phase, code, text), Deferred | Accepted | Uncertain)


@given(st.sampled_from(list(Phase)), st.integers(-1, 999), texts, st.booleans())
def test_a_clients_own_sender_changes_only_the_rows_about_senders(phase, code, text, shared):
    outcome = classify(phase, code, text, shared_sender=shared)
    if row_of(phase, code, text).of_sender and not shared:
        words = sentence(code, text)
        assert outcome == (Deferred(words) if 400 <= code < 500 else Refused(words, certain=True))
    else:
        assert outcome == classify(phase, code, text)


@pytest.mark.parametrize("phase", BEFORE_DOT)
@pytest.mark.parametrize("code", [-1, 0, 199, 250, 354, 999])
def test_a_reply_out_of_turn_before_the_dot_is_the_relays_trouble(phase, code):
    assert isinstance(classify(phase, code, "what"), RelayDown)


@pytest.mark.parametrize("phase", list(Phase))
def test_421_is_the_relays_trouble_unless_it_names_too_many_connections(phase):
    assert classify(phase, 421, "4.3.2 shutting down") == RelayDown("421 4.3.2 shutting down")
    expected = RelayDown if phase is Phase.STARTTLS else Throttled
    assert isinstance(classify(phase, 421, "4.7.0 Too many connections from your host"), expected)


@pytest.mark.parametrize("phase", TRANSACTION)
@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (432, "4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded", Throttled),
        (432, "no words", Throttled),
        (450, "4.2.1 The user is receiving mail at a rate that prevents more", Throttled),
        (451, "4.7.0 try again", Throttled),
        (451, "4.7.500 Server busy", Throttled),
        (452, "4.5.3 Too many recipients", Throttled),
        (454, "4.7.0 Too many login attempts", Throttled),
        (450, "Requested mail action not taken: mailbox unavailable. Mail send limit exceeded.", Throttled),
        (450, "4.7.1 Error: too much mail from 192.0.2.1", Throttled),
        (421, "4.7.28 unusual rate of mail", Throttled),
        (550, "account rate limit", Throttled),
        (452, "Hourly limit reached", Exhausted),
        (550, "5.4.5 Daily user sending limit exceeded", Exhausted),
        (550, "5.4.5 no words", Exhausted),
        (554, "5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException", Exhausted),
        (550, "5.7.233 tenant exceeded its threshold", Exhausted),
        (550, "5.7.232 trial tenant exceeded", Exhausted),
        (550, "Daily sending quota exceeded", Exhausted),
        (554, "Too many messages in this hour", Exhausted),
    ],
)
def test_a_reply_about_pace_throttles_and_one_about_a_daily_limit_exhausts(phase, code, text, expected):
    assert classify(phase, code, text) == expected(f"{code} {text}")


@pytest.mark.parametrize("phase", [Phase.RCPT, Phase.DATA, Phase.UPLOAD, Phase.DOT])
@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (550, "5.1.1 user unknown", AddressRefused("550 5.1.1 user unknown")),
        (553, "5.1.3 bad address syntax", AddressRefused("553 5.1.3 bad address syntax")),
        (552, "5.2.2 mailbox full", Refused("552 5.2.2 mailbox full")),
        (599, "who knows", Refused("599 who knows")),
        (
            552,
            "5.3.4 Message size exceeds fixed limit",
            Refused("552 5.3.4 Message size exceeds fixed limit", certain=True),
        ),
        (554, "5.6.0 too large for the daily limit", Refused("554 5.6.0 too large for the daily limit", certain=True)),
    ],
)
def test_a_5yz_for_this_document_or_address_is_refused(phase, code, text, expected):
    assert classify(phase, code, text) == expected


def test_wording_speaks_of_the_address_only_at_rcpt_and_of_content_only_in_the_body():
    for phase in TRANSACTION[1:]:
        assert isinstance(classify(phase, 550, "no such user"), AddressRefused if phase is RCPT else Refused)
        refused = classify(phase, 554, "5.7.1 content refused")
        assert refused == Refused("554 5.7.1 content refused", certain=phase in (UPLOAD, DOT))


@pytest.mark.parametrize("phase", TRANSACTION)
@pytest.mark.parametrize(
    ("code", "text"),
    [
        (450, "4.2.0 later"),
        (451, "4.3.0 temporary lookup failure"),
        (452, "4.2.2 mailbox exceeds quota limit"),
        (451, "4.7.1 Greylisted, try again in 5 minutes"),
        (450, "no enhanced code"),
    ],
)
def test_a_4yz_for_this_document_or_address_is_deferred(phase, code, text):
    assert classify(phase, code, text) == Deferred(f"{code} {text}")


@pytest.mark.parametrize("phase", TRANSACTION)
def test_a_doubted_sender_is_the_relays_trouble_unless_it_is_one_clients_own(phase):
    words = "4.1.8 <us@firm.example>: Sender address rejected: Domain not found"
    assert classify(phase, 450, words) == RelayDown(f"450 {words}")
    assert classify(phase, 450, words, shared_sender=False) == Deferred(f"450 {words}")


def test_a_relay_that_is_full_at_mail_from_is_in_trouble_and_later_it_defers():
    words = "4.3.1 Insufficient system storage"
    for phase in TRANSACTION:
        assert classify(phase, 452, words) == (RelayDown if phase is MAIL else Deferred)(f"452 {words}")


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
def test_a_refusal_that_a_person_must_mend_is_misconfigured_in_the_relays_words(phase, code, text):
    outcome = classify(phase, code, text)
    assert isinstance(outcome, Misconfigured)
    assert outcome.detail.startswith(f"{code} {text}")


@pytest.mark.parametrize("code", [534, 535, 530, 538, 504, 500, 550])
def test_a_5yz_to_the_sign_in_is_misconfigured_and_names_a_remedy(code):
    outcome = classify(Phase.AUTH, code, "no")
    assert outcome == Misconfigured(f"{code} no. {BY_NAME['sign-in-refused'].remedy}")


@pytest.mark.parametrize(
    ("code", "text", "remedy"),
    [
        (535, EXAMPLES["m365-smtp-auth-off"][0][2], "Set-CASMailbox ADDRESS -SmtpClientAuthenticationDisabled $false"),
        (535, EXAMPLES["m365-smtp-auth-off"][1][2], "Set-TransportConfig -SmtpClientAuthenticationDisabled $false"),
        (535, EXAMPLES["m365-policy"][0][2], "security defaults or a Conditional Access policy"),
        (535, EXAMPLES["m365-password"][0][2], "Check smtp.username"),
        (535, EXAMPLES["m365-no-right"][0][2], "New-ServicePrincipal, then Add-MailboxPermission"),
        (550, EXAMPLES["m365-basic-retired"][0][2], "smtp.auth with method xoauth2"),
        (534, EXAMPLES["google-app-password"][0][2], "app password"),
        (534, EXAMPLES["google-web-login"][0][2], "Sign in once with a browser"),
        (535, EXAMPLES["google-password"][0][2], "app password"),
        (535, EXAMPLES["ses-password"][0][2], "SMTP credentials that Amazon SES made"),
    ],
)
def test_each_usual_mistake_at_sign_in_has_its_remedy_behind_the_relays_words(code, text, remedy):
    outcome = classify(Phase.AUTH, code, text)
    assert isinstance(outcome, Misconfigured)
    said, _, advice = outcome.detail.partition(sentence(code, text).rstrip(".") + ". ")
    assert (said, remedy in advice) == ("", True)


def test_a_sign_in_that_must_wait_is_told_from_a_line_that_is_down():
    assert classify(Phase.AUTH, 454, "4.7.0 later") == RelayDown("454 4.7.0 later", signing_in=True)
    assert classify(Phase.AUTH, 421, "4.7.0 bye") == RelayDown("421 4.7.0 bye")
    assert classify(Phase.EHLO, 454, "4.3.0 later") == RelayDown("454 4.3.0 later")


def test_a_refused_mail_from_is_misconfigured_unless_it_is_about_the_size():
    assert classify(Phase.MAIL, 550, "5.7.1 no") == Misconfigured("550 5.7.1 no")
    assert isinstance(classify(Phase.MAIL, 552, "5.2.2 sender mailbox full"), Misconfigured)
    assert classify(Phase.MAIL, 552, "5.3.4 too big") == Refused("552 5.3.4 too big", certain=True)
    assert classify(Phase.MAIL, 552, "too big") == Refused("552 too big", certain=True)


def test_a_clients_own_sender_that_is_refused_does_not_halt_the_others():
    text = "5.7.60 Client does not have permissions to send as this sender"
    assert classify(Phase.MAIL, 553, "no", shared_sender=False) == Refused("553 no", certain=True)
    assert classify(Phase.DOT, 550, text, shared_sender=False) == Refused(f"550 {text}", certain=True)
    assert isinstance(classify(Phase.MAIL, 530, "authenticate", shared_sender=False), Misconfigured)


def test_a_refusal_at_the_greeting_is_the_relays_trouble_unless_it_is_a_policy():
    assert isinstance(classify(Phase.BANNER, 554, "no SMTP service here"), RelayDown)
    assert isinstance(classify(Phase.BANNER, 554, "5.7.1 your address is listed"), Misconfigured)
    assert isinstance(classify(Phase.EHLO, 451, "4.3.0 later"), RelayDown)


def test_tls_that_is_unavailable_for_now_is_the_relays_trouble():
    assert isinstance(classify(Phase.STARTTLS, 454, "4.7.0 TLS not available"), RelayDown)


@pytest.mark.parametrize(
    "word", ["a", " ", "message", "sender ", "size exceed ", "client host ", "1 hour ", "account is "]
)
def test_no_words_of_the_longest_reply_keep_the_table_busy(word):
    text = word * (64 * 1024 // len(word))
    begun = time.process_time()
    for code in (450, 550):
        classify(Phase.DOT, code, text)
    assert time.process_time() - begun < 1


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
def test_replies_are_the_same_for_any_division_of_their_bytes(cuts):
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


def test_bytes_that_are_no_smtp_or_never_end_are_a_reply_without_a_code():
    assert take_reply(bytearray(b"HTTP/1.1 400\r\n250 ok\r\n")) == Reply(-1, "HTTP/1.1 400\r\n250 ok\r\n")
    assert take_reply(bytearray(b"250-more\r\n" * 10_000)) == Reply(-1, "a reply without an end")
