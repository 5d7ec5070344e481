"""`watching.inotify` against the kernel: hints come, and a closed watcher gives its queue back."""

from __future__ import annotations

import os
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from bridged.watching import Hint, inotify
from bridged.watching.inotify import GatheringInotify, Watcher
from tests.support.bridge import until


def queues() -> list[str]:
    """The inotify queues that this process has open."""
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return [link.name for link in links if os.path.islink(link) and "inotify" in os.readlink(link)]


@pytest.fixture
def watcher():
    watcher = Watcher(lambda: None, lambda _: False)
    yield watcher
    watcher.close()


def test_a_deleted_directory_gives_a_hint_and_is_no_longer_watched(watcher, tmp_path):
    directory = os.fsencode(tmp_path / "Achats")
    os.mkdir(directory)
    watcher.watch(directory)
    os.rmdir(directory)
    until(lambda: watcher.count == 0, "the end of the watch", 5)
    hints: list[Hint] = []
    until(lambda: hints.extend(watcher.drain(10)) or Hint("look", directory) in hints, "a hint", 5)


def test_a_directory_that_was_renamed_is_watched_under_its_new_name_and_only_that(watcher, tmp_path):
    """A hint with the old name would lead nowhere, and the kernel keeps one watch for both names."""
    old, new = os.fsencode(tmp_path / "Achats"), os.fsencode(tmp_path / "Achats 2026")
    os.mkdir(old)
    watcher.watch(old)
    os.rename(old, new)
    watcher.watch(new)
    assert watcher.count == 1
    Path(os.fsdecode(new), "facture.pdf").touch()
    hints: list[Hint] = []
    until(lambda: hints.extend(watcher.drain(10)) or hints, "a hint", 5)
    assert {hint.path for hint in hints} == {new + b"/facture.pdf"}


def test_a_hint_from_a_renamed_directory_has_its_new_name_at_once(watcher, tmp_path):
    """Without a new watch, because another directory may stand at the old name by then."""
    for directory in ("site/deep", "site.new"):
        (tmp_path / directory).mkdir(parents=True)
    for directory in ("", "site", "site/deep", "site.new"):
        watcher.watch(os.fsencode(tmp_path / directory))
    (tmp_path / "site").rename(tmp_path / "site.old")
    (tmp_path / "site.new").rename(tmp_path / "site")
    (tmp_path / "site.old/deep/a.pdf").touch()
    (tmp_path / "site/b.pdf").touch()
    (tmp_path / "last.pdf").touch()
    hints: list[Hint] = []
    until(lambda: hints.extend(watcher.drain(10)) or any(h.path.endswith(b"last.pdf") for h in hints), "a hint", 5)
    old, new = os.fsencode(tmp_path / "site.old/deep/a.pdf"), os.fsencode(tmp_path / "site/b.pdf")
    assert {hint.path for hint in hints if hint.path.endswith((b"a.pdf", b"b.pdf"))} == {old, new}


def test_an_unnamed_file_gives_no_hint_before_it_has_a_name(watcher, tmp_path):
    """A marker begins without a name, and the kernel's name for it leads nowhere. A document may bear such a name."""
    watcher.watch(os.fsencode(tmp_path))
    unnamed = os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY, 0o600)
    # With a directory's descriptor, because Python follows the link in /proc only then.
    os.link(f"/proc/self/fd/{unnamed}", tmp_path / "named.pdf", src_dir_fd=unnamed, follow_symlinks=True)
    os.close(unnamed)
    (tmp_path / "#4711").write_text("a document")
    (tmp_path / "last.pdf").touch()
    hints: list[Hint] = []
    until(lambda: hints.extend(watcher.drain(10)) or any(h.path.endswith(b"last.pdf") for h in hints), "a hint", 5)
    assert {os.path.basename(hint.path) for hint in hints} == {b"named.pdf", b"#4711", b"last.pdf"}


@pytest.mark.parametrize(("name", "error"), [("file", NotADirectoryError), ("nothing", FileNotFoundError)])
def test_a_path_that_cannot_be_watched_raises_the_reason(watcher, tmp_path, name, error):
    (tmp_path / "file").touch()
    with pytest.raises(error):
        watcher.watch(os.fsencode(tmp_path / name))
    assert watcher.count == 0


def test_a_hint_of_an_earlier_change_comes_before_the_sync(watcher, tmp_path):
    """In a burst over many directories, with renames whose halves wait for each other."""
    directories = [tmp_path / str(number) for number in range(50)]
    for directory in directories:
        directory.mkdir()
        watcher.watch(os.fsencode(directory))
    number, hints = 0, []
    for turn in range(5):
        wanted = set()
        for directory, other in pairwise(directories):
            (directory / f"new-{turn}").touch()
            (directory / f"away-{turn}").touch()
            (directory / f"away-{turn}").rename(tmp_path / f"out-{turn}")
            (directory / f"new-{turn}").rename(other / f"renamed-{turn}")
            wanted.add(os.fsencode(other / f"renamed-{turn}"))
        for ged in (b"/one", b"/two"):
            number += 1
            watcher.sync(ged, number)
        (directories[0] / f"later-{turn}").touch()
        syncs = [Hint("sync", b"/one", number=number - 1), Hint("sync", b"/two", number=number)]
        until(lambda f=syncs: hints.extend(watcher.drain(1000)) or f[1] in hints, "the syncs", 5)
        first = hints.index(syncs[0])
        assert first < hints.index(syncs[1])
        assert {hint.dest for hint in hints[:first] if hint.kind == "moved"} >= wanted
    assert watcher.count == len(directories)


def test_without_a_watch_to_be_had_a_sync_raises(watcher, monkeypatch):
    monkeypatch.setattr(inotify, "_NOBODYS", b"/nonexistent")
    with pytest.raises(FileNotFoundError):
        watcher.sync(b"/one", 1)
    watcher.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        watcher.sync(b"/one", 2)


def test_a_closed_watcher_has_given_its_queue_back_and_takes_no_directory(tmp_path):
    """Its descriptor's number may belong to another file by then."""
    before = queues()
    watcher = Watcher(lambda: None, lambda _: False)
    watcher.watch(os.fsencode(tmp_path))
    watcher.close()
    assert queues() == before
    with pytest.raises(OSError, match="Bad file descriptor"):
        watcher.watch(os.fsencode(tmp_path))


def test_a_watcher_whose_reader_died_gives_its_queue_back(monkeypatch):
    """Otherwise its watches would count against the limit, and the next watcher might get none."""

    def die(_self):
        raise SystemExit

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    before = queues()
    with monkeypatch.context() as patch:
        patch.setattr(GatheringInotify, "_check_inotify_fd", die)
        watcher = Watcher(lambda: None, lambda _: False)
        until(lambda: not watcher.alive, "the reader's death", 5)
    assert queues() != before
    watcher.close()
    assert queues() == before
