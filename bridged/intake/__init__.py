"""From a file to a row of the journal."""

from bridged.intake.quiet import HEAD
from bridged.intake.rounds import Rounds
from bridged.intake.sweep import Listing, Sweep, Unreadable
from bridged.intake.switching import new_document

__all__ = ["HEAD", "Listing", "Rounds", "Sweep", "Unreadable", "new_document"]
