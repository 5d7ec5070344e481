"""When a deposit has stopped changing, and whether it looks whole."""

import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.intake import HEAD
from bridged.intake.quiet import Calm, looks_whole
from bridged.model import Stamp

STAMP = Stamp(inode=7, size=100, mtime_ns=5, ctime_ns=5)

PDF = b"%PDF-1.7\n" + b"1 0 obj\n" * 900 + b"startxref\n0\n%%EOF\n"
PREVIEW = b"\xff\xd8\xff\xdb\x00\x04ab\xff\xda\x00\x02abc\xff\xd9"
JPEG = (
    b"\xff\xd8\xff\xe1" + (len(PREVIEW) + 2).to_bytes(2, "big") + PREVIEW
    + b"\xff\xdb\x00\x04ab\xff\xda\x00\x02" + b"scan" * 2000 + b"\xff\xd9"
)  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\rIHDR" + b"d" * 9000 + b"\x00\x00\x00\x00IEND\xaeB`\x82"


def zipped(content: bytes, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("inner", content)
        archive.comment = comment
    return buffer.getvalue()


ZIP = zipped(b"x" * 100_000, comment=b"c" * 65_000)


def whole(content: bytes, name: bytes = b"x") -> bool:
    return looks_whole(name, len(content), content[:HEAD], lambda at, length: content[at : at + length])


def test_a_deposit_that_does_not_change_is_quiet_since_it_was_first_seen() -> None:
    calm = Calm(STAMP, 10.0).observe(STAMP, 11.0).observe(STAMP, 12.5)
    assert calm.quiet_for(12.5) == 2.5


@pytest.mark.parametrize(
    "other", [Stamp(7, 101, 5, 5), Stamp(7, 100, 6, 5), Stamp(8, 100, 5, 5)], ids=["size", "mtime", "inode"]
)
def test_a_change_of_size_mtime_or_inode_starts_the_wait_anew(other: Stamp) -> None:
    calm = Calm(STAMP, 10.0).observe(other, 12.0)
    assert calm == Calm(other, 12.0)
    assert calm.quiet_for(12.0) == 0.0


def test_a_change_of_ctime_alone_is_no_change_and_is_remembered() -> None:
    other = Stamp(7, 100, 5, 6)
    assert Calm(STAMP, 10.0).observe(other, 12.0) == Calm(other, 10.0)


def test_a_clock_set_back_does_not_make_a_deposit_wait_for_it_to_catch_up() -> None:
    calm = Calm(STAMP, 4000.0)
    assert calm.quiet_for(400.0) == 0.0
    assert calm.observe(STAMP, 400.0).quiet_for(402.0) == 2.0


@pytest.mark.parametrize("content", [PDF, JPEG, PNG, ZIP, zipped(b"")], ids=["pdf", "jpeg", "png", "zip", "small zip"])
def test_a_whole_document_looks_whole(content: bytes) -> None:
    assert whole(content)


@pytest.mark.parametrize("content", [PDF, JPEG, PNG, ZIP], ids=["pdf", "jpeg", "png", "zip"])
@given(data=st.data())
def test_a_document_cut_off_anywhere_looks_cut_off(content: bytes, data: st.DataObject) -> None:
    end = len(content) - (6 if content is PDF else 0)
    # Right after the preview's own end, a cut-off JPEG looks like a whole one.
    preview = {6 + len(PREVIEW)} if content is JPEG else set()
    cut = data.draw(st.integers(min_value=16, max_value=end - 1).filter(lambda at: at not in preview))
    assert not whole(content[:cut])


@pytest.mark.parametrize("content", [JPEG, PNG, ZIP], ids=["jpeg", "png", "zip"])
def test_padding_with_zeros_and_small_trailers_do_not_make_a_document_cut_off(content: bytes) -> None:
    assert whole(content + b"\0" * 500)
    assert whole(content + b"trailer of a camera")


PADDING = {
    "zeros": b"\0" * 500,
    "zeros to 64 kB": b"\0" * 65_536,
    "half a megabyte of zeros": b"\0" * 524_288,
    "spaces": b" " * 100_000,
    "newlines": b"\r\n" * 60_000,
}


@pytest.mark.parametrize("padding", PADDING.values(), ids=PADDING)
@pytest.mark.parametrize("content", [PDF, JPEG, PNG, ZIP], ids=["pdf", "jpeg", "png", "zip"])
def test_a_document_that_a_scanner_pads_looks_whole_and_half_of_it_cut_off(content: bytes, padding: bytes) -> None:
    assert whole(content + padding)
    assert not whole(content[: len(content) // 2] + padding)


def box(kind: bytes, size: int) -> bytes:
    return (size + 8).to_bytes(4, "big") + kind + b"\xff\xd8v" * (size // 3) + b"v" * (size % 3)


def chunk(kind: bytes, size: int) -> bytes:
    return size.to_bytes(4, "big") + kind + b"d" * size + b"sum!"


VIDEO = box(b"ftyp", 16) + box(b"moov", 3_000) + box(b"mdat", 3_000_000)
LONG_BOX = b"\0\0\0\1mdat" + (300_016).to_bytes(8, "big") + b"v" * 300_000
SAMSUNG = b"\0\0\x30\x0a\x10\0\0\0MotionPhoto_Data" + VIDEO + b"SEFH\x6b\0\0\0\1\0\0\0" + b"\x14\0\0\0SEFT"
TRAILERS = {
    "google": VIDEO,
    "long box": box(b"ftyp", 16) + LONG_BOX,
    "samsung": SAMSUNG,
    "second picture": JPEG,
    "second picture, aligned": b"\0" * 80 + JPEG,
    "unknown": b"maker" * 50_000,
}


@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS)
def test_a_picture_with_megabytes_behind_its_end_looks_whole(trailer: bytes) -> None:
    assert whole(JPEG + trailer)


@pytest.mark.parametrize("trailer", [VIDEO, SAMSUNG], ids=["google", "samsung"])
def test_a_picture_without_its_end_looks_cut_off_before_a_video_too(trailer: bytes) -> None:
    assert not whole(JPEG[:-2] + trailer)


@pytest.mark.parametrize("name", ["google", "long box", "samsung", "second picture, aligned"])
def test_a_picture_whose_trailer_is_cut_off_looks_cut_off(name: str) -> None:
    trailer = TRAILERS[name]
    assert not whole(JPEG + trailer[: len(trailer) * 2 // 3])


def test_a_screenshot_with_the_rest_of_an_older_one_behind_its_end_looks_whole() -> None:
    picture = PNG[:8] + chunk(b"IHDR", 13) + chunk(b"IDAT", 9_000) + chunk(b"IDAT", 70_000) + PNG[-12:]
    assert whole(picture + b"older" * 40_000)
    assert not whole(picture[:-12] + b"older" * 40_000)


def test_a_progressive_picture_of_several_scans_ends_with_its_last_one() -> None:
    scan = b"\xff\xda\x00\x02" + b"scan\xff\x00\xff\xd3" * 70_000
    picture = b"\xff\xd8\xff\xdb\x00\x04\xff\xd9" + scan + b"\xff\xff\xc4\x00\x04\xff\xd9" + scan
    assert whole(picture + b"\xff\xd9" + VIDEO)
    assert not whole(picture + b"\0" * 200_000)


def test_garbage_behind_the_end_of_a_pdf_is_a_trailer_and_an_object_there_another_version() -> None:
    assert whole(PDF + b"\x1b%-12345X@PJL EOJ\r\n" + b"\xa5" * 30_000)
    assert not whole(PDF + b"12 0 obj\n<< /Length 90000 >>\nstream\n" + b"d" * 30_000)


def test_space_set_aside_and_not_yet_filled_looks_cut_off() -> None:
    for content in (PDF, JPEG, PNG, ZIP):
        half = content[: len(content) // 2]
        assert not whole(half + b"\0" * (len(content) - len(half)))


def test_a_document_whose_start_is_still_missing_looks_cut_off() -> None:
    assert not whole(b"\0" * 5000, b"scan.PDF")
    assert not whole(b"%PD", b"scan.pdf")
    assert not whole(b"\xff", b"scan.jpg")
    assert whole(b"\0" * 5000, b"scan.bin")


def test_an_archive_in_an_archive_does_not_end_the_outer_one() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("inner.zip", zipped(b"x" * 50))
        archive.writestr("other", b"y" * 3000)
    content = buffer.getvalue()
    assert whole(content)
    assert not whole(content[:-3100])


def test_other_types_are_whole_and_a_text_about_pdf_is_one_of_them() -> None:
    assert whole(b"hello", b"x.txt")
    assert whole(b"II*\0" + b"d" * 100, b"x.tif")
    assert whole(b"A PDF starts with %PDF-1.7", b"x.txt")


def test_the_type_is_told_by_the_content_and_not_by_the_name() -> None:
    assert not whole(PDF[:5000], b"scan.jpg")
    assert whole(JPEG, b"scan.pdf")


def test_junk_before_a_pdf_is_allowed_where_the_name_says_pdf() -> None:
    assert whole(b"HTTP junk\n" + PDF, b"x.pdf")
    assert not whole(b"HTTP junk\n" + PDF[:5000], b"x.pdf")


def test_an_empty_file_is_not_whole() -> None:
    assert not whole(b"")


@given(st.binary(max_size=8), st.binary(max_size=2000))
def test_no_content_stops_the_look(head: bytes, rest: bytes) -> None:
    for magic in (b"", b"\xff\xd8\xff", b"PK\x03\x04", b"%PDF-", PNG[:8]):
        whole(magic + head + rest, b"x.pdf")
