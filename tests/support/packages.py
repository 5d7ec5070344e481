"""The Debian packages of the programs that some tests drive. It needs no virtual environment: .ci/run asks it first."""

from __future__ import annotations

import glob
import os
import shutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

# Program, or the files that stand for it -> package.
PACKAGES = {
    "/usr/lib/*/sasl2/libplain.so": "libsasl2-modules",
    "/usr/lib/openssh/sftp-server": "openssh-sftp-server",
    "bindfs": "bindfs",
    "chattr": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "findmnt": "util-linux",
    "fsfreeze": "util-linux",
    "fusermount3": "fuse3",
    "inotifywait": "inotify-tools",
    "losetup": "mount",
    "mkfs.ext4": "e2fsprogs",
    "mount": "mount",
    "msmtp": "msmtp",
    "postfix": "postfix",
    "rsync": "rsync",
    "saslpasswd2": "sasl2-bin",
    "setpriv": "util-linux",
    "sshfs": "sshfs",
    "strace": "strace",
    "systemd-analyze": "systemd",
    "umount": "mount",
    "unshare": "util-linux",
    "unzip": "unzip",
}


def found(program: str) -> str | None:
    """The path of a program of the table, or None. The directories of the system's own programs count too."""
    if program.startswith("/"):
        return next(iter(glob.glob(program)), None)
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def missing(*programs: str) -> list[str]:
    """The packages of these programs, or of all in the table, that are not installed."""
    return sorted({PACKAGES[program] for program in programs or PACKAGES if not found(program)})


def advice(packages: list[str]) -> str:
    """The reason of a skipped test, and the line of `make test-all`."""
    return f"not installed: apt install {' '.join(packages)}"


def needs(*programs: str) -> pytest.MarkDecorator:
    """A decorator. The test is skipped where one of these programs is not installed."""
    import pytest

    packages = missing(*programs)
    return pytest.mark.skipif(bool(packages), reason=advice(packages))


def require(*programs: str) -> None:
    """Skip the test that runs where one of these programs is not installed."""
    import pytest

    if packages := missing(*programs):
        pytest.skip(advice(packages))


if __name__ == "__main__":
    absent = missing()
    if sys.argv[1:] == ["--names"]:
        sys.stdout.writelines(f"{package}\n" for package in absent)
    else:
        sys.stdout.write(f"Tests will be skipped, {advice(absent)}\n" if absent else "Every test has its programs.\n")
