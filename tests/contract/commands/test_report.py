"""The commands with real folders and a real journal: their output, and the work of `release`, `send` and `demo`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

import bridged
from bridged.commands import cli, demo, explain, survey
from bridged.config import SwitchedFolders, load
from bridged.daemon.control import ControlServer
from bridged.ged import files
from bridged.intake import new_document
from bridged.journal import Journal
from bridged.marker import Marker
from bridged.model import State
from tests.support.documents import change

AS_ROOT = os.geteuid() == 0
SINCE = 1_790_000_000.0
SINCE_TEXT = "2026-09-21T14:13:20.000Z"
DEPOSITED = SINCE + 3600
DEPOSITED_TEXT = "2026-09-21T15:13:20.000Z"
LATER = SINCE + 7200
LATER_TEXT = "2026-09-21T16:13:20.000Z"

CONFIG = """
smtp: {host: smtp.cabinet.example, sender: factures@cabinet.example}
state_dir: HERE/state
ignore: ["*.old", Archives]
clients:
  - name: Boulangerie Martin
    ged: HERE/martin
    collection_email: martin@collecte.example
    switched_folders:
      - path: Achats
        exclude: [Brouillons]
      - {path: Notes de frais, collection_email: martin-ndf@collecte.example}
"""

# The way to each state, one transition at a time.
WAYS = {
    State.WAITING: [State.WAITING],
    State.QUEUED: [State.QUEUED],
    State.SENDING: [State.QUEUED, State.SENDING],
    State.SENT: [State.QUEUED, State.SENDING, State.SENT],
    State.VALIDATED: [State.QUEUED, State.SENDING, State.SENT, State.VALIDATED],
    State.HELD: [State.QUEUED, State.SENDING, State.HELD],
    State.WITHDRAWN: [State.QUEUED, State.WITHDRAWN],
    State.MISSED: [State.MISSED],
}
COLUMNS = {
    State.QUEUED: {"queued_at": DEPOSITED + 2},
    State.SENT: {"sent_at": LATER, "relay_reply": "250 2.0.0 Ok", "attempts": 1, "sha256": "ab" * 32},
    State.VALIDATED: {"validated_at": LATER},
    State.HELD: {"reason": "550 5.1.1 No such user.", "attempts": 1},
    State.WITHDRAWN: {"reason": "switched_off"},
}


@dataclass
class Firm:
    """One client's GED, its configuration, and its journal."""

    here: Path
    config: Path
    journal: Journal

    @property
    def ged(self):
        return self.here / "martin"

    @property
    def settings(self):
        return load(self.config)

    def put(self, relative, content=b"a document"):
        path = self.ged / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def existing(self, relative):
        path = self.put(relative)
        self.journal.write(lambda tx: tx.know(os.fsencode(path), files.stamp_of(path.lstat()), None))
        return path

    def document(self, relative, state):
        path = self.put(relative)
        name, stamp = os.fsencode(path), files.stamp_of(path.lstat())
        place = SwitchedFolders(self.settings.clients).place(os.fsencode(path.parent))

        def record(tx):
            seq = tx.deposit(new_document(self.settings, place, name, stamp, DEPOSITED))
            for new in WAYS[state]:
                change(tx, seq, state=new.value, **COLUMNS.get(new, {}))
                if new in {State.SENT, State.HELD}:
                    tx.attempt(seq, LATER, "accepted" if new is State.SENT else "refused", "as it said")
            tx.know(name, stamp, seq)
            return tx.document(seq)

        return self.journal.write(record)

    def state(self, document):
        return self.journal.read(lambda tx: tx.document(document.seq))

    def run(self, command, *arguments):
        words = [command, "--config", str(self.config), *map(str, arguments)]
        return CliRunner().invoke(cli.main, words, prog_name="bridged")

    def told(self, command, *arguments):
        result = self.run(command, *arguments)
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    def rows(self, command, *arguments):
        return [json.loads(line) for line in self.told(command, "--json", *arguments).splitlines()]

    def explained(self, path):
        (sentence,) = self.told("explain", path).splitlines()
        assert sentence.endswith(".")
        return sentence


@pytest.fixture
def firm(tmp_path):
    config = tmp_path / "bridged.yaml"
    config.write_text(CONFIG.replace("HERE", str(tmp_path)), encoding="utf-8")
    (tmp_path / "state").mkdir(mode=0o700)
    for folder in ("Achats/11", "Achats/Brouillons", "Notes de frais", "Contrats"):
        (tmp_path / "martin" / folder).mkdir(parents=True)
    journal = Journal(tmp_path / "state")
    ged = os.fsencode(tmp_path / "martin")
    journal.write(lambda tx: [tx.switch_on(ged, folder, SINCE) for folder in ("Achats", "Notes de frais")])
    yield Firm(tmp_path, config, journal)
    journal.close()


