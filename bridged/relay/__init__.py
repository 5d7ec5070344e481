"""One SMTP conversation, and what it came to."""

from bridged.relay.maildir import Maildir
from bridged.relay.relay import Envelope, Manners, Relay
from bridged.relay.secret_files import client_secret, password, service_account_key
from bridged.relay.tokens import secret_of

__all__ = ["Envelope", "Maildir", "Manners", "Relay", "client_secret", "password", "secret_of", "service_account_key"]
