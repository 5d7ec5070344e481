"""A configuration, a socket, a document made to harm: refused with a sentence, or passed over, and all goes on."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.bridge import COMMAND, Bridge, until

MEMORY = 700 * 2**20  # of address space: the interpreter and its libraries take about 300 MB of that
WITHIN = 10.0  # a refusal takes well under one second; the machine may be busy

GOOD = (
    "smtp: {host: relay.example, sender: a@b.example}\n"
    "clients:\n  - {name: A, ged: /srv/a, collection_email: a@c.example, switched_folders: [B]}\n"
)


def bomb(width: int, depth: int) -> str:
    names = [f"n{i}" for i in range(depth)]
    lines = [f"n0: &n0 [{','.join(['x'] * width)}]"]
    lines += [f"{c}: &{c} [{','.join([f'*{p}'] * width)}]" for p, c in pairwise(names)]
    return "\n".join(lines) + "\n"


def repeated(item: str, count: int, separator: str = ", ") -> str:
    return separator.join([item] * count)


TEXTS: dict[str, Callable[[], str | bytes]] = {
    "an alias bomb": lambda: bomb(9, 12) + GOOD,
    "an alias bomb of mappings": lambda: (
        "a: &a {x: 1, y: 2}\n"
        + "".join(
            f"{c}: &{c} {{x: *{p}, y: *{p}}}\n"
            for p, c in zip("abcdefghijklmnopqrstuvw", "bcdefghijklmnopqrstuvwx", strict=True)
        )
        + GOOD
    ),
    "an alias bomb of duplicate keys": lambda: (
        f"x: &A {{{repeated('a: 1', 20_000)}}}\ny: [{repeated('*A', 20_000)}]\n" + GOOD
    ),
    "clients by alias": lambda: (
        f"c: &c {{name: A, ged: /a, collection_email: a@c.example}}\nclients: [{repeated('*c', 30_000)}]\n"
    ),
    "an alias of itself": lambda: "a: &a [*a]\n" + GOOD,
    "a merge key of itself": lambda: "a: &a {<<: *a}\n" + GOOD,
    "merge keys": lambda: "base: &base {host: relay.example}\nsmtp: {<<: *base, sender: a@b.example}\n" + GOOD[49:],
    "deeply nested lists": lambda: "[" * 500_000,
    "deeply nested mappings": lambda: "{a: " * 200_000,
    "deeply nested block": lambda: "".join(" " * i + "a:\n" for i in range(1000)),
    "10 MB": lambda: GOOD + "# " + "x" * 10_000_000,
    "a huge number": lambda: f"smtp: {{host: h, port: {'9' * 900_000}, sender: a@b.example}}\n",
    "a huge sexagesimal number": lambda: f"port: {repeated('59', 300_000, ':')}\n" + GOOD,
    "a huge scalar": lambda: f"smtp: {{host: {'h' * 900_000}!, sender: a@b.example}}\n",
    "a huge key": lambda: f"? {'k' * 900_000}\n: 1\n" + GOOD,
    "a python object": lambda: "smtp: !!python/object/apply:os.system ['touch /tmp/bridged-owned']\n" + GOOD[49:],
    "a python name": lambda: "a: !!python/name:os.system\n" + GOOD,
    "a NUL": lambda: GOOD.replace("relay.example", '"relay\0.example"'),
    "an escaped NUL": lambda: GOOD.replace("/srv/a", '"/srv/\\0a"'),
    "an escaped surrogate": lambda: GOOD.replace("/srv/a", '"/srv/\\ud800a"'),
    "binary garbage": lambda: bytes(range(256)) * 1000,
    "garbage that is text": lambda: "".join(chr(33 + i * 7 % 90) for i in range(5000)),
    "UTF-16": lambda: GOOD.encode("utf-16"),
    "nothing": lambda: "",
    "only comments": lambda: "# nothing\n" * 1000,
    "two documents": lambda: GOOD + "---\n" + GOOD,
    "duplicate keys": lambda: repeated("a: 1", 2000, "\n") + "\n" + GOOD,
    "a list": lambda: "- a\n- b\n",
    "escapes in names": lambda: GOOD.replace("name: A", 'name: "\\e[31mred\\a"'),
}


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def check(config: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """The answer of `bridged check`, and its processor seconds, because the clock would count other work too."""
    began = _processor()
    command = [COMMAND, "check", "--config", config]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=limited, check=False)
    return done, _processor() - began


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def assert_refused(done: subprocess.CompletedProcess[str], took: float) -> None:
    assert done.returncode == 78, (done.returncode, done.stderr[:2000])
    assert "Traceback" not in done.stderr
    first = done.stderr.splitlines()[0]
    assert first.rstrip().endswith((".", "?", ")")), first[:300]
    assert len(first) < 1000
    assert done.stderr.replace("\n", "").isprintable()
    assert len(done.stderr) < 2_000_000, "a person cannot read that"
    assert took < WITHIN, took


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_configuration_made_to_harm_is_refused_with_a_sentence(
    tmp_path: Path, text: Callable[[], str | bytes]
) -> None:
    """78, at once, in little memory, and nothing that stands in it is executed."""
    config, content = tmp_path / "bridged.yaml", text()
    config.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    assert_refused(*check(config))
    assert not os.path.lexists("/tmp/bridged-owned")


@pytest.mark.parametrize("kind", ["fifo", "directory", "zero", "socket", "dangling", "loop", "proc"])
def test_a_configuration_that_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    """Neither waited for nor read to no end."""
    config = tmp_path / "c"
    with ExitStack() as stack:
        if kind == "fifo":
            os.mkfifo(config)
        elif kind == "directory":
            config.mkdir()
        elif kind == "zero":
            config = Path("/dev/zero")
        elif kind == "socket":
            listening = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
            here = os.open(tmp_path, os.O_PATH)
            stack.callback(os.close, here)
            listening.bind(f"/proc/self/fd/{here}/c")
        elif kind == "dangling":
            config.symlink_to("nowhere")
        elif kind == "loop":
            config.symlink_to(config)
        else:
            config = Path("/proc/self/mem")
        assert_refused(*check(config))


@contextmanager
def running(bridge: Bridge) -> Iterator[Bridge]:
    """A daemon with 2 GB of address space: room for threads, none for a bomb."""
    bridge.start()
    assert bridge.process is not None
    resource.prlimit(bridge.process.pid, resource.RLIMIT_AS, (2**31, 2**31))
    yield bridge
    assert bridge.process.poll() is None
    assert bridge.count("state_failed") == 0


def whole_lines(bridge: Bridge) -> int:
    """How often a configuration was rejected; the last line may still be on its way into the log."""
    return bridge.log.read_text().count('"event": "config_rejected"')


@pytest.mark.parametrize("bridge", ["inotify"], indirect=True)
@pytest.mark.timeout(300)
def test_a_running_daemon_rejects_each_of_them_and_keeps_the_old_one_in_force(bridge: Bridge) -> None:
    """`config_rejected` and the next deposit is sent, again and again; no restart, no stall."""
    with running(bridge):
        kept, rejected = bridge.text(), 0
        names = [n for n in TEXTS if n != "nothing"]
        for number, name in enumerate(names):
            content = TEXTS[name]()
            raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
            (bridge.base / "new").write_bytes(raw)
            os.rename(bridge.base / "new", bridge.config)
            until(lambda r=rejected: whole_lines(bridge) > r, f"{name} is rejected", within=60)
            rejected = whole_lines(bridge)
            deposit = bridge.inbox / f"{number}.txt"
            deposit.write_text(name)
            until(lambda d=deposit: bridge.sent()[d.name], f"a deposit is sent after {name}")
        assert bridge.count("config_reloaded") == 0
        (bridge.base / "new").write_text(kept)
        os.rename(bridge.base / "new", bridge.config)
        bridge.wait_for("config_reloaded")
        bridge.expect(*[f"{number}.txt" for number in range(len(names))])
        assert max(len(line) for line in bridge.log.read_text().splitlines()) < 4096


@pytest.mark.parametrize("bridge", ["inotify"], indirect=True)
@pytest.mark.parametrize("kind", ["fifo", "directory", "dangling"])
def test_a_running_daemon_rejects_a_configuration_that_is_no_regular_file(bridge: Bridge, kind: str) -> None:
    """In the place of its configuration, then the configuration again."""
    with running(bridge):
        bridge.config.unlink()
        if kind == "fifo":
            os.mkfifo(bridge.config)
        elif kind == "directory":
            bridge.config.mkdir()
        else:
            bridge.config.symlink_to("nowhere")
        assert bridge.process is not None
        bridge.process.send_signal(signal.SIGHUP)
        bridge.wait_for("config_rejected")
        (bridge.inbox / "a.txt").write_text("a")
        until(lambda: bridge.sent()["a.txt"], "sent under the old configuration")
        if kind == "directory":
            bridge.config.rmdir()
        else:
            bridge.config.unlink()
        bridge.config.write_text(bridge.text())
        bridge.wait_for("config_reloaded")
        bridge.expect("a.txt")


# -- the control socket


@contextmanager
def control(bridge: Bridge) -> Iterator[socket.socket]:
    here = os.open(bridge.base / "state", os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(20)
            path = f"/proc/self/fd/{here}/control.sock"
            # A time-out makes connect(2) say EAGAIN, and not wait, where the queue of connections is full.
            until(lambda: channel.connect_ex(path) == 0, "it takes the connection")
            yield channel
    finally:
        os.close(here)


REQUESTS = {
    "garbage": bytes(range(256)) + b"\n",
    "nothing": b"",
    "an empty line": b"\n",
    "half a request": b'{"command": "sta',
    "deep": b"[" * 60_000 + b"\n",
    "a list": b"[1, 2]\n",
    "a huge number": b'{"command": ' + b"9" * 60_000 + b"}\n",
    "no command": b"{}\n",
    "a command that is a mapping": b'{"command": {"a": [1]}}\n',
    "escapes": b'{"command": "\\u001b[31m\\ud800"}\n',
}


@pytest.mark.promise
@pytest.mark.parametrize("bridge", ["inotify"], indirect=True)
def test_nothing_that_is_written_into_the_control_socket_stops_the_daemon(bridge: Bridge) -> None:
    """Garbage, 10 MB without a line end, half requests, 100 silent connections: the daemon answers and sends on."""
    with running(bridge):
        for request in REQUESTS.values():
            with control(bridge) as channel:
                channel.sendall(request)
                channel.shutdown(socket.SHUT_WR)
                answer = channel.recv(65536)
                assert not answer or json.loads(answer)["ok"] is False
        with control(bridge) as channel:
            try:
                for _ in range(160):
                    channel.sendall(b"x" * 65536)
                pytest.fail("it read 10 MB without a line end")
            except OSError:
                pass
        with ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(control(bridge)).sendall(b'{"comm')
            (bridge.inbox / "a.txt").write_text("a")
            until(lambda: bridge.sent()["a.txt"], "sent meanwhile")
            assert bridge.run("status").returncode == 0
        bridge.expect("a.txt")
        assert bridge.process is not None
        open_files = Path(f"/proc/{bridge.process.pid}/fd")
        until(lambda: len(list(open_files.iterdir())) < 60, "the idle ones are let go of")


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
@pytest.mark.parametrize("bridge", ["inotify"], indirect=True)
def test_a_state_directory_that_others_can_write_is_refused_by_the_daemon(bridge: Bridge, mode: int) -> None:
    """They could put a journal of theirs there: 78, a sentence with its remedy, and nothing is written in it."""
    state = bridge.base / "state"
    state.mkdir()
    state.chmod(mode)
    bridge.config.write_text(bridge.text())
    done = bridge.run("run")
    assert done.returncode == 78
    assert "chmod 0700" in done.stderr
    assert not list(state.iterdir())


# -- documents


def padded(prefix: bytes, size: int) -> bytes:
    return prefix + b"[" * (size - len(prefix))


@pytest.mark.parametrize("bridge", ["inotify"], indirect=True)
def test_a_json_bomb_is_a_document_like_any_other(bridge: Bridge) -> None:
    """Deep, 10 MB, or almost a marker: no document waits for it, and all files but markers are sent."""
    almost = b'{"status": "validated", "document": "a", "client": "b", '
    documents = {
        "deep.json": b"[" * 60_000,
        "deep-mapping.json": b'{"a":' * 12_000,
        "large.json": b"[" + b"1," * 5_000_000 + b"1]",
        "almost-a-marker.json": almost + b'"x": 1}',
        "number.json": b'{"status": "validated", "size": ' + b"9" * 50_000 + b"}",
        "large-marker.json": padded(almost, 100_000),
    }
    with running(bridge):
        for name, content in documents.items():
            (bridge.inbox / name).write_bytes(content)
        bridge.expect(*documents)
        assert dict(bridge.arrived()).items() >= documents.items()


def marker(document: bytes, **changes: object) -> bytes:
    """A marker as any user with write access to the GED can write it."""
    from tests.support.bridge import sha256

    fields = {
        "status": "validated", "document": "a", "client": "Martin", "collection_email": "Martin@collecte.example",
        "sha256": sha256(document), "size": len(document), "message_id": "<x@y.example>",
        "deposited_at": "2026-11-24T08:12:03.120Z", "validated_at": "2026-11-24T08:12:03.120Z",
        "relay_reply": "250 ok", "attempts": 1, "bridged": "0.1.0",
    }  # fmt: skip
    return json.dumps(fields | changes).encode()


PLANTED = {
    "deep": lambda _: b"[" * 60_000,
    "a huge number": lambda _: b'{"attempts": ' + b"9" * 60_000 + b"}",
    "10 MB": lambda _: b"[" * 10_000_000,
    "not UTF-8": lambda _: b'{"status": "\xff"}',
    "NaN": lambda _: b'{"status": NaN}',
    "half a character for a Message-ID": lambda d: marker(d, message_id="<\ud800@y.example>"),
    "half a character for a reply": lambda d: marker(d, relay_reply="250 \udcff"),
    "more attempts than a journal can count": lambda d: marker(d, attempts=10**30),
    "a size beyond all": lambda d: marker(d, size=10**30),
}


@pytest.mark.parametrize("when", ["before the document", "before the start"])
@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("bridge", ["inotify"], indirect=True)
def test_a_planted_marker_stops_nobody(bridge: Bridge, planted: Callable[[bytes], bytes], when: str) -> None:
    """A user with write access to one GED must not stop the bridge for all. Others go on, at once and later."""
    content = b"its document"
    if when == "before the start":
        (bridge.inbox / "a.txt").write_bytes(content)
        (bridge.inbox / "old.txt").write_text("its neighbour, existing")
    (bridge.inbox / "a.txt.validated.json").write_bytes(planted(content))
    bridge.start()
    if when == "before the document":
        (bridge.inbox / "a.txt").write_bytes(content)
        until(lambda: bridge.sent()["a.txt"] or bridge.count("document_validated"), "sent, or taken for validated")
    (bridge.inbox / "b.txt").write_text("another")
    until(lambda: bridge.sent()["b.txt"], "others go on")
    bridge.settle()
    assert bridge.sent()["a.txt"] <= (when == "before the document")
    if when == "before the start":
        # Else the folder has no baseline, and all that it holds becomes a deposit: a mass mailing.
        assert "existing" in bridge.run("explain", bridge.inbox / "old.txt").stdout
    assert bridge.count("state_failed") == 0
