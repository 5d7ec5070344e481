"""`make bench`: measure, print, and write what was found into docs/performance.md and docs/performance.svg."""

from __future__ import annotations

import argparse
import compileall
import importlib
import platform
import sys
import time
from pathlib import Path

from benchmarks.bench import Missing
from benchmarks.figures import HEAD, Figure
from benchmarks.plot import drawn

NAMES = ("throughput", "peers", "network", "rest", "start", "polling", "burst", "growth")
ROOT = Path(__file__).resolve().parents[1]
PACKAGE, DOCS = ROOT / "bridged", ROOT / "docs"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def main() -> int:
    """The exit code: 0 although a mark is missed, since a busy machine misses many."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all of them if none is given")
    parser.add_argument("--small", action="store_true", help="tiny numbers, to see that everything works")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(NAMES))
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}")
    # As pip does at an installation: where PYTHONDONTWRITEBYTECODE is set, each start would compile the whole package.
    compileall.compile_dir(PACKAGE, quiet=1)
    figures = measured(given.names or NAMES, small=given.small)
    if not given.small and not given.names:
        write(figures)
    return 0


def measured(names: list[str] | tuple[str, ...], *, small: bool) -> list[Figure]:
    """Each figure, printed as it comes. A peer that is not installed costs its own figures only."""
    figures = []
    print(HEAD, flush=True)
    for name in names:
        began = time.monotonic()
        try:
            for figure in importlib.import_module(f"benchmarks.{name}").run(small=small):
                figures.append(figure)
                print(figure.row(), flush=True)
        except Missing as missing:
            print(f"{name}: {missing}", file=sys.stderr)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return figures


def write(figures: list[Figure]) -> None:
    """Into the page, between its two marks, and beside it."""
    page = DOCS / "performance.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    where = f"Linux {platform.release()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}."
    table = "\n".join([HEAD, *(figure.row() for figure in figures)])
    page.write_text(f"{before}{BEGIN}\n{where}\n\n{table}\n{END}{after}", encoding="utf-8")
    (DOCS / "performance.svg").write_text(drawn(figures), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
