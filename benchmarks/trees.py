"""A large tree of existing files, the same in every run: exercises, months, suppliers."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from benchmarks.bench import SEED

SUPPLIERS = ("Boulangerie", "Électricité", "Imprimerie", "Plomberie", "Transports", "Menuiserie", "Papeterie", "Garage")
KINDS = ("Facture", "Avoir", "Relevé", "Note de frais", "Bon de livraison")
PER_MONTH = 400  # suppliers in a month, at most: a real tree is wide at the bottom
RESTED = 2.2  # seconds after which a directory is no longer young for a sweep


def grow(top: Path, *, directories: int, files: int, seed: int = SEED) -> Path:
    """So many directories and empty files below `top`, which is returned once they are written and have rested."""
    chance = random.Random(seed)
    leaves = _directories(top, directories)
    mounts = [0] * len(leaves)
    for leaf in chance.choices(range(len(leaves)), k=files):
        mounts[leaf] += 1
    number = 0
    for leaf, share in zip(leaves, mounts, strict=True):
        number = _fill(leaf, share, number, chance)
    os.sync()
    time.sleep(RESTED)
    return top


def _directories(top: Path, count: int) -> list[str]:
    """`count` directories in three levels; those of the last, which hold the files."""
    leaves: list[str] = []
    made = year = 0
    while made < count:
        made += _make(f"{top}/{2026 - year}")
        months = min(12, max(1, (count - made) // 3))
        share = max(1, min(PER_MONTH, (count - made) // months - 1))
        for month in range(1, months + 1):
            if count - made < 2:
                break
            made += _make(f"{top}/{2026 - year}/{month:02}-{2026 - year}")
            for supplier in range(min(share, count - made)):
                leaf = f"{top}/{2026 - year}/{month:02}-{2026 - year}/{SUPPLIERS[supplier % 8]} {supplier:04}"
                made += _make(leaf)
                leaves.append(leaf)
        year += 1
    return leaves or [f"{top}/2026"]


def _make(directory: str) -> int:
    os.makedirs(directory)
    return 1


def _fill(directory: str, count: int, number: int, chance: random.Random) -> int:
    """`count` empty files in one directory; the next number."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for one in range(number, number + count):
            name = f"{1 + one % 28:02} {KINDS[chance.getrandbits(8) % 5]} n°{one:07}.pdf"
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640, dir_fd=fd))
    finally:
        os.close(fd)
    return number + count
