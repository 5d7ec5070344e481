"""Troubles of hints and folders: queues overflow, limits are reached, observers die, directories change hands.

Where a hint (or its substitute) must bring a document out in time, the sweep is set to ten minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bridge import COMMAND, Bridge, attachment, until
from tests.support.packages import require
from tests.support.relay import Late

LAUNCH = [sys.executable, str(Path(__file__).resolve().parents[1] / "support" / "launch.py")]
SWEEP = 2.0
MANY = 2000
QUEUE = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())

inotify = pytest.mark.parametrize("bridge", ["inotify"], indirect=True)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can write where the daemon may not read")


# -- a daemon that runs otherwise


def start(bridge: Bridge, *command: str, **environment: str) -> None:
    """As `Bridge.start`, by another command. It must exec, so that `bridge.process` is the daemon."""
    bridge.config.write_text(bridge.text())
    with bridge.log.open("ab") as log:
        argv = [*command, "run", "--config", str(bridge.config)]
        bridge.process = subprocess.Popen(argv, stderr=log, env=os.environ | environment)
    until(lambda: logged(bridge, "daemon_ready"), "daemon_ready")


def sweeping(bridge: Bridge, interval: str) -> None:
    """Another interval of sweeps."""
    usual = bridge.text
    bridge.text = lambda: usual().replace("sweep: 1s", f"sweep: {interval}")


def limited(limit: str, number: int) -> list[str]:
    """The installed command in a user namespace where the kernel grants only so much of inotify."""
    path = f"/proc/sys/user/{limit}"
    require("unshare")
    probe = ["unshare", "-Ur", "sh", "-c", f"echo {number} > {path} && cat {path}"]
    seen = subprocess.run(probe, capture_output=True, text=True, check=False)
    if seen.stdout.strip() != str(number):
        pytest.skip(f"no user namespace with a limit of its own: {seen.stderr.strip()}")
    return ["unshare", "-Ur", "sh", "-c", f'echo {number} > {path}; exec "$@"', "sh", COMMAND]


def unprivileged() -> list[str]:
    """The installed command without the right of root to read every file."""
    require("setpriv")
    rights = "-dac_override,-dac_read_search"
    return ["setpriv", "--bounding-set", rights, "--inh-caps", rights, COMMAND]


# -- looking at it


def logged(bridge: Bridge, event: str) -> int:
    """How often an event was logged, without parsing a log of a hundred thousand lines."""
    return bridge.log.read_bytes().count(f'"event": "{event}"'.encode())


def rows(bridge: Bridge, *options: str) -> list[dict[str, str]]:
    """The rows of `bridged documents`."""
    return [json.loads(line) for line in bridge.run("documents", "--json", *options).stdout.splitlines()]


def pid(bridge: Bridge) -> int:
    assert bridge.process is not None
    return bridge.process.pid


def watches(bridge: Bridge) -> int:
    """How many watches the kernel has granted the daemon."""
    count = 0
    for info in Path(f"/proc/{pid(bridge)}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a descriptor that was closed since
            count += info.read_text().count("inotify wd:")
    return count


def cpu(bridge: Bridge) -> float:
    """Seconds of processor time that the daemon has used."""
    fields = Path(f"/proc/{pid(bridge)}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_idle(bridge: Bridge) -> bool:
    """Over three seconds, less than a tenth of one processor: one that spins gets more, however busy the machine."""
    before = cpu(bridge)
    time.sleep(3)
    return cpu(bridge) - before < 0.3


def fill(directory: Path, count: int, prefix: str = "f") -> subprocess.Popen[bytes]:
    """Another process that creates small files, each with its own name as content."""
    code = (
        f"import os\nos.makedirs({str(directory)!r}, exist_ok=True)\nos.chdir({str(directory)!r})\n"
        f"for i in range({count}):\n n = {prefix!r} + '%06d.txt' % i\n with open(n, 'w') as f: f.write(n)"
    )
    return subprocess.Popen([sys.executable, "-c", code])


def make_fall_behind(bridge: Bridge) -> None:
    os.kill(pid(bridge), signal.SIGSTOP)
    stat = Path(f"/proc/{pid(bridge)}/stat")
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "stopped")


# -- 1, 2: more than the kernel's queue holds


@inotify
@pytest.mark.timeout(400)
def test_a_full_kernel_queue_is_said_and_every_file_leaves_once(bridge: Bridge) -> None:
    """The queue overflows while the daemon is stopped: `hints_lost`, and all files leave, once, whole.

    Ignored files fill the queue, because each hint of them costs less than a document.
    """
    sweeping(bridge, "10m")
    (bridge.inbox / "existing.txt").write_text("existing")
    bridge.start()
    make_fall_behind(bridge)
    assert fill(bridge.inbox, QUEUE // 2 + 500, prefix=".ignored").wait(60) == 0
    assert fill(bridge.inbox, MANY).wait(60) == 0
    os.kill(pid(bridge), signal.SIGCONT)
    until(lambda: logged(bridge, "hints_lost"), "hints_lost", 60)
    until(lambda: len(bridge.relay.mails) >= MANY, "all sent")
    until(lambda: logged(bridge, "document_validated") >= MANY, "all validated")
    assert bridge.stop() == 0
    arrived = Counter(attachment(mail.data) for mail in bridge.relay.mails)
    assert arrived == {(name, name.encode()): 1 for name in (f"f{i:06}.txt" for i in range(MANY))}
    found = rows(bridge)
    assert Counter(row["state"] for row in found) == {"validated": MANY}
    assert len({row["document"] for row in found}) == MANY


@inotify
@pytest.mark.timeout(300)
def test_a_burst_of_30_000_files_is_entered_whole_and_the_daemon_ends_cleanly(bridge: Bridge) -> None:
    """Four processes at once, the relay away: each path is one queued row. Their sending is shown by a share of them.

    Overflows are told, but not without end, and then all is still.
    """
    sweeping(bridge, "10m")
    bridge.relay.stop_listening()
    bridge.start()
    writers = [fill(bridge.inbox / str(k), 7500, prefix=str(k)) for k in range(4)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0, 0]
    until(lambda: logged(bridge, "document_queued") >= 30_000, "all queued", 200)
    found = rows(bridge)
    assert Counter(row["state"] for row in found) == {"queued": 30_000}
    assert len({row["document"] for row in found}) == 30_000
    until(lambda: is_idle(bridge), "idle", 30)
    assert logged(bridge, "hints_lost") < 10
    bridge.relay.listen_again()
    until(lambda: len(bridge.relay.mails) >= 1000, "a share is sent", 60)
    assert bridge.stop() == 0
    arrived = Counter(attachment(mail.data) for mail in bridge.relay.mails)
    assert all(count == 1 and name.encode() == content for (name, content), count in arrived.items())
    assert bridge.lines()[-1]["event"] == "daemon_stopped"


@inotify
@pytest.mark.timeout(300)
def test_folders_renamed_in_the_middle_of_an_overflow_are_followed(bridge: Bridge) -> None:
    """Their hints are lost, and the sweep takes more than two seconds from old to new name: still a rename.

    Their files are existing or validated, and are not sent for having another path. The pause is that of a
    busy machine. Without it, the test needs 60,000 deposits between the names.
    """
    sweeping(bridge, "10m")
    for k in range(6):
        (bridge.inbox / f"old-{k}").mkdir()
        (bridge.inbox / f"old-{k}" / "existing.txt").write_text(f"existing {k}")
        (bridge.inbox / f"bulk-{k}").mkdir()  # watched, else its files fill no queue
    bridge.start()
    for k in range(6):
        (bridge.inbox / f"old-{k}" / f"sent-{k}.txt").write_text(f"sent {k}")
    bridge.wait_for("document_validated", 6)
    bridge.relay.stop_listening()
    bridge.relay.cut_all()
    make_fall_behind(bridge)
    assert fill(bridge.inbox / "bulk-0", QUEUE // 2 + 500, prefix=".ignored").wait(60) == 0
    writers = [fill(bridge.inbox / f"bulk-{k}", 5_000, prefix=f"{k}-") for k in range(1, 5)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    for k in range(6):
        (bridge.inbox / f"old-{k}").rename(bridge.inbox / f"new-{k}")
    os.kill(pid(bridge), signal.SIGCONT)
    until(lambda: logged(bridge, "hints_lost"), "hints_lost", 60)
    time.sleep(0.5)
    make_fall_behind(bridge)
    time.sleep(3)
    os.kill(pid(bridge), signal.SIGCONT)
    until(lambda: logged(bridge, "document_queued") >= 6 + 20_000, "all queued", 200)
    until(lambda: is_idle(bridge), "idle", 30)
    states = Counter((row["state"], row["document"].split("/")[1][:3]) for row in rows(bridge))
    assert states == {("validated", "new"): 6, ("queued", "bul"): 20_000}


@inotify
def test_an_observer_that_is_only_behind_is_not_restarted(bridge: Bridge) -> None:
    """The machine slept for six seconds. The hints of that time still come, and no observer is replaced."""
    bridge.start()
    make_fall_behind(bridge)
    assert fill(bridge.inbox, 10).wait(60) == 0
    time.sleep(6)  # longer than a hint may be late
    os.kill(pid(bridge), signal.SIGCONT)
    bridge.expect(*(f"f{i:06}.txt" for i in range(10)))
    assert bridge.count("observer_restarted") == 0


# -- 3: the kernel grants no more


def leaves_within_a_sweep(bridge: Bridge, *paths: Path) -> None:
    """Deposit there. Each must be at the relay after one sweep, the quiet time and the work of two processors."""
    for path in paths:
        path.write_text(path.name)
    until(lambda: all(bridge.sent()[path.name] for path in paths), f"{paths} sent", SWEEP + 0.25 + 3)


@inotify
def test_a_watch_limit_reached_at_the_start_is_said_once_and_costs_one_sweep(bridge: Bridge) -> None:
    """Eight folders, four watches. A folder without a watch is swept, and existing files are not sent."""
    folders = [bridge.inbox / str(k) for k in range(8)]
    for folder in folders:
        folder.mkdir()
        (folder / "existing.txt").write_text("existing")
    sweeping(bridge, "2s")
    start(bridge, *limited("max_inotify_watches", 4))
    assert watches(bridge) == 4
    assert [line["level"] for line in bridge.lines("watch_limit_reached")] == ["error"]
    deposits = [folder / f"{folder.name}.txt" for folder in folders]
    leaves_within_a_sweep(bridge, *deposits)
    bridge.expect(*(deposit.name for deposit in deposits))
    assert bridge.count("watch_limit_reached") == 1
    assert bridge.count("observer_restarted") == 0


@inotify
def test_a_watch_limit_reached_by_a_new_folder_is_said_once_and_costs_one_sweep(bridge: Bridge) -> None:
    """All is watched at the start; then come more folders than watches, and deposits in them then and later."""
    sweeping(bridge, "2s")
    start(bridge, *limited("max_inotify_watches", 4))
    assert watches(bridge) < 4
    assert bridge.count("watch_limit_reached") == 0
    folders = [bridge.inbox / f"new-{k}" for k in range(4)]
    for folder in folders:
        folder.mkdir()
        (folder / f"with-{folder.name}.txt").write_text("came with it")
    bridge.wait_for("watch_limit_reached")
    assert watches(bridge) == 4
    leaves_within_a_sweep(bridge, *(folder / f"later-{folder.name}.txt" for folder in folders))
    bridge.expect(*(f"{when}-new-{k}.txt" for k in range(4) for when in ("with", "later")))
    assert bridge.count("watch_limit_reached") == 1


@pytest.mark.promise
@inotify
def test_without_any_inotify_instance_the_sweep_does_it_all(bridge: Bridge) -> None:
    """Said once, as an error; ready nevertheless; deposits leave within a sweep."""
    (bridge.inbox / "existing.txt").write_text("existing")
    sweeping(bridge, "2s")
    start(bridge, *limited("max_inotify_instances", 0))
    assert watches(bridge) == 0
    leaves_within_a_sweep(bridge, bridge.inbox / "a.txt")
    (bridge.inbox / "sub").mkdir()
    leaves_within_a_sweep(bridge, bridge.inbox / "sub" / "b.txt")
    bridge.expect("a.txt", "b.txt")
    assert [line["level"] for line in bridge.lines("watch_limit_reached")] == ["error"]


# -- 4: folders that may not be read


@pytest.fixture
def private(bridge: Bridge) -> Iterator[Path]:
    """A sub-folder with an existing document."""
    private = bridge.inbox / "private"
    private.mkdir()
    (private / "existing.txt").write_text("existing")
    yield private
    for directory in (bridge.ged, bridge.inbox, private):
        directory.chmod(0o755)


@needs_root
def test_a_folder_that_comes_unreadable_is_named_once_and_sent_when_it_can_be_read(bridge: Bridge) -> None:
    """It came while the daemon ran: all in it are deposits. Meanwhile the rest goes on."""
    sweeping(bridge, "1s")
    start(bridge, *unprivileged())
    coming = bridge.outside / "coming"
    coming.mkdir(mode=0o000)
    (coming / "inside.txt").write_text("inside")
    coming.rename(bridge.inbox / "coming")
    bridge.wait_for("folder_unreachable")
    (bridge.inbox / "beside.txt").write_text("beside")
    bridge.expect("beside.txt")
    assert [line["folder"] for line in bridge.lines("folder_unreachable")] == ["Achats/coming"]
    assert "ermission" in bridge.lines("folder_unreachable")[0]["reason"]
    (bridge.inbox / "coming").chmod(0o755)
    until(lambda: bridge.sent()["inside.txt"], "inside.txt is sent")
    (bridge.inbox / "coming" / "later.txt").write_text("later")
    bridge.expect("beside.txt", "inside.txt", "later.txt")
    assert bridge.count("folder_unreachable") == 1


@needs_root
def test_a_folder_that_was_readable_loses_nothing_while_it_is_not(bridge: Bridge, private: Path) -> None:
    """Nothing is concluded from it: queued stays queued, and when it is back unknown files are deposits."""
    start(bridge, *unprivileged())
    bridge.relay.stop_listening()
    (private / "queued.txt").write_text("queued")
    bridge.wait_for("document_queued")
    private.chmod(0o000)
    bridge.wait_for("folder_unreachable")
    bridge.relay.listen_again()
    (private / "meanwhile.txt").write_text("meanwhile")
    time.sleep(3)  # several sweeps
    assert [(row["document"], row["state"]) for row in rows(bridge)] == [("Achats/private/queued.txt", "queued")]
    private.chmod(0o755)
    until(lambda: len(bridge.sent()) == 2, "both are sent", 40)
    bridge.expect("queued.txt", "meanwhile.txt")
    assert bridge.count("folder_unreachable") == 1
    assert bridge.count("document_withdrawn") == 0


@needs_root
@pytest.mark.parametrize("unreadable", ["sub-folder", "switched folder", "GED"])
def test_a_file_in_a_folder_unreadable_at_the_start_is_never_sent(
    bridge: Bridge, private: Path, unreadable: str
) -> None:
    """The file was there when the daemon started, so it is existing. A file after the first look is sent.

    A file between the start and the first look cannot be told from it. About that there is no promise.
    """
    directory = {"sub-folder": private, "switched folder": bridge.inbox, "GED": bridge.ged}[unreadable]
    directory.chmod(0o000)
    start(bridge, *unprivileged())
    bridge.wait_for("folder_unreachable")
    if unreadable == "sub-folder":
        (bridge.inbox / "beside.txt").write_text("beside")
        until(lambda: bridge.sent()["beside.txt"], "the rest goes on")
    directory.chmod(0o755)
    time.sleep(6)  # unreachable GEDs are tried every 5 s at most; several sweeps of the others
    (private / "later.txt").write_text("later")
    bridge.expect("later.txt", *(["beside.txt"] if unreadable == "sub-folder" else []))
    assert bridge.count("folder_unreachable") == 1
    assert rows(bridge, "--state", "missed") == []


# -- 5: directories that change hands while files keep arriving

WRITER = """
import os, sys, time
folder, name, until = sys.argv[1], sys.argv[2], time.monotonic() + float(sys.argv[3])
i = 0
while time.monotonic() < until:
    one = "%s-%04d.txt" % (name, i)
    try:
        with open(os.path.join(folder, one), "x") as file:
            file.write(one)
    except FileNotFoundError:
        time.sleep(0.001)
        continue
    i += 1
    time.sleep(0.01)
