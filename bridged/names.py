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

# Linux mounts of Windows shares show the forbidden ":" as a character of the private use area, in two ways.
_COLON: Final = rb"(?::|\xef\x80[\xba\xa2])"

# The first characters come first, because every file is asked.
_SYSTEM: Final = re.compile(
    rb"(?is:(?=[.cdehiptz])(?:thumbs\.db|ehthumbs(?:_vista)?\.db|desktop\.ini|\.ds_store|\._.*"
    rb"|icon(?:\r|\xef\x80\x8d|:0d)"  # a folder's icon: on macOS, by a mount of its share, by netatalk
    rb"|desktop\ d[bf]"  # AFP's desktop database
    rb"|pspbrwse\.jbf|picasa\.ini|zbthumbnail\.info|hpothb07\.(?:dat|tif)"  # thumbnails of cameras and scanners
    rb"|csync_journal\.db(?:\.ctmp)?))"  # older clients of Nextcloud and ownCloud
)

# FreeFileSync: databases, locks, settings.
_SYSTEM_EXTENSIONS: Final = frozenset({b"ffs_db", b"ffs_lock", b"ffs_batch", b"ffs_gui", b"ffs_real"})

# A document may have a colon in its name. A stream is told by its own name, or by the extension before the colon.
_STREAM_NAME: Final = (
    rb"(?:zone\.identifier|smartscreen|afp_(?:afpinfo|resource)|com\.(?:apple|dropbox)\..+|encryptable|favicon"
    rb"|oecustomproperty|ms-properties|wofcompresseddata|kavichs|kdstream|dropboxrev|sec\.endpointdlp"
    rb"|\{4c8cc155-6c1e-11d1-8e41-00c04fb9386d\})"
)
_DATA: Final = rb"(?:" + _COLON + rb"\$data)"
_WHOLE_EXTENSION: Final = (
    rb"\.(?:pdf|p7[ms]|xml|html?|txt|csv|tsv|json|rtf|log|eml|msg|vcf|ics|edi|ofx|qif|epub|o?xps"
    rb"|do[ct][xm]?|xl[st][xmb]?|pp[st][xm]?|od[tspg]|ot[ts]|pages|numbers|pub|vsdx?"
    rb"|jpe?g?|jfif|png|gif|tiff?|bmp|webp|hei[cf]|avif|svg|eps|psd|indd|dwg|dxf"
    rb"|zip|7z|rar|tar|t?gz|bz2|mp[34]|m4[av]|mov|avi|mkv|wav|wm[av]|ogg|exe|msi|lnk|url)"
)

# An alternate data stream of NTFS, as a copy or a mount shows it; `Facture 12:30.pdf` and `orange.fr:12.pdf` are none.
_STREAM: Final = re.compile(
    rb"(?is:.+" + _COLON + _STREAM_NAME + _DATA + rb"?|.+" + _DATA + rb"|.+" + _WHOLE_EXTENSION + _COLON + rb"[^ ].*)"
)

_TEMPORARY: Final = re.compile(
    rb"(?s:~|~\$.*|\.~lock\..*\#|\#.+\#"  # Office, LibreOffice, editors
    rb"|~(?i:wr[a-z]\d{4}\.(?:do[ct][xm]?|wbk)|syncthing~.*))"  # Word; Syncthing on Windows
)

_TEMPORARY_EXTENSIONS: Final = frozenset(
    {
        *(b"tmp", b"temp", b"swp", b"part", b"partial", b"filepart", b"lftp-pget-status"),
        *(b"crdownload", b"opdownload", b"download", b"downloading", b"fdmdownload", b"dtapart", b"xltd", b"upload"),
        *(b"!ut", b"!qb", b"!bt", b"bc!", b"!sync", b"aria2", b"ffs_tmp"),
        # A placeholder of a file that is not on this machine.
        *(b"nextcloud", b"owncloud", b"opencloud", b"rsls", b"rslsc", b"rslsf", b"rslsi", b"rslsv", b"rslsz"),
        # Copies and locks that programs keep beside a file.
        *(b"bak", b"orig", b"wbk", b"xlk", b"asd", b"laccdb", b"idlk", b"dwl", b"dwl2"),
    }
)

