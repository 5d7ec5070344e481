"""Is the way to the relay open, and how fast may it be used?"""

from bridged.line.line import DAY, Line, LineEvent
from bridged.line.restart import keep, resume
from bridged.line.retry import next_due, tried_for

__all__ = ["DAY", "Line", "LineEvent", "keep", "next_due", "resume", "tried_for"]
