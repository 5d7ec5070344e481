"""Alerts on their way, by any relay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bridged import mail
from bridged.alerts.letters import Letter
from bridged.config.settings import Smtp
from bridged.relay import Relay, secret_of
from bridged.relay.outcome import Misconfigured, Outcome, RelayDown, is_relays

Deliver = Callable[[Smtp, Sequence[str], bytes], Mapping[str, Outcome | Exception]]


class Post:
    """Sends alerts by any relay: one session for each letter, one mail for each address."""

    def __init__(self) -> None:
        self._relay: Relay | None = None
        self._aborted = False

    def __call__(self, smtp: Smtp, to: Sequence[str], mail: bytes) -> dict[str, Outcome | Exception]:
        """The outcome of each address. After the relay's trouble no further address is tried, and it is missing."""
        outcomes: dict[str, Outcome | Exception] = {}
        relay = self._relay = Relay(smtp, secret_of(smtp))
        try:
            if self._aborted:  # abort() may have come before this relay existed
                relay.abort()
            for address in to:
                outcomes[address] = relay.deliver(smtp.sender, address, len(mail), iter([mail]), lambda: None)
                if is_relays(outcomes[address]):
                    break
        finally:
            relay.close()
        return outcomes

    def abort(self) -> None:
        """Break the mail in transit for good, from any thread. No later mail leaves."""
        self._aborted = True
        if self._relay is not None:
            self._relay.abort()


def composed(letter: Letter, smtp: Smtp, to: Sequence[str], identity: str, at: float) -> bytes:
    """The letter as a mail, ready for the wire."""
    return mail.letter(
        sender=smtp.sender,
        to=to,
        subject=letter.subject,
        text=letter.text,
        message_id=mail.new_message_id(identity, smtp.sender),
        date=mail.frozen_date(at),
    )


def is_login(outcome: Outcome | Exception) -> bool:
    """Whether the relay refused the login, so that a soon repeated try may lock the account."""
    return isinstance(outcome, Misconfigured) or (isinstance(outcome, RelayDown) and outcome.signing_in)


def words_of(outcome: Outcome | Exception) -> str:
    """The outcome in words: the relay's own where there are any."""
    if isinstance(outcome, Exception):
        return f"{type(outcome).__name__}: {outcome}"
    return str(getattr(outcome, "reply", "") or getattr(outcome, "detail", ""))
