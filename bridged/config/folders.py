"""The switched folder that a directory is in, and so the client and the address of its documents.

Only paths are compared; no file is touched.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate

from bridged.config.collectors import Profile
from bridged.config.presets import collector
from bridged.config.settings import Client, SwitchedFolder
from bridged.names import ignored_directory

_REMEMBERED = 10_000  # directories whose place is kept in memory


@dataclass(frozen=True, slots=True)
class Place:
    """The switched folder of a directory. `root` is that folder with every `*` filled in; `ged` is an absolute path."""

    client: Client
    folder: SwitchedFolder
    root: bytes
    ged: bytes

    @property
    def collection_email(self) -> str:
        """The address of the folder, or of the client where the folder has none."""
        return self.folder.collection_email or self.client.collection_email

    @property
    def collector(self) -> Profile:
        """The profile of the folder's collector, or of the client's where the folder names none."""
        return collector(self.folder.collector or self.client.collector)


@dataclass(frozen=True, slots=True)
class Component:
    """One component of a pattern.

    A component with `*` admits no ignored directory. Otherwise `*` would switch on `#recycle` and `.snapshot`. A
    component that is written in full names its directory on purpose, whatever the directory is called.
    """

    text: str
    expression: re.Pattern[str]
    ignore: tuple[str, ...]

    def admits(self, name: bytes) -> bool:
        """True for the name of a directory that the component stands for."""
        matched = self.expression.match(_text(name)) is not None
        return matched and ("*" not in self.text or ignored_directory(name, self.ignore) is None)

    def precedence(self) -> tuple[int, int, str]:
        """Smaller for the component that says more: in full before with `*`, then the longer before the shorter."""
        return self.text.count("*"), -len(self.text), self.text


def components(pattern: str, ignore: Sequence[str] = ()) -> list[Component]:
    """The components of a pattern. `*` matches within one; composed and decomposed accents agree.

    `ignore` are the patterns of the configuration, whose directories `*` does not match.
    """
    parts = [_normal(part) for part in pattern.split("/") if part not in ("", ".")]
    return [Component(part, _expression(part), tuple(ignore)) for part in parts]


def _expression(part: str) -> re.Pattern[str]:
    literal_brackets = part.replace("[", "[[]")  # `*` alone is promised, because a folder may be called `[2026]`
    return re.compile(translate(literal_brackets.replace("?", "[?]")))


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _text(component: bytes) -> str:
    return _normal(os.fsdecode(component))


def _covers(pattern: Sequence[Component], parts: Sequence[bytes]) -> bool:
    """True when the first parts of a path are admitted, one by one."""
    return len(parts) >= len(pattern) and all(
        component.admits(part) for component, part in zip(pattern, parts, strict=False)
    )


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of `switched_folders`, with its pattern and its exclusions taken apart."""

    pattern: Sequence[Component]
    excluded: Sequence[Sequence[Component]]
    folder: SwitchedFolder

    def precedence(self) -> tuple[int, list[tuple[int, int, str]]]:
        """Smaller for the line that says the address: the deeper one, then the one named in full."""
        return -len(self.pattern), [component.precedence() for component in self.pattern]

    def leaves_on(self, inner: Sequence[bytes], ignore: Sequence[str]) -> bool:
        """True for a directory below this line that the line neither excludes nor ignores."""
        return not any(_covers(one, inner) for one in self.excluded) and not any(
            ignored_directory(part, ignore) for part in inner
        )


def _lines(client: Client, ignore: Sequence[str]) -> list[_Line]:
    lines = (_Line(components(f.path, ignore), [components(e) for e in f.exclude], f) for f in client.switched_folders)
    return sorted(lines, key=_Line.precedence)


class SwitchedFolders:
    """The switched folders of one configuration. Several threads may ask it at once.

    A directory is on when any line covers it and neither excludes nor ignores it. An exclusion is its own line's: it
    does not switch off a directory that another line covers. Of several such lines the first says the address: the
    deeper before the shallower, and of one depth the one named in full before one with `*`. The order in the file
    does not count.
    """

    def __init__(self, clients: Sequence[Client], ignore: Sequence[str] = ()) -> None:
        self._ignore = tuple(ignore)
        self._clients = {os.fsencode(client.ged): client for client in clients}
        self._rules = {ged: _lines(client, self._ignore) for ged, client in self._clients.items()}
        self._cache: dict[bytes, Place | None] = {}
        self._places: dict[tuple[bytes, str], Place] = {}  # one object for each folder, not for each of its directories

    def ged_of(self, path: bytes) -> bytes | None:
        """The GED that a path is in, or None."""
        while path not in self._clients:
            path, separator, _ = path.rpartition(b"/")
            if not separator:
                return None
        return path

    def client_of(self, path: bytes) -> Client | None:
        """The client whose GED a path is in, or None."""
        ged = self.ged_of(path)
        return None if ged is None else self._clients[ged]

    def place(self, directory: bytes) -> Place | None:
        """The place of a directory. None where the bridge is off: no line covers it, or each that does excludes it."""
        cache = self._cache
        if directory not in cache:
            found = self._as_above(directory) or self._find(directory)
            if len(cache) >= _REMEMBERED:
                cache = self._cache = {}  # replaced and not cleared, because other threads read the full one
            cache[directory] = found
        return cache[directory]

    def _as_above(self, directory: bytes) -> Place | None:
        """The place of the directory above, where it is known and no line can tell the two apart.

        A line before the one of that place excludes the directory above, or ignores a part of it, and so this one as
        well. It answers for most directories, and costs a fraction of `_find`.
        """
        above, _, name = directory.rpartition(b"/")
        place = self._cache.get(above)
        if place is None or place.folder.exclude or ignored_directory(name, self._ignore):
            return None
        depth = directory.count(b"/") - place.ged.count(b"/")
        deepest = self._rules[place.ged][0].pattern
        return place if len(deepest) < depth else None

    def _find(self, directory: bytes) -> Place | None:
        ged = self.ged_of(directory)
        if ged is None:
            return None
        parts = [part for part in directory[len(ged) :].split(b"/") if part]
        for line in self._rules[ged]:
            depth = len(line.pattern)
            if _covers(line.pattern, parts) and line.leaves_on(parts[depth:], self._ignore):
                return self._place(ged, line.folder, b"/".join([ged, *parts[:depth]]))
        return None

    def _place(self, ged: bytes, folder: SwitchedFolder, root: bytes) -> Place:
        return self._places.setdefault((root, folder.path), Place(self._clients[ged], folder, root, ged))
