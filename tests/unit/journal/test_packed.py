"""A directory as the kernel gives it: what is taken for documents only, and what is looked at more closely."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.ged import kernel
from bridged.journal import packed
from bridged.names import ignored_endings, verdict

NAMES = st.one_of(
    st.binary(min_size=1, max_size=60),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).map(str.encode),
    st.tuples(
        st.sampled_from([b"", b"x", b".", b"~$", b"._", b".~lock.", b"#", b"e", b"Thumbs", b"desktop", "é".encode()]),
        st.sampled_from(
            [b"", b"a", b" (2)", b"-2", b".validated", b".VALIDATED - Copie", b"_vista", "\u212a".encode()]
        ),
        st.sampled_from(
            [
                *(b".tmp", b".TEMP", b".Part", b".swp", b"~", b"#", b".json", b".JSON", b".bak", b".ba\xe2\x84\xaa"),
                *(
                    b".pdf_original",
                    b"_exiftool_tmp",
                    b".pdf:a",
                    b".ffs_db",
                    b".rslsf",
                    b"@SynoResource",
                    b".~qpdf-orig",
                ),
                *(b":2ex", b"Desktop DB", b"picasa.ini", b"Icon:0d", b"___jb_tmp___", b"~WRD0001.doc", b":AFP_AfpInfo"),
                *(b".db", b".ini", b".pdf", b":Zone.Identifier", b"\xef\x80\xbaZone.Identifier:$DATA", b".DS_Store"),
                *(
                    b".sb-0123abcd-AbCd12",
                    b"Icon\r",
                    b".!ut",
                    b".aria2",
                    b".pdf.sync-conflict-20260101-120000-ABCDEFG.json",
                ),
            ]
        ),
    ).map(b"".join),
).filter(lambda name: b"\0" not in name and b"/" not in name and name not in (b".", b"..") and len(name) < 250)


def record(name, kind=packed.FILE, inode=0x0123456789ABCDEF, offset=0x7E23002F08040A01):
    length = (19 + len(name) + 1 + 7) // 8 * 8
    return (struct.pack("=QQHB", inode, offset, length, kind) + name).ljust(length, b"\0")


DOTS = record(b".", packed.DIRECTORY) + record(b"..", packed.DIRECTORY)


@given(st.lists(NAMES, max_size=5), st.sampled_from([(), ("*.bak",), ("*.pdf", "*~x")]))
def test_only_documents_is_never_said_of_a_name_that_is_ignored(names, ignore):
    """The other way round it may be wrong, and costs a closer look."""
    endings = ignored_endings(ignore, ".validated.json")
    ignored = [name for name in names if verdict(name, extra=ignore, marker=".validated.json", hidden=False)]
    for inode, offset in ((0x0123456789ABCDEF, 0x7E23002F08040A01), (5, 7), (0x082E00, 0x082E082E082E082E)):
        records = DOTS + b"".join(record(name, inode=inode, offset=offset) for name in names)
        assert not (ignored and packed.only_documents(records, endings))


@pytest.mark.parametrize("offset", [0, 0x0A000A000A000A00, 0x082E082E082E082E, 0x237E00237E00, 0x0108010801080108])
@pytest.mark.parametrize("inode", [2, 0x0A0C00, 0x7E0023, 0x2E08002E08, 0x00230000])
def test_bytes_of_inodes_and_offsets_do_not_count_in_the_end(inode, offset):
    names = [b"Facture %d.pdf" % n for n in range(9)] + ["Relevé n°7.PDF".encode(), b"a" * 250]
    records = DOTS + b"".join(record(name, inode=inode, offset=offset) for name in names)
    assert packed.only_documents(records, (b".json",))
    assert list(packed.files(records)) == [(name, inode) for name in names]


@pytest.mark.parametrize("kind", [1, 2, 6, 10, 12, 14])
@pytest.mark.parametrize("length", [1, 4, 5, 12, 229, 236, 237, 244, 252, 255])
def test_an_entry_that_is_neither_file_nor_directory_is_looked_at(kind, length):
    assert not packed.only_documents(record(b"n" * length, kind) + DOTS, ())


@pytest.mark.parametrize("at", [0, 1, 20])
@pytest.mark.parametrize("kind", [1, 2, 6, 10, 12, 14])
def test_one_of_another_kind_among_many_documents_is_found(kind, at):
    records = [record(b"Facture %d.pdf" % n, inode=0xFFFFFFFF_FFFFFFFF, offset=0x7FFFFFFF_FFFFFFFF) for n in range(20)]
    assert packed.only_documents(DOTS + b"".join(records), ())
    records.insert(at, record(b"Facture.pdf", kind, inode=0xFFFFFFFF_FFFFFFFF, offset=0x7FFFFFFF_FFFFFFFF))
    assert not packed.only_documents(DOTS + b"".join(records), ())


@pytest.mark.parametrize(
    "name",
    [
        *(b"a~", b"#a#", b".a", b"~$a.docx", b"Thumbs.db", b"EHThumbs.db", b"Desktop.ini", b"Icon\r", b"a.swp"),
        *(b"a.tmp", b"a.temp", b"a.part", b"a.partial", b"a.filepart", b"a.crdownload", b"a.opdownload", b"a.download"),
        *(b"a.upload", b"a.!ut", b"a.!qB", b"a.!bt", b"a.aria2", b"a.pdf.sb-0123abcd-AbCd12", b"a.pdf:Zone.Identifier"),
        *(b"a.bak", b"a.orig", b"a.dwl2", b"a.ffs_lock", b"a.ffs_tmp", b"a.nextcloud", b"a.rslsf", b"a.pdf_original"),
        *(
            b"a.pdf_exiftool_tmp",
            b"a.pdf:b",
            b"a:SmartScreen",
            b"a:$DATA",
            b"a.pdf\xef\x80\xa2b",
            b":2ea",
            b"a@SynoResource",
        ),
        *(b"csync_journal.db", b"Desktop DF", b"Icon:0d", b"Icon\xef\x80\x8d", b"a.~qpdf-orig", b"a___jb_old___"),
        *(b"~WRD0001.doc", b"~syncthing~a", b"Picasa.ini", b"pspbrwse.jbf", b"ZbThumbnail.info", b"hpothb07.tif"),
        *(b"a.save", b"a.validated.json", b"a(old)"),
    ],
)
def test_each_way_to_be_ignored_is_seen_in_a_name(name):
    ignore = ("*.save", "*(old)")
    endings = ignored_endings(ignore, ".validated.json")
    assert verdict(name, extra=ignore, marker=".validated.json", hidden=False)
    for others in (b"", record(b"Facture.pdf")):
        assert not packed.only_documents(DOTS + others + record(name) + others, endings)
    assert packed.only_documents(DOTS + record(b"Facture.pdf") + record(b"(bak) tmp.pdf"), endings)


def test_a_directory_of_unknown_kind_tells_a_file_system_that_tells_no_kinds():
    assert not packed.only_documents(record(b".", 0) + record(b"facture.pdf", 0), ())


def test_patterns_that_are_no_endings_are_not_packed():
    assert ignored_endings(("*.bak", "*.OLD"), ".validated.json") == (b".bak", b".old", b".json")
    for ignore in (("a*",), ("*.b?k",), ("*.b[ab]k",), ("*a*",), ("*.é",), ("*",), ("x.pdf",), ("*;",)):
        assert ignored_endings(ignore, ".validated.json") is None
    assert ignored_endings((), ".ok") is None
    assert ignored_endings((), "-sent") is None


def test_a_real_directory(tmp_path):
    expected = {}
    for number in range(700):  # more than one call gives
        path = tmp_path / f"Facture {number} {'é' * (number % 100)}.pdf"
        path.touch()
        expected[os.fsencode(path.name)] = path.stat().st_ino
    (tmp_path / "inner").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        records = kernel.records(fd)
        assert dict(packed.files(records)) == expected
        assert packed.directories(records) == [b"inner"]
        assert packed.only_documents(records, (b".json",))
        os.symlink("x", tmp_path / "link.pdf")
        os.lseek(fd, 0, os.SEEK_SET)
        assert not packed.only_documents(kernel.records(fd), ())
    finally:
        os.close(fd)
