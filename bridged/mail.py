"""A document as a mail (RFC 5322, RFC 2045): header and footer are made first, the bytes are streamed between them.

Pure, except that it reads the file it is handed. The headers are written here, because with `email.message` a file name
such as `=?utf-8?q?=0D=0AX-Evil=3A_1?=.pdf` breaks out into headers of its own. Any name leaves as a plain word, as
base64 or as percent signs, and the finished block is checked.
"""

from __future__ import annotations

import re
import unicodedata
from binascii import b2a_base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from struct import Struct
from typing import Final, Protocol
from urllib.parse import quote

LINE: Final = 57  # raw bytes in a line of 76 columns
BLOCK: Final = 4 * 1024 * LINE  # raw bytes; a multiple of LINE, because padding may only stand at the very end
STEM_LIMIT: Final = 150  # bytes of an attachment's name before its extension, because receivers refuse long names
OTHER_TYPE: Final = "application/octet-stream"

# Not `mimetypes`, because it reads files of the machine. Not .eml and .mht, because a message/* part may not be base64
# (RFC 2046 5.2.1), and relays would rewrite it. No type has a charset, because the charset of a document is unknown.
TYPES: Final[dict[str, str]] = {
    "pdf": "application/pdf",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "jpe": "image/jpeg",
    "jfif": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "bmp": "image/bmp",
    "webp": "image/webp",
    "heic": "image/heic",
    "heif": "image/heif",
    "jp2": "image/jp2",
    "xml": "application/xml",
    "json": "application/json",
    "zip": "application/zip",
    "7z": "application/x-7z-compressed",
    "gz": "application/gzip",
    "csv": "text/csv",
    "txt": "text/plain",
    "rtf": "application/rtf",
    "doc": "application/msword",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xls": "application/vnd.ms-excel",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "ppt": "application/vnd.ms-powerpoint",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "odt": "application/vnd.oasis.opendocument.text",
    "ods": "application/vnd.oasis.opendocument.spreadsheet",
    "odp": "application/vnd.oasis.opendocument.presentation",
    "msg": "application/vnd.ms-outlook",
}


class UnsafeHeader(RuntimeError):
    """A header block that must not be sent: a mistake of this module, or an address that was not validated."""


