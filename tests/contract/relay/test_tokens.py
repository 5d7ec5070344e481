"""Signing in by a token: a real token endpoint on this machine, a relay that speaks XOAUTH2, and their faults."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import secrets
import ssl
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwt
from joserfc.jwk import RSAKey

from bridged.config.settings import OAuth, Smtp
from bridged.model import UserError
from bridged.relay import Relay, secret_of, tokens
from bridged.relay.outcome import Accepted, Misconfigured, Outcome, RelayDown
from bridged.relay.secret_files import TokenUnavailable
from bridged.relay.tokens import Tokens
from tests.support import relay as scripted
from tests.support.bridge import COMMAND
from tests.support.relay import Say, ScriptedRelay

USER, TO = "invoices@firm.example", "Martin@collect.example"
TENANT, CLIENT_ID = "firm.example", "5c1e4b9a-0000-4000-8000-00000000c0de"
SECRET = "s3cr+t/~Q value&more=é%41"
ROBOT = "bridged@project.iam.gserviceaccount.example"
BODY = b"Subject: x\r\n\r\nbody\r\n"


# -- the two ends


class Endpoint:
    """A token endpoint: a new token at each request, or the next answer of `script`, (status, body[, headers])."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[SimpleNamespace] = []
        self.tokens: list[str] = []
        self.script: deque[Callable[[SimpleNamespace], tuple[Any, ...]] | tuple[Any, ...]] = deque()
        self.life: object = 3600
        self.stopped = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode(), strict_parsing=True)
                asked = SimpleNamespace(
                    path=self.path, headers=dict(self.headers), form={key: value for key, [value] in form.items()}
                )
                endpoint.requests.append(asked)
                action = endpoint.script.popleft() if endpoint.script else endpoint.give
                status, body, *headers = action(asked) if callable(action) else action
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                for part in [body.encode()] if isinstance(body, str) else body:
                    self.wfile.write(part)

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # raised when the client hangs up first
                    super().handle()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}/{TENANT}/token"
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that does not trust it
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def give(self, _: object = None) -> tuple[int, str]:
        self.tokens.append(secrets.token_urlsafe(700))
        answer = {"token_type": "Bearer", "access_token": self.tokens[-1], "expires_in": self.life}
        return 200, json.dumps(answer)

    def refuse(self, error: str, description: str, status: int = 401) -> None:
        self.script.append((status, json.dumps({"error": error, "error_description": description})))

    def close(self) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    one = Endpoint()
    yield one
    one.close()


class _TokenSession(scripted._Session):
    """Speaks XOAUTH2 as Google does: a wrong token is first answered by a challenge."""

    def do_auth(self, rest: str) -> None:
        mechanism, _, initial = rest.partition(" ")
        words = base64.b64decode(initial, validate=True).decode()
        found = re.fullmatch(r"user=([^\x01]*)\x01auth=Bearer ([^\x01]*)\x01\x01", words)
        assert found is not None, words
        user, token = found.groups()
        self.relay._note(lambda: self.relay.logins.append((mechanism, user, token)))
        if self.relay.users.get(user) in (token, "any"):
            if self.answer("AUTH", "235 2.7.0 Accepted"):
                self.user = user
            return
        self.say("334 " + base64.b64encode(b'{"status":"400","schemes":"Bearer"}').decode())
        if self.line() != "":
            self.say("501 5.5.2 an empty line is what ends it")
        else:
            self.answer("AUTH", "535 5.7.8 Username and Password not accepted. For more information, go to the manual")


@pytest.fixture
def server(monkeypatch) -> Iterator[ScriptedRelay]:
    """Takes any token; `server.users[USER] = token` is for one."""
    monkeypatch.setattr(scripted, "_Session", _TokenSession)
    with ScriptedRelay(users={USER: "any"}, mechanisms=["XOAUTH2"]) as relay:
        yield relay


@pytest.fixture
def secret_file(tmp_path) -> Path:
    (tmp_path / "client-secret").write_text(SECRET + "\n", encoding="utf-8")
    return tmp_path / "client-secret"


