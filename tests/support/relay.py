"""A relay that follows the script of a test: a threaded SMTP server on 127.0.0.1 that misbehaves byte by byte.

    with ScriptedRelay(tls="starttls", users={"us@firm.example": "secret"}) as relay:
        relay.script("DOT", Cut(keep=True), OK, Say("550 5.7.1 no"))

The n-th time a phase is reached takes the n-th action of its script; after the last one all is well again.
`relay.always(phase, action)` is for every time the script has nothing. Phases: CONNECT (the banner), EHLO,
STARTTLS, AUTH, RSET, MAIL, RCPT, DATA, UPLOAD (while the body comes in), DOT, QUIT.
"""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import trustme

CHUNK = 16384


@dataclass(frozen=True)
class Ok:
    """Nothing special this time."""


@dataclass(frozen=True)
class Say:
    """Answer this (CRLF is added) instead of the usual words; at UPLOAD as soon as `after` bytes have come in.

    `then`: "go on" keeps the session, "cut" closes it, "stall" neither reads nor answers any more. `keep`
    stores the mail although the answer is none of acceptance.
    """

    reply: str
    after: int = 0
    then: Literal["go on", "cut", "stall"] = "go on"
    keep: bool = False


@dataclass(frozen=True)
class Cut:
    """Read the command (at DOT: the whole mail; at UPLOAD: `after` bytes) and close without an answer.

    `raw` goes out before that; `reset` closes with RST; `keep` stores the mail: only the answer is lost.
    """

    raw: bytes = b""
    after: int = 0
    reset: bool = False
    keep: bool = False


@dataclass(frozen=True)
class CutAfter:
    """Answer as usual, then close."""

    reset: bool = False


@dataclass(frozen=True)
class Stall:
    """Say nothing and read nothing until the test calls `go_on` (or the relay is left); then close."""

    after: int = 0
    keep: bool = False


@dataclass(frozen=True)
class Late:
    """Answer as usual, but only after the test has called `go_on`."""


OK = Ok()
Action = Ok | Say | Cut | CutAfter | Stall | Late


@dataclass(frozen=True)
class Received:
    """A mail that the relay has accepted (or kept), dots unstuffed, else the bytes as they were sent."""

    sender: str
    recipients: tuple[str, ...]
    data: bytes
    at: float
    session: int
    options: str


class _Hangup(Exception):
    """This session is over."""


@dataclass
class _Mail:
    sender: str = ""
    options: str = ""
    recipients: list[str] = field(default_factory=list)


