"""What all benchmarks share: a directory of their own, the daemon as it is installed, a sink, seeded documents."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("bridged"))
SEED = 20261125
SBIN = "/usr/sbin:/usr/bin:/sbin:/bin"
READY = b'"event": "daemon_ready"'
VALIDATED = b'"event": "document_validated"'
SENT = b'"event": "document_sent"'


class Missing(Exception):
    """A peer is not installed here."""


def tool(name: str) -> str:
    """The path of a program, or Missing."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SBIN}")
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A directory that is gone afterwards, on a real disk: /tmp may be memory, where fsync costs nothing."""
    top = Path(tempfile.mkdtemp(prefix="bridged-bench-", dir=os.environ.get("BENCH_DIR", "/var/tmp")))
    # ext4 puts what is made in it elsewhere on the disk, as it does with homes (chattr(1), T). Else each new file is
    # searched for among thousands that were just removed, which ext4 without a journal may not take again so soon.
    with contextlib.suppress(Missing):
        subprocess.run([tool("chattr"), "+T", str(top)], stderr=subprocess.DEVNULL, check=False)
    try:
        yield top
    finally:
        shutil.rmtree(top, ignore_errors=True)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended by its id."""
    process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def sink(sessions: int = 100) -> Iterator[int]:
    """Postfix's smtp-sink, which takes every mail and keeps none: its port."""
    port = free_port()
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    command = [tool("smtp-sink"), *user, f"127.0.0.1:{port}", str(sessions)]
    with running(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        until(lambda: _listens(port), "smtp-sink", 10)
        yield port


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], object], what: str, within: float, every: float = 0.01) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within:g} s: {what}")
        time.sleep(every)


class Bridge:
    """The installed daemon on a GED below `base`, with a configuration of its own."""

    def __init__(
        self, base: Path, port: int, *, sessions: int = 4, clients: int = 1, watch: str = "", smtp: str = ""
    ) -> None:
        self.base = base
        self.geds = [base / f"ged-{number:04}" for number in range(clients)]
        for ged in self.geds:
            (ged / "Achats").mkdir(parents=True, exist_ok=True)
        self.log = base / "log"
        self.config = base / "bridged.yaml"
        lines = [
            (
                f"smtp: {{host: 127.0.0.1, port: {port}, security: plain, sender: factures@cabinet.example,"
                f" connections: {sessions}{smtp}}}"
            ),
            f"watch: {{quiet: 200ms{watch}}}",
            f"state_dir: {base / 'state'}",
            "clients:",
        ]
        lines += [
            f"  - {{name: Client {number}, ged: {ged}, collection_email: c{number}@collecte.example,"
            " switched_folders: [Achats]}"
            for number, ged in enumerate(self.geds)
        ]
        self.config.write_text("\n".join(lines) + "\n")
        self._counts: dict[bytes, int] = {}
        self._read = 0
        self.pid = 0

    @property
    def inbox(self) -> Path:
        """The first client's switched folder."""
        return self.geds[0] / "Achats"

    @contextlib.contextmanager
    def run(self, within: float = 600) -> Iterator[Bridge]:
        """The daemon, from `daemon_ready` on."""
        with self.log.open("ab") as log, running([COMMAND, "run", "--config", str(self.config)], stderr=log) as process:
            self.pid = process.pid
            ready = self.count(READY)
            until(lambda: self.count(READY) > ready or process.poll() is not None, "daemon_ready", within, 0.002)
            if process.poll() is not None:
                raise RuntimeError(f"bridged ended with {process.returncode}: {self.log.read_text()[-2000:]}")
            yield self

    def count(self, event: bytes) -> int:
        """How often an event was logged; cheap enough to ask all the time."""
        if self.log.exists():
            with self.log.open("rb") as log:
                log.seek(self._read)
                new = log.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read += len(whole)
            for known in (READY, VALIDATED, SENT):
                self._counts[known] = self._counts.get(known, 0) + whole.count(known)
        return self._counts.get(event, 0)

    def wait_for(self, event: bytes, count: int, within: float = 600) -> None:
        """Until an event was logged so often."""
        until(lambda: self.count(event) >= count, f"{count} {event.decode()}", within, 0.02)


def documents(directory: Path, count: int, size: int, seed: int = SEED) -> list[Path]:
    """So many different documents of `size` bytes: not compressible, the same in every run, and on the disk."""
    directory.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    body = chance.randbytes(size)
    made = []
    for number in range(count):
        path = directory / f"facture-{number:06}.bin"
        path.write_bytes(b"%012d" % number + body[12:])
        made.append(path)
    os.sync()
    return made


def resident(pid: int) -> int:
    """Resident memory in bytes (VmRSS)."""
    return _status(pid, "VmRSS:")


def peak(pid: int) -> int:
    """The largest resident memory so far, in bytes (VmHWM)."""
    return _status(pid, "VmHWM:")


def reset_peak(pid: int) -> None:
    """Let `peak` begin anew (proc(5): 5 to clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def cpu(pid: int) -> float:
    """Seconds of processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def medians(rounds: int, *timers: Callable[[], float]) -> list[float]:
    """The median of each timer. They take turns, so that what else the machine does meets them alike."""
    taken = [[timer() for timer in timers] for _ in range(rounds)]
    return [statistics.median(one) for one in zip(*taken, strict=True)]


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


def watches(pid: int) -> int:
    """How many directories a process has inotify watches on."""
    count = 0
    for name in os.listdir(f"/proc/{pid}/fdinfo"):
        with contextlib.suppress(FileNotFoundError):
            count += Path(f"/proc/{pid}/fdinfo/{name}").read_bytes().count(b"inotify wd:")
    return count