"""


def arriving(folder: Path, name: str, seconds: float) -> subprocess.Popen[bytes]:
    """Another process that deposits a file of a new name every 10 ms wherever that path now leads to."""
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), name, str(seconds)])


def documents_in(directory: Path) -> set[str]:
    """The names of all documents in and below a directory."""
    return {path.name for path in directory.rglob("*.txt")}


def everything_left_once(bridge: Bridge, *writers: subprocess.Popen[bytes]) -> None:
    """A file in the folders now was sent once. A file moved out was sent once or withdrawn."""
    assert [writer.wait(60) for writer in writers] == [0] * len(writers)
    inside, outside = documents_in(bridge.inbox), documents_in(bridge.outside)
    until(lambda: inside <= bridge.sent().keys(), "all inside are sent", 60)
    bridge.settle()
    sent = Counter({name: n for name, n in bridge.sent().items() if not name.startswith("probe-")})
    assert {name: n for name, n in sent.items() if n != 1} == {}
    assert sent.keys() <= inside | outside
    assert all(content == name.encode() for name, content in bridge.arrived() if not name.startswith("probe-"))
    states = {Path(row["document"]).name: row["state"] for row in rows(bridge)}
    for name in outside - sent.keys():
        assert states.get(name, "withdrawn") == "withdrawn"
    assert {name for name in inside if states[name] != "validated"} == set()


def test_a_directory_that_is_moved_in_while_files_arrive_in_it(bridge: Bridge) -> None:
    """The files that it brought and later ones, in it and below it: each once."""
    bridge.start()
    coming = bridge.outside / "coming"
    (coming / "below").mkdir(parents=True)
    for folder in (coming, coming / "below"):
        for i in range(50):
            (folder / f"{folder.name}-{i}.txt").write_text(f"{folder.name}-{i}.txt")
    writers = [arriving(bridge.inbox / "coming", "top", 4), arriving(bridge.inbox / "coming" / "below", "deep", 4)]
    time.sleep(0.3)
    coming.rename(bridge.inbox / "coming")
    everything_left_once(bridge, *writers)
    assert len(documents_in(bridge.inbox)) > 150


def test_a_directory_that_is_renamed_again_and_again_while_files_arrive_in_it(bridge: Bridge) -> None:
    """And a new one made under its old name each time, in which files arrive at once."""
    bridge.start()
    current = bridge.inbox / "current"
    current.mkdir()
    writer = arriving(current, "n", 6)
    for k in range(8):
        time.sleep(0.6)
        current.rename(bridge.inbox / f"filed-{k}")
        current.mkdir()
    everything_left_once(bridge, writer)
    assert len(documents_in(bridge.inbox)) > 100


def test_a_directory_replaced_again_and_again_while_files_arrive_loses_none(bridge: Bridge) -> None:
    """Moved out, one of the same name made and removed and made: watchdog's own reader dies of it. Ours does not."""
    bridge.start()
    current, empty = bridge.inbox / "current", bridge.inbox / "empty"
    current.mkdir()
    writer = arriving(current, "n", 6)
    for k in range(8):
        empty.mkdir()
        time.sleep(0.3)
        empty.rename(bridge.outside / f"empty-{k}")
        empty.mkdir()
        time.sleep(0.3)
        empty.rmdir()
        current.rename(bridge.outside / f"out-{k}")
        for _ in range(5):
            current.mkdir()
            try:
                current.rmdir()
            except OSError:  # a file has already arrived in it
                break
        current.mkdir(exist_ok=True)
    everything_left_once(bridge, writer)
    assert bridge.count("observer_restarted") == 0
    assert documents_in(bridge.outside)
    assert documents_in(bridge.inbox)


