"""What a collector would drop: the kind of a document, and what speaks against sending it."""

import io
import struct
import zipfile
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.config import collector
from bridged.config.collectors import IMAGES, KINDS, Limit, Profile, fits
from bridged.config.presets import COLLECTORS
from bridged.dispatch.objections import HEAD, kind_of, neutral, objections

# -- samples: real ones, as programs write them


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def archive(*members: tuple[str, bytes], stored: bool = True) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


def box(brand: bytes, *others: bytes) -> bytes:
    body = b"ftyp" + brand + b"\0\0\0\0" + b"".join(others)
    return struct.pack(">I", len(body) + 4) + body + b"\0\0\0\x08mdat"


PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n%%EOF\n"
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0" + b"\0" * 40 + b"\xff\xd9"
PNG = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)) + chunk(b"IEND", b"")
GIF = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
BMP = (
    b"BM"
    + struct.pack("<IHHI", 58, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 24, 0, 4, 0, 0, 0, 0)
    + b"abc\0"
)
WEBP = b"RIFF" + struct.pack("<I", 26) + b"WEBPVP8L" + b"\0" * 14
TYPES_XML = b"<?xml version='1.0'?><Types/>"
DOCX = archive(("[Content_Types].xml", TYPES_XML), ("_rels/.rels", b"<r/>"), ("word/document.xml", b"<d/>"))
XLSX = archive(("[Content_Types].xml", TYPES_XML), ("_rels/.rels", b"<r/>"), ("xl/workbook.xml", b"<d/>"))
PPTX = archive(("[Content_Types].xml", TYPES_XML), ("_rels/.rels", b"<r/>"), ("ppt/presentation.xml", b"<d/>"))
LATE_DOCX = archive(("_rels/.rels", b"x" * 2000), ("word/document.xml", b"<d/>"), ("[Content_Types].xml", TYPES_XML))
ODS = archive(("mimetype", b"application/vnd.oasis.opendocument.spreadsheet"), ("content.xml", b"<c/>"))
EPUB = archive(("mimetype", b"application/epub+zip"), ("content.xml", b"<c/>"))
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600
INVOICE = '<?xml version="1.0" encoding="{}"?>\n<Invoice xmlns="urn:oasis:names:specification:ubl"/>'

SAMPLES = [
    ("facture.pdf", PDF, "pdf"),
    ("facture", PDF, "pdf"),
    ("behind the lines of a printer.pdf", b"\x1b%-12345X@PJL ENTER LANGUAGE=PDF\r\n" + PDF, "pdf"),
    ("photo.jpg", JPEG, "jpeg"),
    ("photo.exe", JPEG, "jpeg"),
    ("scan.png", PNG, "png"),
    ("logo.gif", GIF, "gif"),
    ("little.tif", b"II*\0\x08\0\0\0", "tiff"),
    ("big.tiff", b"MM\0*\0\0\0\x08", "tiff"),
    ("very big.tiff", b"MM\0+\0\x08\0\0" + b"\0" * 8, "tiff"),
    ("old.bmp", BMP, "bmp"),
    ("BM Conseil.txt", b"BM Conseil, 12 rue Haute, facture 12 du 3 novembre", "text"),
    ("BM.txt", b"BM Con\0\0\0\0" + b" " * 40, "text"),
    ("BM.txt", b"BM Conseil, 1" + BMP[13:], "text"),
    ("new.webp", WEBP, "webp"),
    ("sound.wav", b"RIFF" + struct.pack("<I", 26) + b"WAVEfmt " + b"\0" * 14, "other"),
    ("iphone.heic", box(b"heic", b"mif1", b"heic"), "heic"),
    ("iphone.heif", box(b"mif1", b"mif1", b"heic"), "heic"),
    ("plain.heif", box(b"mif1", b"mif1"), "heic"),
    ("web.avif", box(b"mif1", b"avif", b"mif1"), "other"),
    ("film.jpg", box(b"isom", b"mp42"), "other"),
    ("all.zip", archive(("facture.txt", b"a")), "zip"),
    ("a pdf inside.zip", archive(("f.pdf", PDF)), "zip"),
    ("none inside.zip", archive(), "zip"),
    ("letter.docx", DOCX, "word"),
    ("letter.zip", DOCX, "word"),
    ("letter", DOCX, "word"),
    ("of another program.docx", LATE_DOCX, "word"),
    ("sums.xlsx", XLSX, "excel"),
    ("sums.docx", XLSX, "excel"),
    ("compressed.xlsx", archive(("a.xml", b"a" * 99), stored=False), "excel"),
    ("slides.pptx", PPTX, "other"),
    ("sums.ods", ODS, "opendocument"),
    ("sums.xlsx", ODS, "opendocument"),
    ("book.epub", EPUB, "other"),
    ("letter.doc", OLE, "word"),
    ("sums.xls", OLE, "excel"),
    ("mail.msg", OLE, "other"),
    ("sums.pdf", OLE + "Workbook".encode("utf-16-le"), "excel"),
    ("letter.pdf", OLE + "WordDocument".encode("utf-16-le"), "word"),
    ("letter.rtf", b"{\\rtf1\\ansi Bonjour}", "word"),
    ("ubl.xml", INVOICE.format("utf-8").encode(), "xml"),
    ("ubl", b"\xef\xbb\xbf\r\n" + INVOICE.format("utf-8").encode(), "xml"),
    ("ubl.pdf", INVOICE.format("utf-16").encode("utf-16"), "xml"),
    ("ubl.dat", INVOICE.format("utf-16").encode("utf-16-be"), "xml"),
    ("ubl.dat", INVOICE.format("utf-16").encode("utf-16-le"), "xml"),
    ("ubl.dat", b"\xff\xfe\0\0" + INVOICE.format("utf-32").encode("utf-32-le"), "xml"),
    ("no declaration.xml", b"<Invoice/>", "xml"),
    ("page.xml", b"<?xml version='1.0'?>\n<!DOCTYPE html>\n<html/>", "other"),
    ("page.html", b"<!DOCTYPE html><html>", "other"),
    ("list.csv", b"date;montant\n", "csv"),
    ("list.TXT", b"date montant\n", "text"),
    ("all.7z", b"7z\xbc\xaf\x27\x1c\0\x04", "other"),
    ("facture.pdf", b"\x1f\x8b\x08\0", "other"),
    ("data", b"\x01\x02\x03", "other"),
    ("data.dat", b"", "other"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "kind"), SAMPLES, ids=[f"{n} is {k}" for n, _, k in SAMPLES])
