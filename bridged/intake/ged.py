"""One GED as intake sees it: whether it is there, and whether it is still the file system that it was."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bridged.config.settings import Client
from bridged.ged import Calls, Mounts, files
from bridged.intake.changes import Unknown
from bridged.intake.rules import Former
from bridged.intake.sweep import Found, Sweep
from bridged.journal import Journal, Steps, Transaction
from bridged.journal.values import Mounted
from bridged.logs import say
from bridged.model import Instant, readable
from bridged.paths import is_in


class Retired(OSError):
    """The GED is no longer configured."""


@dataclass(slots=True)
class Ged:
    """A client's GED, the state of its sweep, and what an unknown path in each of its folders counts as."""

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
    passed_from: float = 0.0  # wall time at which the last complete pass began
    due: float = 0.0
    full_due: float = 0.0
    took: float = 0.0  # seconds of work in the pass under way
    full: bool = True
    in_force: bool = False  # every folder has had its first complete pass
    blank: bool = False  # nothing of it is in the journal yet, so that nobody need ask there
    remembered: bool = False  # the first pass need not read what is as an earlier daemon has left it
    packs: bool = False  # the pass under way need only read names where nothing is known yet
    to_look_at: bool = False  # files were entered by their names, and no pass has looked at all of them since
    unseen_until: int = 0  # ns; of files whose names were read before, only name and inode may be known
    doubted: set[bytes] = field(default_factory=set)  # a file in it could not be judged
    watched: bool = False  # a complete pass has asked for hints from every directory since the observer began
    retired: bool = False  # no longer configured: a turn under way must conclude nothing any more
    former: Former | None = None  # what the rules before left out, until a pass has met what that held
    starting: bool = False  # until the first complete pass of the daemon
    tells_names: bool = False  # its directories tell kinds and inodes, and its files when they were made
    fuse: bool = False  # a server in between, which may make up inode numbers
    troubled: set[bytes] = field(default_factory=set)  # unreadable, and told of
    failed: bool = False  # something in the pass under way was no lack of rights: worth another try
    tries: int = 0
    unread: set[bytes] = field(default_factory=set)  # unreadable in the pass under way
    unseen: dict[bytes, Unknown] = field(default_factory=dict)  # never read yet: what is in it counts as this
    other: dict[bytes, bool] = field(default_factory=dict)  # where another file system has come; whether that is news

    def __post_init__(self) -> None:
        self.sweep.arrived = self.arrived

    def read_all(self) -> None:
        """Begin again at the next step, and read unchanged directories too."""
        self.end_pass()
        self.due, self.full = 0.0, True

    @property
    def looks_anew(self) -> bool:
        """Whether the pass under way is for what is known already, so that it may take its time."""
        return self.in_force and self.full and self.unseen_until > 0

    @property
    def baselines(self) -> bool:
        """Whether something that is unknown is existing for as long as this pass lasts."""
        if "existing" in self.unknown.values() or self.former is not None or self.other:
            return True
        # Of what could not be read before, that which this pass could.
        return any(kind == "existing" and not self._is_unread(one) for one, kind in self.unseen.items())

    def abandon_pass(self) -> None:
        """What was found may not have been recorded: the next pass reads everything again."""
        self.read_all()
        self.sweep.forget_times()

    def end_pass(self) -> None:
        """Let go of the pass under way and of the GED's descriptor: an open one would make `umount` fail."""
        self.running = None
        if self.root_fd >= 0:
            os.close(self.root_fd)
            self.root_fd = -1

    def reach(self, mode: str) -> bool:
        """Open the GED and see that it is the file system it was: else nothing may be concluded from what is there."""
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
        # A bind mount of the same file system shows in nothing but the mount table.
        self.sweep.points |= {self.path + b"/" + relative for relative in files.mounts_below(self.root_fd)}
        if self.state == "unreachable":
            self.full, self.watched = True, False
            self.sweep.forget_times()
            say("folder_recovered", client=self.client.name, ged=readable(self.path))
        self.state = "reachable"
        return True

    def answers(self) -> bool:
        """Whether the GED's file system still does. Its directory alone may be one that the kernel remembers."""
        try:
            with files.root(self.path) as fd:
                os.fstatvfs(fd)
        except OSError:
            return False
        return True

    def arrived(self, directory: bytes, fd: int) -> str:
        """The same for a directory in the GED on which something is mounted, or was; why it must not be read."""
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
        """Raises Retired when the client was removed meanwhile."""
        if self.retired:
            raise Retired(errno.ECANCELED, "its client is no longer configured")

    def configured(self, wish: Callable[[Transaction], None]) -> Callable[[Transaction], None]:
        """The wish, unless the client was removed before it is granted: what that has deleted must stay so."""

        def granted(tx: Transaction) -> None:
            self.require_configured()
            wish(tx)

        return granted

    def existing(self, directory: bytes) -> bool:
        """Whether what is unknown there is existing, since another file system has come."""
        return any(is_in(directory, point) for point in self.other)

    def complete(self) -> Steps[None]:
        """A pass has met everything: what is new from now on is a deposit."""
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

    def recall_unseen(self) -> None:
        """What an earlier daemon could not read is not new when this one can."""
        kept = self.journal.read(lambda tx: tx.kept(self._key))
        self.unseen = {bytes.fromhex(directory): "existing" for directory in (kept or "").split()}

    def follow_unseen(self, source: bytes, dest: bytes) -> None:
        """A directory was renamed: what could not be read in it yet is as old as it was. At its old place it is not."""
        for directory in [one for one in self.unseen if is_in(one, source)]:
            self.unseen[dest + directory[len(source) :]] = self.unseen.pop(directory)

    def _forget_seen(self) -> Steps[None]:
        self.unseen = {directory: kind for directory, kind in self.unseen.items() if self._is_unread(directory)}
        existing = " ".join(sorted(directory.hex() for directory, kind in self.unseen.items() if kind == "existing"))
        if existing != (self.journal.read(lambda tx: tx.kept(self._key)) or ""):
            yield self.configured(lambda tx: tx.keep(self._key, existing))

    def _is_unread(self, directory: bytes) -> bool:
        """Whether the pass could not read it, or one above it: then it says nothing of it."""
        return any(is_in(directory, one) for one in self.unread)

    @property
    def _key(self) -> str:
        """Under which the journal keeps which existing files could not be read yet."""
        return f"unseen of {self.path.hex()}"

    def _found(self, point: bytes, fd: int, before: Mounted | None, here: Mounted) -> None:
        # Nobody may send before a pass has met everything: on another file system a file of the same name is not the
        # one that was queued, and after a stop it may go by another name.
        same = before is not None and before.same(here)
        self.mounts.found(self.path, point, fd, settled=same and self.in_force)
        if before != here:
            self.journal.write(lambda tx: self._record(tx, point, here, same=same))

    def _record(self, tx: Transaction, point: bytes, here: Mounted, *, same: bool) -> None:
        tx.set_mounted(point, here)
        if not same:  # whoever takes over from a daemon that was killed before it had read this must know
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
    """What is there, and the type of its file system."""
    mount = files.mount_of(fd)
    inode, fsid = files.stamp_of(os.fstat(fd)).inode, f"{os.fstatvfs(fd).f_fsid:x}"
    return Mounted(mount.source, mount.point, inode, fsid), mount.fstype


def _not_mounted(before: Mounted) -> str:
    return f"{readable(before.point)} is not mounted"


def _left_behind(before: Mounted, here: Mounted) -> bool:
    """The GED was on a mount and now is on one further up: the bare directory that an unmount leaves behind."""
    return len(here.point.rstrip(b"/")) < len(before.point.rstrip(b"/")) and is_in(before.point, here.point)
