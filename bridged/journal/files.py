"""The known files by path, the directories, the switched folders and the mounts.

Knowledge is by path. A row stays for a moment after its file has gone (`gone_at`), so that a file which turns up
elsewhere with the same identity is the same file, renamed.

The names of a first look at a directory are kept packed, as the kernel gives them: names and inodes. They count as rows
with unseen stamps, become rows with the first change in the directory, and are replaced once the files are looked at.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Final, Literal

from bridged.journal import packed
from bridged.journal.values import KnownFile, Mounted
from bridged.model import INODE_BITS, UNSEEN, Stamp, unseen
from bridged.paths import below, limbo, split

_SELECT: Final = (
    "SELECT d.path, k.name, k.inode, k.size, k.mtime_ns, k.ctime_ns, k.document, k.gone_at"
    " FROM known k JOIN directories d ON d.id = k.directory WHERE "
)


# One row where the directory is on record: the file of that name, and the directory's packed names.
_AT: Final = (
    "SELECT d.path, k.name, k.inode, k.size, k.mtime_ns, k.ctime_ns, k.document, k.gone_at, p.read_ns, p.records"
    " FROM directories d LEFT JOIN known k ON k.directory = d.id AND k.name = ?"
    " LEFT JOIN packed p ON p.directory = d.id WHERE d.path = ?"
)


_UNSEEN: Final = f"k.mtime_ns = 0 AND k.size = {UNSEEN}"  # as the index known_by_time has it
_HAS_FILES: Final = (
    "(EXISTS (SELECT 1 FROM known WHERE directory = d.id) OR EXISTS (SELECT 1 FROM packed WHERE directory = d.id))"
)


def _stamped(read_ns: int, records: bytes) -> list[tuple[bytes, Stamp]]:
    return [(name, unseen(inode & INODE_BITS, read_ns)) for name, inode in packed.files(records)]


def _file(row: tuple[bytes, bytes, int, int, int, int, int | None, float | None]) -> KnownFile:
    return KnownFile(row[0] + b"/" + row[1], Stamp(*row[2:6]), row[6], row[7])


class Directories:
    """The part of a transaction that keeps directories and their times."""

    _sql: sqlite3.Connection

    def times_below(self, ged: bytes) -> list[tuple[bytes, int, int]]:
        """Path, times and number of inner directories of each directory in a GED whose times are on record."""
        of = "times IS NOT NULL AND (path = ? OR (path >= ? AND path < ?))"
        sql = f"SELECT path, times, children FROM directories WHERE {of}"  # noqa: S608
        return self._sql.execute(sql, (ged, *below(ged))).fetchall()

    def keep_times(self, times: Iterable[tuple[bytes, int, int]], void: Iterable[bytes]) -> None:
        """Record the times of directories whose files are all known. The times of those in `void` no longer hold."""
        self._sql.executemany("UPDATE directories SET times = NULL WHERE path = ?", ((path,) for path in void))
        self._sql.executemany(
            "INSERT INTO directories (path, times, children) VALUES (?, ?, ?)"
            " ON CONFLICT (path) DO UPDATE SET times = excluded.times, children = excluded.children",
            times,
        )

    def directories_below(self, directory: bytes) -> list[bytes]:
        """The directories with known files: this one and those below it."""
        rows = self._sql.execute(
            f"SELECT path FROM directories d WHERE (path = ? OR (path >= ? AND path < ?)) AND {_HAS_FILES}",  # noqa: S608
            (directory, *below(directory)),
        )
        return [row[0] for row in rows]

    def recorded_below(self, directory: bytes) -> list[bytes]:
        """The same, and perhaps directories without known files. It is fast for a large GED, too."""
        sql = "SELECT path FROM directories WHERE path = ? OR (path >= ? AND path < ?)"
        return [row[0] for row in self._sql.execute(sql, (directory, *below(directory))).fetchall()]

    def _number(self, path: bytes) -> int | None:
        row = self._sql.execute("SELECT id FROM directories WHERE path = ?", (path,)).fetchone()
        return None if row is None else int(row[0])


class KnownFiles(Directories):
    """The part of a transaction that keeps known files."""

    def known(self, path: bytes) -> KnownFile | None:
        """The known file at a path."""
        directory, name = split(path)
        row = self._sql.execute(_AT, (name, directory)).fetchone()
        if row is None or row[1] is not None:
            return None if row is None else _file(row[:8])
        stamp = None if row[9] is None else dict(_stamped(*row[8:])).get(name)
        return None if stamp is None else KnownFile(path, stamp, None, None)

    def standing(self, path: bytes, document: int) -> Literal["here", "moved", "replaced"]:
        """Whether a path still stands for its document.

        "moved": the file was renamed, and is not found again yet. "replaced": another document has its path.
        """
        here = self.known(path)
        if here is not None and here.document == document:
            return "here"
        elsewhere = self.known(limbo(path))
        if elsewhere is not None and elsewhere.document == document:
            return "moved"
        return "here" if here is None or here.document is None else "replaced"

    def known_in(self, directory: bytes) -> dict[bytes, KnownFile]:
        """The known files of one directory, by name."""
        found = {name: KnownFile(directory + b"/" + name, stamp, None, None) for name, stamp in self._packed(directory)}
        rows = self._sql.execute(_SELECT + "d.path = ?", (directory,))
        return found | {row[1]: _file(row) for row in rows}

    def unseen_until(self, ged: bytes) -> int:
        """When (ns) the last names of a GED were read whose files are unseen; 0 where every file was looked at."""
        of = "directory IN (SELECT id FROM directories WHERE path = ? OR (path >= ? AND path < ?))"
        packed = f"SELECT MAX(read_ns) AS at FROM packed WHERE {of}"  # noqa: S608
        rows = f"SELECT MAX(ctime_ns) AS at FROM known k WHERE {_UNSEEN} AND {of}"  # noqa: S608
        sql = f"SELECT MAX(at) FROM ({packed} UNION ALL {rows})"  # noqa: S608
        return self._sql.execute(sql, (ged, *below(ged)) * 2).fetchone()[0] or 0

    def unseen_files(self, inode: int) -> list[KnownFile]:
        """Unseen known files with this inode. It searches all unseen files."""
        rows = self._sql.execute(_SELECT + f"{_UNSEEN} AND k.inode = ?", (inode,))
        found = [_file(row) for row in rows]
        sql = "SELECT d.path FROM packed p JOIN directories d ON d.id = p.directory WHERE instr(p.records, ?)"
        for (directory,) in self._sql.execute(sql, (packed.inode(inode),)).fetchall():
            files = self._packed(directory)
            found += [KnownFile(directory + b"/" + name, s, None, None) for name, s in files if s.inode == inode]
        return found

    def same_files(self, stamp: Stamp) -> list[KnownFile]:
        """Known files with the identity of `stamp`: a file may have been renamed from their paths."""
        rows = self._sql.execute(
            _SELECT + "k.inode = ? AND k.size = ? AND k.mtime_ns = ?",
            (stamp.inode, stamp.size, stamp.mtime_ns),
        )
        return [_file(row) for row in rows]

    def same_content(self, stamp: Stamp) -> list[KnownFile]:
        """The same by size and modification time, for file systems whose inode numbers mean nothing."""
        rows = self._sql.execute(_SELECT + "k.size = ? AND k.mtime_ns = ?", (stamp.size, stamp.mtime_ns))
        return [_file(row) for row in rows]

    def gone(self, ged: bytes) -> list[KnownFile]:
        """Known files of a GED that were found gone."""
        found = "k.gone_at IS NOT NULL AND (d.path = ? OR (d.path >= ? AND d.path < ?))"
        return [_file(row) for row in self._sql.execute(_SELECT + found, (ged, *below(ged)))]

    def knows_any(self, directory: bytes) -> bool:
        """Whether any file is known in this directory or below it."""
        sql = f"SELECT 1 FROM directories d WHERE (path = ? OR (path >= ? AND path < ?)) AND {_HAS_FILES} LIMIT 1"  # noqa: S608
        return self._sql.execute(sql, (directory, *below(directory))).fetchone() is not None

    def existing_counts(self) -> list[tuple[bytes, int]]:
        """Each directory with the number of its existing files."""
        found = self._sql.execute(
            "SELECT d.path, COUNT(*) FROM known k JOIN directories d ON d.id = k.directory"
            " WHERE k.document IS NULL AND k.gone_at IS NULL AND k.size <> -1 GROUP BY d.id"
        ).fetchall()
        rows = self._sql.execute("SELECT d.path, p.records FROM packed p JOIN directories d ON d.id = p.directory")
        return found + [(path, sum(1 for _ in packed.files(records))) for path, records in rows]

    def know(self, path: bytes, stamp: Stamp, document: int | None) -> None:
        """The path is known from now on, with this stamp. A mark that its file was gone is lifted."""
        directory, name = split(path)
        self.know_all(directory, [(name, stamp)], document)

    def know_all(self, directory: bytes, files: Iterable[tuple[bytes, Stamp]], document: int | None = None) -> None:
        """The same for many files of one directory."""
        self._insert(self._directory(directory), files, document)

    def pack(self, found: Sequence[packed.Packed]) -> None:
        """Record the first looks at these directories."""
        first = self._sql.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM directories").fetchone()[0]
        rows = [(number, one.directory, one.times, one.children) for number, one in enumerate(found, first)]
        numbers: list[int | None] = [row[0] for row in rows]
        if self._insert_rows("IGNORE INTO directories (id, path, times, children)", rows) < len(rows):
            numbers = [self._number(one.directory) for one in found]
            before = [row[1] for number, row in zip(numbers, rows, strict=True) if number != row[0]]
            self.keep_times([], before)  # the end of this pass, or of the next one, records them
        records = [(number, one.read_ns, one.records) for number, one in zip(numbers, found, strict=True)]
        empty = [(row[0],) for row in records if not packed.has_files(row[2])]
        self._insert_rows("REPLACE INTO packed (directory, read_ns, records)", records)
        self._sql.executemany("DELETE FROM packed WHERE directory = ?", empty)

    def see(self, directory: bytes, read_ns: int, files: Sequence[tuple[bytes, Stamp]]) -> None:
        """Record the stamps of files whose names were read then, but for files that have changed meanwhile."""
        number = self._number(directory)
        row = self._sql.execute(
            "SELECT records FROM packed WHERE directory = ? AND read_ns = ?", (number, read_ns)
        ).fetchone()
        if row is not None and {name for name, _ in packed.files(row[0])} == {name for name, _ in files}:
            self._insert(number, files, None, "IGNORE")
            self._sql.execute("DELETE FROM packed WHERE directory = ?", (number,))
            return
        number = self._directory(directory)
        self._sql.executemany(
            f"UPDATE known AS k SET inode = ?, size = ?, mtime_ns = ?, ctime_ns = ? WHERE {_UNSEEN}"  # noqa: S608
            " AND ctime_ns = ? AND document IS NULL AND gone_at IS NULL AND directory = ? AND name = ?",
            [(*stamp, read_ns, number, name) for name, stamp in files],
        )

    def mark_gone(self, path: bytes, at: float) -> None:
        """The file was found gone. Its row stays until a rename explains it."""
        directory, name = split(path)
        number = self._unpacked(directory)
        sql = "UPDATE known SET gone_at = ? WHERE gone_at IS NULL AND name = ? AND directory = ?"
        self._sql.execute(sql, (at, name, number))

    def forget(self, path: bytes) -> None:
        """The path is unknown from now on."""
        directory, name = split(path)
        number = self._unpacked(directory)
        self._sql.execute("DELETE FROM known WHERE name = ? AND directory = ?", (name, number))

    def forget_in(self, directory: bytes) -> None:
        """Every file of one directory is unknown from now on."""
        number = self._number(directory)
        self._sql.execute("DELETE FROM known WHERE directory = ?", (number,))
        self._sql.execute("DELETE FROM packed WHERE directory = ?", (number,))
        self.keep_times((), [directory])  # otherwise the directory would not be read again

    def _insert_rows(self, into: str, rows: Sequence[tuple[object, ...]]) -> int:
        """The number of rows inserted, by one statement, because a thread gives its turn away at each."""
        values = ", ".join(["(" + ", ".join("?" * len(rows[0])) + ")"] * len(rows))
        sql = f"INSERT OR {into} VALUES {values}"  # noqa: S608 - constants and marks only
        return self._sql.execute(sql, list(chain.from_iterable(rows))).rowcount

    def _packed(self, directory: bytes) -> list[tuple[bytes, Stamp]]:
        sql = "SELECT read_ns, records FROM packed WHERE directory = (SELECT id FROM directories WHERE path = ?)"
        row = self._sql.execute(sql, (directory,)).fetchone()
        return [] if row is None else _stamped(*row)

    def _unpacked(self, path: bytes) -> int | None:
        """The number of a directory; None where it is not on record. Each of its files has a row from now on."""
        sql = "SELECT d.id, p.read_ns, p.records FROM directories d LEFT JOIN packed p ON p.directory = d.id"
        row = self._sql.execute(f"{sql} WHERE d.path = ?", (path,)).fetchone()
        if row is None:
            return None
        number = int(row[0])
        if row[2] is not None:
            self._insert(number, _stamped(*row[1:]), None, "IGNORE")
            self._sql.execute("DELETE FROM packed WHERE directory = ?", (number,))
        return number

    def _insert(
        self, number: int | None, files: Iterable[tuple[bytes, Stamp]], document: int | None, otherwise: str = "REPLACE"
    ) -> None:
        self._sql.executemany(
            f"INSERT OR {otherwise} INTO known VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",  # noqa: S608
            [(number, name, *stamp, document) for name, stamp in files],
        )

    def _directory(self, path: bytes) -> int:
        number = self._unpacked(path)
        if number is not None:
            return number
        number = self._sql.execute("INSERT INTO directories (path) VALUES (?)", (path,)).lastrowid
        assert number is not None
        return number


class Folders:
    """The part of a transaction that keeps switched folders and mounts."""

    _sql: sqlite3.Connection

    def folders(self) -> dict[tuple[bytes, str], float]:
        """Since when each switched folder is on record, by GED and pattern as configured."""
        rows = self._sql.execute("SELECT ged, pattern, since FROM folders")
        return {(ged, pattern): since for ged, pattern, since in rows}

    def read_folders(self, ged: bytes) -> set[str]:
        """The patterns of a GED's switched folders whose existing files are all known."""
        return {row[0] for row in self._sql.execute("SELECT pattern FROM folders WHERE ged = ? AND read", (ged,))}

    def set_read(self, ged: bytes, *, read: bool) -> None:
        """Record whether the existing files of a GED's switched folders are all known."""
        self._sql.execute("UPDATE folders SET read = ? WHERE ged = ?", (read, ged))

    def switch_on(self, ged: bytes, pattern: str, since: float) -> None:
        """Record a switched folder that has not been read yet. An earlier date stays."""
        self._sql.execute("INSERT OR IGNORE INTO folders VALUES (?, ?, ?, 0)", (ged, pattern, since))

    def switch_off(self, ged: bytes, pattern: str) -> None:
        """The folder is no longer switched on."""
        self._sql.execute("DELETE FROM folders WHERE ged = ? AND pattern = ?", (ged, pattern))

    def mounted(self, path: bytes) -> Mounted | None:
        """The mount that was last seen at this directory: a GED, or a directory inside one."""
        row = self._sql.execute("SELECT source, point, inode, fsid FROM mounts WHERE path = ?", (path,)).fetchone()
        return None if row is None else Mounted(*row)

    def mounted_below(self, ged: bytes) -> list[bytes]:
        """The directories inside a GED at which a mount was seen."""
        return [row[0] for row in self._sql.execute("SELECT path FROM mounts WHERE path >= ? AND path < ?", below(ged))]

    def forget_mounted(self, path: bytes) -> None:
        """No mount is expected at this directory any more."""
        self._sql.execute("DELETE FROM mounts WHERE path = ?", (path,))

    def set_mounted(self, path: bytes, mounted: Mounted) -> None:
        """Record the mount at this directory."""
        row = (path, mounted.source, mounted.point, mounted.inode, mounted.fsid)
        self._sql.execute("INSERT OR REPLACE INTO mounts VALUES (?, ?, ?, ?, ?)", row)
