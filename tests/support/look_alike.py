"""A look-alike of Microsoft 365's SMTP submission on 127.0.0.1, with its limits, its words, and a record.

    with Microsoft365({"factures@cabinet.example": "secret"}, minute=3.0) as provider:
        provider.quota = 50

It enforces three concurrent connections, thirty messages in any `minute` seconds, and `quota` messages in all. A
refused message counts for no limit. `exchanges` has every answer and its time. The rest is that of the scripted relay;
a script goes before the limits.

Words and places: aka.ms/concurrent_sending and aka.ms/smtp_auth_disabled; the connection limit is mostly met when a
message is submitted (fastapi-mail issue 75: an answer to DATA), sometimes already at sign-in or in the greeting.
"""

from __future__ import annotations

import base64
import re
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from tests.support.relay import ScriptedRelay, _Hangup, _Mail, _Session

HOST = "LOOKALIKE0001.example"
SIZE = 157286400
TOO_MANY_CONNECTIONS = (
    "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information."
    f" [{HOST}]"
)
TOO_FAST = f"432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded [Hostname={HOST}]"
QUOTA_USED_UP = (
    "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message due to a"
    " permanent exception with message The message can't be submitted because the sender's submission quota was"
    f" exceeded. [Hostname={HOST}]"
)
AUTH_DISABLED = (
    "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit"
    f" https://aka.ms/smtp_auth_disabled for more information. [{HOST}]"
)
UNSUCCESSFUL = f"535 5.7.3 Authentication unsuccessful [{HOST}]"
_GONE = frozenset({7, 8, 9, 11})  # TCP states in which the other side has closed (include/net/tcp_states.h)

Place = Literal["CONNECT", "AUTH", "MAIL", "DATA", "DOT"]


@dataclass(frozen=True)
class Exchange:
    """One answer: when (time.monotonic), in which session, to which command (CONNECT is none; DOT ends a mail)."""

    at: float
    session: int
    verb: str
    reply: str


class Microsoft365(ScriptedRelay):
    """See the module. `minute` is how long (seconds) its minute is; `connections_at` and `rate_at` where it refuses."""

    def __init__(
        self,
        passwords: dict[str, str] | None = None,
        tokens: dict[str, str] | None = None,
        *,
        minute: float = 60.0,
        connections_at: Literal["CONNECT", "AUTH", "DATA"] = "DATA",
        rate_at: Literal["MAIL", "DOT"] = "DOT",
    ) -> None:
        super().__init__(
            tls="starttls",
            users=passwords,
            extensions=("PIPELINING", "DSN", "ENHANCEDSTATUSCODES", "8BITMIME", "BINARYMIME", "CHUNKING", "SMTPUTF8"),
            size=SIZE,
        )
        self.tokens = dict(tokens or {})
        self.minute, self.connections_at, self.rate_at = minute, connections_at, rate_at
        self.connections, self.per_minute = 3, 30
        self.quota: int | None = None  # messages in all; None is no limit
        self.auth_disabled = False
        self.exchanges: list[Exchange] = []
        self.most_at_once = 0  # connections, those that were refused included
        self.accepted_at: list[float] = []  # time.monotonic of each message
        self._open: dict[_Microsoft, None] = {}  # in the order in which they came
        self._judging = threading.Lock()

    # -- for the tests

    def refusals(self, codes: str = "[45]..") -> list[Exchange]:
        """The answers whose code matches."""
        with self._changed:
            return [each for each in self.exchanges if re.fullmatch(codes, each.reply[:3])]

    def failed_logins(self) -> list[Exchange]:
        """The sign-ins that were refused."""
        return [each for each in self.refusals("535") if each.verb == "AUTH"]

    def kinds(self) -> Counter[str]:
        """How often each verb had which code."""
        with self._changed:
            return Counter(f"{each.verb} {each.reply[:3]}" for each in self.exchanges)

    def most_in_a_minute(self) -> int:
        """The most messages that were accepted in any of its minutes."""
        times = sorted(self.accepted_at)
        return max((sum(at <= other < at + self.minute for other in times) for at in times), default=0)

    # -- the server

    def _serve(self, sock: socket.socket, number: int) -> None:
        session = _Microsoft(self, sock, number)
        with self._changed:
            for other in [other for other in self._open if other.peer_has_closed()]:
                del self._open[other]
            self._open[session] = None
            self.most_at_once = max(self.most_at_once, len(self._open))
        try:
            session.run()
        except (_Hangup, OSError):
            pass
        finally:
            self.left(session)
            session.close()
            with self._changed:
                self.open_sessions -= 1
                self._changed.notify_all()

    def left(self, session: _Microsoft) -> None:
        """It no longer counts."""
        with self._changed:
            self._open.pop(session, None)

    def is_one_too_many(self, session: _Microsoft) -> bool:
        """Whether as many as are allowed were there before it and still are."""
        with self._changed:
            return session in list(self._open)[self.connections :]

    def refuses(self, place: Place, session: _Microsoft) -> str | None:
        """The refusal by a limit at this place of a conversation, or None."""
        if place == self.connections_at and self.is_one_too_many(session):
            return TOO_MANY_CONNECTIONS
        if place == self.rate_at and self._too_fast():
            return TOO_FAST
        if place == "DOT" and self.quota is not None and len(self.accepted_at) >= self.quota:
            return QUOTA_USED_UP
        return None

    def _too_fast(self) -> bool:
        since = time.monotonic() - self.minute
        return sum(at > since for at in self.accepted_at) >= self.per_minute

    def verdict(self, session: _Microsoft) -> str | None:
        """The refusal of a complete message, or None. A message without one is counted."""
        with self._judging:
            against = self.refuses("DOT", session)
            if against is None:
                self.accepted_at.append(time.monotonic())
            return against


