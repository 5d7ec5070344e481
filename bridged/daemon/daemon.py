"""The daemon: two halves in their loops, signals, reload, control, and the word to systemd."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import signal
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

from bridged import __version__, logs
from bridged.alerts import Alerting, refused_at_start
from bridged.config import ConfigError, Problem, SwitchedFolders, load
from bridged.config.settings import Settings
from bridged.daemon import control, systemd
from bridged.daemon.loops import Loop, instant, woken_by_signals
from bridged.dispatch import Route, Sender, Shared
from bridged.ged import Calls, Mounts
from bridged.intake import Rounds
from bridged.journal import Journal, JournalUnavailable
from bridged.journal.values import Query
from bridged.line import Line, resume
from bridged.logs import say, say_document
from bridged.marker import Marking
from bridged.model import Document, Instant, State, UserError
from bridged.relay import Outbox

TICK: Final = 1.0  # seconds between two looks at the configuration file; a signal ends the wait
TICK_AT_FIRST: Final = 0.02  # seconds of the same until it is ready, because a person or systemd waits for that
FINISH_WITHIN: Final = 6.0  # seconds for the mail under way at SIGTERM, before it is broken off
ABANDON_WITHIN: Final = 2.0  # seconds for a sender whose mail is broken off
GATHER: Final = 0.005  # seconds that markers wait for others, because together they cost a fraction
GATHER_HINTS: Final = 0.002  # seconds that hints wait for others; a lone document waits as long
MARK_WITHIN: Final = 1.0  # seconds for the last markers at the stop; the next start writes the rest
STALLED: Final = 120.0  # seconds without a step of a half, after which WATCHDOG=1 is withheld
RELOAD_WITHIN: Final = 100.0  # seconds that a reload waits until it is in force


class Daemon:
    """One running bridge. `reload` may be called from any thread."""

    def __init__(self, config_path: Path, settings: Settings, journal: Journal, *, dry_run: bool = False) -> None:
        self._dry_run = dry_run
        self._config_path = config_path
        self._settings = settings
        self._journal = journal
        self._since = time.time()
        self._stop = threading.Event()
        self._reload_wanted = threading.Event()
        self._signalled: deque[int] = deque()
        self._reload_lock = threading.Lock()
        self._ready = False
        self._fed_at = 0.0
        self._file_seen = self._file_identity()
        self._line = _new_line(journal, settings)
        outbox = Outbox()
        self._shared = Shared(outbox)
        self._calls = Calls(time.monotonic)
        self._mounts = Mounts()
        self._marking = Marking(
            journal,
            settings,
            self._calls,
            self._mounts,
            dry_run=dry_run,
            wake=self._wake_marking,
        )
        self._intake_loop = Loop("intake", self._step_intake, gather=GATHER_HINTS)
        self._rounds = Rounds(
            journal, self._calls, self._mounts, self._intake_loop.wake.set, self._wake_senders, instant
        )
        self._alerting = Alerting(journal, settings, outbox)
        self._alerting_loop = Loop("alerts", self._alerting.step)
        self._reconfigure: Settings | None = None
        self._marking_loop = Loop("marking", lambda now: self._marking.step(now.wall), gather=GATHER, once_more=True)
        self._senders: list[tuple[Sender, Loop]] = []
        self._server = control.ControlServer(settings.state_dir, self._answer, _tell_mistake)

    # -- life

    def run(self) -> int:
        """Run until SIGTERM or SIGINT. Returns the exit code."""
        gc.set_threshold(50_000, 20, 50)  # a first look makes millions of objects and hardly a cycle
        self._signals()
        logs.listen(self._alerting.hear)
        self._recover()
        if self._line.state != "up":  # said again, because a reader of the log may begin at this start
            self._tell_line("It was so at the stop; ")
        self._rounds.configure(self._settings, start=True)
        self._hire()
        for loop in (self._intake_loop, self._marking_loop, self._alerting_loop):
            loop.start()
        self._server.start()
        with woken_by_signals() as wait:
            while not self._stop.is_set():
                self._tend()
                wait(self._tick())
                self._heed_signals()
        self._shut_down()
        return 0

    def _tick(self) -> float:
        if not self._ready:
            return TICK_AT_FIRST
        return min(TICK, (systemd.watchdog_interval() or float("inf")) / 8)

    def _signals(self) -> None:
        threading.excepthook = lambda death: _tell_death(death.exc_value, death.thread)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # Only noted: a handler interrupts this thread anywhere, also where it holds the lock of an Event.
            signal.signal(number, lambda received, _: self._signalled.append(received))
        signal.signal(
            signal.SIGIO, signal.SIG_IGN
        )  # the kernel's default for the signal of a lease is to end the process

    def _heed_signals(self) -> None:
        while self._signalled:
            wanted = self._reload_wanted if self._signalled.popleft() == signal.SIGHUP else self._stop
            wanted.set()

    def _recover(self) -> None:
        for document in self._journal.write(lambda tx: tx.recover()):
            say_document("document_resumed", document, uncertain=document.dotted)
        for document in self._documents(Query(states=(State.QUEUED, State.SENT))):
            say_document("document_resumed", document, state=document.state.value)

    def _documents(self, query: Query) -> list[Document]:
        return self._journal.read(lambda tx: tx.documents(query))

    def _tell_line(self, since: str = "") -> None:
        hint = "when it is mended, `bridged reload` tries at once."
        if self._line.quota == "ours":  # no probe can end our own quota
            hint = "it goes on as the first of these mails become a day old."
        more: dict[str, Any] = {"quota": True} if self._line.quota else {}
        remedy = since + hint if since else hint.capitalize()
        say(self._line.event, reason=self._line.detail, relay=self._settings.smtp.host, remedy=remedy, **more)

    def _tend(self) -> None:
        if not self._ready and self._rounds.ready:
            self._ready = True
            say("daemon_ready", folders=sum(len(c.switched_folders) for c in self._settings.clients))
            systemd.notify(f"READY=1\nSTATUS=watching {len(self._settings.clients)} clients")
            _settle_down()
        self._look_at_file()
        if self._reload_wanted.is_set() and self._ready:
            self._reload_wanted.clear()
            threading.Thread(target=self.reload, name="reload", daemon=True).start()
        self._feed_watchdog()

    def _feed_watchdog(self) -> None:
        interval = systemd.watchdog_interval()
        if interval is not None and time.monotonic() - self._fed_at > interval / 4 and self._progressing():
            self._fed_at = time.monotonic()
            systemd.notify("WATCHDOG=1")

    def _progressing(self) -> bool:
        """True when both halves have made a step lately. A thread that lives may stand still."""
        now = time.monotonic()
        busy = (
            self._settings.smtp.timeout + 660.0
        )  # ten minutes for the reply to the dot (RFC 5321 4.5.3.2.6), and one more
        senders = all(now - loop.stepped_at < busy for _, loop in self._senders)
        return senders and now - self._intake_loop.stepped_at < STALLED and self._journal.busy_for() < STALLED

    def _shut_down(self) -> None:
        say("daemon_stopping")
        systemd.notify("STOPPING=1")
        self._server.close()
        loops = [self._intake_loop, self._alerting_loop, *(loop for _, loop in self._senders)]
        for sender, _ in self._senders:
            sender.finish()
        for loop in loops:
            loop.stop()
        self._alerting.abort()  # an alert that is broken off leaves after the next start
        deadline = time.monotonic() + FINISH_WITHIN
        for loop in loops:
            loop.join(max(0.0, deadline - time.monotonic()))
        for sender, loop in self._senders:
            if loop.is_alive():
                sender.abort()
                loop.join(ABANDON_WITHIN)
        for sender, loop in self._senders:
            if not loop.is_alive():
                sender.close()
        if not self._alerting_loop.is_alive():
            self._alerting.close(instant())
        self._journal.flush()  # acceptances first, because markers may wait for a share
        self._marking_loop.stop()  # after the senders, so that their last documents get their markers
        self._marking_loop.join(MARK_WITHIN)
        if not self._intake_loop.is_alive():
            self._rounds.close()
        say("daemon_stopped")
        logs.listen(None)

    # -- the halves

    def _step_intake(self, now: Instant) -> float:
        wanted = self._reconfigure
        if wanted is not None:
            self._rounds.configure(wanted, start=False)
            self._reconfigure = None  # after `configure`, because `_is_in_force` reads it
        return self._rounds.step(now)

    def _wake_marking(self) -> None:
        self._marking_loop.wake.set()

    def _wake_senders(self) -> None:
        for _, loop in self._senders:
            loop.wake.set()

    def _hire(self) -> None:
        """Hire or dismiss senders, until there are `smtp.connections` of them, and give each the configuration."""
        switched = SwitchedFolders(self._settings.clients, self._settings.ignore)
        maildir = self._settings.state_dir / "Maildir" if self._dry_run else None
        route = Route(self._settings, switched, self._line, maildir)
        for sender, _ in self._senders:
            sender.configure(route)
        while len(self._senders) < self._settings.smtp.connections:
            number = len(self._senders)
            sender = Sender(
                self._journal,
                number,
                route,
                self._shared,
                self._marking,
                self._calls,
                self._mounts,
                random.random,
                instant,
                self._rounds.again,
            )
            loop = Loop(f"dispatch-{number + 1}", sender.step)
            self._senders.append((sender, loop))
            loop.start()
        while len(self._senders) > self._settings.smtp.connections:
            sender, loop = self._senders.pop()
            self._dismiss(sender, loop)

    def _dismiss(self, sender: Sender, loop: Loop) -> None:
        sender.finish()
        loop.stop()
        loop.join(FINISH_WITHIN)
        if loop.is_alive():
            sender.abort()
            loop.join(ABANDON_WITHIN)
        if not loop.is_alive():
            sender.close()

    # -- reload

    def _file_identity(self) -> tuple[int, int, int, int] | None:
        try:
            status = os.stat(self._config_path)
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size

    def _look_at_file(self) -> None:
        """Ask for a reload when the file has changed: in place, by a rename, or by a link on the way to it."""
        seen = self._file_identity()
        if seen is not None and seen != self._file_seen and self._ready:
            self._file_seen = seen
            self._reload_wanted.set()

    def reload(self) -> dict[str, Any]:
        """Put the file in force whole, or not at all. Returns the verdict once it is in force, or after 100 s."""
        with self._reload_lock:
            self._file_seen = self._file_identity()
            self._line.probe_now()
            try:
                settings = load(self._config_path, dry_run=self._dry_run)
                self._require_same_state(settings)
            except ConfigError as error:
                problems = [str(problem) for problem in error.problems]
                say("config_rejected", problems=problems)
                return {"ok": False, "problems": problems}
            self._put_in_force(settings)
            say("config_reloaded", clients=len(settings.clients))
            return {"ok": True}

    def _require_same_state(self, settings: Settings) -> None:
        if settings.state_dir != self._settings.state_dir:
            message = f"The running daemon keeps its state in {self._settings.state_dir}."
            remedy = "Stop it, move that directory, and start it again; or leave state_dir as it was."
            raise ConfigError([Problem(str(self._config_path), 1, "state_dir", message, remedy)])

    def _put_in_force(self, settings: Settings) -> None:
        told = self._line.state
        if settings.smtp != self._settings.smtp or settings.retry != self._settings.retry:
            self._line = _new_line(self._journal, settings)
            self._line.probe_now()
            if told != "up":  # otherwise the alerts would keep the old relay's condition for ever
                self._line.owe_recovery()
        self._settings = settings
        if told == "up" and self._line.state != "up":
            self._tell_line()
        logs.configure(settings.log.format, settings.log.level)
        self._marking.configure(settings)
        self._alerting.configure(settings)
        self._reconfigure = settings
        self._intake_loop.wake.set()
        self._hire()
        deadline = time.monotonic() + RELOAD_WITHIN
        while not self._is_in_force() and time.monotonic() < deadline and not self._stop.wait(0.05):
            pass
        self._wake_senders()

    def _is_in_force(self) -> bool:
        return self._reconfigure is None and self._rounds.ready

    # -- control

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        command = request.get("command")
        if command == "reload":
            return self.reload()
        if command == "status":
            return self._status()
        if command == "wake":
            self._tell("document_released", request.get("released", []))
            self._tell("document_withdrawn", request.get("dropped", []))
            self._line.probe_now()
            self._wake_senders()
            return {"ok": True}
        return {"ok": False, "error": f"The daemon knows no command {command!r}."}

    def _tell(self, event: str, ids: list[str]) -> None:
        for identity in ids:
            for document in self._documents(Query(id=str(identity))):
                say_document(event, document, **({"reason": document.reason} if document.reason else {}))

    def _status(self) -> dict[str, Any]:
        relay = {"state": self._line.state, "detail": self._line.detail}
        folders = self._rounds.status()
        return {"ok": True, "pid": os.getpid(), "since": self._since, "relay": relay, "folders": folders}


def _settle_down() -> None:
    """Keep the objects of the first look out of garbage collection, and give its memory back."""
    gc.collect()
    gc.freeze()  # otherwise each collection would go through a million objects that stay
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # malloc_trim(3); glibc has it, musl has not
    if trim is not None:
        trim(0)


def _tell_mistake(error: Exception) -> None:
    say("state_failed", half="control", reason=f"{type(error).__name__}: {error}", exc_info=True)


def _tell_death(error: BaseException | None, thread: threading.Thread | None) -> None:
    """Log the death of a thread, most likely one of watchdog's. A bare traceback would be no log line."""
    say("state_failed", half=thread.name if thread else "", reason=f"{type(error).__name__}: {error}")


