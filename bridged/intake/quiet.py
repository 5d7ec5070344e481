"""Has a deposit stopped changing, and does it look whole? Pure: stamps, bytes and seconds."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bridged.model import Stamp

HEAD: Final = 1024  # bytes from the start of a file that `looks_whole` needs
# Reads a file: a position and a number of bytes to the bytes there. Fewer at its end, b"" behind it.
Reader = Callable[[int, int], bytes]

_TAIL: Final = 66_000  # bytes before the padding that may hold a file's end: a ZIP's comment takes 65,535
_PADDING: Final = 1 << 20  # bytes of padding that are passed over
_PDF_TAIL: Final = 2048  # bytes at the end of a PDF that are enough to hold %%EOF, with garbage behind it
_TRAILER: Final = 4096  # bytes that a camera or a scanner may append to a picture
_BLOCK: Final = 1 << 18  # bytes read at a time
_LONGEST_PICTURE: Final = 64 << 20  # bytes of a picture that are searched for its end
_MOST_PARTS: Final = 20_000  # parts of a picture or a video that are passed over

_ZIP_END: Final = b"PK\x05\x06"
_PNG_END: Final = b"IEND\xaeB`\x82"
_JPEG: Final = b"\xff\xd8\xff"
_JPEG_END: Final = b"\xff\xd9"
# A marker behind compressed data, where 00 stands for the data byte FF, and D0 to D7 begin a part of it (ITU-T T.81).
_JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_PADDED: Final = b"\0 \t\r\n\x1a"
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


def looks_whole(name: bytes, size: int, head: bytes, read: Reader) -> bool:
    """False when a PDF, JPEG, PNG or ZIP is visibly cut off, or not begun. Other types count as whole.

    `head` is the first HEAD bytes or all, and tells the type. The name tells the type only while the start of the file
    is still missing. Padding behind the end, and a trailer (a telephone's video), do not make a file cut off. Reads
    no more than 66 MB, and of most files little. Raises as `read` does.
    """
    if not size or _is_not_begun(name, head):
        return False
    if _is_pdf(name, head):
        return _pdf_is_whole(_ending(size, read)[1])
    if head.startswith(_JPEG):
        return _jpeg_is_whole(size, head, read)
    if head.startswith(_MAGIC[b"png"]):
        return _PNG_END in _ending(size, read)[1][-_TRAILER:] or _png_end(size, read) > 0
    if head.startswith((b"PK\x03\x04", _ZIP_END)):
        return _zip_is_whole(size, read)
    return True


def _is_pdf(name: bytes, head: bytes) -> bool:
    return bool(re.match(rb"[\s\xef\xbb\xbf]*%PDF-", head)) or (_extension(name) == b"pdf" and b"%PDF-" in head)


def _extension(name: bytes) -> bytes:
    return name.rpartition(b".")[2].lower()


def _is_not_begun(name: bytes, head: bytes) -> bool:
    """True when the first bytes are missing, or zeros. SMB sets space aside before it writes."""
    magic = _MAGIC.get(_extension(name))
    return magic is not None and (not head.strip(b"\0") or (len(head) < len(magic) and magic.startswith(head)))


def _ending(size: int, read: Reader) -> tuple[int, bytes]:
    """The last bytes before the padding, and the position behind them. None and 0 where no scanner pads so much."""
    end = size
    while end > 0 and size - end <= _PADDING:
        start = max(0, end - _TAIL)
        content = read(start, end - start).rstrip(_PADDED)
        if content:
            end = start + len(content)
            start = max(0, end - _TAIL)
            return end, read(start, end - start)
        end = start
    return 0, b""


def _pdf_is_whole(ending: bytes) -> bool:
    """True when %%EOF comes last. An object behind it begins another version, or the pages of a linearized PDF."""
    end = ending.rfind(b"%%EOF")
    if end < 0:
        return False
    return end >= len(ending) - _PDF_TAIL or not re.search(rb"\d \d+ obj\b", ending[end:])


def _jpeg_is_whole(size: int, head: bytes, read: Reader) -> bool:
    """True when there is an end of image, and not only that of the preview that cameras put in front."""
    end, ending = _ending(size, read)
    behind = len(ending) - ending.rfind(_JPEG_END) - 2
    if _JPEG_END in ending and behind <= _TRAILER and end - behind - 2 >= _jpeg_segments(head):
        return True
    picture = _jpeg_end(0, size, read)
    return picture > 0 and _trailer_is_whole(picture, size, read)


def _jpeg_segments(head: bytes) -> int:
    """The position behind the leading segments, as far as the head tells. A preview lies in one of them."""
    position = 2
    while position + 4 <= len(head) and head[position] == 0xFF and head[position + 1] not in (0xD9, 0xDA):
        position += 2 + int.from_bytes(head[position + 2 : position + 4], "big")
    return position


def _jpeg_end(start: int, size: int, read: Reader) -> int:
    """The position behind the end of the picture that begins at `start`; 0 where there is none."""
    position, longest = start + 2, min(size, start + _LONGEST_PICTURE)
    for _ in range(_MOST_PARTS):
        segment = read(position, 4)
        if segment[:2] == _JPEG_END:
            return position + 2
        if segment[:2] == b"\xff\xff":  # a byte before a marker that fills space
            position += 1
            continue
        if len(segment) < 4 or segment[0] != 0xFF or position >= longest:
            return 0
        position += 2 + int.from_bytes(segment[2:], "big")
        if segment[1] == 0xDA:  # compressed data follows, which has no length
            position = _jpeg_marker(position, longest, read)
            if not position:
                return 0
    return 0


def _jpeg_marker(position: int, longest: int, read: Reader) -> int:
    """The position of the marker behind compressed data; 0 where there is none."""
    while position < longest:
        block = read(position, _BLOCK)
        found = _JPEG_MARKER.search(block)
        if found:
            return position + found.start()
        if len(block) < 2:
            return 0
        position += len(block) - 1  # again from its last byte, because a marker may lie across two blocks
    return 0


def _trailer_is_whole(start: int, size: int, read: Reader) -> bool:
    """False when a video or a second picture behind a picture is visibly cut off. Other trailers count as whole."""
    trailer = read(start, HEAD)
    behind = len(trailer) - len(trailer.lstrip(b"\0"))
    if trailer[behind:].startswith(_JPEG):
        return _jpeg_end(start + behind, size, read) > 0
    video = trailer.find(b"ftyp") - 4
    return video < 0 or _boxes_end(start + video, size, read) <= size


def _boxes_end(position: int, size: int, read: Reader) -> int:
    """The position behind the boxes of a video (ISO/IEC 14496-12). Beyond `size` where the last one is cut off."""
    for _ in range(_MOST_PARTS):
        box = read(position, 16) if position < size else b""
        length = int.from_bytes(box[8:16] if box[:4] == b"\0\0\0\1" else box[:4], "big")
        if length < 8 or not re.match(rb".{4}[ -~]{4}", box, re.DOTALL):  # 0: to the end of the file
            return position
        position += length
    return position


def _png_end(size: int, read: Reader) -> int:
    """The position behind the last chunk of a PNG; 0 where there is none."""
    position = 8
    for _ in range(_MOST_PARTS):
        chunk = read(position, 8)
        if len(chunk) < 8 or not chunk[4:].isalpha():
            return 0
        position += 12 + int.from_bytes(chunk[:4], "big")
        if chunk[4:] == b"IEND":
            return position if position <= size else 0
    return 0


def _zip_is_whole(size: int, read: Reader) -> bool:
    """True when a complete end record comes last. An archive that is stored inside has an end record of its own."""
    content, _ = _ending(size, read)
    start = max(0, content - _TAIL)
    tail = read(start, 2 * _TAIL)  # beyond the content, because zeros at the end of the record look like padding
    end = tail.rfind(_ZIP_END)
    if end < 0 or end + 22 > len(tail):
        return False
    comment = int.from_bytes(tail[end + 20 : end + 22], "little")
    rest = end + 22 + comment
    return rest <= len(tail) and not tail[rest:].startswith(b"PK")
