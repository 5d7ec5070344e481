"""Documents that wait for a person instead of leaving, and the decisions of that person."""

from __future__ import annotations

import mailbox
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridged.dispatch import brakes
from bridged.journal import Journal, Transaction
from bridged.model import State
from tests.support.bridge import Bridge, attachment, daemon, until
from tests.support.documents import put
from tests.support.relay import Say, ScriptedRelay

PDF = b"%PDF-1.4\n%%EOF\n"


@pytest.fixture
def bridge(tmp_path: Path, relay: ScriptedRelay) -> Iterator[Bridge]:
    bridge = Bridge(tmp_path, relay)
    yield bridge
    if bridge.process is not None and bridge.process.poll() is None:
        bridge.stop()


def with_rule(bridge: Bridge, rule: str) -> Bridge:
    """The bridge whose one client has a rule more."""
    text = bridge.text

    def more() -> str:
        return text().replace("{name: Martin,", f"{{name: Martin, {rule},")

    bridge.text = more
    return bridge


def quiet_for(bridge: Bridge, seconds: float) -> int:
    """How many log lines there are after so many seconds of nothing to do."""
    deadline = time.monotonic() + seconds
    until(lambda: time.monotonic() > deadline, "the time has passed", seconds + 1)
    return len(bridge.lines())


def held(bridge: Bridge, count: int) -> list[str]:
    return sorted(line["document"] for line in bridge.wait_for("document_held", count))


def test_a_mass_drop_stops_at_its_brake_and_the_rest_leaves_when_a_person_says_so(bridge):
    with_rule(bridge, "brake: {documents: 3, within: 10m}").start()
    for number in range(8):
        (bridge.inbox / f"{number}.txt").write_bytes(b"document %d" % number)
    assert len(held(bridge, 5)) == 5
    until(lambda: bridge.count("document_validated") == 3, "three have left")
    assert "brake" in bridge.lines("document_held")[0]["reason"]
    bridge.stop()
    bridge.start()  # a held document stays held
    assert bridge.run("release", "--client", "Nobody").returncode == 1
    assert bridge.run("release", "--client", "Martin").returncode == 0
    until(lambda: bridge.count("document_validated") == 8, "all have left")
    assert set(bridge.sent().values()) == {1}


def test_a_review_holds_everything_and_a_folder_is_released_or_dropped_as_a_whole(bridge):
    with_rule(bridge, "review: true").start()
    inner = bridge.inbox / "2026"
    inner.mkdir()
    for name in ("a.txt", "2026/b.txt", "2026/c.txt"):
        (bridge.inbox / name).write_bytes(name.encode())
    (bridge.ged / "Notes" / "d.txt").write_bytes(b"d")
    held(bridge, 4)
    assert not bridge.sent()
    assert bridge.run("release", "--folder", inner).returncode == 0
    until(lambda: set(bridge.sent()) == {"b.txt", "c.txt"}, "the folder has left")
    assert bridge.run("drop", "--folder", bridge.ged / "Notes").returncode == 0
    assert bridge.wait_for("document_withdrawn")[0]["reason"] == "dropped by a person"
    identity = next(line["id"] for line in bridge.lines("document_held") if line["document"] == "Achats/a.txt")
    assert bridge.run("drop", identity).returncode == 0
    assert bridge.run("drop", identity).returncode == 1
    assert bridge.run("drop").returncode == 2
    bridge.stop()
    assert set(bridge.sent()) == {"b.txt", "c.txt"}


@pytest.mark.promise
def test_bytes_that_the_address_already_got_are_held_and_those_that_are_new_are_not(bridge):
    with_rule(bridge, "duplicates: hold").start()
    (bridge.inbox / "first.txt").write_bytes(b"the same bytes")
    bridge.wait_for("document_validated")
    (bridge.inbox / "again.txt").write_bytes(b"the same bytes")
    (bridge.inbox / "other.txt").write_bytes(b"other bytes")
    assert held(bridge, 1) == ["Achats/again.txt"]
    assert "first.txt" in bridge.lines("document_held")[0]["reason"]
    bridge.wait_for("document_validated", 2)
    assert set(bridge.sent()) == {"first.txt", "other.txt"}
    assert bridge.run("release", "--all").returncode == 0
    until(lambda: bridge.sent()["again.txt"] == 1, "released, it leaves all the same")


