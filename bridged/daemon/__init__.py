"""The loops, the signals, the reload, and the socket by which a command reaches them."""

from pathlib import Path

from bridged.daemon.control import ask, require_local

__all__ = ["ask", "require_local", "run"]


def run(config: Path, *, dry_run: bool = False) -> int:
    """Run the daemon in the foreground until a signal ends it. Returns the exit code.

    The daemon's modules are imported here, because each other command starts in half the time without the observer.
    """
    from bridged.daemon.daemon import run as run_in_foreground  # noqa: PLC0415

    return run_in_foreground(config, dry_run=dry_run)
