"""The daemon as a process: started under strace or with limits, killed at a chosen step, and looked at in /proc."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import packages
from tests.support.bridge import Bridge, attachment, daemon, sha256, until

NAMED = "temporary_files_have_names"

needs_strace = packages.needs("strace")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this to a file system")


def rows(bridge: Bridge, *options: str) -> list[dict[str, Any]]:
    """The rows of `bridged documents`."""
    told = bridge.run("documents", "--json", *options)
    assert told.returncode == 0, told.stderr
    return [json.loads(line) for line in told.stdout.splitlines()]


def states(bridge: Bridge) -> dict[str, str]:
    """Document name -> state; a name that the journal has twice fails."""
    found = bridge.document_states()
    assert len(dict(found)) == len(found), found
    return dict(found)


def journal(bridge: Bridge, sql: str) -> list[tuple[Any, ...]]:
    """Rows of the journal, also while the daemon runs."""
    return bridge.journal(sql)


def launch(
    bridge: Bridge, before: Sequence[str] = (), faults: Sequence[str] = (), **options: Any
) -> subprocess.Popen[bytes]:
    """Run the daemon behind another command (`strace -D`, so that the child is the daemon itself); do not wait.

    `faults` are those of launch.py.
    """
    bridge.config.write_text(bridge.text())
    with bridge.log.open("ab") as log:
        bridge.process = subprocess.Popen(
            [*before, *daemon(*faults), "run", "--config", bridge.config], stderr=log, **options
        )
    return bridge.process


def strace(trace: Path, **injections: str) -> list[str]:
    """A command to run the daemon behind. Each injection names its system call, the n-th of a thread.

    -D: the child is the daemon, and strace a grandchild that ends with it. A kill comes before the call.
    No --seccomp-bpf: strace 6.1 loses count with it.
    """
    told = [f"--inject={syscall}:{what}" for syscall, what in injections.items()]
    return ["strace", "-D", "-f", "-qq", "-o", os.fspath(trace), f"--trace={','.join(injections)}", *told]


@contextlib.contextmanager
def standing_still(bridge: Bridge) -> Iterator[None]:
    """Stop all threads of the daemon, none of them in the middle of a system call.

    For cutting the power. After a real cut, acknowledged bytes are there. But ext4's ioctl, called during an fdatasync,
    lets the fdatasync succeed and loses its bytes (11 of 120 with nothing but SQLite).
    """
    assert bridge.process is not None
    process = bridge.process
    process.send_signal(signal.SIGSTOP)
    try:
        tasks = Path(f"/proc/{process.pid}/task")
        until(lambda: all(_state(task) == "T" for task in tasks.iterdir()), "every thread is stopped")
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(") ")[2][:1]


def ended(bridge: Bridge) -> bool:
    """Whether the daemon has ended."""
    assert bridge.process is not None
    return bridge.process.poll() is not None


def ready_or_ended(bridge: Bridge, before: int) -> bool:
    """Wait until the daemon is ready once more than `before`, or dead; whether it is ready."""
    until(lambda: ended(bridge) or bridge.count("daemon_ready") > before, "daemon_ready, or its end")
    return not ended(bridge)


def mails_of(bridge: Bridge, name: str) -> list[bytes]:
    """Every mail that carried the document of that name."""
    return [mail.data for mail in list(bridge.relay.mails) if attachment(mail.data)[0] == name]


def marker_of(document: Path) -> dict[str, Any]:
    """The whole marker beside a document, which speaks of these very bytes."""
    marker = json.loads(document.with_name(f"{document.name}.validated.json").read_text())
    assert marker["sha256"] == sha256(document.read_bytes())
    assert marker["size"] == document.stat().st_size
    return marker


def leftovers(directory: Path) -> list[str]:
    """Temporary files of markers in a tree."""
    return [path.name for path in directory.rglob(".bridged-*")]


def once_each(bridge: Bridge, names: Sequence[str], at_most: Callable[[str], int] = lambda _: 1) -> None:
    """Each of these and nothing else (probes apart) has left, at most so often, a repetition with identical bytes."""
    left: dict[str, list[bytes]] = {}
    for mail in list(bridge.relay.mails):
        left.setdefault(attachment(mail.data)[0], []).append(mail.data)
    left = {name: mails for name, mails in left.items() if not name.startswith("probe-")}
    assert set(left) == set(names), set(left) ^ set(names)
    for name, mails in left.items():
        assert len(mails) <= at_most(name), (name, len(mails))
        assert len(set(mails)) == 1, name


def proc(bridge: Bridge, what: str) -> dict[str, int]:
    """The numbers of /proc/PID/status or /proc/PID/io of the daemon."""
    assert bridge.process is not None
    lines = Path(f"/proc/{bridge.process.pid}/{what}").read_text().splitlines()
    fields = (line.replace(":", " ").split() for line in lines)
    return {words[0]: int(words[1]) for words in fields if len(words) > 1 and words[1].isdecimal()}


def descriptors(bridge: Bridge) -> list[str]:
    """The open files of the daemon."""
    assert bridge.process is not None
    found = []
    for fd in Path(f"/proc/{bridge.process.pid}/fd").iterdir():
        try:
            found.append(os.readlink(fd))
        except FileNotFoundError:
            continue
    return found