@pytest.fixture
def daemon(firm):
    """A control socket that answers as the daemon does, and the commands that it was asked."""
    asked = []
    folder = {"ged": str(firm.ged), "folder": "Achats", "watch_mode": "inotify", "reachable": True}
    relay = {"state": "unreachable", "detail": "connection refused\x1b[2J"}

    def answer(request):
        asked.append(request["command"])
        return {"ok": True, "pid": 4711, "since": SINCE, "relay": relay, "folders": [folder]}

    server = ControlServer(firm.here / "state", answer)
    server.start()
    yield asked
    server.close()


# -- status


def test_status_counts_by_switched_folder(firm):
    for number, state in enumerate(State):
        firm.document(f"Achats/11/{number}.pdf", state)
    firm.existing("Notes de frais/old.pdf")
    head, achats, notes = firm.rows("status")
    assert head["daemon"] == "stopped"
    assert (head["pid"], head["relay"]) == (None, None)
    assert achats == {
        "client": "Boulangerie Martin",
        "folder": "Achats",
        "collection_email": "martin@collecte.example",
        "since": SINCE_TEXT,
        "watch_mode": None,
        "reachable": None,
        "existing": 0,
        "waiting": 1,
        "queued": 3,
        "validated": 1,
        "held": 1,
        "withdrawn": 1,
        "missed": 1,
    }
    assert (notes["collection_email"], notes["existing"], notes["queued"]) == ("martin-ndf@collecte.example", 1, 0)


def test_status_of_a_running_daemon_shows_its_relay_and_its_watches(firm, daemon):
    head, achats, notes = firm.rows("status")
    assert (head["daemon"], head["pid"], head["relay"]) == ("running", 4711, "unreachable")
    assert (achats["watch_mode"], achats["reachable"]) == ("inotify", True)
    assert (notes["watch_mode"], notes["reachable"]) == (None, None)
    told = firm.told("status")
    assert "running" in told
    assert "unreachable (connection refused\ufffd[2J)" in told
    assert "\x1b" not in told


def test_a_state_directory_without_a_journal_shows_zeros_and_stays_as_it_is(firm):
    firm.config.write_text(firm.config.read_text(encoding="utf-8").replace("/state", "/other"), encoding="utf-8")
    head, *rows = firm.rows("status")
    assert head["daemon"] == "stopped"
    assert [row["existing"] for row in rows] == [0, 0]
    assert [row["since"] for row in rows] == [None, None]
    assert firm.told("documents", "--json") == firm.told("documents") == ""
    assert "first has counts as existing" in firm.explained(firm.put("Achats/x.pdf"))
    assert firm.run("release", "--all").exit_code == 1
    assert firm.run("send", firm.ged / "Achats/x.pdf").exit_code == 1
    assert not (firm.here / "other").exists()


# -- documents


def test_documents_are_listed_with_every_field_of_the_contract(firm):
    document = firm.document("Achats/11/été.pdf", State.VALIDATED)
    assert firm.rows("documents") == [
        {
            "id": document.id,
            "client": "Boulangerie Martin",
            "document": "Achats/11/été.pdf",
            "state": "validated",
            "reason": "",
            "sha256": "ab" * 32,
            "size": 10,
            "collection_email": "martin@collecte.example",
            "message_id": document.message_id,
            "attempts": 1,
            "deposited_at": DEPOSITED_TEXT,
            "validated_at": LATER_TEXT,
            "relay_reply": "250 2.0.0 Ok",
        }
    ]
    assert "Achats/11/été.pdf" in firm.told("documents")


def test_documents_are_chosen_by_client_and_state(firm):
    firm.document("Achats/a.pdf", State.HELD)
    firm.document("Achats/b.pdf", State.QUEUED)
    assert [row["document"] for row in firm.rows("documents", "--state", "held")] == ["Achats/a.pdf"]
    assert len(firm.rows("documents", "--client", "Boulangerie Martin")) == 2
    assert firm.told("documents", "--client", "Somebody else", "--json") == ""


@pytest.mark.parametrize("name", [b"x\x1b[2J\r\n\x9b.pdf", "a\u202egpj.pdf".encode(), b"not \xff utf-8 [bold].pdf"])
@pytest.mark.parametrize("how", [(), ("--json",)])
def test_no_file_name_can_steer_the_terminal(firm, name, how):
    firm.document(os.fsdecode(b"Achats/" + name), State.HELD)
    told = firm.told("documents", *how)
    assert "\ufffd" in told
    assert all(c.isprintable() or c in " \n" for c in told)
    assert all(c.isprintable() or c in " \n" for c in firm.explained(firm.ged / os.fsdecode(b"Achats/" + name)))