@inotify
def test_a_directory_of_a_name_that_went_is_watched_anew(bridge: Bridge) -> None:
    """With no sweep to help: every deposit in the second and third of that name is told by a hint."""
    sweeping(bridge, "10m")
    bridge.start()
    current = bridge.inbox / "current"
    for k in range(5):
        current.mkdir()
        bridge.settle()
        (current / f"{k}.txt").write_text(str(k))
        until((current / f"{k}.txt.validated.json").exists, f"{k}.txt is sent")  # else rmtree may meet its marker
        if k % 2:
            shutil.rmtree(current)
        else:
            current.rename(bridge.outside / str(k))
    bridge.expect(*(f"{k}.txt" for k in range(5)))


@inotify
def test_a_document_deleted_before_its_late_reply_does_not_wait_for_a_sweep(bridge: Bridge) -> None:
    """It was sent, and there is nothing for a marker to stand beside: known as soon as the hint is understood."""
    sweeping(bridge, "10m")
    bridge.relay.script("DOT", Late())
    bridge.start()
    (bridge.inbox / "a.txt").write_text("a")
    until(lambda: bridge.relay.stalled, "the relay has it")
    (bridge.inbox / "a.txt").unlink()
    bridge.relay.go_on()
    bridge.wait_for("document_validated")
    bridge.expect("a.txt")


