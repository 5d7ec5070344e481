"""Intake: from a file to a row of the journal. `step` reads as the path of a deposit."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from typing import Any, Final

from bridged import files
from bridged.admit import verdict
from bridged.changes import Changes, Effects, Memory, Unknown
from bridged.config import Client, Settings
from bridged.folders import Place, SwitchedFolders, components
from bridged.ged import Ged, is_in
from bridged.journal import Journal, Transaction
from bridged.known import SPECIAL, KnownFile, split
from bridged.logs import say, say_document
from bridged.mark import find, is_leftover
from bridged.model import Instant, Stamp, State, readable
from bridged.sweep import Found, GoneDirectory, Listing, Sweep, Unreadable
from bridged.waiting import Waiting
from bridged.watch import Hint, Watcher

BATCH: Final = 500  # differences in one commit, so that the senders' commits need not wait long
SLICE: Final = 0.2  # seconds of one pass before hints and quiet documents get their turn
GONE_FOR: Final = 2.0  # seconds in which a rename may explain a file that has gone
PASS_SHARE: Final = 20  # a pass that took a second is not repeated within 20
FULL_SHARE: Final = 200  # nor, where hints tell of saves, a full one within 200
FULL_AT_MOST: Final = 600.0
HINT_LATE: Final = 5.0  # seconds after which a hint that has not come is missing
RESTART_AT_MOST: Final = 60.0  # an observer is not restarted more often (seconds)

Difference = Callable[[Changes], None]


class Intake:
    """Watches the GEDs it is given and enters their deposits in the journal. One thread calls it."""

    def __init__(
        self,
        journal: Journal,
        settings: Settings,
        observe: Callable[[], Watcher | None],
        steady: Callable[[], float],
    ) -> None:
        """`observe` starts an observer, None where the kernel grants none; `steady` measures a slice of work.

        Every decision uses the instant given to `step`.
        """
        self._journal = journal
        self._settings = settings
        self._observe = observe
        self._watcher = observe()
        self._untold = False
        self._restarted_at = float("-inf")
        self._steady = steady
        self._switched = SwitchedFolders(())
        self._geds: dict[bytes, Ged] = {}
        self._memory = Memory()
        self._revisits: set[bytes] = set()
        self._limit_told = False
        self.waiting = Waiting(journal, settings)

    # -- configuration

    def configure(self, settings: Settings, now: Instant, start: bool) -> None:
        """Put a configuration in force. Folders new to the journal hold existing files only."""
        self._settings = settings
        self._switched = SwitchedFolders(settings.clients, settings.ignore)
        recorded = self._journal.read(lambda tx: tx.folders())
        wanted = {(os.fsencode(c.ged), f.path): c for c in settings.clients for f in c.switched_folders}
        self._switch_off([key for key in recorded if key not in wanted])
        for (ged, pattern), client in wanted.items():
            new = (ged, pattern) not in recorded
            self._switch_on(self._ged(ged, client), pattern, new, start, now)
        for gone in set(self._geds) - {ged for ged, _ in wanted}:
            self._geds.pop(gone).end_pass()
        self.waiting.configure(settings, self._switched)
        if start:
            self.waiting.resume()

    def _ged(self, path: bytes, client: Client) -> Ged:
        ged = self._geds.get(path)
        if ged is None:
            sweep = Sweep(path, self._is_on, self._watch)
            ged = self._geds[path] = Ged(client, sweep)
        ged.client = client
        kept = {folder.path for folder in client.switched_folders}
        ged.unknown = {pattern: kind for pattern, kind in ged.unknown.items() if pattern in kept}
        return ged

    def _switch_on(self, ged: Ged, pattern: str, new: bool, start: bool, now: Instant) -> None:
        if pattern in ged.unknown and not new:
            return
        after_stop: Unknown = "deposit" if self._settings.catch_up else "missed"
        ged.unknown[pattern] = "existing" if new or not start else after_stop
        ged.end_pass()
        ged.due, ged.full = 0.0, True
        ged.sweep.forget()
        if new:
            self._journal.write(lambda tx: tx.switch_on(ged.path, pattern, now.wall))
            say("folder_switched_on", client=ged.client.name, folder=pattern)

    def _switch_off(self, folders: Sequence[tuple[bytes, str]]) -> None:
        for ged, pattern in folders:
            withdrawn = self._journal.write(lambda tx, g=ged, p=pattern: _switched_off(tx, g, p, self._switched))  # type: ignore[misc]
            for document in withdrawn:
                say_document("document_withdrawn", document, reason="switched_off")
            say("folder_switched_off", ged=readable(ged), folder=pattern)

    def _is_on(self, directory: bytes) -> bool:
        return self._switched.place(directory) is not None

    def _watch(self, directory: bytes) -> None:
        ged = self._geds.get(self._switched.ged_of(directory) or b"")
        if self._watcher is None or ged is None or ged.polling:
            return
        try:
            self._watcher.watch(directory)
        except OSError as error:
            if error.errno == 28 and not self._limit_told:  # ENOSPC
                self._limit_told = True
                say(
                    "watch_limit_reached",
                    reason="the kernel grants no more watches; what it does not tell is found by the sweep."
                    " Raise fs.inotify.max_user_watches.",
                )

    # -- the path of a deposit

    @property
    def ready(self) -> bool:
        """Every reachable switched folder is being watched and its existing files are known."""
        return all(
            ged.state == "unreachable" or (ged.state == "reachable" and ged.in_force)
            for ged in list(self._geds.values())
        )

    def step(self, now: Instant) -> float:
        """Follow hints, sweep a while, queue what is quiet, bury what has gone. Returns seconds until the next."""
        hints = self._follow_hints(now)
        swept = self._sweep(now)
        self._revisit(now)
        self.waiting.step(now, self._examine_now)
        self._bury(now)
        self._check_observer(now)
        return 0.0 if hints or swept else self._wake_in(now)

    def close(self) -> None:
        """Give the watches and descriptors back."""
        for ged in self._geds.values():
            ged.end_pass()
        if self._watcher is not None:
            self._watcher.close()

    def _wake_in(self, now: Instant) -> float:
        dues = [ged.due for ged in self._geds.values()] + [self.waiting.due]
        wait = min(dues, default=now.steady + 1.0) - now.steady
        return max(0.0, min(wait, 0.5 if self._memory.tombstones or self._some_gone or self._revisits else 1.0))

    # -- hints

    def _follow_hints(self, now: Instant) -> bool:
        hints = self._watcher.drain(BATCH) if self._watcher else []
        differences: list[Difference] = []
        for hint in dict.fromkeys(hints):
            differences += self._follow(hint, now)
        self._apply(differences, now)
        return bool(hints)

    def _follow(self, hint: Hint, now: Instant) -> list[Difference]:
        if hint.kind == "lost":
            say("hints_lost", reason="the kernel's queue overflowed; a sweep is reading the folders instead")
            for ged in self._geds.values():
                ged.end_pass()
                ged.due, ged.full = 0.0, True
            return []
        if hint.kind == "moved":
            return self._moved(hint) + self._examine(hint.path, now) + self._examine(hint.dest, now)
        return (self._gone(hint.path) if hint.kind == "gone" else []) + self._examine(hint.path, now)

    def _moved(self, hint: Hint) -> list[Difference]:
        place = self._place(hint.dest)
        status = self._lstat(hint.dest)
        if place is None or status is None or self._switched.ged_of(hint.path) != place.ged:
            return []

        def move(changes: Changes) -> None:
            known = changes._tx.known(hint.path)  # noqa: SLF001 - one room, two files
            if known is not None and known.stamp != SPECIAL and not self._still_there(known):
                changes.renamed(known, hint.dest)

        return [move]

    def _gone(self, path: bytes) -> list[Difference]:
        """Deleted, or moved out. A file with the very same times is one that a look has seen since: a late hint."""
        known = self._journal.read(lambda tx: tx.known(path))
        status = self._lstat(path)
        if known is None or status is None or files.stamp_of(status) == known.stamp:
            return []
        return [lambda changes: changes.deleted(path)]

    def _examine(self, path: bytes, now: Instant) -> list[Difference]:
        """Look at one path."""
        ged = self._geds.get(self._switched.ged_of(path) or b"")
        if ged is None or ged.state != "reachable" or not ged.same_root():
            return []
        status = self._lstat(path)
        if status is not None and stat.S_ISDIR(status.st_mode):
            return self._examine_directory(ged, path, now)
        place = self._place(path)
        if status is None:
            if path in ged.sweep:
                ged.sweep.forget_below(path)
            gone_directory: Difference = lambda changes: changes.missing_directory(path)  # noqa: E731
            return [lambda changes: changes.missing(path), gone_directory]
        if place is None:
            return []
        entry = files.entry_of(split(path)[1], status)
        return self._difference(place, path, entry, ged)

    def _examine_directory(self, ged: Ged, path: bytes, now: Instant) -> list[Difference]:
        if self._switched.place(path) is None:
            ged.due = min(ged.due, now.steady)  # a folder on the way to a switched one: expand the patterns again
            return []
        differences: list[Difference] = []
        with files.root(ged.path) as root_fd:
            for found in ged.sweep.below(root_fd, path, now.wall, full=False):
                differences += self._compare(ged, found)
        return differences

    def _revisit(self, now: Instant) -> None:
        """Look again at documents that were overwritten while they were being sent, until they are not any more."""
        paths, self._revisits = self._revisits, set()
        for path in paths:
            self._examine_now(path, now)

    def _examine_now(self, path: bytes, now: Instant) -> None:
        self._apply(self._examine(path, now), now)

    def _check_observer(self, now: Instant) -> None:
        """A new observer where the old one is dead, or alive and silent: a sweep found what it should have told."""
        if self._watcher is None or now.steady - self._restarted_at < RESTART_AT_MOST:
            return
        if self._watcher.alive and not self._untold:
            return
        why = "a sweep found a deposit that no hint had told of" if self._watcher.alive else "one of its threads died"
        old, self._watcher = self._watcher, self._observe()
        self._restarted_at, self._untold = now.steady, False
        old.close()
        for ged in self._geds.values():
            ged.end_pass()
            ged.sweep.forget()
            ged.due, ged.full, ged.watched = 0.0, True, False
        say("observer_restarted", reason=why)

    # -- the sweep

    def _sweep(self, now: Instant) -> bool:
        began = self._steady()
        for ged in self._geds.values():
            if ged.running is None and ged.due <= now.steady:
                self._begin_pass(ged, now)
            if ged.running is not None:
                self._continue_pass(ged, now, began)
        return any(ged.running is not None for ged in self._geds.values())

    def _begin_pass(self, ged: Ged, now: Instant) -> None:
        interval = self._settings.watch.poll if ged.polling else self._settings.watch.sweep
        ged.due = now.steady + interval
        if not ged.reach(self._journal, self._settings.watch.mode):
            ged.due = now.steady + min(interval, 5.0)
            return
        ged.full = ged.full or not ged.in_force or now.steady >= ged.full_due
        ged.started = now
        patterns = [components(pattern) for pattern in ged.unknown]
        ged.running = ged.sweep.whole(ged.root_fd, patterns, now.wall, ged.full)

    def _continue_pass(self, ged: Ged, now: Instant, began: float) -> None:
        assert ged.running is not None
        differences: list[Difference] = []
        while self._steady() - began < SLICE and len(differences) < BATCH:
            found = next(ged.running, None)
            if found is None:
                self._apply(differences, now)
                self._complete_pass(ged, now)
                return
            differences += self._compare(ged, found)
        self._apply(differences, now)

    def _complete_pass(self, ged: Ged, now: Instant) -> None:
        assert ged.started is not None
        took = self._steady() - ged.started.steady
        first = not ged.in_force
        if first:
            self._apply(self._vanished_while_stopped(ged), now)
            ged.unknown = dict.fromkeys(ged.unknown, "deposit")
        ged.passed_from = ged.started.wall
        ged.watched = True
        interval = self._settings.watch.poll if ged.polling else self._settings.watch.sweep
        ged.due = max(ged.started.steady + interval, now.steady + PASS_SHARE * took)
        if ged.full:
            share = PASS_SHARE if ged.polling else FULL_SHARE
            ged.full_due = now.steady + min(FULL_AT_MOST, share * took)
        ged.full = False
        ged.end_pass()

    def _vanished_while_stopped(self, ged: Ged) -> list[Difference]:
        """Directories that the journal knows and the first pass did not meet."""
        known = self._journal.read(lambda tx: tx.directories_below(ged.path))
        return [
            lambda changes, d=directory: changes.missing_directory(d)  # type: ignore[misc]
            for directory in known
            if directory not in ged.sweep and not any(is_in(directory, t) for t in ged.troubled)
        ]

    # -- differences

    def _compare(self, ged: Ged, found: Found) -> list[Difference]:
        if isinstance(found, Unreadable):
            return self._unreadable(ged, found)
        if isinstance(found, GoneDirectory):
            directory = found.directory
            return [lambda changes: changes.missing_directory(directory)]
        place = self._switched.place(found.directory)
        if place is None:
            return []
        ged.troubled.discard(found.directory)
        return self._listed(ged, place, found)

    def _listed(self, ged: Ged, place: Place, listing: Listing) -> list[Difference]:
        known = self._journal.read(lambda tx: tx.known_in(listing.directory))
        self._remove_leftovers(ged, listing)
        entries = [e for e in listing.entries if e.kind != "directory"]
        if not known and self._unknown(ged, place) == "existing":
            return self._baseline(ged, place, listing.directory, entries)
        differences: list[Difference] = []
        for entry in entries:
            before = known.get(entry.name)
            if before is None and entry.stamp is not None:
                self._note_untold(ged, entry, entry.stamp)
            if before is None or before.stamp != (entry.stamp or SPECIAL) or before.gone_at is not None:
                differences += self._difference(place, listing.directory + b"/" + entry.name, entry, ged)
        for name in known.keys() - {e.name for e in entries}:
            path = known[name].path
            if known[name].gone_at is None and self._lstat(path) is None:
                differences.append(lambda changes, p=path: changes.missing(p))  # type: ignore[misc]
        return differences

    def _note_untold(self, ged: Ged, entry: files.Entry, stamp: Stamp) -> None:
        """A deposit that has been there for a while, and no hint came although its directory is watched."""
        started = ged.started.wall if ged.started is not None else 0.0
        old = started - stamp.ctime_ns / 1e9 > HINT_LATE
        if ged.running is not None and ged.in_force and not ged.polling and ged.watched and old:
            self._untold = self._untold or not (self._limit_told or self._verdict(entry.name))

    def _difference(self, place: Place, path: bytes, entry: files.Entry, ged: Ged) -> list[Difference]:
        unknown = self._unknown(ged, place)
        if entry.stamp is None:
            if entry.kind == "file" or self._verdict(entry.name):
                return []  # a file that cannot be looked at: nothing is concluded
            return [lambda changes: changes.special(path, entry.kind.removeprefix("other:"), unknown)]
        stamp = entry.stamp
        return [lambda changes: changes.found(place, path, stamp, unknown)]

    def _baseline(self, ged: Ged, place: Place, directory: bytes, entries: list[files.Entry]) -> list[Difference]:
        """The first look at a folder: everything is existing. Written in bulk, since there may be a million."""
        names = [(e.name, e.stamp or SPECIAL) for e in entries if not self._verdict(e.name)]
        adopted = self._adopted(ged, place, directory, entries)
        rows = [row for row in names if row[0] not in adopted]
        if not names:
            return []

        def know(changes: Changes) -> None:
            changes._tx.know_all(directory, rows)  # noqa: SLF001 - one room, two files

        return [know, *adopted.values()]

    def _adopted(self, ged: Ged, place: Place, directory: bytes, entries: list[files.Entry]) -> dict[bytes, Difference]:
        """Files whose valid marker stands beside them. Only where a marker's name is seen is anything read."""
        options = self._settings.marker
        if not any(options.suffix.encode() in e.name for e in entries):
            return {}
        found: dict[bytes, Difference] = {}
        with files.root(ged.path) as root_fd, files.directories(root_fd, directory[len(ged.path) + 1 :]) as (fd,):
            for entry in entries:
                stamp, path = entry.stamp, directory + b"/" + entry.name
                marker = None
                if stamp is not None and not self._verdict(entry.name):
                    marker = find(fd, entry.name, options.suffix, options.hidden)
                if stamp is not None and marker is not None and marker.size == stamp.size:
                    found[entry.name] = lambda changes, p=path, s=stamp, m=marker: changes.adopt(place, p, s, m)  # type: ignore[misc]
        return found

    def _unknown(self, ged: Ged, place: Place) -> Unknown:
        return ged.unknown.get(place.folder.path, "existing")

    def _unreadable(self, ged: Ged, found: Unreadable) -> list[Difference]:
        if found.directory not in ged.troubled:
            ged.troubled.add(found.directory)
            folder = readable(found.directory[len(ged.path) + 1 :])
            say("folder_unreachable", client=ged.client.name, folder=folder, reason=found.why)
        return []

    def _remove_leftovers(self, ged: Ged, listing: Listing) -> None:
        """Temporary markers of a crash: the instance lock says that nobody is writing one before we are ready."""
        if ged.in_force:
            return
        for entry in listing.entries:
            if entry.stamp is not None and is_leftover(entry.name):
                with files.root(ged.path) as root_fd:
                    files.remove(root_fd, (listing.directory + b"/" + entry.name)[len(ged.path) + 1 :])

    def _apply(self, differences: list[Difference], now: Instant) -> None:
        for start in range(0, len(differences), BATCH):
            part = differences[start : start + BATCH]
            effects = self._journal.write(lambda tx, p=part: self._decide(tx, p, now))  # type: ignore[misc]
            self._follow_up(effects, now)

    def _decide(self, tx: Transaction, differences: list[Difference], now: Instant) -> Effects:
        changes = Changes(tx, self._settings, self._switched, self._memory, self._still_there, now)
        for difference in differences:
            difference(changes)
        return changes.effects

    def _follow_up(self, effects: Effects, now: Instant) -> None:
        for event, document, fields in effects.lines:
            if document is None:
                say(event, **fields)
            else:
                say_document(event, document, **fields)
        for (ged, pattern), count in effects.missed.items():
            client = self._geds[ged].client.name
            say(
                "document_missed",
                client=client,
                folder=pattern,
                count=count,
                reason="deposited while the daemon was stopped",
            )
        self._revisits |= effects.revisit
        self.waiting.add(effects, now)

    # -- departures

    _some_gone = False

    def _bury(self, now: Instant) -> None:
        self._memory.expire(now.steady)
        gone = self._journal.read(lambda tx: tx.gone(now.wall))
        self._some_gone = bool(gone)
        ready = [known for known in gone if self._may_bury(known, now)]
        self._apply([lambda changes, k=known: changes.bury(k) for known in ready], now)  # type: ignore[misc]

    def _may_bury(self, known: KnownFile, now: Instant) -> bool:
        """No rename has explained it in time, and where only sweeps see renames, a whole one has been made since."""
        ged = self._geds.get(self._switched.ged_of(known.path) or b"")
        assert known.gone_at is not None
        if ged is None or ged.state != "reachable" or not 0 <= now.wall - known.gone_at < GONE_FOR:
            return ged is not None and ged.state == "reachable" and (not ged.polling or ged.passed_from > known.gone_at)
        return False

    # -- looks

    def _place(self, path: bytes) -> Place | None:
        return self._switched.place(split(path)[0])

    def _verdict(self, name: bytes) -> str | None:
        marker = self._settings.marker
        return verdict(name, extra=self._settings.ignore, marker=marker.suffix, hidden=marker.hidden)

    def _lstat(self, path: bytes) -> os.stat_result | None:
        ged = self._switched.ged_of(path)
        if ged is None:
            return None
        try:
            with files.root(ged) as root_fd:
                return files.lstat(root_fd, path[len(ged) + 1 :])
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _still_there(self, known: KnownFile) -> bool:
        status = self._lstat(known.path)
        return status is not None and stat.S_ISREG(status.st_mode) and files.stamp_of(status).same_file(known.stamp)

    def status(self) -> list[dict[str, Any]]:
        """Per switched folder: how it is watched and whether it is reachable."""
        return [
            {
                "ged": readable(path),
                "folder": pattern,
                "watch_mode": "polling" if ged.polling else "inotify",
                "reachable": ged.state == "reachable",
            }
            for path, ged in list(self._geds.items())
            for pattern in ged.unknown
        ]


def _switched_off(tx: Transaction, ged: bytes, pattern: str, switched: SwitchedFolders) -> list[Any]:
    """Forget the folder and withdraw what had not left; what another folder still covers is not touched."""
    tx.switch_off(ged, pattern)
    for directory in tx.directories_below(ged):
        if switched.place(directory) is None:
            tx.forget_in(directory)
    withdrawn = []
    for state in (State.WAITING, State.QUEUED):
        for document in list(tx.documents("state = ? AND ged = ?", (state.value, ged))):
            if switched.place(document.directory) is None:
                tx.move(document.seq, state, State.WITHDRAWN, reason="switched_off")
                withdrawn.append(document)
    return withdrawn