# Searched behind the first character, and so a whole name by its end. exiftool keeps the kinds that it writes.
_TEMPORARY_END: Final = re.compile(
    rb"(?:~|_(?i:exiftool_tmp|__jb_(?:tmp|old|bak)___)"
    rb"|\.(?:(?i:pdf|jpe?g?|jp2|jxl|png|gif|tiff?|webp|avif|hei[cf]|hif|eps|psd|dng|indd|xmp|mp4|m4[av]|mov)_(?i:original)"
    rb"|~qpdf-(?:orig|temp\#)"
    rb"|sb-[0-9a-f]{8}-[A-Za-z0-9]{6}))\Z"  # how macOS saves over a share
)

_SYSTEM_END: Final = re.compile(rb"@(?i:syno(?:resource|eastream))\Z")  # Synology: forks and attributes

# Most documents' names have these extensions. Without these first characters and a colon no expression matches them.
_USUAL: Final = frozenset(
    {b"pdf", b"jpg", b"jpeg", b"png", b"xml", b"docx", b"xlsx", b"csv", b"txt", b"zip", b"eml", b"msg"}
)
_UNUSUAL: Final = b".~#"

# netatalk writes the dot of a hidden name as `:2e`.
_HIDDEN: Final = (b".", *(colon + b"2" + e for colon in (b":", b"\xef\x80\xba", b"\xef\x80\xa2") for e in (b"e", b"E")))

# The first characters come first, because every directory is asked.
_SYSTEM_DIRECTORY: Final = re.compile(
    rb"(?is:(?=[@.#~$lns_tfdr])(?:@eadir|\.@__thumb|\#recycle|\#snapshot|@recycle|@recently-snapshot|@tmp"
    rb"|@share(?:bin|snap)|\.trash-.*|\.snapshot|~snapshot|\.stversions|\$recycle\.bin|system\ volume\ information"
    rb"|lost\+found|found\.\d{3}|dfsrprivate|__macosx|_gsdata_|network\ trash\ folder|temporary\ items"
    rb"|the(?:volumesettings|findbycontent)folder|resource\.frk))"
)

# Safari downloads into a directory `x.pdf.download`, which holds a half `x.pdf`. FreeFileSync deletes into `x.ffs_tmp`.
_TEMPORARY_DIRECTORY: Final = re.compile(rb"(?s:.+\.(?i:download|ffs_tmp)|.+\.sb-[0-9a-f]{8}-[A-Za-z0-9]{6})")

# macOS saves in a directory of this name beside the document.
_SAVING: Final = re.compile(rb"(?is:\(a\ document\ being\ saved\ by\ .+\))")

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
    if (hidden or not name.startswith(b".")) and _ends_like(text, marker) and _marker_expression(marker).search(text):
        return "marker"
    found = _built_in(name)
    if found:
        return found
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
    if (b"." in name and _TEMPORARY_DIRECTORY.fullmatch(name)) or (name.startswith(b"(") and _SAVING.fullmatch(name)):
        return "temporary"
    if name.startswith(_HIDDEN):
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


def _built_in(name: bytes) -> str | None:
    """The reason for which a name is ignored whatever the configuration says."""
    extension = _extension(name)
    has_colon = b":" in name or b"\xef\x80" in name
    if extension in _USUAL and name[0] not in _UNUSUAL and not has_colon:
        return None
    if _SYSTEM.fullmatch(name) or extension in _SYSTEM_EXTENSIONS or _SYSTEM_END.search(name, 1):
        return "system"
    if has_colon and _STREAM.fullmatch(name):
        return "system"
    if _TEMPORARY.fullmatch(name) or extension in _TEMPORARY_EXTENSIONS or _TEMPORARY_END.search(name, 1):
        return "temporary"
    return "hidden" if name.startswith(_HIDDEN) else None


def _extension(name: bytes) -> bytes:
    """The extension in lower case; b"" for a name without one, or without a character before its dot."""
    stem, _, extension = name.rpartition(b".")
    return extension.lower() if stem else b""


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
