"""Growth: the cost of a document with more clients, and the cost of the start with more files."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from functools import partial

from benchmarks import bench, trees
from benchmarks.burst import QUIET
from benchmarks.figures import Figure
from benchmarks.start import started

SIZE = 1000
DROPS = 3
EXISTING = 3  # files that each client has before
PER_DIRECTORY = 20


def run(*, small: bool) -> Iterator[Figure]:
    """Both, from small to large; each against the size before it or the smallest."""
    clients, files = ((1, 5), (100, 1_000)) if small else ((1, 10, 100, 1_000), (1_000, 10_000, 100_000, 1_000_000))
    yield from by_clients(clients, 20 if small else 1_000, rounds=1 if small else 3)
    yield from by_files(files, rounds=1 if small else 3)


def by_clients(sizes: tuple[int, ...], count: int, *, rounds: int) -> Iterator[Figure]:
    """The same documents, spread over more clients: the time for each stays what it was with one."""
    alone, *more = bench.medians(rounds, *[partial(spread, clients, count) for clients in sizes])
    for clients, each in zip(sizes[1:], more, strict=True):
        what = f"time for a document, {count:,} over {clients:,} clients"
        yield Figure(what, "ms", each * 1e3, "one client", alone * 1e3, at_most=1.5)


def spread(clients: int, count: int) -> float:
    """Seconds for each document of a drop, without the wait for quiet."""
    with bench.workplace() as top, bench.sink() as port:
        bridge = bench.Bridge(top, port, clients=clients)
        for ged in bridge.geds:
            bench.documents(ged / "Achats" / "2025", EXISTING, 10)
        with bridge.run():
            dropped(bridge, count, 0)
            return statistics.median(dropped(bridge, count, number) for number in range(1, DROPS + 1))


def dropped(bridge: bench.Bridge, count: int, number: int) -> float:
    """One drop: every client gets its share, one document each in turn."""
    made = bench.documents(bridge.base / "outside" / str(number), count, SIZE, seed=bench.SEED + number)
    expected = bridge.count(bench.VALIDATED) + count
    began = time.monotonic()
    for at, path in enumerate(made):
        os.rename(path, bridge.geds[at % len(bridge.geds)] / "Achats" / f"{number}-{path.name}")
    bridge.wait_for(bench.VALIDATED, expected)
    return max(time.monotonic() - began - QUIET, 0.001) / count


def by_files(sizes: tuple[int, ...], *, rounds: int) -> Iterator[Figure]:
    """Ten times the files, not more than ten times the start; what the start of an empty GED takes is left out."""
    with bench.workplace() as top:
        empty = first_start(bench.Bridge(top, bench.free_port()), rounds)
    before = 0.0
    for number, count in enumerate(sizes):
        with bench.workplace() as top:
            bridge = bench.Bridge(top, bench.free_port())
            trees.grow(bridge.inbox, directories=max(1, count // PER_DIRECTORY), files=count)
            each = max(first_start(bridge, rounds) - empty, 0.001) / count
        if number:
            last = count == sizes[-1]
            what = f"start for each of {count:,} existing files ({each * count + empty:.2g} s in all)"
            peer = f"of {sizes[number - 1]:,}"
            yield Figure(what, "µs", each * 1e6, peer, before * 1e6, at_most=1.5 if last else None)
        before = each


def first_start(bridge: bench.Bridge, rounds: int) -> float:
    """Seconds to `daemon_ready` without a journal."""
    return statistics.median(started(bridge, new=True) for _ in range(rounds))
