"""Hostile names that a file may have, the same ones at each run."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator

PIECES: list[bytes] = [
    *(bytes([n]) for n in (*range(1, 32), 127)),
    *(bytes([0xC2, n]) for n in (0x80, 0x85, 0x90, 0x9B, 0x9D, 0xA0, 0xAD)),
    b"\r\n", b"\r\nBcc: b@evil.example", b"\nX-Evil: 1\n\n", b"\r\n.\r\n", b"\r\n--=_bridged_document\r\n",
    b"=?utf-8?q?=0D=0AX-Evil=3A_1?=", b"=?utf-8?b?DQpCY2M6IGJAZXZpbC5leGFtcGxl?=", b"=?utf-8?q?", b"?=", b"=0D=0A",
    b"=?iso-8859-1?q?=E9?=", b"%0D%0A", b"%", b"%00", b"*=utf-8''x", b"filename*0*=", b'"; filename="x.exe', b"''",
    b'"', b"'", b";", b":", b",", b"\\", b"\\\"", b"<", b">", b"@", b"(", b")", b"[", b"]", b"{document}", b"{client}",
    b"<b@evil.example>", b"b@evil.example", b"Martin <m@evil.example>, b@evil.example", b"$(reboot)", b"`id`", b"|",
    "\u200e\u200f\u202e\u2066\u2069\u061c".encode(), "\u202egnp.exe".encode(), "\u2028".encode(), "\u2029".encode(),
    "\u200b\u200d\ufeff\u00ad".encode(), "\u202f".encode(), "\u00a0".encode(), "\ue000\ufffe\U000e0041".encode(),
    b"\xe9", b"\xe9t\xe9", b"\x80\x93", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf",
    "é".encode(), "e\u0301".encode(), "n\u0303".encode(), "ﬁ".encode(), "Å".encode(), "\u1100\u1161\u11a8".encode(),
    "🧾".encode(), "👩‍👩‍👧‍👦".encode(), "🇫🇷".encode(), "文書".encode(), "ملف".encode(), "קובץ".encode(), "Ω".encode(),
    b".", b"..", b"...", b" ", b"  ", b"\t", b"-", b"--config", b"~", b"#", b"&", b"+", b"=", b"_", b"!", b"*", b"?",
    b".pdf", b".PDF", b".txt", b".tar.gz", b".jp\xe9g", b"." + b"x" * 40, b"a" * 200, "é".encode() * 100, b"Facture",
    b"\x1b[31m", b"\x1b]0;x\x07", b"\x1b[2J", b"NaN", b"2026-11-24", b"0", b"1_2", b"No.",
]  # fmt: skip

# Characters that must be replaced, and so cannot come back.
REPLACED = "\u2028\u2029\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def names(count: int, seed: int) -> Iterator[bytes]:
    """So many different names that a kernel accepts."""
    draw = random.Random(seed)
    seen = {b"", b".", b".."}
    while len(seen) < count + 3:
        kind = draw.random()
        if kind < 0.1:
            name = draw.randbytes(draw.randint(1, 255))
        elif kind < 0.2:
            name = "".join(
                chr(draw.choice((draw.randint(1, 0x2FF), draw.randint(1, 0xD7FF)))) for _ in range(9)
            ).encode()
        else:
            name = b"".join(draw.choices(PIECES, k=draw.randint(1, 9)))
        if draw.random() < 0.1:
            name = name.ljust(255, draw.choice((b"x", b".", b" ")))
        name = name.replace(b"/", b"-").replace(b"\0", b"-")[:255]
        if name not in seen:
            seen.add(name)
            yield name


def comes_back(name: bytes) -> str | None:
    """The name that a receiver must see; None where something in it has to be replaced or left out."""
    try:
        text = unicodedata.normalize("NFC", name.decode())
    except UnicodeDecodeError:
        return None
    kept = all(c not in REPLACED and unicodedata.category(c) not in ("Cc", "Cs") for c in name.decode())
    stem = text.rpartition(".")[0] or text
    return text if kept and len(text.encode()) <= 150 and len(stem.encode()) <= 150 else None
