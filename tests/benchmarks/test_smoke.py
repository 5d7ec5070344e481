"""Each benchmark runs, small: what is measured only before a release would be broken then."""

from __future__ import annotations

import importlib
import re

import pytest

from benchmarks.__main__ import NAMES
from benchmarks.bench import Missing
from benchmarks.figures import Figure
from benchmarks.plot import better, drawn

FIGURES = [
    Figure("met", "/s", 50.0, "peer", 100.0, at_least=0.25),
    Figure("missed <by far>", "s", 50.0, "peer", 1.0, at_most=3),
    Figure("without a mark", "s", 1.0, "", 2.0),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_small(name):
    figures = []
    try:
        figures.extend(importlib.import_module(f"benchmarks.{name}").run(small=True))
    except Missing as missing:
        pytest.skip(str(missing))
    assert figures
    assert all(figure.ours >= 0 for figure in figures)


def test_a_figure_is_met_on_the_right_side_of_its_mark():
    assert [figure.met for figure in FIGURES] == [True, False, True]
    assert [better(figure) for figure in FIGURES[:2]] == [2.0, 3 / 50]


def test_a_row_and_the_picture_show_the_figures():
    assert FIGURES[0].row() == "| met | 50 /s | peer: 100 /s | 0.5 x | at least 0.25 x | yes |"
    picture = drawn(FIGURES)
    assert re.findall(r'fill="(seagreen|firebrick)"', picture) == ["seagreen", "firebrick"]
    assert "missed &lt;by far&gt;" in picture
    assert "without a mark" not in picture