# -- explain


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (State.WAITING, [DEPOSITED_TEXT, "waits to be quiet"]),
        (State.QUEUED, [DEPOSITED_TEXT, "waits to be sent to martin@collecte.example"]),
        (State.SENDING, [DEPOSITED_TEXT, "is being sent"]),
        (State.SENT, [LATER_TEXT, "250 2.0.0 Ok", "marker is still to be written"]),
        (State.VALIDATED, [LATER_TEXT, "martin@collecte.example", "250 2.0.0 Ok"]),
        (State.HELD, [LATER_TEXT, "550 5.1.1 No such user", "bridged release"]),
        (State.WITHDRAWN, [DEPOSITED_TEXT, "switched off"]),
        (State.MISSED, [DEPOSITED_TEXT, "daemon was stopped", "bridged send"]),
    ],
)
def test_every_state_of_a_document_is_explained_with_its_dates(firm, state, words):
    document = firm.document("Achats/11/facture.pdf", state)
    sentence = firm.explained(os.fsdecode(document.path))
    assert [word for word in words if word not in sentence] == []


def test_a_validated_document_that_was_overwritten_is_said_to_be(firm):
    document = firm.document("Achats/facture.pdf", State.VALIDATED)
    firm.put("Achats/facture.pdf", b"other bytes, later")
    assert "overwritten since" in firm.explained(os.fsdecode(document.path))


def test_a_document_is_explained_after_its_file_has_gone(firm):
    document = firm.document("Achats/facture.pdf", State.VALIDATED)
    os.unlink(document.path)
    firm.journal.write(lambda tx: tx.forget(document.path))
    assert LATER_TEXT in firm.explained(os.fsdecode(document.path))


def test_an_existing_file_is_explained_by_the_date_of_its_folder(firm):
    sentence = firm.explained(firm.existing("Achats/old.pdf"))
    assert "existing" in sentence
    assert SINCE_TEXT in sentence


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Achats/.x.pdf", "hidden"),
        ("Achats/x.part", "temporary"),
        ("Achats/Thumbs.db", "system"),
        ("Achats/x.old", "`ignore`"),
        ("Achats/@eaDir/x.pdf", "@eaDir"),
        ("Achats/Archives/x.pdf", "ignored by configuration"),
        ("Achats/Brouillons/x.pdf", "`exclude`"),
        ("Contrats/x.pdf", "none of its switched folders"),
        ("../elsewhere.pdf", "no client's GED"),
        ("Achats/x.pdf.validated.json", "name is that of a marker"),
    ],
)
def test_a_file_that_is_no_document_is_explained(firm, name, words):
    assert words in firm.explained(firm.put(name))


def test_a_marker_is_explained_by_its_content(firm):
    marker = {
        "status": "validated",
        "document": "x.pdf",
        "client": "Boulangerie Martin",
        "collection_email": "martin@collecte.example",
        "sha256": "00",
        "size": 1,
        "message_id": "<x@cabinet.example>",
        "deposited_at": DEPOSITED_TEXT,
        "validated_at": LATER_TEXT,
        "relay_reply": "250 Ok",
        "attempts": 1,
        "bridged": "0.1.0",
    }
    sentence = firm.explained(firm.put("Achats/x.pdf.validated.json", json.dumps(marker).encode()))
    assert f"marker of “x.pdf”, validated on {LATER_TEXT}" in sentence


def test_a_link_is_explained_as_a_link_and_not_as_its_target(firm):
    document = firm.document("Achats/facture.pdf", State.VALIDATED)
    (firm.ged / "Achats/link.pdf").symlink_to(os.fsdecode(document.path))
    assert "symbolic link" in firm.explained(firm.ged / "Achats/link.pdf")


def test_a_fifo_is_explained_without_being_opened(firm):
    os.mkfifo(firm.ged / "Achats/pipe.pdf")
    assert "FIFO" in firm.explained(firm.ged / "Achats/pipe.pdf")


def test_an_absent_file_and_a_directory_are_explained(firm):
    assert "does not exist" in firm.explained(firm.ged / "Achats/absent.pdf")
    assert "does not exist" in firm.explained(firm.here / "absent.pdf")
    assert "is a directory in the switched folder “Achats”" in firm.explained(f"{firm.ged}/Achats/11/")
    assert "the bridge is off" in firm.explained(firm.ged / "Contrats")