def test_the_kind_of_a_document_is_told_by_its_content_and_then_by_its_name(
    name: str, content: bytes, kind: str
) -> None:
    assert kind_of(name.encode(), content[:HEAD]) == kind


def test_there_is_a_sample_of_each_kind() -> None:
    assert {kind for _, _, kind in SAMPLES} == KINDS


@given(name=st.binary(max_size=40), head=st.binary(max_size=64))
def test_any_bytes_have_a_kind(name: bytes, head: bytes) -> None:
    assert kind_of(name, head) in KINDS


@given(
    start=st.sampled_from([content for _, content, _ in SAMPLES]), cut=st.integers(0, 80), rest=st.binary(max_size=40)
)
def test_a_head_that_is_cut_off_or_garbled_has_a_kind(start: bytes, cut: int, rest: bytes) -> None:
    assert kind_of(b"facture.pdf", start[:cut] + rest) in KINDS


# -- objections

# For each kind: a name and a content that say the same.
PLAIN = {kind: (name.encode(), content) for name, content, kind in reversed(SAMPLES)} | {
    "other": (b"all.7z", b"7z\xbc\xaf\x27\x1c\0\x04"),
    "xml": (b"ubl.xml", INVOICE.format("utf-8").encode()),
}


def said(profile: Profile, kind: str, size: int, mail_size: int = 1) -> tuple[tuple[str, ...], tuple[str, ...]]:
    name, content = PLAIN[kind]
    found = objections(profile, name, content[:HEAD], size, mail_size)
    return found.holds, found.warnings


def only(profile: Profile, *names: str) -> Profile:
    """The profile with nothing but these limits."""
    return Profile(profile.key, profile.name, profile.domains, **{name: getattr(profile, name) for name in names})


PROFILES = [collector(name) for name in COLLECTORS]
WITH_TYPES = [profile for profile in PROFILES if profile.types]
SIZES = [
    (profile, name)
    for profile in PROFILES
    for name in ("largest_file", "largest_image", "smallest_file", "largest_mail")
    if getattr(profile, name)
]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("profile", WITH_TYPES, ids=lambda profile: profile.key)
def test_a_kind_of_file_is_held_where_its_collector_does_not_accept_it(profile: Profile, kind: str) -> None:
    assert profile.types
    holds, warnings = said(only(profile, "types"), kind, 100_000)
    if kind in profile.types.value:
        assert (holds, warnings) == ((), ())
    else:
        (sentence,) = holds or warnings
        assert bool(holds) == (profile.types.verified != "no")
        assert sentence.startswith(f"{profile.name} accepts no ")
        assert sentence.endswith(f"(source: {profile.types.source}).")


