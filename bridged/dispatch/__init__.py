"""From a row of the journal to the relay's acceptance."""

from bridged.dispatch.claims import Route, Turns
from bridged.dispatch.sender import Dispatch

__all__ = ["Dispatch", "Route", "Turns"]