class ScriptedRelay:
    """See the module. Counters and lists may be read at any time; `wait_for` waits on a condition of them."""

    def __init__(
        self,
        *,
        tls: Literal["none", "starttls", "implicit"] = "none",
        users: dict[str, str] | None = None,
        mechanisms: Iterable[str] = ("PLAIN", "LOGIN"),
        extensions: Iterable[str] = ("PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES"),
        size: int | None = None,
        throttle_after: int | None = None,
        names: Iterable[str] = ("127.0.0.1", "localhost"),
        receive_buffer: int | None = None,
        port: int = 0,
    ) -> None:
        self.tls, self.users, self.mechanisms = tls, dict(users or {}), tuple(mechanisms)
        self.extensions, self.size, self.throttle_after = tuple(extensions), size, throttle_after
        self.mails: list[Received] = []
        self.sessions = 0
        self.open_sessions = 0
        self.most_sessions = 0  # open at the same time
        self.commands: list[tuple[int, str]] = []  # (session, line), without the words after AUTH
        self.logins: list[tuple[str, str, str]] = []  # (mechanism, user, password), right or wrong
        self.uploaded = 0  # bytes of all bodies, complete or not
        self.stalled = 0  # how often a Stall or Late has been reached
        self._scripts: dict[str, deque[Action]] = defaultdict(deque)
        self._always: dict[str, Action] = {}
        self._changed = threading.Condition()
        self._go_on = threading.Event()
        self._closing = False
        self._names, self._receive_buffer, self._wanted_port = tuple(names), receive_buffer, port
        self._threads: list[threading.Thread] = []
        self._sockets: set[socket.socket] = set()

    # -- life

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="relay-")
        authority = trustme.CA()
        self.ca_file = Path(self._directory.name, "ca.pem")
        authority.cert_pem.write_to_path(self.ca_file)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*self._names).configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", self._wanted_port))
        if self._receive_buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        self.host, self.port = self._listener.getsockname()[:2]
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._go_on.set()
        self.stop_listening()
        self.cut_all()
        for thread in list(self._threads):
            thread.join(10)
        self._directory.cleanup()

    def stop_listening(self) -> None:
        """From now on connections are refused; open sessions go on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def listen_again(self) -> None:
        """On the same port as before."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._start(self._accept)

    def cut_all(self) -> None:
        """Break every open session."""
        with self._changed:
            sockets = list(self._sockets)
        for sock in sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    # -- for the tests

    def script(self, phase: str, *actions: Action) -> None:
        """Add actions for the next times that `phase` is reached."""
        with self._changed:
            self._scripts[phase].extend(actions)

    def always(self, phase: str, action: Action = OK) -> None:
        """Do this whenever the script of `phase` is empty; OK ends it."""
        with self._changed:
            self._always[phase] = action

    def go_on(self) -> None:
        """Let every Stall and Late end, those to come as well."""
        self._go_on.set()

    def wait_for(self, condition: Callable[[], object], deadline: float = 10.0) -> None:
        """Wait until `condition()` is true, woken at each thing that happens here, or fail."""
        with self._changed:
            assert self._changed.wait_for(condition, deadline), f"not within {deadline} s; {self.commands[-8:]}"

    def wait_for_mails(self, count: int, deadline: float = 10.0) -> list[Received]:
        """The mails as soon as there are `count` of them."""
        self.wait_for(lambda: len(self.mails) >= count, deadline)
        return list(self.mails)

    # -- the server

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        listener = self._listener
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            if self._closing:
                sock.close()
                return
            with self._changed:
                self.sessions += 1
                self.open_sessions += 1
                self.most_sessions = max(self.most_sessions, self.open_sessions)
                number = self.sessions
                self._changed.notify_all()
            self._start(self._serve, sock, number)

    def _serve(self, sock: socket.socket, number: int) -> None:
        session = _Session(self, sock, number)
        try:
            session.run()
        except (_Hangup, OSError):
            pass
        finally:
            session.close()
            with self._changed:
                self.open_sessions -= 1
                self._changed.notify_all()

    def _next(self, phase: str) -> Action:
        with self._changed:
            if self._scripts[phase]:
                return self._scripts[phase].popleft()
            return self._always.get(phase, OK)

    def _note(self, change: Callable[[], object]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()


class _Session:
    def __init__(self, relay: ScriptedRelay, sock: socket.socket, number: int) -> None:
        self.relay, self.number = relay, number
        self.buffer = bytearray()
        self.encrypted = False
        self.user: str | None = None
        self.mail: _Mail | None = None
        self._hold(sock)

    def _hold(self, sock: socket.socket) -> None:
        with self.relay._changed:
            self.relay._sockets.discard(getattr(self, "sock", sock))
            self.relay._sockets.add(sock)
        self.sock = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        with self.relay._changed:
            self.relay._sockets.discard(self.sock)
        self.sock.close()

    def run(self) -> None:
        if self.relay.tls == "implicit":
            self._encrypt()
        self.answer("CONNECT", "220 relay.example ESMTP")
        while True:
            line = self.line()
            verb, _, rest = line.partition(" ")
            shown = line if verb.upper() != "AUTH" else f"AUTH {rest.partition(' ')[0]}"
            self.relay._note(lambda shown=shown: self.relay.commands.append((self.number, shown)))
            handler = getattr(self, f"do_{verb.lower()}", None)
            if handler is None:
                self.say("502 5.5.2 unknown command")
            else:
                handler(rest)

    # -- bytes

    def say(self, reply: str) -> None:
        self.sock.sendall(reply.encode() + b"\r\n")

    def more(self) -> bytes:
        data = self.sock.recv(CHUNK)
        if not data:
            raise _Hangup
        return data

    def line(self) -> str:
        while (end := self.buffer.find(b"\n")) < 0:
            self.buffer += self.more()
        line = bytes(self.buffer[:end]).rstrip(b"\r").decode("utf-8", "replace")
        del self.buffer[: end + 1]
        return line

    def _encrypt(self) -> None:
        self.buffer.clear()
        self.sock.settimeout(10)
        self._hold(self.relay._context.wrap_socket(self.sock, server_side=True))
        self.sock.settimeout(None)
        self.encrypted = True

    # -- misbehaviour

    def answer(self, phase: str, usual: str) -> bool:
        """Answer as the script says; whether it was the usual (or another positive) answer."""
        action = self.relay._next(phase)
        match action:
            case Say():
                self.say(action.reply)
                self.afterwards(action.then)
                return action.reply[:1] in "23"
            case CutAfter():
                self.say(usual)
                self.cut(reset=action.reset)
            case Cut():
                self.sock.sendall(action.raw)
                self.cut(reset=action.reset)
            case Stall():
                self.stall()
            case Late():
                self.wait()
        self.say(usual)
        return True

    def afterwards(self, then: str) -> None:
        if then == "cut":
            raise _Hangup
        if then == "stall":
            self.stall()

    def cut(self, *, reset: bool) -> None:
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Hangup

    def wait(self) -> None:
        def more() -> None:
            self.relay.stalled += 1

        self.relay._note(more)
        self.relay._go_on.wait(60)

    def stall(self) -> None:
        """Read nothing, say nothing, until the test has had enough."""
        self.wait()
        raise _Hangup

    # -- commands

    def do_ehlo(self, _: str) -> None:
        self.mail = None
        offers = ["relay.example", *self.relay.extensions]
        if self.relay.size is not None:
            offers.append(f"SIZE {self.relay.size}".rstrip())
        if self.relay.tls == "starttls" and not self.encrypted:
            offers.append("STARTTLS")
        elif self.relay.users and self.relay.mechanisms:
            offers.append("AUTH " + " ".join(self.relay.mechanisms))
        lines = [f"250-{offer}" for offer in offers[:-1]] + [f"250 {offers[-1]}"]
        self.answer("EHLO", "\r\n".join(lines))

    def do_helo(self, _: str) -> None:
        self.answer("HELO", "250 relay.example")

    def do_starttls(self, _: str) -> None:
        if self.answer("STARTTLS", "220 2.0.0 go ahead"):
            self._encrypt()

    def do_auth(self, rest: str) -> None:
        mechanism, _, initial = rest.partition(" ")
        if mechanism.upper() == "PLAIN":
            _, user, password = base64.b64decode(initial or self.challenge("")).decode().split("\0")
        else:
            user = base64.b64decode(initial or self.challenge("Username:")).decode()
            password = base64.b64decode(self.challenge("Password:")).decode()
        self.relay._note(lambda: self.relay.logins.append((mechanism.upper(), user, password)))
        right = self.relay.users.get(user) == password
        usual = "235 2.7.0 welcome" if right else "535 5.7.8 bad credentials"
        if self.answer("AUTH", usual) and right:
            self.user = user

    def challenge(self, words: str) -> str:
        self.say(f"334 {base64.b64encode(words.encode()).decode()}")
        return self.line()

    def do_rset(self, _: str) -> None:
        self.mail = None
        self.answer("RSET", "250 2.0.0 ok")

    def do_noop(self, _: str) -> None:
        self.say("250 2.0.0 ok")

    def do_quit(self, _: str) -> None:
        self.answer("QUIT", "221 2.0.0 bye")
        raise _Hangup

    def do_mail(self, rest: str) -> None:
        found = re.fullmatch(r"FROM:<([^>]*)>(.*)", rest, re.IGNORECASE)
        declared = re.search(r"SIZE=(\d+)", rest)
        after = self.relay.throttle_after
        if found is None:
            self.say("501 5.5.4 syntax")
        elif self.mail is not None:
            self.say("503 5.5.1 nested MAIL command")
        elif self.relay.users and self.user is None:
            self.say("530 5.7.0 authentication required")
        elif after is not None and len(self.relay.mails) >= after:
            self.say("451 4.7.0 too many messages, slow down")
        elif declared and self.relay.size and int(declared[1]) > self.relay.size:
            self.say("552 5.3.4 message size exceeds fixed limit")
        elif self.answer("MAIL", "250 2.1.0 ok"):
            self.mail = _Mail(found[1], found[2].strip())

    def do_rcpt(self, rest: str) -> None:
        found = re.fullmatch(r"TO:<([^>]*)>.*", rest, re.IGNORECASE)
        if found is None:
            self.say("501 5.5.4 syntax")
        elif self.mail is None:
            self.say("503 5.5.1 need MAIL first")
        elif self.answer("RCPT", "250 2.1.5 ok"):
            self.mail.recipients.append(found[1])

    def do_data(self, _: str) -> None:
        if self.mail is None or not self.mail.recipients:
            self.say("503 5.5.1 need RCPT first")
        elif self.answer("DATA", "354 end with <CRLF>.<CRLF>"):
            mail, self.mail = self.mail, None
            self.dot(mail, self.body())

    def body(self) -> bytes:
        action = self.relay._next("UPLOAD")
        data, start, seen = bytearray(self.buffer), 0, 0
        self.buffer.clear()
        while True:
            found = data.find(b"\r\n.\r\n", max(0, start - 4))
            arrived = len(data)
            self.relay._note(lambda more=arrived - seen: setattr(self.relay, "uploaded", self.relay.uploaded + more))
            seen = arrived
            if not isinstance(action, Ok) and arrived >= getattr(action, "after", 0) and arrived:
                action = self.interrupt(action)
            if data.startswith(b".\r\n"):
                self.buffer += data[3:]
                return b""
            if found >= 0:
                self.buffer += data[found + 5 :]
                return re.sub(rb"(?m)^\.", b"", bytes(data[: found + 2]))
            start = len(data)
            data += self.more()

    def interrupt(self, action: Action) -> Action:
        match action:
            case Say():
                self.say(action.reply)
                self.afterwards(action.then)
            case Cut():
                self.sock.sendall(action.raw)
                self.cut(reset=action.reset)
            case Stall():
                self.stall()
            case Late():
                self.wait()
        return OK

    def dot(self, mail: _Mail, data: bytes) -> None:
        received = Received(mail.sender, tuple(mail.recipients), data, time.time(), self.number, mail.options)
        with self.relay._changed:
            script = self.relay._scripts["DOT"]
            action = script[0] if script else self.relay._always.get("DOT", OK)
        positive = isinstance(action, Ok | CutAfter | Late) or (isinstance(action, Say) and action.reply[:1] == "2")
        if positive or getattr(action, "keep", False):
            self.relay._note(lambda: self.relay.mails.append(received))
        self.answer("DOT", f"250 2.0.0 Ok: queued as {len(self.relay.mails):04X}")
