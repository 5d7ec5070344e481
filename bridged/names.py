"""Which names are documents: what the system, an editor, a transfer or bridged itself made is not. Pure.

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

# First how any of them begins: it is asked of each directory there is.
_SYSTEM_DIRECTORY: Final = re.compile(
    rb"(?is:(?=[@.#~$lns_])(?:@eadir|\.@__thumb|\#recycle|\#snapshot|@recycle|@recently-snapshot|@tmp|\.trash-.*|\.snapshot|~snapshot"
    rb"|\.stversions|\$recycle\.bin|system\ volume\ information|lost\+found|__macosx|network\ trash\ folder))"
)

# Safari downloads into a directory `x.pdf.download`, which holds a half `x.pdf`.
_TEMPORARY_DIRECTORY: Final = re.compile(rb"(?s:.+\.(?i:download)|.+\.sb-[0-9a-f]{8}-[A-Za-z0-9]{6})")

# What Windows, macOS, GNOME, browsers and synchronizers put between `.validated` and `.json`.
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
    """None for a document's name; otherwise why the file is ignored, in a word or four.

    `extra` are the patterns of the configuration, `marker` and `hidden` say what markers are called: a file
    that merely bears a marker's name, or the name that a copy of a marker gets, is ignored too.
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
    """What a name ends with, in lower case, that is ignored though no built-in rule says so.

    None where patterns or marker are of another kind, so that each name must be judged by itself.
    """
    stem, dot, extension = marker.rpartition(".")
    endings = [pattern.removeprefix("*") for pattern in extra if pattern.startswith("*")] + [dot + extension]
    # Some characters beyond ASCII are composed to `;` and "`".
    plain = all(ending and ending.isascii() and not set(ending) & set("*?[;`") for ending in endings)
    if not stem or len(endings) <= len(extra) or not plain:
        return None
    return tuple(ending.lower().encode() for ending in endings)


def ignored_directory(name: bytes, extra: Sequence[str] = ()) -> str | None:
    """None for a directory that may hold documents; otherwise why it and everything below is ignored."""
    if _SYSTEM_DIRECTORY.fullmatch(name):
        return "system"
    if b"." in name and _TEMPORARY_DIRECTORY.fullmatch(name):
        return "temporary"
    if name.startswith(b"."):
        return "hidden"
    return "ignored by configuration" if extra and _configured(_text(name), extra) else None


_LEFTOVER: Final = re.compile(rb"\.bridged-[0-9a-f]{16}(-[2-9])?\.tmp")


def is_leftover(name: bytes) -> bool:
    """Whether a name is that of a marker's temporary file. One found at the start was left by a crash."""
    return _LEFTOVER.fullmatch(name) is not None


_UNNAMED: Final = re.compile(rb"#[0-9]+")


def is_unnamed(name: bytes) -> bool:
    """Whether the kernel calls a file so that has no name (open(2), O_TMPFILE), as each marker has none at first.

    One that is really called so is told of when it gets that name; what is written over it later a full pass finds.
    """
    return _UNNAMED.fullmatch(name) is not None


_FIRST_KEYS: Final = (b"status", b"document", b"client", b"collection_email", b"sha256")
_STRING: Final = rb'"(?:[^"\\]|\\.)*'
_PAIR: Final = re.compile(rb'\s*"(\w+)"\s*:\s*(' + _STRING + rb'")\s*,', re.DOTALL)
_CUT_PAIR: Final = re.compile(rb'\s*"(\w+)"\s*:\s*' + _STRING + rb"\\?", re.DOTALL)


def looks_like_marker(head: bytes) -> bool:
    """Whether a file that starts like this is a marker, whatever its name: a copied, renamed or cut-off one.

    The keys of a marker in their order, so that another program's `{"status": "validated", …}` is a document.
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
    """Whether it is worth asking the expression, which takes its time and is asked of every name there is."""
    _, dot, extension = marker.rpartition(".")
    ending = dot + extension
    return ending == marker or not ending.isascii() or text[-len(ending) :].lower() == ending.lower()


@lru_cache(maxsize=16)
def _marker_expression(suffix: str) -> re.Pattern[str]:
    """The suffix at the end of a longer name, with or without what a copy puts before its extension."""
    suffix = unicodedata.normalize("NFC", suffix)
    stem, dot, extension = suffix.rpartition(".")
    if not stem:  # `.ok`, `-sent`: a copy's mark comes before or after the whole of it
        whole = re.escape(suffix)
        return re.compile(rf".(?:{whole}{_COPY}|{_COPY}{whole})\Z", re.DOTALL | re.IGNORECASE)
    ending = re.escape(dot + extension)
    return re.compile(rf".{re.escape(stem)}{_COPY}{ending}\Z", re.DOTALL | re.IGNORECASE)


@lru_cache(maxsize=256)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(unicodedata.normalize("NFC", pattern)))


def _configured(text: str, patterns: Sequence[str]) -> bool:
    return bool(patterns) and any(_expression(pattern).match(text) for pattern in patterns)
