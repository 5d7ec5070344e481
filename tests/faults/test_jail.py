"""Nothing outside the client's GED ever leaves, and nothing that is planted in it hangs the bridge."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.bridge import Bridge, until
from tests.support.jail import exchanging, watched
from tests.support.line import stays
from tests.support.packages import require
from tests.support.relay import Late, ScriptedRelay

one_mode = pytest.mark.parametrize("bridge", ["inotify"], indirect=True)
both_modes = pytest.mark.parametrize("bridge", ["inotify", "polling"], indirect=True)
SECRET = b"the secret of somebody else"
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="needs root to make devices and to become another user")


def bind(stack: ExitStack, directory: Path, name: str) -> None:
    """A socket at a path that may be longer than unix(7) takes."""
    here = os.open(directory, os.O_PATH)
    stack.callback(os.close, here)
    stack.enter_context(socket.socket(socket.AF_UNIX)).bind(f"/proc/self/fd/{here}/{name}")


def device(path: Path, minor: int) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, minor))


def reasons(bridge: Bridge) -> dict[str, str]:
    """Which document was ignored why; each once."""
    lines = bridge.lines("document_ignored")
    found = {line["document"]: line["reason"] for line in lines}
    assert len(found) == len(lines), lines
    return found


def leaked(bridge: Bridge) -> bool:
    return any(SECRET in content for _, content in bridge.arrived())


# -- links and special files


@pytest.mark.promise("inotify")
@both_modes
def test_links_fifos_sockets_and_devices_are_warned_of_once_and_never_opened(bridge: Bridge) -> None:
    """Under any name and to any target, also after a restart. A document beside them is sent."""
    secret = bridge.outside / "secret.pdf"
    secret.write_bytes(SECRET)
    (bridge.outside / "folder").mkdir()
    (bridge.outside / "folder" / "inner.txt").write_bytes(SECRET)
    bridge.start()
    inbox, expected = bridge.inbox, {}

    def link(name: str, target: str | Path) -> None:
        (inbox / name).symlink_to(target)
        expected[f"Achats/{name}"] = "symbolic link"

    link("absolute.pdf", secret)
    link("relative.pdf", "../../outside/secret.pdf")
    link("within.pdf", "regular.txt")
    link("directory", bridge.outside / "folder")
    link("relative directory", "../../outside/folder")
    link("dangling.pdf", "nowhere")
    link("loop.pdf", "loop.pdf")
    link("upwards", "..")
    link("proc.txt", "/proc/self/environ")
    with ExitStack() as stack:
        os.mkfifo(inbox / "fifo.pdf")
        bind(stack, inbox, "socket.pdf")
        expected |= {"Achats/fifo.pdf": "FIFO", "Achats/socket.pdf": "socket"}
        special = [inbox / "fifo.pdf"]
        if ROOT:
            device(inbox / "zero.pdf", 5)
            device(inbox / "full.pdf", 7)
            special += [inbox / "zero.pdf", inbox / "full.pdf"]
            expected |= {"Achats/zero.pdf": "device", "Achats/full.pdf": "device"}
        with watched(secret, bridge.outside / "folder", bridge.outside / "folder" / "inner.txt", *special) as watch:
            (inbox / "regular.txt").write_text("a document")
            bridge.expect("regular.txt")
            found = until(lambda: len(reasons(bridge)) >= len(expected) and reasons(bridge), "all are told of")
            assert {path: why.split(";")[0].removeprefix("it is a ") for path, why in found.items()} == expected
            bridge.stop(signal.SIGKILL)
            bridge.start()
            bridge.expect("regular.txt")
            assert reasons(bridge) == found
            assert not watch.opened()


@both_modes
@pytest.mark.parametrize("place", ["the folder", "its parent", "matched by a star", "the GED"])
@pytest.mark.parametrize("when", ["before the start", "later"])
def test_a_link_in_the_place_of_a_directory_leads_nowhere(bridge: Bridge, place: str, when: str) -> None:
    """The switched folder itself, a directory above it, one that `*` matches, or the GED: nothing behind it is read."""
    bridge.folders = "[Achats, Lien, 'Exercice */Achats', Haut/Achats]"
    (bridge.outside / "Achats").mkdir()
    secret = bridge.outside / "Achats" / "secret.txt"
    link, target = {
        "the folder": (bridge.ged / "Lien", bridge.outside / "Achats"),
        "its parent": (bridge.ged / "Haut", bridge.outside),
        "matched by a star": (bridge.ged / "Exercice 2026", bridge.outside),
        "the GED": (bridge.base / "second", bridge.outside),
    }[place]
    if place == "the GED":
        bridge.more_clients = (
            f"  - {{name: Durand, ged: {link}, collection_email: durand@collecte.example,"
            " switched_folders: [Achats]}\n"
        )
    if when == "before the start":
        link.symlink_to(target)
    bridge.start()
    if when == "later":
        link.symlink_to(target)
    with watched(bridge.outside / "Achats") as watch:
        secret.write_bytes(SECRET)
        (bridge.outside / "Achats" / "more.txt").write_bytes(SECRET)
        with watched(secret) as inner:
            (bridge.inbox / "a.txt").write_text("a")
            bridge.expect("a.txt")
            bridge.settle()
            assert not inner.opened()
        # Written to by this test, and opened by it alone.
        assert len(watch.opened()) <= 6
    assert not leaked(bridge)
    assert not list((bridge.outside / "Achats").glob("*.json"))


# -- races


@one_mode
@pytest.mark.timeout(300)
def test_documents_that_become_links_while_they_are_looked_at_leak_nothing(bridge: Bridge) -> None:
    """300 documents are swapped for links to a secret of the same size and time, until all have left."""
    secret = bridge.outside / "secret"
    secret.write_bytes(SECRET)
    os.utime(secret, ns=(10**18, 10**18))
    links = bridge.ged / "Brouillons"
    bridge.start()
    with watched(secret) as watch:
        for batch in range(30):
            pairs = []
            for number in range(10):
                name = f"{batch}-{number}.txt"
                document, link = bridge.inbox / name, links / name
                (bridge.outside / "new").write_bytes(f"document {name}".encode().ljust(len(SECRET)))
                os.utime(bridge.outside / "new", ns=(10**18, 10**18))
                os.rename(bridge.outside / "new", document)
                link.symlink_to(secret)
                pairs.append((document, link))
            with exchanging(pairs, seconds=1.2, burst=200):
                pass
        names = {f"{batch}-{number}.txt" for batch in range(30) for number in range(10)}
        until(lambda: set(bridge.sent()) >= names, "each has left", within=60)
        bridge.settle()
        assert not watch.opened()
    assert not leaked(bridge)
    for name, content in bridge.arrived():
        assert name.startswith("probe-") or content == f"document {name}".encode().ljust(len(SECRET))
    assert bridge.process is not None
    assert bridge.process.poll() is None


@one_mode
@pytest.mark.timeout(240)
def test_directories_that_become_links_while_they_are_looked_at_leak_nothing(bridge: Bridge) -> None:
    """300 documents in directories that are swapped for links to outside, where files of the same names are secret."""
    bridge.start()
    pairs, secrets, names = [], [], set()
    for number in range(30):
        outside, inside = bridge.outside / f"d{number}", bridge.inbox / f"d{number}"
        link = bridge.ged / "Brouillons" / f"d{number}"
        outside.mkdir()
        (bridge.outside / "new").mkdir()
        for inner in range(10):
            name = f"{number}-{inner}.txt"
            (outside / name).write_bytes(SECRET)
            (bridge.outside / "new" / name).write_bytes(f"document {name}".encode().ljust(len(SECRET)))
            for file in (outside / name, bridge.outside / "new" / name):
                os.utime(file, ns=(10**18, 10**18))
            secrets.append(outside / name)
            names.add(name)
        os.rename(bridge.outside / "new", inside)
        link.symlink_to(outside)
        pairs.append((inside, link))
    with watched(*secrets) as watch:
        with exchanging(pairs, seconds=15, burst=20, hold=0.02):
            pass
        until(lambda: set(bridge.sent()) >= names, "each has left", within=90)
        bridge.settle()
        assert not watch.opened()
    assert not leaked(bridge)
    assert not list(bridge.outside.rglob("*.json"))


# -- inside, by the contract


@both_modes
def test_a_hard_link_to_a_file_outside_is_a_deposit_and_the_pages_warn_of_it(bridge: Bridge) -> None:
    """The depositor may link any file that protected_hardlinks of the kernel lets be linked."""
    (bridge.outside / "theirs.txt").write_text("linked")
    bridge.start()
    os.link(bridge.outside / "theirs.txt", bridge.inbox / "linked.txt")
    bridge.expect("linked.txt")
    assert dict(bridge.arrived())["linked.txt"] == b"linked"
    root = Path(__file__).resolve().parents[2]
    pages = [root / "README.md", root / "SECURITY.md", *(root / "docs").glob("*.md")]
    assert any("protected_hardlinks" in page.read_text() for page in pages)


@one_mode
def test_another_clients_document_linked_or_copied_into_a_folder_is_a_deposit_there(bridge: Bridge) -> None:
    """Both clients get it, once each, at their own address."""
    theirs = bridge.base / "durand" / "Achats"
    theirs.mkdir(parents=True)
    bridge.more_clients = (
        f"  - {{name: Durand, ged: {theirs.parent}, collection_email: durand@collecte.example,"
        " switched_folders: [Achats]}\n"
    )
    bridge.start()
    (theirs / "a.txt").write_text("theirs")
    bridge.wait_for("document_validated")
    os.link(theirs / "a.txt", bridge.inbox / "linked.txt")
    shutil.copy2(theirs / "a.txt", bridge.inbox / "copied.txt")
    bridge.expect("a.txt", "linked.txt", "copied.txt")
    to = {mail.recipients for mail in bridge.relay.mails if b"linked" in mail.data or b"copied" in mail.data}
    assert to == {("Martin@collecte.example",)}


@one_mode
@pytest.mark.parametrize("folder", ["..", "../outside", "Achats/../../outside", "/srv", "Achats/.."])
def test_a_folder_that_leads_out_is_refused(bridge: Bridge, folder: str) -> None:
    """By the check and by the daemon, with 78 and a remedy."""
    bridge.folders = f"[{folder}]"
    bridge.config.write_text(bridge.text())
    for command in ("check", "run"):
        done = bridge.run(command)
        assert done.returncode == 78
        assert "below the GED" in done.stderr


# -- the marker's name


PLANTS = ["link", "dangling link", "directory", "fifo"]


def plant(kind: str, path: Path, outside: Path) -> None:
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "dangling link":
        path.symlink_to(outside.parent / "not-there")
    elif kind == "directory":
        path.mkdir()
        (path / "inner").touch()
    else:
        os.mkfifo(path)


@pytest.mark.promise("link-inotify")
@one_mode
@pytest.mark.parametrize("kind", PLANTS)
def test_an_entry_planted_at_the_markers_name_is_left_alone(bridge: Bridge, kind: str) -> None:
    """The first two names are taken: `.validated-3.json`, one line that says so, one mail, and no target written."""
    target = bridge.outside / "target"
    target.write_bytes(SECRET)
    names = [bridge.inbox / f"a.txt.validated{n}.json" for n in ("", "-2")]
    for name in names:
        plant(kind, name, target)
    bridge.start()
    with watched(target) as watch:
        (bridge.inbox / "a.txt").write_text("a")
        bridge.expect("a.txt")
        assert not watch.opened()
    assert json.loads((bridge.inbox / "a.txt.validated-3.json").read_text())["status"] == "validated"
    assert [line["level"] for line in bridge.lines("marker_failed")] == ["warning"]
    assert target.read_bytes() == SECRET
    assert not (bridge.outside / "not-there").exists()
    assert all(os.path.lexists(name) for name in names)


@one_mode
@pytest.mark.parametrize("kind", PLANTS)
def test_an_entry_planted_at_the_temporary_name_is_left_alone(bridge: Bridge, kind: str) -> None:
    """A reader of the Message-ID can foretell the name. No byte is written through it, and the marker is made."""
    from hashlib import sha256

    target = bridge.outside / "target"
    target.write_bytes(SECRET)
    bridge.relay.script("DOT", Late())
    bridge.start()
    (bridge.inbox / "a.txt").write_text("a")
    until(lambda: bridge.relay.stalled, "the relay has it")
    row = json.loads(bridge.run("documents", "--json").stdout.splitlines()[0])
    stem = ".bridged-" + sha256(row["message_id"].encode()).hexdigest()[:16]
    plant(kind, bridge.inbox / f"{stem}.tmp", target)
    with watched(target) as watch:
        bridge.relay.go_on()
        bridge.expect("a.txt")
        bridge.stop(signal.SIGKILL)
        bridge.start()  # a file left by a crash is removed now, and a planted link is not followed
        bridge.expect("a.txt")
        assert not watch.opened()
    assert (bridge.inbox / "a.txt.validated.json").is_file()
    assert target.read_bytes() == SECRET
    assert not (bridge.outside / "not-there").exists()
    assert bridge.count("state_failed") == 0


@one_mode
def test_a_directory_that_becomes_a_link_before_marking_gets_no_marker_outside(bridge: Bridge) -> None:
    """It has left, and its directory is a link to outside now: no file appears there, nothing is sent again."""
    folder, outside = bridge.inbox / "mars", bridge.outside / "mars"
    folder.mkdir()
    outside.mkdir()
    (outside / "a.txt").write_bytes(SECRET)
    bridge.relay.script("DOT", Late())
    bridge.start()
    (folder / "a.txt").write_text("a")
    until(lambda: bridge.relay.stalled, "the relay has it")
    os.rename(folder, bridge.outside / "before")
    folder.symlink_to(outside)
    bridge.relay.go_on()
    bridge.wait_for("document_sent")
    bridge.wait_for("marker_failed")
    (bridge.inbox / "later.txt").write_text("later")
    until(lambda: bridge.sent()["later.txt"], "others go on")
    assert [p.name for p in outside.iterdir()] == ["a.txt"]
    bridge.stop(signal.SIGKILL)
    bridge.start()
    (bridge.inbox / "last.txt").write_text("last")
    until(lambda: bridge.sent()["last.txt"], "others go on")
    assert bridge.sent()["a.txt"] == 1
    assert not leaked(bridge)
    assert [p.name for p in outside.iterdir()] == ["a.txt"]


# -- an ordinary user


USER, GROUP, OWNER = 64001, 64002, 64003


def interpreter_for(user: int) -> list[str]:
    """A Python that this user may execute and that finds bridged; this one, or the system's of the same version."""
    require("setpriv")
    here = Path(__file__).resolve().parents[2]
    packages = next(p for p in sys.path if p.endswith("site-packages"))
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, system):
        become = ["setpriv", f"--reuid={user}", f"--regid={GROUP}", f"--groups={GROUP}", "--inh-caps=-all"]
        command = [*become, "env", f"PYTHONPATH={here}:{packages}", python, "-m", "bridged"]
        tried = Path(python).exists() and subprocess.run([*command, "--version"], capture_output=True, check=False)
        if tried and tried.returncode == 0:
            return command
    pytest.skip("an ordinary user may execute neither this Python nor the system's of the same version")


