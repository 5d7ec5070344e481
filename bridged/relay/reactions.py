"""The reaction to each reply of a relay: one table, read from the top. The first row that holds decides.

Pure. A row needs its phase and its basic code. Where it names an enhanced code (RFC 3463) or a wording, one of the two
is its proof. Codes go before words, except words that are known to correct a code. Temporary is the default. Permanent
needs a proof: a row that names its source.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final

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


class Phase(StrEnum):
    """The command that a reply answers. UPLOAD is between 354 and the dot; DOT is after the dot."""

    BANNER = "the greeting"
    EHLO = "EHLO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"
    RSET = "RSET"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    UPLOAD = "the upload"
    DOT = "the final dot"


@dataclass(frozen=True, slots=True)
class Row:
    """One reaction and its proof.

    `basic` and `enhanced` are patterns for the whole code, `wording` for any part of the relay's words, which begin
    with the enhanced code. `source` names the page behind the row, and `remedy` mends the usual mistake. `of_sender`:
    the sender is refused, so that a client with a sender of its own is concerned alone.
    """

    name: str
    phases: frozenset[Phase]
    basic: str
    reaction: Callable[[str], Outcome]
    source: str
    enhanced: str = ""
    wording: str = ""
    remedy: str = ""
    lead: str = ""
    of_sender: bool = False

    def is_of(self, phase: Phase, code: int) -> bool:
        """True when phase and basic code are the row's."""
        return phase in self.phases and re.fullmatch(self.basic, str(code)) is not None

    def holds(self, phase: Phase, code: int, enhanced: str, words: str) -> bool:
        """True when this row speaks of such a reply: phase and code are its own, and a proof is there."""
        if not self.is_of(phase, code):
            return False
        if not self.enhanced and not self.wording:
            return True
        proven = bool(self.enhanced) and re.fullmatch(self.enhanced, enhanced) is not None
        return proven or (bool(self.wording) and re.search(self.wording, words, re.IGNORECASE) is not None)

    def outcome(self, phase: Phase, reply: str, *, shared_sender: bool) -> Outcome:
        """The outcome, with the relay's own words and the remedy behind them."""
        if self.of_sender and not shared_sender:
            return Deferred(reply) if reply.startswith("4") else Refused(reply, certain=True)
        remedy = f"{reply.rstrip('.')}. {self.remedy}" if self.remedy else reply
        return self.reaction(self.lead.format(phase=phase) + remedy)


_ANY: Final = frozenset(Phase)
_LINK: Final = frozenset({Phase.BANNER, Phase.EHLO, Phase.RSET})
_GREETING: Final = frozenset({Phase.BANNER, Phase.EHLO})
_TLS: Final = frozenset({Phase.STARTTLS})
_AUTH: Final = frozenset({Phase.AUTH})
_MAIL: Final = frozenset({Phase.MAIL})
_RCPT: Final = frozenset({Phase.RCPT})
_DOT: Final = frozenset({Phase.DOT})
_BODY: Final = _DOT | {Phase.UPLOAD}
_AFTER_MAIL: Final = _BODY | {Phase.RCPT, Phase.DATA}
_MAILING: Final = _AFTER_MAIL | _MAIL

_Certain: Final = partial(Refused, certain=True)
_NoSignIn: Final = partial(RelayDown, signing_in=True)

_SOFT: Final = r"4(?!21).."  # not 421, because it closes the session with any words
_NO_VERDICT: Final = r"(?![45]..$).*"

# Words of a 4yz that asks all sessions for fewer mails or fewer connections.
_SLOWER: Final = (
    r"too (many|much|fast)|throttl|rate[ -]?limit|rate (is )?(exceeded|too high)|\brate of\b|slow(er)? down"
    r"|(send(ing)?|submission|connection|session|message|daily|hourly|outgoing|concurren\w+)[ -]*\w* limit"
    r"|(send(ing)?|submission|message|daily|hourly|outgoing)[ -]*\w* quota"
    r"|limit (has been )?(exceeded|reached)|exceed\w* .{0,40}\b(quota|limit)"
)
# Words of a limit that only the clock lifts.
_DAILY: Final = (
    r"^(?=.*\b(daily|hourly|24[ -]?h(ours?)?|(per|an|each|this|last) (day|hour))\b)"
    r"(?=.*(limit|quota|exceeded|too many))"
)
# Words of such a limit in a 5yz. Narrower, because a wrong match would stop every client for one document.
_QUOTA: Final = (
    r"too many (message|e?-?mail)|(send(ing)?|submission|daily|hourly|outgoing|outbound|relay)[ -]*\w* (limit|quota)"
    r"|(message|e-?mail|sender)[ -]?\w* (limit|quota) (\w+ ){0,3}(exceeded|reached)|reached your \w+ limit"
    r"|exceeded the max\b.{0,60}per (hour|day)"
)

