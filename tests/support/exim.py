"""A real Exim of our own on 127.0.0.1, which wants STARTTLS and a login, and does as its ACL says.

Debian's Exim cannot be installed beside Debian's Postfix, so `.ci/run` unpacks it elsewhere and names the binary in
$BRIDGED_EXIM. It insists on a user Debian-exim: it gets an /etc/passwd of its own, in a mount namespace of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.support import packages
from tests.support.bridge import until
from tests.support.submission import Credentials, Identity

USER = "Debian-exim"
SPARE_UID = 64991  # for the time of a test, where the machine has no such user
LIMIT = 200 * 1024


def binary() -> str:
    """Debian's exim4. Skips the test where exim4 cannot be run."""
    found = os.environ.get("BRIDGED_EXIM") or shutil.which("exim4", path="/usr/sbin:/usr/bin")
    if found is None:
        pytest.skip("needs $BRIDGED_EXIM, which .ci/run sets, or: apt install exim4-daemon-light (removes postfix)")
    if os.geteuid() != 0:
        pytest.skip("needs root, to give Exim its user in a mount namespace")
    packages.require("unshare")
    return found


class Exim:
    """One running instance: configuration, spool, log and maildir are in one temporary directory.

    `gone@` is refused, `slow@` is deferred while `greylist(True)` holds, more than LIMIT bytes are refused.
    """

    def __init__(self, base: Path, identity: Identity, credentials: Credentials) -> None:
        self.base = base
        self._exim = binary()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        uid, gid = self._accounts()
        certificate = identity.write(base)
        for path in (base, certificate):
            os.chown(path, uid, gid)
        for name in ("spool", "log", "mail"):
            (base / name).mkdir()
            os.chown(base / name, uid, gid)
        config = base / "exim.conf"
        config.touch(mode=0o640)  # the password is in it
        os.chown(config, 0, gid)
        config.write_text(self._config(certificate, credentials))
        self._process: subprocess.Popen[bytes] | None = None

    def _accounts(self) -> tuple[int, int]:
        """This machine's users and groups, and Exim's among them."""
        for name, line in (
            ("passwd", f"{USER}:x:{SPARE_UID}:{SPARE_UID}::/nonexistent:/bin/false"),
            ("group", f"{USER}:x:{SPARE_UID}:"),
        ):
            own = Path("/etc", name).read_text()
            if not re.search(rf"^{USER}:", own, re.MULTILINE):
                own = f"{own.rstrip()}\n{line}\n"
            (self.base / name).write_text(own)
        fields = next(line for line in (self.base / "passwd").read_text().splitlines() if line.startswith(f"{USER}:"))
        return int(fields.split(":")[2]), int(fields.split(":")[3])

    def _config(self, certificate: Path, credentials: Credentials) -> str:
        return rf"""
primary_hostname = relay.cabinet.example
spool_directory = {self.base}/spool
log_file_path = {self.base}/log/%slog
pid_file_path = {self.base}/spool/exim.pid
log_selector = +smtp_connection +smtp_protocol_error +size_reject
local_interfaces = 127.0.0.1
daemon_smtp_ports = {self.port}
tls_advertise_hosts = *
tls_certificate = {certificate}
auth_advertise_hosts = ${{if def:tls_in_cipher {{*}}{{}}}}
message_size_limit = {LIMIT}
acl_smtp_rcpt = recipient
deliver_drop_privilege = true
smtp_accept_queue_per_connection = 0
keep_environment =
rfc1413_query_timeout = 0s

begin acl
recipient:
  deny !authenticated = *
       message = 550 5.7.1 relay not permitted
  deny local_parts = gone
       message = 550 5.1.1 <$local_part@$domain>: this collection address has been closed
  defer local_parts = slow
       condition = ${{if exists{{{self.base}/greylisting}}}}
       message = 451 4.7.1 greylisted, please try again later
  accept

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_advertise_condition = ${{if def:tls_in_cipher}}
  server_condition = ${{if and{{{{eq{{$auth2}}{{{credentials.user}}}}}{{eq{{$auth3}}{{{credentials.password}}}}}}}}}
  server_set_id = $auth2

begin routers
everybody:
  driver = accept
  transport = maildir

begin transports
maildir:
  driver = appendfile
  maildir_format
  directory = {self.base}/mail
  envelope_to_add
"""

    def start(self) -> None:
        """Listen, on 127.0.0.1 only."""
        mounts = [f"mount --bind {self.base}/{name} /etc/{name}" for name in ("passwd", "group")]
        run = f"exec {self._exim} -C {self.base}/exim.conf -bdf"
        with (self.base / "out").open("wb") as out:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-ec", "; ".join([*mounts, run])],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        until(lambda: "listening for SMTP" in self.log() or self._ended(), "Exim listens")
        assert not self._ended(), (self.base / "out").read_text() + self.log()

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """End it; its mounts end with it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)

    def greylist(self, wanted: bool) -> None:
        """Whether `slow@` is deferred."""
        if wanted:
            (self.base / "greylisting").touch()
        else:
            (self.base / "greylisting").unlink()

    def received(self) -> dict[str, list[bytes]]:
        """The mails in the maildir, by the address that Exim was given."""
        found: dict[str, list[bytes]] = {}
        new = self.base / "mail/new"
        for path in new.iterdir() if new.exists() else ():
            raw = path.read_bytes()
            (address,) = re.findall(rb"^Envelope-to: (.*)$", raw.partition(b"\n\n")[0], re.MULTILINE)
            found.setdefault(address.decode(), []).append(raw)
        return found

    def count(self) -> Counter[str]:
        """How many mails each address has."""
        return Counter({address: len(mails) for address, mails in self.received().items()})

    def log(self) -> str:
        """The log of Exim, refusals too."""
        return "".join(path.read_text() for path in sorted((self.base / "log").glob("*log")))
