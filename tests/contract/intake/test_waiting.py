"""Deposits that wait, on a clock that is moved by hand."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridged.config import SwitchedFolders, load
from bridged.ged import Mounts, files
from bridged.intake import HEAD
from bridged.intake.waiting import Waiting
from bridged.journal import Journal
from bridged.journal.values import Query
from bridged.marker import Marker
from bridged.model import Document, Instant, State
from tests.support.documents import put
from tests.support.stepping import done


class Waits:
    """The waiting deposits of one GED. Its `quiet` is 2 s, its `poll` 10 s."""

    def __init__(self, base: Path, *, polled: bool) -> None:
        self.folder = base / "ged/Achats"
        self.folder.mkdir(parents=True)
        self.now = 1000.0
        self.lost: list[bytes] = []
        config = base / "bridged.yaml"
        config.write_text(
            f"smtp: {{host: localhost, security: plain, sender: factures@cabinet.example}}\n"
            f"state_dir: {base}/state\nclients:\n  - name: Martin\n    ged: {base}/ged\n"
            "    collection_email: martin@collecte.example\n    switched_folders: [Achats]\n"
        )
        settings = load(config)
        settings.state_dir.mkdir()
        self.journal, self.ged, mounts = Journal(settings.state_dir), os.fsencode(base / "ged"), Mounts()
        with files.root(self.ged) as fd:
            mounts.found(self.ged, self.ged, fd, settled=True)
        self.waiting = Waiting(self.ged, self.journal, mounts, lambda: None, lambda: None, lambda: polled)
        self.waiting.configure(settings, SwitchedFolders(settings.clients, settings.ignore))

    def deposit(self, name: str, content: bytes = b"facture") -> Path:
        """A new file, and its row."""
        document = self.folder / name
        document.write_bytes(content)
        path, stamp = os.fsencode(document), files.stamp_of(document.lstat())

        def enter(tx: Any) -> None:
            seq = put(tx, State.WAITING, os.fsencode(name), "Martin", ged=self.ged, path=path, stamp=stamp)
            tx.know(path, stamp, seq)

        self.journal.write(enter)
        return document

    def step(self, seconds: float) -> None:
        """So much later, one step."""
        self.now += seconds
        done(self.journal, self.waiting.step(Instant(self.now, self.now), self._examine))

    def _examine(self, path: bytes, _now: Instant) -> Iterator[Any]:
        self.lost.append(path)
        return iter(())

    def documents(self) -> dict[str, Document]:
        return {os.fsdecode(d.name): d for d in self.journal.read(lambda tx: tx.documents(Query()))}

    def states(self) -> dict[str, str]:
        return {name: document.state.value for name, document in self.documents().items()}


@pytest.fixture
def polled(tmp_path: Path) -> Iterator[Waits]:
    waits = Waits(tmp_path, polled=True)
    yield waits
    waits.journal.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Waits]:
    waits = Waits(tmp_path, polled=False)
    yield waits
    waits.journal.close()


# -- quiet


def test_a_deposit_on_a_local_disk_is_queued_after_quiet(local: Waits) -> None:
    local.deposit("a.txt")
    local.waiting.resume()
    local.step(0)
    local.step(1.9)
    assert local.states() == {"a.txt": "waiting"}
    local.step(0.2)
    assert local.states() == {"a.txt": "queued"}


def test_a_deposit_on_a_polled_ged_is_queued_a_whole_poll_after_its_first_look(polled: Waits) -> None:
    polled.deposit("a.txt")
    polled.waiting.resume()
    polled.step(0)
    polled.step(9.9)
    assert polled.states() == {"a.txt": "waiting"}
    polled.step(0.2)
    assert polled.states() == {"a.txt": "queued"}


def test_a_deposit_on_a_polled_ged_is_opened_at_each_look_before_its_stamp_is_taken(
    polled: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of a file server asks the server at an open, and its own cache at an lstat."""
    real, document = os.lstat, polled.deposit("a.txt", b"half")
    stale = document.lstat()

    def cached(path: Any, **where: Any) -> os.stat_result:
        return stale if path == b"a.txt" else real(path, **where)

    monkeypatch.setattr(files.os, "lstat", cached)
    polled.waiting.resume()
    polled.step(0)
    document.write_bytes(b"half and the other half")
    polled.step(10.1)
    assert polled.states() == {"a.txt": "waiting"}
    polled.step(10.1)
    assert polled.states() == {"a.txt": "queued"}
    assert polled.documents()["a.txt"].stamp.size == len(b"half and the other half")


