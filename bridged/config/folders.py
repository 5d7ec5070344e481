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


def components(pattern: str) -> list[re.Pattern[str]]:
    """One expression for each path component. `*` matches within one; composed and decomposed accents agree."""
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    return [_expression(part) for part in parts]


def _expression(part: str) -> re.Pattern[str]:
    literal_brackets = part.replace("[", "[[]")  # `*` alone is promised, because a folder may be called `[2026]`
    return re.compile(translate(_normal(literal_brackets.replace("?", "[?]"))))


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _text(component: bytes) -> str:
    return _normal(os.fsdecode(component))


def matches(expressions: Sequence[re.Pattern[str]], parts: Sequence[bytes]) -> bool:
    """True when the first parts of a path match the expressions, one by one."""
    return len(parts) >= len(expressions) and all(
        expression.match(_text(part)) for expression, part in zip(expressions, parts, strict=False)
    )


class SwitchedFolders:
    """The switched folders of one configuration. Several threads may ask it at once."""

    def __init__(self, clients: Sequence[Client], ignore: Sequence[str] = ()) -> None:
        self._ignore = tuple(ignore)
        self._clients = {os.fsencode(client.ged): client for client in clients}
        self._rules = {
            ged: sorted(
                ((components(f.path), [components(e) for e in f.exclude], f) for f in client.switched_folders),
                key=lambda rule: -len(rule[0]),
            )
            for ged, client in self._clients.items()
        }
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
        """The place of a directory. None where the bridge is off, or a rule excludes or ignores the directory."""
        cache = self._cache
        if directory not in cache:
            found = self._as_above(directory) or self._find(directory)
            if len(cache) >= _REMEMBERED:
                cache = self._cache = {}  # replaced and not cleared, because other threads read the full one
            cache[directory] = found
        return cache[directory]

    def _as_above(self, directory: bytes) -> Place | None:
        """The place of the directory above, where it is known and no rule can tell the two apart.

        It answers for most directories, and costs a fraction of `_find`.
        """
        above, _, name = directory.rpartition(b"/")
        place = self._cache.get(above)
        if place is None or place.folder.exclude or ignored_directory(name, self._ignore):
            return None
        depth = directory.count(b"/") - place.ged.count(b"/")
        deepest, _, _ = self._rules[place.ged][0]
        return place if len(deepest) < depth else None

    def _find(self, directory: bytes) -> Place | None:
        ged = self.ged_of(directory)
        if ged is None:
            return None
        parts = [part for part in directory[len(ged) :].split(b"/") if part]
        for expressions, excluded, folder in self._rules[ged]:
            if matches(expressions, parts):
                depth = len(expressions)
                inner = parts[depth:]
                off = any(matches(e, inner) for e in excluded) or any(
                    ignored_directory(part, self._ignore) for part in inner
                )
                return None if off else self._place(ged, folder, b"/".join([ged, *parts[:depth]]))
        return None

    def _place(self, ged: bytes, folder: SwitchedFolder, root: bytes) -> Place:
        return self._places.setdefault((root, folder.path), Place(self._clients[ged], folder, root, ged))
