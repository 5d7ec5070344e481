"""The process: killed at every step and at random, stopped in mid-message, doubled, out of time and descriptors."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.bridge import Bridge, until
from tests.support.packages import require
from tests.support.process import (
    NAMED,
    descriptors,
    ended,
    journal,
    launch,
    leftovers,
    mails_of,
    marker_of,
    needs_strace,
    once_each,
    proc,
    ready_or_ended,
    rows,
    states,
    strace,
)
from tests.support.relay import Late, Say, Stall
from tests.support.sink import Sink, sinking

pytestmark = pytest.mark.timeout(300)
one_mode = pytest.mark.parametrize("bridge", ["inotify"], indirect=True)

# -- 1. kill -9 at every durable step

# From a plain trace of one document: intake commits twice (seen, quiet). The sender commits the claim, speaks to the
# relay, and commits the dot before it. The next commit of any thread takes the acceptance with it. The marking has
# the marker written, and commits that.
MOST = 60

# Several threads commit, so the process itself counts the commits. These are the least crashes of each walk, because
# an injection with fewer has not reached the whole way.
COMMITS = {"queued": 4, "deposit": 6}

# strace counts system calls by thread. The sender makes those of the conversation, and one call of `Calls` those of a
# marker. One thread makes those of the commits, on purpose; only those of the journal's log count.
# Method, way, system call, the faults of launch.py, the least number of crashes.
STEPS = [
    ("queued", "pwrite64", "one_thread_commits", 8),
    ("queued", "fdatasync", "one_thread_commits", 5),
    ("deposit", "pwrite64", "one_thread_commits", 10),
    ("deposit", "fdatasync", "one_thread_commits", 7),
    ("queued", "sendto", "", 4),
    ("queued", "sendto", "no_pipelining", 6),
    *(
        ("queued", syscall, faults, least)
        for faults in ("", NAMED)
        for syscall, least in (("fchmod", 1), ("fsync", 2), ("linkat", 1))
    ),
    ("queued", "unlinkat", NAMED, 1),
]


@one_mode
@needs_strace
@pytest.mark.parametrize(("way", "syscall", "fault", "least"), STEPS)
def test_a_kill_at_each_step_of_a_document_loses_nothing(
    bridge: Bridge, way: str, syscall: str, fault: str, least: int
) -> None:
    """Killed at the n-th such system call, for n = 1, 2, ...: validated after the restart, its marker whole.

    `queued` by `bridged send`, so that all of them are the sender's; of a `deposit` the first are intake's.
    """
    if fault == "no_pipelining":
        bridge.relay.extensions = ("8BITMIME",)
    faults = [fault] if fault and fault != "no_pipelining" else []
    # A frame of the WAL is two writes, its header and its page. Some frames stand for the others of their commit.
    stride = {"queued": 4, "deposit": 6}[way] if syscall == "pwrite64" else 1
    state = bridge.base / "state"
    paths = (
        ["-P", os.fspath(state), "-P", os.fspath(state / "journal.sqlite-wal")]
        if "one_thread_commits" in faults
        else []
    )

    def start(n: int) -> None:
        told = strace(bridge.base / "trace", **{syscall: f"signal=KILL:when={1 + (n - 1) * stride}"})
        launch(bridge, [*told, *paths], faults)

    _walk(bridge, way, start, least, f"at {syscall}")


@one_mode
@pytest.mark.parametrize("way", ["queued", "deposit"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_before_and_after_each_commit_of_a_document_loses_nothing(bridge: Bridge, way: str, when: str) -> None:
    """Of all threads: the n-th commit is the last, or is never made, for each n.

    One walk has the commits of a start too. The others begin with the document.
    """
    gate = None if (way, when) == ("queued", "before") else bridge.base / "gate"

    def start(n: int) -> None:
        told = {"KILL_COMMIT": str(n), "KILL_WHEN": when} | ({"KILL_FROM": str(gate)} if gate else {})
        launch(bridge, (), ["killed_at_a_commit"], env=os.environ | told)

    _walk(bridge, way, start, COMMITS[way], f"{when} a commit", gate)


def _walk(
    bridge: Bridge, way: str, start: Callable[[int], None], least: int, where: str, gate: Path | None = None
) -> None:
    """Start a daemon that dies at its n-th step, for n = 1, 2, ... until a document goes its whole way.

    `gate`: the file from which on it counts its steps. It is made when the daemon is ready.
    """
    # Without it, a deposit that was not journaled before the crash is missed.
    bridge.extra = "catch_up: true" if way == "deposit" else ""
    documents = [bridge.inbox / f"{way}-{n}.txt" for n in range(1, MOST + 1)]
    for document in documents if way == "queued" else ():
        document.write_text(document.name)
    (bridge.inbox / "existing.txt").write_text("existing")
    bridge.start()
    bridge.stop()
    numbered = enumerate(documents, 1)
    crash = functools.partial(_crash, bridge, way, gate)
    kills = next(n - 1 for n, d in numbered if not crash(d, functools.partial(start, n), f"{where}, {n}"))
    assert kills >= least, f"{kills} crashes {where}"
    left = [document.name for document in documents[: kills + 1]]
    bridge.start()
    bridge.settle()
    once_each(bridge, left, lambda _: 2)
    assert {n: s for n, s in states(bridge).items() if not n.startswith("probe-")} == dict.fromkeys(left, "validated")
    assert leftovers(bridge.ged) == []


def _crash(bridge: Bridge, way: str, gate: Path | None, document: Path, start: Callable[[], None], where: str) -> bool:
    """Let one document go its way with a kill, then restart and judge it. False if none came."""
    if way == "queued" and gate is None:
        assert bridge.command("send", document).exit_code == 0
    if gate is not None:
        gate.unlink(missing_ok=True)
    ready = bridge.count("daemon_ready")
    start()
    if way == "deposit" or gate is not None:
        ready_or_ended(bridge, ready)
    if gate is not None:
        gate.touch()
    if way == "deposit":
        document.write_text(document.name)
    elif gate is not None:
        bridge.command("send", document)
    until(lambda: ended(bridge) or _validated(bridge, document), f"the end of {document.name}, or of the daemon")
    killed = bridge.stop() != 0
    if killed:
        assert bridge.process is not None
        assert bridge.process.returncode == -signal.SIGKILL
        certain = _told(bridge, "document_sent", document)
        bridge.start()
        # By its state: killed in the very last commit, it may be validated already, and no line says so again.
        validated = lambda: states(bridge)[document.name] == "validated"  # noqa: E731
        until(validated, f"{document.name} validated after a kill {where}")
        count = len(mails_of(bridge, document.name))
        assert count == 1 or (count == 2 and not certain), f"{count} mails after a kill {where}"
        assert bridge.stop() == 0
    marker = marker_of(document)
    assert marker["message_id"].encode() in mails_of(bridge, document.name)[0]
    assert leftovers(bridge.ged) == [], f"after a kill {where}"
    return killed


def _told(bridge: Bridge, event: str, document: Path) -> bool:
    return any(line["document"] == f"Achats/{document.name}" for line in bridge.lines(event))


def _validated(bridge: Bridge, document: Path) -> bool:
    return _told(bridge, "document_validated", document)


@one_mode
@needs_strace
@pytest.mark.parametrize("extra", ["", "catch_up: true"])
def test_a_temporary_marker_of_a_crash_is_removed_at_the_next_start(bridge: Bridge, extra: str) -> None:
    """Killed with the temporary file written: gone once the next start is ready, the marker in its place.

    Where the file system knows files without a name, there is none: the next test but one.
    """
    bridge.extra = extra
    bridge.start()
    bridge.stop()
    ready = bridge.count("daemon_ready")
    launch(bridge, strace(bridge.base / "trace", linkat="signal=KILL:when=1"), [NAMED])
    assert ready_or_ended(bridge, ready)
    (bridge.inbox / "a.txt").write_text("a")
    until(lambda: ended(bridge), "the kill")
    assert leftovers(bridge.ged)
    bridge.start()
    bridge.expect("a.txt")
    marker_of(bridge.inbox / "a.txt")
    until(lambda: not leftovers(bridge.ged), "the temporary file is removed", 5)


@one_mode
@needs_strace
def test_a_marker_being_written_during_the_first_pass_is_not_taken_for_a_leftover(bridge: Bridge) -> None:
    """A document that was sent when the daemon was killed is validated and marked, though the disk is slow.

    The first pass removes temporary files of a crash. That of the marker being written must stay.
    """
    bridge.start()
    bridge.stop()
    ready = bridge.count("daemon_ready")
    launch(bridge, strace(bridge.base / "trace", fchmod="signal=KILL:when=1"), [NAMED])
    assert ready_or_ended(bridge, ready)
    (bridge.inbox / "a.txt").write_text("a")
    until(lambda: ended(bridge), "the kill")
    launch(bridge, strace(bridge.base / "trace", fsync="delay_enter=1500000"), [NAMED])
    until(lambda: leftovers(bridge.ged), "a temporary file")
    bridge.expect("a.txt")
    assert states(bridge)["a.txt"] == "validated"
    marker_of(bridge.inbox / "a.txt")
    until(lambda: not leftovers(bridge.ged), "the temporary files are gone")  # also that of the probe


@one_mode
@needs_strace
@pytest.mark.parametrize("syscall", ["fchmod", "fsync", "linkat"])
def test_a_crash_leaves_no_temporary_marker_where_files_need_no_name(bridge: Bridge, syscall: str) -> None:
    """Killed while the marker is written: nothing stands beside the document that was not there before."""
    with open(os.open(bridge.inbox, os.O_TMPFILE | os.O_WRONLY, 0o600), "wb"):
        pass  # or the file system knows no such files, and this test is none
    bridge.start()
    bridge.stop()
    ready = bridge.count("daemon_ready")
    launch(bridge, strace(bridge.base / "trace", **{syscall: "signal=KILL:when=1"}))
    assert ready_or_ended(bridge, ready)
    (bridge.inbox / "a.txt").write_text("a")
    until(lambda: ended(bridge), "the kill")
    assert os.listdir(bridge.inbox) == ["a.txt"]
    bridge.start()
    bridge.expect("a.txt")
    marker_of(bridge.inbox / "a.txt")


# -- 2. kill -9 at random

WRITER = """
import os, random, shutil, sys, time
folder, outside, count, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
r = random.Random(seed)
for i in range(count):
    name, content = f"{i:03}.txt", os.urandom(r.randrange(1, 4_000))
    way = r.choice(("cp", "rename", "slow"))
    path = os.path.join(folder, name)
    if way == "cp":
        open(os.path.join(outside, name), "wb").write(content)
        shutil.copy(os.path.join(outside, name), path)
    elif way == "rename":
        open(path + ".part", "wb").write(content)
        os.rename(path + ".part", path)
    else:
        with open(path, "wb", buffering=0) as file:
            for start in range(0, len(content), 1 + len(content) // 3):
                file.write(content[start:start + 1 + len(content) // 3])
                time.sleep(0.05)
    time.sleep(r.random() * 0.08)
"""


@one_mode
@pytest.mark.parametrize(("extra", "seed"), [("", 1), ("catch_up: true", 2)])
def test_random_kills_under_a_stream_of_documents(bridge: Bridge, extra: str, seed: int) -> None:
    """Twelve kills over 200 files: each validated or, without catch_up, missed; a repetition is identical."""
    bridge.extra = extra
    chance = random.Random(seed)
    bridge.start()
    arguments = [bridge.inbox, bridge.outside, "200", str(seed)]
    writer = subprocess.Popen([sys.executable, "-c", WRITER, *map(str, arguments)])
    try:
        for _ in range(12):
            time.sleep(chance.uniform(0.05, 1.2))
            bridge.stop(signal.SIGKILL)
            bridge.start()
        assert writer.wait(60) == 0
    finally:
        writer.kill()
        writer.wait()
    bridge.settle()
    files = {path.name: path.read_bytes() for path in bridge.inbox.glob("[0-9]*.txt")}
    assert len(files) == 200
    found = {name: state for name, state in states(bridge).items() if name in files}
    assert set(found) == set(files)
    assert set(found.values()) <= ({"validated"} if extra else {"validated", "missed"})
    sent = [name for name, state in found.items() if state == "validated"]
    assert len(sent) > 50
    once_each(bridge, sent, lambda _: 4)
    for name, content in bridge.arrived():
        assert name not in files or content == files[name]
    for name in sent:
        marker_of(bridge.inbox / name)
    assert leftovers(bridge.ged) == []


# -- 3. SIGTERM in mid-message


@one_mode
def test_a_stop_in_mid_upload_gives_the_message_up_and_sends_it_once_after_the_start(bridge: Bridge) -> None:
    """Part of 12 MB is on its way: exit 0 within ten seconds, nothing accepted, one mail later."""
    content = os.urandom(12_000_000)
    bridge.relay.script("UPLOAD", Stall(after=2_000_000))
    bridge.start()
    (bridge.inbox / "big.bin").write_bytes(content)
    until(lambda: bridge.relay.stalled, "the upload is going")
    began = time.monotonic()
    assert bridge.stop() == 0
    assert time.monotonic() - began < 10
    assert not bridge.relay.mails
    bridge.start()
    bridge.wait_for("document_validated")
    assert bridge.arrived() == [("big.bin", content)]
    assert states(bridge) == {"big.bin": "validated"}


@one_mode
@pytest.mark.parametrize("answered", [True, False])
def test_a_stop_after_the_dot_while_the_reply_is_late(bridge: Bridge, answered: bool) -> None:
    """Answered in time: one mail, validated. Not answered: exit 0 all the same, then again under its Message-ID."""
    bridge.relay.script("DOT", Late() if answered else Stall(keep=True))
    bridge.start()
    (bridge.inbox / "a.txt").write_text("a")
    until(lambda: bridge.relay.stalled, "the relay has read the dot")
    assert bridge.process is not None
    began = time.monotonic()
    bridge.process.send_signal(signal.SIGTERM)
    if answered:
        bridge.wait_for("daemon_stopping")
        bridge.relay.go_on()
    assert bridge.process.wait(12) == 0
    assert time.monotonic() - began < 10
    assert bridge.lines()[-1]["event"] == "daemon_stopped"
    bridge.start()
    bridge.wait_for("document_validated")
    bridge.settle()
    assert states(bridge)["a.txt"] == "validated"
    mails = mails_of(bridge, "a.txt")
    assert len(mails) == (1 if answered else 2)
    assert len(set(mails)) == 1


@pytest.mark.promise("killed-inotify")
@one_mode
@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_an_acceptance_is_entered_although_the_marking_waits_for_a_share(bridge: Bridge, end: str) -> None:
    """The marker of one document hangs when the relay accepts another: killed or stopped then, neither leaves again."""
    bridge.start()
    bridge.stop()
    ready = bridge.count("daemon_ready")
    process = launch(bridge, (), ["marking_hangs"])
    assert ready_or_ended(bridge, ready)
    (bridge.inbox / "a.txt").write_text("a")
    bridge.wait_for("document_sent")
    if end == "stopped":
        bridge.relay.script("DOT", Late())
    (bridge.inbox / "b.txt").write_text("b")
    if end == "stopped":
        until(lambda: bridge.relay.stalled, "the relay has read the dot")
        process.send_signal(signal.SIGTERM)
        bridge.wait_for("daemon_stopping")
        bridge.relay.go_on()
        assert process.wait(12) == 0
    else:
        entered = "SELECT count(*) FROM documents WHERE state = 'sent'"
        until(lambda: journal(bridge, entered) == [(2,)], "the second acceptance is entered", 5)
        bridge.stop(signal.SIGKILL)
    assert bridge.count("document_validated") == 0
    bridge.start()
    bridge.expect("a.txt", "b.txt")
    for name in ("a.txt", "b.txt"):
        assert states(bridge)[name] == "validated"
        marker_of(bridge.inbox / name)


# -- 4. two instances


@pytest.mark.promise
@one_mode
def test_a_second_instance_ends_with_75_and_does_not_disturb_the_first(bridge: Bridge) -> None:
    """A sentence that names the state directory; the first goes on sending and answering."""
    bridge.start()
    (bridge.inbox / "before.txt").write_text("before")
    bridge.wait_for("document_validated")
    second = bridge.run("run")
    assert second.returncode == 75
    assert f"{bridge.base}/state" in second.stderr
    assert "Traceback" not in second.stderr
    (bridge.inbox / "after.txt").write_text("after")
    bridge.expect("before.txt", "after.txt")
    told = json.loads(bridge.run("status", "--json").stdout.splitlines()[0])
    assert bridge.process is not None
    assert told["pid"] == bridge.process.pid
    assert bridge.stop() == 0


@one_mode
def test_of_several_instances_started_while_the_first_is_killed_one_takes_over(bridge: Bridge) -> None:
    """The lock goes with the process: one gets it, the others end with 75, and each document leaves once."""
    bridge.start()
    bridge.relay.stop_listening()
    names = [f"{i}.txt" for i in range(5)]
    for name in names:
        (bridge.inbox / name).write_text(name)
    bridge.wait_for("document_queued", 5)
    first = bridge.process
    assert first is not None
    heirs: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(4):
            heirs.append(launch(bridge))
            time.sleep(0.1)
        first.kill()
        first.wait(12)
        bridge.relay.listen_again()
        until(lambda: sum(heir.poll() is None for heir in heirs) <= 1, "one is left, or none")
        alive = [heir for heir in heirs if heir.poll() is None]
        assert all(heir.returncode == 75 for heir in heirs if heir not in alive)
        if alive:
            bridge.process = alive[0]
        else:
            bridge.start()
        bridge.expect(*names)
    finally:
        for process in (first, *heirs):
            if process.poll() is None and process is not bridge.process:
                process.kill()
                process.wait()


# -- 5. the clock jumps

HOUR, DAY, YEAR = 3600, 86400, 365 * 86400


def _with_clock(bridge: Bridge, offset: Path) -> None:
    ready = bridge.count("daemon_ready")
    launch(bridge, (), ["clock_is_off"], env=os.environ | {"CLOCK_OFFSET": str(offset)})
    assert ready_or_ended(bridge, ready)


@pytest.mark.promise("inotify--86400")
@pytest.mark.parametrize("jump", [HOUR, -HOUR, -DAY, YEAR, -YEAR])
def test_a_jump_of_the_clock_stalls_nothing_and_sends_nothing_twice(bridge: Bridge, tmp_path: Path, jump: int) -> None:
    """A document waits, one is deferred, one has just come: after the jump they leave as if nothing had happened."""
    offset = tmp_path / "offset"
    offset.write_text("0")
    bridge.relay.always("RCPT", Say("450 4.1.1 not now"))
    (bridge.inbox / "existing.txt").write_text("existing")
    _with_clock(bridge, offset)
    (bridge.inbox / "cut.pdf").write_bytes(b"%PDF-1.4\n")
    (bridge.inbox / "deferred.txt").write_text("deferred")
    bridge.wait_for("document_deferred", 2)
    (bridge.inbox / "quiet.txt").write_text("not quiet yet")
    until(lambda: any(row["document"] == "Achats/quiet.txt" for row in rows(bridge)), "it is seen")
    offset.write_text(str(jump))
    bridge.wait_for("document_deferred", bridge.count("document_deferred") + 1)
    bridge.relay.always("RCPT")
    (bridge.inbox / "cut.pdf").write_bytes(b"%PDF-1.4\n%%EOF\n")
    (bridge.inbox / "after.txt").write_text("after the jump")
    bridge.expect("cut.pdf", "deferred.txt", "quiet.txt", "after.txt")
    assert bridge.count("document_held") == 0
    assert bridge.count("document_withdrawn") == 0


@one_mode
def test_a_deferred_document_leaves_soon_after_a_jump_back_of_an_hour(bridge: Bridge, tmp_path: Path) -> None:
    """The due time lies an hour away by the new clock, which no schedule of one second has made."""
    offset = tmp_path / "offset"
    offset.write_text("0")
    bridge.relay.always("RCPT", Say("450 4.1.1 not now"))
    _with_clock(bridge, offset)
    (bridge.inbox / "a.txt").write_text("a")
    bridge.wait_for("document_deferred", 2)
    offset.write_text(str(-HOUR))
    bridge.relay.always("RCPT")
    bridge.expect("a.txt")


@one_mode
@pytest.mark.parametrize("jump", [-HOUR, -DAY])
def test_a_deleted_document_is_withdrawn_after_a_jump_back(bridge: Bridge, tmp_path: Path, jump: int) -> None:
    """Found gone just before the jump: the two seconds for a rename to explain it do not last a day."""
    offset = tmp_path / "offset"
    offset.write_text("0")
    bridge.relay.always("RCPT", Say("450 4.1.1 not now"))
    _with_clock(bridge, offset)
    (bridge.inbox / "a.txt").write_text("a")
    bridge.wait_for("document_deferred", 2)
    (bridge.inbox / "a.txt").unlink()
    time.sleep(0.5)  # within the two seconds, and enough for the hint or the poll
    offset.write_text(str(jump))
    bridge.wait_for("document_withdrawn")
    bridge.relay.always("RCPT")
    bridge.expect()


@one_mode
def test_a_marker_that_could_not_be_written_is_tried_again_after_a_jump_back(bridge: Bridge, tmp_path: Path) -> None:
    """At each sweep, and not a day later by the clock."""
    offset = tmp_path / "offset"
    offset.write_text("0")
    bridge.relay.script("DOT", Late())
    _with_clock(bridge, offset)
    (bridge.inbox / "a.txt").write_text("a")
    until(lambda: bridge.relay.stalled, "the mail is there")
    with immutable(bridge.inbox):
        bridge.relay.go_on()
        bridge.wait_for("marker_failed")
        offset.write_text(str(-DAY))
    until(lambda: bridge.count("document_validated"), "the marker is written within a few sweeps", 10)
    bridge.expect("a.txt")
    marker_of(bridge.inbox / "a.txt")


@contextlib.contextmanager
def immutable(directory: Path) -> Iterator[None]:
    """Nothing can be created in a directory for a while, not by root either."""
    require("chattr")
    done = subprocess.run(["chattr", "+i", directory], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"chattr +i does not work here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", directory], check=True)


# -- 6. out of descriptors


@contextlib.contextmanager
def few_descriptors(bridge: Bridge, spare: int) -> Iterator[None]:
    """The running daemon may open no more than `spare` further descriptors."""
    assert bridge.process is not None
    pid = bridge.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + spare, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def _too_many(bridge: Bridge) -> bool:
    return any("Too many open files" in str(line.get("reason")) for line in bridge.lines())


@pytest.mark.promise("inotify-1")
@pytest.mark.parametrize("spare", [0, 1, 2, 3])
def test_a_deposit_while_no_descriptor_is_free_leaves_once_when_some_are_free(bridge: Bridge, spare: int) -> None:
    """EMFILE while looking, sending or marking: said, nothing concluded, everything sent once afterwards."""
    (bridge.inbox / "existing.txt").write_text("existing")
    bridge.start()
    with few_descriptors(bridge, spare):
        for i in range(6):
            (bridge.inbox / f"{i}.txt").write_text(str(i))
        with contextlib.suppress(AssertionError):  # with a few to spare it may get through
            until(lambda: _too_many(bridge) or len(bridge.relay.mails) == 6, "EMFILE", 6)
        assert spare >= 2 or _too_many(bridge)
        time.sleep(2.5)  # so that the directory is no longer young when they are free again
    bridge.expect(*(f"{i}.txt" for i in range(6)))
    assert set(states(bridge).values()) == {"validated"}


@one_mode
def test_control_clients_that_take_every_descriptor_stop_nothing_for_good(bridge: Bridge) -> None:
    """Sixty clients that say nothing: EMFILE for the daemon; when they have gone, everything leaves and it answers."""
    bridge.start()
    stop = threading.Event()

    def pester() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as channel:
                channel.settimeout(2)
                channel.connect(os.fspath(bridge.base / "state/control.sock"))
                stop.wait(3)

    clients = [threading.Thread(target=pester) for _ in range(60)]
    with few_descriptors(bridge, 8):
        for client in clients:
            client.start()
        try:
            assert bridge.process is not None
            full = resource.prlimit(bridge.process.pid, resource.RLIMIT_NOFILE)[0]
            until(lambda: len(descriptors(bridge)) >= full - 1, "every descriptor is taken")
            for i in range(6):
                (bridge.inbox / f"{i}.txt").write_text(str(i))
            until(lambda: _too_many(bridge), "EMFILE")
        finally:
            stop.set()
            for client in clients:
                client.join()
    bridge.expect(*(f"{i}.txt" for i in range(6)))


def test_two_hundred_documents_leave_no_descriptor_behind(bridge: Bridge) -> None:
    """As many are open after a hundred as after another hundred, but for two readers of the journal (3 each)."""
    bridge.start()
    (bridge.inbox / "first.txt").write_text("first")
    bridge.wait_for("document_validated")
    for batch in range(2):  # the first opens sessions and a connection for each thread
        for i in range(100):
            (bridge.inbox / f"{batch}-{i}.txt").write_text(str(i))
        bridge.wait_for("document_validated", 101 + 100 * batch)
        bridge.run("status")
        if batch == 0:
            before = sorted(descriptors(bridge))
    until(lambda: len(descriptors(bridge)) <= len(before) + 6, f"no more than {before}, got {descriptors(bridge)}")
    assert sum(bridge.sent().values()) == 201


# -- the first look


@needs_strace
@pytest.mark.parametrize("error", ["EIO", "EMFILE"])
@pytest.mark.parametrize("where", ["ged", "inbox"])
def test_a_directory_unreadable_for_an_instant_at_the_first_start_is_not_mailed(
    bridge: Bridge, where: str, error: str
) -> None:
    """One listing fails during the baseline. A file from before the start is existing all the same."""
    for i in range(10):
        (bridge.inbox / f"existing-{i}.txt").write_text(str(i))
    directory = bridge.ged if where == "ged" else bridge.inbox
    trace = bridge.base / "trace"
    launch(bridge, [*strace(trace, getdents64=f"error={error}:when=1"), "-P", os.fspath(directory)])
    until(lambda: trace.exists() and "INJECTED" in trace.read_text(), "the failure")
    until(lambda: bridge.count("daemon_ready"), "daemon_ready")
    bridge.expect()
    (bridge.inbox / "later.txt").write_text("later")
    bridge.expect("later.txt")


@needs_strace
def test_a_directory_unreadable_for_an_instant_at_a_start_is_missed_not_mailed(bridge: Bridge) -> None:
    """The same after a stop: a file deposited meanwhile is missed, though one listing fails."""
    bridge.start()
    bridge.stop()
    for i in range(10):
        (bridge.inbox / f"meanwhile-{i}.txt").write_text(str(i))
    trace = bridge.base / "trace"
    launch(bridge, [*strace(trace, getdents64="error=EIO:when=1"), "-P", os.fspath(bridge.inbox)])
    bridge.wait_for("daemon_ready", 2)
    assert "INJECTED" in trace.read_text()
    bridge.expect()
    assert set(states(bridge).values()) - {"validated"} == {"missed"}
    assert [line["count"] for line in bridge.lines("document_missed")] == [10]


# -- 7. large files


@pytest.fixture
def sink() -> Iterator[Sink]:
    with sinking() as sink:
        yield sink


@one_mode
def test_two_gigabytes_for_a_relay_of_25_megabytes_are_held_unread(bridge: Bridge) -> None:
    """Held with a reason that names the size; neither memory nor reads grow with it; others go on."""
    bridge.relay.size = 25_000_000
    bridge.start()
    (bridge.inbox / "small.txt").write_text("small")
    bridge.wait_for("document_validated")
    before = proc(bridge, "io")["rchar"]
    with (bridge.inbox / "huge.bin").open("wb") as file:
        file.truncate(2_000_000_000)
    (held,) = bridge.wait_for("document_held")
    assert held["document"] == "Achats/huge.bin"
    assert "25000000" in held["reason"]
    assert proc(bridge, "io")["rchar"] - before < 10_000_000
    assert proc(bridge, "status")["VmHWM"] < 120_000
    (bridge.inbox / "other.txt").write_text("other")
    bridge.expect("small.txt", "other.txt")
    assert states(bridge)["huge.bin"] == "held"
    assert proc(bridge, "io")["rchar"] - before < 20_000_000


@one_mode
def test_three_hundred_megabytes_are_streamed_in_bounded_memory(bridge: Bridge, sink: Sink) -> None:
    """The peak of resident memory is that of small documents; the bytes arrive unchanged."""
    bridge.relay.port = sink.port
    bridge.start()
    (bridge.inbox / "small.txt").write_text("small")
    bridge.wait_for("document_validated")
    before = proc(bridge, "status")["VmHWM"]
    digest = hashlib.sha256()
    with (bridge.outside / "big.bin").open("wb") as file:
        for _ in range(30):
            block = os.urandom(10_000_000)
            digest.update(block)
            file.write(block)
    (bridge.outside / "big.bin").rename(bridge.inbox / "big.bin")
    until(lambda: bridge.count("document_validated") == 2, "it is validated", 100)
    assert digest.hexdigest() in sink.digests
    assert proc(bridge, "status")["VmHWM"] - before < 30_000
    assert json.loads((bridge.inbox / "big.bin.validated.json").read_text())["sha256"] == digest.hexdigest()


# -- 5. kill -9 in the first look


@pytest.mark.promise("inotify-2")
@pytest.mark.parametrize("number", range(1, 9))
@one_mode
def test_a_file_that_a_killed_first_look_had_not_met_is_existing_for_the_next(bridge: Bridge, number: int) -> None:
    """Otherwise `catch_up` would send it. The first look is killed after each of its commits; it has four at least."""
    bridge.extra = "catch_up: true"
    _existing(bridge)
    assert _first_look_killed(bridge, number) or number > 4
    bridge.stop()
    bridge.start()
    bridge.settle()
    assert {name for name in bridge.sent() if not name.startswith("probe-")} == set()


def _existing(bridge: Bridge) -> None:
    for directory in range(20):
        (bridge.inbox / f"{directory:02}").mkdir()
        for file in range(30):  # more than are entered in one commit
            (bridge.inbox / f"{directory:02}" / f"{file}.txt").write_text("existing")


def _first_look_killed(bridge: Bridge, number: int) -> bool:
    """Whether a first start was killed after that commit. The next start must take every file for existing."""
    env = os.environ | {"KILL_COMMIT": str(number), "KILL_WHEN": "after"}
    launch(bridge, (), ["killed_at_a_commit"], env=env)
    if ready_or_ended(bridge, 0):
        return False
    bridge.start()
    assert states(bridge) == {}, f"killed after commit {number}"
    return True


@one_mode
def test_an_excluded_file_is_existing_though_the_reload_that_lifts_it_is_killed(bridge: Bridge) -> None:
    bridge.extra = "catch_up: true"
    _existing(bridge)
    lifted, kills, reload = bridge.folders, 0, bridge.base / "reload"
    env = os.environ | {"KILL_WHEN": "before", "KILL_FROM": str(reload)}
    for number in range(1, MOST):
        shutil.rmtree(bridge.base / "state", ignore_errors=True)
        reload.unlink(missing_ok=True)
        bridge.folders = "[{path: Achats, exclude: ['*']}, Notes]"
        ready = bridge.count("daemon_ready")
        launch(bridge, (), ["killed_at_a_commit"], env=env | {"KILL_COMMIT": str(number)})
        assert ready_or_ended(bridge, ready)
        bridge.folders = lifted
        bridge.config.write_text(bridge.text())
        reload.touch()
        bridge.process.send_signal(signal.SIGHUP)
        if not _ends_within(bridge, 3.0):
            break
        kills += 1
        bridge.start()
        assert states(bridge) == {}, f"killed before commit {number}"
        bridge.stop()
    assert kills >= 3
    bridge.stop()
    bridge.start()
    bridge.settle()
    assert {name for name in bridge.sent() if not name.startswith("probe-")} == set()


def _ends_within(bridge: Bridge, seconds: float) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        bridge.process.wait(seconds)
    return ended(bridge)
