"""One SMTP conversation at a time with the relay, and its outcome (RFC 5321).

smtplib does not do, because it forgets two things: whether the final dot had left when the line broke, and since when
a reply is awaited. A line lost before the dot is RelayDown, and certain. A line lost after the dot is Uncertain. No
function raises for an act of a relay or of a line.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from bridged.model import UserError
from bridged.relay.outcome import (
    Accepted,
    AddressRefused,
    Deferred,
    Misconfigured,
    Outcome,
    Refused,
    RelayDown,
    Uncertain,
)
from bridged.relay.replies import Phase, Reply, classify, row_of, sentence
from bridged.relay.secret_files import TokenUnavailable
from bridged.relay.wire import Interrupted, Lost, Wire, connected, why

if TYPE_CHECKING:
    from bridged.config.settings import Smtp

DOT_WAIT: Final = 600.0  # seconds (RFC 5321 4.5.3.2.6): to give up on the final reply earlier makes duplicates
IDLE_LIMIT: Final = 90.0  # seconds: relays drop idle sessions after a few minutes
_GOODBYE_WAIT: Final = 2.0  # seconds for QUIT and its reply
# Rows of the table that explain a refused sign-in with the password. With a token the password is not the reason.
_OF_PASSWORDS: Final = frozenset({"m365-password", "google-app-password", "google-password", "sign-in-refused"})
# Rows of the table whose remedy is to sign in, by a password or by smtp.auth.
_OF_SIGN_IN: Final = frozenset({"sign-in-first", "sign-in-code", "sign-in-basic", "relay-denied"})
_TOKEN_ENDED: Final = ("530", "535")  # codes that refuse a token in the middle of a session
_RENEWED_IN_VAIN: Final = (
    "The token was renewed and refused again: check smtp.username, and that the application or the service account of"
    " smtp.auth may send as this mailbox"
)

_SIGNED_IN_IN_VAIN: Final = (
    "The token was accepted, and that is not enough here: check smtp.username, and that the application or the service"
    " account of smtp.auth may send as this mailbox"
)


class _Envelope(NamedTuple):
    """The sender, the recipient and the size (bytes) of a mail."""

    sender: str
    collection_email: str
    size: int


class _Stale(Exception):
    """The kept session proved dead before this mail began, so a new one may carry it.

    `token`: only the token of the session is dead. The new session must sign in with another one.
    """

    def __init__(self, *, token: bool = False) -> None:
        super().__init__()
        self.token = token


class _TokenRefused(Exception):
    """The relay refuses this token. Another one may do, because tokens are revoked before they end."""


class _Ended(Exception):
    """The conversation ended with this outcome. `reusable`: no reply is outstanding, so the session may go on."""

    def __init__(self, outcome: Outcome, *, reusable: bool = False) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.reusable = reusable and _in_step(outcome)


class _Session:
    """An open conversation: its wire, the features that the relay offers, and findings as sentences for people."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.wire = Wire(sock)
        self.told: list[str] = []
        self.used_at = time.monotonic()
        self.learn("")

    def learn(self, text: str) -> None:
        """Replace all known features by those of an EHLO reply."""
        features = _features(text)
        self.starttls = "STARTTLS" in features
        self.pipelining = "PIPELINING" in features
        self.mechanisms = features.get("AUTH", "").upper().split()
        self.sizes = "SIZE" in features
        declared = features.get("SIZE", "")
        self.limit = int(declared) if declared.isdecimal() and len(declared) < 20 else 0  # 0 is none (RFC 1870)


