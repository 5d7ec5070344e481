"""A bridge without its threads: the same halves, journal, files and sockets, stepped by hand, with a clock of our own.

It can be killed at the n-th commit of the journal, before or after it is on the disk.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridged import logs
from bridged.config import SwitchedFolders, load
from bridged.dispatch import Route, Sender, Shared
from bridged.ged import Calls, Mounts
from bridged.intake import Rounds
from bridged.journal import Journal
from bridged.journal.values import Query
from bridged.line import Line
from bridged.marker import Marking
from bridged.model import Document, Instant, State
from bridged.relay import Outbox
from tests.support.bridge import attachment
from tests.support.relay import Received, ScriptedRelay

CLIENTS = {"Martin": "martin@collecte.example", "Dupont": "dupont@collecte.example"}


class Killed(BaseException):
    """kill -9."""


class MortalJournal(Journal):
    """A journal whose process can be killed around a commit."""

    commits_to_live: int | None = None
    after = False
    dead = False

    def flush(self) -> None:
        """A posted wish dies with the process."""
        if not self.dead:
            super().flush()

    def _commit_all(self) -> None:
        if self.dead:
            raise Killed
        if self.commits_to_live is None:
            super()._commit_all()
            return
        self.commits_to_live -= 1
        if self.commits_to_live > 0:
            super()._commit_all()
            return
        self.dead = True
        if self.after:
            super()._commit_all()
        raise Killed


class Firm:
    """Two clients, one relay, one bridge that may be dead or alive."""

    def __init__(self, base: Path, relay: ScriptedRelay, mode: str) -> None:
        self.base, self.relay, self.mode = base, relay, mode
        self.offset = 0.0
        self.kills = 0
        self.notes_on = True
        self.config = base / "bridged.yaml"
        for client in CLIENTS:
            for folder in ("Achats/sub", "Notes", "Brouillons"):
                (base / client / folder).mkdir(parents=True)
        self.alive = False
        self.log = io.StringIO()
        logs.configure("json", "warning", self.log)

    def said(self, event: str) -> list[str]:
        """The log lines of an event."""
        return [line for line in self.log.getvalue().splitlines() if f'"event": "{event}"' in line]

    # -- life

    def start(self) -> None:
        """Read the configuration, recover, and look once at everything, as `bridged run` does until it is ready."""
        self.config.write_text(self._text())
        settings = load(self.config)
        settings.state_dir.mkdir(mode=0o700, exist_ok=True)
        self.journal = MortalJournal(settings.state_dir)
        self.calls = Calls(time.monotonic)
        self.mounts = Mounts()
        self.marking = Marking(self.journal, settings, self.calls, self.mounts)
        self.line = Line(settings.retry, 1)
        self.outbox = Outbox()
        self.shared = Shared(self.outbox)
        self.rounds = Rounds(self.journal, self.calls, self.mounts, lambda: None, lambda: None, self.now)
        self.sender = Sender(
            self.journal,
            0,
            self._route(settings),
            self.shared,
            self.marking,
            self.calls,
            self.mounts,
            lambda: 0.5,
            self.now,
            self.rounds.again,
        )
        self.alive = True
        self.journal.write(lambda tx: tx.recover())
        self.rounds.configure(settings, start=True)
        self.look(until=lambda: self.rounds.ready)

    def stop(self) -> None:
        """SIGTERM."""
        self.sender.close()
        self._end()

    def reload(self) -> None:
        """SIGHUP."""
        self.config.write_text(self._text())
        settings = load(self.config)
        self.marking.configure(settings)
        self.rounds.configure(settings, start=False)
        self.sender.configure(self._route(settings))
        self.look(until=lambda: self.rounds.ready)

    def doom(self, commits: int, *, after: bool) -> None:
        """The process will be killed at that commit from now, before or after it is on the disk."""
        self.journal.after = after
        self.journal.commits_to_live = commits

    def mortal(self, act: Callable[[], None]) -> bool:
        """Do something that may meet a doom; whether the bridge has survived it."""
        try:
            act()
        except Killed:
            self.kills += 1
            self.journal.dead = True
            self.sender.abort()
            self.sender._relay.close()  # the socket only: a killed process records nothing more
            self._end()
        return self.alive

    def _end(self) -> None:
        self.alive = False
        with contextlib.suppress(Killed):
            self.rounds.close()
        self.journal.close()

    def _route(self, settings: Any) -> Route:
        return Route(settings, SwitchedFolders(settings.clients, settings.ignore), self.line)

    def _text(self) -> str:
        folders = "[Achats, Notes]" if self.notes_on else "[Achats]"
        clients = "".join(
            f"  - {{name: {name}, ged: {self.base}/{name}, collection_email: {address}, switched_folders: {folders}}}\n"
            for name, address in CLIENTS.items()
        )
        return (
            f"smtp: {{host: 127.0.0.1, port: {self.relay.port}, security: plain, sender: factures@cabinet.example}}\n"
            "retry: {first: 30s, max: 30m, uncertain_attempts: 50}\n"
            f"watch: {{mode: {self.mode}, quiet: 2s, sweep: 5s, poll: 1s}}\n"
            f"state_dir: {self.base}/state\nclients:\n{clients}"
        )

    # -- time

    def now(self) -> Instant:
        """Real time, and the skipped time."""
        return Instant(time.time() + self.offset, time.monotonic() + self.offset)

    def look(self, until: Callable[[], bool] = lambda: True, seconds: float = 6.0) -> None:
        """Let intake work for some seconds of the bridge's time, and further until a condition holds."""
        # A file's times are as coarse as 4 ms, and the next change must not share them. And a hint takes its real time,
        # 50 ms where the other half of a rename is waited for, while our seconds pass in no time.
        time.sleep(0.01 if self.mode == "polling" else 0.12)
        deadline, end = time.monotonic() + 20, self.now().steady + seconds
        while self.now().steady < end or not until():
            assert time.monotonic() < deadline, "intake does not come to an end"
            while self.rounds.step(self.now()) == 0:
                pass
            self.offset += 1.0

    def deliver(self) -> None:
        """Let the sender and the markers work, over the longest pause that either may make."""
        self.offset += 7200
        self.line.probe_now()
        for _ in range(200):
            if self.sender.step(self.now()) > 0:
                break
        while self.marking.step(self.now().wall) == 0:
            pass

    # -- looking at it

    def mails(self) -> list[Received]:
        """The mails that the relay has accepted, or kept without an answer."""
        return list(self.relay.mails)

    def sent(self) -> Counter[bytes]:
        """How often each content has left."""
        return Counter(attachment(mail.data)[1] for mail in self.mails())

    def rows(self) -> list[Document]:
        """The journal's documents."""
        return self.journal.read(lambda tx: list(tx.documents()))

    def release(self) -> None:
        """`bridged release --all`"""

        def release(tx: Any) -> None:
            for document in tx.documents(Query(states=(State.HELD,))):
                tx.release(document, self.now().wall)

        self.journal.write(release)

    def markers(self) -> list[tuple[Path, dict[str, Any]]]:
        """Every marker in the GEDs, read."""
        found = [p for client in CLIENTS for p in (self.base / client).rglob("*.validated*.json")]
        return [(path, json.loads(path.read_text())) for path in found]


def header(mail: Received, name: str) -> str:
    """One header's value."""
    found = re.search(rb"(?mi)^" + name.encode() + rb": (.*)\r$", mail.data)
    assert found is not None
    return found.group(1).decode()


def files_below(root: Path) -> list[Path]:
    """Every file, hidden ones too."""
    return [Path(directory, name) for directory, _, names in os.walk(root) for name in names]
