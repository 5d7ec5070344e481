"""Access tokens in the place of a password (OAuth 2.0, RFC 6749): shared by all sessions, and renewed in time.

authlib over httpx2 asks for them. Both are imported only where `smtp.auth` is configured, because they cost 30 MB. No
error shows a secret, an assertion or a token: the endpoint's words are masked, and no cause is chained.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, quote_plus, urlsplit

from bridged.model import UserError
from bridged.relay.replies import sentence
from bridged.relay.secret_files import TokenUnavailable, client_secret, password, service_account_key

if TYPE_CHECKING:
    import httpx2

    from bridged.config.settings import OAuth, Smtp

MICROSOFT_SCOPE: Final = "https://outlook.office365.com/.default"
GOOGLE_SCOPE: Final = "https://mail.google.com/"
_LONGEST_WAIT: Final = 20.0  # seconds for one request
_MARGIN: Final = 300.0  # seconds before its end at which a token is renewed; otherwise it could end before its use
_UNSAID: Final = 300.0  # seconds of life of a token whose endpoint does not tell its life
_LONGEST_LIFE: Final = 86400.0  # seconds
_LONGEST_ANSWER: Final = 64 * 1024  # bytes
_SHOWN: Final = 200  # characters of the endpoint's words

# Microsoft Learn: Microsoft Entra authentication and authorization error codes. One sentence for each usual mistake.
_MICROSOFT: Final = {
    "90002": "Microsoft 365 knows no tenant {tenant}",
    "900021": "Microsoft 365 knows no tenant {tenant}",
    "900023": "Microsoft 365 knows no tenant {tenant}",
    "700016": "The application {client_id} is not in the tenant {tenant}",
    "7000112": "The application {client_id} is disabled in its tenant",
    "7000229": "The application {client_id} has no service principal in the tenant {tenant}",
    "7000215": "Microsoft 365 refuses the client secret",
    "7000222": "The client secret has expired",
    "53003": "A Conditional Access policy of the tenant forbids this sign-in",
    "65001": "Nobody has consented to what the application {client_id} may do",
    "500011": "The tenant {tenant} has no Exchange Online",
}
_TENANT: Final = "Set smtp.auth.tenant to the Directory (tenant) ID on the application's overview page."
_MICROSOFT_REMEDIES: Final = {
    "90002": _TENANT,
    "900021": _TENANT,
    "900023": _TENANT,
    "700016": "Set smtp.auth.client_id to the Application (client) ID of its overview, and check smtp.auth.tenant.",
    "7000112": "Enable it under Enterprise applications.",
    "7000229": "Have an administrator grant consent under API permissions, which creates its Enterprise application;"
    " and check smtp.auth.tenant.",
    "7000215": "Write the secret's Value, not its Secret ID, into the file of smtp.auth.client_secret_file.",
    "7000222": "Make a new one under Certificates & secrets, and write its Value into the file of"
    " smtp.auth.client_secret_file.",
    "53003": "Have an administrator exempt the application, or allow this machine's public address.",
    "65001": "Add the application permission SMTP.SendAsApp of Office 365 Exchange Online, and have an administrator"
    " grant consent.",
    "500011": "Check smtp.auth.tenant, and that the tenant has a licence with a mailbox.",
}
# The same list: MsodsServiceUnavailable, RequestBudgetExceeded, RequestTimeout, retryable, tenant throttling.
_PASSING_CODES: Final = frozenset({"90006", "90012", "90024", "90033", "90055"})
_PASSING_ERRORS: Final = frozenset({"temporarily_unavailable", "server_error", "slow_down", "internal_failure"})

# Google: Using OAuth 2.0 for server to server applications, JWT error codes; first the error, then words of it.
_DELEGATION: Final = (
    "The service account may not act for {username}. In the Google Admin console, under API controls, Domain-wide"
    f" delegation, add the client ID {{client_id}} with the scope {GOOGLE_SCOPE}."
)
_GOOGLE: Final[tuple[tuple[str, str, str], ...]] = (
    ("unauthorized_client", "", _DELEGATION),
    ("access_denied", "", _DELEGATION),
    (
        "invalid_grant",
        r"timeframe|\biat\b|\bexp\b|short-lived",
        "Google finds the request's time wrong. Set this machine's clock (timedatectl set-ntp true).",
    ),
    (
        "invalid_grant",
        r"signature",
        "Google does not know this key of {account}, which may have been deleted. Put a new one into {file}.",
    ),
    (
        "invalid_grant",
        r"user id|email",
        "Google Workspace has no account {username}. Set smtp.username to a user's own address, not an alias.",
    ),
    (
        "invalid_grant",
        r"account",
        "Google knows no service account {account}. Put the key of one that exists into {file}.",
    ),
    (
        "invalid_grant",
        "",
        "Google does not let {account} act for {username}. Check smtp.username and this machine's clock (timedatectl).",
    ),
    (
        "invalid_client",
        "",
        "Google knows no service account {account}, or it is disabled. Enable it, or put another's key into {file}.",
    ),
)
_KEY_FILE: Final = "the file of smtp.auth.service_account_file"
_KEY: Final = "The service account key file (smtp.auth.service_account_file)"
_NEW_KEY: Final = "Download a JSON key of the service account again."


class _Token(NamedTuple):
    """An access token, and the end of its use, in seconds of this module's clock."""

    text: str
    until: float


