"""A disk of one's own: an ext4 image on a loop device, that can be filled, cut from its power, or turned read-only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2  # EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH
TOOLS = ("mkfs.ext4", "e2fsck", "losetup", "mount", "umount")

needs_images = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/loop-control") or any(shutil.which(tool) is None for tool in TOOLS),
    reason="needs root, loop devices and e2fsprogs",
)


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{command}: {done.stderr.strip()}")
    return done.stdout.strip()


class Disk:
    """An image `file`, mounted at `at`, always on the same loop device."""

    def __init__(self, file: Path, at: Path, megabytes: int) -> None:
        self.file, self.at = file, at
        with file.open("wb") as image:
            image.truncate(megabytes << 20)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", file)
        at.mkdir(parents=True, exist_ok=True)
        self.loop = _run("losetup", "--find", "--show", file)

    def mount(self) -> None:
        """Put it in its place; a broken one is checked before, as at a boot."""
        subprocess.run(["e2fsck", "-p", self.loop], capture_output=True, check=False)
        _run("mount", "-o", "errors=remount-ro", self.loop, self.at)

    def umount(self) -> None:
        """Take it away; who uses it must have ended."""
        _run("umount", self.at)

    def cut(self) -> None:
        """The power fails: what was not synced is lost, and nothing works any more."""
        fd = os.open(self.at, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def break_down(self) -> None:
        """The kernel meets an error in the file system and turns it read-only."""
        Path(f"/sys/fs/ext4/{os.path.basename(self.loop)}/trigger_fs_error").write_text("a test\n")

    def fill(self, spare: int = 0) -> None:
        """Take all the room there is, but for `spare` bytes."""
        room = os.statvfs(self.at)
        with (self.at / "filling").open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, max(4096, room.f_bavail * room.f_frsize - spare - 65_536))
        with (self.at / "filling-2").open("wb", buffering=0) as file:
            try:
                while not spare:
                    file.write(bytes(4096))
                    os.fsync(file.fileno())
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Give the room back."""
        for name in ("filling", "filling-2"):
            (self.at / name).unlink(missing_ok=True)


@contextlib.contextmanager
def disk(file: Path, at: Path, megabytes: int = 32) -> Iterator[Disk]:
    """A mounted disk, taken apart at the end whatever has happened; who uses it must have ended by then."""
    made = Disk(file, at, megabytes)
    try:
        made.mount()
        yield made
    finally:
        with contextlib.suppress(OSError):
            made.umount()
        if os.path.ismount(at):
            _run("umount", "--lazy", at)
        _run("losetup", "-d", made.loop)
