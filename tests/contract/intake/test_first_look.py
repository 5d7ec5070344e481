"""The first pass over a GED: it reads names where they are enough, and tells each directory at once."""

from __future__ import annotations

import os
import time

import pytest

from bridged.config import components
from bridged.ged import files
from bridged.intake import Listing, Sweep
from bridged.journal.packed import Packed, entries

LATER = 10.0  # seconds from now: no directory is young any more
SUPPLIERS = 20
RESTED = 0.1  # seconds, after which the coarse clock has gone on


@pytest.fixture
def ged(tmp_path):
    """A tree with some directories whose names need a closer look."""
    for supplier in range(SUPPLIERS):
        directory = tmp_path / "Achats" / f"{supplier:03} Ménuiserie"
        directory.mkdir(parents=True)
        (directory / f"facture-{supplier}.pdf").touch()
        if supplier % 5 == 0:
            (directory / ".cache").touch()
            (directory / "lien").symlink_to("/")
            (directory / "vide").mkdir()
    time.sleep(RESTED)
    return os.fsencode(tmp_path)


def first(ged, watch=lambda _: None):
    sweep = Sweep(ged, lambda _: True, watch)
    sweep.packs = lambda _: True
    return sweep


def walked(sweep, root_fd):
    return (found for found in sweep.whole(root_fd, [components("Achats")], time.time() + LATER, full=True) if found)


def passed(sweep):
    with files.root(sweep.ged) as root_fd:
        return list(walked(sweep, root_fd))


def names(found):
    """The names that a finding tells of."""
    if isinstance(found, Packed):
        return {name for _, _, name in entries(found.records)}
    assert isinstance(found, Listing)
    return {entry.name for entry in found.entries}


def on_the_disk(ged):
    return {directory: {*inner, *outer} for directory, inner, outer in os.walk(ged + b"/Achats")}


def test_a_first_pass_tells_once_of_each_directory_with_all_its_names(ged):
    sweep = first(ged)
    found = passed(sweep)
    assert {one.directory: names(one) for one in found} == on_the_disk(ged)
    assert len(found) == len(on_the_disk(ged))
    assert all(one.directory in sweep for one in found)


def test_a_first_pass_lists_a_directory_whose_names_are_not_enough(ged):
    listed = {one.directory for one in passed(first(ged)) if isinstance(one, Listing)}
    assert listed == {directory for directory, inner in on_the_disk(ged).items() if b"lien" in inner}


def test_a_first_pass_watches_a_directory_before_it_reads_it(ged):
    """A hint tells of a file that comes later; so a file that comes at that instant must be read."""

    def watch(directory):
        with open(directory + b"/meanwhile.pdf", "wb"):
            pass

    for found in passed(first(ged, watch)):
        assert b"meanwhile.pdf" in names(found), found.directory


def test_a_first_pass_has_told_of_each_directory_that_it_watches(ged):
    """Otherwise a hint of a change would be followed first, and contradicted by an older reading."""
    watched, told = [], set()
    sweep = first(ged, watched.append)
    with files.root(ged) as root_fd:
        for found in walked(sweep, root_fd):
            told.add(found.directory)
            assert set(watched) - {ged} == told
