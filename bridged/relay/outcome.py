"""What one conversation with the relay came to. Outcomes are values; mistakes are exceptions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accepted:
    """2yz after the final dot."""

    reply: str


@dataclass(frozen=True, slots=True)
class Deferred:
    """4yz for this document or this address."""

    reply: str


@dataclass(frozen=True, slots=True)
class Refused:
    """5yz for this document, or larger than the relay's SIZE. `certain`: no other document would have been refused."""

    reply: str
    certain: bool = False


@dataclass(frozen=True, slots=True)
class AddressRefused:
    """5yz for this collection email, whatever is sent there."""

    reply: str


@dataclass(frozen=True, slots=True)
class Uncertain:
    """The connection was lost after the final dot: it may have been accepted."""

    detail: str


@dataclass(frozen=True, slots=True)
class RelayDown:
    """The line or the relay is in trouble; the document had no part in it.

    `signing_in`: the line is well, but nobody can sign in just now, and asking often would lock the account.
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
    """The account has used up what it may send in a day (or an hour): only time helps."""

    reply: str


Outcome = Accepted | Deferred | Refused | AddressRefused | Uncertain | RelayDown | Misconfigured | Throttled | Exhausted


def is_relays(outcome: Outcome | Exception) -> bool:
    """Whether the relay or the line is in trouble, so that no other mail would fare better now."""
    return isinstance(outcome, RelayDown | Misconfigured | Throttled | Exhausted)
