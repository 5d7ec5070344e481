"""Random histories: deposits, saves, renames, switches, moods of the relay and kills, in any order.

The model knows how often each document must have left by now, and how often it may have. The bridge looks after
each change of a file. Otherwise two changes between two looks could be read in two ways.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bridged.intake import Sweep
from bridged.model import State
from tests.support.bridge import attachment
from tests.support.firm import CLIENTS, Firm, files_below, header
from tests.support.relay import Action, Cut, Received, Say, ScriptedRelay

FOLDERS = ("Achats", "Achats/sub", "Notes")
MOODS: dict[str, tuple[str, Action]] = {
    "deferred": ("RCPT", Say("450 4.2.0 later")),
    "refused": ("DOT", Say("550 5.7.1 no")),
    "cut before the dot": ("UPLOAD", Cut()),
    "reply lost": ("DOT", Cut(keep=True)),
    "down": ("CONNECT", Cut()),
    "throttled": ("MAIL", Say("451 4.7.0 too fast")),
}
FINAL = {State.VALIDATED, State.WITHDRAWN, State.HELD, State.MISSED}


@dataclass
class File:
    """A document's life. `must`: it has to leave that often in the end; `may`: and no more often (kills apart)."""

    path: Path
    tokens: list[bytes]
    must: int = 0
    may: int = 0
    clients: set[str] = field(default_factory=set)


