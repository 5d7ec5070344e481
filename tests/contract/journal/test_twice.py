"""The journal of the tests runs each wish twice: a wish with a side effect fails there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridged.journal import Journal, Transaction
from bridged.model import State
from tests.support.documents import put


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path)
    yield journal
    journal.close()


def test_a_wish_is_rehearsed_and_granted_once(journal: Journal) -> None:
    runs = []

    def wish(tx: Transaction) -> int:
        runs.append(len(tx.documents()))
        return put(tx, State.WAITING)

    seq = journal.write(wish)
    assert runs == [0, 0]
    assert [d.seq for d in journal.read(lambda tx: tx.documents())] == [seq]


def test_a_wish_that_uses_up_a_value_fails_at_its_repetition(journal: Journal) -> None:
    names = [b"a.pdf"]
    with pytest.raises(IndexError):
        journal.write(lambda tx: put(tx, State.WAITING, names.pop()))
    assert journal.read(lambda tx: tx.documents()) == []


def test_a_wish_that_raises_at_first_and_not_again_fails(journal: Journal) -> None:
    errors = [ValueError("only once")]

    def wish(tx: Transaction) -> int:
        if errors:
            raise errors.pop()
        return put(tx, State.WAITING)

    with pytest.raises(AssertionError, match="repeated"):
        journal.write(wish)
    assert journal.read(lambda tx: tx.documents()) == []