def _new_line(journal: Journal, settings: Settings) -> Line:
    smtp = settings.smtp
    signs_in = smtp.username is not None
    line = Line(settings.retry, smtp.connections, smtp.rate, daily_quota=smtp.daily_quota, careful=signs_in)
    resume(journal, smtp, line, instant())
    return line


def _journal(state_dir: Path) -> Journal:
    """The journal. An error of its opening names the file system too, where that is not known as local."""
    try:
        return Journal(state_dir)
    except JournalUnavailable as error:
        place = control.where(state_dir)
        if place:
            raise UserError(f"{error} {place}") from error
        raise


def run(config_path: Path, *, dry_run: bool = False) -> int:
    """Run `bridged run`, and return its exit code. Raises UserError (75: another instance; 78: configuration)."""
    try:
        settings = load(config_path, dry_run=dry_run)
    except ConfigError as error:
        logs.configure("auto", "info")
        if not dry_run:
            refused_at_start(config_path, [str(problem) for problem in error.problems], time.time())
        raise
    logs.configure(settings.log.format, settings.log.level)
    lock = control.lock(settings.state_dir)
    try:
        more: dict[str, Any] = {"dry_run": True, "maildir": str(settings.state_dir / "Maildir")} if dry_run else {}
        say("daemon_started", version=__version__, config=str(config_path), pid=os.getpid(), **more)
        journal = _journal(settings.state_dir)
        try:
            return Daemon(config_path, settings, journal, dry_run=dry_run).run()
        finally:
            journal.close()
    finally:
        os.close(lock)
