"""A file's name can be anything but a slash and a NUL, and must never be more than a name."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import time
import unicodedata
from collections import Counter
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.utils import unquote
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from bridged.mail import compose
from bridged.names import verdict
from tests.support.bridge import COMMAND, Bridge, until
from tests.support.hostile_names import comes_back, names

SEED = 20261124
TO = "Martin@collecte.example"
HEADERS = [
    "From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Auto-Submitted", "X-Bridged-Document",
    "Content-Type",
]  # fmt: skip
PART_HEADERS = ["Content-Type", "Content-Transfer-Encoding", "Content-Disposition"]
# Control characters, line separators, and characters that turn text around.
UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def raw_mail(name: bytes) -> bytes:
    mail = compose(
        id="7f3a", name=name, client="Boulangerie", sender="factures@cabinet.example", collection_email=TO,
        subject="{document}", message_id="<7f3a.bridged@cabinet.example>", date="Tue, 24 Nov 2026 08:12:03 +0000",
    )  # fmt: skip
    return b"".join(mail.chunks(io.BytesIO(b"content"), lambda _: None))


def unfolded(block: bytes) -> list[bytes]:
    """The logical lines of a header block, after each raw line was found to be harmless."""
    lines: list[bytes] = []
    for line in block.split(b"\r\n"):
        assert re.fullmatch(rb"[\x20-\x7e]{1,998}", line), line
        if line.startswith(b" "):
            assert lines
            lines[-1] += line
        else:
            assert re.match(rb"[A-Za-z-]+: ?", line), line
            lines.append(line)
    return lines


def assert_only_known_headers(raw: bytes) -> tuple[bytes, bytes]:
    """The known headers, as bytes. Returns the Subject and the header block of the attachment."""
    top, _, rest = raw.partition(b"\r\n\r\n")
    lines = unfolded(top)
    assert [line.partition(b":")[0].decode() for line in lines] == HEADERS
    assert lines[0] == b"From: factures@cabinet.example"
    assert lines[1] == b"To: " + TO.encode()
    parts = rest.split(b"--=_bridged_document")
    assert len(parts) == 4
    assert parts[3] == b"--\r\n"
    block, _, body = parts[2].removeprefix(b"\r\n").partition(b"\r\n\r\n")
    assert [line.partition(b":")[0].decode() for line in unfolded(block)] == PART_HEADERS
    assert re.fullmatch(rb"[A-Za-z0-9+/=\r\n]*", body)
    subject = lines[2].removeprefix(b"Subject: ")
    return subject, block


def places_of_the_name(block: bytes) -> tuple[str, str]:
    """The name as Content-Type and as Content-Disposition have it, read by hand and not by a lenient parser."""
    found = re.search(rb'\r\n name="([^"\\]*)"\r\n', block)
    assert found, block
    in_type = str(make_header(decode_header(found[1].decode())))
    quoted = re.search(rb'\r\n filename="([^"\\]*)"\Z', block)
    encoded = re.search(rb"\r\n filename\*=utf-8''([A-Za-z0-9._~%-]*)\Z", block)
    assert bool(quoted) != bool(encoded), block
    return in_type, quoted[1].decode() if quoted else unquote_to_bytes(encoded[1]).decode()  # type: ignore[index]


@pytest.mark.timeout(300)
def test_5000_names_are_one_mail_with_the_known_headers_each() -> None:
    """No byte, header or address more; every readable name comes back as it was, in both places."""
    readable = 0
    for name in names(5000, SEED):
        raw = raw_mail(name)
        subject, block = assert_only_known_headers(raw)
        parsed = message_from_bytes(raw, policy=policy.default)
        assert parsed.keys() == HEADERS, name
        assert not parsed.defects, name
        for header, address in (("From", "factures@cabinet.example"), ("To", TO)):
            assert [a.addr_spec for a in parsed[header].addresses] == [address]
        attachments = list(parsed.iter_attachments())
        assert len(attachments) == 1
        part = attachments[0]
        assert part.keys() == PART_HEADERS
        assert part.get_payload(decode=True) == b"content"
        in_type, in_disposition = places_of_the_name(block)
        assert in_type == in_disposition, name
        # The parser takes one pair of quotes and then white space off the ends.
        assert part.get_filename() == unquote(in_disposition).strip(), name
        title = str(make_header(decode_header(re.sub(rb"\s+(?==\?)", b" ", subject).decode())))
        for shown in (in_type, title):
            assert shown
            assert not UNPRINTABLE.search(shown), name
            assert shown == unicodedata.normalize("NFC", shown)
        wanted = comes_back(name)
        if wanted is not None:
            readable += 1
            assert in_disposition == wanted, name
            assert title.strip() == wanted.strip(), name
    assert readable > 500, "the names are too hostile to show that readable ones come back"


# -- the whole daemon


def creatable(directory: Path, count: int) -> dict[bytes, bytes]:
    """Names that this kernel and its file system take, and that are documents; each with content of its own."""
    where, made = os.fsencode(directory), {}
    for name in names(20 * count, SEED + 1):
        if verdict(name, extra=(), marker=".validated.json", hidden=False):
            continue
        content = b"document %d " % len(made) + b"x" * 100
        try:
            with open(where + b"/" + name, "wb") as file:
                file.write(content)
        except OSError:
            continue
        made[name] = content
        if len(made) == count:
            return made
    pytest.skip("this file system takes too few of the names")


def on_a_terminal(*arguments: str | os.PathLike[str], term: str) -> str:
    """The output of a command on a pseudo-terminal, with the line ends of the command."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [COMMAND, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=os.environ | {"TERM": term, "COLUMNS": "200"},
    ) as command:
        os.close(slave)
        data, deadline = b"", time.monotonic() + 60
        while time.monotonic() < deadline:
            if select.select([master], [], [], 0.2)[0]:
                try:
                    more = os.read(master, 65536)
                except OSError:  # Linux says EIO when the other side is closed
                    break
                data += more
            elif command.poll() is not None:
                break
    os.close(master)
    assert command.returncode == 0, data[-500:]
    return data.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("bridge", ["inotify", "polling"], indirect=True)
