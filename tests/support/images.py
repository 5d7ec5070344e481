"""A disk of one's own: an ext4 image on a loop device, that can be filled, cut from its power, or turned read-only."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import mounts, packages

SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2  # EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH


def needs_images(test: Callable[..., None]) -> Callable[..., None]:
    """Skip the test where this machine has no loop devices, no root or no e2fsprogs."""
    able = os.geteuid() == 0 and os.path.exists("/dev/loop-control")
    test = pytest.mark.skipif(not able, reason="needs root and loop devices")(test)
    return packages.needs("e2fsck", *mounts.LOOPS)(test)


class Disk:
    """A disk that belongs `at` one place, and always has the same loop device."""

    def __init__(self, image: mounts.Disk, at: Path) -> None:
        self.image, self.at = image, at
        at.mkdir(parents=True, exist_ok=True)

    def mount(self) -> None:
        """Put it in its place; a broken one is checked before, as at a boot."""
        subprocess.run(["e2fsck", "-p", self.image.device], capture_output=True, check=False)
        self.image.mounts.mount(self.at, "-o", "errors=remount-ro", self.image.device)

    def umount(self) -> None:
        """Take it away. Its users must have ended."""
        self.image.mounts.unmount(self.at)

    def cut(self) -> None:
        """The power fails. Bytes that were not synced are lost, and no call succeeds any more."""
        fd = os.open(self.at, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def break_down(self) -> None:
        """The kernel meets an error in the file system and turns it read-only."""
        Path(f"/sys/fs/ext4/{os.path.basename(self.image.device)}/trigger_fs_error").write_text("a test\n")

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


@contextmanager
def disk(directory: Path, at: Path) -> Iterator[Disk]:
    """A mounted disk whose image is in `directory`, taken apart at the end. Its users must have ended then."""
    with mounts.FuseMounts(directory) as all_of_it:
        made = Disk(all_of_it.disk(), at)
        made.mount()
        yield made
