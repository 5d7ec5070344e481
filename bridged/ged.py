"""One GED as intake sees it: whether it is there, and whether it is still the file system that it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from bridged import files
from bridged.changes import Unknown
from bridged.config import Client
from bridged.journal import Journal
from bridged.known import Mounted
from bridged.logs import say
from bridged.model import Instant, readable
from bridged.patience import Patience
from bridged.sweep import Found, Sweep


@dataclass(slots=True)
class Ged:
    """A client's GED, the state of its sweep, and what an unknown path in each of its folders counts as."""

    path: bytes
    sweep: Sweep
    patience: Patience
    client: Client = field(init=False)
    polling: bool = True
    unknown: dict[str, Unknown] = field(default_factory=dict)
    state: str = "new"  # new | reachable | unreachable
    root: tuple[int, int] | None = None
    running: Iterator[Found] | None = None
    root_fd: int = -1
    started: Instant | None = None
    passed_from: float = 0.0  # wall time at which the last complete pass began
    due: float = 0.0
    full_due: float = 0.0
    full: bool = True
    watched: bool = False  # a complete pass has asked for hints from every directory since the observer began
    troubled: set[bytes] = field(default_factory=set)

    @property
    def in_force(self) -> bool:
        """Every folder has had its first complete pass."""
        return all(kind == "deposit" for kind in self.unknown.values())

    def read_all(self) -> None:
        """Begin again at the next step, and read unchanged directories too."""
        self.end_pass()
        self.due, self.full = 0.0, True

    def end_pass(self) -> None:
        """Let go of the pass under way and of the GED's descriptor: an open one would make `umount` fail."""
        self.running = None
        if self.root_fd >= 0:
            os.close(self.root_fd)
            self.root_fd = -1

    def reach(self, journal: Journal, mode: str) -> bool:
        """Open the GED and see that it is the file system it was: else nothing may be concluded from what is there."""
        self.end_pass()
        try:
            self.root_fd = files.open_root(self.path)
            status, mount = os.fstat(self.root_fd), files.mount_of(self.root_fd)
            fsid = f"{os.fstatvfs(self.root_fd).f_fsid:x}"
        except OSError as error:
            return self._away(error.strerror or str(error))
        here = Mounted(mount.source, mount.point, files.stamp_of(status).inode, fsid)
        before = journal.read(lambda tx: tx.mounted(self.path))
        if before is not None and _left_behind(before, here):
            return self._away(f"{readable(before.point)} is not mounted")
        self.root = (status.st_dev, status.st_ino)
        self.polling = mode == "polling" or (mode == "auto" and not files.is_local(mount.fstype))
        self.patience.locate(self.path, here.place)
        self._arrived(journal, before, here)
        return True

    def same_root(self) -> bool:
        """Whether the GED is still the directory of the last check; when not, the next pass finds out what it is."""
        try:
            status = os.lstat(self.path)
        except OSError:
            status = None
        if status is not None and (status.st_dev, status.st_ino) == self.root:
            return True
        self.due = 0.0
        return False

    def _arrived(self, journal: Journal, before: Mounted | None, here: Mounted) -> None:
        if before is not None and not before.same(here):
            self._rebaseline()
        if before != here:
            journal.write(lambda tx: tx.set_mounted(self.path, here))
        if self.state == "unreachable":
            self.full, self.watched = True, False
            self.sweep.forget_times()
            say("folder_recovered", client=self.client.name, ged=readable(self.path))
        self.state = "reachable"

    def _rebaseline(self) -> None:
        """Never a mass mailing: what another file system holds is existing."""
        self.sweep.forget()
        self.full = True
        self.unknown = dict.fromkeys(self.unknown, "existing")
        why = "another file system is there; what it holds is existing"
        say("folder_rebaselined", client=self.client.name, ged=readable(self.path), reason=why)

    def _away(self, why: str) -> bool:
        self.end_pass()
        if self.state != "unreachable":
            say("folder_unreachable", client=self.client.name, ged=readable(self.path), reason=why)
        self.state = "unreachable"
        return False


def _left_behind(before: Mounted, here: Mounted) -> bool:
    """The GED was on a mount and now is on one further up: the bare directory that an unmount leaves behind."""
    return len(here.point.rstrip(b"/")) < len(before.point.rstrip(b"/")) and is_in(before.point, here.point)


def is_in(path: bytes, directory: bytes) -> bool:
    """Whether a path is a directory, or is below it."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")