@pytest.fixture
def microsoft(endpoint, secret_file) -> Callable[..., Smtp]:
    """The settings of a relay that is signed in to as an application."""

    def of(relay: ScriptedRelay | None = None, **changes: Any) -> Smtp:
        auth = OAuth(
            method="xoauth2", tenant=TENANT, client_id=CLIENT_ID, client_secret_file=str(secret_file),
            token_url=changes.pop("token_url", endpoint.url),
        )  # fmt: skip
        values = {"timeout": "10s", "security": "plain", "port": relay.port if relay else 1} | changes
        return Smtp(host="127.0.0.1", username=USER, sender=USER, auth=auth, **values)

    return of


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def pem(key: Any) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.fixture
def key_file(tmp_path, endpoint, rsa_key) -> Path:
    file = tmp_path / "key.json"
    file.write_text(
        json.dumps(
            {
                "type": "service_account",
                "project_id": "project",
                "private_key_id": "key-1",
                "private_key": pem(rsa_key),
                "client_email": ROBOT,
                "client_id": "1234567890",
                "token_uri": endpoint.url,
            }
        )
    )
    return file


@pytest.fixture
def google(key_file) -> Callable[..., Smtp]:
    """The settings of a relay that is signed in to by a service account."""

    def of(relay: ScriptedRelay | None = None, **changes: Any) -> Smtp:
        auth = OAuth(method="xoauth2", service_account_file=str(key_file), token_url=changes.pop("token_url", None))
        port = relay.port if relay else 1
        return Smtp(host="127.0.0.1", port=port, security="plain", username=USER, sender=USER, auth=auth, **changes)

    return of


def send(relay: Relay) -> Outcome:
    return relay.deliver(USER, TO, len(BODY), iter([BODY]), lambda: None)


def failure(tokens: Tokens, kind: type[Exception]) -> tuple[str, str]:
    """The sentence of what is raised, and everything that a log could show of it."""
    try:
        tokens.token()
    except kind as error:
        return str(error), f"{error!r}\n{traceback.format_exc()}"
    raise AssertionError("a token was given")


class Counted:
    """A lock that knows how many have come to it."""

    def __init__(self) -> None:
        self._lock, self._changed, self.came = threading.Lock(), threading.Condition(), 0

    def __enter__(self) -> None:
        with self._changed:
            self.came += 1
            self._changed.notify_all()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.came >= count, 10)


