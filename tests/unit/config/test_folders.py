"""The place of a directory, asked by several threads of one map."""

from __future__ import annotations

import pytest

from bridged.config import SwitchedFolders, folders, load

CONFIG = """
smtp: {host: localhost, security: plain, sender: factures@cabinet.example}
clients:
  - {name: Martin, ged: /srv/ged/martin, collection_email: martin@collecte.example, switched_folders: [Achats]}
"""
FEW = 10


class Interrupted(bytes):
    """A directory's path. Another thread has its turn when this path is hashed for the n-th time."""

    turns: list

    def __hash__(self):
        turn = self.turns.pop(0) if self.turns else None
        if turn is not None:
            turn()
        return super().__hash__()


@pytest.fixture
def switched(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_REMEMBERED", FEW)
    file = tmp_path / "bridged.yaml"
    file.write_text(CONFIG)
    return SwitchedFolders(load(file).clients)


@pytest.mark.parametrize("number", range(4))
def test_a_thread_that_fills_the_memory_of_places_leaves_another_ones_answer(switched, number):
    """Otherwise the other thread, between its question and its answer, would raise a KeyError."""
    directory = Interrupted(b"/srv/ged/martin/Achats/2026")
    directory.turns = []
    expected = switched.place(directory)
    assert expected is not None

    def fill():
        for n in range(FEW + 1):
            switched.place(b"/srv/ged/martin/Achats/%d" % n)

    directory.turns = [*[None] * number, fill]
    assert switched.place(directory) == expected
    switched.place(directory)
    assert not directory.turns