# -- 6: roots that change hands


@inotify
def test_a_switched_folder_that_is_deleted_and_made_again_is_a_new_one(bridge: Bridge) -> None:
    """Its old names are new files; a document that was queued in it is withdrawn, with a warning."""
    sweeping(bridge, "10m")
    (bridge.inbox / "existing.txt").write_text("existing")
    bridge.start()
    for k in range(3):
        shutil.rmtree(bridge.inbox)
        bridge.inbox.mkdir()
        for name in ("existing.txt", "again.txt", f"{k}.txt"):
            (bridge.inbox / name).write_text(f"{name} {k}")
        until(lambda k=k: bridge.sent()["again.txt"] == k + 1, "sent again")
        bridge.settle()
        bridge.wait_for("document_validated", 4 * (k + 1))  # else rmtree may meet the marker of a probe
    bridge.relay.stop_listening()
    bridge.relay.cut_all()
    (bridge.inbox / "queued.txt").write_text("queued")
    until(lambda: any(line["document"] == "Achats/queued.txt" for line in bridge.lines("document_queued")), "queued")
    shutil.rmtree(bridge.inbox)
    bridge.wait_for("document_withdrawn")
    bridge.relay.listen_again()
    bridge.inbox.mkdir()
    bridge.expect(*["existing.txt", "again.txt"] * 3, "0.txt", "1.txt", "2.txt")
    assert [line["document"] for line in bridge.lines("document_withdrawn")] == ["Achats/queued.txt"]


