"""The sweep reads the folders themselves. Its findings are the truth; hints only make it fast.

A directory whose times have not changed is not read again, with the margin that coarse clocks need. Each directory is
opened beneath the GED's own descriptor. Otherwise a link or a mount could take the place of the GED.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from bridged.config import Component
from bridged.ged import files
from bridged.intake.first_look import STATUS, Look, look
from bridged.journal.packed import Packed
from bridged.names import is_leftover
from bridged.paths import is_in

# Seconds. A younger directory is read again, because an entry may come without a change of times that count seconds.
YOUNG: Final = 2.0


@dataclass(frozen=True, slots=True)
class Listing:
    """The entries of one directory, read now."""

    directory: bytes
    entries: list[files.Entry]


@dataclass(frozen=True, slots=True)
class GoneDirectory:
    """A directory that an earlier look found has gone."""

    directory: bytes


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A directory that cannot be read. No absence in it is proven.

    `passing` is True for a failure that the next try may not meet: too many open files, an error of the disk.
    """

    directory: bytes
    why: str
    passing: bool = False
    away: bool = False  # True when the file system that was mounted there is missing


Found = Listing | Packed | GoneDirectory | Unreadable


_NEVER: Final = -1  # no hash() is -1, so that a directory with these times is read again
_CHUNK: Final = 100  # directories that are compared together


def _times(status: os.stat_result) -> int:
    return hash(STATUS(status))  # the same in every run, because hashes of integers are not randomised


@dataclass(slots=True)
class _Seen:
    """A directory as it was last read. There are 50,000, so it has no more fields than needed."""

    times: int  # _NEVER where it was too young, or could not be told in full
    device: int  # -1 where it is not known
    children: tuple[bytes, ...]  # whole paths of those in force; the same objects as the keys, to save memory
    met: bool = True  # True once a pass of this daemon has met it


class Times(NamedTuple):
    """A settled directory and its times. As long as it has these times, no entry in it is new.

    The times say nothing of the directories below it. `children` is their number.
    """

    directory: bytes
    times: int
    children: int


