"""What a relay's answer means: a reply in a phase of the conversation becomes an outcome.

Pure. The order of proof: the basic code that speaks for itself (421, 530, 535), the enhanced code
(RFC 3463), known wording, the first digit. Temporary is the default; permanent must be proven.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final, NamedTuple

from bridged.model import Accepted, Deferred, Misconfigured, Outcome, Refused, RelayDown, Throttled, Uncertain


class Phase(StrEnum):
    """Where in the conversation a reply arrived. UPLOAD is after 354 and before the dot; DOT is after it."""

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


class Reply(NamedTuple):
    """One whole reply: its code (-1 when what came is no SMTP), its lines joined by newlines."""

    code: int
    text: str


_LONGEST: Final = 64 * 1024  # a relay that never ends its reply must not fill the memory
_SHOWN: Final = 500
_LINE: Final = re.compile(rb"(\d{3})([ -]?)(.*)", re.DOTALL)
_ENHANCED: Final = re.compile(r"\s*([245]\.\d{1,3}\.\d{1,3})\b")
_BEFORE_MAIL: Final = frozenset({Phase.BANNER, Phase.EHLO, Phase.STARTTLS})

# Of the relay as a whole: it wants fewer messages or fewer connections (4yz).
_SLOWER: Final = re.compile(
    r"too (many|much|fast)|throttl|rate[ -]?limit|rate (is )?(exceeded|too high)|\brate of\b|slow(er)? down"
    r"|(send(ing)?|submission|connection|session|message|daily|hourly|outgoing|concurren\w+)[ -]*\w* limit"
    r"|(send(ing)?|submission|message|daily|hourly|outgoing)[ -]*\w* quota"
    r"|limit (has been )?(exceeded|reached)|exceed\w* .{0,40}\b(quota|limit)",
    re.IGNORECASE,
)
# The same as 5yz: narrower, for here a mistake would stop everybody for one document.
_QUOTA: Final = re.compile(
    r"too many (message|e?-?mail|connection|session|concurrent|login)\w*|throttl|rate[ -]?limit"
    r"|(send(ing)?|submission|daily|hourly|outgoing|outbound)[ -]*\w* (limit|quota)"
    r"|SubmissionQuotaExceeded|(message|sender|account)[ -]?\w* (quota|limit) (\w+ ){0,3}(exceeded|reached)",
    re.IGNORECASE,
)
_ABOUT_ONE: Final = re.compile(
    r"\bsize\b|too (large|big|long)|mailbox (is )?(full|over)|over ?quota|greylist|graylist|grey-list",
    re.IGNORECASE,
)
_NOT_ALLOWED: Final = re.compile(
    r"relay(ing)?( access)? (is )?(denied|not (permitted|allowed)|prohibited)"
    r"|unable to relay|not (permitted|allowed) to relay"
    r"|authenticat\w+ (is )?required|must (be )?authenticat|not authenticated|must issue a starttls"
    r"|blocked using|client host .{0,80}(blocked|rejected)",
    re.IGNORECASE,
)
_BAD_SENDER: Final = re.compile(
    r"sender (address )?(\S+ )?(was )?(rejected|refused|denied|not allowed)|not owned by user"
    r"|send ?as ?denied|permissions? to send as|sender('s)? mailbox",
    re.IGNORECASE,
)
_QUOTA_CODES: Final = frozenset({(550, "5.4.5"), (554, "5.2.0")})
_QUOTA_ENHANCED: Final = frozenset({"5.7.232", "5.7.233", "5.7.236", "5.7.705"})
_HALT_ENHANCED: Final = re.compile(
    r"5\.7\.(3|8|9|11|14|30|57|139|50[1-3]|6[0-4]\d|708|750)|5\.2\.25\d"  # not 5.7.1: that is also content
)
_SENDER_ENHANCED: Final = frozenset({"5.1.7", "5.1.8", "5.7.60", "5.2.252"})


def take_reply(buffer: bytearray) -> Reply | None:
    """Take the first whole reply off the front of `buffer`; None, and nothing taken, if there is none."""
    lines: list[str] = []
    start = 0
    while (end := buffer.find(b"\n", start)) >= 0:
        found = _LINE.fullmatch(bytes(buffer[start:end]).rstrip(b"\r"))
        start = end + 1
        if found is None:  # not SMTP: nothing behind it can be trusted to be in step
            text = bytes(buffer).decode("utf-8", "replace")
            buffer.clear()
            return Reply(-1, text)
        lines.append(found[3].decode("utf-8", "replace"))
        if found[2] != b"-":
            del buffer[:start]
            return Reply(int(found[1]), "\n".join(lines))
    if len(buffer) > _LONGEST:
        buffer.clear()
        return Reply(-1, "a reply without an end")
    return None


def sentence(code: int, text: str) -> str:
    """The relay's own words as one line: no control characters, the enhanced code once, shortened."""
    first = _ENHANCED.match(text)
    lines = [line.strip() for line in text.splitlines()]
    if first is not None:
        lines = lines[:1] + [line.removeprefix(first[1]).strip() for line in lines[1:]]
    words = " ".join(line for line in lines if line)
    shown = "".join(c if c.isprintable() else "\ufffd" for c in words)
    shown = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"
    return f"{code} {shown}".strip() if code > 0 else shown