class _Question(NamedTuple):
    """A request to an endpoint: its address, its call, the secrets that stay hidden, and the reading of a refusal."""

    url: str
    ask: Callable[[dict[str, Any]], dict[str, Any]]
    secrets: tuple[str, ...]
    mistake: Callable[[str, str], str]


class Tokens:
    """The access tokens of one account. Thread-safe: one thread asks the endpoint, and the others wait for it."""

    def __init__(self, smtp: Smtp, clock: Callable[[], float] = time.monotonic) -> None:
        self._smtp = smtp
        self._clock = clock
        self._lock = threading.Lock()
        self._token: _Token | None = None
        self._asked = 0
        self._failure: UserError | TokenUnavailable | None = None
        self._handed = threading.local()

    def token(self, fresh: bool = False) -> str:
        """A token that is valid for a while. With `fresh`, another than this thread got last.

        Raises UserError when a person must act, and TokenUnavailable when waiting helps.
        """
        asked = self._asked
        with self._lock:
            if fresh and self._token is not None and getattr(self._handed, "token", None) in (None, self._token.text):
                self._token = None
            if self._token is None or self._clock() >= self._token.until:
                if self._asked != asked and self._failure is not None:
                    # The request failed while this thread waited. Its failure counts here as well, because four
                    # threads would otherwise take four time-outs, one after another.
                    raise type(self._failure)(str(self._failure))
                self._token = self._renewed()
            self._handed.token = self._token.text
            return self._token.text

    def _renewed(self) -> _Token:
        self._failure = None
        try:
            return self._fetched()
        except (UserError, TokenUnavailable) as failure:
            self._failure = failure
            raise
        finally:
            self._asked += 1

    def _fetched(self) -> _Token:
        auth = self._smtp.auth
        if auth is None:
            raise UserError("There is no smtp.auth to get a token by. Add it.")
        now = self._clock()
        answer = _answer(self._smtp, _google(self._smtp, auth) if auth.service_account_file else _microsoft(auth))
        text = answer.get("access_token")
        # Printable ASCII alone (RFC 6749 A.12), because another byte would end the SASL string, or the command.
        if not isinstance(text, str) or re.fullmatch(r"[\x21-\x7e]+", text) is None:
            raise TokenUnavailable("The token endpoint gave an answer without a token in it")
        life = _life(answer.get("expires_in"))
        return _Token(text, now + life - min(_MARGIN, life / 2))


def secret_of(smtp: Smtp) -> Callable[[bool], str | None]:
    """A function that returns the secret for a sign-in: the password, or the token that all sessions share.

    Its argument is true when the relay refused the last one. A password is read anew each time. It raises as `password`
    and `Tokens.token` do, and reads nothing before it is called.
    """
    if smtp.auth is None:
        return lambda _fresh: password(smtp)
    with _sharing:  # because lru_cache alone lets two threads make one each
        return _tokens(smtp).token


_sharing: Final = threading.Lock()


@functools.lru_cache(maxsize=4)  # a reload that changes smtp leaves the old ones behind
def _tokens(smtp: Smtp) -> Tokens:
    return Tokens(smtp)


# -- the two endpoints