class Relay:
    """One session with one relay: opened when a mail needs it, kept, and reused.

    One thread at a time may call it. `abort` alone may be called by any thread.
    """

    def __init__(self, smtp: Smtp, secret: Callable[[bool], str | None]) -> None:
        """`secret` returns the password, or the token of smtp.auth. Its argument: the last one was refused."""
        self._smtp = smtp
        self._secret = secret
        self._session: _Session | None = None
        self._socket: socket.socket | None = None
        self._guard = threading.Lock()  # otherwise abort() may shut a descriptor that has become another file
        self._aborted = False
        self._secrets: tuple[str, ...] = ()

    def deliver(
        self,
        sender: str,
        collection_email: str,
        size: int,
        chunks: Iterator[bytes],
        before_dot: Callable[[], None],
    ) -> Outcome:
        """Send one mail of `size` bytes, and return its outcome: Uncertain only after the final dot without a reply.

        `before_dot` is called after the last byte of the body and before the dot. When `before_dot` or `chunks`
        raises, the line is cut without a dot, so that the relay discards the mail, and the exception rises.
        """
        most = self._smtp.size_limit
        if most is not None and size > most:  # known without a session: none is opened for it
            words = f"The mail would be {size} bytes, more than smtp.size_limit of {most} bytes"
            return Refused(words, certain=True)
        try:
            session = self._envelope(sender, collection_email, size)
            outcome = self._body(session, chunks, before_dot)
            reusable = _in_step(outcome)
        except _Ended as ended:
            outcome, reusable = ended.outcome, ended.reusable
        except Lost as lost:
            outcome, reusable = RelayDown(self._line(f"was lost before the mail was complete: {lost}")), False
        except BaseException:
            self._drop()
            raise
        if not reusable:
            self._drop()
        return outcome

    def check(self) -> list[str]:
        """Connect, start TLS, authenticate and read SIZE, and send nothing. Returns findings as sentences for people.

        Raises UserError with a sentence and a remedy when one of these steps fails.
        """
        self.close()
        try:
            self._session = self._open()
            return self._session.told
        except _Ended as ended:
            remedy = "Correct smtp: in the configuration, or ask whoever runs the relay, and check again."
            raise UserError(f"{_words(ended.outcome).rstrip('.')}. {remedy}") from None
        finally:
            self.close()

    def close(self) -> None:
        """Say QUIT and close the session, if there is one. Raises nothing."""
        if self._session is not None and not self._aborted:
            with contextlib.suppress(Lost):  # a relay that is gone needs no goodbye
                self._session.wire.send(b"QUIT\r\n", _GOODBYE_WAIT)
                self._session.wire.reply(_GOODBYE_WAIT)
        self._drop()

    def abort(self) -> None:
        """Break the line for good, from any thread: this `deliver` and every later one returns at once.

        Its outcome is RelayDown before the dot, and Uncertain after it. Only a DNS query cannot be hurried.
        """
        with self._guard:
            self._aborted = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # not connected, or closed already: no thread waits for it
                    # Not SSLSocket.shutdown, because it removes TLS first, while the other thread is writing.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    # -- the transaction

    def _envelope(self, sender: str, collection_email: str, size: int) -> _Session:
        """A session that waits for the body: the kept one, or a new one in place of a dead one, once."""
        envelope = _Envelope(sender, collection_email, size)
        if self._session is not None and time.monotonic() - self._session.used_at > IDLE_LIMIT:
            self.close()
        session, fresh = self._session, False
        if session is not None:
            try:
                self._announce(session, envelope, reset=True)
                return session
            except _Stale as stale:
                self._drop()
                fresh = stale.token
        session = self._session = self._open(fresh=fresh)
        self._announce(session, envelope, reset=False)
        return session

    def _announce(self, session: _Session, envelope: _Envelope, *, reset: bool) -> None:
        if 0 < session.limit < envelope.size:
            words = f"The mail would be {envelope.size} bytes, more than the relay's SIZE of {session.limit} bytes"
            raise _Ended(Refused(words, certain=True), reusable=True)
        shared = envelope.sender == self._smtp.sender
        commands = _commands(session, envelope, reset=reset)
        kept, begun = reset, False
        try:
            if session.pipelining:  # RFC 2920 3.1: DATA may be the last command of a group
                session.wire.send(b"".join(commands.values()), self._smtp.timeout)
                commands = dict.fromkeys(commands, b"")
            for phase, command in commands.items():
                self._begin(session, phase, command, shared=shared)
                reset = reset and phase is Phase.RSET
                begun = begun or phase is Phase.MAIL
        except (Lost, _Ended) as error:
            closed = isinstance(error, Lost) or _words(error.outcome).startswith("421")
            died = closed or (isinstance(error, _Ended) and isinstance(error.outcome, RelayDown))
            ended = isinstance(error, _Ended) and _words(error.outcome).startswith(_TOKEN_ENDED)
            if kept and not begun and ended and self._smtp.auth is not None:
                # A token may end in the middle of a session. Otherwise that would halt the line for a person.
                raise _Stale(token=True) from error
            if reset and died and not self._aborted:
                raise _Stale from error
            raise

    def _begin(self, session: _Session, phase: Phase, command: bytes, *, shared: bool) -> None:
        reply = self._asked(session, command)
        if reply.code not in ({354} if phase is Phase.DATA else range(200, 300)):
            outcome = self._classified(phase, reply, shared=shared or phase is Phase.DATA)
            raise _Ended(outcome, reusable=self._in_step_after(phase, session))

    def _in_step_after(self, refused: Phase, session: _Session) -> bool:
        """Whether no reply is outstanding. After a refused MAIL the replies to RCPT and DATA may still come.

        After a refused RCPT a relay may wait for a mail to nobody (RFC 2920 3.1): it gets no dot, the line is cut.
        """
        if refused is Phase.RCPT and session.pipelining:
            try:
                return self._asked(session, b"").code in range(400, 600)
            except Lost:
                return False
        return refused in (Phase.RCPT, Phase.DATA)

    def _body(self, session: _Session, chunks: Iterator[bytes], before_dot: Callable[[], None]) -> Outcome:
        last = b"\r\n"
        for chunk in chunks:
            self._upload(session.wire, _stuffed(chunk, last))
            last = (last + chunk[-2:])[-2:]
        before_dot()
        self._finish(session.wire, b".\r\n" if last == b"\r\n" else b"\r\n.\r\n")
        return self._answer_to_dot(session)

    def _upload(self, wire: Wire, text: bytes) -> None:
        try:
            wire.send(text, self._smtp.timeout, heed=True)
        except Interrupted:
            raise _Ended(self._classified(Phase.UPLOAD, wire.reply(self._smtp.timeout))) from None

    def _finish(self, wire: Wire, dot: bytes) -> None:
        began = wire.sent
        try:
            self._upload(wire, dot)
        except Lost as lost:
            if wire.sent == began:
                raise  # not a byte of the dot has left
            raise _Ended(Uncertain(self._line(f"was lost in the final dot: {lost}"))) from lost

    def _answer_to_dot(self, session: _Session) -> Outcome:
        try:
            reply = session.wire.reply(max(DOT_WAIT, self._smtp.timeout))
        except Lost as lost:
            return Uncertain(self._line(f"was lost after the final dot: {lost}"))
        session.used_at = time.monotonic()
        return self._classified(Phase.DOT, reply)

    def _asked(self, session: _Session, command: bytes) -> Reply:
        """Send a command, or b"" for one that was sent in a group, and return its whole reply.

        Raises Lost, also when the reply is not whole within smtp.timeout.
        """
        session.wire.send(command, self._smtp.timeout)
        reply = session.wire.reply(self._smtp.timeout)
        session.used_at = time.monotonic()
        return reply

    def _judged(
        self,
        session: _Session,
        phase: Phase,
        command: bytes,
        wanted: range | set[int],
        *,
        reusable: bool = False,
        shared: bool = True,
    ) -> None:
        """Send a command. Raises _Ended unless its reply is `wanted`."""
        self._require(phase, self._asked(session, command), wanted, reusable=reusable, shared=shared)

    def _require(
        self, phase: Phase, reply: Reply, wanted: range | set[int], *, reusable: bool = False, shared: bool = True
    ) -> None:
        if reply.code not in wanted:
            raise _Ended(self._classified(phase, reply, shared=shared), reusable=reusable)

    def _classified(self, phase: Phase, reply: Reply, *, shared: bool = True) -> Outcome:
        text = self._masked(reply.text)
        if self._smtp.auth is not None and row_of(phase, reply.code, text).name in _OF_SIGN_IN:
            return Misconfigured(f"{sentence(reply.code, text).rstrip('.')}. {_SIGNED_IN_IN_VAIN}")
        return classify(phase, reply.code, text, shared_sender=shared)

    def _masked(self, text: str) -> str:
        """The text without secrets. Otherwise a relay that echoes a command would write the password into the log."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        if self._smtp.auth is not None:  # a relay may echo a token cut off or wrapped
            text = re.sub(r"[\w.+/=~-]{60,}", "***", text)
        return text

    # -- the session

    def _open(self, *, fresh: bool = False) -> _Session:
        """A new session: greeted, in TLS, authenticated. Raises _Ended with the outcome when a step fails.

        `fresh`: the last token was refused, so another one is asked for.
        """
        try:
            return self._opened(fresh=fresh)
        except _TokenRefused:
            return self._opened(fresh=True)

    def _opened(self, *, fresh: bool) -> _Session:
        self._drop()
        smtp = self._smtp
        try:
            context = None if smtp.security == "plain" else self._context()
            sock = connected(smtp.host, smtp.port, smtp.timeout, self._hold)
            return self._introduced(sock, context, fresh=fresh)
        except ssl.SSLCertVerificationError as error:
            words = f"The certificate of {smtp.host} is not trusted: {error.verify_message}. Set smtp.ca_file"
            raise _Ended(Misconfigured(words)) from error
        except (OSError, Lost, UnicodeError) as error:
            raise _Ended(RelayDown(self._line(f"could not be opened: {why(error)}"))) from error

    def _introduced(self, sock: socket.socket, context: ssl.SSLContext | None, *, fresh: bool) -> _Session:
        if context is not None and self._smtp.security == "tls":
            sock = self._encrypted(context, sock)
        session = _Session(sock)
        self._judged(session, Phase.BANNER, b"", {220})
        self._hello(session)
        if context is not None and self._smtp.security == "starttls":
            session = self._started_tls(session, context)
        told = [f"Connected to {self._smtp.host}:{self._smtp.port}.", _tls_told(session.sock, self._smtp.host)]
        session.told = [*told, self._authenticated(session, fresh=fresh), _size_told(session)]
        return session

    def _hold(self, sock: socket.socket) -> None:
        with self._guard:
            if self._aborted:
                raise OSError("the delivery was abandoned")
            self._socket = sock

    def _drop(self) -> None:
        with self._guard:
            if self._socket is not None:
                self._socket.close()
            self._socket = self._session = None

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._smtp.ca_file is not None:
            try:
                context.load_verify_locations(self._smtp.ca_file)
            except OSError as error:
                words = f"smtp.ca_file {self._smtp.ca_file} cannot be used: {why(error)}. Name a PEM file"
                raise _Ended(Misconfigured(words)) from error
        return context

    def _encrypted(self, context: ssl.SSLContext, sock: socket.socket) -> ssl.SSLSocket:
        sock.settimeout(self._smtp.timeout)  # for the whole handshake, which blocks
        wrapped = context.wrap_socket(sock, server_hostname=self._smtp.host, do_handshake_on_connect=False)
        self._hold(wrapped)
        wrapped.do_handshake()
        return wrapped

    def _hello(self, session: _Session) -> None:
        name = _our_name(session.sock).encode("ascii")
        reply = self._asked(session, b"EHLO %s\r\n" % name)
        if reply.code == 250:
            session.learn(reply.text)
        elif reply.code in (500, 502) and self._smtp.security == "plain":
            reply = self._asked(session, b"HELO %s\r\n" % name)
        self._require(Phase.EHLO, reply, {250})

    def _started_tls(self, session: _Session, context: ssl.SSLContext) -> _Session:
        """A new session in place of this one, because anybody may have written the bytes before TLS."""
        if not session.starttls:
            words = f"{self._smtp.host}:{self._smtp.port} offers no STARTTLS, and nothing is sent without TLS"
            raise _Ended(Misconfigured(f"{words}. Set smtp.port, or smtp.security to tls"))
        self._judged(session, Phase.STARTTLS, b"STARTTLS\r\n", {220})
        session = _Session(self._encrypted(context, session.sock))
        self._hello(session)
        return session

    def _authenticated(self, session: _Session, *, fresh: bool) -> str:
        """Log in once, by one mechanism. Otherwise a second try with the same password may lock the account."""
        user, offered, auth = self._smtp.username, session.mechanisms, self._smtp.auth
        if user is None:
            return "No authentication is configured."
        known, what = (("PLAIN", "LOGIN"), "password") if auth is None else (("XOAUTH2",), "token")
        mechanism = next((m for m in known if m in offered), None)
        if not isinstance(session.sock, ssl.SSLSocket) and not _loopback(session.sock):
            words = f"smtp.security is plain and the relay is elsewhere: the {what} is not sent in clear"
            raise _Ended(Misconfigured(f"{words}. Set smtp.security to starttls or tls"))
        if mechanism is None:
            words = f"The relay offers no AUTH {' or '.join(known)} (it offers: {' '.join(offered) or 'none'})"
            instead = "leave out smtp.username" if auth is None else "use a password instead of smtp.auth"
            raise _Ended(Misconfigured(f"{words}. Set smtp.port, or {instead}"))
        secret = self._secret_now(fresh=fresh)
        if mechanism == "XOAUTH2":
            self._show_token(session, user, secret, fresh=fresh)
        else:
            self._log_in(session, mechanism, user, secret)
        return f"Authenticated as {user} by {mechanism}."

    def _secret_now(self, *, fresh: bool) -> str:
        try:
            secret = self._secret(fresh)
        except UserError as error:
            raise _Ended(Misconfigured(str(error))) from None
        except TokenUnavailable as error:
            raise _Ended(RelayDown(str(error), signing_in=True)) from None
        if not secret:
            words = "smtp.username is set and there is no password. Set smtp.password_file or smtp.password_env"
            raise _Ended(Misconfigured(words))
        return secret

    def _show_token(self, session: _Session, user: str, token: str, *, fresh: bool) -> None:
        """Sign in by XOAUTH2 of Microsoft and Google. A refusal may begin with a challenge: an empty line ends it."""
        both = _base64(f"user={user}\x01auth=Bearer {token}\x01\x01")
        self._secrets = (both, _base64(token), token)
        reply = self._asked(session, f"AUTH XOAUTH2 {both}\r\n".encode("ascii"))
        if reply.code == 334:
            reply = self._asked(session, b"\r\n")
        if reply.code == 535:
            if not fresh:
                raise _TokenRefused
            text = self._masked(reply.text)
            if row_of(Phase.AUTH, reply.code, text).name in _OF_PASSWORDS:
                raise _Ended(Misconfigured(f"{sentence(reply.code, text).rstrip('.')}. {_RENEWED_IN_VAIN}"))
        self._require(Phase.AUTH, reply, {235})

    def _log_in(self, session: _Session, mechanism: str, user: str, secret: str) -> None:
        both = _base64(f"\0{user}\0{secret}")
        self._secrets = (both, _base64(secret), secret)
        if mechanism == "PLAIN":
            last = f"AUTH PLAIN {both}"
        else:
            last = _base64(secret)
            for words in ("AUTH LOGIN", _base64(user)):
                self._judged(session, Phase.AUTH, words.encode("ascii") + b"\r\n", {334})
        self._judged(session, Phase.AUTH, last.encode("ascii") + b"\r\n", {235})

    def _line(self, happened: str) -> str:
        by_us = " (abandoned by us)" if self._aborted else ""
        return f"The line to {self._smtp.host}:{self._smtp.port} {happened}{by_us}"


# -- words and bytes


def _path(command: str, address: str) -> bytes:
    """MAIL or RCPT with an address. Raises ValueError for an address that would become another command."""
    if not address.isascii() or not address.isprintable() or any(c in " <>" for c in address):
        raise ValueError("an address that cannot stand in an SMTP command")
    return f"{command}<{address}>".encode("ascii")


def _commands(session: _Session, envelope: _Envelope, *, reset: bool) -> dict[Phase, bytes]:
    """The commands that begin a mail, in their order. `reset` puts RSET first, for a session that was used before."""
    size = b" SIZE=%d" % envelope.size if session.sizes else b""
    return ({Phase.RSET: b"RSET\r\n"} if reset else {}) | {
        Phase.MAIL: _path("MAIL FROM:", envelope.sender) + size + b"\r\n",
        Phase.RCPT: _path("RCPT TO:", envelope.collection_email) + b"\r\n",
        Phase.DATA: b"DATA\r\n",
    }


def _stuffed(chunk: bytes, before: bytes) -> bytes:
    """The chunk with a second dot before each dot that begins a line (RFC 5321 4.5.2). `before`: the last bytes sent.

    Otherwise such a line might end the mail.
    """
    at = chunk.find(b".")
    while at >= 0:  # a search for dots alone is quick, because base64 has none
        if (chunk[at - 1 : at] or before[-1:]) == b"\n":
            stuffed = chunk.replace(b"\n.", b"\n..")
            return b"." + stuffed if chunk.startswith(b".") and before.endswith(b"\n") else stuffed
        at = chunk.find(b".", at + 1)
    return chunk


def _features(text: str) -> dict[str, str]:
    """The features of an EHLO reply: keyword to parameters. Old relays write `AUTH=LOGIN`, some beside `AUTH PLAIN`."""
    features: dict[str, str] = {}
    for line in text.split("\n")[1:]:
        keyword, *rest = re.split("[ =]", line.strip(), maxsplit=1)
        features[keyword.upper()] = " ".join([features.get(keyword.upper(), ""), *rest]).strip()
    return features


def _our_name(sock: socket.socket) -> str:
    """The name for EHLO, without a DNS query, because DNS may be down."""
    name = socket.gethostname()
    if "." in name and all(part.isascii() and part.replace("-", "").isalnum() for part in name.split(".")):
        return name
    address = sock.getsockname()[0]
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def _loopback(sock: socket.socket) -> bool:
    address = ipaddress.ip_address(sock.getpeername()[0].partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _base64(words: str) -> str:
    return base64.b64encode(words.encode()).decode("ascii")


def _in_step(outcome: Outcome) -> bool:
    """Whether the session can take another mail: the outcome judges this mail or its address, and not the line."""
    return isinstance(outcome, Accepted | Deferred | Refused | AddressRefused)


def _words(outcome: Outcome) -> str:
    return outcome.detail if isinstance(outcome, Uncertain | RelayDown | Misconfigured) else outcome.reply


def _tls_told(sock: socket.socket, host: str) -> str:
    if isinstance(sock, ssl.SSLSocket):
        return f"{sock.version()}, with a certificate for {host} that is trusted."
    return "No TLS: what is sent can be read on the way."


def _size_told(session: _Session) -> str:
    if session.limit:
        return f"The relay accepts mails of up to {session.limit} bytes (SIZE)."
    return "The relay declares no largest size."
