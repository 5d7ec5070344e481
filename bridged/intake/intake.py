"""Intake: from a file to a row of the journal. `step` reads as the path of a deposit."""

from __future__ import annotations

import os
import stat
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from bridged.config import SwitchedFolders, components
from bridged.config.settings import Client, Settings
from bridged.ged import Away, Calls, Mounts, files
from bridged.intake import rules
from bridged.intake.changes import Changes, Effects, Memory, Unknown
from bridged.intake.compare import Comparison, Difference
from bridged.intake.ged import Ged
from bridged.intake.sweep import Found, GoneDirectory, Sweep, Times
from bridged.intake.switching import switch_off, withdraw_off
from bridged.intake.waiting import Waiting
from bridged.journal import Journal, JournalUnavailable, Steps, Ticket, Transaction
from bridged.journal.packed import Packed
from bridged.logs import say, say_document
from bridged.model import Instant, Stamp
from bridged.watching import Hint, Hints

BATCH: Final = 500  # differences in one commit; otherwise the senders' commits would wait long
REST: Final = 0.05  # seconds of a pass that only looks at known files, and of rest after it
GONE_FOR: Final = 2.0  # seconds in which a rename may explain a file that has gone
PASS_SHARE: Final = 20  # a pass that took a second is not repeated within 20 seconds
FULL_SHARE: Final = 600  # nor a full pass, where hints tell of saves, within 600 seconds
PASS_AT_MOST: Final = 600.0
FULL_AT_MOST: Final = 7200.0
READING: Final = 0.0002  # seconds for one directory, before any was measured
HINT_LATE: Final = 5.0  # seconds after which a hint that has not come is missing
TOLD_WITHIN: Final = 5.0  # seconds within which a hint tells of a change, unless the observer is silent
LOOKS: Final = 3  # looks at a GED in its first pass
TRIES: Final = 5  # first passes that may meet a disk's error; then the GED is in force all the same
TRY_AGAIN: Final = 0.5
AWAY: Final = 5.0  # seconds after which a GED that is away is looked for again


@dataclass(slots=True)
class Sync:
    """The hint asked for at the end of a pass: when it comes, all earlier changes are told."""

    number: int | None = None
    came: bool = False
    quiet: bool = True  # True while no other hint was followed since it was asked for
    heard_at: float = 0.0  # steady seconds when the last hint was followed, or the sync asked for
    enough_at: float = float("inf")  # steady seconds from which it need not be quiet


_END: Final = GoneDirectory(b"")  # the end of a pass, because no directory has this path
Looked = Mapping[bytes, os.stat_result | OSError | None]