class UserBridge(Bridge):
    """A bridge whose daemon is an ordinary user that is only in the group of the documents."""

    def prepare(self) -> None:
        self.command = interpreter_for(USER)
        for directory, _, _ in os.walk(self.ged):
            os.chown(directory, 0, GROUP)
            os.chmod(directory, 0o2770)
        (self.base / "state").mkdir(mode=0o700)
        os.chown(self.base / "state", USER, GROUP)

    def start(self) -> Bridge:
        self.config.write_text(self.text())
        ready = self.count("daemon_ready")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*self.command, "run", "--config", self.config], stderr=log)
        until(lambda: self.count("daemon_ready") > ready, "daemon_ready")
        return self

    def deposit(self, name: str, mode: int = 0o640, group: int = GROUP) -> Path:
        path = self.outside / "new"
        path.write_text(name)
        os.chown(path, OWNER, group)
        path.chmod(mode)
        os.rename(path, self.inbox / name)
        return self.inbox / name


@pytest.fixture
def user(bridge: Bridge, relay: ScriptedRelay) -> Iterator[UserBridge]:
    """Not below tmp_path, because only root enters that."""
    base = Path(tempfile.mkdtemp(prefix="bridged-user-", dir="/tmp"))
    base.chmod(0o755)
    one = UserBridge(base, relay, bridge.mode)
    try:
        one.prepare()
        yield one
    finally:
        if one.process is not None and one.process.poll() is None:
            one.stop()
        shutil.rmtree(base)