def _microsoft(auth: OAuth) -> _Question:
    """Client credentials (RFC 6749 4.4), the secret in the body, as Microsoft's endpoint takes it."""
    secret = client_secret(auth)
    tenant = quote(auth.tenant or "", safe="")
    url = auth.token_url or f"https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token"

    def ask(options: dict[str, Any]) -> dict[str, Any]:
        from authlib.integrations.httpx_client import OAuth2Client  # noqa: PLC0415

        way = "client_secret_post"
        with OAuth2Client(
            auth.client_id, secret, token_endpoint_auth_method=way, scope=MICROSOFT_SCOPE, **options
        ) as client:
            return dict(client.fetch_token(url, grant_type="client_credentials"))

    def mistake(_error: str, words: str) -> str:
        code = _aadsts(words)
        if code not in _MICROSOFT:
            return ""
        what = _MICROSOFT[code].format(tenant=auth.tenant, client_id=auth.client_id)
        return f"{what} (AADSTS{code}). {_MICROSOFT_REMEDIES[code]}"

    return _Question(url, ask, (secret,), mistake)


def _google(smtp: Smtp, auth: OAuth) -> _Question:
    """A signed assertion (RFC 7523) by which this service account acts for `smtp.username`."""
    key = _service_account(service_account_key(auth))
    url = auth.token_url or key["token_uri"]

    def ask(options: dict[str, Any]) -> dict[str, Any]:
        from authlib.integrations.httpx_client import AssertionClient  # noqa: PLC0415
        from joserfc.jwk import RSAKey  # noqa: PLC0415

        signing = RSAKey.import_key(key["private_key"])
        header = {"alg": "RS256"} | ({"kid": key["private_key_id"]} if "private_key_id" in key else {})
        with AssertionClient(
            url, issuer=key["client_email"], subject=smtp.username, claims={"scope": GOOGLE_SCOPE},
            header=header, key=signing, **options,
        ) as client:  # fmt: skip
            return dict(client.refresh_token())

    def mistake(error: str, words: str) -> str:
        for known, wording, told in _GOOGLE:
            if error == known and re.search(wording, words, re.IGNORECASE):
                client_id = key.get("client_id", "of the service account")
                text = told.format(
                    username=smtp.username, account=key["client_email"], client_id=client_id, file=_KEY_FILE
                )
                return f"{text.removesuffix('.')} ({error})."
        return ""

    return _Question(url, ask, (key["private_key"],), mistake)


def _service_account(text: str) -> dict[str, str]:
    """The fields of the key file, with a key that can sign. Raises UserError, which shows nothing of the file."""
    try:
        key = json.loads(text)
    except ValueError:
        raise UserError(f"{_KEY} is not JSON. {_NEW_KEY}") from None
    if not isinstance(key, dict) or key.get("type") != "service_account":
        raise UserError(f"{_KEY} is not the key of a service account, as its type tells. {_NEW_KEY}")
    key = {name: value for name, value in key.items() if isinstance(value, str) and value}
    missing = [name for name in ("client_email", "private_key", "token_uri") if name not in key]
    if missing:
        raise UserError(f"{_KEY} lacks {' and '.join(missing)}. {_NEW_KEY}")
    url = urlsplit(key["token_uri"])
    if (url.scheme != "https" and (url.scheme, url.hostname) != ("http", "127.0.0.1")) or not url.hostname:
        raise UserError(f"{_KEY} has a token_uri that is no https:// address. {_NEW_KEY}")
    if not _signs(key["private_key"]):
        raise UserError(f"{_KEY} has a private_key that is no RSA key in PEM. {_NEW_KEY}")
    return key


def _signs(pem: str) -> bool:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        return isinstance(load_pem_private_key(pem.encode(), None), RSAPrivateKey)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


# -- the request


def _answer(smtp: Smtp, question: _Question) -> dict[str, Any]:
    """The endpoint's JSON. Every exception of the libraries becomes a UserError or a TokenUnavailable here."""
    import httpx2  # noqa: PLC0415
    from authlib.integrations.base_client import OAuthError  # noqa: PLC0415

    where = f"The token endpoint {urlsplit(question.url).hostname}"
    wait = min(smtp.timeout, _LONGEST_WAIT)
    try:
        return question.ask(_options(smtp, question.url, where, wait))
    except OAuthError as error:
        failure = _refusal(where, question, str(error.error), str(error.description or ""))
    except httpx2.TimeoutException:
        failure = TokenUnavailable(f"{where} gave no answer within {wait:g} s")
    except httpx2.TransportError as error:
        failure = _unreachable(where, error)
    except httpx2.InvalidURL:
        failure = UserError(f"{where} has an address that cannot be used. Correct smtp.auth.token_url.")
    except (
        httpx2.HTTPError,
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
    ):  # all that a body of JSON can raise
        failure = TokenUnavailable(f"{where} gave an answer that is no token in JSON")
    raise failure  # outside the handlers, because the chained error of a library would show the request


