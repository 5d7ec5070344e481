"""What a benchmark found: figures, and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured ratio. `ours` and `theirs` are in `unit`; `ratio` is ours by theirs."""

    what: str
    unit: str
    ours: float
    peer: str  # what it is measured against; empty where the mark is absolute, and `theirs` is then that mark
    theirs: float
    at_least: float | None = None  # the mark: of the ratio
    at_most: float | None = None

    @property
    def ratio(self) -> float:
        """Ours by theirs."""
        return self.ours / self.theirs if self.theirs else float("inf")

    @property
    def met(self) -> bool:
        """Whether the mark is met."""
        low = self.at_least is None or self.ratio >= self.at_least
        return low and (self.at_most is None or self.ratio <= self.at_most)

    @property
    def mark(self) -> str:
        """The mark in words."""
        if self.at_least is not None:
            return f"at least {self.at_least:g} x"
        return f"at most {self.at_most:g} x" if self.at_most is not None else ""

    def row(self) -> str:
        """A row of the Markdown table."""
        against = (
            f"{self.peer}: {number(self.theirs)} {self.unit}" if self.peer else f"{number(self.theirs)} {self.unit}"
        )
        verdict = ("yes" if self.met else "**no**") if self.mark else ""
        cells = (self.what, f"{number(self.ours)} {self.unit}", against, f"{number(self.ratio)} x", self.mark, verdict)
        return f"| {' | '.join(cells)} |"


HEAD = "| what | bridged | against | ratio | mark | met |\n|---|---|---|---|---|---|"


def number(value: float) -> str:
    """Three significant digits, as a person writes them."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
