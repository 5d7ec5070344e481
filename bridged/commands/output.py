"""The output of the commands: sentences, tables, and one JSON object a line.

A file name or a relay's words hold no control character here; otherwise they could rearrange a terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridged.model import readable, utc

_WIDE: Final = 1000  # columns of a table in a file or a pipe, so that grep finds each cell whole

Row = Mapping[str, Any]


def clean(text: str) -> str:
    """A text as one line, without control characters."""
    return readable(text.encode("utf-8", "replace"))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return clean(str(value))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def lines(rows: Iterable[Row]) -> None:
    """Print each row as a JSON object on a line of its own."""
    for row in rows:
        print(json.dumps({key: _plain(value) for key, value in row.items()}, ensure_ascii=False))


def table(rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Print some columns of the rows as a table. Without rows nothing is printed."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        grid.add_column(Text(column.replace("_", " ")), overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_cell(row[column])) for column in columns))
    if grid.row_count:
        Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDE).print(grid)


def date(epoch: float | None) -> str | None:
    """An instant in UTC, as ISO 8601; None for None."""
    return None if epoch is None else utc(epoch)


def complain(text: str) -> None:
    """Print sentences on stderr."""
    for line in text.splitlines():
        click.echo(clean(line), err=True)


def say(text: str) -> None:
    """Print a sentence."""
    click.echo(clean(text))