def _options(smtp: Smtp, url: str, where: str, wait: float) -> dict[str, Any]:
    """The client's options. A proxy of the environment is used, because some firms let no other connection out."""
    import httpx2  # noqa: PLC0415

    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if smtp.ca_file is not None:
        try:
            context.load_verify_locations(smtp.ca_file)
        except OSError as error:
            why = sentence(0, error.strerror or str(error))
            raise UserError(f"smtp.ca_file {smtp.ca_file} cannot be used: {why}. Name a PEM file.") from None
    secure = urlsplit(url).scheme == "https"  # no proxy without TLS, because the proxy would read the secret
    options: dict[str, Any] = {"verify": context, "timeout": wait, "follow_redirects": False, "trust_env": secure}
    try:
        httpx2.Client(**options).close()
    except (ValueError, ImportError):
        words = "The proxy that HTTPS_PROXY or ALL_PROXY names cannot be used"
        raise UserError(f"{words}. Write it as http://host:port, or name the endpoint in NO_PROXY.") from None
    return options | {"event_hooks": {"response": [functools.partial(_heeded, where, time.monotonic() + wait)]}}


def _heeded(where: str, deadline: float, response: httpx2.Response) -> None:
    """Refuse a response by its status, and bound its body, which otherwise dribbles for ever or fills the memory."""
    import httpx2  # noqa: PLC0415

    status = response.status_code
    if 300 <= status < 400:
        raise TokenUnavailable(f"{where} answered with a redirect ({status}), which is not followed")
    if status == 429 or status >= 500:
        raise TokenUnavailable(f"{where} answered {status}")
    stream = response.stream
    assert isinstance(stream, httpx2.SyncByteStream)
    body: httpx2.SyncByteStream = stream

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            length = 0
            for chunk in body:
                length += len(chunk)
                if length > _LONGEST_ANSWER or time.monotonic() > deadline:
                    raise TokenUnavailable(f"{where} gave an answer that does not end")
                yield chunk

        def close(self) -> None:
            body.close()

    response.stream = Bounded()


def _unreachable(where: str, error: Exception) -> UserError | TokenUnavailable:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            words = f"The certificate of {where[0].lower()}{where[1:]} is not trusted: {cause.verify_message}"
            return UserError(
                f"{words}. Set smtp.ca_file to the authority of the proxy that inspects TLS, if there is one."
            )
        cause = cause.__cause__ or cause.__context__
    return TokenUnavailable(f"{where} cannot be reached: {sentence(0, str(error))[:_SHOWN] or type(error).__name__}")


def _refusal(where: str, question: _Question, error: str, words: str) -> UserError | TokenUnavailable:
    shown = _shown(f"{error}: {words}" if words else error, question.secrets)
    if error in _PASSING_ERRORS or _aadsts(words) in _PASSING_CODES:
        return TokenUnavailable(f"{where} has no token just now ({shown})")
    told = question.mistake(error, words)
    return UserError(told or f"{where} refuses to give a token ({shown}). Check smtp.auth and what its files hold.")


def _shown(words: str, secrets: tuple[str, ...]) -> str:
    """The endpoint's words as one short line; every secret, and every word as long as one, becomes `***`."""
    for secret in secrets:
        for form in (secret, quote_plus(secret), quote(secret, safe="")):
            words = words.replace(form, "***")
    words = re.sub(r"[\w.+/=~-]{40,}", "***", words)  # an assertion or a token, whole or cut off
    line = sentence(0, words.partition("Trace ID:")[0]).rstrip(" .")
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


def _aadsts(words: str) -> str:
    found = re.search(r"AADSTS(\d+)", words)
    return found[1] if found else ""


def _life(expires_in: object) -> float:
    """The life of a token in seconds, also where the endpoint writes it as text."""
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, min(float(expires_in), _LONGEST_LIFE))  # type: ignore[arg-type]  # any value of JSON
    return _UNSAID
