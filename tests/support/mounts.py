"""Real shares for the fault tests: ext4 images on loop devices, bindfs, sshfs. All is undone at the end.

`FuseMounts` remembers its mounts, devices and processes, and takes them back in reverse. `Share` is a bridge
whose GED is a mount point; the bare directory below it holds the same folders, as a careless `mkdir -p` leaves them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support import packages
from tests.support.bridge import Bridge, until
from tests.support.relay import ScriptedRelay

SFTP_SERVER = "/usr/lib/openssh/sftp-server"
LOOPS = ("mkfs.ext4", "losetup", "mount", "umount")
# So seldom that a fault comes and goes between two looks.
SELDOM = "4s"


def require(*programs: str) -> None:
    """Skip the test where this machine cannot mount, or where one of these programs is not installed."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    packages.require(*programs)


def run(*command: str | os.PathLike[str]) -> str:
    """A command that must succeed; its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


class Disk:
    """An ext4 file system on a loop device of its own, mounted where and as often as one likes."""

    def __init__(self, mounts: FuseMounts, image: Path, options: tuple[str, ...]) -> None:
        self.mounts, self.image, self.options = mounts, image, options
        self.device = ""
        with image.open("wb") as file:
            file.truncate(32 << 20)
        self.format()
        self.attach()

    def format(self) -> None:
        """Make a new and empty file system with an id of its own."""
        run("mkfs.ext4", "-q", "-F", "-m", "0", *self.options, self.image)

    def attach(self) -> None:
        """Give it a loop device; it stays the same one until `detach`."""
        self.device = run("losetup", "--find", "--show", self.image)

    def detach(self) -> None:
        """Take the loop device back."""
        if self.device:
            run("losetup", "--detach", self.device)
            self.device = ""

    def mount(self, point: Path) -> None:
        """Mount it, like a share that comes back."""
        self.mounts.mount(point, "-t", "ext4", self.device)

    def remount(self, point: Path, how: str) -> None:
        """`ro` or `rw`"""
        run("mount", "-o", f"remount,{how}", point)

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[Path]:
        """Its root, mounted at another place for the time of a block, as other users see the share."""
        point = self.image.with_suffix(".elsewhere")
        point.mkdir(exist_ok=True)
        self.mount(point)
        try:
            yield point
        finally:
            self.mounts.unmount(point)

    def fill(self, **files: str) -> None:
        """Write files (slashes in the names are directories) while it is mounted elsewhere. Folders are made."""
        with self.elsewhere() as root:
            put(root, **files)


def put(root: Path, **files: str) -> None:
    """The folders of a GED, and files in them."""
    for folder in ("Achats", "Notes", "Brouillons"):
        (root / folder).mkdir(exist_ok=True)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


class FuseMounts:
    """All that a test has mounted. Leave it as a context, and nothing of it is left."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._undo = contextlib.ExitStack()
        self._points: list[Path] = []
        self._disks = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for point in reversed(self._points):
            subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
        self._undo.close()

    def disk(self, *options: str) -> Disk:
        """A new ext4 file system; `options` are those of mkfs.ext4."""
        require(*LOOPS)
        self._disks += 1
        disk = Disk(self, self.base / f"disk{self._disks}.img", options)
        self._undo.callback(disk.detach)
        return disk

    def mount(self, point: Path, *arguments: str | os.PathLike[str]) -> None:
        """`mount ARGUMENTS POINT`"""
        run("mount", *arguments, point)
        self._points.append(point)

    def unmount(self, point: Path, *options: str) -> None:
        """`umount`, for a few tries: bridged holds a descriptor for the time of a pass, never longer."""

        def done() -> bool:
            return subprocess.run(["umount", *options, point], capture_output=True, check=False).returncode == 0

        until(done, f"{point} can be unmounted although bridged looks at it", 5)
        self._points.remove(point)

    def fuse(self, kind: str, source: Path, point: Path) -> subprocess.Popen[bytes]:
        """`source` at `point`. inotify of `point` does not tell of writes in `source`.

        `kind` is bindfs, sshfs, or sshfs-plain for a server without extensions.
        """
        require(kind.removesuffix("-plain"), "fusermount3", "umount")
        if kind == "bindfs":
            command = ["bindfs", "-f", "-o", "nonempty", source, point]  # its own times are 1 s
        else:
            packages.require(SFTP_SERVER)
            script = self.base / "no-ssh"
            # A plain server knows none of OpenSSH's extensions: no links, no rename over a file.
            plain = " -P posix-rename,hardlink" if kind == "sshfs-plain" else ""
            script.write_text(f"#!/bin/sh\nexec {SFTP_SERVER}{plain}\n")
            script.chmod(0o755)
            # sshfs caches names and attributes for 20 s by itself: a firm would wait that much longer than `poll`.
            options = f"ssh_command={script},cache=no,attr_timeout=0,entry_timeout=0"
            options += ",disable_hardlink" if plain else ""
            command = ["sshfs", "-f", "-o", options, f"server:{source}", point]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._undo.callback(_end, process)
        until(lambda: point.is_mount() or process.poll() is not None, f"{kind} is mounted")
        assert process.poll() is None, f"{kind} failed"
        self._points.append(point)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait(10)