class Readable(Protocol):
    """The source of a document's bytes."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail without its document. The same arguments of `compose` give the same bytes, at each attempt."""

    header: bytes
    footer: bytes

    def size(self, document_bytes: int) -> int:
        """The exact size in bytes of the encoded mail around a document of `document_bytes` bytes."""
        encoded = 4 * -(-document_bytes // 3)
        line_ends = 2 * -(-document_bytes // LINE)
        return len(self.header) + encoded + line_ends + len(self.footer)

    def chunks(self, file: Readable, on_bytes: Callable[[bytes], None]) -> Iterator[bytes]:
        """The mail, piece by piece. `on_bytes` gets every raw block before its encoding is handed out.

        The last piece ends with a line end, and no line starts with a dot, so that the dot needs no escape.
        """
        before = self.header
        while block := _full_block(file):
            on_bytes(block)
            more = _encoded(block)
            if len(block) < BLOCK:  # the end: one piece and not three, because most documents are that small
                yield b"".join((before, more, self.footer))
                return
            yield before + more
            before = b""
        yield before + self.footer


def compose(
    *,
    id: str,  # noqa: A002 - the contract's word
    name: bytes,
    client: str,
    sender: str,
    collection_email: str,
    subject: str,
    neutral: Callable[[str], str] = str,
    message_id: str,
    date: str,
) -> Mail:
    """The mail of one document: one address, one attachment, a short line of text.

    `subject` may hold {document} and {client}. `neutral` takes the words out of it that the receiver would obey. No
    name of a file or client adds a header or an address, because such characters are replaced. Raises UnsafeHeader
    when another argument would add one.
    """
    whole_name = clean(name)
    words = {"{document}": whole_name, "{client}": client}
    line = re.sub(r"\{document\}|\{client\}", lambda found: words[found[0]], subject)
    attachment = shortened(whole_name)
    lines = [
        f"From: {_address(sender)}",
        f"To: {_address(collection_email)}",
        f"Subject: {_unstructured(neutral(_one_line(line) or whole_name))}",
        f"Date: {date}",
        f"Message-ID: {message_id}",
        "MIME-Version: 1.0",
        "Auto-Submitted: auto-generated",
        f"X-Bridged-Document: {id}",
        f'Content-Type: multipart/mixed; boundary="{_BOUNDARY}"',
        *_BODY,
        *_attachment_lines(attachment),
        "",
    ]
    header = _checked("\r\n".join(lines) + "\r\n")
    return Mail(header=header, footer=f"--{_BOUNDARY}--\r\n".encode("ascii"))


def letter(*, sender: str, to: Sequence[str], subject: str, text: str, message_id: str, date: str) -> bytes:
    """A mail to people: plain text, in base64. Its last line is ended, and no line starts with a dot.

    Raises UnsafeHeader as `compose` does.
    """
    lines = [
        f"From: {_address(sender)}",
        f"To: {f',{_FOLD}'.join(map(_address, to))}",
        f"Subject: {_unstructured(_one_line(subject))}",
        f"Date: {date}",
        f"Message-ID: {message_id}",
        "MIME-Version: 1.0",
        "Auto-Submitted: auto-generated",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: base64",
        "",
    ]
    body = "\r\n".join([*map(_one_line, text.rstrip("\n").split("\n")), ""])
    header = _checked("\r\n".join(lines) + "\r\n", _LETTER_SHAPE)
    return header + b"".join(_encoded(body.encode()[at : at + BLOCK]) for at in range(0, len(body.encode()), BLOCK))


def new_message_id(id: str, sender: str) -> str:  # noqa: A002 - the contract's word
    """The Message-ID (RFC 5322 3.6.4) of the document `id`, in the sender's domain. It is as unique as the id."""
    domain = re.sub(r"[^A-Za-z0-9.-]", "", sender.rpartition("@")[2]).strip(".-")
    local = re.sub(r"[^A-Za-z0-9_-]", "-", id)
    return f"<{local}.bridged@{domain or 'bridged.invalid'}>"


def frozen_date(epoch: float) -> str:
    """Seconds since the epoch as the text of a `Date:` header (RFC 5322 3.3), in UTC and in no locale."""
    return format_datetime(datetime.fromtimestamp(epoch, UTC))


def media_type(name: str) -> str:
    """The media type of a name's extension; `application/octet-stream` for an unknown one."""
    return TYPES.get(name.rpartition(".")[2].lower(), OTHER_TYPE) if "." in name else OTHER_TYPE


def clean(name: bytes) -> str:
    """A readable name: NFC, one line. Bytes that are not UTF-8 are read as Windows-1252."""
    return _one_line(name.decode("utf-8", "surrogateescape").translate(_WINDOWS)) or "document"


def shortened(name: str) -> str:
    """The name with its stem cut to STEM_LIMIT bytes, between two characters, and its extension kept."""
    stem, dot, extension = name.rpartition(".")
    if not stem or len(extension.encode()) > 16:
        stem, dot, extension = name, "", ""
    return _first_bytes(stem, STEM_LIMIT) + dot + extension


_FOLD: Final = "\r\n "
_BOUNDARY: Final = "=_bridged_document"  # base64 has no "_": no document can hold it
_BODY: Final = (
    "",
    f"--{_BOUNDARY}",
    "Content-Type: text/plain; charset=us-ascii",
    "Content-Transfer-Encoding: 7bit",
    "",
    "The document is attached.",
    f"--{_BOUNDARY}",
)
_WINDOWS: Final = {0xDC00 + b: bytes([b]).decode("cp1252", "replace") for b in range(0x80, 0x100)}
# Characters that end a line for some parsers, or turn the text of a line around.
_DANGEROUS: Final = frozenset("\u2028\u2029\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_PLAIN_WORD: Final = re.compile(r"[A-Za-z0-9_(](?:[A-Za-z0-9 ._()+,&@!'~-]*[A-Za-z0-9_)])?")
# Listed and not excluded, because a class that excludes the rest of Unicode takes 7 ms to compile.
_ADDRESS: Final = re.compile(r"[!#-'*+\-./0-9=?A-Z^-~]+@[!#-'*+\-./0-9:=?A-Z\[\]^-~]+")


def _one_line(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return unicodedata.normalize("NFC", "".join("_" if _is_dangerous(c) else c for c in text))


def _is_dangerous(character: str) -> bool:
    return character in _DANGEROUS or unicodedata.category(character) in ("Cc", "Cs")


def _address(address: str) -> str:
    if not _ADDRESS.fullmatch(address):
        raise UnsafeHeader(f"{address!r} is not one plain address.")
    return address


def _unstructured(text: str) -> str:
    if _PLAIN_WORD.fullmatch(text) and len(text) <= 66 and "  " not in text:
        return text
    return _FOLD.join(_encoded_word(piece) for piece in _pieces(text, 39))


def _encoded_word(text: str) -> str:
    return f"=?utf-8?B?{b2a_base64(text.encode(), newline=False).decode('ascii')}?="


def _pieces(text: str, limit: int) -> Iterator[str]:
    while text:
        piece = _first_bytes(text, limit)
        yield piece
        text = text[len(piece) :]


def _first_bytes(text: str, limit: int) -> str:
    return text.encode()[:limit].decode("utf-8", "ignore")


def _attachment_lines(name: str) -> tuple[str, ...]:
    """The part's headers. The name stands as RFC 2047 and as RFC 2231 write it, the pair that most receivers decode."""
    plain = _PLAIN_WORD.fullmatch(name)
    return (
        f"Content-Type: {media_type(name)};",
        f' name="{name if plain else _encoded_word(name)}"',
        "Content-Transfer-Encoding: base64",
        "Content-Disposition: attachment;",
        f' filename="{name}"' if plain else f" filename*=utf-8''{quote(name, safe='')}",
    )


_HEADERS: Final = ("From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Auto-Submitted")
_PART_HEADERS: Final = ("Content-Type", "Content-Transfer-Encoding", "Content-Disposition")
_SHAPE: Final = [*_HEADERS, "X-Bridged-Document", "Content-Type", *_BODY, *_PART_HEADERS, "", ""]
_LETTER_SHAPE: Final = [*_HEADERS, "Content-Type", "Content-Transfer-Encoding", "", ""]
_LINES: Final = Struct("76s" * 64)
_LINES_ONLY: Final = re.compile(r"(?:[\x20-\x7e]{0,998}\r\n)*")


def _checked(block: str, wanted: Sequence[str] = _SHAPE) -> bytes:
    """The block as bytes, when each wanted line stands once and in its place; otherwise raises UnsafeHeader."""
    if not _LINES_ONLY.fullmatch(block):
        raise UnsafeHeader("A header line holds a forbidden character, or is too long.")
    lines = block.split("\r\n")
    shape = [line if line in _BODY else line.partition(": ")[0] for line in lines if line[:1] != " "]
    if shape != wanted:
        raise UnsafeHeader("The header block does not have the lines it should have.")
    return block.encode("ascii")


def _full_block(file: Readable) -> bytes:
    """The next BLOCK bytes, fewer only at the end. Otherwise a short read would put padding into the middle."""
    block = file.read(BLOCK)
    while block and len(block) < BLOCK and (more := file.read(BLOCK - len(block))):
        block += more
    return block


def _encoded(block: bytes) -> bytes:
    """Base64 in lines of 76 columns (RFC 2045 6.8). 64 lines are cut at a time, because one by one is slower."""
    text = b2a_base64(block, newline=False)
    rest = len(text) - len(text) % _LINES.size
    parts = [b"\r\n".join(lines) for lines in _LINES.iter_unpack(memoryview(text)[:rest])]
    parts += [text[start : start + 76] for start in range(rest, len(text), 76)]
    return b"".join((b"\r\n".join(parts), b"\r\n"))