class _Microsoft(_Session):
    relay: Microsoft365

    def __init__(self, relay: Microsoft365, sock: socket.socket, number: int) -> None:
        super().__init__(relay, sock, number)
        self.verb = "CONNECT"
        self.chunks = b""

    def peer_has_closed(self) -> bool:
        """Whether the other side has hung up, though this one has not come to read that yet."""
        try:
            return struct.unpack("B", self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1))[0] in _GONE
        except OSError:
            return True

    def say(self, reply: str) -> None:
        exchange = Exchange(time.monotonic(), self.number, self.verb, reply)
        self.relay._note(lambda: self.relay.exchanges.append(exchange))
        super().say(reply)

    def line(self) -> str:
        line = super().line()
        self.verb = line.partition(" ")[0].upper()
        return line

    def challenge(self, words: str) -> str:
        answer = super().challenge(words)
        self.verb = "AUTH"
        return answer

    def answer(self, phase: str, usual: str) -> bool:
        self.verb = phase
        against = self.relay.refuses(phase, self) if phase in ("CONNECT", "MAIL", "DATA") else None  # type: ignore[arg-type]
        if against is None:
            return super().answer(phase, usual)
        self.say(against)
        if phase == "CONNECT":
            raise _Hangup
        return False

    def do_quit(self, _: str) -> None:
        self.relay.left(self)  # before the answer, because a client with its answer may come again at once
        super().do_quit(_)

    # -- signing in

    def do_ehlo(self, _: str) -> None:
        self.mail = None
        offers = [f"{HOST} Hello [127.0.0.1]", f"SIZE {SIZE}", *self.relay.extensions]
        offers.insert(4, "AUTH LOGIN XOAUTH2" if self.encrypted else "STARTTLS")
        self.answer("EHLO", "\r\n".join([*(f"250-{offer}" for offer in offers[:-1]), f"250 {offers[-1]}"]))

    def do_auth(self, rest: str) -> None:
        mechanism, _, initial = rest.partition(" ")
        if not self.encrypted:
            self.say("530 5.7.0 Must issue a STARTTLS command first")
            return
        match mechanism.upper():
            case "LOGIN":
                user = base64.b64decode(initial or self.challenge("Username:")).decode()
                secret = base64.b64decode(self.challenge("Password:")).decode()
                right = self.relay.users.get(user) == secret
            case "XOAUTH2":
                user, secret = _bearer(initial or self.challenge(""))
                right = bool(secret) and self.relay.tokens.get(user) == secret
            case _:
                self.say("504 5.7.4 Unrecognized authentication type")
                return
        self.relay._note(lambda: self.relay.logins.append((mechanism.upper(), user, secret)))
        self._let_in(user, right=right)

    def _let_in(self, user: str, *, right: bool) -> None:
        if self.relay.auth_disabled:
            self.say(AUTH_DISABLED)
        elif not right:
            self.say(UNSUCCESSFUL)
        elif against := self.relay.refuses("AUTH", self):
            self.say(against)
            raise _Hangup
        elif self.answer("AUTH", "235 2.7.0 Authentication successful"):
            self.user = user

    # -- a message

    def do_mail(self, rest: str) -> None:
        if self.user is None:
            self.say(f"530 5.7.57 Client not authenticated to send mail. [{HOST}]")
        else:
            self.chunks = b""
            super().do_mail(rest)

    def do_bdat(self, rest: str) -> None:
        """RFC 3030: the message in chunks of a told length."""
        length, _, last = rest.partition(" ")
        while len(self.buffer) < int(length):
            self.buffer += self.more()
        chunk = bytes(self.buffer[: int(length)])
        del self.buffer[: int(length)]
        if self.mail is None or not self.mail.recipients:
            self.say("503 5.5.1 need RCPT first")
            return
        self.chunks += chunk
        if last.upper() != "LAST":
            self.say(f"250 2.1.0 {length} octets received")
            return
        mail, self.mail = self.mail, None
        data, self.chunks = self.chunks, b""
        self.dot(mail, data)

    def dot(self, mail: _Mail, data: bytes) -> None:
        self.verb = "DOT"
        against = self.relay.verdict(self)
        if against is None:
            super().dot(mail, data)
        else:
            self.say(against)


def _bearer(initial: str) -> tuple[str, str]:
    """User and token of `user=U^Aauth=Bearer T^A^A` in base64; both empty where it is anything else."""
    try:
        words = base64.b64decode(initial, validate=True).decode("ascii")
    except ValueError:
        return "", ""
    found = re.fullmatch(r"user=([^\x01]+)\x01auth=Bearer ([^\x01]+)\x01\x01", words)
    return (found[1], found[2]) if found else ("", "")