def test_a_deposit_that_was_not_seen_yet_is_explained_by_whether_the_daemon_runs(firm, request):
    path = firm.put("Achats/new.pdf")
    assert "missed" in firm.explained(path)
    request.getfixturevalue("daemon")
    assert "not seen yet" in firm.explained(path)


def test_a_ged_that_is_away_is_not_taken_for_an_absent_file(firm):
    firm.ged.rename(firm.here / "away")
    assert "is away" in firm.explained(firm.ged / "Achats/new.pdf")


def test_a_relative_path_and_one_through_a_link_are_understood(firm, monkeypatch):
    document = firm.document("Achats/11/facture.pdf", State.VALIDATED)
    whole = firm.explained(os.fsdecode(document.path))
    (firm.here / "shortcut").symlink_to(firm.ged / "Achats")
    monkeypatch.chdir(firm.here / "shortcut" / "11")
    assert firm.explained("facture.pdf") == whole
    assert firm.explained("../11/./facture.pdf") == whole
    assert firm.explained(firm.here / "shortcut" / "11" / "facture.pdf") == whole


def test_a_ged_that_is_configured_through_a_link_keeps_its_name(firm):
    (firm.here / "alias").symlink_to(firm.here)
    text = firm.config.read_text(encoding="utf-8").replace("/martin\n", "/alias/martin\n")
    firm.config.write_text(text, encoding="utf-8")
    path = os.fsencode(firm.ged / "Achats/x.pdf")
    assert explain.locate(firm.settings, path) == os.fsencode(firm.here / "alias/martin/Achats/x.pdf")


# -- release and send


def test_release_queues_a_held_document_afresh_and_wakes_the_daemon(firm, daemon):
    held, other = firm.document("Achats/a.pdf", State.HELD), firm.document("Achats/b.pdf", State.HELD)
    assert "Achats/a.pdf" in firm.told("release", held.id)
    now = firm.state(held)
    assert (now.state, now.reason, now.due_at, now.uncertain) == (State.QUEUED, "", 0.0, 0)
    assert now.queued_at > held.queued_at
    assert firm.state(other).state is State.HELD
    assert daemon == ["wake"]


def test_release_all_takes_the_held_ones_only_and_needs_no_daemon(firm):
    held = [firm.document(f"Achats/{n}.pdf", State.HELD) for n in range(3)]
    missed = firm.document("Achats/m.pdf", State.MISSED)
    assert "The daemon is stopped" in firm.told("release", "--all")
    assert {firm.state(one).state for one in held} == {State.QUEUED}
    assert firm.state(missed).state is State.MISSED
    assert firm.told("release", "--all") == "No document is held."


def test_release_refuses_a_document_that_is_not_held_and_releases_the_rest(firm):
    held, sent = firm.document("Achats/a.pdf", State.HELD), firm.document("Achats/b.pdf", State.VALIDATED)
    result = firm.run("release", "0000", sent.id, held.id)
    assert result.exit_code == 1
    assert "no document 0000" in result.stderr
    assert f"{sent.id} is validated, not held" in result.stderr
    assert firm.state(held).state is State.QUEUED
    assert firm.state(sent).state is State.VALIDATED


def uncertain(firm, relative, reason="uncertain too often: The line was lost after the final dot; it may have arrived"):
    document = firm.document(relative, State.HELD)
    firm.journal.write(lambda tx: change(tx, document.seq, reason=reason, uncertain=3))
    return document


@pytest.mark.parametrize("choice", [("--client", "Boulangerie Martin"), ("--folder", "Achats")])
def test_a_document_that_may_have_arrived_is_left_by_a_release_without_its_id(firm, choice):
    """A second mail is a decision about one document, never a side effect."""
    choice = (choice[0], firm.ged / "Achats" if choice[1] == "Achats" else choice[1])
    held, lost = firm.document("Achats/a.pdf", State.HELD), uncertain(firm, "Achats/b.pdf")
    told = firm.told("release", *choice)
    assert (firm.state(held).state, firm.state(lost).state) == (State.QUEUED, State.HELD)
    assert "Left: Achats/b.pdf of Boulangerie Martin may have arrived already." in told
    assert f"bridged release {lost.id}" in told
    again = firm.told("release", *choice)
    assert "No such document" not in again
    assert firm.state(lost).state is State.HELD
    assert "Released: Achats/b.pdf" in firm.told("release", lost.id)
    assert firm.state(lost).state is State.QUEUED


