"""A document leaves as one mail with one address and its own bytes, under any name."""

import hashlib
import io
import unicodedata
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import Message
from email.policy import Policy
from email.utils import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridged.mail import (
    BLOCK,
    LINE,
    OTHER_TYPE,
    Mail,
    UnsafeHeader,
    clean,
    compose,
    frozen_date,
    media_type,
    new_message_id,
    shortened,
)

INJECTION = b"=?utf-8?q?=0D=0AX-Evil=3A_1?=.pdf"
HEADERS = [
    "From",
    "To",
    "Subject",
    "Date",
    "Message-ID",
    "MIME-Version",
    "Auto-Submitted",
    "X-Bridged-Document",
    "Content-Type",
]
PARSERS: list[Policy] = [policy.default, policy.compat32]

hostile = st.one_of(
    st.binary(min_size=1, max_size=255),
    st.text(max_size=120).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(
        st.sampled_from(
            [
                "=?utf-8?q?",
                "=0D=0A",
                "?=",
                "\r\n",
                "\n",
                "Bcc: b@evil.example",
                '"',
                ";",
                "\\",
                "..",
                "\u2028",
                "\x85",
                "\x0b",
                "\x1c",
                "--=_bridged_document",
                " ",
                "\t",
                "é",
                "e\u0301",
                ".pdf",
                "%0d%0a",
                "'",
                ",",
            ]
        ),
        min_size=1,
    ).map(lambda parts: "".join(parts).encode()),
)
readable_names = (
    st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), min_size=1, max_size=100)
    .map(lambda text: unicodedata.normalize("NFC", text).strip().replace("/", "-"))
    .filter(lambda text: 0 < len(text.encode()) <= 150 and unquote(text) == text)
)


def mail(name: bytes = b"a.pdf", **changes: str) -> Mail:
    arguments = {
        "id": "7f3a",
        "client": "Boulangerie",
        "sender": "factures@cabinet.example",
        "collection_email": "Boulangerie@Collecte.example",
        "subject": "{document}",
        "message_id": "<7f3a.bridged@cabinet.example>",
        "date": "Tue, 24 Nov 2026 08:12:03 +0000",
    }
    return compose(name=name, **(arguments | changes))


def written(composed: Mail, document: bytes) -> bytes:
    return b"".join(composed.chunks(io.BytesIO(document), lambda _: None))


def attachment_of(parsed: Message) -> Message:
    parts = parsed.get_payload()
    assert isinstance(parts, list)
    assert len(parts) == 2
    return parts[1]


def one_line(value: object) -> str:
    return str(value).replace("\r\n", "")


@pytest.mark.parametrize("parser", PARSERS, ids=["default", "compat32"])
@given(name=hostile, document=st.binary(max_size=300), client=st.text(max_size=60))
@example(name=INJECTION, document=b"%PDF", client="=?utf-8?q?=0D=0ABcc=3A_b=40evil.example?=")
@example(name=b"a.pdf\r\nBcc: b@evil.example\r\n\r\n", document=b"x", client="\r\nBcc: b@evil.example")
def test_no_name_adds_a_header_or_an_address_or_touches_the_bytes(
    parser: Policy, name: bytes, document: bytes, client: str
) -> None:
    raw = written(mail(name, client=client, subject="{client} {document}"), document)
    parsed = message_from_bytes(raw, policy=parser)
    assert parsed.keys() == HEADERS
    assert parsed["To"] == "Boulangerie@Collecte.example"
    assert parsed["From"] == "factures@cabinet.example"
    part = attachment_of(parsed)
    assert part.keys() == ["Content-Type", "Content-Transfer-Encoding", "Content-Disposition"]
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    assert hashlib.sha256(content).digest() == hashlib.sha256(document).digest()
    expected = shortened(clean(name)).strip()
    assert part.get_filename() in (expected, unquote(expected).strip())  # Python takes outer quotes off
    assert not any(ord(c) < 0x20 for c in part.get_filename() or "")


@given(name=readable_names)
@example(name=INJECTION.decode())
@example(name="Facture été n°12.pdf")
@example(name='a"b\\c;d=1, e.pdf')
@example(name="l'achat 100%25 (2).pdf")
def test_a_readable_name_is_read_back_from_every_place_it_is_written(name: str) -> None:
    raw = written(mail(name.encode()), b"x")
    old, new = (message_from_bytes(raw, policy=parser) for parser in (policy.compat32, policy.default))
    assert attachment_of(old).get_filename() == name
    assert attachment_of(new).get_filename() == name
    assert str(make_header(decode_header(one_line(attachment_of(old).get_param("name"))))) == name
    assert attachment_of(new).get_param("name") == name
    assert str(make_header(decode_header(old["Subject"]))) == name
    assert new["Subject"] == name