def test_a_release_is_from_the_rule_that_held_and_not_from_the_untold_rules(bridge):
    """Released from the review, the second of two copies is still a duplicate; released again, it leaves."""
    with_rule(bridge, "review: true, duplicates: hold").start()
    for name in ("first.txt", "copy.txt"):
        (bridge.inbox / name).write_bytes(b"the same bytes")
    held(bridge, 2)
    assert bridge.run("release", "--all").returncode == 0
    assert "the same bytes" in bridge.wait_for("document_held", 3)[2]["reason"]
    bridge.wait_for("document_validated")
    assert sum(bridge.sent().values()) == 1
    assert bridge.run("release", "--all").returncode == 0
    until(lambda: bridge.sent() == {"first.txt": 1, "copy.txt": 1}, "released twice, it leaves")


def test_a_document_overwritten_after_its_review_is_reviewed_again(bridge):
    with_rule(bridge, "review: true").start()
    document = bridge.inbox / "a.txt"
    document.write_bytes(b"what was reviewed")
    held(bridge, 1)
    document.write_bytes(b"something else")
    assert "held" in bridge.wait_for("document_changed")[0]["reason"]
    assert bridge.run("release", "--all").returncode == 0
    held(bridge, 2)
    assert not bridge.sent()
    assert bridge.run("release", "--all").returncode == 0
    bridge.wait_for("document_validated")
    assert [content for _, content in bridge.arrived()] == [b"something else"]


def test_a_daily_cap_puts_the_rest_off_without_a_storm_and_holds_up_no_other_address(bridge):
    """Exactly so many documents leave a day, by two sessions. Documents to other addresses do not wait behind them."""
    bridge.folders = (
        "[{path: Achats, collector: hubdoc, collection_email: m@app.hubdoc.com},"
        " {path: Notes, collection_email: ndf@x.example}]"
    )
    bridge.start()
    outside = bridge.outside / "drop"
    outside.mkdir()
    for number in range(303):
        (outside / f"{number:03}.pdf").write_bytes(PDF + b"%d" % number)
    outside.rename(bridge.inbox / "drop")
    bridge.wait_for("document_validated", 300)
    bridge.wait_for("document_deferred", 3)
    (bridge.ged / "Notes" / "ndf.txt").write_bytes(b"to another address")
    until(lambda: bridge.sent()["ndf.txt"], "it is not behind those that were put off")
    assert quiet_for(bridge, 2) == quiet_for(bridge, 2)
    assert sum(bridge.sent().values()) == 301
    assert len(bridge.lines("document_deferred")) == 3
    assert "takes 300 documents a day" in bridge.lines("document_deferred")[0]["reason"]


def test_of_two_copies_in_two_sessions_the_second_to_be_read_waits(tmp_path):
    """The younger may be read first; then it has left, or is about to, and the elder is the duplicate."""
    journal = Journal(tmp_path)
    elder, younger = journal.write(lambda tx: [put(tx, State.SENDING, name) for name in (b"elder", b"younger")])

    def read(tx: Transaction, seq: int) -> tuple[str, bool]:
        tx.enter_digest(seq, "ab" * 32)
        document = tx.document(seq)
        assert document is not None
        return brakes.sent_before(tx, document, "ab" * 32)

    assert journal.write(lambda tx: [read(tx, younger), read(tx, elder)]) == [("", False), ("", True)]
    journal.close()


def test_of_many_copies_that_come_at_once_one_leaves(bridge):
    with_rule(bridge, "duplicates: hold").start()
    for number in range(6):
        (bridge.inbox / f"{number}.txt").write_bytes(b"x" * 100_000)
    held(bridge, 5)
    bridge.wait_for("document_validated")
    assert sum(bridge.sent().values()) == 1


@pytest.mark.promise
def test_a_document_that_the_collector_would_drop_is_held_and_the_rest_goes(bridge):
    with_rule(bridge, "collector: conciliator").start()
    (bridge.inbox / "small.pdf").write_bytes(PDF)
    (bridge.inbox / "large.pdf").write_bytes(b"%PDF-1.4\n" + b"%" * 40_000 + b"\n%%EOF\n")
    assert held(bridge, 1) == ["Achats/small.pdf"]
    assert "Conciliator" in bridge.lines("document_held")[0]["reason"]
    bridge.wait_for("document_validated")
    assert bridge.run("release", "--all").returncode == 0
    until(lambda: set(bridge.sent()) == {"small.pdf", "large.pdf"}, "a person knows better")


