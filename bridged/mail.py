"""A document as a mail: the header and the footer made beforehand, the bytes streamed between them.

Pure but for reading the file it is handed. The headers are written here and not by `email.message`, because
there a file name such as `=?utf-8?q?=0D=0AX-Evil=3A_1?=.pdf` breaks out into headers of its own. Whatever a
name holds, it leaves as a plain word, as base64 or as percent signs, and the finished block is checked.
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
BLOCK: Final = 4 * 1024 * LINE  # a multiple of LINE: padding may only stand at the very end
STEM_LIMIT: Final = 150  # bytes of an attachment's name before its extension; receivers refuse long ones
OTHER_TYPE: Final = "application/octet-stream"

# Ours and not `mimetypes`, which reads files of the machine. Mails (.eml, .mht) are left out on purpose: a
# message/* part may not be base64, so that relays would rewrite it. No type has a charset: nobody knows it.
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
    """A header block that must not be sent: a bug of this module, or an address nobody validated."""


class Readable(Protocol):
    """What the bytes of a document are read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail without its document. The same arguments of `compose` give the same bytes at each attempt."""

    header: bytes
    footer: bytes

    def size(self, document_bytes: int) -> int:
        """The exact size of the encoded mail around a document of so many bytes."""
        encoded = 4 * -(-document_bytes // 3)
        line_ends = 2 * -(-document_bytes // LINE)
        return len(self.header) + encoded + line_ends + len(self.footer)

    def chunks(self, file: Readable, on_bytes: Callable[[bytes], None]) -> Iterator[bytes]:
        """The mail, piece by piece; `on_bytes` gets every raw block before its encoding is handed out.

        It ends with a line end, and no line ever starts with a dot: nothing is left to escape.
        """
        before = self.header
        while block := _full_block(file):
            on_bytes(block)
            more = _encoded(block)
            if len(block) < BLOCK:  # the end, and most documents are no longer than that: one piece, not three
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

    `subject` may hold {document} and {client}; `neutral` takes out what its receiver would understand as a command.
    No file name and no client's name can add a header or an
    address; what would is cleaned away, and UnsafeHeader is raised if an argument of ours did.
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
    """A mail of our own, to people: nothing but text, for which neither line ends nor characters matter.

    It ends with a line end, and no line starts with a dot. Raises UnsafeHeader as `compose` does.
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
    """The Message-ID of the document `id`, in the sender's domain: as unique as the id is."""
    domain = re.sub(r"[^A-Za-z0-9.-]", "", sender.rpartition("@")[2]).strip(".-")
    local = re.sub(r"[^A-Za-z0-9_-]", "-", id)
    return f"<{local}.bridged@{domain or 'bridged.invalid'}>"


def frozen_date(epoch: float) -> str:
    """An instant as the text of a `Date:` header, in UTC, whatever the machine's locale."""
    return format_datetime(datetime.fromtimestamp(epoch, UTC))


def media_type(name: str) -> str:
    """The type of a name's extension: always the same one, and a plain sequence of bytes where unknown."""
    return TYPES.get(name.rpartition(".")[2].lower(), OTHER_TYPE) if "." in name else OTHER_TYPE


def clean(name: bytes) -> str:
    """A readable name: NFC, one line. Bytes that are not UTF-8 are read as Windows once wrote them."""
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
# What ends a line for some parser or other, and what turns the text of a line around.
_DANGEROUS: Final = frozenset("\u2028\u2029\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_PLAIN_WORD: Final = re.compile(r"[A-Za-z0-9_(](?:[A-Za-z0-9 ._()+,&@!'~-]*[A-Za-z0-9_)])?")
# Of printable ASCII: a class that excludes the rest of Unicode takes 7 ms to compile.
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
    """Both places of the name, in the pair of forms that most receivers decode."""
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
    """The block as bytes, if it has exactly the lines it should have: each header once and in its place."""
    if not _LINES_ONLY.fullmatch(block):
        raise UnsafeHeader("A header line holds a forbidden character, or is too long.")
    lines = block.split("\r\n")
    shape = [line if line in _BODY else line.partition(": ")[0] for line in lines if line[:1] != " "]
    if shape != wanted:
        raise UnsafeHeader("The header block does not have the lines it should have.")
    return block.encode("ascii")


def _full_block(file: Readable) -> bytes:
    """The next BLOCK bytes, fewer only at the end: a short read in the middle would put padding there."""
    block = file.read(BLOCK)
    while block and len(block) < BLOCK and (more := file.read(BLOCK - len(block))):
        block += more
    return block


def _encoded(block: bytes) -> bytes:
    """Base64 in lines of 76 columns, 64 of them cut at a time: one by one that takes longer than the encoding."""
    text = b2a_base64(block, newline=False)
    rest = len(text) - len(text) % _LINES.size
    parts = [b"\r\n".join(lines) for lines in _LINES.iter_unpack(memoryview(text)[:rest])]
    parts += [text[start : start + 76] for start in range(rest, len(text), 76)]
    return b"".join((b"\r\n".join(parts), b"\r\n"))
