"""One GED as intake sees it: is it there, and is it the same file system as before?"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bridged.config.settings import Client
from bridged.ged import Calls, Mounts, files
from bridged.intake.changes import Unknown
from bridged.intake.rules import Former
from bridged.intake.sweep import Found, Sweep, Times
from bridged.journal import Journal, Steps, Transaction
from bridged.journal.values import KnownFile, Mounted
from bridged.logs import say
from bridged.model import Instant, readable
from bridged.paths import is_in

TIMES: Final = 5000  # directories whose times are entered in one commit


class Retired(OSError):
    """The GED is no longer configured."""


@dataclass(slots=True)
class Ged:
    """A client's GED, the state of its sweep, and the kind of an unknown file in each of its folders."""

    path: bytes
    sweep: Sweep
    calls: Calls
    mounts: Mounts
    journal: Journal
    client: Client = field(init=False)
    polling: bool = True
    unknown: dict[str, Unknown] = field(default_factory=dict)
    state: str = "new"  # new | reachable | unreachable
    running: Iterator[Found | None] | None = None
    root_fd: int = -1
    started: Instant | None = None
    passed_from: float = 0.0  # seconds since the epoch when the last complete pass began
    due: float = 0.0
    full_due: float = 0.0
    took: float = 0.0  # seconds of work in the pass under way
    full: bool = True
    in_force: bool = False  # True while every folder has had its first complete pass
    blank: bool = False  # True while the journal knows nothing of it, so that it need not be asked
    remembered: bool = False  # True while a pass may leave out directories that are as an earlier daemon left them
    packs: bool = False  # True while the pass under way need only read the names of unknown directories
    to_look_at: bool = False  # True while files that were entered by their names wait for a look
    unseen_until: int = 0  # ns; files whose names were read before may be unseen
    doubted: set[bytes] = field(default_factory=set)  # directories with a file that could not be judged
    watched: bool = False  # True while the observer watches every directory
    retired: bool = False  # True once it is no longer configured: a turn under way must conclude nothing
    former: Former | None = None  # the previous rules, until a pass has recorded the files that they left out
    starting: bool = False  # True until the daemon's first complete pass
    tells_names: bool = False  # True while directories tell kinds and inodes, and files their birth
    fuse: bool = False  # True behind a server that may make up inode numbers
    troubled: set[bytes] = field(default_factory=set)  # directories that were told of as unreadable
    failed: bool = False  # True while an error of the pass under way, no lack of rights, is worth another try
    tries: int = 0
    unread: set[bytes] = field(default_factory=set)  # directories that the pass under way could not read
    unseen: dict[bytes, Unknown] = field(default_factory=dict)  # the kind of files in directories that were never read
    other: dict[bytes, bool] = field(
        default_factory=dict
    )  # points at which another file system has come; whether that is to be told

    def __post_init__(self) -> None:
        self.sweep.arrived = self.arrived

    def read_all(self) -> None:
        """Begin a pass at the next step, and read unchanged directories too."""
        self.end_pass()
        self.due, self.full = 0.0, True

    @property
    def looks_anew(self) -> bool:
        """Whether the pass under way only looks at known files, so that it may take its time."""
        return self.in_force and self.full and self.unseen_until > 0

    @property
    def baselines(self) -> bool:
        """Whether any unknown file counts as existing during this pass."""
        if "existing" in self.unknown.values() or self.former is not None or self.other:
            return True
        # Of the directories that could not be read before, those that this pass could read.
        return any(kind == "existing" and not self._is_unread(one) for one, kind in self.unseen.items())

    def abandon_pass(self) -> None:
        """The findings may not be in the journal: the next pass reads everything again."""
        self.read_all()
        self.sweep.forget_times()

    def end_pass(self) -> None:
        """End the pass under way and close the GED's descriptor. Otherwise `umount` would fail."""
        self.running = None
        if self.root_fd >= 0:
            os.close(self.root_fd)
            self.root_fd = -1

    def reach(self, mode: str) -> bool:
        """Open the GED; False where it is away, or where its mount is. Nothing may be concluded from it then."""
        self.end_pass()
        self.require_configured()
        try:
            self.root_fd = files.open_root(self.path)
            here, fstype = _identity(self.root_fd)
        except OSError as error:
            return self._away(error.strerror or str(error))
        before = self.journal.read(lambda tx: tx.mounted(self.path))
        if before is not None and _left_behind(before, here):
            return self._away(_not_mounted(before))
        self.polling = mode == "polling" or (mode == "auto" and not files.is_local(fstype))
        self.fuse, self.tells_names = fstype.startswith("fuse"), files.tells_names(self.root_fd, fstype)
        self.calls.locate(self.path, here.place)
        if before is not None and not before.same(here):
            self.sweep.forget()
            self.full, self.remembered = True, False
            self.unknown = dict.fromkeys(self.unknown, "existing")
            self.in_force = False
            self.other[self.path] = True
        self._found(self.path, self.root_fd, before, here)
        self._expect_inner()
        # A bind mount of the same file system shows only in the mount table.
        self.sweep.points |= {self.path + b"/" + relative for relative in files.mounts_below(self.root_fd)}
        if self.state == "unreachable":
            self.full, self.watched = True, False
            self.sweep.forget_times()
            say("folder_recovered", client=self.client.name, ged=readable(self.path))
        self.state = "reachable"
        return True

    def answers(self) -> bool:
        """Whether the GED's file system answers. Its directory alone may come from the kernel's memory."""
        try:
            with files.root(self.path) as fd:
                os.fstatvfs(fd)
        except OSError:
            return False
        return True

    def arrived(self, directory: bytes, fd: int) -> str:
        """See to a directory that is or was a mount point. Returns why it must not be read; empty where it may."""
        before = self.journal.read(lambda tx: tx.mounted(directory))
        if fd < 0:
            if before is None or files.is_mounted(before.point):
                self._forget(directory)  # deleted, on a file system that is there
                return ""
            return _not_mounted(before)
        here, _ = _identity(fd)
        if before is not None and _left_behind(before, here):
            return _not_mounted(before)
        if before is None or not before.same(here):
            self.sweep.forget_below(directory)
            self.other[directory] = before is not None or self.in_force
        self._found(directory, fd, before, here)
        self.sweep.points.add(directory)
        return ""

    def require_configured(self) -> None:
        """Raises Retired where the client was removed meanwhile."""
        if self.retired:
            raise Retired(errno.ECANCELED, "its client is no longer configured")

    def configured(self, wish: Callable[[Transaction], None]) -> Callable[[Transaction], None]:
        """The wish, which raises Retired where the client was removed first. Deleted rows must stay deleted."""

        def granted(tx: Transaction) -> None:
            self.require_configured()
            wish(tx)

        return granted

    def existing(self, directory: bytes) -> bool:
        """Whether unknown files there are existing, because another file system has come."""
        return any(is_in(directory, point) for point in self.other)

    def complete(self) -> Steps[None]:
        """A pass has met everything: an unknown file is a deposit from now on."""
        self.require_configured()
        if not self.in_force or self.other:
            yield self.configured(lambda tx: tx.set_read(self.path, read=True))
        self.unknown = dict.fromkeys(self.unknown, "deposit")
        self.in_force, self.starting, self.blank, self.tries = True, False, False, 0
        yield from self._forget_seen()
        for directory in [directory for directory in self.troubled if not self._is_unread(directory)]:
            say("folder_recovered", client=self.client.name, folder=directory[len(self.path) + 1 :])
            self.troubled.discard(directory)
        self.mounts.settle(self.path)
        self.former = None
        why = "another file system is there; what it holds is existing"
        for point in [point for point, news in self.other.items() if news]:
            folder = point[len(self.path) + 1 :]
            where: dict[str, Any] = {"folder": folder} if folder else {"ged": point}
            say("folder_rebaselined", client=self.client.name, reason=why, **where)
        self.other.clear()

    def may_bury(self, known: KnownFile, now: Instant, gone_for: float) -> bool:
        """Whether a file that was found gone may count as deleted. A rename may explain it for `gone_for` seconds.

        Where only sweeps see renames, a whole pass must have begun since.
        """
        assert known.gone_at is not None
        if self.running is not None:
            return False  # the pass under way may still meet it under its new name
        if 0 <= now.wall - known.gone_at < gone_for:
            return False
        return not self.polling or self.passed_from > known.gone_at

    def keep_times(self, rules: str) -> Steps[None]:
        """Record the times of the directories that a pass has read by these rules, for the next start.

        Times of a server's directories are not recorded, because its clock is another one.
        """
        self.sweep.doubt(self.doubted)
        self.doubted.clear()
        settled, void = self.sweep.read_since()
        if self.polling:
            settled, void = [], void + [one.directory for one in settled]
        if settled or void or self.journal.read(lambda tx: tx.kept(self.rules_key)) != rules:
            yield self.configured(lambda tx: tx.keep_times((), void))
            for start in range(0, len(settled), TIMES):
                yield self._times(settled[start : start + TIMES])
                self.calls.progress()
            yield self.configured(lambda tx: tx.keep(self.rules_key, rules))

    def _times(self, part: Sequence[Times]) -> Callable[[Transaction], None]:
        return self.configured(lambda tx: tx.keep_times(part, ()))

    @property
    def rules_key(self) -> str:
        """The journal's key for the rules by which the directories were read."""
        return f"rules of {self.path.hex()}"

    def recall_unseen(self) -> None:
        """Recall the directories that an earlier daemon could not read: their files are existing."""
        kept = self.journal.read(lambda tx: tx.kept(self._key))
        self.unseen = {bytes.fromhex(directory): "existing" for directory in (kept or "").split()}

    def follow_unseen(self, source: bytes, dest: bytes) -> None:
        """A directory was renamed: its unread directories are known by their new paths."""
        for directory in [one for one in self.unseen if is_in(one, source)]:
            self.unseen[dest + directory[len(source) :]] = self.unseen.pop(directory)

    def _forget_seen(self) -> Steps[None]:
        self.unseen = {directory: kind for directory, kind in self.unseen.items() if self._is_unread(directory)}
        existing = " ".join(sorted(directory.hex() for directory, kind in self.unseen.items() if kind == "existing"))
        if existing != (self.journal.read(lambda tx: tx.kept(self._key)) or ""):
            yield self.configured(lambda tx: tx.keep(self._key, existing))

    def _is_unread(self, directory: bytes) -> bool:
        """Whether the pass could not read this directory or one above it. It says nothing of it then."""
        return any(is_in(directory, one) for one in self.unread)

    @property
    def _key(self) -> str:
        """The journal's key for the directories whose existing files could not be read yet."""
        return f"unseen of {self.path.hex()}"

    def _found(self, point: bytes, fd: int, before: Mounted | None, here: Mounted) -> None:
        # Nothing is sent before a pass has met everything, because on another file system a file of the same name is
        # not the queued one, and because a file may have been renamed during a stop.
        same = before is not None and before.same(here)
        self.mounts.found(self.path, point, fd, settled=same and self.in_force)
        if before != here:
            self.journal.write(lambda tx: self._record(tx, point, here, same=same))

    def _record(self, tx: Transaction, point: bytes, here: Mounted, *, same: bool) -> None:
        tx.set_mounted(point, here)
        if not same:  # a daemon killed before it has read this leaves that to the next one
            tx.set_read(self.path, read=False)

    def _expect_inner(self) -> None:
        for point in self.journal.read(lambda tx: tx.mounted_below(self.path)):
            self.mounts.expect(self.path, point)
            self.sweep.points.add(point)

    def _forget(self, point: bytes) -> None:
        self.sweep.points.discard(point)
        self.mounts.forget(self.path, point)
        self.journal.write(lambda tx: tx.forget_mounted(point))

    def _away(self, why: str) -> bool:
        self.end_pass()
        self.mounts.lost(self.path, self.path)
        if self.state != "unreachable":
            say("folder_unreachable", client=self.client.name, ged=readable(self.path), reason=why)
        self.state = "unreachable"
        return False


def _identity(fd: int) -> tuple[Mounted, str]:
    """The mount of an open directory, and the type of its file system."""
    mount = files.mount_of(fd)
    inode, fsid = files.stamp_of(os.fstat(fd)).inode, f"{os.fstatvfs(fd).f_fsid:x}"
    return Mounted(mount.source, mount.point, inode, fsid), mount.fstype


def _not_mounted(before: Mounted) -> str:
    return f"{readable(before.point)} is not mounted"


def _left_behind(before: Mounted, here: Mounted) -> bool:
    """Whether this is the bare directory that an unmount leaves behind: its mount is further up than before."""
    return len(here.point.rstrip(b"/")) < len(before.point.rstrip(b"/")) and is_in(before.point, here.point)
