"""The documents that a collector would drop without a word, and the reasons. Pure: names, bytes and sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from bridged.config.collectors import IMAGES, OTHER, WORDS, Limit, Profile
from bridged.mail import OTHER_TYPE, clean, media_type

HEAD: Final = 1024  # bytes from the start of a file that tell its kind


@dataclass(frozen=True)
class Objections:
    """Sentences for a person: reasons to hold a document, and warnings about it."""

    holds: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())


def kind_of(name: bytes, head: bytes) -> str:
    """The kind of a document, one of KINDS, by its content. By its extension when the content does not tell.

    `head`: the first HEAD bytes, or all of a shorter document.
    """
    return _kind_by_content(name, head) or _kind_by_name(name) or OTHER


def objections(profile: Profile, name: bytes, head: bytes, size: int, mail_size: int) -> Objections:
    """The objections of this collector to this document. None of them where its limits are not known.

    `size`: bytes of the document. `mail_size`: bytes of the encoded mail. A daily cap is no objection, because it
    only puts documents off.
    """
    holds: list[str] = []
    warnings: list[str] = []
    for limit, sure, sentence in (*_about_the_type(profile, name, head), *_about_sizes(profile, name, head, size)):
        (holds if sure and limit.holds else warnings).append(_with_source(sentence, limit, sure=sure))
    if (most := profile.largest_mail) and mail_size > most.value:
        sentence = _too_large(profile, "mails", most.value, mail_size)
        (holds if most.holds else warnings).append(_with_source(sentence, most))
    return Objections(tuple(holds), tuple(warnings))


def neutral(profile: Profile, subject: str) -> str:
    """The subject without signs and words that the collector takes for a command: `#note` becomes `note`.

    A subject that was not empty does not become empty. An unconfirmed limit counts, because it costs nothing.
    """
    avoided = profile.avoid_in_subject.value if profile.avoid_in_subject else ()
    text, before = subject, None
    while text != before:  # a removal may join two halves to a command again
        before = text
        for item in avoided:
            text = _without(text, item)
    if text == subject:
        return subject
    text = " ".join(text.split())
    return text or "document"


# -- the objections

_Found = tuple[Limit[frozenset[str]] | Limit[int], bool, str]


def _about_the_type(profile: Profile, name: bytes, head: bytes) -> Iterator[_Found]:
    """At most one objection: the limit, whether the document is surely refused, the sentence."""
    limit = profile.types
    if not limit:
        return
    content, extension, named = _kind_by_content(name, head), _extension(name), _kind_by_name(name)
    refused = next((kind for kind in (content, named) if kind and kind not in limit.value), None)
    if refused and refused == content == OTHER:
        yield limit, True, f"{profile.name} accepts no file with this content"
    elif refused and refused == OTHER:
        yield limit, True, f"{profile.name} accepts no .{extension} file"
    elif refused and content and refused != content:
        sentence = f"{profile.name} accepts no {WORDS[refused]}, and the name says that this {WORDS[content]} is one"
        yield limit, True, sentence
    elif refused:
        yield limit, True, f"{profile.name} accepts no {WORDS[refused]}"
    elif content and extension and not named:
        yield (
            limit,
            False,
            f"{profile.name} may go by the ending .{extension}, which says nothing of a {WORDS[content]}",
        )
    elif content and not extension:
        yield limit, False, f"{profile.name} may go by the ending, and the name of this {WORDS[content]} has none"
    elif not content and named in _TOLD_BY_CONTENT:
        yield (
            limit,
            False,
            f"The name says {WORDS[named]} and the content does not, so that {profile.name} may refuse it",
        )
    elif not content and not named and OTHER not in limit.value:
        yield limit, False, f"It cannot be told what kind of file this is, so that {profile.name} may refuse it"


def _about_sizes(profile: Profile, name: bytes, head: bytes, size: int) -> Iterator[_Found]:
    if (limit := profile.largest_file) and size > limit.value:
        yield limit, True, _too_large(profile, "files", limit.value, size)
    if (limit := profile.largest_image) and size > limit.value and kind_of(name, head) in IMAGES:
        yield limit, True, _too_large(profile, "images", limit.value, size)
    if (limit := profile.smallest_file) and size < limit.value:
        least, has = _sizes(limit.value, size)
        yield limit, True, f"{profile.name} accepts files of at least {least}, and this one has {has}"


def _too_large(profile: Profile, what: str, limit: int, size: int) -> str:
    most, has = _sizes(limit, size)
    return f"{profile.name} accepts {what} of at most {most}, and this one has {has}"


def _with_source(sentence: str, limit: Limit[frozenset[str]] | Limit[int], *, sure: bool = True) -> str:
    would = {"yes": "would", "partly": "would probably"}.get(limit.verified)
    what = f"it {would if sure else 'may'} drop this document without a word" if would else "this is not confirmed"
    return f"{sentence}: {what} (source: {limit.source})."


def _sizes(limit: int, given: int) -> tuple[str, str]:
    """Both sizes in words. In bytes when the words would be the same."""
    words = _size(limit), _size(given)
    return words if words[0] != words[1] else (f"{limit:,} bytes", f"{given:,} bytes")


def _size(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{round(size / factor, 1):g} {unit}"
    return f"{size} bytes"


# -- the subject


def _without(text: str, item: str) -> str:
    """The text without a sign anywhere, or without a word that stands alone. Of `#word` the sign goes first."""
    signs = re.match(r"[\W_]*", item)
    assert signs is not None
    word = item[signs.end() :]
    if not word:  # between two words a space replaces it. Otherwise `a@split` would become another word
        text = re.sub(rf"(?<=\w){re.escape(item)}(?=\w)", " ", text)
        return text.replace(item, "")
    if signs[0]:
        return re.sub(rf"{re.escape(signs[0])}(?={re.escape(word)})", "", text, flags=re.IGNORECASE)
    return re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "", text, flags=re.IGNORECASE)


# -- the kind, by the name

# By media type and not by extension, because `mail` holds the one table of extensions.
_KINDS_BY_TYPE: Final[dict[str, str]] = {
    "application/pdf": "pdf",
    "image/jpeg": "jpeg",
    "image/png": "png",
    "image/gif": "gif",
    "image/tiff": "tiff",
    "image/bmp": "bmp",
    "image/webp": "webp",
    "image/heic": "heic",
    "image/heif": "heic",
    "application/xml": "xml",
    "application/zip": "zip",
    "text/plain": "text",
    "text/csv": "csv",
    "application/rtf": "word",  # a collector that accepts Word accepts RTF
    "application/msword": "word",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "word",
    "application/vnd.ms-excel": "excel",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "excel",
    "application/vnd.oasis.opendocument.text": "opendocument",
    "application/vnd.oasis.opendocument.spreadsheet": "opendocument",
    "application/vnd.oasis.opendocument.presentation": "opendocument",
}


# Kinds whose content always begins with a sign. A file with such an extension and without the sign is suspect.
_TOLD_BY_CONTENT: Final = IMAGES | {"pdf", "zip", "opendocument"}


def _extension(name: bytes) -> str:
    """The extension of the name in the mail, or "". `Facture n. 12` has none."""
    text = clean(name)
    found = re.search(r"[^.]\.([A-Za-z0-9]{1,8})$", text)
    return found[1].lower() if found else ""


def _kind_by_name(name: bytes) -> str | None:
    """The kind of a known extension. None for an unknown one, and without one."""
    kind = media_type(clean(name))
    return _KINDS_BY_TYPE.get(kind, OTHER) if kind != OTHER_TYPE else None


# -- the kind, by the content

_SIGNS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"%PDF-", "pdf"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0\x08\0\0\0", "tiff"),  # BigTIFF
    (b"MM\0+\0\x08\0\0", "tiff"),
    (b"{\\rtf", "word"),
    (b"7z\xbc\xaf\x27\x1c", OTHER),
    (b"Rar!\x1a\x07", OTHER),
    (b"\x1f\x8b\x08", OTHER),  # gzip
    (b"\0\0\0\x0cjP  \r\n\x87\n", OTHER),  # JPEG 2000
    (b"\x7fELF", OTHER),
)


_BITMAP_HEADERS: Final = frozenset({12, 40, 52, 56, 64, 108, 124})


_HEIC_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})


_HEIF_BRANDS: Final = frozenset({b"mif1", b"mif2", b"msf1"})  # AVIF has them too


_AVIF_BRANDS: Final = frozenset({b"avif", b"avis"})


_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


_BYTE_ORDERS: Final = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", "utf-32-le"),
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)


def _kind_by_content(name: bytes, head: bytes) -> str | None:
    """The kind by the first bytes. None when they show none, as in plain text."""
    for sign, kind in _SIGNS:
        if head.startswith(sign):
            return kind
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _archive(name, head)
    if head.startswith(_OLE):
        return _ole(name, head)
    if head[4:8] == b"ftyp":
        return _media(head)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    # The size of the header as well, because "BM" alone may begin a sentence.
    if head.startswith(b"BM") and head[6:10] == b"\0" * 4 and int.from_bytes(head[14:18], "little") in _BITMAP_HEADERS:
        return "bmp"
    # Scanners and print servers put lines before the PDF. Last, because a ZIP may hold a PDF that early.
    return _markup(head) or ("pdf" if b"%PDF-" in head[:HEAD] else None)


def _archive(name: bytes, head: bytes) -> str:
    """The kind of a ZIP file, which an Office document is. The head goes before the extension."""
    if head[30:38] == b"mimetype":
        return "opendocument" if head[38:].startswith(b"application/vnd.oasis.opendocument.") else OTHER
    if b"[Content_Types].xml" in head:
        parts = re.search(rb"PK\x03\x04.{26}(word|xl|ppt)/", head, re.DOTALL)
        if parts:
            return {b"word": "word", b"xl": "excel", b"ppt": OTHER}[parts[1]]
    named = _kind_by_name(name)
    if named in ("word", "excel", "opendocument", OTHER):
        return named
    return OTHER if b"[Content_Types].xml" in head else "zip"


def _ole(name: bytes, head: bytes) -> str | None:
    """The kind of an old Office format. By extension, because its directory may lie anywhere in the file."""
    if "WordDocument".encode("utf-16-le") in head:
        return "word"
    if "Workbook".encode("utf-16-le") in head:
        return "excel"
    named = _kind_by_name(name)
    return named if named in ("word", "excel", OTHER) else OTHER


def _media(head: bytes) -> str:
    """HEIC, told from other boxed formats: AVIF, videos."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}
    if brands & _HEIC_BRANDS:
        return "heic"
    return "heic" if head[8:12] in _HEIF_BRANDS and not brands & _AVIF_BRANDS else OTHER


def _markup(head: bytes) -> str | None:
    """XML by its declaration, in any encoding. A web page is no XML, even with one."""
    text = _decoded(head).lstrip("\ufeff \t\r\n").lower()
    if re.match(r"<!doctype html|<html[\s>]", text):
        return OTHER
    if re.match(r"<\?xml[\s?]", text):
        return OTHER if re.search(r"<!doctype html|<html[\s>]", text) else "xml"
    return None


def _decoded(head: bytes) -> str:
    for mark, encoding in _BYTE_ORDERS:
        if head.startswith(mark):
            return head[len(mark) :].decode(encoding, "replace")
    if head.startswith(b"<\0"):
        return head.decode("utf-16-le", "replace")
    if head.startswith(b"\0<"):
        return head.decode("utf-16-be", "replace")
    return head.decode("latin-1")
