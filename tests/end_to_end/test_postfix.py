"""A real Postfix of our own, on a high loopback port, receives awkwardly named documents byte-identical."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bridge import Bridge, attachment, until

POSTFIX = shutil.which("postfix", path="/usr/sbin:/usr/bin")
NAMES = [
    "Facture été n°12.pdf".encode(),
    "Facture e\u0301te\u0301 NFD.pdf".encode(),
    b"two  spaces and 'quotes' \"double\".pdf",
    b"=?utf-8?q?=0D=0AX-Evil=3A_1?=.pdf",
    b"-leading-dash.pdf",
    b"latin-\xe9\xe8.pdf",
    b"line\rbreak\nin name.pdf",
    "emoji 🧾.pdf".encode(),
    "\u202efdp.exe.pdf".encode(),
    b"semi;colon,comma=equals.pdf",
    b"n" * 200 + b".pdf",
    b"no extension",
]


class Postfix:
    """An instance with configuration, queue and maildirs in one temporary directory."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.mail = base / "mail"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for name in ("queue", "data", "mail", "etc"):
            (base / name).mkdir()
        base.chmod(0o755)
        user = pwd.getpwnam("postfix")
        os.chown(base / "data", user.pw_uid, -1)
        nobody = pwd.getpwnam("nobody")
        os.chown(self.mail, nobody.pw_uid, nobody.pw_gid)
        (base / "etc/main.cf").write_text(self._main(nobody.pw_uid, nobody.pw_gid))
        (base / "etc/master.cf").write_text(self._master())

    def _main(self, uid: int, gid: int) -> str:
        return f"""
compatibility_level = 3.6
queue_directory = {self.base}/queue
data_directory = {self.base}/data
maillog_file = {self.base}/mail.log
maillog_file_prefixes = {self.base}
myhostname = relay.cabinet.example
mydestination =
inet_interfaces = 127.0.0.1
mynetworks = 127.0.0.0/8
default_transport = error:nothing leaves this machine
relay_transport = error:nothing leaves this machine
virtual_mailbox_domains = collecte.example
virtual_mailbox_base = {self.mail}
virtual_mailbox_maps = static:martin/
virtual_minimum_uid = 1
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
alias_maps =
alias_database =
local_recipient_maps =
"""

    def _master(self) -> str:
        services = [f"127.0.0.1:{self.port} inet n - n - - smtpd", "postlog unix-dgram n - n - 1 postlogd"]
        services += ["pickup unix n - n 60 1 pickup", "cleanup unix n - n - 0 cleanup", "qmgr unix n - n 300 1 qmgr"]
        services += ["tlsmgr unix - - n 1000? 1 tlsmgr", "rewrite unix - - n - - trivial-rewrite"]
        services += [f"{name} unix - - n - 0 bounce" for name in ("bounce", "defer", "trace")]
        services += ["virtual unix - n n - - virtual", "error unix - - n - - error", "retry unix - - n - - error"]
        services += ["proxymap unix - - n - - proxymap", "anvil unix - - n - 1 anvil", "scache unix - - n - 1 scache"]
        return "\n".join(services) + "\n"

    def control(self, command: str) -> None:
        """`postfix start` and `postfix stop`, of this instance only."""
        assert POSTFIX is not None
        done = subprocess.run(
            [POSTFIX, "-c", self.base / "etc", command], capture_output=True, text=True, timeout=60, check=False
        )
        log = self.base / "mail.log"
        assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")

    def received(self) -> list[bytes]:
        """The mails in the maildir."""
        new = self.mail / "martin/new"
        return [path.read_bytes() for path in new.iterdir()] if new.exists() else []


@pytest.fixture
def postfix() -> Iterator[Postfix]:
    if POSTFIX is None or os.geteuid() != 0:
        pytest.skip("needs Debian's postfix, and root to start an instance of it")
    base = Path(tempfile.mkdtemp(prefix="bridged-postfix-"))
    instance = Postfix(base)
    instance.control("start")
    try:
        yield instance
    finally:
        instance.control("stop")
        shutil.rmtree(base)


def test_a_real_postfix_receives_awkward_names_byte_identical(postfix: Postfix, tmp_path: Path) -> None:
    """Twelve documents, twelve mails, the same bytes, no header added by a name."""
    bridge = Bridge(tmp_path, postfix)  # type: ignore[arg-type] - only its port is used
    bridge.start()
    seeded = random.Random(7)
    contents = {name: b"%PDF-1.4\n" + seeded.randbytes(5000) + b"\n%%EOF\n" for name in NAMES}
    inbox = os.fsencode(bridge.inbox)
    for name, content in contents.items():
        (bridge.outside / "one").write_bytes(content)
        os.rename(os.fsencode(bridge.outside / "one"), inbox + b"/" + name)
    bridge.wait_for("document_validated", len(NAMES))
    until(lambda: len(postfix.received()) == len(NAMES), "all in the maildir")
    bridge.stop()
    mails = postfix.received()
    assert sorted(attachment(mail)[1] for mail in mails) == sorted(contents.values())
    assert all(b"X-Evil" not in mail.partition(b"\n\n")[0].replace(b"=?utf-8", b"") for mail in mails)
    assert {"Facture été n°12.pdf", "emoji 🧾.pdf"} <= {attachment(mail)[0] for mail in mails}
