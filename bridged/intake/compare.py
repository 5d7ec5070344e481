"""A GED as it was read against the known files: the differences, for `changes` to judge.

A difference is a function of `Changes`, called later inside one transaction. The file system is asked here, before.
Otherwise a file system that hangs would keep the journal's only writer.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from bridged.config import Place, SwitchedFolders
from bridged.config.settings import Settings
from bridged.ged import Away, files
from bridged.intake.changes import Changes, Unknown
from bridged.intake.ged import Ged
from bridged.intake.sweep import Found, GoneDirectory, Listing, Unreadable
from bridged.journal import Journal
from bridged.journal.packed import Packed
from bridged.journal.values import SPECIAL, KnownFile
from bridged.logs import say
from bridged.marker import find
from bridged.model import UNSEEN, Stamp
from bridged.names import ignored_endings, is_leftover
from bridged.paths import is_in, split

Difference = Callable[[Changes], None]


class Comparison:
    """Looks at one GED under one configuration."""

    def __init__(
        self,
        ged: Ged,
        journal: Journal,
        settings: Settings,
        switched: SwitchedFolders,
        untold: Callable[[bytes, Stamp], None],
    ) -> None:
        """`untold` is called for each deposit that a listing met before a hint."""
        self._ged = ged
        self._journal = journal
        self._settings = settings
        self._switched = switched
        self._untold = untold

    # -- one path

    def at(self, path: bytes, status: os.stat_result | None) -> list[Difference]:
        """The differences at a path that is no directory. `status`: None where nothing is there."""
        if status is None:
            gone_directory: Difference = lambda changes: changes.missing_directory(path)  # noqa: E731
            return [lambda changes: changes.missing(path), gone_directory]
        place, name = self.place(path), split(path)[1]
        if place is None or (self.ignores(name) and self._journal.read(lambda tx: tx.known(path)) is None):
            return []  # most ignored files are our own markers
        return self._difference(place, path, files.entry_of(name, status))

    def moved(self, source: bytes, dest: bytes, status: os.stat_result | None) -> list[Difference]:
        """A hint says that a file was renamed within the GED. `status`: of the file at `dest` now."""
        if self.place(dest) is None or status is None:
            return []
        still = self._file(source)
        return [lambda changes: changes.moved(source, dest, still)]

    def gone(self, path: bytes, status: os.stat_result | None) -> list[Difference]:
        """A hint says: deleted, or moved out. The hint is late where the known stamp is that of the file there now."""
        known = self._journal.read(lambda tx: tx.known(path))
        if known is None or status is None:
            return []
        stamp = files.stamp_of(status)
        if not known.stamp.not_since(stamp):
            return [lambda changes: changes.deleted(path)]
        born = self._born(path)
        return [lambda changes: changes.deleted_before(path, stamp, born)]

    def lstat(self, path: bytes) -> os.stat_result | None:
        """The status of a path of the GED; None where nothing is. Raises OSError (Away) where it cannot be told."""
        ged = self._ged
        try:
            with ged.mounts.at(ged.path, path, settled=False) as root_fd:
                return files.lstat(root_fd, path[len(ged.path) + 1 :])
        except (FileNotFoundError, NotADirectoryError):
            return None

    def lstats(self, paths: Iterable[bytes]) -> dict[bytes, os.stat_result | OSError | None]:
        """The same for many paths, each directory reached once. A path that cannot be told has its error."""
        ged, found = self._ged, dict[bytes, os.stat_result | OSError | None]()
        below: dict[bytes, list[bytes]] = {}
        for path in paths:
            if path == ged.path:
                found[path] = _attempt(lambda: self.lstat(ged.path))
            else:
                below.setdefault(split(path)[0], []).append(path)
        for here in below.values():
            try:
                with ged.mounts.passage(ged.path, here[0], settled=False) as fd:
                    for path in here:
                        found[path] = _attempt(lambda p=path: os.lstat(split(p)[1], dir_fd=fd))  # type: ignore[misc]
            except OSError as error:
                gone = isinstance(error, FileNotFoundError | NotADirectoryError)
                found |= dict.fromkeys(here, None if gone else error)
        return found

    def place(self, path: bytes) -> Place | None:
        """The switched folder of a path, and its address; None where the bridge is off."""
        return self._switched.place(split(path)[0])

    # -- findings of a sweep

    def of(self, found: Found | None) -> list[Difference]:
        """The differences that one finding of a sweep makes."""
        if found is None:
            return []
        if isinstance(found, Unreadable):
            self._tell_unreadable(found)
            return []
        directory = found.directory
        if isinstance(found, GoneDirectory):
            return [lambda changes: changes.missing_directory(directory)]
        if isinstance(found, Packed):
            return [self.packed([found])]
        place = self._switched.place(directory)
        if place is None:
            return []
        return self._listed(place, found)

    def packed(self, found: Sequence[Packed]) -> Difference:
        """The first looks at several directories, entered together."""
        self._ged.unseen_until = max(self._ged.unseen_until, *(one.read_ns for one in found))
        return lambda changes: changes.packed(found)

    def vanished(self) -> list[Difference]:
        """Directories that the journal knows and the first pass did not meet: they are gone, or switched off."""
        ged = self._ged
        # Without their files, because asking for these would take long, and after a first start all are met.
        known = self._journal.read(lambda tx: tx.recorded_below(ged.path))
        unmet = [d for d in known if d not in ged.sweep and not any(is_in(d, t) for t in ged.troubled)]
        return [
            lambda changes, d=directory: changes.missing_directory(d)  # type: ignore[misc]
            for directory in unmet
            if self._switched.place(directory) is None or not self._may_be_there(directory)
        ]

    def _listed(self, place: Place, listing: Listing) -> list[Difference]:
        known = {} if self._ged.blank else self._journal.read(lambda tx: tx.known_in(listing.directory))
        self._remove_leftovers(listing)
        entries = [e for e in listing.entries if e.kind != "directory"]
        if not known and self._unknown(place, listing.directory) == "existing":
            return self._baseline(place, listing.directory, entries)
        differences: list[Difference] = []
        gone = known.keys() - {e.name for e in entries}
        if self._ged.unseen_until:
            seen, entries = _as_they_were(known, entries)
            differences += [lambda changes, s=one: changes.seen(listing.directory, *s) for one in seen.items()]  # type: ignore[misc]
        for entry in entries:
            before = known.get(entry.name)
            if before is None and entry.stamp is not None and not self.ignores(entry.name):
                self._untold(listing.directory + b"/" + entry.name, entry.stamp)
            if before is None or before.stamp != (entry.stamp or SPECIAL) or before.gone_at is not None:
                self._ged.calls.progress()
                differences += self._difference(place, listing.directory + b"/" + entry.name, entry)
        for name in gone:
            path = known[name].path
            if known[name].gone_at is None and (self._ged.polling or self._is_gone(path)):
                differences.append(lambda changes, p=path: changes.missing(p))  # type: ignore[misc]
        return differences

    def packs(self, directory: bytes) -> bool:
        """Whether the first look at a directory need only read names, because all its files are existing."""
        place = self._switched.place(directory)
        return place is not None and self._ged.former is None and self._unknown(place, directory) == "existing"

    def _difference(self, place: Place, path: bytes, entry: files.Entry) -> list[Difference]:
        unknown = self._unknown(place, split(path)[0])
        if self._ged.former is not None and self._ged.former.ignores(entry.name):
            unknown = "existing"
        if entry.stamp is None:
            if entry.kind == "file" or self.ignores(entry.name):
                return []  # nothing is concluded of a file that cannot be looked at
            return [lambda changes: changes.special(path, entry.kind.removeprefix("other:"), unknown)]
        stamp = entry.stamp
        try:
            born = self._born(path) if self._ged.unseen_until else None
            left = self._left(path, stamp, born)
        except OSError:  # judged by a later pass, because it cannot be told which file it is
            self._ged.doubted.add(split(path)[0])
            return []
        return [lambda changes: changes.found(place, path, stamp, unknown, left, born)]

    def _born(self, path: bytes) -> int | None:
        ged = self._ged
        with ged.mounts.at(ged.path, path, settled=False) as root_fd:
            return files.born_ns(root_fd, path[len(ged.path) + 1 :])

    def _left(self, path: bytes, stamp: Stamp, born: int | None) -> list[bytes]:
        """The known paths that the very file at `path` has left."""
        same = self._journal.read(lambda tx: tx.same_content(stamp) if self._ged.fuse else tx.same_files(stamp))
        if born is not None and born < self._ged.unseen_until:
            unseen = self._journal.read(lambda tx: tx.unseen_files(stamp.inode))
            same += [known for known in unseen if born < known.stamp.ctime_ns]
        others = [known for known in same if known.path != path and is_in(known.path, self._ged.path)]
        left = [known for known in others if known.gone_at is not None or not self._still_there(known)]
        return [known.path for known in (self._likely(path, left) if self._ged.fuse else left)]

    def _likely(self, path: bytes, left: list[KnownFile]) -> list[KnownFile]:
        """The likely ones where only size and time tell: the known file of that name, or the only one.

        A document that was sent must have the same bytes. Otherwise a new document would be taken for it, and be lost.
        """
        named = [known for known in left if split(known.path)[1] == split(path)[1]]
        likely = named or (left if len(left) == 1 else [])
        return [known for known in likely if self._may_be(path, known)]

    def _may_be(self, path: bytes, known: KnownFile) -> bool:
        seq = known.document
        document = None if seq is None else self._journal.read(lambda tx: tx.document(seq))
        if document is None or not document.sha256:
            return True
        ged = self._ged
        with (
            ged.mounts.at(ged.path, path, settled=False) as root_fd,
            files.open_document(root_fd, path[len(ged.path) + 1 :]) as file,
        ):
            return files.sha256(file) == document.sha256

    def _is_gone(self, path: bytes) -> bool:
        try:
            return self.lstat(path) is None
        except OSError:  # a directory that may not be searched says nothing of its files
            return False

    def _may_be_there(self, directory: bytes) -> bool:
        """Whether a directory that the pass did not meet can be seen. Its files must not be buried then."""
        try:
            status = self.lstat(directory)
        except OSError:
            return True
        return status is not None and stat.S_ISDIR(status.st_mode)

    def _still_there(self, known: KnownFile) -> bool:
        try:
            now = self._listed_file(known.path) if self._ged.polling else self._file(known.path)
        except OSError:
            return True
        same = Stamp.same_content if self._ged.fuse else Stamp.same_file
        return now is not None and same(now, known.stamp)

    def _listed_file(self, path: bytes) -> Stamp | None:
        """As `_file` on a server, by the listing, because a name that is gone may answer from a cache."""
        ged, name = self._ged, split(path)[1]
        try:
            with ged.mounts.directory(ged.path, path, settled=False) as fd:
                return next((e.stamp for e in files.listing(fd) if e.name == name), None)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _file(self, path: bytes) -> Stamp | None:
        status = self.lstat(path)
        return files.stamp_of(status) if status is not None and stat.S_ISREG(status.st_mode) else None

    # -- the first look at a folder

    def _baseline(self, place: Place, directory: bytes, entries: Sequence[files.Entry]) -> list[Difference]:
        """All files are existing. They are entered in bulk, because there may be a million."""
        names = [(e.name, e.stamp or SPECIAL) for e in entries if not self.ignores(e.name)]
        if not names:
            return []
        adopted = self._adopted(place, directory, entries)
        rows = [row for row in names if row[0] not in adopted]
        return [lambda changes: changes.existing(directory, rows), *adopted.values()]

    def _adopted(self, place: Place, directory: bytes, entries: Sequence[files.Entry]) -> dict[bytes, Difference]:
        """Files whose valid marker stands beside them. Nothing is read in a directory without a marker's name."""
        options = self._settings.marker
        if not any(options.suffix.encode() in e.name for e in entries):
            return {}
        found: dict[bytes, Difference] = {}
        ged = self._ged.path
        with files.root(ged) as root_fd, files.directories(root_fd, directory[len(ged) + 1 :]) as (fd,):
            for entry in entries:
                stamp, path = entry.stamp, directory + b"/" + entry.name
                marker = None
                if stamp is not None and not self.ignores(entry.name):
                    marker = find(fd, entry.name, options.suffix, options.hidden)
                if stamp is not None and marker is not None and marker.size == stamp.size:
                    found[entry.name] = lambda changes, p=path, s=stamp, m=marker: changes.adopt(place, p, s, m)  # type: ignore[misc]
        return found

    def _remove_leftovers(self, listing: Listing) -> None:
        """Remove temporary markers of a crash, before the end of the first pass: no marker is written until then."""
        ged = self._ged
        if not ged.starting:
            return
        for entry in listing.entries:
            if entry.stamp is not None and is_leftover(entry.name):
                with suppress(OSError), files.root(ged.path) as root_fd:  # another owner's, or on a read-only disk
                    files.remove(root_fd, (listing.directory + b"/" + entry.name)[len(ged.path) + 1 :])

    def _tell_unreadable(self, found: Unreadable) -> None:
        """One line for each directory that cannot be read; not for each of a GED that goes in the middle of a pass."""
        ged = self._ged
        if found.passing and not ged.answers():
            raise Away
        ged.unread.add(found.directory)
        ged.failed = ged.failed or found.passing
        place = self._switched.place(found.directory)
        kinds = ged.unknown.values() if place is None else [self._unknown(place, found.directory)]
        kind = next((kind for kind in kinds if kind != "deposit"), None)
        if kind is not None and not found.away:  # what it held before it could be read is not new when it can be
            ged.unseen[found.directory] = kind
        if found.directory not in ged.troubled:
            ged.troubled.add(found.directory)
            folder = found.directory[len(ged.path) + 1 :]
            say("folder_unreachable", client=ged.client.name, folder=folder, reason=found.why)

    def _unknown(self, place: Place, directory: bytes) -> Unknown:
        ged, former = self._ged, self._ged.former
        if ged.unseen:
            kind = next((kind for unseen, kind in ged.unseen.items() if is_in(directory, unseen)), None)
            if kind is not None:
                return kind
        if (ged.other and ged.existing(directory)) or (former is not None and former.switched.place(directory) is None):
            return "existing"
        return self._ged.unknown.get(place.folder.path, "existing")

    def ignored_endings(self) -> tuple[bytes, ...] | None:
        """The endings of ignored names; None where an ending alone does not tell."""
        return ignored_endings(self._settings.ignore, self._settings.marker.suffix)

    def ignores(self, name: bytes) -> str | None:
        """Why a name is no document's; None where it is a document's."""
        return self._settings.ignored(name)


def _attempt(look: Callable[[], os.stat_result | None]) -> os.stat_result | OSError | None:
    try:
        return look()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return error


def _as_they_were(
    known: Mapping[bytes, KnownFile], entries: Sequence[files.Entry]
) -> tuple[dict[int, list[tuple[bytes, Stamp]]], list[files.Entry]]:
    """The unseen files that have not changed since, by the instant of their reading (ns); and the other entries."""
    seen: dict[int, list[tuple[bytes, Stamp]]] = {}
    others = []
    for entry in entries:
        one, stamp = known.get(entry.name), entry.stamp
        by_name = one if one is not None and one.stamp.size == UNSEEN and one.gone_at is None else None
        if by_name and stamp and by_name.stamp.same_file(stamp) and by_name.stamp.same_content(stamp):
            seen.setdefault(by_name.stamp.ctime_ns, []).append((entry.name, stamp))
        else:
            others.append(entry)
    return seen, others
