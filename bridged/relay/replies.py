"""Replies: bytes become a Reply, and a Reply in a phase of the conversation becomes an outcome.

Pure. The table of `reactions` decides; this module reads replies and makes them readable.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from bridged.relay.outcome import Outcome
from bridged.relay.reactions import ROWS, Phase, Row

__all__ = ["Phase", "Reply", "classify", "row_of", "sentence", "take_reply"]


class Reply(NamedTuple):
    """One whole reply (RFC 5321 4.2): its code, its lines joined by newlines. Code -1: the bytes are no SMTP."""

    code: int
    text: str


_LONGEST: Final = 64 * 1024  # bytes of a reply; otherwise a reply without an end would fill the memory
_SHOWN: Final = 500  # characters of a reply in a log line
_READ: Final = 4000  # characters that the table reads; otherwise a long reply would keep its patterns busy
_LINE: Final = re.compile(rb"(\d{3})([ -]?)(.*)", re.DOTALL)
_ENHANCED: Final = re.compile(r"\s*([245]\.\d{1,3}\.\d{1,3})\b")
_ENHANCED_LAST: Final = re.compile(r"\(#([245]\.\d{1,3}\.\d{1,3})\)")  # as qmail writes it: "no such user (#5.1.1)"


def take_reply(buffer: bytearray) -> Reply | None:
    """Take the first whole reply off the front of `buffer`. None, and nothing taken, when there is none."""
    lines: list[str] = []
    start = 0
    while (end := buffer.find(b"\n", start)) >= 0:
        found = _LINE.fullmatch(bytes(buffer[start:end]).rstrip(b"\r"))
        start = end + 1
        if found is None:  # no SMTP: the rest is taken as well, because it is not in step
            text = bytes(buffer).decode("utf-8", "replace")
            buffer.clear()
            return Reply(-1, text)
        lines.append(found[3].decode("utf-8", "replace"))
        if found[2] != b"-":
            del buffer[:start]
            return Reply(int(found[1]), "\n".join(lines))
    if len(buffer) > _LONGEST:
        buffer.clear()
        return Reply(-1, "a reply without an end")
    return None


def sentence(code: int, text: str) -> str:
    """The relay's words as one line: printable, shortened, the enhanced code (RFC 3463) once."""
    shown = _words(text)
    shown = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"
    return f"{code} {shown}".strip() if code > 0 else shown


def classify(phase: Phase, code: int, text: str, *, shared_sender: bool = True) -> Outcome:
    """The outcome of a reply that ends the conversation in `phase`.

    Only a 2yz to the dot is Accepted. A reply to the dot that is no verdict is Uncertain. A reply out of turn before
    the dot is the relay's trouble. `shared_sender=False`: the sender is this client's own, so that its refusal concerns
    this client alone.
    """
    return row_of(phase, code, text).outcome(phase, sentence(code, text), shared_sender=shared_sender)


def row_of(phase: Phase, code: int, text: str, rows: Sequence[Row] | None = None) -> Row:
    """The row that decides: the first that holds. The last rows of the table leave no code without a row."""
    rows = _rows_of(phase, code) if rows is None else rows
    found = _ENHANCED.match(text) or _ENHANCED_LAST.search(text)
    enhanced, words = found[1] if found else "", _words(text)[:_READ]
    return next(row for row in rows if row.holds(phase, code, enhanced, words))


@lru_cache(maxsize=1024)
def _rows_of(phase: Phase, code: int) -> tuple[Row, ...]:
    """The rows that may decide. Kept, because the table is long and most replies are of a few kinds."""
    return tuple(row for row in ROWS if row.is_of(phase, code))


def _words(text: str) -> str:
    """All lines as one, because words run on over line ends. The enhanced code that each line repeats stands once."""
    if text.isprintable() and text == text.strip():
        return text
    first = _ENHANCED.match(text)
    lines = [line.strip() for line in text.splitlines()]
    if first is not None:
        lines = lines[:1] + [line.removeprefix(first[1]).strip() for line in lines[1:]]
    words = " ".join(line for line in lines if line)
    return "".join(c if c.isprintable() else "\ufffd" for c in words)