@pytest.mark.promise
@one_mode
@needs_root
def test_an_ordinary_user_with_group_access_sends_and_writes_markers_for_the_group(user: UserBridge) -> None:
    """The documents are another user's, 0640: each leaves, its marker has their group and mode."""
    user.start()
    status = Path(f"/proc/{user.process.pid}/status").read_text()  # type: ignore[union-attr]
    assert f"Uid:\t{USER}" in status
    assert "CapEff:\t0000000000000000" in status
    for name, mode in (("a.txt", 0o640), ("b.txt", 0o660), ("c.txt", 0o750)):
        user.deposit(name, mode)
    user.expect("a.txt", "b.txt", "c.txt")
    for name, mode in (("a.txt", 0o640), ("b.txt", 0o660), ("c.txt", 0o640)):
        found = (user.inbox / f"{name}.validated.json").stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (mode, GROUP), name


@pytest.mark.promise
@one_mode
@needs_root
def test_a_document_that_may_not_be_read_waits_with_one_warning_until_it_may(user: UserBridge) -> None:
    """The warning names the permission; others go on; after a chmod it is sent once."""
    user.start()
    closed = user.deposit("closed.txt", 0o600)
    user.deposit("open.txt")
    until(lambda: user.sent()["open.txt"], "others go on")
    warnings = user.wait_for("document_deferred")
    assert "permission" in warnings[0]["reason"]
    assert warnings[0]["level"] == "warning"
    user.deposit("later.txt")
    until(lambda: user.sent()["later.txt"], "others go on")
    assert user.count("document_deferred") == 1
    closed.chmod(0o640)
    user.expect("closed.txt", "open.txt", "later.txt")
    assert user.count("document_deferred") == 1


