"""Markers that move along, after renames of documents and of directories, told late or all at once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridged.ged import Calls, Mounts, files
from bridged.journal import Journal
from bridged.marker import MARKER_FOLLOWS, Marking
from bridged.model import State
from tests.support.documents import put

SUFFIX = ".validated.json"
SETTINGS: Any = SimpleNamespace(marker=SimpleNamespace(suffix=SUFFIX, hidden=False), watch=SimpleNamespace(sweep=60.0))


class Firm:
    """A GED with documents that are validated. `renamed` tells the journal of a rename, as intake does."""

    def __init__(self, base: Path) -> None:
        self.root = base / "ged"
        self.root.mkdir()
        self.ged = os.fsencode(self.root)
        self.journal, mounts, calls = Journal(base), Mounts(), Calls(time.monotonic)
        with files.root(self.ged) as fd:
            mounts.found(self.ged, self.ged, fd, settled=True)
        calls.locate(self.ged, "the disk")
        self.marking = Marking(self.journal, SETTINGS, calls, mounts)
        self.now = 100.0

    def validated(self, *names: str, content: str = "") -> None:
        """Documents that were sent, with their markers."""
        for name in names:
            document = self.root / name
            document.parent.mkdir(parents=True, exist_ok=True)
            document.write_text(content or name)
            stamp, path = files.stamp_of(document.lstat()), os.fsencode(document)

            def sent(tx: Any, name: str = name, path: bytes = path, stamp: Any = stamp) -> None:
                columns = {"ged": self.ged, "path": path, "marker_due": 0.0, "stamp": stamp, "sha256": content or name}
                tx.know(path, stamp, put(tx, State.SENT, os.fsencode(name), **columns))

            self.journal.write(sent)
        self.follow()
        assert all((self.root / f"{name}{SUFFIX}").exists() for name in names)

    def renamed(self, old: str, new: str) -> None:
        """Intake has seen that a document goes by another path now."""
        former, path = os.fsencode(self.root / old), os.fsencode(self.root / new)

        def repath(tx: Any) -> None:
            known = tx.known(former)
            tx.forget(former)
            tx.know(path, known.stamp, known.document)
            tx.repath(known.document, path, self.now + MARKER_FOLLOWS)

        self.journal.write(repath)

    def follow(self) -> None:
        """Later, the markers that are due."""
        for _ in range(3):
            self.now += MARKER_FOLLOWS + 0.1
            self.marking.step(self.now)

    def markers(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*.json"))

    def whose(self, marker: str) -> bool:
        """Whether a marker stands beside the document that it is of."""
        document = (self.root / marker.removesuffix(SUFFIX)).read_text()
        return f'"sha256": "{document}"' in (self.root / marker).read_text()


@pytest.fixture
def firm(tmp_path: Path) -> Iterator[Firm]:
    firm = Firm(tmp_path)
    yield firm
    firm.journal.close()


def test_a_marker_moves_along_when_its_document_and_then_its_directory_is_renamed(firm: Firm) -> None:
    """Both before the marker followed the first rename, or while the daemon was stopped."""
    firm.validated("A/x.pdf")
    (firm.root / "A/x.pdf").rename(firm.root / "A/y.pdf")
    (firm.root / "A").rename(firm.root / "B")
    firm.renamed("A/x.pdf", "B/y.pdf")
    firm.follow()
    assert firm.markers() == ["B/y.pdf.validated.json"]


def test_a_marker_moves_along_when_the_directory_rename_is_told_after_it_was_due(firm: Firm) -> None:
    firm.validated("A/x.pdf")
    (firm.root / "A/x.pdf").rename(firm.root / "A/y.pdf")
    firm.renamed("A/x.pdf", "A/y.pdf")
    (firm.root / "A").rename(firm.root / "B")
    firm.follow()
    firm.renamed("A/y.pdf", "B/y.pdf")
    firm.follow()
    assert firm.markers() == ["B/y.pdf.validated.json"]


@pytest.mark.parametrize("above", ["", "2026/", "Exercice 2026/Achats/"], ids=["top", "one above", "two above"])
def test_a_marker_follows_from_a_directory_that_was_renamed_without_its_document(firm: Firm, above: str) -> None:
    """The document was filed elsewhere before its former directory, or one above, got another name."""
    firm.validated(f"{above}A/x.pdf")
    (firm.root / "C").mkdir()
    (firm.root / f"{above}A/x.pdf").rename(firm.root / "C/y.pdf")
    top = f"{above}A".split("/", maxsplit=1)[0]
    (firm.root / top).rename(firm.root / "B")
    firm.renamed(f"{above}A/x.pdf", "C/y.pdf")
    firm.follow()
    assert firm.markers() == ["C/y.pdf.validated.json"]


def test_markers_stay_beside_their_documents_when_two_directories_are_swapped(firm: Firm) -> None:
    firm.validated("A/x.pdf", "B/x.pdf")
    (firm.root / "A").rename(firm.root / "C")
    (firm.root / "B").rename(firm.root / "A")
    (firm.root / "C").rename(firm.root / "B")
    firm.renamed("A/x.pdf", "limbo/x.pdf")
    firm.renamed("B/x.pdf", "A/x.pdf")
    firm.renamed("limbo/x.pdf", "B/x.pdf")
    firm.follow()
    assert firm.markers() == ["A/x.pdf.validated.json", "B/x.pdf.validated.json"]
    assert all(map(firm.whose, firm.markers()))


def test_a_marker_follows_a_document_filed_away_before_its_directory_was_swapped_with_another(firm: Firm) -> None:
    firm.validated("A/x.pdf", "B/x.pdf")
    (firm.root / "A/x.pdf").rename(firm.root / "y.pdf")
    (firm.root / "A").rename(firm.root / "C")
    (firm.root / "B").rename(firm.root / "A")
    (firm.root / "C").rename(firm.root / "B")
    firm.renamed("A/x.pdf", "y.pdf")
    firm.renamed("B/x.pdf", "A/x.pdf")
    firm.follow()
    assert firm.markers() == ["A/x.pdf.validated.json", "y.pdf.validated.json"]
    assert all(map(firm.whose, firm.markers()))


def test_the_marker_of_another_document_at_the_recorded_name_is_left_alone(firm: Firm) -> None:
    """`scan.pdf` is renamed, and the next `scan.pdf` has its marker before the first one follows."""
    firm.validated("scan.pdf")
    (firm.root / "scan.pdf").rename(firm.root / "facture.pdf")
    (firm.root / f"scan.pdf{SUFFIX}").unlink()
    firm.renamed("scan.pdf", "facture.pdf")
    firm.now -= MARKER_FOLLOWS  # the next one is earlier
    document = firm.root / "scan.pdf"
    document.write_text("next")
    stamp = files.stamp_of(document.lstat())

    def sent(tx: Any) -> None:
        columns = {"ged": firm.ged, "path": os.fsencode(document), "marker_due": 0.0, "stamp": stamp, "sha256": "next"}
        tx.know(os.fsencode(document), stamp, put(tx, State.SENT, b"next", **columns))

    firm.journal.write(sent)
    firm.follow()
    assert firm.markers() == [f"scan.pdf{SUFFIX}"]
    assert firm.whose(f"scan.pdf{SUFFIX}")


def test_a_copy_that_came_with_its_marker_takes_it_along_although_it_tells_of_the_first_document(firm: Firm) -> None:
    firm.validated("A/x.pdf")
    (firm.root / "B").mkdir()
    for name in ("x.pdf", f"x.pdf{SUFFIX}"):
        (firm.root / "B" / name).write_bytes((firm.root / "A" / name).read_bytes())
    copy = firm.root / "B/x.pdf"
    stamp = files.stamp_of(copy.lstat())

    def adopted(tx: Any) -> None:
        columns = {"path": os.fsencode(copy), "stamp": stamp, "sha256": "A/x.pdf", "marker_due": None}
        marker = os.fsencode(f"{copy}{SUFFIX}")
        tx.know(os.fsencode(copy), stamp, put(tx, State.VALIDATED, b"copy", ged=firm.ged, marker=marker, **columns))

    firm.journal.write(adopted)
    copy.rename(firm.root / "B/y.pdf")
    firm.renamed("B/x.pdf", "B/y.pdf")
    firm.follow()
    assert firm.markers() == [f"A/x.pdf{SUFFIX}", f"B/y.pdf{SUFFIX}"]


def test_a_document_whose_marker_was_deleted_is_looked_for_once(firm: Firm) -> None:
    firm.validated("A/x.pdf")
    (firm.root / f"A/x.pdf{SUFFIX}").unlink()
    (firm.root / "A/x.pdf").rename(firm.root / "A/y.pdf")
    firm.renamed("A/x.pdf", "A/y.pdf")
    firm.follow()
    assert firm.markers() == []
    assert firm.journal.read(lambda tx: tx.markers_due(firm.now + 1000, firm.now + 2000, 9)) == []


def test_a_document_deleted_before_its_marker_followed_is_waited_for_until_intake_tells(firm: Firm) -> None:
    firm.validated("A/x.pdf")
    (firm.root / "A/x.pdf").rename(firm.root / "A/y.pdf")
    firm.renamed("A/x.pdf", "A/y.pdf")
    (firm.root / "A/y.pdf").unlink()
    firm.follow()

    def due() -> int:
        return len(firm.journal.read(lambda tx: tx.markers_due(firm.now + 1000, firm.now + 2000, 9)))

    assert due() == 1
    firm.journal.write(lambda tx: tx.forget(os.fsencode(firm.root / "A/y.pdf")))
    firm.follow()
    assert due() == 0


def test_a_marker_that_a_person_has_moved_with_its_document_is_known_there_at_the_next_rename(firm: Firm) -> None:
    firm.validated("A/x.pdf")
    for old, new in (("x", "y"), ("y", "z")):
        (firm.root / f"A/{old}.pdf").rename(firm.root / f"A/{new}.pdf")
        if new == "y":
            (firm.root / f"A/x.pdf{SUFFIX}").rename(firm.root / f"A/y.pdf{SUFFIX}")
        firm.renamed(f"A/{old}.pdf", f"A/{new}.pdf")
        firm.follow()
        assert firm.markers() == [f"A/{new}.pdf{SUFFIX}"]


@pytest.mark.parametrize("when", ["before the marker is moved", "after it"])
def test_a_rename_that_intake_tells_of_while_the_marker_follows_another_one_is_followed_too(
    firm: Firm, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    firm.validated("A/x.pdf")
    (firm.root / "A/x.pdf").rename(firm.root / "A/y.pdf")
    firm.renamed("A/x.pdf", "A/y.pdf")
    usual = firm.marking._move

    def meanwhile(document: Any) -> bytes | None:
        monkeypatch.setattr(firm.marking, "_move", usual)
        moved = usual(document) if when == "after it" else None
        (firm.root / "A").rename(firm.root / "B")
        firm.renamed("A/y.pdf", "B/z.pdf")
        (firm.root / "B/y.pdf").rename(firm.root / "B/z.pdf")
        return moved if when == "after it" else usual(document)

    monkeypatch.setattr(firm.marking, "_move", meanwhile)
    firm.follow()
    assert firm.markers() == ["B/z.pdf.validated.json"]
