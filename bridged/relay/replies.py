"""What a relay's answer means: a reply in a phase of the conversation becomes an outcome.

Pure. The meaning is looked up in the table of `reactions`; here replies are read and made readable.
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
    """One whole reply: its code (-1 when what came is no SMTP), its lines joined by newlines."""

    code: int
    text: str


_LONGEST: Final = 64 * 1024  # a relay that never ends its reply must not fill the memory
_SHOWN: Final = 500
_READ: Final = 4000  # and must not keep the patterns busy with one that does end
_LINE: Final = re.compile(rb"(\d{3})([ -]?)(.*)", re.DOTALL)
_ENHANCED: Final = re.compile(r"\s*([245]\.\d{1,3}\.\d{1,3})\b")
_ENHANCED_LAST: Final = re.compile(r"\(#([245]\.\d{1,3}\.\d{1,3})\)")  # qmail's way: "no such user (#5.1.1)"


def take_reply(buffer: bytearray) -> Reply | None:
    """Take the first whole reply off the front of `buffer`; None, and nothing taken, if there is none."""
    lines: list[str] = []
    start = 0
    while (end := buffer.find(b"\n", start)) >= 0:
        found = _LINE.fullmatch(bytes(buffer[start:end]).rstrip(b"\r"))
        start = end + 1
        if found is None:  # not SMTP: nothing behind it can be trusted to be in step
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
    """The relay's own words as one line: no control characters, the enhanced code once, shortened."""
    shown = _words(text)
    shown = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"
    return f"{code} {shown}".strip() if code > 0 else shown


def classify(phase: Phase, code: int, text: str, *, shared_sender: bool = True) -> Outcome:
    """The outcome of a reply that ends the conversation in `phase`.

    Only a 2yz after the final dot is Accepted; an answer after it that is none is Uncertain; an answer out
    of turn before it is the relay's trouble. `shared_sender=False` says that the sender is this client's
    own: refusing it concerns this client, not all.
    """
    return row_of(phase, code, text).outcome(phase, sentence(code, text), shared_sender=shared_sender)


def row_of(phase: Phase, code: int, text: str, rows: Sequence[Row] | None = None) -> Row:
    """The row that decides: the first one that holds. The table's last ones leave no code without one."""
    rows = _rows_of(phase, code) if rows is None else rows
    found = _ENHANCED.match(text) or _ENHANCED_LAST.search(text)
    enhanced, words = found[1] if found else "", _words(text)[:_READ]
    return next(row for row in rows if row.holds(phase, code, enhanced, words))


@lru_cache(maxsize=1024)
def _rows_of(phase: Phase, code: int) -> tuple[Row, ...]:
    """Those that may decide: most answers are of a few kinds, and the table is long."""
    return tuple(row for row in ROWS if row.is_of(phase, code))


def _words(text: str) -> str:
    """All lines as one, for words run on over line ends, and each line of a reply may repeat the enhanced code."""
    if text.isprintable() and text == text.strip():
        return text
    first = _ENHANCED.match(text)
    lines = [line.strip() for line in text.splitlines()]
    if first is not None:
        lines = lines[:1] + [line.removeprefix(first[1]).strip() for line in lines[1:]]
    words = " ".join(line for line in lines if line)
    return "".join(c if c.isprintable() else "\ufffd" for c in words)
