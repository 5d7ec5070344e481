"""A file system that hangs: a dead file server, a stopped FUSE process, a frozen disk. Other clients go on."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bridge import Bridge, until
from tests.support.mounts import FuseMounts, require, run
from tests.support.relay import Late, ScriptedRelay

pytestmark = pytest.mark.timeout(180)
PROMPT = 8.0  # seconds within which the documents of the other client leave


class Pair(Bridge):
    """Martin's GED is on the disk, Dupont's on a share that can hang."""

    def __init__(self, base: Path, relay: ScriptedRelay, point: Path) -> None:
        super().__init__(base, relay, "auto")
        self.share = point
        self.more_clients = (
            f"  - {{name: Dupont, ged: {point}, collection_email: Dupont@collecte.example,"
            f" switched_folders: [Achats]}}\n"
        )

    def others_go_on(self, name: str) -> None:
        """Martin's document leaves in time."""
        (self.inbox / name).write_text(name)
        until(lambda: self.sent()[name], f"{name} is sent while the share hangs", PROMPT)

    def told(self, event: str) -> list[str]:
        """The log lines about the GED of Dupont."""
        return [line["event"] for line in self.lines(event) if line.get("client") == "Dupont"]


class Fuse:
    """A bindfs mount whose server can be stopped, so that every call into it waits."""

    def __init__(self, mounts: FuseMounts, base: Path) -> None:
        self.behind, self.point = base / "behind", base / "share"
        (self.behind / "Achats").mkdir(parents=True)
        self.point.mkdir()
        self.server = mounts.fuse("bindfs", self.behind, self.point)

    def hang(self) -> None:
        """Nothing answers any more. The threads of bindfs end their present work first."""
        self.server.send_signal(signal.SIGSTOP)

    def answer(self) -> None:
        """As if nothing had been."""
        self.server.send_signal(signal.SIGCONT)


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Fuse]:
    with FuseMounts(tmp_path) as mounts:
        fuse = Fuse(mounts, tmp_path)
        try:
            yield fuse
        finally:
            fuse.answer()


@pytest.fixture
def pair(tmp_path: Path, relay: ScriptedRelay, fuse: Fuse) -> Iterator[Pair]:
    pair = Pair(tmp_path, relay, fuse.point)
    yield pair
    fuse.answer()
    if pair.process is not None and pair.process.poll() is None:
        pair.stop()


@pytest.mark.promise
def test_a_share_that_hangs_stops_no_other_client_and_is_told_once(pair: Pair, fuse: Fuse) -> None:
    """Other documents leave meanwhile, and `folder_unreachable` names the share. At its return its deposits leave."""
    pair.start()
    (fuse.behind / "Achats/before.txt").write_text("before")
    until(lambda: pair.sent()["before.txt"], "the share works")
    fuse.hang()
    pair.others_go_on("first.txt")
    line = next(iter(pair.wait_for("folder_unreachable")))
    assert (line["client"], line["reason"]) == ("Dupont", "its file system does not answer")
    (fuse.behind / "Achats/meanwhile.txt").write_text("meanwhile")
    pair.others_go_on("second.txt")
    status = pair.run("status", "--json").stdout
    assert '"reachable": false' in status
    fuse.answer()
    pair.wait_for("folder_recovered")
    pair.expect("before.txt", "first.txt", "meanwhile.txt", "second.txt")
    assert pair.told("folder_unreachable") == ["folder_unreachable"]


def test_queued_documents_on_a_share_that_hangs_wait_and_do_not_hold_up_the_queue(pair: Pair, fuse: Fuse) -> None:
    """More of them than there are senders, first in the queue: the others' documents leave past them."""
    pair.start()
    pair.relay.stop_listening()
    names = [f"{i}.txt" for i in range(6)]
    for name in names:
        (fuse.behind / "Achats" / name).write_text(name)
    pair.wait_for("document_queued", len(names))
    fuse.hang()
    pair.relay.listen_again()
    pair.run("reload")
    (pair.inbox / "other.txt").write_text("other")
    until(lambda: pair.sent()["other.txt"], "the other client's document", 30)
    assert not any(pair.sent()[name] for name in names)
    fuse.answer()
    pair.expect("other.txt", *names)
    assert pair.count("document_withdrawn") == 0
    assert pair.count("document_held") == 0