def in_threads(count: int, work: Callable[[], Any]) -> list[Any]:
    """What `work` returned or raised in each of so many threads at a time."""
    results: list[Any] = []

    def one() -> None:
        try:
            results.append(work())
        except (UserError, TokenUnavailable) as error:
            results.append(error)

    threads = [threading.Thread(target=one, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(results) == count
    return results


# -- tokens


def test_an_application_signs_in_with_its_client_secret(endpoint, server, microsoft):
    relay = Relay(microsoft(server), secret_of(microsoft(server)))
    assert isinstance(send(relay), Accepted)
    relay.close()
    [asked], [token] = endpoint.requests, endpoint.tokens
    assert asked.path == f"/{TENANT}/token"
    assert asked.form == {
        "grant_type": "client_credentials",
        "client_id": CLIENT_ID,
        "client_secret": SECRET,
        "scope": "https://outlook.office365.com/.default",
    }
    assert "Authorization" not in asked.headers
    assert server.logins == [("XOAUTH2", USER, token)]


def test_microsofts_endpoint_is_the_tenants_own(microsoft):
    """A tenant with slashes stays one component of the path."""
    auth = microsoft().auth
    assert auth is not None
    own = auth.model_copy(update={"token_url": None, "tenant": "a/../b?c"})
    assert tokens._microsoft(own).url == "https://login.microsoftonline.com/a%2F..%2Fb%3Fc/oauth2/v2.0/token"


@pytest.mark.parametrize("token_url", [True, False])
def test_a_service_account_signs_in_with_an_assertion_that_its_public_key_verifies(
    endpoint, server, google, key_file, rsa_key, token_url
):
    """`auth.token_url` goes before the key file's own address."""
    smtp = google(server, token_url=endpoint.url) if token_url else google(server)
    if token_url:
        key_file.write_text(json.dumps(json.loads(key_file.read_text()) | {"token_uri": "https://127.0.0.1:1/none"}))
    relay = Relay(smtp, Tokens(smtp).token)
    assert isinstance(send(relay), Accepted)
    relay.close()
    [asked] = endpoint.requests
    assert asked.form.keys() == {"grant_type", "assertion"}
    assert asked.form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    public = RSAKey.import_key(rsa_key.public_key())
    read = jwt.decode(asked.form["assertion"], public, algorithms=["RS256"])
    assert read.header["kid"] == "key-1"
    assert read.claims["iat"] < read.claims["exp"] <= read.claims["iat"] + 3600
    assert {name: read.claims[name] for name in ("iss", "sub", "scope", "aud")} == {
        "iss": ROBOT, "sub": USER, "scope": "https://mail.google.com/", "aud": endpoint.url,
    }  # fmt: skip
    assert server.logins == [("XOAUTH2", USER, endpoint.tokens[0])]


def test_one_token_is_asked_for_by_four_sessions_at_a_time_and_kept_for_the_next(endpoint, server, microsoft):
    smtp = microsoft(server)
    asks = secret_of(smtp)
    assert secret_of(microsoft(server)) == asks, "the same settings share their tokens"
    lock = asks.__self__._lock = Counted()  # type: ignore[attr-defined]

    def late(_: object) -> tuple[int, str]:
        lock.wait_for(4)
        return endpoint.give()

    endpoint.script.append(late)
    relays = [Relay(smtp, secret_of(smtp)) for _ in range(4)]
    waiting = iter(relays)
    outcomes = in_threads(4, lambda: send(next(waiting)))
    assert [type(outcome) for outcome in outcomes] == [Accepted] * 4
    for relay in relays:
        relay.close()
    assert isinstance(send(relays[0]), Accepted)
    relays[0].close()
    assert len(endpoint.requests) == 1
    assert server.logins == [("XOAUTH2", USER, endpoint.tokens[0])] * 5


def test_sessions_that_waited_in_vain_for_a_token_share_one_failure(endpoint, microsoft):
    """Four time-outs in a row would be longer than a stop waits. A later session asks anew."""
    tokens = Tokens(microsoft())
    lock = tokens._lock = Counted()  # type: ignore[assignment]

    def late(_: object) -> tuple[int, str]:
        lock.wait_for(4)
        return 500, ""

    endpoint.script.append(late)
    results = in_threads(4, tokens.token)
    assert {(type(error), str(error)) for error in results} == {
        (TokenUnavailable, "The token endpoint 127.0.0.1 answered 500")
    }
    assert len(endpoint.requests) == 1
    assert tokens.token() == endpoint.tokens[0]


@pytest.mark.parametrize(
    ("life", "kept"),
    [(3600, 3300), ("3600", 3300), (400, 200), (None, 150), (1e300, 86100), (10, 5)],
)
def test_a_token_is_renewed_before_it_ends(endpoint, microsoft, life, kept):
    """Five minutes before, or at half its life."""
    now = [1000.0]
    tokens = Tokens(microsoft(), clock=lambda: now[0])
    endpoint.life = life
    first = tokens.token()
    now[0] += kept - 1
    assert tokens.token() == first
    now[0] += 1
    assert tokens.token() == endpoint.tokens[1] != first
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize("life", [0, -5])
def test_a_token_without_a_life_is_used_once(endpoint, microsoft, life):
    tokens = Tokens(microsoft())
    endpoint.life = life
    assert tokens.token() != tokens.token()


def test_a_secret_that_was_changed_holds_from_the_next_token_on(endpoint, microsoft, secret_file):
    tokens = Tokens(microsoft())
    tokens.token()
    secret_file.write_text("another", encoding="utf-8")
    tokens.token(fresh=True)
    assert [asked.form["client_secret"] for asked in endpoint.requests] == [SECRET, "another"]


def test_without_auth_the_password_signs_in(tmp_path):
    """The password is read anew each time, whether the last one was refused or not."""
    file = tmp_path / "password"
    smtp = Smtp(host="a.example", sender=USER, username=USER, password_file=str(file))
    for words in ("one", "two"):
        file.write_text(words)
        assert (secret_of(smtp)(False), secret_of(smtp)(True)) == (words, words)


def test_a_sign_in_by_password_loads_no_library_of_tokens():
    """The libraries are as large as the daemon."""
    code = "import sys, bridged.commands, bridged.daemon; print({'authlib', 'httpx2', 'joserfc'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


# -- the relay refuses


def test_a_token_that_is_refused_is_renewed_once_and_the_mail_is_delivered(endpoint, server, microsoft):
    smtp = microsoft(server)
    relay = Relay(smtp, Tokens(smtp).token)
    assert isinstance(send(relay), Accepted)
    relay.close()
    server.users[USER] = "revoked"

    def renewed(_: object) -> tuple[int, str]:
        answer = endpoint.give()
        server.users[USER] = endpoint.tokens[-1]
        return answer

    endpoint.script.append(renewed)
    assert isinstance(send(relay), Accepted)
    relay.close()
    first, second = endpoint.tokens
    assert [token for _, _, token in server.logins] == [first, first, second]
    assert (server.sessions, len(server.mails)) == (3, 2)


def test_a_token_that_is_refused_twice_is_misconfigured_after_two_sign_ins(endpoint, server, microsoft):
    server.users[USER] = "none of ours"
    smtp = microsoft(server)
    outcome = send(Relay(smtp, Tokens(smtp).token))
    assert isinstance(outcome, Misconfigured)
    assert outcome.detail.startswith("535 5.7.8 Username and Password not accepted.")
    assert "app password" not in outcome.detail, "there is no password here"
    assert "may send as this mailbox" in outcome.detail
    assert (len(server.logins), len(endpoint.requests), server.sessions) == (2, 2, 2)
    assert len({token for _, _, token in server.logins}) == 2
    assert server.mails == []


@pytest.mark.parametrize("phase", ["RSET", "MAIL"])
@pytest.mark.parametrize("reply", ["530 5.7.57 Client not authenticated to send mail.", "535 5.7.3 expired"])
@pytest.mark.parametrize("extensions", [("PIPELINING",), ()])
def test_a_token_that_ends_within_a_session_is_renewed_without_a_halt(
    endpoint, server, microsoft, phase, reply, extensions
):
    server.extensions = extensions
    smtp = microsoft(server)
    relay = Relay(smtp, Tokens(smtp).token)
    assert isinstance(send(relay), Accepted)
    server.script(phase, Say(reply))
    assert isinstance(send(relay), Accepted)
    relay.close()
    assert (server.sessions, len(server.mails), len(endpoint.requests)) == (2, 2, 2)
    assert [token for _, _, token in server.logins] == endpoint.tokens


def test_a_mail_refused_behind_a_fresh_sign_in_is_misconfigured_without_that_remedy(endpoint, server, microsoft):
    smtp = microsoft(server)
    relay = Relay(smtp, Tokens(smtp).token)
    assert isinstance(send(relay), Accepted)
    server.always("MAIL", Say("530 5.7.57 Client not authenticated to send mail."))
    outcome = send(relay)
    assert isinstance(outcome, Misconfigured)
    assert outcome.detail.startswith("530 5.7.57 Client not authenticated to send mail.")
    assert "Set smtp.username" not in outcome.detail
    assert "may send as this mailbox" in outcome.detail
    assert (server.sessions, len(endpoint.requests)) == (2, 2)


def test_a_refusal_that_is_no_matter_of_the_token_keeps_its_own_remedy(server, microsoft):
    server.always("AUTH", Say("535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled"))
    smtp = microsoft(server)
    outcome = send(Relay(smtp, Tokens(smtp).token))
    assert isinstance(outcome, Misconfigured)
    assert "Set-CASMailbox" in outcome.detail


def test_two_sessions_whose_token_was_refused_renew_it_once(endpoint, microsoft):
    """The second session finds another token than its own, and takes it."""
    tokens = Tokens(microsoft())
    had = threading.Barrier(2)

    def refused() -> str:
        tokens.token()
        had.wait(10)
        return tokens.token(fresh=True)

    assert in_threads(2, refused) == [endpoint.tokens[1]] * 2
    assert len(endpoint.requests) == 2


def test_a_relay_without_xoauth2_is_misconfigured_and_no_token_is_asked_for(endpoint, server, microsoft):
    server.mechanisms = ("PLAIN", "LOGIN")
    smtp = microsoft(server)
    outcome = send(Relay(smtp, Tokens(smtp).token))
    assert isinstance(outcome, Misconfigured)
    assert "no AUTH XOAUTH2 (it offers: PLAIN LOGIN)" in outcome.detail
    assert (server.logins, endpoint.requests) == ([], [])


def test_a_token_is_not_sent_in_clear_to_another_machine(endpoint, server, microsoft, monkeypatch):
    monkeypatch.setattr("bridged.relay.relay._loopback", lambda sock: False)
    smtp = microsoft(server)
    outcome = send(Relay(smtp, Tokens(smtp).token))
    assert isinstance(outcome, Misconfigured)
    assert "the token is not sent in clear" in outcome.detail
    assert (server.logins, endpoint.requests) == ([], [])


@pytest.mark.parametrize("cut", [None, 400, 100])
@pytest.mark.parametrize("code", [535, 454, 501])
def test_a_relay_that_echoes_the_token_does_not_get_it_into_the_outcome(endpoint, server, microsoft, code, cut):
    """The echo is whole, cut off or wrapped, in clear or in base64."""

    class Echo(str):
        __slots__ = ()

        def __str__(self) -> str:
            token = server.logins[-1][2]
            sasl = base64.b64encode(f"user={USER}\x01auth=Bearer {token}\x01\x01".encode()).decode()
            return f"{code}-no: {token[:cut]}\r\n{code} AUTH XOAUTH2 {sasl[:cut]}"

        def encode(self, *arguments: Any) -> bytes:
            return str(self).encode(*arguments)

    server.always("AUTH", Say(Echo("535")))
    smtp = microsoft(server)
    outcome = send(Relay(smtp, Tokens(smtp).token))
    assert isinstance(outcome, Misconfigured | RelayDown)
    assert f"{code} no: *** AUTH XOAUTH2 ***" in outcome.detail
    for _, _, token in server.logins:
        assert token[:20] not in outcome.detail
        assert base64.b64encode(f"user={USER}\x01auth=Bearer {token}".encode()).decode()[:60] not in outcome.detail


# -- no token can be had now


def test_an_endpoint_that_is_down_is_the_relays_trouble_without_a_sign_in(endpoint, server, microsoft):
    endpoint.close()
    smtp = microsoft(server)
    outcome = send(Relay(smtp, Tokens(smtp).token))
    assert outcome == RelayDown(
        "The token endpoint 127.0.0.1 cannot be reached: [Errno 111] Connection refused", signing_in=True
    )
    assert "AUTH XOAUTH2" not in [line for _, line in server.commands]


ENDLESS = (b"x" * 4096 for _ in iter(int, 1))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((500, "{}"), "answered 500"),
        ((503, '{"error": "invalid_client"}'), "answered 503"),
        ((429, '{"error": "invalid_client"}'), "answered 429"),
        ((200, "<html>Sign in to the hotel</html>"), "no token in JSON"),
        ((404, "<html>nothing here</html>"), "no token in JSON"),
        ((200, "[]"), "no token in JSON"),
        ((200, "\ufeff"), "no token in JSON"),
        ((302, "", ("Location", "https://elsewhere.example/")), "redirect"),
        ((307, "", ("Location", "/elsewhere")), "redirect"),
        ((200, '{"expires_in": 3600}'), "without a token"),
        ((200, '{"access_token": "a\\u0001b", "expires_in": 3600}'), "without a token"),
        ((200, '{"access_token": "", "expires_in": 3600}'), "without a token"),
        ((200, '{"access_token": "a", "expires_in": "soon"}'), "no token in JSON"),
        ((200, '{"access_token": "a", "expires_in": NaN}'), "no token in JSON"),
        ((200, '{"access_token": "a", "expires_in": 1e999}'), "no token in JSON"),
        ((200, "[" * 60000), "no token in JSON"),
        ((200, '{"access_token": ["a"], "expires_in": 3600}'), "without a token"),
        ((400, '{"error": "temporarily_unavailable"}'), "no token just now"),
        ((400, '{"error": "x", "error_description": "AADSTS90033: A transient error"}'), "no token just now"),
        ((200, ENDLESS), "does not end"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_answer_without_a_token_is_unavailable_and_the_next_request_asks_anew(endpoint, microsoft, answer, words):
    """A person is not told, because the next request gets a token."""
    tokens = Tokens(microsoft())
    endpoint.script.append(answer)
    told, log = failure(tokens, TokenUnavailable)
    assert words in told
    assert SECRET not in log
    assert len(endpoint.requests) == 1
    assert tokens.token() == endpoint.tokens[-1]


def test_an_endpoint_that_is_silent_is_given_up_after_the_timeout(endpoint, microsoft):
    def silent(_: object) -> tuple[int, str]:
        endpoint.stopped.wait(30)
        return 200, ""

    endpoint.script.append(silent)
    told, _ = failure(Tokens(microsoft(timeout="200ms")), TokenUnavailable)
    assert told == "The token endpoint 127.0.0.1 gave no answer within 0.2 s"


def test_an_endpoint_that_dribbles_is_given_up_too(endpoint, microsoft):
    def dribble() -> Iterator[bytes]:
        while not endpoint.stopped.wait(0.05):
            yield b" "

    endpoint.script.append((200, dribble()))
    told, _ = failure(Tokens(microsoft(timeout="300ms")), TokenUnavailable)
    assert "does not end" in told


# -- a person must act


MICROSOFT = [
    (90002, "invalid_request", f"Tenant '{TENANT}' not found.", f"no tenant {TENANT} .*smtp.auth.tenant"),
    (900021, "invalid_request", "Requested tenant identifier '0-0' is not valid.", f"tenant {TENANT} .*auth.tenant"),
    (900023, "invalid_request", "Specified tenant identifier is not valid.", f"no tenant {TENANT} .*smtp.auth.tenant"),
    (700016, "unauthorized_client", "Application not found.", f"{CLIENT_ID} is not in the tenant {TENANT}.*client_id"),
    (7000112, "unauthorized_client", "Application is disabled.", f"{CLIENT_ID} is disabled.*Enterprise applications"),
    (7000229, "invalid_client", f"The client application {CLIENT_ID} is missing service principal in the tenant.",
     f"{CLIENT_ID} has no service principal in the tenant {TENANT}.*grant consent.*Enterprise application"),
    (7000215, "invalid_client", f"Invalid client secret {SECRET}", "secret's Value, not its Secret ID"),
    (7000222, "invalid_client", "The provided client secret keys are expired.", "has expired.*Make a new one"),
    (53003, "invalid_grant", "Access has been blocked.", "Conditional Access.*exempt the application"),
    (65001, "invalid_grant", "The user has not consented", r"consented.*SMTP\.SendAsApp.*grant consent"),
    (500011, "invalid_resource", "The resource principal was not found", "Exchange Online.*licence"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "error", "words", "sentence"), MICROSOFT)
def test_each_usual_mistake_with_microsoft_has_its_sentence(endpoint, microsoft, code, error, words, sentence):
    trace = "Trace ID: 0d7d Correlation ID: 11ad Timestamp: 2026-11-24 08:00:00Z"
    endpoint.refuse(error, f"AADSTS{code}: {words} {trace}", status=400)
    told, log = failure(Tokens(microsoft()), UserError)
    assert re.search(sentence, told)
    assert told.count(f"(AADSTS{code})") == 1
    assert told.endswith(".")
    assert "\n" not in told
    assert SECRET not in log


@pytest.mark.parametrize("error", ["invalid_client", "unauthorized_client", "invalid_grant", "invalid_scope"])
def test_any_other_refusal_is_told_in_the_endpoints_words_without_secrets(endpoint, microsoft, error):
    from urllib.parse import quote, quote_plus

    forms = [SECRET, quote_plus(SECRET), quote(SECRET, safe="")]
    assertion = "eyJ" + secrets.token_urlsafe(60) + "." + secrets.token_urlsafe(60)
    endpoint.refuse(error, f"AADSTS1: no\r\n\x1b[1m{' '.join(forms)} {assertion} Trace ID: 7 {'long ' * 200}")
    told, log = failure(Tokens(microsoft()), UserError)
    assert told.startswith(f"The token endpoint 127.0.0.1 refuses to give a token ({error}: AADSTS1: no ")
    assert told.endswith("Check smtp.auth and what its files hold.")
    assert told.isprintable()
    assert len(told) < 400
    assert [form for form in (*forms, assertion, assertion[:50]) if form in log] == []


GOOGLE = [
    ("invalid_grant", "Invalid JWT: Token must be a short-lived token and in a reasonable timeframe.", "clock"),
    ("invalid_grant", "Invalid JWT Signature.", f"does not know this key of {ROBOT}.*new one"),
    ("invalid_grant", "Invalid email or User ID", f"no account {USER}.*smtp.username"),
    ("invalid_grant", "Invalid grant: account not found", f"no service account {ROBOT}"),
    ("invalid_grant", "", f"{ROBOT} act for {USER}"),
    ("unauthorized_client", "Client is unauthorized to retrieve access tokens using this method.",
     "Domain-wide delegation.*1234567890.*https://mail.google.com/"),
    ("access_denied", "Requested client not authorized.", "Domain-wide delegation.*1234567890"),
    ("invalid_client", "The OAuth client was not found.", f"no service account {ROBOT}, or it is disabled"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "words", "sentence"), GOOGLE)
def test_each_usual_mistake_with_google_has_its_sentence(endpoint, google, rsa_key, error, words, sentence):
    def refuse(asked: SimpleNamespace) -> tuple[int, str]:
        return 400, json.dumps({"error": error, "error_description": f"{words} {asked.form['assertion']}"})

    endpoint.script.append(refuse if words else lambda _: (400, json.dumps({"error": error})))
    told, log = failure(Tokens(google()), UserError)
    assert re.search(sentence, told)
    assert told.endswith(f"({error}).")
    assert endpoint.requests[0].form["assertion"] not in log
    assert pem(rsa_key)[40:80] not in log


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda key: "{", "is not JSON"),
        (lambda key: "[]", "not the key of a service account"),
        (lambda key: json.dumps({"installed": {"client_id": "1", "client_secret": "2"}}), "not the key of a service"),
        (lambda key: json.dumps(key | {"type": "authorized_user"}), "not the key of a service account"),
        (lambda key: json.dumps(key | {"client_email": "", "token_uri": 3}), "lacks client_email and token_uri"),
        (lambda key: json.dumps(key | {"token_uri": "http://elsewhere.example/token"}), "no https:// address"),
        (lambda key: json.dumps(key | {"token_uri": "https:///token"}), "no https:// address"),
        (lambda key: json.dumps(key | {"private_key": key["private_key"][:200]}), "no RSA key in PEM"),
        (lambda key: json.dumps(key | {"private_key": pem(generate_private_key(SECP256R1()))}), "no RSA key in PEM"),
    ],
)
def test_a_broken_key_file_is_a_sentence_that_shows_nothing_of_it(
    endpoint, google, key_file, rsa_key, change, sentence
):
    key_file.write_text(change(json.loads(key_file.read_text())))
    told, log = failure(Tokens(google()), UserError)
    assert told.startswith("The service account key file (smtp.auth.service_account_file)")
    assert sentence in told
    assert "Download a JSON key" in told
    assert pem(rsa_key)[40:80] not in log
    assert endpoint.requests == []


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_a_secret_file_that_cannot_be_read_names_its_key_in_the_configuration(
    server, microsoft, google, secret_file, key_file, content
):
    for file, smtp, key in [
        (secret_file, microsoft(server), "client_secret_file"),
        (key_file, google(server), "service_account_file"),
    ]:
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        outcome = send(Relay(smtp, Tokens(smtp).token))
        assert isinstance(outcome, Misconfigured)
        assert f"{file} (smtp.auth.{key})" in outcome.detail
    assert server.logins == []