@pytest.mark.parametrize(("profile", "what"), SIZES, ids=[f"{p.key} {w}" for p, w in SIZES])
def test_a_document_over_a_limit_of_size_is_held_and_one_within_is_not(profile: Profile, what: str) -> None:
    limit = getattr(profile, what)
    least = what == "smallest_file"
    for kind in KINDS:
        counts = kind in IMAGES or what != "largest_image"
        for size, over in ((limit.value, False), (limit.value - 1, least), (limit.value + 1, not least)):
            mail_size = size if what == "largest_mail" else 1
            holds, warnings = said(only(profile, what), kind, 1 if what == "largest_mail" else size, mail_size)
            assert bool(holds) == (over and counts and limit.verified != "no")
            assert bool(warnings) == (over and counts and limit.verified == "no")
            for sentence in (*holds, *warnings):
                assert f"{size:,} bytes" in sentence
                assert limit.source in sentence


def test_there_are_limits_of_each_sort_to_be_tested() -> None:
    assert {what for _, what in SIZES} == {"largest_file", "largest_image", "smallest_file", "largest_mail"}
    assert {profile.types.verified for profile in WITH_TYPES if profile.types} == {"yes", "partly", "no"}


def test_a_size_far_over_a_limit_is_told_in_words() -> None:
    holds, _ = said(collector("dext"), "jpeg", 7_240_000)
    (sentence,) = holds
    said_of_it = (
        "Dext accepts images of at most 6 MB, and this one has 7.2 MB: it would drop this document without a word"
    )
    page = "https://help.dext.com/en/s/article/What-file-types-can-I-upload-to-Dext-Prepare"
    assert sentence == f"{said_of_it} (source: {page})."


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_generic_collector_objects_to_nothing(kind: str) -> None:
    assert said(collector("generic"), kind, 10**12, 10**12) == ((), ())


PAPER = Profile("paper", "Paper", types=Limit(frozenset({"pdf", "jpeg"}), "yes", "a page"))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("scan.pdf", PNG, "Paper accepts no PNG"),
        ("scan.zip", JPEG, "Paper accepts no ZIP, and the name says that this JPEG is one"),
        ("data.json", JPEG, "Paper accepts no .json file"),
        ("data.json", b"{}", "Paper accepts no .json file"),
        ("facture.pdf", b"\x1f\x8b\x08\0", "Paper accepts no file with this content"),
        ("list.csv", b"a;b", "Paper accepts no CSV"),
        ("Facture Ao\u00fbt.DOCX", LATE_DOCX, "Paper accepts no Word document"),
    ],
)
def test_a_document_whose_content_or_name_is_not_accepted_is_held(name: str, content: bytes, sentence: str) -> None:
    found = objections(PAPER, name.encode(), content[:HEAD], 100, 100)
    assert found.holds == (f"{sentence}: it would drop this document without a word (source: a page).",)
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("photo.exe", JPEG, "ending .exe"),
        ("photo", JPEG, "has none"),
        ("Facture n. 12", PDF, "has none"),
        ("facture.pdf", b"Bonjour", "The name says PDF and the content does not"),
        ("data.dat", b"\x01\x02", "cannot be told"),
        ("data", b"\x01\x02", "cannot be told"),
        (b"\xff\xfe.\xe9t\xe9".decode("latin-1"), PDF, "has none"),
    ],
)
def test_a_document_that_may_be_refused_for_its_name_only_gets_a_warning(name: str, content: bytes, word: str) -> None:
    found = objections(PAPER, name.encode("latin-1"), content[:HEAD], 100, 100)
    assert found.holds == ()
    (warning,) = found.warnings
    assert word in warning
    assert warning.endswith(": it may drop this document without a word (source: a page).")


@pytest.mark.parametrize("name", ["facture.pdf", "facture.PDF", "facture.jpg", "facture.jpeg"])
def test_a_name_of_another_accepted_kind_is_no_objection(name: str) -> None:
    assert objections(PAPER, name.encode(), PDF, 100, 100) == objections(Profile("a", "A"), b"a", b"", 1, 1)