@pytest.mark.parametrize("bridge", ["polling"], indirect=True)
def test_a_switched_folder_that_is_deleted_and_made_again_is_swept_anew(bridge: Bridge) -> None:
    """The same without hints: the former file is gone, and the present one is a deposit."""
    (bridge.inbox / "existing.txt").write_text("existing")
    bridge.start()
    for k in range(3):
        shutil.rmtree(bridge.inbox)
        bridge.inbox.mkdir()
        (bridge.inbox / f"{k}.txt").write_text(str(k))
        until(lambda k=k: bridge.sent()[f"{k}.txt"], "sent")
        bridge.wait_for("document_validated", k + 1)  # else rmtree may meet a marker that is being written
    bridge.expect("0.txt", "1.txt", "2.txt")


def test_a_ged_that_is_moved_away_and_back_is_the_same_one(bridge: Bridge) -> None:
    """No document changes its state meanwhile. A file put into it while it was away is a deposit."""
    (bridge.inbox / "existing.txt").write_text("existing")
    bridge.start()
    bridge.relay.stop_listening()
    (bridge.inbox / "queued.txt").write_text("queued")
    bridge.wait_for("document_queued")
    away = bridge.ged.rename(bridge.base / "ged.away")
    bridge.wait_for("folder_unreachable")
    bridge.relay.listen_again()
    (away / "Achats" / "meanwhile.txt").write_text("meanwhile")
    time.sleep(3)  # several sweeps, and the relay is there
    assert [(row["document"], row["state"]) for row in rows(bridge)] == [("Achats/queued.txt", "queued")]
    away.rename(bridge.ged)
    bridge.wait_for("folder_recovered")
    until(lambda: len(bridge.sent()) == 2, "both are sent", 40)
    bridge.expect("queued.txt", "meanwhile.txt")
    assert bridge.count("folder_unreachable") == 1
    assert bridge.count("folder_rebaselined") == 0


