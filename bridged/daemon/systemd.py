"""What systemd is told: sd_notify(3), in a few lines of our own."""

from __future__ import annotations

import os
import socket
from typing import Final

_PATIENCE: Final = 1.0  # a supervisor that no longer reads must not stop the daemon either


def notify(text: str) -> None:
    """Send a notification; nothing happens outside systemd. A supervisor that has gone must not stop the daemon."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # the abstract namespace
    # Only "\n" parts assignments; other breaks, which a name may hold, are blanks.
    message = "\n".join("".join(c if c.isprintable() else " " for c in line) for line in text.split("\n"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(_PATIENCE)
        try:
            channel.connect(address)
            channel.send(message.encode())
        except OSError:
            return


def watchdog_interval() -> float | None:
    """Seconds within which systemd wants a sign of progress; None when it wants none of this process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) else None
