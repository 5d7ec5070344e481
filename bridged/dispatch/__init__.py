"""From a row of the journal to the relay's acceptance."""

from bridged.dispatch.claims import Route, Shared
from bridged.dispatch.sender import Sender

__all__ = ["Route", "Sender", "Shared"]