@one_mode
@needs_root
def test_a_queued_document_that_becomes_unreadable_waits_with_one_warning(user: UserBridge) -> None:
    """The same after it was queued: not one warning each time the sender looks."""
    user.relay.stop_listening()
    user.start()
    closed = user.deposit("closed.txt")
    user.wait_for("document_queued")
    closed.chmod(0o600)
    user.relay.listen_again()
    user.deposit("open.txt")
    until(lambda: user.sent()["open.txt"], "others go on")
    user.wait_for("document_deferred")
    stays(lambda: user.count("document_deferred"), 1, during=17)  # the sender looks every 15 s
    closed.chmod(0o640)
    until(lambda: user.sent()["closed.txt"], "sent when it may be read", within=30)
    user.expect("closed.txt", "open.txt")


@one_mode
@needs_root
@pytest.mark.parametrize("when", ["before the start", "later"])
def test_a_foreign_file_that_may_not_be_read_at_the_markers_name_stops_nothing(user: UserBridge, when: str) -> None:
    """It belongs to another user. The document leaves, and its marker gets the next name; the other documents too."""
    taken = user.inbox / "a.txt.validated.json"
    if when == "before the start":
        user.deposit(taken.name, 0o600)
        user.deposit("a.txt")
        user.start()
        user.deposit("b.txt")
        user.expect("b.txt")
    else:
        user.start()
        user.deposit(taken.name, 0o600)
        user.deposit("a.txt")
        user.deposit("b.txt")
        user.expect("a.txt", "b.txt")
        assert (user.inbox / "a.txt.validated-2.json").is_file()
    assert taken.read_text() == taken.name
    assert user.count("state_failed") == 0