def test_a_document_may_have_arrived_by_its_reason_or_by_its_count(firm):
    uncertain(firm, "Achats/a.pdf", reason="550 5.1.1 No such user.")
    other = firm.document("Achats/b.pdf", State.HELD)
    reason = "uncertain: the connection was lost after the final dot too often; it may have arrived"
    firm.journal.write(lambda tx: change(tx, other.seq, reason=reason))
    assert "a second time: 2." in firm.told("release", "--client", "Boulangerie Martin")


def test_release_all_takes_documents_that_may_have_arrived_and_warns(firm):
    held, lost = firm.document("Achats/a.pdf", State.HELD), uncertain(firm, "Achats/b.pdf")
    told = firm.told("release", "--all")
    assert {firm.state(one).state for one in (held, lost)} == {State.QUEUED}
    assert "Warning: Achats/b.pdf may have arrived already, and then leaves a second time." in told
    assert "Warning: Achats/a.pdf" not in told


def test_a_drop_takes_documents_that_may_have_arrived(firm):
    lost = uncertain(firm, "Achats/b.pdf")
    assert "Dropped: Achats/b.pdf" in firm.told("drop", "--client", "Boulangerie Martin")
    assert firm.state(lost).state is State.WITHDRAWN


@pytest.mark.parametrize("choice", [("--client", "Boulangerie Martin"), ("--folder", "Achats"), ("--all",)])
def test_a_part_of_the_reason_narrows_a_release(firm, choice):
    if choice[0] == "--folder":
        choice = ("--folder", firm.ged / "Achats")
    braked, refused = firm.document("Achats/a.pdf", State.HELD), firm.document("Achats/b.pdf", State.HELD)
    reason = "more than 3 documents were deposited within 10 min (brake): if they are meant to leave, release them"
    firm.journal.write(lambda tx: change(tx, braked.seq, reason=reason))
    assert "Released: Achats/a.pdf" in firm.told("release", *choice, "--reason", "BRAKE")
    assert (firm.state(braked).state, firm.state(refused).state) == (State.QUEUED, State.HELD)
    assert firm.told("release", *choice, "--reason", "brake") == "No such document is held."
    assert "Dropped: Achats/b.pdf" in firm.told("drop", "--client", "Boulangerie Martin", "--reason", "5.1.1")
    assert firm.run("release", refused.id, "--reason", "brake").exit_code == 2
    assert firm.run("release", "--reason", "brake").exit_code == 2


@pytest.mark.parametrize("command", ["release", "drop"])
def test_an_unknown_client_is_an_error_and_no_empty_success(firm, command):
    held = firm.document("Achats/a.pdf", State.HELD)
    result = firm.run(command, "--client", "boulangerie martn")
    assert result.exit_code == 1
    assert "There is no client 'boulangerie martn'" in result.stderr
    assert "Did you mean 'Boulangerie Martin'?" in result.stderr
    assert firm.run(command, "--client", "NOBODY").exit_code == 1
    assert firm.state(held).state is State.HELD
    text = firm.config.read_text(encoding="utf-8").replace("Boulangerie Martin", "Dupont")
    firm.config.write_text(text, encoding="utf-8")
    assert "Did you mean 'Boulangerie Martin'?" in firm.run(command, "--client", "Boulangerie Matin").stderr
    assert firm.told(command, "--client", "Dupont") == "No such document is held."
    assert "Achats/a.pdf" in firm.told(command, "--client", "Boulangerie Martin"), "the journal still knows it"


# -- a dry run


@pytest.fixture
def dry(firm):
    """The same firm's dry run: its journal is another one, below the real one."""
    state = firm.here / "state" / "dry-run"
    state.mkdir(mode=0o700)
    journal = Journal(state)
    yield Firm(firm.here, firm.config, journal)
    journal.close()


def test_held_documents_of_a_dry_run_are_released_dropped_and_sent_like_others(firm, dry):
    real, held, other = (
        one.document(f"Achats/{name}.pdf", State.HELD) for one, name in ((firm, "a"), (dry, "b"), (dry, "c"))
    )
    missed = dry.document("Achats/d.pdf", State.MISSED)
    assert "Released: Achats/b.pdf" in dry.told("release", "--dry-run", held.id)
    assert "Dropped: Achats/c.pdf" in dry.told("drop", "--dry-run", other.id)
    assert "Queued: Achats/d.pdf" in dry.told("send", "--dry-run", os.fsdecode(missed.path))
    states = [dry.state(one).state for one in (held, other, missed)]
    assert states == [State.QUEUED, State.WITHDRAWN, State.QUEUED]
    assert firm.state(real).state is State.HELD
    assert firm.run("release", held.id).exit_code == 1


