"""The directories of a sweep: those that an earlier daemon has read, and those that a pattern finds."""

from __future__ import annotations

import os
import shutil
import time

import pytest

from bridged.config import components
from bridged.ged import files
from bridged.intake import Listing, Sweep, Unreadable
from bridged.intake.sweep import GoneDirectory

LATER = 10.0  # seconds from now: no directory is young any more


@pytest.fixture
def ged(tmp_path):
    for directory in ("Achats/2025/11", "Achats/2026", "Notes"):
        (tmp_path / directory).mkdir(parents=True)
        (tmp_path / directory / "facture.pdf").write_bytes(b"%PDF")
    return os.fsencode(tmp_path)


def one(ged):
    """A sweep, and the directories for which it asked for hints."""
    watched = []
    return Sweep(ged, lambda _: True, watched.append), watched


def passed(sweep, *, full=False, after=LATER):
    """The findings of a pass over `Achats`."""
    with files.root(sweep.ged) as root_fd:
        return [found for found in sweep.whole(root_fd, [components("Achats")], time.time() + after, full) if found]


def remembering(ged):
    """A sweep that remembers the times that the journal keeps of the one before."""
    before, _ = one(ged)
    passed(before, full=True)
    settled, void = before.read_since()
    assert void == []
    sweep, watched = one(ged)
    sweep.remember(settled)
    return sweep, watched


def listed(found):
    return sorted(os.path.basename(each.directory) for each in found if isinstance(each, Listing))


def test_a_remembered_directory_that_has_not_changed_is_watched_and_not_read(ged):
    sweep, watched = remembering(ged)
    assert passed(sweep) == []
    below = [ged + b"/" + part for part in (b"Achats", b"Achats/2025", b"Achats/2025/11", b"Achats/2026")]
    assert set(watched) >= set(below)
    sweep.forget_unmet()
    assert all(directory in sweep for directory in below)


@pytest.mark.parametrize(
    ("change", "read"),
    [
        (lambda top: (top / "Achats/2026/neu.pdf").write_bytes(b"new"), [b"2026"]),
        (lambda top: (top / "Achats/2026/facture.pdf").unlink(), [b"2026"]),
        (lambda top: (top / "Achats/2026/facture.pdf").rename(top / "Achats/2026/other.pdf"), [b"2026"]),
        (lambda top: (top / "Achats/2024/01").mkdir(parents=True), [b"01", b"2024", b"Achats"]),
        (lambda top: (top / "Notes/facture.pdf").rename(top / "Achats/2025/11/moved.pdf"), [b"11"]),
    ],
    ids=["a new file", "one gone", "one renamed", "new directories", "one moved in"],
)
def test_a_remembered_directory_that_has_changed_is_read(ged, tmp_path, change, read):
    sweep, _ = remembering(ged)
    change(tmp_path)
    assert listed(passed(sweep)) == read


