"""A burst of small files, more than the kernel's queue holds: all sent, once, in little memory, at a flat cost."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from benchmarks import bench
from benchmarks.figures import Figure

SIZE = 1000
QUIET = 0.2  # as bench.Bridge configures it
GROWTH = 100.0  # MB by which memory may grow
ROUNDS = 3
# A process of its own, and no sync in it: faster than anybody copies.
DROP = """
import os, random, sys
top, count, size, seed, wide = sys.argv[1], *map(int, sys.argv[2:])
body = random.Random(seed).randbytes(size)
for number in range(count):
    directory = f"{top}/lot-{number // wide:04}"
    if number % wide == 0:
        os.mkdir(directory)
    fd = os.open(f"{directory}/facture-{number:06}.bin", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    os.write(fd, b"%012d" % number + body[12:])
    os.close(fd)
"""


def run(*, small: bool) -> Iterator[Figure]:
    """The burst, with some thousand documents before it and after it for comparison."""
    count, batch = (300, 20) if small else (100_000, 1_000)
    yield from measured(count, batch)


def measured(count: int, batch: int, wide: int = 1_000) -> Iterator[Figure]:
    """A burst of `count` in directories of `wide`, and `batch` documents at a time before and after it."""
    with bench.workplace() as top, bench.sink() as port:
        outside = top / "outside"
        with bench.Bridge(top, port).run() as bridge:
            batched(bridge, outside / "warm", batch)
            before = statistics.median(batched(bridge, outside / f"before-{n}", batch) for n in range(ROUNDS))
            done = bridge.count(bench.VALIDATED)
            bench.reset_peak(bridge.pid)
            memory = bench.resident(bridge.pid)
            command = [sys.executable, "-c", DROP, str(bridge.inbox), *map(str, (count, SIZE, bench.SEED, wide))]
            began = time.monotonic()
            subprocess.run(command, check=True)
            dropped = time.time()
            bridge.wait_for(bench.VALIDATED, done + count, within=60 + count / 20)
            took = time.monotonic() - began
            grown = (bench.peak(bridge.pid) - memory) / 1e6
            after = statistics.median(batched(bridge, outside / f"after-{n}", batch) for n in range(ROUNDS))
        times = validations(bridge.log)[done : done + count]
        sent = once(bridge)
    total = count + (2 * ROUNDS + 1) * batch
    what = f"a burst of {count:,} documents of 1 kB ({count / took:,.0f}/s)"
    yield Figure(f"{what}: sent, each once", "documents", sent, "", total, at_least=1, at_most=1)
    yield Figure(f"{what}: memory grows by", "MB", grown, "", GROWTH, at_most=1)
    what = "time for a document"
    first, last = ends([moment for moment in times if moment >= dropped] or times)
    yield Figure(f"{what}, at the end of the burst", "ms", last, "when it had been dropped", first, at_most=1.5)
    peer = f"{(ROUNDS + 1) * batch:,} before it"
    yield Figure(f"{what}, {batch:,} at a time, after the burst", "ms", after * 1e3, peer, before * 1e3, at_most=1.5)


def batched(bridge: bench.Bridge, outside: Path, count: int) -> float:
    """Seconds for each of some documents that are dropped at once, without the wait for quiet."""
    bench.documents(outside, count, SIZE, seed=bench.SEED + bridge.count(bench.VALIDATED))
    expected = bridge.count(bench.VALIDATED) + count
    began = time.monotonic()
    os.rename(outside, bridge.inbox / outside.name)
    bridge.wait_for(bench.VALIDATED, expected)
    return max(time.monotonic() - began - QUIET, 0.001) / count


def validations(log: Path) -> list[float]:
    """When each document was validated."""
    with log.open("rb") as lines:
        said = (json.loads(line)["timestamp"] for line in lines if bench.VALIDATED in line)
        return sorted(datetime.fromisoformat(timestamp).timestamp() for timestamp in said)


def ends(times: list[float]) -> tuple[float, float]:
    """Milliseconds for a document in the first part and in the last: a tenth each, at least 100, at most 5,000."""
    part = min(max(100, min(len(times) // 10, 5_000)), len(times) // 2)
    milliseconds = 1e3 / part
    return (times[part] - times[0]) * milliseconds, (times[-1] - times[-1 - part]) * milliseconds


def once(bridge: bench.Bridge) -> int:
    """How many documents left exactly once: validated at the first attempt, each path once, and no sending besides."""
    command = [bench.COMMAND, "documents", "--json", "--config", str(bridge.config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        rows = [json.loads(line) for line in process.stdout]
    paths = Counter(row["document"] for row in rows)
    right = [row["state"] == "validated" and row["attempts"] == 1 and paths[row["document"]] == 1 for row in rows]
    return sum(right) - abs(bridge.count(bench.SENT) - len(rows))