class Sweep:
    """The directories of one GED as they were last read."""

    def __init__(
        self,
        ged: bytes,
        in_force: Callable[[bytes], bool],
        watch: Callable[[bytes], None],
    ) -> None:
        """`in_force` is True for a directory where the bridge is on. `watch` asks for hints from a directory.

        The owner may set three more. `arrived` is called for each directory that is, or was, on another file system
        than the one above. It gets the descriptor, or -1 without a directory, and returns why no absence is proven, or
        "". `packs` is True for a directory whose names are enough at a first look. `endings` is for
        `packed.only_documents`.
        """
        self.arrived: Callable[[bytes, int], str] = lambda *_: ""
        self.packs: Callable[[bytes], bool] | None = None
        self.endings: tuple[bytes, ...] = ()
        self.ged = ged
        self.points: set[bytes] = set()
        self._in_force = in_force
        self._watch = watch
        self._seen: dict[bytes, _Seen] = {}
        self._roots: set[bytes] = set()
        self._root_device = -1
        self._blocked: list[Unreadable] = []
        self._read_since: set[bytes] = set()

    def remember(self, times: Iterable[Times]) -> None:
        """Take the directories that an earlier daemon has read. Each is read again only when it has changed.

        A directory whose children were not all kept is read again, too. Otherwise a child that was too young or
        unreadable would never be met.
        """
        known = {one.directory: one for one in times if self._in_force(one.directory)}
        children: dict[bytes, list[bytes]] = {}
        for directory in known:
            children.setdefault(directory.rpartition(b"/")[0], []).append(directory)
        for directory, one in sorted(known.items()):  # a directory before those in it, because they are met through it
            inner = tuple(children.get(directory, ()))
            self._seen[directory] = _Seen(one.times if len(inner) == one.children else _NEVER, -1, inner, met=False)

    def forget_unmet(self) -> None:
        """Forget each remembered directory that a whole pass has not met, because it has gone."""
        self._drop([directory for directory, seen in self._seen.items() if not seen.met])

    def read_since(self) -> tuple[list[Times], list[bytes]]:
        """The directories read since the last call: those with their times, and those whose times say nothing.

        Packed directories are left out, because a Packed has its times.
        """
        settled, others = [], []
        for directory in self._read_since:
            seen = self._seen.get(directory)
            if seen is not None and seen.times != _NEVER:
                settled.append(Times(directory, seen.times, len(seen.children)))
            else:
                others.append(directory)
        self._read_since.clear()
        return settled, others

    def __contains__(self, directory: bytes) -> bool:
        return directory in self._seen

    def __len__(self) -> int:
        return len(self._seen)

    def forget(self) -> None:
        """Forget every directory, so that the next pass reads all and reports none as gone."""
        self._read_since.update(self._seen)
        self._seen.clear()
        self._roots.clear()

    def forget_off(self) -> None:
        """Forget each directory that is no longer in force."""
        self._drop([directory for directory in self._seen if not self._in_force(directory)])

    def forget_times(self) -> None:
        """Read and watch every directory again at the next pass, because the file system was away."""
        self.forget_times_below(self.ged)

    def forget_times_below(self, directory: bytes) -> None:
        """Read and watch a directory and those below it again at the next pass."""
        prefix = directory + b"/"
        for one, seen in self._seen.items():
            if one == directory or one.startswith(prefix):
                seen.times, seen.device = _NEVER, -1

    def doubt(self, directories: Iterable[bytes]) -> None:
        """Read these again at the next pass, because a file in them could not be judged."""
        for directory in directories:
            seen = self._seen.get(directory)
            if seen is not None:
                seen.times = _NEVER
                self._read_since.add(directory)

    def forget_below(self, directory: bytes) -> None:
        """Forget a directory that has gone, and those below it."""
        prefix = directory + b"/"
        self._drop([one for one in self._seen if one == directory or one.startswith(prefix)])

    def _drop(self, directories: Sequence[bytes]) -> None:
        """Forget them here, and let `read_since` withdraw their times from the journal."""
        for directory in directories:
            del self._seen[directory]
        self._read_since.update(directories)

    def whole(
        self, root_fd: int, patterns: Sequence[list[Component]], now: float, full: bool
    ) -> Iterator[Found | None]:
        """Yield the findings of one pass over the switched folders. `full` reads unchanged directories, too.

        None is yielded between two chunks of comparisons, so that the caller may pause. `now` is in seconds.
        """
        closed: list[bytes] = []
        self._root_device = os.fstat(root_fd).st_dev
        for found in self._pass(root_fd, patterns, now, full, closed):
            if isinstance(found, Unreadable) and found not in self._blocked:
                closed.append(found.directory)
            yield found

    def _pass(
        self, root_fd: int, patterns: Sequence[list[Component]], now: float, full: bool, closed: list[bytes]
    ) -> Iterator[Found | None]:
        roots: set[bytes] = set()
        self._blocked.clear()
        for pattern in patterns:
            roots.update(self._expand(root_fd, self.ged, pattern))
        yield from self._blocked
        # A start remembers no folder whose file system is not mounted yet. Its mount point stands for it.
        met = roots | {found.directory for found in self._blocked}
        points = {point for point in self.points if not any(is_in(point, folder) for folder in met)}
        for root in sorted((self._roots - roots) | points):
            yield from self._gone(root_fd, root)
        self._roots = roots
        for root in sorted(roots):
            if full or root not in self._seen:
                yield from self._walk(root_fd, root, now, full=full, everything=True)
        if not full:
            for directory in self._never_read():
                yield from self._walk(root_fd, directory, now, full=False, everything=True)
            yield from self._changed(root_fd, now, closed)

    def _never_read(self) -> list[bytes]:
        """The directories that were met and never read: unreadable, or away. Now they may be readable."""
        seen = self._seen
        return sorted(child for one in seen.values() if one.children for child in one.children if child not in seen)

    def _changed(self, root_fd: int, now: float, closed: Sequence[bytes]) -> Iterator[Found | None]:
        """Yield the findings in directories that have changed, and in new ones below them.

        Directories below an unreadable one (`closed`, which grows) are left out, because a share there may be away.
        A directory comes before those in it, because they were met through it.

        Most directories of a large GED are unchanged, so they are compared by whole paths, a chunk at a time. An entry
        with the same inode, device and times is the same directory, by any path.
        """
        directories = list(self._seen)
        for start in range(0, len(directories), _CHUNK):
            chunk = directories[start : start + _CHUNK]
            for directory in self._not_as_they_were(chunk):
                if directory in self._seen and not any(is_in(directory, one) for one in closed):
                    yield from self._walk(root_fd, directory, now, full=False, everything=False)
            yield None  # the caller may pause here

    def _not_as_they_were(self, directories: list[bytes]) -> list[bytes]:
        seen = [self._seen.get(directory) for directory in directories]
        for directory, one in zip(directories, seen, strict=True):
            if one is not None and not one.met:
                self._watch(directory)
                one.met = True
        before = [_NEVER if one is None else one.times for one in seen]
        try:
            now = list(map(hash, map(STATUS, map(os.lstat, directories))))
        except OSError:
            now = [_times_of(directory) for directory in directories]
        if now == before and not self.points:
            return []
        pairs = zip(directories, before, now, strict=True)
        return [directory for directory, was, is_ in pairs if was != is_ or directory in self.points]

    def met(self, root_fd: int, top: bytes, now: float) -> Iterator[Found]:
        """Yield the findings in one directory and in new ones below it. Known ones below report by hints."""
        return self._walk(root_fd, top, now, full=False, everything=False)

    def _walk(self, root_fd: int, top: bytes, now: float, *, full: bool, everything: bool) -> Iterator[Found]:
        stack = [top]
        while stack:
            directory = stack.pop()
            found = self._first_look(root_fd, directory)
            if found is not None or self._in_force(directory):
                inner = yield from self._tell(root_fd, directory, found, now, full)
                stack.extend(inner if everything else (child for child in inner if child not in self._seen))

    def _first_look(self, root_fd: int, directory: bytes) -> Look | None:
        """The names in a directory that was not read before. None where names are not enough."""
        known = directory in self._seen or directory in self.points
        if known or self.packs is None or not self.packs(directory):
            return None
        self._watch(directory)  # before it is read, because a hint tells of a file that comes in between
        return look(root_fd, self._relative(directory), self._root_device, self.endings)

    def _tell(
        self, root_fd: int, directory: bytes, found: Look | None, now: float, full: bool
    ) -> Generator[Found, None, tuple[bytes, ...]]:
        """Yield the findings in a directory. Returns the directories in it; none below an unreadable one."""
        if found is not None:
            seen = self._seen_now(directory, found.status, found.directories, True, now)
            times = None if seen.times == _NEVER else seen.times
            yield Packed(directory, found.records, found.read_ns, times, len(seen.children))
            self._seen[directory] = seen  # only now, as in _read
            return seen.children
        closed = False
        for one in self._look(root_fd, directory, now, full):
            closed = isinstance(one, Unreadable)
            yield one
        there = self._seen.get(directory)
        return () if there is None or closed else there.children

    def _look(self, root_fd: int, directory: bytes, now: float, full: bool) -> Iterator[Found]:
        try:
            status = files.lstat(root_fd, self._relative(directory))
        except (FileNotFoundError, NotADirectoryError):
            yield from self._gone(root_fd, directory)
            return
        except OSError as error:
            yield _unreadable(directory, error)
            return
        if not stat.S_ISDIR(status.st_mode):
            yield from self._gone(root_fd, directory)
            return
        if directory in self.points or status.st_dev != self._device_above(root_fd, directory):
            why = self._examined(root_fd, directory)
            if why:
                yield Unreadable(directory, why, away=True)
                return
        before = self._seen.get(directory)
        if before is not None and before.device not in (-1, status.st_dev):
            self.forget_times_below(directory)
        if full or before is None or before.times != _times(status):
            yield from self._read(root_fd, directory, status, now)

    def _device_above(self, root_fd: int, directory: bytes) -> int:
        above = directory
        while len(above) > len(self.ged):
            above = above.rpartition(b"/")[0]
            seen = self._seen.get(above)
            if seen is not None and seen.device == -1:  # remembered from an earlier daemon, or it was away
                with suppress(OSError):
                    seen.device = files.lstat(root_fd, self._relative(above)).st_dev
            if seen is not None and seen.device != -1:
                return seen.device
        return os.fstat(root_fd).st_dev

    def _examined(self, root_fd: int, directory: bytes) -> str:
        try:
            fd = files.open_passage(root_fd, self._relative(directory))
        except OSError as error:
            return error.strerror or str(error)
        try:
            return self.arrived(directory, fd)
        finally:
            os.close(fd)

    def _read(self, root_fd: int, directory: bytes, status: os.stat_result, now: float) -> Iterator[Found]:
        self._watch(directory)  # before reading, because a hint tells of a file that comes in between
        try:
            fd = files.open_directory(root_fd, self._relative(directory))
        except OSError as error:
            yield _unreadable(directory, error)
            return
        try:
            entries = files.listing(fd)
        except OSError as error:
            yield _unreadable(directory, error)
            return
        finally:
            os.close(fd)
        names = [e.name for e in entries if e.kind == "directory"]
        before = self._seen.get(directory)
        yield Listing(directory, entries)
        for child in set(before.children if before else ()) - {directory + b"/" + name for name in names}:
            yield from self._gone(root_fd, child)
        # After the yields, because a pass that is broken off must read this directory again.
        self._seen[directory] = self._seen_now(directory, STATUS(status), names, all(map(_is_told, entries)), now)
        self._read_since.add(directory)

    def _seen_now(
        self, directory: bytes, status: tuple[int, int, int, int], names: Sequence[bytes], told: bool, now: float
    ) -> _Seen:
        mtime_ns, ctime_ns, _, device = status
        settled = told and now - max(mtime_ns, ctime_ns) / 1e9 > YOUNG
        children = tuple(filter(self._in_force, [directory + b"/" + name for name in names])) if names else ()
        return _Seen(hash(status) if settled else _NEVER, device, children)

    def _gone(self, root_fd: int, directory: bytes) -> Iterator[Found]:
        why = self.arrived(directory, -1) if directory in self.points else ""
        if why:
            yield Unreadable(directory, why, away=True)
            return
        for point in sorted(self.points):  # its file system may have gone since this pass was there
            why = self._examined(root_fd, point) if point != directory and is_in(directory, point) else ""
            if why:
                yield Unreadable(point, why, away=True)
                return
        self.forget_below(directory)
        yield GoneDirectory(directory)

    def _expand(self, root_fd: int, directory: bytes, pattern: Sequence[Component]) -> Iterator[bytes]:
        """The directories that match a pattern. Those on the way are watched: a new year's folder may appear."""
        if not pattern:
            yield directory
            return
        self._watch(directory)
        try:
            with files.directories(root_fd, self._relative(directory)) as (fd,):
                children = [e.name for e in files.listing(fd) if e.kind == "directory"]
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:  # unreadable is not absent, so the folders found there before stay switched on
            self._blocked.append(_unreadable(directory, error))
            yield from (root for root in self._roots if root.startswith(directory + b"/"))
            return
        for child in children:
            if pattern[0].admits(child):
                yield from self._expand(root_fd, directory + b"/" + child, pattern[1:])

    def _relative(self, directory: bytes) -> bytes:
        return directory[len(self.ged) :].lstrip(b"/")


def _unreadable(directory: bytes, error: OSError) -> Unreadable:
    return Unreadable(directory, error.strerror or str(error), error.errno not in (errno.EACCES, errno.EPERM))


def _times_of(directory: bytes) -> int:
    try:
        return _times(os.lstat(directory))
    except OSError:
        return _NEVER - 1


def _is_told(entry: files.Entry) -> bool:
    """False for a file that could not be looked at, and for a temporary marker that a crash left."""
    return (entry.stamp is not None or entry.kind != "file") and not is_leftover(entry.name)