def test_another_directory_in_the_place_of_the_ged_is_never_mailed_in_bulk(bridge: Bridge) -> None:
    """The root has another inode. Its files are existing, and a later file is a deposit."""
    (bridge.inbox / "existing.txt").write_text("existing")
    bridge.start()
    other = bridge.base / "other"
    (other / "Achats" / "sub").mkdir(parents=True)
    (other / "Notes").mkdir()
    for i in range(20):
        (other / "Achats" / f"{i}.txt").write_text(str(i))
        (other / "Achats" / "sub" / f"sub-{i}.txt").write_text(str(i))
    bridge.ged.rename(bridge.base / "ged.away")
    other.rename(bridge.ged)
    bridge.wait_for("folder_rebaselined")
    bridge.settle()
    (bridge.inbox / "sub" / "later.txt").write_text("later")
    bridge.expect("later.txt")
    assert rows(bridge, "--state", "missed") == []
    assert bridge.count("folder_rebaselined") == 1


def test_a_ged_that_is_deleted_and_made_again_takes_deposits_again(bridge: Bridge) -> None:
    """Whether the file system gives it the old inode or another: later deposits leave once, and hints work."""
    bridge.start()
    for k in range(2):
        shutil.rmtree(bridge.ged)
        bridge.wait_for("folder_unreachable", k + 1)
        bridge.inbox.mkdir(parents=True)
        bridge.wait_for("folder_recovered", k + 1)
        bridge.settle()
        (bridge.inbox / f"{k}.txt").write_text(str(k))
        until(lambda k=k: bridge.sent()[f"{k}.txt"], "sent")
        # Its marker, too: one that is written while the directory is being deleted keeps it from that.
        until(lambda: bridge.count("document_validated") == len(bridge.relay.mails), "every marker is written")
    bridge.expect("0.txt", "1.txt")