def test_a_dry_run_that_does_not_run_cannot_be_reloaded_and_one_that_runs_can(firm, dry):
    assert dry.run("reload", "--dry-run").exit_code == 1
    asked = []
    server = ControlServer(firm.here / "state" / "dry-run", lambda request: asked.append(request) or {"ok": True})
    server.start()
    try:
        assert dry.told("reload", "--dry-run") == "The configuration is in force."
        assert firm.run("reload").exit_code == 1, "the other one is not meant"
    finally:
        server.close()
    assert asked == [{"command": "reload"}]


@pytest.mark.parametrize("state", [State.SENT, State.VALIDATED])
def test_a_document_that_a_dry_run_wrote_is_not_said_to_be_sent(dry, state):
    document = dry.document("Achats/facture.pdf", state)
    sentence = dry.told("explain", "--dry-run", os.fsdecode(document.path))
    assert sentence == (
        "“Achats/facture.pdf” was not sent: a dry run wrote its mail for martin@collecte.example to"
        f" {dry.here}/state/dry-run/Maildir on {LATER_TEXT}."
    )
    dry.put("Achats/facture.pdf", b"other bytes, later")
    assert "overwritten since" in dry.told("explain", "--dry-run", os.fsdecode(document.path))


def test_a_command_that_a_dry_run_names_finds_its_journal(dry):
    held, missed = dry.document("Achats/a.pdf", State.HELD), dry.document("Achats/b.pdf", State.MISSED)
    assert f"`bridged release --dry-run {held.id}`" in dry.told("explain", "--dry-run", os.fsdecode(held.path))
    assert "`bridged send --dry-run`" in dry.told("explain", "--dry-run", os.fsdecode(missed.path))


def test_send_queues_existing_and_missed_documents(firm, daemon):
    old = firm.existing("Notes de frais/old.pdf")
    missed = firm.document("Achats/missed.pdf", State.MISSED)
    told = firm.told("send", old, os.fsdecode(missed.path))
    assert "Notes de frais/old.pdf for martin-ndf@collecte.example" in told
    rows = firm.rows("documents", "--state", "queued")
    assert [row["document"] for row in rows] == ["Achats/missed.pdf", "Notes de frais/old.pdf"]
    assert {row["reason"] for row in rows} == {"sent on purpose"}
    assert firm.journal.read(lambda tx: tx.known(os.fsencode(old))).document is not None
    assert daemon == ["wake"]


def test_send_takes_the_bytes_that_a_missed_document_has_now(firm):
    missed = firm.document("Achats/missed.pdf", State.MISSED)
    path = firm.put("Achats/missed.pdf", b"longer than it was at the start")
    firm.told("send", path)
    assert firm.state(missed).stamp == files.stamp_of(path.lstat())


@pytest.mark.parametrize("state", sorted(set(State) - {State.MISSED}))
def test_send_refuses_a_document_on_its_way_or_at_its_end(firm, state):
    document = firm.document("Achats/a.pdf", state)
    result = firm.run("send", os.fsdecode(document.path))
    assert result.exit_code == 1
    assert "Not sent: “Achats/a.pdf”" in result.stderr
    assert firm.state(document) == document


@pytest.mark.parametrize(
    "relative", ["Contrats/x.pdf", "Achats/Brouillons/x.pdf", "Achats/.x", "Achats/x.pdf.validated.json"]
)
def test_send_refuses_a_file_that_is_no_document(firm, relative):
    result = firm.run("send", firm.existing(relative))
    assert result.exit_code == 1
    assert firm.rows("documents") == []


def test_send_refuses_unknown_absent_and_empty_files_links_and_copied_markers(firm):
    unknown, empty, copy, gone, link = (
        firm.existing(f"Achats/{name}.pdf") for name in ("unknown", "empty", "copy", "gone", "link")
    )
    firm.journal.write(lambda tx: tx.forget(os.fsencode(unknown)))
    empty.write_bytes(b"")
    text = '{"status": "validated", "document": "x", "client": "x", "collection_email": "x", "sha256": "0", "size": 1}'
    copy.write_text(text, encoding="utf-8")
    gone.unlink()
    link.unlink()
    link.symlink_to(unknown)
    result = firm.run("send", unknown, empty, copy, gone, link, firm.here / "outside.pdf")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 6
    assert firm.rows("documents") == []


