"""Many small documents leave together, by two sessions. The process is killed, or the line is cut, in between."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bridge import Bridge, until
from tests.support.line import LineBridge, line_bridge, stays, with_login
from tests.support.process import ended, journal, launch, leftovers, marker_of, ready_or_ended
from tests.support.relay import OK, Action, Cut, Late, Say, ScriptedRelay, Stall

pytestmark = pytest.mark.timeout(300)

MANY = 60
EVERY = 11  # commits, of the 130 or so of a burst
SESSIONS = 2
SEVERAL = 3  # more than there are sessions
MID_BATCH = 24  # documents, of the 40 that `much_leaves_together` claims in one commit


@pytest.fixture
def bridge(tmp_path: Path, relay: ScriptedRelay) -> Iterator[LineBridge]:
    with line_bridge(tmp_path, relay) as bridge:
        bridge.smtp = f"timeout: 5s, connections: {SESSIONS}"
        yield bridge


def burst(bridge: Bridge, *prefixes: str) -> list[list[Path]]:
    """So many times so many small documents in two folders, which a start has found: existing."""
    bursts = [
        [bridge.ged / ("Achats", "Notes")[i % 2] / f"{prefix}-{i:02}.txt" for i in range(MANY)] for prefix in prefixes
    ]
    for document in itertools.chain(*bursts):
        document.write_text(document.name)
    bridge.start()
    bridge.stop()
    return bursts


def queue(bridge: Bridge, documents: list[Path]) -> None:
    """While the daemon is down, so that they leave as fast as they can."""
    told = bridge.run("send", *documents)
    assert told.returncode == 0, told.stderr


def mails(bridge: Bridge) -> dict[str, list[bytes]]:
    """Every mail by the name of its document."""
    found: dict[str, list[bytes]] = {}
    for mail in list(bridge.relay.mails):
        [name] = re.findall(rb'filename="([^"]+)"', mail.data)
        found.setdefault(name.decode(), []).append(mail.data)
    return found


def claimed(bridge: Bridge) -> int:
    """How many documents are claimed."""
    return journal(bridge, "SELECT count(*) FROM documents WHERE state = 'sending'")[0][0]


def announced(bridge: Bridge) -> int:
    """How many documents are claimed with their dots announced."""
    return journal(bridge, "SELECT count(*) FROM documents WHERE state = 'sending' AND dotted")[0][0]


def uncertain(bridge: Bridge) -> dict[str, int]:
    """Document name -> how often it was in doubt, where it was."""
    found = journal(bridge, "SELECT path, uncertain FROM documents WHERE uncertain > 0")
    return {os.fsdecode(path).rpartition("/")[2]: count for path, count in found}


def validated(bridge: Bridge) -> set[str]:
    """The documents that are."""
    found = journal(bridge, "SELECT path FROM documents WHERE state = 'validated'")
    return {os.fsdecode(path).rpartition("/")[2] for (path,) in found}


def all_validated(bridge: Bridge, documents: list[Path]) -> None:
    """With their markers whole, and nothing else beside them."""
    names = {document.name for document in documents}
    until(lambda: names <= validated(bridge), "all are validated")
    written = mails(bridge)
    for document in documents:
        assert marker_of(document)["message_id"].encode() in written[document.name][0]
    assert leftovers(bridge.ged) == []
    assert bridge.count("document_held") == 0


# -- kill -9


def killed_once(bridge: Bridge, documents: list[Path], number: int, when: str) -> int | None:
    """A start that dies at that commit, and one that brings all to the end: how many were claimed at the kill.

    None where the commit was never reached. At most one document of each session is in doubt.
    """
    launch(bridge, (), ["killed_at_a_commit"], env=os.environ | {"KILL_COMMIT": str(number), "KILL_WHEN": when})
    last = {f"{document.parent.name}/{document.name}" for document in documents}
    until(
        lambda: ended(bridge) or last <= {line["document"] for line in bridge.lines("document_validated")},
        "the end of the daemon, or of the burst",
    )
    if bridge.stop() == 0:
        return None
    assert bridge.process is not None
    assert bridge.process.returncode == -signal.SIGKILL
    certain = {line["document"].rpartition("/")[2] for line in bridge.lines("document_sent")}
    together, dots = claimed(bridge), announced(bridge)
    assert dots <= SESSIONS
    bridge.start()
    all_validated(bridge, documents)
    assert bridge.stop() == 0
    written = mails(bridge)
    twice = [document.name for document in documents if len(written[document.name]) > 1]
    for document in documents:
        copies = written[document.name]
        assert len(copies) <= 2, document.name
        assert len(set(copies)) == 1, document.name
    assert not set(twice) & certain, f"sent again after a kill {when} commit {number}"
    assert len(twice) <= dots
    return together


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_a_commit_of_a_burst_repeats_only_documents_in_doubt(bridge: LineBridge, when: str) -> None:
    """At every eleventh commit of sixty documents by two sessions, before or after it is on the disk.

    All are validated, a repetition is the very same mail, and only of what was not said to be sent; nothing is held.
    """
    together = []
    numbers = range(2, 400, EVERY)
    for number, documents in zip(numbers, burst(bridge, *(f"{number}" for number in numbers)), strict=True):
        queue(bridge, documents)
        several = killed_once(bridge, documents, number, when)
        if several is None:
            break
        together.append(several)
    assert len(together) >= 8
    assert max(together) >= SEVERAL, f"they did not leave in batches: {together}"


def test_a_kill_in_the_middle_of_a_batch_leaves_one_document_in_doubt(bridge: LineBridge) -> None:
    """One session. The dot of one document has left; the others of its batch are not announced."""
    documents = dot_under_way(bridge, Stall(keep=True))
    until(lambda: bridge.relay.stalled, "a dot is not answered")
    assert claimed(bridge) >= SEVERAL
    assert announced(bridge) == 1
    bridge.stop(signal.SIGKILL)
    bridge.start()
    all_validated(bridge, documents)
    [(name, count)] = uncertain(bridge).items()
    assert count == 1
    assert [document for document, sent in mails(bridge).items() if len(sent) > 1] == [name]


@pytest.mark.parametrize("seed", [1, 2])
def test_random_kills_in_a_burst_lose_nothing_and_repeat_no_certain_document(bridge: LineBridge, seed: int) -> None:
    """The same sixty documents, and three kills at random commits: not yet uncertain too often."""
    chance = random.Random(seed)
    [documents] = burst(bridge, "random")
    queue(bridge, documents)
    certain: Counter[str] = Counter()
    for _ in range(3):
        launch(
            bridge,
            (),
            ["killed_at_a_commit"],
            env=os.environ
            | {"KILL_COMMIT": str(chance.randrange(3, 60)), "KILL_WHEN": chance.choice(("before", "after"))},
        )
        until(lambda: ended(bridge) or not bridge_busy(bridge), "the end of the daemon, or of the burst")
        bridge.stop()
        told = {line["document"].rpartition("/")[2] for line in bridge.lines("document_sent")}
        left = mails(bridge)
        for name in told - set(certain):
            certain[name] = len(left[name])
    bridge.start()
    all_validated(bridge, documents)
    written = mails(bridge)
    for document in documents:
        assert len(set(written[document.name])) == 1
        if document.name in certain:
            assert len(written[document.name]) == certain[document.name]


def bridge_busy(bridge: Bridge) -> bool:
    return bool(journal(bridge, "SELECT 1 FROM documents WHERE state IN ('queued', 'sending', 'sent') LIMIT 1"))


# -- the line is cut


@pytest.mark.parametrize(
    ("phase", "action", "doubts", "copies"),
    [
        ("RCPT", Cut(), 0, 1),
        ("DATA", Cut(), 0, 1),
        ("DOT", Cut(), 1, 1),
        ("DOT", Cut(keep=True), 1, 2),
        ("DOT", Cut(raw=b"25", keep=True), 1, 2),
    ],
)
def test_a_line_cut_in_the_middle_of_a_batch_leaves_at_most_one_document_in_doubt(
    bridge: LineBridge, phase: str, action: Action, doubts: int, copies: int
) -> None:
    """The rest of the batch is put back uncounted, because their dots have not left."""
    [documents] = burst(bridge, "cut")
    queue(bridge, documents)
    bridge.relay.script(phase, *[OK] * 35, action)
    bridge.start()
    all_validated(bridge, documents)
    counted = uncertain(bridge)
    assert list(counted.values()) == [1] * doubts
    written = mails(bridge)
    left_twice = [name for name, sent in written.items() if len(sent) > 1]
    assert left_twice == (list(counted) if copies == 2 else [])
    assert all(len(sent) == copies and len(set(sent)) == 1 for name, sent in written.items() if name in left_twice)
    assert bridge.count("relay_unreachable") == (0 if doubts else 1)


@pytest.mark.parametrize(("phase", "keep"), [("RCPT", False), ("DOT", True)])
def test_a_document_put_back_from_a_batch_is_announced_with_the_bytes_that_go(
    bridge: LineBridge, phase: str, keep: bool
) -> None:
    """One session. The line breaks in the middle of a batch, and again after a dot, when the daemon dies.

    A document that was put back is read again. Its dot is in the journal before it goes, with the digest of the new
    bytes.
    """
    bridge.smtp = "timeout: 5s, connections: 1"
    [documents] = burst(bridge, "again")
    queue(bridge, documents)
    bridge.relay.script(phase, *[OK] * MID_BATCH, Stall(keep=keep))
    launch(bridge, (), ["much_leaves_together"])
    until(lambda: bridge.relay.stalled, "the line stalls in the middle of a batch")
    assert claimed(bridge) >= SEVERAL
    until(lambda: announced(bridge) == (1 if keep else 0), "the acceptances before are in the journal")
    bridge.relay.always("CONNECT", Cut())
    bridge.relay.cut_all()
    until(lambda: not journal(bridge, "SELECT 1 FROM documents WHERE state = 'sending'"), "all are put back")
    assert announced(bridge) == 0
    doubts = uncertain(bridge)
    assert list(doubts.values()) == ([1] if keep else [])
    waiting = [Path(os.fsdecode(p)) for (p,) in journal(bridge, "SELECT path FROM documents WHERE state = 'queued'")]
    assert len(waiting) > SEVERAL
    for document in waiting:
        if document.name not in doubts:
            document.write_text("saved over meanwhile: " + document.name)
    bridge.wait_for("relay_unreachable")
    bridge.relay.script("DOT", Stall(keep=True))
    bridge.relay.always("CONNECT")
    until(lambda: bridge.relay.stalled == 2, "a dot has left")
    [(path, dotted)] = journal(bridge, "SELECT path, dotted FROM documents WHERE state = 'sending'")
    assert dotted
    bridge.stop(signal.SIGKILL)
    bridge.start()
    all_validated(bridge, documents)  # whose markers have the digests of the bytes that are there now
    counted = uncertain(bridge)
    probe = os.fsdecode(path).rpartition("/")[2]
    assert counted == doubts | {probe: 1 + doubts.get(probe, 0)}
    for sent in mails(bridge).values():
        assert len(set(sent)) == 1


# -- a dot in the middle of a batch is not answered yet


def dot_under_way(bridge: LineBridge, action: Action) -> list[Path]:
    """A burst by one session. A dot in the middle of a batch gets this answer."""
    bridge.smtp = "timeout: 5s, connections: 1"
    [documents] = burst(bridge, "under-way")
    queue(bridge, documents)
    bridge.relay.script("DOT", *[OK] * MID_BATCH, action)
    launch(bridge, (), ["much_leaves_together"])
    return documents


def told(bridge: LineBridge, verb: str) -> int:
    """How often the relay was told that."""
    return len([line for _, line in list(bridge.relay.commands) if line == verb])


@pytest.mark.parametrize(
    ("action", "event"),
    [
        (Say("451 4.3.0 later"), "document_deferred"),
        (Say("554 5.7.1 content refused"), "document_held"),
        (Say("421 4.3.2 shutting down", then="cut"), "relay_unreachable"),
    ],
    ids=str,
)
def test_the_reply_to_a_dot_counts_for_its_own_document_and_the_line(
    bridge: LineBridge, action: Action, event: str
) -> None:
    """The documents after it in the batch are neither in doubt nor counted."""
    documents = dot_under_way(bridge, action)
    bridge.wait_for(event)
    if event == "document_held":
        assert bridge.run("release", "--all").returncode == 0
    names = {document.name for document in documents}
    until(lambda: names <= validated(bridge), "all are validated")
    assert uncertain(bridge) == {}
    assert Counter(len(sent) for sent in mails(bridge).values()) == {1: MANY}
    attempts = Counter(n for (n,) in journal(bridge, "SELECT attempts FROM documents"))
    assert attempts == ({1: MANY - 1, 2: 1} if event.startswith("document") else {1: MANY})


def test_a_throttling_in_the_middle_of_a_batch_puts_the_rest_back_uncounted(bridge: LineBridge) -> None:
    """The session is closed at once, because the relay has asked for a pause."""
    documents = dot_under_way(bridge, Say("432 4.3.2 concurrent"))
    bridge.wait_for("relay_throttled")
    until(lambda: not journal(bridge, "SELECT 1 FROM documents WHERE state = 'sending'"), "all are put back")
    bridge.relay.wait_for(lambda: bridge.relay.open_sessions == 0)
    assert (len(bridge.relay.mails), told(bridge, "RSET")) == (MID_BATCH, MID_BATCH)
    stays(lambda: (len(bridge.relay.mails), bridge.relay.sessions), (MID_BATCH, 1), 0.3)
    waiting = journal(bridge, "SELECT attempts, dotted, uncertain FROM documents WHERE state = 'queued'")
    assert waiting == [(0, 0, 0)] * (len(documents) - MID_BATCH)


def test_a_reload_in_the_middle_of_a_batch_sends_nothing_more_to_the_address_before(bridge: LineBridge) -> None:
    """Only the document whose dot has left goes to the old address."""
    documents = dot_under_way(bridge, Late())
    until(lambda: bridge.relay.stalled, "a dot is not answered")
    right = "collection_email: right@collecte.example"
    bridge.folders = f"[{{path: Achats, {right}}}, {{path: Notes, {right}}}]"
    bridge.config.write_text(bridge.text())
    assert bridge.run("reload").returncode == 0
    bridge.relay.go_on()
    all_validated(bridge, documents)
    to = Counter(recipient for mail in bridge.relay.mails for recipient in mail.recipients)
    assert to == {"Martin@collecte.example": MID_BATCH + 1, "right@collecte.example": MANY - MID_BATCH - 1}
    assert uncertain(bridge) == {}


def test_a_document_saved_over_in_the_middle_of_its_batch_leaves_once_and_whole(bridge: LineBridge) -> None:
    """Its mail has the bytes that were read with the batch, or none. Its marker tells the same bytes."""
    documents = dot_under_way(bridge, Late())
    until(lambda: bridge.relay.stalled, "a dot is not answered")
    for document in documents:
        if document.name not in mails(bridge):
            document.write_text("saved over meanwhile: " + document.name)
    bridge.relay.go_on()
    names = {document.name for document in documents}
    until(lambda: names <= validated(bridge), "all are validated")
    assert Counter(len(sent) for sent in mails(bridge).values()) == {1: MANY}
    assert uncertain(bridge) == {}


# -- our own end, and our own mistakes


def stop_while_the_relay_thinks(bridge: LineBridge) -> None:
    """SIGTERM in the middle of a batch; the answer to the mail in transit comes then, and no other mail."""
    assert bridge.process is not None
    bridge.process.send_signal(signal.SIGTERM)
    bridge.wait_for("daemon_stopping", 2)
    bridge.relay.go_on()
    assert bridge.process.wait(12) == 0
    assert len(bridge.relay.mails) == MID_BATCH + 1


def test_a_stop_in_the_middle_of_a_batch_ends_with_the_document_in_transit(bridge: LineBridge) -> None:
    """It is accepted, and no other begins: a relay that has become slow would be broken off after some dot."""
    bridge.smtp = "timeout: 5s, connections: 1"
    [documents] = burst(bridge, "stop")
    queue(bridge, documents)
    bridge.relay.script("RCPT", *[OK] * MID_BATCH, Late())
    launch(bridge, (), ["much_leaves_together"])
    until(lambda: bridge.relay.stalled, "the line stalls in the middle of a batch")
    assert claimed(bridge) >= SEVERAL
    stop_while_the_relay_thinks(bridge)
    assert announced(bridge) == 0
    assert len(validated(bridge)) == MID_BATCH + 1
    bridge.start()
    all_validated(bridge, documents)
    assert uncertain(bridge) == {}
    assert len(bridge.relay.mails) == MANY


def test_a_mistake_before_the_first_document_does_not_keep_its_turn(tmp_path: Path) -> None:
    """The line to a relay with a login lets one in first, and waits for what becomes of it: it is tried again."""
    with with_login() as relay, line_bridge(tmp_path, relay) as bridge:
        ready = bridge.count("daemon_ready")
        launch(bridge, (), ["reading_fails_once"])
        assert ready_or_ended(bridge, ready)
        (bridge.inbox / "a.txt").write_text("a")
        bridge.wait_for("state_failed")
        bridge.expect("a.txt")
        assert uncertain(bridge) == {}