def test_a_share_that_hangs_while_a_document_is_read(pair: Pair, fuse: Fuse) -> None:
    """The mail is broken off without a dot, the sender goes on with others; the document is sent once, later."""
    content = b"0123456789abcdef" * (1 << 20)
    pair.relay.script("DATA", Late())
    pair.start()
    (fuse.behind / "Achats/large.txt").write_bytes(content)
    until(lambda: pair.relay.stalled, "the relay has been asked for DATA")
    run("sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
    fuse.hang()
    pair.relay.go_on()
    pair.others_go_on("first.txt")
    until(lambda: pair.told("folder_unreachable"), "it is told", 30)
    pair.others_go_on("second.txt")
    fuse.answer()
    pair.expect("first.txt", "second.txt", "large.txt")
    assert dict(pair.arrived())["large.txt"] == content


def test_a_share_that_hangs_at_the_start_keeps_the_daemon_from_nothing(pair: Pair, fuse: Fuse) -> None:
    """`daemon_ready` comes without it. A file there is existing when it answers at last; a later one is new."""
    (fuse.behind / "Achats/old.txt").write_text("old")
    fuse.hang()
    pair.start()
    pair.others_go_on("first.txt")
    fuse.answer()
    pair.wait_for("folder_recovered")
    until(lambda: '"existing": 1' in pair.run("status", "--json").stdout, "its first look is over")
    (fuse.behind / "Achats/new.txt").write_text("new")
    pair.expect("first.txt", "new.txt")


def test_reload_and_stop_do_not_wait_for_a_share_that_hangs(pair: Pair, fuse: Fuse) -> None:
    """A reload is in force for the others at once; SIGTERM ends the daemon within 10 s, with exit code 0."""
    pair.start()
    fuse.hang()
    until(lambda: pair.told("folder_unreachable"), "it is told", 30)
    (pair.ged / "Neu").mkdir()
    pair.folders = "[Achats, Notes, Neu]"
    pair.config.write_text(pair.text())
    began = time.monotonic()
    assert pair.run("reload").returncode == 0
    assert time.monotonic() - began < 10
    (pair.ged / "Neu/a.txt").write_text("a")
    until(lambda: pair.sent()["a.txt"], "the new folder is in force", PROMPT)
    began = time.monotonic()
    assert pair.stop() == 0
    assert time.monotonic() - began < 10
    assert pair.lines()[-1]["event"] == "daemon_stopped"


def test_a_client_whose_share_hangs_can_be_removed(pair: Pair, fuse: Fuse) -> None:
    """Its queued document is withdrawn, and nothing of it leaves when the share answers."""
    pair.start()
    pair.relay.stop_listening()
    (fuse.behind / "Achats/queued.txt").write_text("queued")
    pair.wait_for("document_queued")
    fuse.hang()
    until(lambda: pair.told("folder_unreachable"), "it is told", 30)
    pair.more_clients = ""
    pair.config.write_text(pair.text())
    assert pair.run("reload").returncode == 0
    pair.wait_for("document_withdrawn")
    pair.relay.listen_again()
    fuse.answer()
    (fuse.behind / "Achats/late.txt").write_text("late")
    pair.expect()


def test_a_frozen_disk_delays_markers_and_nothing_else(tmp_path: Path, relay: ScriptedRelay) -> None:
    """fsfreeze(8): the document can be read and is sent, its marker waits; one mail, and the marker after the thaw."""
    require("fsfreeze")
    with FuseMounts(tmp_path) as mounts:
        point = tmp_path / "share"
        point.mkdir()
        mounts.disk().mount(point)
        (point / "Achats").mkdir()
        pair = Pair(tmp_path, relay, point)
        relay.script("DOT", Late())
        pair.start()
        try:
            (point / "Achats/a.txt").write_text("a")
            until(lambda: relay.stalled, "the relay has it")
            subprocess.run(["fsfreeze", "--freeze", point], check=True)
            try:
                relay.go_on()
                pair.wait_for("document_sent")
                for name in ("first.txt", "second.txt", "third.txt"):
                    pair.others_go_on(name)
                until(lambda: pair.count("marker_failed"), "it is told", 40)
                assert not (point / "Achats/a.txt.validated.json").exists()
            finally:
                subprocess.run(["fsfreeze", "--unfreeze", point], check=True)
            pair.expect("a.txt", "first.txt", "second.txt", "third.txt")
            until((point / "Achats/a.txt.validated.json").exists, "the marker")
        finally:
            pair.stop()