class Share(Bridge):
    """A bridge whose GED is, or is to be, a mount point."""

    def __init__(self, base: Path, relay: ScriptedRelay, mode: str, mounts: FuseMounts) -> None:
        super().__init__(base, relay, mode)
        self.mounts = mounts
        self.poll, self.sweep = "300ms", "1s"

    def text(self) -> str:
        """The configuration, at the pace that a test asks for."""
        return super().text().replace("sweep: 1s, poll: 300ms", f"sweep: {self.sweep}, poll: {self.poll}")

    def unmount(self, *options: str) -> None:
        """The share goes away."""
        self.mounts.unmount(self.ged, *options)

    def relay_goes(self) -> None:
        """The relay is down: no new session, and none of the open ones."""
        self.relay.stop_listening()
        self.relay.cut_all()

    def until_in_force(self) -> None:
        """Wait until another file system has been read. No line tells that instant."""

        def sent() -> int:
            (self.inbox / f"probe-{time.monotonic_ns()}.txt").write_text("is this a deposit yet?")
            time.sleep(0.3)
            return sum("probe" in name for name in self.sent())

        until(sent, "a deposit on the other file system leaves")

    def states(self) -> dict[str, str]:
        """The state of each document, by its name."""
        return dict(self.document_states())

    def wait_for_states(self, **states: str) -> None:
        """Wait until the named documents have these states."""
        until(lambda: states.items() <= self.states().items(), f"{states}, got {self.states()}")

    def events_about(self, name: str) -> list[str]:
        """The events of one document, in order."""
        return [line["event"] for line in self.lines() if str(line.get("document", "")).endswith(name)]


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything below a directory, hidden files too: name to content, None for a directory."""
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


def remains(what: Callable[[], Any], seconds: float) -> None:
    """It is the same now and for a while: where absence is to be shown."""
    before = what()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = what()
        assert now == before
        time.sleep(0.1)


def use_up_bytes(directory: Path) -> list[Path]:
    """Fill a file system to the last block. Returns the files to delete for room."""
    made: list[Path] = []
    in_vain = 0
    while in_vain < 5:  # blocks that delayed allocation had set aside are free again after a sync
        made.append(directory / f"filler{len(made)}")
        in_vain = 0 if _use_up_in(made[-1]) else in_vain + 1
        run("sync", "--file-system", directory)
    return made


def _use_up_in(filler: Path) -> int:
    block = b"x" * os.statvfs(filler.parent).f_bsize  # mkfs takes 1 kB for so small a disk: no more than a marker
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(block)
    return filler.stat().st_size


def use_up_inodes(directory: Path) -> list[Path]:
    """Create files until the file system has no inode left. Returns the files to delete for room."""
    made: list[Path] = []
    with pytest.raises(OSError, match="No space left"):
        while True:
            name = directory / f"filler{len(made)}"
            name.touch()
            made.append(name)
    assert os.statvfs(directory).f_favail == 0
    assert os.statvfs(directory).f_bavail > 0
    return made
