"""One document at rest: how soon after `quiet` the relay has accepted it, and what a large one takes of memory."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import bench, relays
from benchmarks.figures import Figure

QUIET = 0.2  # as bench.Bridge is configured
SIZE = 50_000


def run(*, small: bool) -> Iterator[Figure]:
    """The marks are absolute: milliseconds and megabytes."""
    count = 3 if small else 200
    waits = sorted(_waits(count))
    for percent, mark in ((50, 15), (99, 60)):
        ours = waits[math.ceil(count * percent / 100) - 1] * 1000
        yield Figure(f"from the end of quiet to the acceptance, p{percent} of {count}", "ms", ours, "", mark, at_most=1)
    megabytes = 5 if small else 100
    extra = _extra_memory(megabytes * 1_000_000) / 1_000_000
    yield Figure(f"peak extra memory for a document of {megabytes} MB, one session", "MB", extra, "", 16, at_most=1)


def _waits(count: int) -> list[float]:
    """Seconds from the end of quiet to the answer to the final dot, for one document at a time."""
    chance = random.Random(bench.SEED)
    with bench.workplace() as top, relays.relay(top) as relay:
        made = bench.documents(top / "outside", count + 1, SIZE)
        with bench.Bridge(top, relay.port).run() as bridge:
            waits = [_wait(bridge, relay, path, sent) for sent, path in enumerate(_paced(made, chance))]
    return waits[1:]  # the first one opens the session


def _paced(made: list[Path], chance: random.Random) -> Iterator[Path]:
    """Each after a pause that is in step with nothing the daemon does."""
    for path in made:
        time.sleep(chance.uniform(0.05, 0.35))
        yield path


def _wait(bridge: bench.Bridge, relay: relays.Relay, path: Path, sent: int) -> float:
    os.rename(path, bridge.inbox / path.name)
    deposited = time.time()
    bench.until(lambda: len(relay.accepted()) > sent, f"{path.name} is accepted", 60)
    bridge.wait_for(bench.VALIDATED, sent + 1, 60)
    return relay.accepted()[sent] - deposited - QUIET


def _extra_memory(size: int) -> int:
    """Bytes of resident memory that one document of `size` takes at most, when all is imported and warm."""
    with bench.workplace() as top, bench.sink() as port:
        (warm,) = bench.documents(top / "warm", 1, SIZE)
        (large,) = bench.documents(top / "outside", 1, size, bench.SEED + 1)
        with bench.Bridge(top, port, sessions=1).run() as bridge:
            os.rename(warm, bridge.inbox / "warm.bin")
            bridge.wait_for(bench.VALIDATED, 1, 60)
            bench.reset_peak(bridge.pid)
            before = bench.peak(bridge.pid)
            os.rename(large, bridge.inbox / "large.bin")
            bridge.wait_for(bench.VALIDATED, 2)
            return bench.peak(bridge.pid) - before
