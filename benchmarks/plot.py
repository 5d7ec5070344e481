"""The figures as a picture: how far each is from its mark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from math import log10

from benchmarks.figures import Figure, number

ROW, LEFT, WIDTH, RIGHT = 22, 520, 360, 90
FARTHEST = 2.0  # powers of ten to each side of the mark


def drawn(figures: Sequence[Figure]) -> str:
    """An SVG: a bar to the right is better than the mark, one to the left is worse; each line across is ten times."""
    marked = [figure for figure in figures if figure.mark]
    height = ROW * (len(marked) + 2)
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + RIGHT}" height="{height}"'
            ' font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="100%" height="{height}" fill="white"/>',
        *_scale(height),
    ]
    for row, figure in enumerate(marked, 1):
        lines += _bar(row, figure)
    return "\n".join([*lines, "</svg>"]) + "\n"


def better(figure: Figure) -> float:
    """How many times better than its mark: 1 is just met."""
    if figure.at_least is not None:
        return figure.ratio / figure.at_least
    return (figure.at_most or 1.0) / max(figure.ratio, 1e-9)


def _scale(height: int) -> Iterator[str]:
    for power in (-2, -1, 0, 1, 2):
        x = _x(10.0**power)
        colour = "black" if power == 0 else "lightgray"
        words = "the mark" if power == 0 else f"{10.0**power:g} x"
        yield f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{ROW}" y2="{height}" stroke="{colour}"/>'
        yield f'<text x="{x:.0f}" y="{ROW - 7}" text-anchor="middle">{words}</text>'


def _bar(row: int, figure: Figure) -> Iterator[str]:
    zero, end, y = _x(1.0), _x(better(figure)), ROW * row + 4
    colour = "seagreen" if figure.met else "firebrick"
    what = escape(f"{figure.what}, against {figure.peer}" if figure.peer else figure.what)
    yield f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end" font-size="11">{what}</text>'
    yield f'<rect x="{min(zero, end):.1f}" y="{y}" width="{abs(end - zero):.1f}" height="{ROW - 8}" fill="{colour}"/>'
    yield f'<text x="{LEFT + WIDTH + 6}" y="{y + 12}" font-size="11">{number(figure.ratio)} x</text>'


def _x(times: float) -> float:
    """Where so many times the mark are, on a scale of powers of ten."""
    power = max(-FARTHEST, min(FARTHEST, log10(max(times, 1e-9))))
    return LEFT + WIDTH * (power + FARTHEST) / (2 * FARTHEST)