def test_a_change_that_sets_the_directorys_time_back_is_seen(ged, tmp_path):
    """rsync -a and tar set it back. No program sets the ctime of a directory."""
    sweep, _ = remembering(ged)
    before = os.stat(tmp_path / "Achats/2026")
    (tmp_path / "Achats/2026/neu.pdf").write_bytes(b"new")
    os.utime(tmp_path / "Achats/2026", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert listed(passed(sweep)) == [b"2026"]


def test_a_remembered_directory_that_has_gone_is_told_and_its_successor_is_read(ged, tmp_path):
    sweep, _ = remembering(ged)
    shutil.rmtree(tmp_path / "Achats/2025")
    (tmp_path / "Achats/2025/11").mkdir(parents=True)
    shutil.rmtree(tmp_path / "Achats/2026")
    found = passed(sweep)
    assert listed(found) == [b"11", b"2025", b"Achats"]
    assert GoneDirectory(ged + b"/Achats/2026") in found


def test_a_remembered_folder_that_is_off_now_is_forgotten_after_a_pass(ged, tmp_path):
    sweep, _ = remembering(ged)
    shutil.rmtree(tmp_path / "Achats")
    passed(sweep)
    sweep.forget_unmet()
    assert len(sweep) == 0


def test_a_directory_that_was_young_when_it_was_read_is_read_again(ged):
    before, _ = one(ged)
    passed(before, full=True, after=0.0)
    settled, void = before.read_since()
    assert settled == []
    assert len(void) == 4


def test_a_directory_with_a_leftover_or_an_unreadable_file_is_read_again(ged, tmp_path):
    (tmp_path / "Achats/2026/.bridged-0123456789abcdef.tmp").write_bytes(b"")
    before, _ = one(ged)
    passed(before, full=True)
    settled, void = before.read_since()
    assert void == [ged + b"/Achats/2026"]
    assert len(settled) == 3


def test_a_directory_that_was_not_kept_is_met_below_one_that_was(ged, tmp_path):
    """It was too young when the daemon stopped, or unreadable. The times of the one above say nothing of it."""
    before, _ = one(ged)
    passed(before, full=True)
    settled, _ = before.read_since()
    for missing in (b"Achats/2026", b"Achats/2025/11", b"Achats/2025"):
        sweep, watched = one(ged)
        sweep.remember([each for each in settled if each.directory != ged + b"/" + missing])
        assert os.path.basename(missing) in listed(passed(sweep))
        assert ged + b"/" + missing in watched


def test_a_directory_that_has_gone_is_not_kept(ged, tmp_path):
    sweep, _ = remembering(ged)
    shutil.rmtree(tmp_path / "Achats/2025")
    passed(sweep)
    settled, void = sweep.read_since()
    assert {ged + b"/Achats/2025", ged + b"/Achats/2025/11"} <= set(void)
    assert [each.children for each in settled if each.directory == ged + b"/Achats"] == [1]


def test_a_directory_that_is_off_is_no_missing_child_of_the_one_above(ged):
    """Otherwise the directory above an excluded one would be read at every start."""
    off = ged + b"/Achats/2025"
    before = Sweep(ged, lambda directory: not directory.startswith(off), lambda _: None)
    passed(before, full=True)
    settled, _ = before.read_since()
    sweep = Sweep(ged, lambda directory: not directory.startswith(off), lambda _: None)
    sweep.remember(settled)
    assert passed(sweep) == []


@pytest.mark.parametrize("remembered", [False, True])
def test_no_absence_is_concluded_below_a_directory_that_cannot_be_read(ged, tmp_path, remembered):
    """A file system that is mounted there may be away."""
    sweep, _ = remembering(ged) if remembered else one(ged)
    passed(sweep, full=not remembered)
    point = ged + b"/Achats/2025"
    sweep.points.add(point)
    sweep.arrived = lambda directory, _: "not mounted" if directory == point else ""
    shutil.rmtree(tmp_path / "Achats/2025/11")
    found = passed(sweep)
    assert [(type(each), each.directory) for each in found] == [(Unreadable, point)]
    assert point + b"/11" in sweep
    sweep.arrived = lambda *_: ""
    assert GoneDirectory(point + b"/11") in passed(sweep)


def roots(ged, pattern, ignore=()):
    """The directories that a pass over one pattern reads, and those that it watches."""
    sweep, watched = one(ged)
    with files.root(ged) as root_fd:
        found = list(sweep.whole(root_fd, [components(pattern, ignore)], time.time() + LATER, True))
    read = sorted(os.path.relpath(each.directory, ged) for each in found if isinstance(each, Listing))
    return read, {os.path.relpath(directory, ged) for directory in watched}


def test_a_pass_neither_reads_nor_watches_an_ignored_directory_that_a_star_matches(tmp_path):
    ged = os.fsencode(tmp_path)
    for name in ("#recycle", "@eaDir", ".snapshot", ".git", "Vieux", "Site"):
        (tmp_path / name / "Achats").mkdir(parents=True)
    assert roots(ged, "*/Achats", ["Vieux"]) == ([b"Site/Achats"], {b".", b"Site", b"Site/Achats"})
    assert roots(ged, "#recycle/Achats")[0] == [b"#recycle/Achats"]
