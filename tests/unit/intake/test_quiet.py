"""When a deposit has stopped changing, and whether it looks whole."""

import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.intake import HEAD
from bridged.intake.quiet import TAIL, Calm, looks_whole
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
    return looks_whole(name, len(content), content[:HEAD], content[-TAIL:])


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