@pytest.mark.timeout(400)
def test_500_files_with_hostile_names_leave_once_each_and_rearrange_no_terminal(bridge: Bridge) -> None:
    """None lost, none twice, the log is JSON, and no list, table or sentence holds a control character."""
    bridge.start()
    files = creatable(bridge.inbox, 500)
    until(lambda: len(bridge.relay.mails) >= len(files), "all have left", within=120)
    until(lambda: bridge.count("document_validated") >= len(files), "all are validated", within=60)
    bridge.settle()
    arrived = Counter(content for name, content in bridge.arrived() if not name.startswith("probe-"))
    assert arrived == Counter(files.values())
    for mail in bridge.relay.mails:
        assert mail.recipients == (TO,)
        assert_only_known_headers(mail.data)

    markers = {}
    for entry in os.listdir(os.fsencode(bridge.inbox)):
        if entry.endswith(b".validated.json") and not entry.startswith(b"probe-"):
            marker = json.loads((bridge.inbox / os.fsdecode(entry)).read_bytes())
            markers[marker["sha256"]] = entry
    from tests.support.bridge import sha256

    for name, content in files.items():
        marker_name = markers[sha256(content)]
        if len(name) + len(b".validated.json") <= 255:
            assert marker_name == name + b".validated.json"
        else:
            assert len(marker_name) <= 255
    assert len(markers) == len(files)

    log = bridge.log.read_text(encoding="utf-8")
    assert not UNPRINTABLE.search(log)
    assert all(json.loads(line)["event"] for line in log.split("\n") if line)
    assert len(log.split("\n")) == len(log.splitlines()) + 1
    assert bridge.count("state_failed") == bridge.count("marker_failed") == 0
    for arguments in (["documents"], ["documents", "--json"], ["status"], ["check"]):
        shown = bridge.run(*arguments)
        assert shown.returncode == 0, shown.stderr
        assert not UNPRINTABLE.search(shown.stdout + shown.stderr), arguments
    assert len(bridge.run("documents", "--json").stdout.split("\n")) == 1 + len(bridge.relay.mails)


@pytest.mark.parametrize("bridge", ["inotify"], indirect=True)
@pytest.mark.timeout(200)
def test_a_name_shows_nothing_but_text_on_a_terminal_too(bridge: Bridge) -> None:
    """`documents`, `status` and `explain` on a pseudo-terminal: the only escapes are the table's own bold."""
    bridge.start()
    files = creatable(bridge.inbox, 30)
    (bridge.inbox / "\x1b[31mred\x1b]0;owned\x07\x9b2J\u202efdp.txt").write_text("red")
    until(lambda: bridge.count("document_validated") > len(files), "all have left", within=60)
    hostile = sorted(files, key=lambda n: (n.isascii() and n.isalnum(), n))[:8]
    commands: list[list[str | os.PathLike[str]]] = [["documents"], ["status"], ["documents", "--json"]]
    commands += [["explain", bridge.inbox / os.fsdecode(name)] for name in hostile]
    for command in commands:
        plain = on_a_terminal(command[0], "--config", bridge.config, *command[1:], term="dumb")
        assert not UNPRINTABLE.search(plain), (command, UNPRINTABLE.search(plain))
    fancy = on_a_terminal("documents", "--config", bridge.config, term="xterm-256color")
    assert set(re.findall("\x1b[^A-Za-z]*[A-Za-z]", fancy)) <= {"\x1b[1m", "\x1b[0m"}
    assert not UNPRINTABLE.search(re.sub("\x1b\\[[01]m", "", fancy))


@pytest.mark.parametrize("bridge", ["inotify"], indirect=True)
def test_directories_with_such_names_hide_nothing_and_forge_nothing(bridge: Bridge) -> None:
    """A parent directory's name stands in log lines, lists and the journal, too."""
    bridge.start()
    made = {}
    for name in names(2000, SEED + 2):
        if name.startswith((b".", b"~", b"#", b"@", b"$")) or len(made) == 60:
            continue
        directory = os.fsencode(bridge.inbox) + b"/" + name
        try:
            os.mkdir(directory)
        except OSError:
            continue
        made[b"in directory %d" % len(made)] = directory
    for content, directory in made.items():
        with open(directory + b"/document.txt", "wb") as file:
            file.write(content)
    from bridged.names import ignored_directory

    wanted = Counter(c for c, d in made.items() if not ignored_directory(os.path.basename(d)))
    assert len(wanted) > 40
    until(lambda: bridge.sent()["document.txt"] >= len(wanted), "all have left", within=60)
    bridge.settle()
    assert Counter(c for n, c in bridge.arrived() if not n.startswith("probe-")) == wanted
    assert not UNPRINTABLE.search(bridge.log.read_text() + bridge.run("documents", "--json").stdout)