def test_a_deposit_that_looks_cut_off_is_read_again_when_it_changes_and_seldom_otherwise(
    local: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = local.deposit("a.pdf", b"%PDF-1.4\n" + b"page" * 1000)
    reads: list[int] = []
    usual = os.pread
    monkeypatch.setattr(files.os, "pread", lambda fd, n, at: (reads.append(n), usual(fd, n, at))[1])
    local.waiting.resume()
    for _ in range(30):
        local.step(1.0)
    assert len(reads) > 20  # the first bytes, at each look
    assert 2 <= sum(count > HEAD for count in reads) <= 6
    with document.open("ab") as file:
        file.write(b"%%EOF")
    for _ in range(4):
        local.step(1.0)
    assert local.states() == {"a.pdf": "queued"}


# -- a disk that fails


def test_a_deposit_that_its_disk_fails_to_read_is_told_once_tried_again_and_queued(
    local: Waits, monkeypatch: pytest.MonkeyPatch, said: list[dict[str, Any]]
) -> None:
    """Otherwise it would wait for ever, and no line would say so."""
    local.deposit("bad.pdf", b"%PDF-1.4\n%%EOF")
    local.deposit("good.txt")
    usual = os.pread

    def failing(fd: int, count: int, at: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("bad.pdf"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return usual(fd, count, at)

    local.waiting.resume()
    with monkeypatch.context() as disk:
        disk.setattr(files.os, "pread", failing)
        for _ in range(20):
            local.step(1.0)
    assert local.states() == {"bad.pdf": "waiting", "good.txt": "queued"}
    (line,) = [line for line in said if line["event"] == "document_deferred"]
    assert (line["document"], "Input/output error" in line["reason"]) == ("Achats/bad.pdf", True)
    assert local.lost == []
    local.step(1.0)
    assert local.states() == {"bad.pdf": "queued", "good.txt": "queued"}


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ESTALE, errno.EHOSTDOWN, errno.ENOENT])
def test_a_share_that_goes_during_a_look_is_not_told_for_each_deposit(
    local: Waits, monkeypatch: pytest.MonkeyPatch, said: list[dict[str, Any]], number: int
) -> None:
    """Intake tells of the share, once."""
    local.deposit("a.txt")
    local.waiting.resume()
    local.step(0)
    with monkeypatch.context() as share:
        share.setattr(files.os, "pread", lambda *_: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
        for _ in range(5):
            local.step(2.0)
    assert [line for line in said if line["event"] == "document_deferred"] == []
    assert local.lost
    assert local.states() == {"a.txt": "waiting"}


# -- deposits that come with a marker


def marked(document: Path, message_id: str, content: bytes) -> None:
    """A marker beside a document, of these bytes."""
    marker = Marker(
        "validated", document.name, "Martin", "martin@collecte.example", hashlib.sha256(content).hexdigest(),
        len(content), message_id, "2026-11-24T08:12:03.120Z", "2026-11-24T08:12:06.007Z", "250 Ok", 1, "0.1.0",
    )  # fmt: skip
    document.with_name(document.name + ".validated.json").write_bytes(marker.to_json())


def settle(waits: Waits) -> None:
    waits.waiting.resume()
    waits.step(0)
    waits.step(2.1)


def test_two_files_whose_markers_bear_one_unknown_message_id_are_both_validated(local: Waits) -> None:
    """Copies that came with their marker, found at once. The Message-ID of one row is its own."""
    for name in ("a.txt", "b.txt"):
        marked(local.deposit(name, b"facture"), "<lost@cabinet.example>", b"facture")
    settle(local)
    documents = local.documents()
    assert local.states() == {"a.txt": "validated", "b.txt": "validated"}
    assert [d.message_id for d in documents.values()].count("<lost@cabinet.example>") == 1
    assert {d.sha256 for d in documents.values()} == {hashlib.sha256(b"facture").hexdigest()}
    assert {n: d.marker for n, d in documents.items()} == {
        name: os.fsencode(local.folder / f"{name}.validated.json") for name in documents
    }


def test_of_two_markers_with_one_unknown_message_id_and_other_bytes_the_second_is_none(local: Waits) -> None:
    """One Message-ID was of one mail with one document, so one of the two markers is forged."""
    for name, content in (("a.txt", b"facture"), ("b.txt", b"another")):
        marked(local.deposit(name, content), "<lost@cabinet.example>", content)
    settle(local)
    assert local.states() == {"a.txt": "validated", "b.txt": "queued"}


def test_a_copy_with_its_marker_of_a_document_that_is_known_is_validated_and_keeps_its_own_id(local: Waits) -> None:
    digest = hashlib.sha256(b"facture").hexdigest()
    columns = {"message_id": "<known@cabinet.example>", "sha256": digest}
    local.journal.write(lambda tx: put(tx, State.VALIDATED, b"known.txt", "Martin", ged=local.ged, **columns))
    marked(local.deposit("copy.txt", b"facture"), "<known@cabinet.example>", b"facture")
    marked(local.deposit("forged.txt", b"another"), "<known@cabinet.example>", b"another")
    settle(local)
    assert local.states() == {"known.txt": "validated", "copy.txt": "validated", "forged.txt": "queued"}
    assert local.documents()["copy.txt"].message_id != "<known@cabinet.example>"


@pytest.mark.parametrize("of", [b"other bytes", b"facturE"], ids=["another size", "other bytes"])
def test_a_marker_of_other_bytes_than_those_beside_it_makes_no_document_validated(local: Waits, of: bytes) -> None:
    marked(local.deposit("a.txt", b"facture"), "<lost@cabinet.example>", of)
    settle(local)
    assert local.states() == {"a.txt": "queued"}
