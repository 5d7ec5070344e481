"""A firm's machine in small: a GED, a configuration, the installed command in a subprocess, and a scripted relay."""

from __future__ import annotations

import contextlib
import email
import email.policy
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from bridged.commands import main
from bridged.model import readable
from tests.support.relay import ScriptedRelay

INSTALLED = COMMAND = str(Path(sys.executable).with_name("bridged"))
LAUNCHER = str(Path(__file__).with_name("launch.py"))
WITHIN = 60.0  # seconds: a busy machine may take so long to start a daemon


def until(condition: Callable[[], Any], what: str, within: float = WITHIN) -> Any:
    """Wait for a condition with a deadline; its truthy value is returned."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {within} s: {what}")


class Bridge:
    """One bridge under test. `settings` and `clients` are YAML lines; GEDs are directories below `base`."""

    def __init__(self, base: Path, relay: ScriptedRelay, mode: str = "inotify") -> None:
        self.base, self.relay, self.mode = base, relay, mode
        self.ged = base / "ged"
        self.inbox = self.ged / "Achats"
        self.outside = base / "outside"
        for directory in (self.inbox, self.ged / "Notes", self.ged / "Brouillons", self.outside):
            directory.mkdir(parents=True)
        self.config = base / "bridged.yaml"
        self.log = base / "log"
        self.extra = ""
        self.more_clients = ""
        self.folders = "[Achats, Notes]"
        self.watch = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._arrived: list[tuple[str, bytes]] = []
        self._lines: list[dict[str, Any]] = []
        self._read = 0  # bytes of the log

    def text(self) -> str:
        """The configuration as it is to be now."""
        return (
            f"smtp: {{host: 127.0.0.1, port: {self.relay.port}, security: plain, sender: factures@cabinet.example}}\n"
            "retry: {first: 300ms, max: 1s}\n"
            f"watch: {{mode: {self.mode}, quiet: 250ms, sweep: 1s, poll: 300ms{self.watch}}}\n"
            f"state_dir: {self.base}/state\n{self.extra}\nclients:\n"
            f"  - {{name: Martin, ged: {self.ged}, collection_email: Martin@collecte.example,"
            f" switched_folders: {self.folders}}}\n{self.more_clients}"
        )

    def start(self) -> Bridge:
        """Run the daemon and wait until it is ready."""
        self.config.write_text(self.text())
        ready = self.count("daemon_ready")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*daemon(), "run", "--config", self.config], stderr=log)
        until(lambda: self.count("daemon_ready") > ready, "daemon_ready")
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the daemon and return its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(12)

    def run(self, *arguments: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
        """Another command on the same configuration."""
        command = [COMMAND, arguments[0], "--config", self.config, *arguments[1:]]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def command(self, *arguments: str | os.PathLike[str]) -> Result:
        """Another command in this process. Only to prepare a test, because it is not the installed command."""
        told = [os.fspath(argument) for argument in (arguments[0], "--config", self.config, *arguments[1:])]
        return CliRunner().invoke(main, told)

    def rows(self, *options: str) -> list[dict[str, Any]]:
        """The rows of `bridged documents`."""
        return [json.loads(line) for line in self.run("documents", "--json", *options).stdout.splitlines()]

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        """The log lines, or those of one event. Each line is read once, because tests ask every 20 ms."""
        if self.log.exists():
            with self.log.open("rb") as log:
                log.seek(self._read)
                whole = log.read().rpartition(b"\n")[0]
            self._lines += [json.loads(line) for line in whole.splitlines()]
            self._read += len(whole) + bool(whole)
        return [line for line in self._lines if not event or line["event"] == event]

    def count(self, event: str) -> int:
        """How often an event was logged."""
        return len(self.lines(event))

    def wait_for(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """The lines of an event, once there are so many."""
        return until(lambda: self.count(event) >= count and self.lines(event), f"{count} {event}")

    def sent(self) -> Counter[str]:
        """How often each document name has arrived at the relay."""
        return Counter(name for name, _ in self.arrived())

    def arrived(self) -> list[tuple[str, bytes]]:
        """The attachments that the relay accepted: name and bytes."""
        for mail in list(self.relay.mails)[len(self._arrived) :]:
            self._arrived.append(attachment(mail.data))
        return list(self._arrived)

    def settle(self) -> None:
        """Wait until no document is on its way, then until a later deposit is sent: no other deposit was overlooked."""
        until(self._all_have_left, "no document on its way")
        probe = self.inbox / f"probe-{time.monotonic_ns()}.txt"
        probe.write_bytes(b"a later deposit")
        until(lambda: self.sent()[probe.name], "a later deposit is sent")
        until(self._all_have_left, "no document on its way")

    def _all_have_left(self) -> bool:
        """The journal says so. `bridged status` would, too, but starting it costs half a second of a processor."""
        on_the_way = "SELECT count(*) FROM documents WHERE state IN ('waiting', 'queued', 'sending', 'sent')"
        return self.journal(on_the_way) == [(0,)]

    def document_states(self) -> list[tuple[str, str]]:
        """Name and state of each document. `bridged documents` would tell, too, at the cost of its start."""
        found = self.journal("SELECT path, state FROM documents ORDER BY seq")
        return [(readable(os.path.basename(path)), state) for path, state in found]

    def journal(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of the journal, also while the daemon runs."""
        with contextlib.closing(sqlite3.connect(f"file:{self.base}/state/journal.sqlite?mode=ro", uri=True)) as found:
            return found.execute(sql).fetchall()

    def expect(self, *names: str) -> None:
        """Exactly these documents have left, once each (probes apart)."""
        until(lambda: self.sent().keys() >= set(names), f"{names} sent, got {self.sent()}")
        self.settle()
        left = Counter(n for n in self.sent().elements() if not n.startswith("probe-"))
        assert left == Counter(names), left


def daemon(*faults: str) -> list[str]:
    """The command for a daemon with these faults of launch.py. Its wishes run twice, but for a test's own COMMAND."""
    if COMMAND != INSTALLED and not faults:
        return [COMMAND]
    return [sys.executable, LAUNCHER, ",".join((*faults, "wishes_run_twice"))]


def attachment(raw: bytes) -> tuple[str, bytes]:
    """Name and bytes of a mail's one attachment."""
    message = email.message_from_bytes(raw, policy=email.policy.default)
    part = next(message.iter_attachments())
    return str(part.get_filename()), part.get_payload(decode=True)


def sha256(content: bytes) -> str:
    """As the marker writes it."""
    return hashlib.sha256(content).hexdigest()