limits_of_size = st.none() | st.builds(
    Limit, st.integers(1, 50), st.sampled_from(["yes", "partly", "no"]), st.just("x")
)
profiles = st.builds(
    Profile,
    key=st.just("any"),
    name=st.just("Any"),
    types=st.none()
    | st.builds(
        Limit,
        st.frozensets(st.sampled_from(sorted(KINDS))),
        st.sampled_from(["yes", "partly", "no"]),
        st.just("x"),
    ),
    largest_file=limits_of_size,
    largest_image=limits_of_size,
    smallest_file=limits_of_size,
    largest_mail=limits_of_size,
)
ALL = ("types", "largest_file", "largest_image", "smallest_file", "largest_mail")


@given(profile=profiles, sample=st.sampled_from(SAMPLES), size=st.integers(1, 60), mail_size=st.integers(1, 60))
def test_an_unconfirmed_limit_only_warns_and_hides_no_other_objection(
    profile: Profile, sample: tuple[str, bytes, str], size: int, mail_size: int
) -> None:
    document = (sample[0].encode(), sample[1][:HEAD], size, mail_size)
    found = objections(profile, *document)
    loose = replace(
        profile, **{what: replace(limit, verified="no") for what in ALL if (limit := getattr(profile, what))}
    )
    assert objections(loose, *document).holds == ()
    assert len(objections(loose, *document).warnings) == len(found.holds) + len(found.warnings)
    sure = replace(profile, **{what: None for what in ALL if (limit := getattr(profile, what)) and not limit.holds})
    assert objections(sure, *document).holds == found.holds


# -- subjects and addresses

WORDY = Profile("w", "Wordy", avoid_in_subject=Limit(("#", "@split", "urgent"), "no", "x"))


@pytest.mark.parametrize(
    ("name", "subject", "expected"),
    [
        ("hubdoc", "#note payer lundi.pdf", "note payer lundi.pdf"),
        ("hubdoc", "facture #12", "facture 12"),
        ("hubdoc", "facture n#12.pdf", "facture n 12.pdf"),
        ("hubdoc", "##", "document"),
        ("datamolino", "@split", "split"),
        ("datamolino", "@@split @SALES", "split SALES"),
        ("datamolino", "jean@split.pdf", "jean split.pdf"),
        ("datamolino", "facture  deux espaces.pdf", "facture  deux espaces.pdf"),
        ("generic", "#note @split", "#note @split"),
        ("jefacture", "#note @split", "#note @split"),
    ],
)
def test_a_subject_loses_the_signs_and_words_of_its_collectors_commands(name: str, subject: str, expected: str) -> None:
    assert neutral(collector(name), subject) == expected


def test_a_word_to_be_avoided_goes_only_where_it_stands_alone_and_its_sign_before_it() -> None:
    assert neutral(WORDY, "Urgent: URGENTE @Split a@b #1") == ": URGENTE Split a@b 1"
    assert neutral(WORDY, "@@split @#split") == "split split"


@given(subject=st.text(alphabet="#@ splitURGENTurgent.", max_size=30), profile=st.sampled_from([*PROFILES, WORDY]))
def test_a_neutral_subject_holds_no_command_is_never_empty_and_stays_as_it_is(subject: str, profile: Profile) -> None:
    text = neutral(profile, subject)
    avoided = profile.avoid_in_subject.value if profile.avoid_in_subject else ()
    assert not any(item in text for item in avoided if not item.isalnum())
    assert bool(text) == bool(subject)
    assert neutral(profile, text) == text


@pytest.mark.parametrize(
    ("name", "domain", "fit"),
    [
        ("dext", "dext.cc", True),
        ("dext", "DEXT.CC", True),
        ("dext", "receiptbank.me", True),
        ("dext", "notdext.cc", False),
        ("dext", "dext.cc.collecte.example", False),
        ("clearfacts", "moncomptable.clearfacts.be", True),
        ("clearfacts", "be", False),
        ("pennylane", "suppliers.pennylane.com", True),
        ("pennylane", "pennylane.com", False),
        ("jefacture", "collecte.example", True),
        ("generic", "collecte.example", True),
    ],
)
def test_an_address_fits_when_its_domain_or_a_parent_is_the_collectors(name: str, domain: str, fit: bool) -> None:
    assert fits(collector(name), f"Achats.Martin@{domain}") == fit
    assert fits(collector("dext"), f"dext.cc@{domain}") == (fit and name == "dext")