def test_a_refused_address_is_tried_once_and_again_only_when_a_person_says_so(bridge):
    bridge.more_clients = (
        f"  - {{name: Dupont, ged: {bridge.base}/dupont, collection_email: dupont@collecte.example,"
        " switched_folders: [Achats]}\n"
    )
    (bridge.base / "dupont" / "Achats").mkdir(parents=True)
    bridge.relay.script("RCPT", Say("550 5.1.1 no such user"))
    bridge.start()
    (bridge.inbox / "1.txt").write_bytes(b"1")
    bridge.wait_for("document_held")
    assert bridge.lines("document_held")[0]["address_refused"] is True
    (bridge.inbox / "2.txt").write_bytes(b"2")
    held(bridge, 2)
    (bridge.base / "dupont" / "Achats" / "3.txt").write_bytes(b"3")
    bridge.wait_for("document_validated")
    assert set(bridge.sent()) == {"3.txt"}
    first = bridge.lines("document_held")[0]["id"]
    assert bridge.run("release", first).returncode == 0
    until(lambda: bridge.sent()["1.txt"] == 1, "the address is tried again")
    assert bridge.run("release", "--all").returncode == 0
    until(lambda: bridge.sent()["2.txt"] == 1, "and what was held with it leaves")


@pytest.mark.promise
def test_refusals_in_a_row_for_three_clients_are_the_relays_and_all_are_put_back(bridge):
    for name in ("b", "c", "d"):
        (bridge.base / name / "Achats").mkdir(parents=True)
        bridge.more_clients += (
            f"  - {{name: {name}, ged: {bridge.base}/{name}, collection_email: {name}@collecte.example,"
            " switched_folders: [Achats]}\n"
        )
    bridge.relay.always("DOT", Say("550 computer says no"))
    bridge.start()
    for name in ("b", "c", "d"):
        (bridge.base / name / "Achats" / f"{name}.txt").write_bytes(name.encode())
    bridge.wait_for("relay_misconfigured")

    states = lambda: [state for _, state in bridge.document_states()]  # noqa: E731
    until(lambda: states() == ["queued"] * 3, f"all three are put back, not {states()}")
    bridge.stop()
    bridge.start()  # the halt outlives the daemon
    assert bridge.count("relay_misconfigured") == 2
    tries = len(bridge.relay.mails)
    bridge.relay.always("DOT")
    assert bridge.run("reload").returncode == 0
    until(lambda: set(bridge.sent()) == {"b.txt", "c.txt", "d.txt"}, "all have left")
    assert len(bridge.relay.mails) == tries + 3
    assert bridge.count("relay_recovered") == 1


@pytest.mark.promise
def test_a_dry_run_shows_the_mails_and_touches_nothing(bridge):
    bridge.config.write_text(bridge.text())
    with bridge.log.open("ab") as log:
        bridge.process = subprocess.Popen([*daemon(), "run", "--dry-run", "--config", bridge.config], stderr=log)
    bridge.wait_for("daemon_ready")
    (bridge.inbox / "facture été.pdf").write_bytes(PDF)
    bridge.wait_for("document_validated")
    dry = bridge.base / "state" / "dry-run"
    mails = [bytes(mail) for mail in mailbox.Maildir(dry / "Maildir", create=False)]
    assert [attachment(mail) for mail in mails] == [("facture été.pdf", PDF)]
    assert [path.name for path in bridge.inbox.iterdir()] == ["facture été.pdf"]
    assert not bridge.relay.mails
    assert not bridge.relay.sessions
    assert '"validated": 1' in bridge.run("status", "--dry-run", "--json").stdout
    explained = bridge.run("explain", "--dry-run", bridge.inbox / "facture été.pdf").stdout
    assert f"was not sent: a dry run wrote its mail for Martin@collecte.example to {dry}/Maildir" in explained
    assert bridge.run("reload", "--dry-run").returncode == 0
    assert bridge.stop() == 0
    assert not (bridge.base / "state" / "journal.sqlite").exists()
