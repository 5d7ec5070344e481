"""Every touch of a client's files: opened beneath the GED, on the file system that was found there, by calls that may
never return.
"""

from bridged.ged.calls import HANGING, Call, CalledFile, Calls, Hanging
from bridged.ged.mounts import Away, Mounts

__all__ = ["HANGING", "Away", "Call", "CalledFile", "Calls", "Hanging", "Mounts"]
