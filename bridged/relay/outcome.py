"""The outcome of one conversation with the relay. An outcome is a value; a mistake is an exception. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accepted:
    """2yz to the final dot: the relay answers for the mail now (RFC 5321 4.2.5)."""

    reply: str


@dataclass(frozen=True, slots=True)
class Deferred:
    """4yz for this document or this address: it is tried again."""

    reply: str


@dataclass(frozen=True, slots=True)
class Refused:
    """5yz for this document, or a mail above the relay's SIZE. `certain`: the document itself is the cause."""

    reply: str
    certain: bool = False


@dataclass(frozen=True, slots=True)
class AddressRefused:
    """5yz for this collection email, with any document."""

    reply: str


@dataclass(frozen=True, slots=True)
class Uncertain:
    """The line was lost after the final dot: the document may have been accepted."""

    detail: str


@dataclass(frozen=True, slots=True)
class RelayDown:
    """The line or the relay is in trouble, and nothing is counted against the document.

    `signing_in`: the line is well and no session can sign in now. Probes are rare then, because tries lock the account.
    """

    detail: str
    signing_in: bool = False


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """A person must act: authentication, certificate, STARTTLS or sender refused."""

    detail: str


@dataclass(frozen=True, slots=True)
class Throttled:
    """The relay asks for fewer messages or fewer connections."""

    reply: str


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The account has used up its quota of a day or an hour. Only time ends it."""

    reply: str


Outcome = Accepted | Deferred | Refused | AddressRefused | Uncertain | RelayDown | Misconfigured | Throttled | Exhausted


def is_relays(outcome: Outcome | Exception) -> bool:
    """Whether the relay or the line is in trouble, so that no other mail would fare better now."""
    return isinstance(outcome, RelayDown | Misconfigured | Throttled | Exhausted)
