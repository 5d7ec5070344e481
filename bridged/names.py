"""The names of documents, and the ignored names: of the system, an editor, a transfer, or bridged itself. Pure.

Each expression matches a whole name, not a part of one: `notes~$2.pdf` and `template.tmp.pdf` are documents.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from fnmatch import translate
from functools import lru_cache
from typing import Final

# Linux mounts of Windows shares show the forbidden ":" as a character of the private use area.
_COLON: Final = rb"(?::|\xef\x80[\xba\xa2])"

_SYSTEM: Final = re.compile(
    rb"(?is:thumbs\.db|ehthumbs(?:_vista)?\.db|desktop\.ini|\.ds_store|icon\r|\._.*"
    rb"|.+" + _COLON + rb"zone\.identifier(?::\$data)?)"
)

_TEMPORARY: Final = re.compile(
    rb"(?s:~\$.*|\.~lock\..*\#|.*~|\#.+\#|.+\.swp"  # Office, LibreOffice, editors
    rb"|.+\.(?i:te?mp|part|partial|filepart|crdownload|opdownload|download|upload|!ut|!qb|!bt|aria2)"
    rb"|.+\.sb-[0-9a-f]{8}-[A-Za-z0-9]{6})"  # how macOS saves over a share
)

# The first characters come first, because every directory is asked.
_SYSTEM_DIRECTORY: Final = re.compile(
    rb"(?is:(?=[@.#~$lns_])(?:@eadir|\.@__thumb|\#recycle|\#snapshot|@recycle|@recently-snapshot|@tmp|\.trash-.*|\.snapshot|~snapshot"
    rb"|\.stversions|\$recycle\.bin|system\ volume\ information|lost\+found|__macosx|network\ trash\ folder))"
)

# Safari downloads into a directory `x.pdf.download`, which holds a half `x.pdf`.
_TEMPORARY_DIRECTORY: Final = re.compile(rb"(?s:.+\.(?i:download)|.+\.sb-[0-9a-f]{8}-[A-Za-z0-9]{6})")

# The words that Windows, macOS, GNOME, browsers and synchronizers put between `.validated` and `.json` of a copy.
_COPY_WORD: Final = r"(?:copie|copy|kopie|kopi|kopia|copia|cópia)"
_COPY: Final = (
    r"(?:-\d+"
    r"|[ _]?\(\d+\)"
    rf"|[ _-]+{_COPY_WORD}(?:[ _]?\d+)?"
    rf"|[ _]\((?:another |autre |\d+\w{{0,3}} )?{_COPY_WORD}(?: \d+)?\)"
    r"|[ _]\([^()]*(?:conflict|conflit)[^()]*\)"
    r"|\.sync-conflict-\d{8}-\d{6}-[A-Z0-9]{7})*"
)


def verdict(name: bytes, *, extra: Sequence[str], marker: str, hidden: bool) -> str | None:
    """None for a document's name; otherwise the reason for which the file is ignored, in one to four words.

    `extra` are the patterns of the configuration. `marker` is the suffix of markers, and `hidden` their dot in front. A
    file that merely bears a marker's name is ignored as well, and so is a copy of a marker.
    """
    text = _text(name)
    dotted = name.startswith(b".")
    if (hidden or not dotted) and _ends_like(text, marker) and _marker_expression(marker).search(text):
        return "marker"
    if _SYSTEM.fullmatch(name):
        return "system"
    if _TEMPORARY.fullmatch(name):
        return "temporary"
    if dotted:
        return "hidden"
    return "ignored by configuration" if _configured(text, extra) else None


def ignored_endings(extra: Sequence[str], marker: str) -> tuple[bytes, ...] | None:
    """The endings, in lower case, of the names that only the configuration ignores.

    None where a pattern or the marker's suffix is no plain ending, so that each name must be judged by itself.
    """
    stem, dot, extension = marker.rpartition(".")
    endings = [pattern.removeprefix("*") for pattern in extra if pattern.startswith("*")] + [dot + extension]
    # Not `;` and "`", because Unicode composes other characters to them.
    plain = all(ending and ending.isascii() and not set(ending) & set("*?[;`") for ending in endings)
    if not stem or len(endings) <= len(extra) or not plain:
        return None
    return tuple(ending.lower().encode() for ending in endings)


def ignored_directory(name: bytes, extra: Sequence[str] = ()) -> str | None:
    """None for a directory that may hold documents; otherwise the reason for which its whole tree is ignored."""
    if _SYSTEM_DIRECTORY.fullmatch(name):
        return "system"
    if b"." in name and _TEMPORARY_DIRECTORY.fullmatch(name):
        return "temporary"
    if name.startswith(b"."):
        return "hidden"
    return "ignored by configuration" if extra and _configured(_text(name), extra) else None


_LEFTOVER: Final = re.compile(rb"\.bridged-[0-9a-f]{16}(-[2-9])?\.tmp")


def is_leftover(name: bytes) -> bool:
    """True for the name of a marker's temporary file. One that is found at the start was left by a crash."""
    return _LEFTOVER.fullmatch(name) is not None