class Life(RuleBasedStateMachine):
    """A firm, its clients, its relay and its power supply at work."""

    mode = "polling"

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(prefix="machine-")
        self.relay = ScriptedRelay().__enter__()
        self.firm = Firm(Path(self._directory.name), self.relay, self.mode)
        self.files: list[File] = []
        self.gone: list[File] = []
        self.count = 0
        self.lost_replies = 0
        self.vacated: set[Path] = set()  # since the bridge died
        self.saved: set[int] = set()  # the files that got other bytes since then
        self.moved: set[int] = set()  # and those that got another path
        self.arrived: set[int] = set()  # and those that were put into a switched folder

    def teardown(self) -> None:
        try:
            self._all_is_well_in_the_end()
        finally:
            if self.firm.alive:
                self.firm.stop()
            self.relay.__exit__(None, None, None)
            self._directory.cleanup()

    # -- the model

    def _token(self) -> bytes:
        self.count += 1
        return b"document %d\n" % self.count

    def _on(self, path: Path) -> bool:
        folder = path.relative_to(self.firm.base).parts[1]
        return folder == "Achats" or (folder == "Notes" and self.firm.notes_on)

    def _client(self, path: Path) -> str:
        return path.relative_to(self.firm.base).parts[0]

    def _sent(self, file: File) -> int:
        """Deliveries of a document; the same mail again is not another one."""
        return len({header(m, "Message-ID") for m in self.firm.mails() if any(t in self._body(m) for t in file.tokens)})

    def _file_of(self, mail: Received) -> File:
        return next(f for f in self.files + self.gone if self._body(mail) in f.tokens)

    def _body(self, mail: Received) -> bytes:
        return attachment(mail.data)[1]

    def _deposited(self, file: File) -> None:
        """A new file is in a switched folder. If the bridge is dead it is missed; if it dies now, it may be."""
        file.clients.add(self._client(file.path))
        before = self._sent(file)
        if not self.firm.alive:
            self.arrived.add(id(file))
            self._taken_for_another(file)
            return
        file.may = before + 1
        if self.firm.mortal(self.firm.look):
            file.must = before + 1
            self._all_seen()
        else:
            self.arrived.add(id(file))

    def _taken_for_another(self, file: File) -> None:
        """A new file in the place of a document queued when the bridge died is taken for that one."""
        file.may = max(file.may, self._sent(file) + (file.path in self.vacated))

    def _left(self, file: File) -> None:
        """The file is in no switched folder any more. It leaves only if it is back at the start."""
        self._looked()
        file.must = self._sent(file)
        if self.firm.alive:
            file.may = file.must

    def _looked(self) -> None:
        """A look that is killed half-way may have missed the changes before it."""
        if self.firm.alive and self.firm.mortal(self.firm.look):
            self._all_seen()

    def _all_seen(self) -> None:
        for since_then in (self.vacated, self.saved, self.moved, self.arrived):
            since_then.clear()

    def _changed(self, file: File, what: set[int]) -> None:
        """Saved or moved. Both while the bridge was dead: it is no longer known by anything, and is missed."""
        if not self.firm.alive:
            what.add(id(file))
            if id(file) in self.saved & self.moved:
                file.must = self._sent(file)
        self._looked()

    def _pick(self, data: st.DataObject, *, on: bool | None = None) -> File | None:
        found = [f for f in self.files if on is None or self._on(f.path) == on]
        return data.draw(st.sampled_from(found), "file") if found else None

    def _place(self, data: st.DataObject, clients: tuple[str, ...], folders: tuple[str, ...]) -> Path:
        client, folder = data.draw(st.sampled_from(clients), "client"), data.draw(st.sampled_from(folders), "folder")
        name = data.draw(st.sampled_from(("a.txt", "b.txt", "été.txt", "c.pdf.txt")), "name")
        return self.firm.base / client / folder / name

    def _free(self, path: Path) -> bool:
        return not path.exists()

    # -- the rules

    @initialize(names=st.sets(st.sampled_from(("old1.txt", "old2.txt"))))
    def a_firm_begins(self, names: set[str]) -> None:
        for client in CLIENTS:
            for name in sorted(names):
                file = File(self.firm.base / client / "Achats" / name, [self._token()])
                file.path.write_bytes(file.tokens[0])
                self.files.append(file)
        self.firm.start()

    @rule(data=st.data())
    def deposit(self, data: st.DataObject) -> None:
        path = self._place(data, tuple(CLIENTS), (*FOLDERS, "Brouillons"))
        if self._free(path):
            file = File(path, [self._token()])
            path.write_bytes(file.tokens[0])
            self.files.append(file)
            if self._on(path):
                self._deposited(file)

    @precondition(lambda self: self.firm.alive)
    @rule(data=st.data(), mood=st.sampled_from((*MOODS, *("",) * 6)), commits=st.integers(0, 24), after=st.booleans())
    def a_busy_hour(self, data: st.DataObject, mood: str, commits: int, after: bool) -> None:
        """Several deposits are delivered, and the relay or the power fails in the middle of it, or does not."""
        for _ in range(3):
            self.deposit(data)
        if mood:
            self.the_relay_has_a_mood(mood)
        if self.firm.alive and commits:
            self.firm.doom(commits, after=after)
        for _ in range(2):
            if self.firm.alive:
                self.firm.mortal(self.firm.deliver)
        if self.firm.alive:
            self.firm.journal.commits_to_live = None

    @rule(data=st.data(), how=st.sampled_from(("in place", "by rename")))
    def save(self, data: st.DataObject, how: str) -> None:
        file = self._pick(data)
        if file is None:
            return
        file.tokens.append(self._token())
        if how == "in place":
            file.path.write_bytes(file.tokens[-1])
        else:
            temporary = file.path.with_name(".save.tmp")
            temporary.write_bytes(file.tokens[-1])
            temporary.rename(file.path)
        self._changed(file, self.saved)

    @rule(data=st.data())
    def rename(self, data: st.DataObject) -> None:
        """Between switched folders of one client, so that the document is followed."""
        file = self._pick(data, on=True)
        if file is None:
            return
        target = self._place(data, (self._client(file.path),), FOLDERS)
        if self._free(target) and self._on(target):
            self.vacated.add(file.path)
            file.path.rename(target)
            file.path = target
            if id(file) in self.arrived:
                self._taken_for_another(file)
            self._changed(file, self.moved)

    @rule(data=st.data())
    def move_out(self, data: st.DataObject) -> None:
        file = self._pick(data, on=True)
        target = self.firm.base / f"out-{self.count}"
        if file is not None:
            self.count += 1
            self.vacated.add(file.path)
            file.path.rename(target)
            self.gone.append(file)
            self.files.remove(file)
            file.path = target
            self._left(file)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def move_in(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(self.gone), "file")
        target = self._place(data, tuple(CLIENTS), FOLDERS)
        if self._free(target) and self._on(target) and file.path.exists():
            file.path.rename(target)
            file.path = target
            self.gone.remove(file)
            self.files.append(file)
            self._deposited(file)

    @rule(data=st.data())
    def move_to_another_client(self, data: st.DataObject) -> None:
        file = self._pick(data, on=True)
        if file is None:
            return
        other = next(client for client in CLIENTS if client != self._client(file.path))
        target = self._place(data, (other,), FOLDERS)
        if self._free(target) and self._on(target):
            self.vacated.add(file.path)
            file.path.rename(target)
            file.path = target
            file.must = self._sent(file)
            if self.firm.alive:
                file.may = file.must
            self._deposited(file)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        file = self._pick(data)
        if file is not None:
            was_on = self._on(file.path)
            self.vacated.add(file.path)
            file.path.unlink()
            file.path = self.firm.base / "deleted"
            self.files.remove(file)
            self.gone.append(file)
            if was_on:
                self._left(file)

    @rule(client=st.sampled_from(tuple(CLIENTS)))
    def rename_a_directory(self, client: str) -> None:
        """The sub-folder, away and back: its documents are followed."""
        folder = self.firm.base / client / "Achats"
        for old, new in (("sub", "renamed"), ("renamed", "sub")):
            (folder / old).rename(folder / new)
            self._looked()

    @precondition(lambda self: self.firm.alive)
    @rule()
    def switch_notes(self) -> None:
        self.firm.notes_on = not self.firm.notes_on
        inside = [file for file in self.files if file.path.parent.name == "Notes"]
        for file in inside:  # off: a document that has not left is withdrawn; on again: its file is existing
            file.must = self._sent(file)
            file.may = self._sent(file)
        self.firm.mortal(self.firm.reload)

    @precondition(lambda self: self.firm.alive)
    @rule()
    def deliver(self) -> None:
        self.firm.mortal(self.firm.deliver)

    @rule(mood=st.sampled_from(tuple(MOODS)))
    def the_relay_has_a_mood(self, mood: str) -> None:
        self.lost_replies += mood == "reply lost"
        self.relay.script(*MOODS[mood])

    @precondition(lambda self: self.firm.alive)
    @rule()
    def release(self) -> None:
        self.firm.mortal(self.firm.release)

    @precondition(lambda self: self.firm.alive)
    @rule(commits=st.integers(1, 6), after=st.booleans())
    def doom(self, commits: int, after: bool) -> None:
        """kill -9 at one of the next commits."""
        self.firm.doom(commits, after=after)

    @precondition(lambda self: self.firm.alive)
    @rule()
    def stop(self) -> None:
        if self.firm.mortal(lambda: None):
            self.firm.stop()

    @precondition(lambda self: not self.firm.alive)
    @rule()
    def start(self) -> None:
        if self.firm.mortal(self.firm.start):
            self._all_seen()

    # -- invariants

    @invariant()
    def every_mail_has_a_row_and_the_right_address(self) -> None:
        if not self.firm.alive:
            return
        rows = {row.id: row for row in self.firm.rows()}
        for mail in self.firm.mails():
            assert header(mail, "X-Bridged-Document") in rows
            file = self._file_of(mail)
            assert mail.recipients in {(CLIENTS[client],) for client in file.clients}

    @invariant()
    def one_message_id_is_one_mail(self) -> None:
        """Sent again only where the reply was lost or the bridge was killed, and then the same document."""
        mails = defaultdict(list)
        for mail in self.firm.mails():
            same = (id(self._file_of(mail)), header(mail, "Date"), mail.recipients)
            mails[header(mail, "Message-ID")].append(same)
        assert all(len(set(same)) == 1 for same in mails.values())
        again = sum(len(same) - 1 for same in mails.values())
        assert again <= self.lost_replies + self.firm.kills

    @invariant()
    def nothing_leaves_more_often_than_it_may(self) -> None:
        for file in self.files + self.gone:
            assert self._sent(file) <= file.may, f"{file}: {self._sent(file)}"

    @invariant()
    def nothing_has_gone_wrong_inside(self) -> None:
        assert self.firm.said("state_failed") == []

    @invariant()
    def a_marker_implies_an_acceptance(self) -> None:
        accepted = {header(mail, "Message-ID") for mail in self.firm.mails()}
        for path, marker in self.firm.markers():
            assert marker["message_id"] in accepted, path

    def _all_is_well_in_the_end(self) -> None:
        firm = self.firm
        for _ in range(4):  # a doom may still be pending
            if firm.alive or firm.mortal(firm.start):
                firm.journal.commits_to_live = None
        self._scripts_end()
        for _ in range(6):
            firm.release()
            firm.look()
            firm.deliver()
        for file in self.files:
            assert file.must <= self._sent(file) <= file.may, f"{file}: {self._sent(file)}"
        states = {row.state for row in firm.rows()}
        assert states <= FINAL, firm.rows()
        self.every_mail_has_a_row_and_the_right_address()
        self.one_message_id_is_one_mail()
        self.a_marker_implies_an_acceptance()
        assert not [p for p in files_below(firm.base) if p.name.startswith(".bridged-")]

    def _scripts_end(self) -> None:
        for phase, _ in MOODS.values():
            self.relay._scripts[phase].clear()


class LifeWithHints(Life):
    """The same with inotify."""

    mode = "inotify"


class LifeByNames(LifeWithHints):
    """The same while of existing files only names and inodes are known, as after a first start."""

    def __init__(self) -> None:
        whole = Sweep.whole
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(Sweep, "whole", lambda s, f, p, now, full: whole(s, f, p, now, full and bool(s.packs)))
        super().__init__()
        self.firm.offset = 10.0  # else the directories are young, and read again

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self._patch.undo()


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning")
@pytest.mark.promise("polling", "hints", "names")
@pytest.mark.parametrize(
    ("machine", "examples"),
    [
        pytest.param(Life, 6, id="polling"),
        pytest.param(LifeWithHints, 3, id="hints"),
        pytest.param(LifeByNames, 3, id="names"),
        pytest.param(Life, 34, id="polling at length"),
        pytest.param(LifeWithHints, 17, id="hints at length"),
        pytest.param(LifeByNames, 12, id="names at length"),
    ],
)
def test_no_history_loses_a_document_sends_one_twice_or_to_somebody_else(machine: type[Life], examples: int) -> None:
    """Hypothesis invents the histories; one that fails is printed as a program."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
