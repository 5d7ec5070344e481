"""A real Postfix of our own on 127.0.0.1: an open one, or one that wants STARTTLS and a login by Cyrus SASL."""

from __future__ import annotations

import os
import pwd
import re
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support import packages
from tests.support.submission import Credentials, Identity

POSTFIX = packages.found("postfix")
SASLPASSWD = packages.found("saslpasswd2")
HOST = "relay.cabinet.example"


def require(*, sasl: bool = False) -> None:
    """Skip the test where no instance of Postfix can be started. `sasl`: nor one with logins."""
    if os.geteuid() != 0:
        pytest.skip("only root may start an instance of Postfix")
    packages.require("postfix")
    if sasl:
        packages.require("saslpasswd2", "/usr/lib/*/sasl2/libplain.so")


class Postfix:
    """An instance with configuration, queue and maildirs in one temporary directory.

    With `identity` it shows that certificate, and takes a mail only over TLS and after a sign-in.
    """

    def __init__(self, base: Path, identity: Identity | None = None) -> None:
        self.base = base
        self.mail = base / "mail"
        self.identity = identity
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for name in ("queue", "data", "mail", "etc", "etc/sasl"):
            (base / name).mkdir()
        base.chmod(0o755)
        self.user = pwd.getpwnam("postfix")
        os.chown(base / "data", self.user.pw_uid, -1)
        nobody = pwd.getpwnam("nobody")
        os.chown(self.mail, nobody.pw_uid, nobody.pw_gid)
        access = "mynetworks = 127.0.0.0/8\n" if identity is None else self._submission(identity)
        (base / "etc/main.cf").write_text(self._main(nobody.pw_uid, nobody.pw_gid) + access)
        (base / "etc/master.cf").write_text(self._master())

    def _main(self, uid: int, gid: int) -> str:
        return f"""
compatibility_level = 3.6
queue_directory = {self.base}/queue
data_directory = {self.base}/data
maillog_file = {self.base}/mail.log
maillog_file_prefixes = {self.base}
myhostname = {HOST}
mydestination =
inet_interfaces = 127.0.0.1
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

    def _submission(self, identity: Identity) -> str:
        (self.base / "etc/sasl/smtpd.conf").write_text(  # Debian's Postfix looks here, against its configuration
            "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN LOGIN\n"
            f"sasldb_path: {self.base}/etc/sasl/sasldb2\n"
        )
        return f"""
mynetworks =
smtpd_tls_security_level = may
smtpd_tls_auth_only = yes
smtpd_tls_chain_files = {identity.write(self.base / "etc")}
smtpd_tls_received_header = yes
smtpd_tls_loglevel = 1
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = cyrus
smtpd_sasl_path = smtpd
cyrus_sasl_config_path = {self.base}/etc/sasl
smtpd_sasl_local_domain = {HOST}
smtpd_sasl_security_options = noanonymous
smtpd_sasl_authenticated_header = yes
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_recipient_restrictions = permit_sasl_authenticated, reject
"""

    def _master(self) -> str:
        services = [f"127.0.0.1:{self.port} inet n - n - - smtpd", "postlog unix-dgram n - n - 1 postlogd"]
        services += ["pickup unix n - n 60 1 pickup", "cleanup unix n - n - 0 cleanup", "qmgr unix n - n 300 1 qmgr"]
        services += ["tlsmgr unix - - n 1000? 1 tlsmgr", "rewrite unix - - n - - trivial-rewrite"]
        services += [f"{name} unix - - n - 0 bounce" for name in ("bounce", "defer", "trace")]
        services += ["virtual unix - n n - - virtual", "error unix - - n - - error", "retry unix - - n - - error"]
        services += ["proxymap unix - - n - - proxymap", "anvil unix - - n - 1 anvil", "scache unix - - n - 1 scache"]
        return "\n".join(services) + "\n"

    def set_password(self, credentials: Credentials) -> None:
        """Let this user in from now on, by this password only."""
        assert SASLPASSWD is not None
        database = self.base / "etc/sasl/sasldb2"
        command = [SASLPASSWD, "-p", "-c", "-f", database, "-u", HOST, credentials.user]
        subprocess.run(command, input=credentials.password.encode(), timeout=30, check=True)
        os.chown(database, self.user.pw_uid, self.user.pw_gid)
        database.chmod(0o600)

    def control(self, command: str) -> None:
        """`postfix start` and `postfix stop`, of this instance only."""
        assert POSTFIX is not None
        done = subprocess.run(
            [POSTFIX, "-c", self.base / "etc", command], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr + self.log()

    def received(self) -> list[bytes]:
        """The mails in the maildir."""
        new = self.mail / "martin/new"
        return [path.read_bytes() for path in new.iterdir()] if new.exists() else []

    def log(self) -> str:
        """The log of Postfix so far."""
        log = self.base / "mail.log"
        return log.read_text() if log.exists() else ""

    def failed_logins(self) -> int:
        """How many logins Postfix has refused."""
        return len(re.findall(r"SASL (PLAIN|LOGIN) authentication failed", self.log()))

    def sessions(self) -> int:
        """How many connections Postfix has seen."""
        return len(re.findall(r"smtpd\[\d+\]: connect from", self.log()))