class Intake:
    """Watches one GED and enters its deposits in the journal. One thread at a time calls it.

    `hints` and `waiting.again` may be filled, and `look_anew` be called, by others meanwhile.
    """

    def __init__(
        self,
        path: bytes,
        journal: Journal,
        calls: Calls,
        mounts: Mounts,
        observer: Hints,
        on_queued: Callable[[], None],
        steady: Callable[[], float],
    ) -> None:
        """`steady` measures work. Every decision uses the instant given to `step`, or an instant so much later."""
        self._journal = journal
        self._observer = observer
        self._steady = steady
        self._switched = SwitchedFolders(())
        self._memory = Memory()
        self._revisits: set[bytes] = set()
        self._some_gone = True
        self._missed: Counter[str] = Counter()
        self._untold: dict[bytes, float] = {}
        self._rules = ""
        self._looks = 1
        self._blind = self._told_of_directory = False
        self._sync = Sync()
        self._anew: set[str] = set()
        self.hints: deque[Hint] = deque()
        self.ged = Ged(path, Sweep(path, self._is_on, self._watch), calls, mounts, journal)
        self.waiting = Waiting(path, journal, mounts, on_queued, calls.progress, lambda: self.ged.polling)

    # -- configuration

    def configure(
        self,
        client: Client,
        settings: Settings,
        switched: SwitchedFolders,
        recorded: Collection[str],
        now: Instant,
        *,
        start: bool,
    ) -> None:
        """Put a configuration in force. Folders new to the journal (not `recorded`) hold existing files only."""
        ged = self.ged
        self._settings = settings
        self._switched = switched
        ged.client = client
        former, self._rules = self._rules, rules.written(client, settings)
        if former != self._rules:
            ged.read_all()  # otherwise the pass under way would leave out the files of the previous exclusions
        self._recall_former()
        self._compare = Comparison(ged, self._journal, settings, switched, self._note_untold)
        if ged.state == "new":
            ged.blank = not self._journal.read(lambda tx: tx.knows_any(ged.path))
        patterns = [folder.path for folder in client.switched_folders]
        switch_off(self._journal, ged.path, [p for p in recorded if p not in patterns], switched, client.name)
        ged.unknown = {pattern: kind for pattern, kind in ged.unknown.items() if pattern in patterns}
        for pattern in patterns:
            self._switch_on(pattern, pattern not in recorded, start, now)
        withdraw_off(self._journal, ged.path, switched)
        self.waiting.configure(settings, switched)
        if start:
            ged.starting = True
            ged.unseen_until = self._journal.read(lambda tx: tx.unseen_until(ged.path))
            ged.to_look_at = ged.unseen_until > 0
            ged.recall_unseen()
            self._remember()
            self.waiting.resume()
        ged.sweep.forget_off()

    def _remember(self) -> None:
        """Leave out the directories that the last daemon has read by the same rules, as long as they have not changed.

        Not where overwritten files are sent, because a file overwritten during the stop is not retroactive.
        """
        ged = self.ged
        kept, times = self._journal.read(lambda tx: (tx.kept(ged.rules_key), tx.times_below(ged.path)))
        if kept == self._rules and self._settings.on_overwrite == "ignore" and times:
            ged.sweep.remember(Times(*one) for one in times)
            ged.remembered = True

    def _recall_former(self) -> None:
        """The previous exclusions and ignored names. Files that they hid are existing."""
        ged = self.ged
        kept = self._journal.read(lambda tx: tx.kept(ged.rules_key))
        if kept is None or kept == self._rules:
            ged.former = None
        else:
            ged.former = rules.former(kept, ged.client)
            ged.read_all()

    def _switch_on(self, pattern: str, new: bool, start: bool, now: Instant) -> None:
        ged = self.ged
        if pattern in ged.unknown and not new:
            return
        # Not where a daemon was killed during the first reading, because the rest of the folder is existing, too.
        read = start and pattern in self._journal.read(lambda tx: tx.read_folders(ged.path))
        after_stop: Unknown = "deposit" if self._settings.catch_up else "missed"
        ged.unknown[pattern] = after_stop if read else "existing"
        ged.in_force = False
        ged.read_all()
        ged.sweep.forget()
        if new:
            self._journal.write(lambda tx: tx.switch_on(ged.path, pattern, now.wall))
            say("folder_switched_on", client=ged.client.name, folder=pattern)

    def _is_on(self, directory: bytes) -> bool:
        return self._switched.place(directory) is not None

    def _watch(self, directory: bytes) -> None:
        if not self.ged.polling:
            self._observer.watch(directory)

    # -- the path of a deposit

    @property
    def ready(self) -> bool:
        """Whether every folder is watched and its existing files are known; or the GED is away, and that was told."""
        return self.ged.state == "unreachable" or (self.ged.state == "reachable" and self.ged.in_force)

    def step(self, now: Instant, most: float) -> Steps[float]:
        """Follow hints, sweep a while, queue quiet deposits, bury departed files. Returns seconds until the next step.

        `most`: seconds of a pass.
        """
        self._memory.resume(now.steady)
        try:
            return (yield from self._step(now, most))
        except Exception:
            self._memory.fail(now.steady)
            self.ged.abandon_pass()  # otherwise files that were read and not recorded would be left out
            raise

    def _step(self, now: Instant, most: float) -> Steps[float]:
        began = self._steady()
        self._begin_anew()
        hints = yield from self._follow_hints(now)
        swept = yield from self._sweep(now, most)
        yield from self._revisit(now)
        # The present instant, because other GEDs had turns meanwhile; otherwise a deposit would be quiet too early.
        yield from self.waiting.step(now.later(self._steady() - began), self._examine_now)
        yield from self._bury(now)
        self._accuse(now)
        waits = self._sync.number is not None  # for a hint, which wakes this GED
        rest, took = REST if waits or self.ged.looks_anew else 0.0, self._steady() - began
        self._memory.prolong(now.steady, took)
        return 0.0 if hints else rest if swept else self._wake_in(now.later(took))

    def look_anew(self, how: Literal["soon", "whole", "watch"]) -> None:
        """At the next step begin a pass. "whole": it reads everything; "watch": it asks for all hints again, too."""
        self._anew.add(how)

    def close(self) -> None:
        """Give the descriptors back."""
        self.ged.end_pass()

    def _begin_anew(self) -> None:
        anew = self._anew
        self._anew = anew & {"soon"} if self.ged.running else set()  # the end of a pass puts the next one off
        self.ged.due = 0.0 if "soon" in anew - self._anew else self.ged.due
        if anew - {"soon"}:
            self.ged.read_all()
            self._untold.clear()
        if "watch" in anew:
            self.ged.sweep.forget_times()
            self.ged.watched = False

    def _wake_in(self, now: Instant) -> float:
        wait = max(0.0, min(self.ged.due, self.waiting.due) - now.steady)
        gone = self._some_gone and self.ged.state == "reachable"
        return min(wait, 0.5) if self._memory.awaits_save or gone or self._revisits or self._untold else wait

    # -- hints

    def _follow_hints(self, now: Instant) -> Steps[bool]:
        hints = [self.hints.popleft() for _ in range(min(len(self.hints), BATCH))]
        try:
            yield from self._apply(self._heard(hints, now), now)
        except JournalUnavailable:
            self.hints.extendleft(reversed(hints))  # otherwise a deletion that only a hint tells of would be lost
            raise
        return bool(hints)

    def _heard(self, hints: Sequence[Hint], now: Instant) -> list[Difference]:
        differences: list[Difference] = []
        looked = self._compare.lstats({path for hint in hints for path in (hint.path, hint.dest) if path})
        for hint in hints:
            self.ged.calls.progress()
            self._sync.heard_at = now.steady
            if hint.kind == "sync":
                self._sync.came = self._sync.came or hint.number == self._sync.number
                continue
            self._sync.quiet = False
            for path in (hint.path, hint.dest):
                self._untold.pop(path, None)
            found = self._follow(hint, looked, now)
            self.ged.failed = self.ged.failed or found is None
            differences += found or []
        return differences

    def _follow(self, hint: Hint, looked: Looked, now: Instant) -> list[Difference] | None:
        """The differences of one hint; None where a disk's error stood in the way, which the next try may not meet."""
        try:
            if hint.kind == "moved":
                return self._follow_rename(hint.path, hint.dest, looked, now)
            gone = self._compare.gone(hint.path, _status(looked, hint.path)) if hint.kind == "gone" else []
            return gone + self._look(hint.path, looked, now)
        except OSError as error:
            # The share is away, or a directory cannot be searched any more: the next pass tells.
            self.ged.due = min(self.ged.due, now.steady + TRY_AGAIN)
            return [] if isinstance(error, Away | PermissionError) else None

    def _follow_rename(self, source: bytes, dest: bytes, looked: Looked, now: Instant) -> list[Difference]:
        self.ged.follow_unseen(source, dest)
        status = _status(looked, dest)
        if status is not None and stat.S_ISDIR(status.st_mode):  # the new place first, then the old one
            return self._look(dest, looked, now) + self._look(source, looked, now)
        moved = self._compare.moved(source, dest, status)
        return moved + self._look(source, looked, now) + self._look(dest, looked, now)

    def _look(self, path: bytes, looked: Looked, now: Instant) -> list[Difference]:
        """The differences at one path; raises OSError where they cannot be told."""
        status = _status(looked, path)
        if status is not None and stat.S_ISDIR(status.st_mode):
            self._told_of_directory = True
            return self._look_into(path, now)
        if status is None and path in self.ged.sweep:
            self.ged.sweep.forget_below(path)
        return self._compare.at(path, status)

    def _look_into(self, path: bytes, now: Instant) -> list[Difference]:
        ged = self.ged
        if not self._is_on(path):
            ged.due = min(ged.due, now.steady)  # a directory on the way to a switched folder: expand the patterns again
            return []
        differences: list[Difference] = []
        with files.root(ged.path) as root_fd:
            for found in ged.sweep.met(root_fd, path, now.wall):
                differences += self._compare.of(found)
        return differences

    def _examine_now(self, path: bytes, now: Instant) -> Steps[None]:
        yield from self._apply(self._follow(Hint("look", path), self._compare.lstats([path]), now) or [], now)

    def _revisit(self, now: Instant) -> Steps[None]:
        """Look again at documents that were overwritten during their sending, until the sending has ended."""
        paths, self._revisits = self._revisits, set()
        for path in paths:
            yield from self._examine_now(path, now)

    # -- the sweep

    def _sweep(self, now: Instant, most: float) -> Steps[bool]:
        ged = self.ged
        if ged.running is None and ged.due <= now.steady:
            self._begin_pass(now)
        if ged.running is not None:
            try:
                yield from self._continue_pass(now, most)
            except Away:  # the next pass tells whether the share is back
                ged.abandon_pass()
        return ged.running is not None

    def _interval(self) -> float:
        return self._settings.watch.poll if self.ged.polling else self._settings.watch.sweep

    def _begin_pass(self, now: Instant) -> None:
        ged = self.ged
        ged.due = now.steady + self._interval()
        if not ged.reach(self._settings.watch.mode):
            ged.due = now.steady + min(self._interval(), AWAY)
            return
        self._choose_to_pack()
        ged.full = not ged.remembered and (ged.full or not ged.in_force or now.steady >= ged.full_due)
        ged.started = now
        self._sync, self._looks, self._blind, self._told_of_directory = Sync(), 1, False, False
        ged.unread.clear()
        ged.failed = False
        ged.took = 0.0
        ged.running = self._whole(now, full=ged.full)

    def _whole(self, now: Instant, *, full: bool) -> Iterator[Found | None]:
        ged, ignore = self.ged, self._settings.ignore
        return ged.sweep.whole(ged.root_fd, [components(pattern, ignore) for pattern in ged.unknown], now.wall, full)

    def _choose_to_pack(self) -> None:
        """A first look reads names only. The files are looked at when the daemon is ready.

        Not where overwritten files are sent, because a name does not tell that its file was overwritten.
        """
        ged, settings = self.ged, self._settings
        endings = self._compare.ignored_endings()
        wanted = ged.blank and ged.tells_names and not ged.polling and settings.on_overwrite == "ignore"
        ged.packs = wanted and endings is not None
        ged.sweep.packs, ged.sweep.endings = self._compare.packs if ged.packs else None, endings or ()

    def _continue_pass(self, now: Instant, most: float) -> Steps[None]:
        assert self.ged.running is not None
        began = self._steady()
        differences: list[Difference] = []
        names: list[Packed] = []  # the first findings, as long as they are names only
        entering: list[Ticket[Effects]] = []
        ended = False
        most = min(most, REST) if self.ged.looks_anew else most
        while not ended and self._steady() - began < most and len(differences) < BATCH:
            self.ged.calls.progress()
            found = next(self.ged.running, _END)
            ended = found is _END
            if isinstance(found, Packed) and not differences:
                names.append(found)
            elif found is not None and not ended:
                differences += [self._compare.packed(names)] if names else []
                differences += self._compare.of(found)
                names = []
            if len(names) == BATCH:
                entering.append(self._enter_meanwhile(names, now))
                names = []
        differences += [self._compare.packed(names)] if names else []
        self.ged.took += self._steady() - began
        for ticket in entering:
            self._follow_up(self._journal.settle(ticket), now)
        yield from self._apply(differences, now)
        if ended:
            yield from self._complete_pass(now)

    def _complete_pass(self, now: Instant) -> Steps[None]:
        ged = self.ged
        assert ged.started is not None
        if not ged.in_force and ged.failed and ged.tries < TRIES:
            ged.tries += 1  # otherwise a file that comes before its folder was read would count as a deposit
            ged.read_all()
            ged.due = now.steady + TRY_AGAIN
            return
        if ged.baselines and not self._all_told(now):
            return
        ged.sweep.forget_unmet()
        packs, looked_at_all = ged.packs, ged.full and not ged.packs
        ged.remembered = ged.packs = False
        if not ged.in_force or ged.other:
            yield from self._apply(self._compare.vanished(), now)
        self._tell_missed()  # before the folder is in force, because this line comes before `daemon_ready`
        yield from ged.complete()
        yield from ged.keep_times(self._rules)
        ged.passed_from = ged.started.wall
        ged.watched = True
        ged.due = max(ged.started.steady + self._interval(), now.steady + min(PASS_AT_MOST, PASS_SHARE * ged.took))
        if ged.full or ged.full_due == 0.0:  # at first: the pass left out directories that an earlier daemon has read
            took = ged.took if ged.full else READING * len(ged.sweep)
            longest = PASS_SHARE * took if ged.polling else FULL_SHARE * took
            ged.full_due = now.steady + min(PASS_AT_MOST if ged.polling else FULL_AT_MOST, longest)
        ged.full = False
        ged.end_pass()
        if ged.unseen_until and not packs:  # a pass that packs looks at few files, and the search is long
            ged.unseen_until = self._journal.read(lambda tx: tx.unseen_until(ged.path))
        ged.to_look_at = ged.unseen_until > 0 and (ged.to_look_at or packs) and not looked_at_all
        if ged.to_look_at:
            ged.due = ged.full_due = now.steady + REST

    def _all_told(self, now: Instant) -> bool:
        """Whether all changes during the reading of existing files are known. If not, the pass goes on.

        A file moved from an unread directory into a read one during this pass is existing. Hints tell of it. Where they
        may be missing, there is a second look at changed directories. Where they told of directories there is a third
        look at most, because a hint of a directory does not tell of its files.
        """
        ged = self.ged
        if not (ged.polling or self._blind or self._synced(now)):
            if self._sync.number is not None:
                ged.running = iter(())  # the next step follows hints, and asks again
                return False
            self._blind = True
        partly = ged.polling or self._blind or self._observer.limited or bool(ged.sweep.points)
        if self._looks >= (LOOKS if self._told_of_directory else 2 if partly else 1):
            return True
        self._looks += 1
        self._sync, self._told_of_directory = Sync(), False
        ged.blank = False  # from now on a listing is compared with the journal
        ged.running = self._whole(now, full=False)
        return False

    def _synced(self, now: Instant) -> bool:
        """Whether every hint of a change before the end of the pass was followed.

        A hint followed since may have found nothing, because its file was moved once more: then once again.
        """
        sync = self._sync
        if sync.came and (sync.quiet or now.steady >= sync.enough_at):
            return True
        if sync.came or sync.number is None:
            enough_at = min(sync.enough_at, now.steady + TOLD_WITHIN) if sync.came else sync.enough_at
            number = self._observer.sync(self.ged.path)
            self._sync = Sync(number, heard_at=now.steady, enough_at=enough_at)
        elif now.steady >= sync.heard_at + TOLD_WITHIN and not self._observer.behind:  # the observer is silent
            self._sync = Sync()
        return False

    def _tell_missed(self) -> None:
        for pattern, count in self._missed.items():
            why = "deposited while the daemon was stopped"
            say("document_missed", client=self.ged.client.name, folder=pattern, count=count, reason=why)
        self._missed.clear()

    def _note_untold(self, path: bytes, stamp: Stamp) -> None:
        """A sweep met a deposit that has been there for a while. Its directory is watched, and no hint came."""
        ged = self.ged
        if ged.running is None or ged.started is None or ged.polling or not (ged.in_force and ged.watched):
            return
        if ged.started.wall - stamp.ctime_ns / 1e9 > HINT_LATE:
            self._untold.setdefault(path, self._steady())

    def _accuse(self, now: Instant) -> None:
        """Tell the observer that it is silent. Not where it is only behind, because the hint is still in its queue."""
        if self._untold and not self.hints and now.steady - min(self._untold.values()) > HINT_LATE:
            self._untold.clear()
            self._observer.missed_one()

    # -- differences

    def _apply(self, differences: list[Difference], now: Instant) -> Steps[None]:
        for start in range(0, len(differences), BATCH):
            self.ged.calls.progress()
            part = differences[start : start + BATCH]
            effects = yield partial(self._decide, part, now)
            self._follow_up(effects, now)

    def _enter_meanwhile(self, found: Sequence[Packed], now: Instant) -> Ticket[Effects]:
        """Begin to enter first looks: another thread waits for the disk while the next directories are read.

        The ticket is settled before the step ends. Otherwise files would count as known before their commit.
        """
        ticket = self._journal.post(partial(self._decide, [self._compare.packed(found)], now))
        self.ged.calls.start(self.ged.path, self._journal.flush)
        return ticket

    def _decide(self, differences: list[Difference], now: Instant, tx: Transaction) -> Effects:
        self.ged.require_configured()
        changes = Changes(tx, self._settings, self._switched, self._memory, now)
        for difference in differences:
            difference(changes)
        return changes.effects

    def _follow_up(self, effects: Effects, now: Instant) -> None:
        for event, document, fields in effects.lines:
            if document is None:
                say(event, **fields)
            else:
                say_document(event, document, **fields)
        effects.memories.apply()
        self._missed.update(effects.missed)
        self._revisits |= effects.revisit
        self._some_gone = self._some_gone or bool(effects.gone)
        self.waiting.add(effects, now, self._steady())

    # -- departures

    def _bury(self, now: Instant) -> Steps[None]:
        self._memory.expire(now.steady)
        if not self._some_gone or self.ged.state != "reachable":
            return
        gone = self._journal.read(lambda tx: tx.gone(self.ged.path))
        self._some_gone = bool(gone)
        ready = [known for known in gone if self.ged.may_bury(known, now, GONE_FOR)]
        yield from self._apply([lambda changes, k=known: changes.bury(k) for known in ready], now)  # type: ignore[misc]


def _status(looked: Looked, path: bytes) -> os.stat_result | None:
    status = looked[path]
    if isinstance(status, OSError):
        raise status
    return status
