"""Every touch of a client's files: opened beneath the GED, on the file system that was found there, by calls that may
never return.
"""

from bridged.ged.calls import HANGING, Call, Hanging, Patience, PatientFile
from bridged.ged.mounts import Away, Shares

__all__ = ["HANGING", "Away", "Call", "Hanging", "Patience", "PatientFile", "Shares"]
