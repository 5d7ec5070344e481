"""Has a deposit stopped changing, and does it look whole? Pure: stamps, bytes and seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from bridged.model import Stamp

HEAD: Final = 1024  # bytes from the start of a file that `looks_whole` needs
TAIL: Final = 66_000  # bytes from its end, because a ZIP may end with a comment of 65,535 bytes

_PDF_TAIL: Final = 2048  # bytes at the end of a PDF that must hold %%EOF
_TRAILER: Final = 4096  # bytes that a camera or a scanner may append to a picture

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
    """The stamp of a deposit, and the instant since which it has not changed, in seconds."""

    stamp: Stamp
    since: float

    def observe(self, stamp: Stamp, now: float) -> Calm:
        """The calm after one more look. It goes on while size, mtime and inode are the same, and otherwise begins anew.

        It begins anew also when the clock was set back. Otherwise the deposit would wait until the clock caught up.
        """
        unchanged = self.stamp.same_file(stamp) and now >= self.since
        return Calm(stamp, self.since if unchanged else now)

    def quiet_for(self, now: float) -> float:
        """Seconds without a change, at least 0."""
        return max(0.0, now - self.since)


def tail_wanted(name: bytes, head: bytes) -> int:
    """The number of last bytes that `looks_whole` needs of a file: 0 for most."""
    if _is_pdf(name, head):
        return _PDF_TAIL
    return TAIL if head.startswith((b"\xff\xd8\xff", _MAGIC[b"png"], b"PK\x03\x04", _ZIP_END)) else 0


def looks_whole(name: bytes, size: int, head: bytes, tail: bytes) -> bool:
    """False when a PDF, JPEG, PNG or ZIP is visibly cut off, or not begun. Other types count as whole.

    `head` is the first HEAD bytes or all, and tells the type. `tail` is the last `tail_wanted` bytes or all. The name
    tells the type only while the start of the file is still missing.
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
    """True when the first bytes are missing, or zeros. SMB sets space aside before it writes."""
    magic = _MAGIC.get(_extension(name))
    return magic is not None and (not head.strip(b"\0") or (len(head) < len(magic) and magic.startswith(head)))


def _jpeg_is_whole(size: int, head: bytes, tail: bytes) -> bool:
    """True when there is an end of image, and not only that of the preview that cameras put in front."""
    end = tail.rfind(b"\xff\xd9")
    if end < 0:
        return False
    trailer = tail[end + 2 :].rstrip(b"\0")
    return not trailer or (len(trailer) <= _TRAILER and size - len(tail) + end >= _jpeg_segments(head))


def _jpeg_segments(head: bytes) -> int:
    """The position behind the leading segments, as far as the head tells. A preview lies in one of them."""
    position = 2
    while position + 4 <= len(head) and head[position] == 0xFF and head[position + 1] not in (0xD9, 0xDA):
        position += 2 + int.from_bytes(head[position + 2 : position + 4], "big")
    return position


def _zip_is_whole(tail: bytes) -> bool:
    """True when a complete end record comes last. An archive that is stored inside has an end record of its own."""
    end = tail.rfind(_ZIP_END)
    if end < 0 or end + 22 > len(tail):
        return False
    comment = int.from_bytes(tail[end + 20 : end + 22], "little")
    rest = end + 22 + comment
    return rest <= len(tail) and not tail[rest:].startswith(b"PK")