def classify(phase: Phase, code: int, text: str, *, shared_sender: bool = True) -> Outcome:
    """The outcome of a reply that ends the conversation in `phase`.

    Only a 2yz after the final dot is Accepted; an answer after it that is none is Uncertain; an answer out
    of turn before it is the relay's trouble. `shared_sender=False` says that the sender is this client's
    own: refusing it concerns this client, not all.
    """
    reply = sentence(code, text)
    match code // 100:
        case 2 if phase is Phase.DOT:
            return Accepted(reply)
        case 4:
            return _temporary(phase, code, text, reply)
        case 5:
            return _permanent(phase, code, text, reply, shared_sender=shared_sender)
        case _ if phase is Phase.DOT:
            return Uncertain(f"The relay answered the final dot with what is no verdict: {reply}")
        case _:
            return RelayDown(f"The relay answered out of turn at {phase}: {reply}")


def _enhanced(text: str) -> str:
    found = _ENHANCED.match(text)
    return found[1] if found else ""


def _temporary(phase: Phase, code: int, text: str, reply: str) -> Outcome:
    enhanced = _enhanced(text)
    if phase is Phase.STARTTLS:  # 454 4.7.0 here is "TLS not available", not "slow down"
        return RelayDown(reply)
    if _NOT_ALLOWED.search(text):  # 454 4.7.1 Relay access denied: no waiting mends it
        return Misconfigured(reply)
    if _throttled(code, enhanced, text):
        return Throttled(reply)
    if code == 421 or phase in _BEFORE_MAIL or phase in (Phase.AUTH, Phase.RSET) or enhanced == "4.3.2":
        return RelayDown(reply)
    return Deferred(reply)


def _throttled(code: int, enhanced: str, text: str) -> bool:
    if enhanced == "4.2.2" or _ABOUT_ONE.search(text):  # this mailbox is full, this mail too large
        return False
    codes = {(450, "4.2.1"), (452, "4.5.3"), (454, "4.7.0")}
    listed = code == 432 or (code, enhanced) in codes or (code == 451 and enhanced.startswith("4.7."))
    return listed or _SLOWER.search(text) is not None


def _permanent(phase: Phase, code: int, text: str, reply: str, *, shared_sender: bool) -> Outcome:
    enhanced = _enhanced(text)
    if phase in (Phase.AUTH, Phase.STARTTLS):
        return Misconfigured(reply)
    if _quota(code, enhanced, text):
        return Throttled(reply)
    if phase in _BEFORE_MAIL:
        return Misconfigured(reply) if enhanced.startswith("5.7.") else RelayDown(reply)
    if phase is Phase.RSET:
        return RelayDown(reply)
    if code in (530, 534, 535) or _NOT_ALLOWED.search(text):
        return Misconfigured(reply)
    if _sender_refused(phase, code, enhanced, text):
        return Misconfigured(reply) if shared_sender else Refused(reply)
    return Misconfigured(reply) if _HALT_ENHANCED.fullmatch(enhanced) else Refused(reply)


def _quota(code: int, enhanced: str, text: str) -> bool:
    if _HALT_ENHANCED.fullmatch(enhanced) or re.search(r"send ?as ?denied", text, re.IGNORECASE):
        return False  # M365: SendAsDenied comes under 554 5.2.0 too, 5.2.251 says "throttled"; a person must act
    if (code, enhanced) in _QUOTA_CODES or enhanced in _QUOTA_ENHANCED:
        return True
    return enhanced != "5.2.2" and not _ABOUT_ONE.search(text) and _QUOTA.search(text) is not None


def _sender_refused(phase: Phase, code: int, enhanced: str, text: str) -> bool:
    """Whether it is the sender that is not welcome. Postfix says so only at RCPT; MAIL names nothing else."""
    if phase is Phase.MAIL:
        too_large = enhanced == "5.3.4" or (not enhanced and code in (523, 552))
        return not too_large
    return enhanced in _SENDER_ENHANCED or _BAD_SENDER.search(text) is not None
