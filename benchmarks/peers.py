"""The same drop as `throughput`, against what people use today: a shell loop, Node-RED, a plain script."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import bench
from benchmarks.figures import Figure
from benchmarks.throughput import dropped

SIZE = 50_000
SCRIPTS = Path(__file__).with_name("peer_scripts")
PACKAGES = ("node-red@4.1.15", "node-red-node-email@5.2.5")

Peer = Callable[[Path, int, Path], contextlib.AbstractContextManager[None]]


def run(*, small: bool) -> Iterator[Figure]:
    """Each peer gets as many documents as it can do in some seconds: rates are compared."""
    _installed(install=not small)
    count = 20 if small else 5000
    ours = dropped(count, SIZE)
    missing = []
    peers: tuple[tuple[str, Peer, int, float], ...] = (
        ("inotifywait + msmtp", _shell_loop, 300, 10),
        ("Node-RED", _node_red, 300, 10),
        ("watchdog + send_message", _script, 1000, 2),
    )
    for name, peer, documents, mark in peers:
        try:
            theirs = _dropped(peer, 20 if small else documents)
        except bench.Missing as reason:
            missing.append(str(reason))
        else:
            yield Figure(f"{count:,} documents of 50 kB in bulk", "/s", ours, name, theirs, at_least=mark)
    if missing:
        raise bench.Missing("; ".join(missing))


LOST_AFTER = 10.0  # seconds without another marker


def _dropped(peer: Peer, count: int) -> float:
    """Documents a second, from the first deposit to the last marker; the sink must have counted as many mails."""
    with bench.workplace() as top, _counting_sink(top / "counted") as (port, mails):
        made = bench.documents(top / "outside", count, SIZE)
        inbox = top / "inbox"
        inbox.mkdir()
        with peer(inbox, port, top):
            began = time.monotonic()
            for path in made:
                os.rename(path, inbox / path.name)
            done, took = _markers_at_last(inbox, count, began)
        bench.until(lambda: mails() >= done, f"{done} mails", 10)
        if done < count:
            print(f"{count - done} of {count} documents were lost by {peer.__name__}", file=sys.stderr)
    return done / took


def _markers_at_last(inbox: Path, count: int, began: float) -> tuple[int, float]:
    """How many there are, and how long that took: a peer that has lost some is done when no more come."""
    done, at = 0, time.monotonic()
    while done < count and time.monotonic() - at < LOST_AFTER:
        time.sleep(0.02)
        now = _markers(inbox)
        if now > done:
            done, at = now, time.monotonic()
    if not done:
        raise bench.Missing("a peer has sent nothing at all")
    return done, at - began


def _markers(inbox: Path) -> int:
    return sum(name.endswith(".sent") for name in os.listdir(inbox))


@contextlib.contextmanager
def _counting_sink(counted: Path) -> Iterator[tuple[int, Callable[[], int]]]:
    """The sink of `bench.sink` that writes down how many mails it has taken: its port and their number."""
    port = bench.free_port()
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    command = [bench.tool("smtp-sink"), "-c", *user, f"127.0.0.1:{port}", "100"]

    def mails() -> int:
        number = counted.read_bytes().rpartition(b"mesg=")[2].partition(b"\r")[0]
        return int(number or 0)

    def listens() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    with counted.open("wb") as out, bench.running(command, stdout=out, stderr=subprocess.DEVNULL):
        bench.until(listens, "smtp-sink", 10)
        yield port, mails


@contextlib.contextmanager
def _group(command: list[str], log: Path, ready: bytes, **options: object) -> Iterator[None]:
    """A process with all that it starts, from the moment it says `ready` on."""
    with (
        log.open("wb") as out,
        bench.running(command, stdout=out, stderr=out, start_new_session=True, **options) as process,
    ):
        try:
            bench.until(
                lambda: ready in log.read_bytes() or process.poll() is not None, f"{command[0]} says {ready!r}", 60
            )
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended with {process.returncode}: {log.read_text()[-2000:]}")
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(process.pid, signal.SIGTERM)  # its group has its id


def _shell_loop(inbox: Path, port: int, top: Path) -> contextlib.AbstractContextManager[None]:
    for name in ("inotifywait", "msmtp"):
        bench.tool(name)
    command = [bench.tool("bash"), str(SCRIPTS / "loop.sh"), str(inbox), str(port)]
    return _group(command, top / "log", b"Watches established")


def _script(inbox: Path, port: int, top: Path) -> contextlib.AbstractContextManager[None]:
    command = [sys.executable, str(SCRIPTS / "script.py"), str(inbox), str(port)]
    return _group(command, top / "log", b"ready")


def _node_red(inbox: Path, port: int, top: Path) -> contextlib.AbstractContextManager[None]:
    """Its watch, file and e-mail nodes, as they are wired in the editor; nothing but 127.0.0.1 hears of it."""
    modules = _installed(install=False)
    if modules is None:
        raise bench.Missing("Node-RED is not installed")
    home = top / "node-red"
    home.mkdir()
    (home / "flows.json").write_text(json.dumps(_flow(inbox, port)))
    settings = {
        "userDir": str(home),
        "flowFile": "flows.json",
        "uiHost": "127.0.0.1",
        "uiPort": bench.free_port(),
        "telemetry": {"enabled": False, "updateNotification": False},
        "externalModules": {"autoInstall": False, "palette": {"allowInstall": False}},
        "credentialSecret": False,
        "diagnostics": {"enabled": False, "ui": False},
        "logging": {"console": {"level": "info", "metrics": False, "audit": False}},
    }
    (home / "settings.js").write_text(f"module.exports = {json.dumps(settings)}\n")
    program = modules / "node-red" / "red.js"
    command = [bench.tool("node"), str(program), "--userDir", str(home), "--settings", str(home / "settings.js")]
    environment = os.environ | {"NODE_RED_DISABLE_TELEMETRY": "1"}
    return _group(command, top / "log", b"Started flows", env=environment)


def _flow(inbox: Path, port: int) -> list[dict[str, object]]:
    admit = (
        "if (msg.event !== 'update' || msg.type !== 'file' || msg.filename.endsWith('.sent')) { return null; }\n"
        "msg.topic = msg.file; msg.from = 'factures@cabinet.example'; msg.to = 'c0@collecte.example';\n"
        "msg.description = 'A document.'; return msg;"
    )
    mark = "msg.payload = ''; msg.filename += '.sent'; return msg;"

    # What has no place in the editor is not wired but configuration.
    def node(key: str, kind: str, /, *wires: str, **more: object) -> dict[str, object]:
        return {"id": key, "type": kind, "z": "tab", "x": 0, "y": 0, "wires": [list(wires)] if wires else [], **more}

    mailer = {"name": "", "server": "127.0.0.1", "port": str(port), "secure": False, "tls": False, "authtype": "NONE"}
    return [
        {"id": "tab", "type": "tab", "label": "bridge"},
        node("watch", "watch", "admit", files=str(inbox), recursive=True),
        node("admit", "function", "read", func=admit, outputs=1),
        node("read", "file in", "mail", filename="filename", filenameType="msg", format=""),
        node("mail", "e-mail", **mailer),
        node("mailed", "complete", "mark", scope=["mail"], uncaught=False),
        node("mark", "function", "write", func=mark, outputs=1),
        node("write", "file", filename="filename", filenameType="msg", appendNewline=False, overwriteFile="true"),
    ]


def _installed(*, install: bool) -> Path | None:
    """Node-RED's modules; where there is npm, and it may, they are installed once into a cache of their own."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bridged-bench"
    modules = cache / "node-red" / "node_modules"
    wanted = [modules / package.partition("@")[0] for package in PACKAGES]
    if not all(path.is_dir() for path in wanted):
        if not install or shutil.which("npm") is None:
            return None
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as fresh:  # half an installation must not look like one
            quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--omit=dev", "--ignore-scripts"]
            command = [bench.tool("npm"), "install", "--prefix", fresh, *quiet, *PACKAGES]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=600)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
                return None
            shutil.rmtree(cache / "node-red", ignore_errors=True)
            os.rename(fresh, cache / "node-red")
            Path(fresh).mkdir()  # what is removed now
    return modules