# -- 7: the observer fails


@inotify
@pytest.mark.parametrize("fault", ["reader_dies", "emitter_dies", "observer_dies"])
def test_an_observer_one_of_whose_threads_dies_is_replaced(bridge: Bridge, fault: str) -> None:
    """Without a sweep: a file from before, from the same instant and from after leaves once."""
    sweeping(bridge, "10m")
    (bridge.inbox / "existing.txt").write_text("existing")
    (bridge.inbox / "sub").mkdir()
    start(bridge, *LAUNCH, fault)
    (bridge.inbox / "before.txt").write_text("before")
    bridge.wait_for("document_validated")
    (bridge.inbox / ".fault").touch()
    (bridge.inbox / "during.txt").write_text("during")
    (bridge.inbox / "sub" / "during-too.txt").write_text("during")
    (line,) = bridge.wait_for("observer_restarted")
    assert "died" in line["reason"]
    bridge.settle()
    (bridge.inbox / "sub" / "after.txt").write_text("after")
    bridge.expect("before.txt", "during.txt", "during-too.txt", "after.txt")
    assert bridge.count("observer_restarted") == 1


@pytest.mark.promise
@inotify
def test_a_silent_observer_is_found_out_by_a_sweep_and_replaced(bridge: Bridge) -> None:
    """All threads live and no hint comes: the next sweep sends the deposit, and the new observer is quick again."""
    sweeping(bridge, "12s")
    start(bridge, *LAUNCH, "observer_falls_silent")
    (bridge.inbox / "before.txt").write_text("before")
    bridge.wait_for("document_validated")
    (bridge.inbox / ".fault").touch()
    for i in range(10):  # as a folder fills: some are older than a late hint when the sweep comes
        (bridge.inbox / f"silent-{i}.txt").write_text(str(i))
        time.sleep(0.8)
    (line,) = bridge.wait_for("observer_restarted")
    assert "no hint" in line["reason"]
    names = [f"silent-{i}.txt" for i in range(10)]
    until(lambda: bridge.sent().keys() >= set(names), "all sent")
    began = time.monotonic()
    (bridge.inbox / "after.txt").write_text("after")
    until(lambda: bridge.sent()["after.txt"], "sent by a hint", 5)
    assert time.monotonic() - began < 5
    bridge.expect("before.txt", *names, "after.txt")
    assert bridge.count("observer_restarted") == 1


# -- 8: systemd