@pytest.mark.parametrize("of", ["these bytes", "other bytes"])
@pytest.mark.parametrize("was", ["existing", "missed"])
def test_send_refuses_a_file_whose_valid_marker_stands_beside_it(firm, was, of):
    """The journal has lost that it was sent, as after a restoration. A marker of other bytes is none."""
    if was == "existing":
        path = firm.existing("Achats/a.pdf")
    else:
        path = Path(os.fsdecode(firm.document("Achats/a.pdf", State.MISSED).path))
    content = path.read_bytes() if of == "these bytes" else path.read_bytes()[::-1] + b"!"
    marker = Marker(
        "validated", "a.pdf", "Boulangerie Martin", "martin@collecte.example", hashlib.sha256(content).hexdigest(),
        len(content), "<1@x>", SINCE_TEXT, LATER_TEXT, "250 Ok", 1, "0.1.0",
    )  # fmt: skip
    path.with_name("a.pdf.validated.json").write_bytes(marker.to_json())
    result = firm.run("send", path)
    queued = [row["state"] for row in firm.rows("documents")] == ["queued"]
    if of == "these bytes":
        assert (result.exit_code, queued) == (1, False)
        assert "“Achats/a.pdf” has a valid marker beside it: it was sent to martin@collecte.example" in result.stderr
    else:
        assert (result.exit_code, queued) == (0, True)


def test_send_goes_on_after_a_refusal(firm):
    assert firm.run("send", firm.ged / "Achats/absent.pdf", firm.existing("Achats/old.pdf")).exit_code == 1
    assert [row["document"] for row in firm.rows("documents")] == ["Achats/old.pdf"]


# -- check


def test_check_shows_the_map_with_files_and_rights_and_writes_nothing(firm):
    for name in ("Achats/a.pdf", "Achats/11/b.pdf", "Achats/11/.hidden", "Achats/Brouillons/c.pdf"):
        firm.put(name)
    before = sorted(path.name for path in firm.here.rglob("*"))
    achats, notes, summary = firm.rows("check")
    assert sorted(path.name for path in firm.here.rglob("*")) == before
    assert (achats["client"], achats["folder"]) == ("Boulangerie Martin", "Achats")
    assert achats["collection_email"] == "martin@collecte.example"
    assert (achats["files"], achats["directories"], achats["markers"], achats["reachable"]) == (2, 2, True, True)
    assert (notes["files"], notes["collection_email"]) == (0, "martin-ndf@collecte.example")
    with files.root(os.fsencode(firm.ged)) as root_fd:
        assert achats["file_system"] == files.mount_of(root_fd).fstype
    # The GED itself, on the way to its folders, and the three directories that are switched on.
    assert summary["watches_needed"] in {0, 4}
    assert summary["warnings"] == []
    assert "The configuration is valid" in firm.told("check")


def test_check_shows_the_relay_as_preset_and_keys_make_it(firm):
    preset = "{provider: microsoft365, rate: 5/min, daily_quota: none,"
    text = firm.config.read_text(encoding="utf-8").replace("{host: smtp.cabinet.example,", preset)
    firm.config.write_text(text, encoding="utf-8")
    assert firm.rows("check")[-1]["smtp"] == {
        "relay": "smtp.office365.com:587",
        "security": "starttls",
        "connections": 3,
        "rate": "5 in 60 s",
        "daily_quota": "none",
        "size_limit": 35_000_000,
    }
    assert "smtp.office365.com:587" in firm.told("check")


def test_check_counts_a_folder_within_another_switched_folder_once(firm):
    text = firm.config.read_text(encoding="utf-8").replace(
        "      - {path: Notes", "      - Achats/11\n      - {path: Notes"
    )
    firm.config.write_text(text, encoding="utf-8")
    firm.put("Achats/11/a.pdf")
    assert [row["files"] for row in firm.rows("check")[:2]] == [0, 1]


def test_check_says_how_many_watches_are_available_or_that_it_is_hidden(firm, monkeypatch, tmp_path):
    limit = tmp_path / "limit"
    monkeypatch.setattr(survey, "WATCH_LIMIT", limit)
    assert firm.rows("check")[-1]["watches_available"] is None
    assert "an unknown number" in firm.told("check")
    limit.write_text("1\n", encoding="ascii")
    text = firm.config.read_text(encoding="utf-8")
    firm.config.write_text(text.replace("ignore:", "watch: {mode: inotify}\nignore:"), encoding="utf-8")
    summary = firm.rows("check")[-1]
    assert (summary["watches_needed"], summary["watches_available"]) == (4, 1)
    assert "fs.inotify.max_user_watches" in summary["warnings"][0]


def test_check_needs_no_watches_where_it_polls(firm):
    text = firm.config.read_text(encoding="utf-8")
    firm.config.write_text(text.replace("ignore:", "watch: {mode: polling}\nignore:"), encoding="utf-8")
    achats, _, summary = firm.rows("check")
    assert (achats["watch_mode"], summary["watches_needed"]) == ("polling", 0)


