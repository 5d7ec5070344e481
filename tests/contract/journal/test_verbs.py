"""The verbs of the journal: one for each arrow, from its states and from no other."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bridged.journal import Journal, StateConflict, Transaction, documents
from bridged.journal.values import Attempt, NewDocument, Proof
from bridged.model import ALL_RULES, TRANSITIONS, Document, State
from tests.support.documents import STAMP, change, put

ROOT = Path(__file__).resolve().parents[3]
NO_ROW = "\N{EN DASH}"
NEW = NewDocument("id", "A", b"/ged", b"/ged/new.pdf", STAMP, "a@collecte.example", "<new@x>", "date", 1.0)
PROOF = Proof("<proven@x>", "digest", "250 ok", 3)
ATTEMPT = Attempt(50.0, "outcome", "the relay's words")

ENTRIES: dict[str, tuple[State, Callable[[Transaction], int]]] = {
    "deposit": (State.WAITING, lambda tx: tx.deposit(NEW)),
    "miss": (State.MISSED, lambda tx: tx.miss(NEW)),
    "send": (State.QUEUED, lambda tx: tx.send(NEW, 9.0)),
    "adopt": (State.VALIDATED, lambda tx: tx.adopt(NEW, PROOF, 9.0)),
}
Move = Callable[[Transaction, Document], None]
MOVES: dict[str, tuple[set[State], State, Move]] = {
    "queue": ({State.WAITING}, State.QUEUED, lambda tx, d: tx.queue(d.seq, STAMP, 9.0)),
    "adopt_deposit": ({State.WAITING}, State.VALIDATED, lambda tx, d: tx.adopt_deposit(d.seq, PROOF, 9.0)),
    "send_missed": ({State.MISSED}, State.QUEUED, lambda tx, d: tx.send_missed(d.seq, STAMP, 9.0)),
    "unsettle": ({State.QUEUED, State.SENDING}, State.WAITING, lambda tx, d: tx.unsettle(d, "overwritten")),
    "claim": ({State.QUEUED}, State.SENDING, lambda tx, d: tx.claim(d, "b@collecte.example")),
    "requeue": ({State.SENDING}, State.QUEUED, lambda tx, d: tx.requeue(d.seq)),
    "accept": ({State.SENDING}, State.SENT, lambda tx, d: tx.accept(d.seq, ATTEMPT)),
    "validate": ({State.SENT}, State.VALIDATED, lambda tx, d: tx.validate(d.seq, 9.0, b"/m", None)),
    "hold_back": ({State.QUEUED}, State.HELD, lambda tx, d: tx.hold_back(d.seq, "why", "b@collecte.example")),
    "hold": ({State.SENDING}, State.HELD, lambda tx, d: tx.hold(d.seq, "why")),
    "release": ({State.HELD}, State.QUEUED, lambda tx, d: tx.release(d, 9.0)),
    "withdraw": (
        {State.WAITING, State.QUEUED, State.SENDING, State.HELD},
        State.WITHDRAWN,
        lambda tx, d: tx.withdraw(d, "why"),
    ),
}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path)
    yield journal
    journal.close()


def found(journal: Journal, seq: int) -> Document:
    document = journal.read(lambda tx: tx.document(seq))
    assert document is not None
    return document


def document_in(journal: Journal, state: State) -> Document:
    """A document whose columns hold values of a long life, so that each change shows."""
    columns = {"reason": "before", "due_at": 7.0, "queued_at": 2.0, "attempts": 4, "uncertain": 1, "dotted": 1}
    columns |= {"sha256": "former", "relay_reply": "former words", "passed": "brake", "rule": ""}
    return found(journal, journal.write(lambda tx: put(tx, state, state.value.encode(), **columns)))


def changed(journal: Journal, before: Document, verb: Callable[[Transaction], object]) -> dict[str, object]:
    """The fields that a verb has changed."""
    journal.write(verb)
    after = found(journal, before.seq)
    return {name: value for name, value in after._asdict().items() if value != getattr(before, name)}


def test_every_arrow_of_the_table_has_exactly_one_verb() -> None:
    arrows = [arrow for arrow, _ in verbs()]
    assert len(arrows) == len(set(arrows))
    assert set(arrows) == TRANSITIONS


def test_the_page_of_the_states_names_the_verb_of_each_arrow() -> None:
    row = re.compile(r"\| (\S+) \| (\S+) \| `(\w+)` \| ")
    found = [row.match(line) for line in (ROOT / "docs/states.md").read_text(encoding="utf-8").splitlines()]
    named = {(line[1], line[2]): line[3] for line in found if line}
    assert named == {(old.value if old else NO_ROW, new.value): verb for (old, new), verb in verbs()}


def verbs() -> list[tuple[tuple[State | None, State], str]]:
    """Each arrow with its verb."""
    entering = [((None, state), verb) for verb, (state, _) in ENTRIES.items()]
    return entering + [((old, new), verb) for verb, (olds, new, _) in MOVES.items() for old in olds]


def test_no_other_method_of_the_journal_changes_a_state() -> None:
    """The verbs of this table are all that write one, and each of them writes it once."""
    writes = [
        (method.name, call.func.attr)
        for cls in ast.parse(inspect.getsource(documents)).body
        if isinstance(cls, ast.ClassDef)
        for method in cls.body
        if isinstance(method, ast.FunctionDef)
        for call in ast.walk(method)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in ("_enter", "_move")
    ]
    entering = [name for name, way in writes if way == "_enter"]
    moving = [name for name, way in writes if way == "_move"]
    assert entering == list(ENTRIES)
    assert sorted(moving) == sorted(MOVES)


@pytest.mark.parametrize("verb", ENTRIES)
def test_a_new_document_enters_in_the_state_of_its_verb(journal: Journal, verb: str) -> None:
    state, enter = ENTRIES[verb]
    document = found(journal, journal.write(enter))
    assert (document.state, document.id, document.path, document.stamp) == (state, NEW.id, NEW.path, STAMP)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("verb", MOVES)
def test_a_verb_moves_a_document_from_its_states_and_from_no_other(journal: Journal, verb: str, state: State) -> None:
    olds, new, move = MOVES[verb]
    before = document_in(journal, state)
    if state in olds:
        assert changed(journal, before, lambda tx: move(tx, before))["state"] is new
        return
    with pytest.raises(StateConflict):
        journal.write(lambda tx: move(tx, before))
    assert found(journal, before.seq) == before


@pytest.mark.parametrize("verb", ["unsettle", "withdraw", "claim", "release"])
def test_a_document_that_another_writer_has_moved_stays_as_it_is(journal: Journal, verb: str) -> None:
    """The caller has read it before; a verb compares the state that it was read in."""
    olds, _, move = MOVES[verb]
    for old in olds:
        require_unmoved(journal, document_in(journal, old), move)


def require_unmoved(journal: Journal, read: Document, move: Move) -> None:
    journal.write(lambda tx: change(tx, read.seq, state=State.SENT.value))
    moved = found(journal, read.seq)
    with pytest.raises(StateConflict):
        journal.write(lambda tx: move(tx, read))
    assert found(journal, read.seq) == moved


def test_requeued_without_an_attempt_nothing_is_counted(journal: Journal) -> None:
    before = document_in(journal, State.SENDING)
    assert changed(journal, before, lambda tx: tx.requeue(before.seq)) == {"state": State.QUEUED, "dotted": False}
    assert journal.read(lambda tx: tx.attempts(before.seq)) == []


def test_requeued_after_an_attempt_it_is_counted_with_the_relays_words(journal: Journal) -> None:
    before = document_in(journal, State.SENDING)
    assert changed(journal, before, lambda tx: tx.requeue(before.seq, 60.0, ATTEMPT, uncertain=True)) == {
        "state": State.QUEUED,
        "dotted": False,
        "due_at": 60.0,
        "attempts": 5,
        "uncertain": 2,
        "reason": "the relay's words",
        "relay_reply": "the relay's words",
    }
    assert journal.read(lambda tx: tx.attempts(before.seq)) == [ATTEMPT]


def test_accepted_it_is_counted_and_its_marker_is_due(journal: Journal) -> None:
    before = document_in(journal, State.SENDING)
    assert changed(journal, before, lambda tx: tx.accept(before.seq, ATTEMPT)) == {
        "state": State.SENT,
        "attempts": 5,
        "reason": "",
        "relay_reply": "the relay's words",
        "sent_at": 50.0,
    }
    assert [d.seq for d in journal.read(lambda tx: tx.markers_due(0.0, 10.0, 9))] == [before.seq]


def test_held_by_a_rule_the_relay_was_not_asked(journal: Journal) -> None:
    before = document_in(journal, State.SENDING)
    assert changed(journal, before, lambda tx: tx.hold(before.seq, "why", rule="collector")) == {
        "state": State.HELD,
        "reason": "why",
        "rule": "collector",
    }


def test_held_after_an_attempt_it_keeps_the_relays_words(journal: Journal) -> None:
    before = document_in(journal, State.SENDING)
    assert changed(journal, before, lambda tx: tx.hold(before.seq, "why", attempt=ATTEMPT)) == {
        "state": State.HELD,
        "reason": "why",
        "attempts": 5,
        "relay_reply": "the relay's words",
    }


def test_claimed_its_digest_is_void_unless_it_may_have_left(journal: Journal) -> None:
    uncertain = document_in(journal, State.QUEUED)
    claimed = {"state": State.SENDING, "collection_email": "b@collecte.example", "dotted": False}
    assert changed(journal, uncertain, lambda tx: tx.claim(uncertain, "b@collecte.example")) == claimed
    journal.write(lambda tx: change(tx, uncertain.seq, state="queued", uncertain=0, collection_email="a", dotted=1))
    certain = found(journal, uncertain.seq)
    assert changed(journal, certain, lambda tx: tx.claim(certain, "b@collecte.example")) == claimed | {"sha256": ""}


def test_released_by_a_person_its_tries_begin_anew_past_the_rule_that_held_it(journal: Journal) -> None:
    seq = document_in(journal, State.HELD).seq
    journal.write(lambda tx: change(tx, seq, rule="review"))
    before = found(journal, seq)
    assert changed(journal, before, lambda tx: tx.release(before, 9.0)) == {
        "state": State.QUEUED,
        "reason": "",
        "rule": "",
        "passed": "brake review",
        "due_at": 0.0,
        "queued_at": 9.0,
        "uncertain": 0,
    }


def test_put_back_because_the_relay_refused_everything_its_tries_go_on(journal: Journal) -> None:
    before = document_in(journal, State.HELD)
    assert changed(journal, before, lambda tx: tx.release(before)) == {
        "state": State.QUEUED,
        "reason": "",
        "due_at": 0.0,
    }


def test_put_back_from_a_rule_that_holds_it_since_it_is_past_no_rule(journal: Journal) -> None:
    seq = document_in(journal, State.HELD).seq
    journal.write(lambda tx: change(tx, seq, rule="duplicates"))
    before = found(journal, seq)
    assert changed(journal, before, lambda tx: tx.release(before)) == {
        "state": State.QUEUED,
        "reason": "",
        "rule": "",
        "due_at": 0.0,
    }


@pytest.mark.parametrize("state", [State.QUEUED, State.SENDING])
def test_overwritten_its_release_is_void(journal: Journal, state: State) -> None:
    before = document_in(journal, state)
    assert changed(journal, before, lambda tx: tx.unsettle(before, "overwritten")) == {
        "state": State.WAITING,
        "reason": "overwritten",
        "passed": "",
    }


def test_sent_on_purpose_it_is_past_every_rule(journal: Journal) -> None:
    before = document_in(journal, State.MISSED)
    assert changed(journal, before, lambda tx: tx.send_missed(before.seq, STAMP, 9.0)) == {
        "state": State.QUEUED,
        "reason": "sent on purpose",
        "passed": ALL_RULES,
        "due_at": 0.0,
        "queued_at": 9.0,
    }
    sent = found(journal, journal.write(ENTRIES["send"][1]))
    assert (sent.passed, sent.queued_at, sent.due_at) == (ALL_RULES, 9.0, 0.0)


def test_adopted_it_has_what_its_marker_proves(journal: Journal) -> None:
    deposit = document_in(journal, State.WAITING)
    journal.write(lambda tx: tx.adopt_deposit(deposit.seq, PROOF, 9.0))
    entered = journal.write(lambda tx: tx.adopt(NEW, replace(PROOF, message_id="<other@x>"), 9.0))
    for seq, message_id in ((deposit.seq, "<proven@x>"), (entered, "<other@x>")):
        document = found(journal, seq)
        assert (document.message_id, document.sha256, document.attempts) == (message_id, "digest", 3)
        assert (document.relay_reply, document.validated_at) == ("250 ok", 9.0)
