"""A directory that the first look could not read is remembered over a stop, until it has been read."""

from __future__ import annotations

import os
import time

import pytest

from bridged.config import load
from bridged.ged import Calls, Mounts
from bridged.intake import Sweep
from bridged.intake.ged import Ged, Retired
from bridged.journal import Journal
from tests.support.stepping import done

CONFIG = """
smtp: {{host: relay.example, sender: factures@cabinet.example}}
state_dir: {top}/state
clients:
  - {{name: Martin, ged: {top}/ged, collection_email: martin@collecte.example, switched_folders: [Achats]}}
"""


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path)
    yield journal
    journal.close()


def _ged(top, journal):
    (top / "ged").mkdir(exist_ok=True)
    (top / "bridged.yaml").write_text(CONFIG.format(top=top))
    path = os.fsencode(top / "ged")
    sweep = Sweep(path, lambda _: True, lambda _: None)
    ged = Ged(path, sweep, Calls(time.monotonic), Mounts(), journal)
    ged.client = load(top / "bridged.yaml").clients[0]
    return ged


def test_a_file_in_a_directory_unreadable_at_first_is_existing_until_it_is_read(tmp_path, journal):
    closed, late = b"/ged/Achats/closed\xff", b"/ged/Achats/late"
    first = _ged(tmp_path, journal)
    first.unseen = {closed: "existing", late: "missed", b"/ged/Achats/read": "existing"}
    first.unread = {closed, late}
    done(journal, first.complete())
    second = _ged(tmp_path, journal)
    second.recall_unseen()
    assert second.unseen == {closed: "existing"}
    done(journal, second.complete())
    third = _ged(tmp_path, journal)
    third.recall_unseen()
    assert third.unseen == {}


def test_a_client_removed_at_the_end_of_a_pass_keeps_no_reading(tmp_path, journal):
    """The client may be added again. The last wish of its earlier life must not count for its new reading."""
    ged = _ged(tmp_path, journal)
    journal.write(lambda tx: tx.switch_on(ged.path, "Achats", 1.0))
    wish = next(ged.complete())
    ged.retired = True
    with pytest.raises(Retired):
        journal.write(wish)
    assert journal.read(lambda tx: tx.read_folders(ged.path)) == set()
