"""Whether a deposit has stopped changing, and whether it looks whole. Pure: stamps, bytes and an instant."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from bridged.model import Stamp

HEAD: Final = 1024  # bytes from the start of a file that `looks_whole` wants
TAIL: Final = 66_000  # and from its end: a ZIP may end with a comment of 65,535 bytes

_PDF_TAIL: Final = 2048
_TRAILER: Final = 4096  # what cameras and scanners append to a picture

_ZIP_END: Final = b"PK\x05\x06"
_PNG_END: Final = b"IEND\xaeB`\x82"
_MAGIC: Final[dict[bytes, bytes]] = {
    b"pdf": b"%PDF-",
    b"jpg": b"\xff\xd8\xff",
    b"jpeg": b"\xff\xd8\xff",
    b"png": b"\x89PNG\r\n\x1a\n",
    b"zip": b"PK\x03\x04",
    b"docx": b"PK\x03\x04",
    b"xlsx": b"PK\x03\x04",
}


@dataclass(frozen=True, slots=True)
class Calm:
    """What a deposit looked like, and since when it has looked like that."""

    stamp: Stamp
    since: float

    def observe(self, stamp: Stamp, now: float) -> Calm:
        """Seen again: calm goes on if size, mtime and inode are the same, and starts anew if not.

        It starts anew too when the clock was set back, or the deposit would wait until the clock caught up.
        """
        unchanged = self.stamp.same_file(stamp) and now >= self.since
        return Calm(stamp, self.since if unchanged else now)

    def quiet_for(self, now: float) -> float:
        """Seconds without a change, never negative."""
        return max(0.0, now - self.since)


def tail_wanted(name: bytes, head: bytes) -> int:
    """How many of its last bytes `looks_whole` wants to see: none of most files."""
    if _is_pdf(name, head):
        return _PDF_TAIL
    return TAIL if head.startswith((b"\xff\xd8\xff", _MAGIC[b"png"], b"PK\x03\x04", _ZIP_END)) else 0


def looks_whole(name: bytes, size: int, head: bytes, tail: bytes) -> bool:
    """False if a PDF, JPEG, PNG or ZIP is visibly cut off, or not begun; other types count as whole.

    The type is told by `head`, the first HEAD bytes (or all); `tail` is the last `tail_wanted` bytes (or all). The
    name only helps where there is no telling yet: the start of the file is still missing.
    """
    if not size or _is_not_begun(name, head):
        return False
    if _is_pdf(name, head):
        return b"%%EOF" in tail[-_PDF_TAIL:]
    if head.startswith(b"\xff\xd8\xff"):
        return _jpeg_is_whole(size, head, tail)
    if head.startswith(_MAGIC[b"png"]):
        return _PNG_END in tail.rstrip(b"\0")[-_TRAILER:]
    if head.startswith((b"PK\x03\x04", _ZIP_END)):
        return _zip_is_whole(tail)
    return True


def _is_pdf(name: bytes, head: bytes) -> bool:
    return bool(re.match(rb"[\s\xef\xbb\xbf]*%PDF-", head)) or (_extension(name) == b"pdf" and b"%PDF-" in head)


def _extension(name: bytes) -> bytes:
    return name.rpartition(b".")[2].lower()


def _is_not_begun(name: bytes, head: bytes) -> bool:
    """Space was set aside (SMB does) and nothing written yet, or not even the first bytes are there."""
    magic = _MAGIC.get(_extension(name))
    return magic is not None and (not head.strip(b"\0") or (len(head) < len(magic) and magic.startswith(head)))


def _jpeg_is_whole(size: int, head: bytes, tail: bytes) -> bool:
    """An end of image, but not that of the preview which cameras put in front of the picture."""
    end = tail.rfind(b"\xff\xd9")
    if end < 0:
        return False
    trailer = tail[end + 2 :].rstrip(b"\0")
    return not trailer or (len(trailer) <= _TRAILER and size - len(tail) + end >= _jpeg_segments(head))


def _jpeg_segments(head: bytes) -> int:
    """Where the leading segments end, as far as the head tells; the preview is inside one of them."""
    position = 2
    while position + 4 <= len(head) and head[position] == 0xFF and head[position + 1] not in (0xD9, 0xDA):
        position += 2 + int.from_bytes(head[position + 2 : position + 4], "big")
    return position


def _zip_is_whole(tail: bytes) -> bool:
    """A complete end record which nothing of an archive follows: a stored archive inside has its own."""
    end = tail.rfind(_ZIP_END)
    if end < 0 or end + 22 > len(tail):
        return False
    comment = int.from_bytes(tail[end + 20 : end + 22], "little")
    rest = end + 22 + comment
    return rest <= len(tail) and not tail[rest:].startswith(b"PK")
