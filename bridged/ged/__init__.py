"""Every touch of a client's files.

A file is opened beneath its GED, through no link, on the file system that intake found there. Each touch is a call that
may never return, because a file system may hang. `files` is a public module.
"""

from bridged.ged.calls import HANGING, Call, CalledFile, Calls, Hanging
from bridged.ged.files import is_unreadable
from bridged.ged.mounts import Away, Mounts

__all__ = ["HANGING", "Away", "Call", "CalledFile", "Calls", "Hanging", "Mounts", "is_unreadable"]