def test_a_missing_folder_and_a_missing_ged_are_warnings(firm):
    (firm.ged / "Notes de frais").rmdir()
    assert "Notes de frais" in firm.rows("check")[-1]["warnings"][0]
    firm.ged.rename(firm.here / "away")
    *rows, summary = firm.rows("check")
    assert [row["reachable"] for row in rows] == [False, False]
    assert "cannot be opened" in summary["warnings"][0]


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_check_says_where_markers_cannot_be_written(firm):
    (firm.ged / "Achats/11").chmod(0o500)
    achats, _, summary = firm.rows("check")
    assert achats["markers"] is False
    assert "Achats/11" in summary["warnings"][0]


def with_alerts(firm, more=""):
    text = firm.config.read_text(encoding="utf-8")
    firm.config.write_text(f"{text}alerts: {{to: [chef@cabinet.example]{more}}}\n", encoding="utf-8")


def plain(port):
    return f"{{host: 127.0.0.1, port: {port}, security: plain, sender: factures@cabinet.example}}"


def test_check_warns_where_a_halted_account_could_not_tell_of_itself(firm):
    with_alerts(firm)
    (warning,) = firm.rows("check")[-1]["warnings"]
    assert "Set alerts.smtp" in warning
    assert firm.run("check").exit_code == 0
    firm.config.write_text(firm.config.read_text(encoding="utf-8").replace("alerts:", "# alerts:"), encoding="utf-8")
    assert firm.rows("check")[-1]["warnings"] == []
    with_alerts(firm, f", smtp: {plain(25)}")
    assert firm.rows("check")[-1]["warnings"] == []


def test_check_smtp_tries_the_relay_of_the_alerts_too_and_sends_nothing(firm, relay):
    text = firm.config.read_text(encoding="utf-8")
    smtp = "smtp: {host: smtp.cabinet.example, sender: factures@cabinet.example}"
    firm.config.write_text(text.replace(smtp, f"smtp: {plain(relay.port)}"), encoding="utf-8")
    with_alerts(firm, f", smtp: {plain(relay.port)}")
    told = firm.told("check", "--smtp")
    assert f"The relay of the alerts (alerts.smtp): Connected to 127.0.0.1:{relay.port}." in told.splitlines()
    assert [list(row) for row in firm.rows("check", "--smtp")[-2:]] == [["relay"], ["alerts_relay"]]
    assert relay.sessions == 4
    assert relay.mails == []


def test_check_smtp_tells_of_either_relay_that_cannot_be_used(firm, relay):
    with_alerts(firm, f", smtp: {plain(relay.port)}")
    text = firm.config.read_text(encoding="utf-8")
    smtp = "smtp: {host: smtp.cabinet.example, sender: factures@cabinet.example}"
    firm.config.write_text(text.replace(smtp, f"smtp: {plain(1)}"), encoding="utf-8")
    result = firm.run("check", "--smtp")
    assert result.exit_code == 1
    assert "127.0.0.1:1 could not be opened" in result.stderr
    assert f"(alerts.smtp): Connected to 127.0.0.1:{relay.port}." in result.stdout
    swapped = text.replace(smtp, f"smtp: {plain(relay.port)}").replace(
        f"smtp: {plain(relay.port)}}}", f"smtp: {plain(1)}}}"
    )
    firm.config.write_text(swapped, encoding="utf-8")
    result = firm.run("check", "--smtp")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "The relay of the alerts (alerts.smtp): The line to 127.0.0.1:1 could not be opened"
    )


# -- demo


def test_the_demonstration_shows_three_deposits_three_mails_and_three_markers(tmp_path):
    words = [sys.executable, "-m", "bridged", "demo"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("deposit ") for line in lines) == 3
    assert sum("Message-ID:" in line for line in lines) == 3
    assert sum('"status": "validated"' in line for line in lines) == 3
    assert list(tmp_path.iterdir()) == []


def test_the_demonstration_starts_the_daemon_of_its_own_package():
    """Its directory comes first in PYTHONPATH; otherwise another bridged that is installed would be shown."""
    first = demo._environment()["PYTHONPATH"].split(os.pathsep)[0]
    assert (Path(first) / "bridged" / "__init__.py").samefile(bridged.__file__)


def test_a_demonstration_that_fails_ends_in_a_sentence_and_leaves_nothing(tmp_path):
    failing = "import bridged.commands.demo as d; d.WITHIN = 0.01; from bridged.commands import main; main(['demo'])"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    words = [sys.executable, "-c", failing]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 1
    assert "ready" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