class Supervisor:
    """The socket in $NOTIFY_SOCKET, and the environment of a unit with WatchdogSec=1.2."""

    def __init__(self) -> None:
        name = f"bridged-{uuid.uuid4()}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + name)
        self.environment = {"NOTIFY_SOCKET": "@" + name, "WATCHDOG_USEC": "1200000"}

    def fed(self, seconds: float) -> int:
        """How often the watchdog is fed in the next seconds."""
        heard = 0
        self.socket.setblocking(False)
        try:
            while self.socket.recv(4096):
                pass
        except BlockingIOError:
            pass
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                heard += b"WATCHDOG=1" in self.socket.recv(4096)
            except TimeoutError:
                break
        return heard


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    supervisor.socket.close()


@pytest.mark.promise
@inotify
def test_the_watchdog_is_fed_while_the_bridge_works_and_while_it_waits(bridge: Bridge, supervisor: Supervisor) -> None:
    """Idle, busy, or waiting for a relay that does not answer: well within the interval in each."""
    start(bridge, COMMAND, **supervisor.environment)
    assert supervisor.fed(3) >= 4
    writer = fill(bridge.inbox, 2000)
    assert supervisor.fed(3) >= 4
    assert writer.wait(60) == 0
    bridge.relay.stop_listening()
    bridge.relay.cut_all()
    assert supervisor.fed(3) >= 4


@inotify
def test_a_living_thread_that_makes_no_step_does_not_feed_the_watchdog(bridge: Bridge, supervisor: Supervisor) -> None:
    """Intake stands still: systemd is not told that all is well. When it moves again, it is."""
    start(bridge, *LAUNCH, "intake_stands_still", **supervisor.environment)
    assert supervisor.fed(3) >= 4
    (bridge.base / "stall").touch()
    time.sleep(4)  # launch.STALLED, and the feeds until then
    assert supervisor.fed(3) == 0
    assert bridge.process is not None
    assert bridge.process.poll() is None
    assert bridge.run("status").returncode == 0
    (bridge.base / "stall").unlink()
    until(lambda: supervisor.fed(1), "fed again")
    (bridge.inbox / "a.txt").write_text("a")
    bridge.expect("a.txt")


# -- 9: bursts in which watchdog itself livelocks


@pytest.mark.promise("siblings-inotify")
@inotify
@pytest.mark.timeout(240)
@pytest.mark.parametrize("shape", ["nested", "siblings", "chains"])
def test_a_burst_of_directories_does_not_livelock(bridge: Bridge, shape: str) -> None:
    """`mkdir -p` of 2,000 directories: a document in the last one leaves, then all is idle, and little was said."""
    sweeping(bridge, "10m")
    bridge.start()
    code = {
        "nested": "for i in range(2000): os.mkdir('d'); os.chdir('d')",
        "siblings": "for i in range(2000): os.mkdir(str(i))\nos.chdir('1999')",
        "chains": "for i in range(200): os.makedirs(f'{i}/a/b/c/d/e/f/g/h/i')\nos.chdir('199/a/b/c/d/e/f/g/h/i')",
    }[shape]
    make = f"import os\nos.chdir({str(bridge.inbox)!r})\n{code}\nopen('last.txt', 'w').write('last')"
    try:
        subprocess.run([sys.executable, "-c", make], check=True)
        until(lambda: bridge.sent()["last.txt"], "the last is sent", 90)
        until(lambda: is_idle(bridge), "idle", 60)
        bridge.expect("last.txt")
        assert bridge.log.stat().st_size < 50_000
        assert bridge.stop() == 0
    finally:
        subprocess.run(["rm", "-rf", bridge.inbox], check=True)  # too deep for Python's own


@inotify
def test_ten_thousand_directories_at_the_start_do_not_livelock(bridge: Bridge) -> None:
    """Ready, idle, and a deposit in any of them leaves by its hint."""
    for i in range(100):
        for j in range(100):
            (bridge.inbox / f"{i}" / f"{j}").mkdir(parents=True)
    sweeping(bridge, "10m")
    start(bridge, COMMAND)
    assert watches(bridge) > 10_000
    until(lambda: is_idle(bridge), "idle", 30)
    (bridge.inbox / "57" / "91" / "a.txt").write_text("a")
    bridge.expect("a.txt")
    assert bridge.log.stat().st_size < 50_000
