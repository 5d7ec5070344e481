"""Documents dropped in bulk, from the deposit to the marker, against Postfix's smtp-source into the same sink."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import bench
from benchmarks.figures import Figure

SESSIONS = 4


def run(*, small: bool) -> Iterator[Figure]:
    """Small and large documents."""
    for what, count, size, mark in (("50 kB", 5000, 50_000, 0.25), ("5 MB", 200, 5_000_000, 0.70)):
        documents = count // 100 if small else count
        ours, theirs = dropped(documents, size), smtp_source(documents, size)
        yield Figure(f"{documents:,} documents of {what} in bulk", "/s", ours, "smtp-source", theirs, at_least=mark)


def dropped(count: int, size: int) -> float:
    """Documents a second, from the first deposit to the last marker, `quiet` (200 ms) included."""
    with bench.workplace() as top, bench.sink() as port:
        made = bench.documents(top / "outside", count, size)
        with bench.Bridge(top, port, sessions=SESSIONS).run() as bridge:
            began = time.monotonic()
            for path in made:
                os.rename(path, bridge.inbox / path.name)
            bridge.wait_for(bench.VALIDATED, count)
            took = time.monotonic() - began
            markers = sum(name.endswith(".validated.json") for name in os.listdir(bridge.inbox))
            assert markers == count, f"{markers} markers for {count} documents"
    return count / took


def smtp_source(count: int, size: int) -> float:
    """The same number of mails of the same size from Postfix's generator, which reads no file and writes none."""
    with bench.sink() as port:
        length = str(size * 4 // 3 + size * 4 // 3 // 38)
        command = [bench.tool("smtp-source"), "-d", "-s", str(SESSIONS), "-m", str(count), "-l", length]
        addresses = ["-f", "factures@cabinet.example", "-t", "martin@collecte.example", f"127.0.0.1:{port}"]
        began = time.monotonic()
        subprocess.run([*command, *addresses], check=True, stderr=subprocess.DEVNULL, cwd=Path("/"))
        return count / (time.monotonic() - began)