@one_mode
@needs_root
def test_a_directory_that_may_not_be_entered_stops_only_its_own_documents(user: UserBridge) -> None:
    """One warning names it, and other documents go on. When it may be entered, its documents leave."""
    user.start()
    closed = user.inbox / "closed"
    closed.mkdir(mode=0o700)
    os.chown(closed, OWNER, GROUP)
    (closed / "inner.txt").write_text("inner")
    os.chmod(closed / "inner.txt", 0o644)
    user.wait_for("folder_unreachable")
    user.deposit("open.txt")
    user.expect("open.txt")
    closed.chmod(0o2770)
    user.expect("open.txt", "inner.txt")
    assert user.count("folder_unreachable") == 1
    assert user.count("state_failed") == 0


@one_mode
@needs_root
def test_a_folder_that_may_not_be_written_sends_and_says_that_its_marker_is_missing(user: UserBridge) -> None:
    """`marker_failed` names path and reason; the mail is not repeated; when it may be written the marker comes."""
    user.inbox.chmod(0o2750)
    user.start()
    user.deposit("a.txt")
    until(lambda: user.sent()["a.txt"], "sent")
    failed = user.wait_for("marker_failed")
    assert failed[0]["path"].endswith("a.txt")
    assert "ermission denied" in failed[0]["reason"]
    user.inbox.chmod(0o2770)
    user.wait_for("document_validated")
    user.expect("a.txt")
    assert (user.inbox / "a.txt.validated.json").is_file()
