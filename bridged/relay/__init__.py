"""One SMTP conversation, and what it came to."""

from bridged.relay.maildir import Maildir
from bridged.relay.outbox import Outbox, Outgoing
from bridged.relay.relay import Relay
from bridged.relay.secret_files import client_secret, password, service_account_key
from bridged.relay.tokens import secret_of

__all__ = ["Maildir", "Outbox", "Outgoing", "Relay", "client_secret", "password", "secret_of", "service_account_key"]