_UNNAMED: Final = re.compile(rb"#[0-9]+")


def is_unnamed(name: bytes) -> bool:
    """True for the name that the kernel gives to a file without one (open(2), O_TMPFILE), as a new marker is.

    A document may really bear such a name. A hint comes when it gets the name, and a full pass finds a later save.
    """
    return _UNNAMED.fullmatch(name) is not None


_FIRST_KEYS: Final = (b"status", b"document", b"client", b"collection_email", b"sha256")
_STRING: Final = rb'"(?:[^"\\]|\\.)*'
_PAIR: Final = re.compile(rb'\s*"(\w+)"\s*:\s*(' + _STRING + rb'")\s*,', re.DOTALL)
_CUT_PAIR: Final = re.compile(rb'\s*"(\w+)"\s*:\s*' + _STRING + rb"\\?", re.DOTALL)


def looks_like_marker(head: bytes) -> bool:
    """True for the beginning of a marker under any name: a copied, renamed or cut-off one.

    The keys of a marker must stand in their order. Another program's `{"status": "validated", …}` is a document.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not re.match(rb'\{\s*"status"\s*:\s*"validated"\s*,', text):
        return False
    position, found = 1, 0
    while found < len(_FIRST_KEYS) and (pair := _PAIR.match(text, position)) and pair[1] == _FIRST_KEYS[found]:
        position, found = pair.end(), found + 1
    if found == len(_FIRST_KEYS):
        return True
    cut = _CUT_PAIR.fullmatch(text, position)
    return cut is not None and cut[1] == _FIRST_KEYS[found]


def _text(name: bytes) -> str:
    text = name.decode("utf-8", "surrogateescape")
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _ends_like(text: str, marker: str) -> bool:
    """False when the marker's expression cannot match. Asked first, because the expression is slow."""
    _, dot, extension = marker.rpartition(".")
    ending = dot + extension
    return ending == marker or not ending.isascii() or text[-len(ending) :].lower() == ending.lower()


@lru_cache(maxsize=16)
def _marker_expression(suffix: str) -> re.Pattern[str]:
    """Matches a longer name that ends with the suffix, with or without the mark of a copy before its extension."""
    suffix = unicodedata.normalize("NFC", suffix)
    stem, dot, extension = suffix.rpartition(".")
    if not stem:  # `.ok`, `-sent`: the mark of a copy comes before or after the whole suffix
        whole = re.escape(suffix)
        return re.compile(rf".(?:{whole}{_COPY}|{_COPY}{whole})\Z", re.DOTALL | re.IGNORECASE)
    ending = re.escape(dot + extension)
    return re.compile(rf".{re.escape(stem)}{_COPY}{ending}\Z", re.DOTALL | re.IGNORECASE)


@lru_cache(maxsize=256)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(unicodedata.normalize("NFC", pattern)))


def _configured(text: str, patterns: Sequence[str]) -> bool:
    return bool(patterns) and any(_expression(pattern).match(text) for pattern in patterns)
