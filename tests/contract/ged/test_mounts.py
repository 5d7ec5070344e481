"""Which GEDs are away, told by several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridged.ged import Mounts, files
from tests.support.mounts import FuseMounts


class Interrupted(dict):
    """A dictionary in which another thread gets its turn while somebody looks."""

    meanwhile = None

    def get(self, key):
        found = super().get(key)
        if self.meanwhile is not None:
            work, self.meanwhile = self.meanwhile, None
            self.other = threading.Thread(target=work)
            self.other.start()
            self.other.join(0.2)
        return found


def test_a_ged_forgotten_while_it_is_told_away_does_not_stay_away(tmp_path):
    """Otherwise its queued documents would wait for ever instead of being withdrawn."""
    mounts, ged = Mounts(), os.fsencode(tmp_path)
    mounts.expect(ged, ged)
    mounts._points[ged] = points = Interrupted(mounts._points[ged])
    points.meanwhile = lambda: mounts.forget(ged, ged)
    mounts.lost(ged, ged)
    points.other.join()
    assert mounts.away() == ()


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Path]:
    """A bindfs mount with two files."""
    (tmp_path / "server").mkdir()
    (tmp_path / "share").mkdir()
    for name in ("one.txt", "other.txt"):
        (tmp_path / "server" / name).write_text(name)
    with FuseMounts(tmp_path) as mounts:
        mounts.fuse("bindfs", tmp_path / "server", tmp_path / "share")
        yield tmp_path / "share"


def asked(mounts: Mounts, document: Path) -> bool | None:
    fd = os.open(document, os.O_RDONLY)
    try:
        return mounts.has_writer(fd)
    finally:
        os.close(fd)


def test_a_refused_lease_on_a_share_is_a_writer_only_once_that_share_has_granted_one(share: Path) -> None:
    """A server without oplocks refuses the lease of every file, and each document would wait for ten minutes."""
    mounts = Mounts()
    with (share / "one.txt").open("ab"):
        assert asked(mounts, share / "one.txt") is None
        assert asked(mounts, share / "other.txt") is False
        assert asked(mounts, share / "one.txt") is True
    assert asked(mounts, share / "one.txt") is False


def test_a_lease_granted_by_one_share_says_nothing_about_another(share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = Mounts()
    assert asked(mounts, share / "other.txt") is False
    here = files.Mount("another source", "fuse.bindfs", os.fsencode(share))
    monkeypatch.setattr(files, "mount_of", lambda _fd: here)  # its device number is that of the share before
    with (share / "one.txt").open("ab"):
        assert asked(mounts, share / "one.txt") is None


def test_a_refused_lease_on_a_local_disk_is_a_writer_at_once(tmp_path: Path) -> None:
    document = tmp_path / "x.txt"
    document.write_text("x")
    with document.open("ab"):
        assert asked(Mounts(), document) is True