def test_a_decomposed_name_is_composed() -> None:
    assert clean("Facture e\u0301te\u0301.pdf".encode()) == "Facture été.pdf"


def test_a_name_that_is_not_utf8_is_sent_under_a_readable_one() -> None:
    assert clean(b"Facture \xe9t\xe9.pdf") == "Facture été.pdf"
    assert clean("été".encode() + b"\xe9\x81.pdf").startswith("étéé")


def test_a_name_cannot_turn_its_own_text_around() -> None:
    assert clean("a\u202efdp.exe".encode()) == "a_fdp.exe"


def test_a_long_name_is_cut_between_two_characters_and_keeps_its_extension() -> None:
    cut = shortened("é" * 120 + ".pdf")
    assert cut == "é" * 75 + ".pdf"
    assert shortened("x" * 200) == "x" * 150
    assert shortened("rapport." + "x" * 240) == "rapport." + "x" * 142


@given(
    document=st.binary(max_size=400),
    extra=st.sampled_from([0, 1, LINE - 1, LINE, LINE + 1, BLOCK - 1, BLOCK, BLOCK + 1]),
)
def test_the_size_told_to_the_relay_is_the_size_written(document: bytes, extra: int) -> None:
    document += b"\0" * extra
    composed = mail()
    assert composed.size(len(document)) == len(written(composed, document))


def test_no_line_starts_with_a_dot_or_is_too_long_and_the_last_one_is_ended() -> None:
    raw = written(mail("é".encode() * 127, subject=".{document}" * 9), bytes(range(256)) * 999)
    lines = raw.split(b"\r\n")
    assert not any(line.startswith(b".") or len(line) > 998 or b"\n" in line or b"\r" in line for line in lines)
    assert lines[-1] == b""


class Trickle(io.BytesIO):
    """A file whose reads come short, as on a network file system."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or -1, 1000))


def test_short_reads_put_no_padding_in_the_middle() -> None:
    document = bytes(range(251)) * 2000
    seen = hashlib.sha256()
    raw = b"".join(mail().chunks(Trickle(document), seen.update))
    assert raw == written(mail(), document)
    assert seen.digest() == hashlib.sha256(document).digest()


def test_the_same_document_makes_the_same_bytes() -> None:
    assert mail(INJECTION) == mail(INJECTION)


def test_a_client_called_document_is_not_replaced_twice() -> None:
    raw = written(mail(b"a.pdf", client="{document}", subject="{client}: {document}"), b"x")
    assert message_from_bytes(raw, policy=policy.default)["Subject"] == "{document}: a.pdf"


@pytest.mark.parametrize(
    "changes",
    [
        {"collection_email": "a@b.example, c@evil.example"},
        {"collection_email": "a@b.example\r\nBcc: c@evil.example"},
        {"collection_email": "B <a@b.example>"},
        {"sender": "a@b.example\n"},
        {"message_id": "<a@b.example>\r\nBcc: c@evil.example"},
        {"message_id": "<a@b.example>\r\nTo: c@evil.example"},
        {"date": "today\r\n\r\nbody"},
        {"id": "é"},
    ],
)
def test_an_argument_that_would_add_a_line_or_an_address_is_never_written(changes: dict[str, str]) -> None:
    with pytest.raises(UnsafeHeader):
        mail(**changes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.PDF", "application/pdf"),
        ("a.jpeg", "image/jpeg"),
        ("a.pdf.xml", "application/xml"),
        ("a.csv", "text/csv"),
        ("a.heic", "image/heic"),
        ("mail.eml", OTHER_TYPE),
        ("pdf", OTHER_TYPE),
        ("a.unknown", OTHER_TYPE),
    ],
)
def test_the_type_is_that_of_the_extension(name: str, expected: str) -> None:
    assert media_type(name) == expected
    raw = written(mail(name.encode()), b"x")
    part = attachment_of(message_from_bytes(raw, policy=policy.default))
    assert part.get_content_type() == expected
    assert part.get_content_charset() is None


def test_a_message_id_is_in_the_domain_of_the_sender() -> None:
    assert new_message_id("7f3a", "factures@cabinet.example") == "<7f3a.bridged@cabinet.example>"
    assert new_message_id("a b>", "") == "<a-b-.bridged@bridged.invalid>"


def test_a_date_is_frozen_as_utc() -> None:
    assert frozen_date(1795507923.12) == "Tue, 24 Nov 2026 08:12:03 +0000"