# -- the line to the endpoint


@pytest.fixture
def authority(tmp_path) -> Iterator[tuple[Endpoint, Path]]:
    """An endpoint with a certificate, and the file of its authority."""
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    one = Endpoint(context)
    yield one, tmp_path / "ca.pem"
    one.close()


def test_an_endpoint_must_have_a_certificate_of_the_system_or_of_ca_file(authority, microsoft, tmp_path):
    endpoint, ca_file = authority
    told, _ = failure(Tokens(microsoft(token_url=endpoint.url)), UserError)
    assert "certificate of the token endpoint 127.0.0.1 is not trusted" in told
    assert "smtp.ca_file" in told
    assert endpoint.requests == []
    assert Tokens(microsoft(token_url=endpoint.url, ca_file=ca_file)).token() == endpoint.tokens[0]
    told, _ = failure(Tokens(microsoft(token_url=endpoint.url, ca_file=tmp_path / "none.pem")), UserError)
    assert "none.pem cannot be used: No such file or directory" in told


def test_a_proxy_of_the_environment_never_reads_a_request_that_has_no_tls(endpoint, microsoft, monkeypatch):
    """A request through this proxy would fail, because no server listens on port 1."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert Tokens(microsoft()).token() == endpoint.tokens[0]


def test_a_proxy_of_the_environment_is_used_with_tls(authority, microsoft, monkeypatch):
    """A proxy that cannot be reached may come back; an address that is no proxy's never does."""
    endpoint, ca_file = authority
    for name in ("NO_PROXY", "no_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    tokens = Tokens(microsoft(token_url=endpoint.url, ca_file=ca_file))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert "Connection refused" in failure(tokens, TokenUnavailable)[0]
    monkeypatch.setenv("HTTPS_PROXY", "gopher://us:hunter2@proxy.example")
    told, log = failure(tokens, UserError)
    assert "HTTPS_PROXY" in told
    assert "hunter2" not in log
    assert endpoint.requests == []


# -- the installed command


def check(tmp_path: Path, smtp: Smtp) -> subprocess.CompletedProcess[str]:
    auth = smtp.auth
    assert auth is not None
    (tmp_path / "ged").mkdir(exist_ok=True)
    (tmp_path / "bridged.yaml").write_text(
        json.dumps(
            {
                "smtp": {
                    "host": "127.0.0.1",
                    "port": smtp.port,
                    "security": "plain",
                    "username": USER,
                    "sender": USER,
                    "auth": auth.model_dump(exclude_none=True),
                },
                "state_dir": str(tmp_path / "state"),
                "clients": [{"name": "Martin", "ged": str(tmp_path / "ged"), "collection_email": TO}],
            }
        )
    )
    command = [COMMAND, "check", "--config", str(tmp_path / "bridged.yaml"), "--smtp"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("provider", ["microsoft", "google"])
def test_check_signs_in_by_a_token_and_says_so(request, endpoint, server, tmp_path, provider):
    done = check(tmp_path, request.getfixturevalue(provider)(server))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Authenticated as {USER} by XOAUTH2." in done.stdout
    assert server.mails == []
    assert endpoint.tokens[0] not in done.stdout


def test_check_tells_a_mistake_in_one_sentence_and_shows_no_secret(endpoint, server, microsoft, tmp_path):
    endpoint.refuse("invalid_client", f"AADSTS7000215: Invalid client secret provided: {SECRET}")
    done = check(tmp_path, microsoft(server))
    assert done.returncode == 1
    assert "Write the secret's Value, not its Secret ID" in done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert server.logins == []
