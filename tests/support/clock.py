"""Runs bridged by a clock of its own: `clock.py FILE COMMAND...`, where FILE holds how many seconds it is off."""

from __future__ import annotations

import sys
import time
from pathlib import Path

OFFSET = Path(sys.argv[1])
_real = time.time


def _time() -> float:
    """The wall clock as it would be after the jump; time.monotonic is left alone, as by a real one."""
    try:
        return _real() + float(OFFSET.read_text())
    except ValueError:  # it is just being written
        return _time()


if __name__ == "__main__":
    time.time = _time
    sys.argv = sys.argv[2:]
    from bridged.commands import main

    main()
