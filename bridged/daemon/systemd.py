"""The notifications to systemd, as in sd_notify(3)."""

from __future__ import annotations

import os
import socket
from typing import Final

_PATIENCE: Final = 1.0  # seconds; otherwise a systemd that no longer reads would stop the daemon


def notify(text: str) -> None:
    """Send a notification, if systemd started this process. A failure is passed over, because the work goes on."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # the abstract namespace
    # "\n" alone parts assignments. Other breaks become blanks, because the name of a client may hold them.
    message = "\n".join("".join(c if c.isprintable() else " " for c in line) for line in text.split("\n"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(_PATIENCE)
        try:
            channel.connect(address)
            channel.send(message.encode())
        except OSError:
            return


def watchdog_interval() -> float | None:
    """Seconds within which systemd wants WATCHDOG=1 of this process; None when it wants none."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) else None