_RFC_3463: Final = "RFC 3463"
_RFC_5321: Final = "RFC 5321"
_M365_NDR: Final = "Microsoft Learn: Email non-delivery reports and SMTP errors in Exchange Online"
_M365_OAUTH: Final = "Microsoft Learn: Authenticate an IMAP, POP or SMTP connection using OAuth"
_GOOGLE: Final = "Google Workspace Help: Gmail SMTP errors and codes"
_SES: Final = "Amazon SES Developer Guide: SMTP response codes returned by Amazon SES"
_POSTFIX: Final = "Postfix: smtpd(8), postconf(5)"

_USE_APP: Final = "Use an app password of the account (it needs 2-Step Verification), or smtp.auth."

ROWS: Final[tuple[Row, ...]] = (
    # -- no refusal at all
    Row("accepted", _DOT, "2..", Accepted, f"{_RFC_5321} 4.2.5: the receiver now answers for the mail"),
    Row("no-verdict", _DOT, _NO_VERDICT, Uncertain, f"{_RFC_5321} 4.3.2: only 2yz, 4yz and 5yz end it",
        lead="The relay answered the final dot with what is no verdict: "),
    Row("out-of-turn", _ANY, _NO_VERDICT, RelayDown, f"{_RFC_5321} 4.3.2: what each command may be answered",
        lead="The relay answered out of turn at {phase}: "),
    # -- STARTTLS, before all codes: 454 4.7.0 is "no TLS now" here, "no sign-in now" at AUTH, and "slow down" elsewhere
    Row("tls-later", _TLS, "4..", RelayDown, "RFC 3207 4: 454 TLS not available due to temporary reason"),
    Row("tls-refused", _TLS, "5..", Misconfigured, "RFC 3207 4: 501, and the client decides whether to go on; we never",
        remedy="Nothing is sent without TLS: set smtp.port, or smtp.security to tls."),
    # -- too many at once, wherever it is said
    Row("connections", _ANY, "[45]..", Throttled, f"{_SES}; {_POSTFIX}: smtpd_client_connection_count_limit",
        wording=r"(too many|maximum|concurrent) (\w+ ){0,3}(connection|session)s?\b"),
    # -- AUTH: all but 421
    Row("sign-in-too-often", _AUTH, "4..", Throttled, f"{_GOOGLE}: 454 4.7.0 Too many login attempts", wording=_SLOWER),
    Row("sign-in-later", _AUTH, _SOFT, _NoSignIn, "RFC 4954 6: 454 4.7.0 Temporary authentication failure"),
    Row("m365-smtp-auth-off", _AUTH, "5..", Misconfigured,
        "Microsoft Learn: Enable or disable authenticated client SMTP submission in Exchange Online",
        wording=r"SmtpClientAuthentication is disabled",
        remedy="Turn on Authenticated SMTP for the mailbox (Set-CASMailbox ADDRESS -SmtpClientAuthenticationDisabled "
        "$false), or for the tenant (Set-TransportConfig -SmtpClientAuthenticationDisabled $false)."),
    Row("m365-policy", _AUTH, "5..", Misconfigured, "Microsoft Learn: Security defaults in Microsoft Entra ID",
        wording=r"security defaults|conditional access|not meet the criteria",
        remedy="The tenant's security defaults or a Conditional Access policy forbid this sign-in: use smtp.auth with "
        "method xoauth2, or have the account exempted."),
    Row("m365-password", _AUTH, "5..", Misconfigured, _M365_OAUTH, wording=r"user credentials were incorrect",
        remedy="Check smtp.username (the sign-in name, not an alias) and the password; an account with multi-factor "
        "authentication needs smtp.auth with method xoauth2."),
    Row("m365-basic-retired", _AUTH | _MAILING, "5..", Misconfigured,
        "Exchange Team Blog: Exchange Online to retire Basic auth for Client Submission (SMTP AUTH)",
        enhanced=r"5\.7\.30", wording=r"basic authentication is (not supported|disabled)",
        remedy="Microsoft 365 takes no password here any more: use smtp.auth with method xoauth2."),
    Row("m365-no-right", _AUTH, "5..", Misconfigured, _M365_OAUTH,
        enhanced=r"5\.7\.3", wording=r"^5\.7\.139 authentication unsuccessful\W*$",
        remedy="With xoauth2 the service principal is missing in Exchange, or has no right to the mailbox: "
        "New-ServicePrincipal, then Add-MailboxPermission. With a password: check it and smtp.username."),
    Row("google-app-password", _AUTH, "5..", Misconfigured, _GOOGLE, remedy=_USE_APP,
        enhanced=r"5\.7\.9", wording=r"application-specific password"),
    Row("google-web-login", _AUTH, "5..", Misconfigured, _GOOGLE,
        enhanced=r"5\.7\.14", wording=r"log ?in (with|via|through) your web browser",
        remedy="Sign in once with a browser as smtp.username and confirm that it is you; then use an app password."),
    Row("google-password", _AUTH, "5..", Misconfigured, _GOOGLE, wording=r"username and password not accepted",
        remedy=f"Check smtp.username and the password; the account's own password is not taken. {_USE_APP}"),
    Row("ses-password", _AUTH, "5..", Misconfigured, _SES, wording=r"authentication credentials invalid",
        remedy="Use the SMTP credentials that Amazon SES made for this region; access keys are not what it takes."),
    Row("encrypt-first", _AUTH | _MAILING, "5..", Misconfigured, "RFC 4954 6: 538 5.7.11; RFC 3207 4: 530 5.7.0",
        enhanced=r"5\.7\.1[01]", wording=r"must issue a starttls", remedy="Set smtp.security to starttls or tls."),
    Row("sign-in-refused", _AUTH, "5..", Misconfigured, "RFC 4954 6; OVHcloud Help: 535, also when blocked for spam",
        remedy="Check smtp.username and the password; the provider may also have locked the account."),
    # -- for a person to mend, though it may be said as 4yz
    Row("relay-denied", _MAILING, "[45]..", Misconfigured, f"{_POSTFIX}: relay_domains; {_M365_NDR}: 5.7.64",
        enhanced=r"5\.7\.64", wording=r"relay(ing)?( access)? (is )?(denied|not (permitted|allowed)|prohibited)"
        r"|unable to relay|not (permitted|allowed) to relay|invalid credentials for relay|list of allowed rcpthosts",
        remedy="Set smtp.username and a password, or have the relay admit this machine's address."),
    Row("sign-in-first", _MAILING, "[45]..", Misconfigured, f"RFC 4954 6: 530 5.7.0; {_M365_NDR}: 5.7.57",
        enhanced=r"5\.7\.57",
        wording=r"authenticat\w+ (is )?required|must (be )?authenticat|not authenticated|\bauth\w* first",
        remedy="Set smtp.username and a password, or smtp.auth."),
    # -- 4yz
    Row("host-doubted", _MAILING, "4..", RelayDown, f"{_POSTFIX}: unknown_client_reject_code",
        wording=r"client host .{0,80}(blocked|rejected)|helo command rejected"),
    Row("greylisted", _MAILING, _SOFT, Deferred, "RFC 6647 2: greylisting", wording=r"gr[ae]y-?list"),
    Row("sender-doubted", _MAILING, _SOFT, RelayDown,
        f"{_RFC_3463} 3.2: X.1.7, X.1.8; {_POSTFIX}: reject_unknown_sender_domain", of_sender=True,
        enhanced=r"4\.1\.[78]"),
    Row("relay-full", _MAIL, _SOFT, RelayDown, f"{_RFC_3463} 3.4: X.3.1 Mail system full; {_POSTFIX}: queue_minfree",
        enhanced=r"4\.3\.1", wording=r"insufficient system storage"),
    Row("mailbox-full-for-now", _MAILING, _SOFT, Deferred, f"{_RFC_3463} 3.3: X.2.2, and 3.4: X.3.4",
        enhanced=r"4\.2\.2", wording=r"\bsize\b|too (large|big|long)|mailbox (is )?(full|over)|over ?quota"),
    Row("daily-limit", _ANY, "4..", Exhausted,
        "Amazon SES Developer Guide: Errors related to the sending quotas (454 Daily message quota exceeded)",
        wording=_DAILY),
    Row("m365-threads", _ANY, "432", Throttled,
        "Microsoft Learn: Changes in message store and throttling for concurrent connections (432 4.3.2)"),
    Row("google-rate", _ANY, "450", Throttled, f"{_GOOGLE}: 450 4.2.1", enhanced=r"4\.2\.1"),
    Row("policy-for-now", _ANY, "451", Throttled, f"{_M365_NDR}: 4.7.500-699", enhanced=r"4\.7\.\d+"),
    Row("recipients", _ANY, "452", Throttled, f"{_RFC_3463} 3.6: X.5.3; {_GOOGLE}: 452 4.5.3", enhanced=r"4\.5\.3"),
    Row("ses-rate", _ANY, "454", Throttled, f"{_SES}: 454 Throttling failure", enhanced=r"4\.7\.0"),
    Row("slower", _ANY, "4..", Throttled, "IONOS Help: mass mailing limits (450 Mail send limit exceeded)",
        wording=_SLOWER),
    Row("closing", _ANY, "421", RelayDown, f"{_RFC_5321} 3.8: 421 in answer to any command"),
    Row("no-network-mail", _MAILING, "4..", RelayDown, f"{_RFC_3463} 3.4: X.3.2 System not accepting network messages",
        enhanced=r"4\.3\.2"),
    Row("link-later", _LINK, "4..", RelayDown, f"{_RFC_5321} 4.3.2: no mail was begun"),
    Row("later", _ANY, "4..", Deferred, f"{_RFC_5321} 4.2.1: 4yz, try again in the same form"),
    # -- 5yz, by enhanced code and by words that correct one
    Row("quota-named", _ANY, "5..", Exhausted, f"{_M365_NDR}: submission quota",
        wording=r"SubmissionQuotaExceeded|submission quota (was |has been )?exceeded|RefuseQuota"),
    Row("quota-code", _ANY, "5..", Exhausted, f"{_M365_NDR}: 5.1.90, 5.7.232-236, 5.7.705; {_GOOGLE}: 550 5.4.5",
        enhanced=r"5\.4\.5|5\.1\.90|5\.7\.(232|233|236|508|705)"),
    Row("sender-mailbox-full", _MAILING, "5..", Misconfigured,
        "Microsoft Learn: Changes in message store and throttling for concurrent connections (554 5.2.2)",
        wording=r"Submission\.Exception:QuotaExceeded|ShutoffQuota|sender('s)? mailbox (is )?full",
        remedy="Empty the sending mailbox, and give its Sent Items folder a retention policy."),
    Row("send-as-denied", _MAILING, "5..", Misconfigured, "Microsoft Learn: NDR 5.7.60 (SendAsDenied); "
        f"{_POSTFIX}: reject_sender_login_mismatch", of_sender=True,
        enhanced=r"5\.7\.60|5\.2\.252", wording=r"send ?as ?denied|permissions? to send as|not owned by user"
        r"|not (allowed|permitted|authori[sz]ed) to send (as|from)\b",
        remedy="Give the account the right to send as this sender (Add-RecipientPermission), or set smtp.sender to "
        "the account's own address."),
    Row("blocked-at-provider", _MAILING, "5..", Misconfigured, f"{_M365_NDR}: 5.7.501-511, 5.7.606-649, 5.7.70x",
        enhanced=r"5\.7\.(50[1-369]|511|6[0-4]\d|708|750)", wording=r"OutboundSpamException",
        remedy="The provider has stopped this account or this address: mend what it names and have the block lifted."),
    Row("m365-hammered", _MAILING, "5..", Misconfigured,
        "Microsoft Learn: Continuous error throttling for SMTP AUTH submissions", enhanced=r"5\.2\.25\d",
        remedy="Mend what it names (mailbox full, send-as, licence, recipients); the block then ends by itself."),
    Row("m365-daily", _ANY, "554", Exhausted, "Microsoft Learn: Exchange Online limits", enhanced=r"5\.2\.0"),
    Row("sender-refused", _MAILING, "5..", Misconfigured, f"{_RFC_3463} 3.2: X.1.7, X.1.8; RFC 7372; {_M365_NDR}",
        of_sender=True, enhanced=r"5\.1\.[78]|5\.7\.2[0-467]",
        wording=r"sender (address )?(\S+ )?(was )?(rejected|refused|denied|not allowed)|sender('s)? mailbox"
        r"|sender verify failed"),
    Row("collector-rate", _MAILING, "5..", Throttled, f"{_M365_NDR}: 5.2.121, 5.2.122; {_GOOGLE}: 550 5.2.1",
        enhanced=r"5\.2\.12[12]", wording=r"receiving (e?mail|messages) (at a rate|too quickly)"),
    Row("address-code", _AFTER_MAIL, "5..", AddressRefused, f"{_RFC_3463} 3.2, 3.3; {_M365_NDR}: 5.1.10, 5.4.1",
        enhanced=r"5\.1\.([1236]|10)|5\.2\.1|5\.7\.50[45]", wording=r"^5\.4\.1 .*recipient address rejected"),
    Row("too-large-code", _MAILING, "5..", _Certain, f"{_RFC_3463} 3.3: X.2.3, 3.4: X.3.4; {_GOOGLE}: 552 5.2.3",
        enhanced=r"5\.3\.4|5\.2\.3"),
    Row("mailbox-full", _AFTER_MAIL, "5..", Refused, f"{_RFC_3463} 3.3: X.2.2; IONOS Help: 550 Quota exceeded",
        enhanced=r"5\.2\.2", wording=r"mailbox (is )?full|over ?quota|mailbox (size|quota|storage)"),
    Row("content-code", _AFTER_MAIL, "5..", _Certain, f"{_RFC_3463} 3.7: X.6 Message content or media",
        enhanced=r"5\.6\.\d+"),
    Row("sign-in-code", _MAILING, "5..", Misconfigured, "RFC 4954 6; Microsoft Learn: NDR 5.7.3",
        enhanced=r"5\.7\.(3|8|9|14|139)"),
    # -- 5yz, by basic code
    Row("sign-in-basic", _MAILING, "53[0458]", Misconfigured, "RFC 4954 6: 530, 534, 535, 538"),
    Row("too-large-at-mail", _MAIL, "552", _Certain, "RFC 1870 6.1: 552 in answer to MAIL", wording=r"^(?!5\.)"),
    # -- 5yz, by known wording
    Row("too-large", _MAILING, "5..", _Certain, f"Exim: message_size_limit; {_SES}: 552 Message is too long",
        wording=r"too (large|big)|\bsize\b.{0,40}(limit|exceed)|exceed\w*.{0,60}\bsize\b|message (is )?too long"),
    Row("quota", _ANY, "5..", Exhausted, "cPanel: Tweak Settings, max emails per hour (Exim); "
        "OVHcloud's mail hosts as their users report them (#5.7.1 too many emails)", wording=_QUOTA),
    Row("too-fast", _ANY, "5..", Throttled, f"{_GOOGLE}: 550 5.7.1 unusual rate, rate limited",
        wording=r"too many login|throttl|rate[ -]?limit|unusual (rate|amount)|too (fast|quickly)|slow(er)? down"),
    Row("host-blocked", _ANY, "5..", Misconfigured, f"{_POSTFIX}: reject_rbl_client; RFC 7372 3.3: X.7.25",
        enhanced=r"5\.7\.25", wording=r"blocked using|client host .{0,80}(blocked|rejected)"
        r"|\bIP\b.{0,80}(blocked|blacklisted|banned|not authori[sz]ed)",
        remedy="Have this machine's public address taken off the list, or send through a provider's relay."),
    Row("ses-unverified", _MAILING, "5..", Misconfigured, _SES, of_sender=True, wording=r"address is not verified",
        remedy="Verify the sender's domain in Amazon SES in this region; in the sandbox the collection emails, too."),
    Row("sending-stopped", _MAILING, "5..", Misconfigured, f"{_SES}; {_GOOGLE}: 550 5.7.0 Mail sending denied",
        wording=r"sending (is |has been )?(paused|denied|disabled|suspended|blocked)|not authori[sz]ed to perform"
        r"|your account .{0,40}(suspended|locked|disabled|blocked)",
        remedy="The provider lets this account send nothing: see its console, or ask its support."),
    Row("mail-refused", _MAIL, "5..", Misconfigured, f"{_RFC_5321} 3.3: MAIL names only the sender", of_sender=True),
    Row("address", _RCPT, "5..", AddressRefused, f"{_RFC_5321} 4.2.3: 550, 553; Exim: Unrouteable address; {_SES}: 501",
        wording=r"(user|recipient|mailbox|address|account)s? (is )?unknown|unknown (user|recipient|mailbox|local part)"
        r"|no such (user|recipient|mailbox|address|person)|mailbox unavailable|unroute?able address|invalid RCPT TO"
        r"|(user|recipient|mailbox|address|account)\b.{0,60}(does not exist|doesn't exist|not found|is disabled)"),
    Row("content", _BODY, "5..", _Certain, f"{_GOOGLE}: 552 5.7.0 attachment; Exim: acl_smtp_mime; {_POSTFIX}: milters",
        wording=r"virus|malware|infected|\bspam\b|unsolicited|phish|attachment|file type|malformed"
        r"|content (is |was |has been )?(refused|rejected|blocked)|because its content"),
    # -- 5yz of any other kind
    Row("greeting-policy", _GREETING, "5..", Misconfigured, f"{_RFC_3463} 3.8: X.7 Security or policy",
        enhanced=r"5\.7\.\d+"),
    Row("link-refused", _LINK, "5..", RelayDown, f"{_RFC_5321} 3.1: 554 No SMTP service here"),
    Row("refused", _ANY, "5..", Refused, f"{_RFC_5321} 4.2.1: 5yz, not again in the same form"),
)  # fmt: skip
