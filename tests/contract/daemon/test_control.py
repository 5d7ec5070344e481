"""control.py against real directories, locks and sockets."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bridged.daemon import control
from bridged.ged import files
from bridged.model import UserError

AS_ROOT = os.geteuid() == 0
DEADLINE = 10.0


@pytest.fixture
def state_dir(tmp_path):
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def serve():
    """Starts a server and closes it."""
    started = []

    def of(directory, handle=lambda request: {"ok": True, "request": request}):
        server = control.ControlServer(directory, handle)
        server.start()
        started.append(server)
        return server

    yield of
    for server in started:
        server.close()
        server._thread.join(DEADLINE)
        assert not server._thread.is_alive(), "close() ends the service"


# -- the lock


def test_the_state_directory_is_made_for_its_owner_only(tmp_path):
    """No other user reads the journal."""
    directory = tmp_path / "a" / "state"
    os.close(control.lock(directory))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / control.LOCK).stat().st_mode) == 0o600


def test_a_second_instance_is_refused_with_75_and_a_remedy(state_dir):
    """Two daemons on one journal would send everything twice. The first one goes on unharmed."""
    fd = control.lock(state_dir)
    with pytest.raises(control.InstanceRunning, match="Another bridged holds") as refused:
        control.lock(state_dir)
    assert refused.value.exit_code == 75
    os.close(fd)
    os.close(control.lock(state_dir))


def test_a_process_that_dies_leaves_no_lock_behind(state_dir):
    """While the process lives, no second one gets the lock; after a kill -9 it is free."""
    code = "import sys, pathlib; from bridged.daemon.control import lock; "
    code += "lock(pathlib.Path(sys.argv[1])); print(flush=True); input()"
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(state_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
    ) as other:
        assert other.stdout.readline()
        with pytest.raises(control.InstanceRunning):
            control.lock(state_dir)
        other.kill()
        other.wait(DEADLINE)
    os.close(control.lock(state_dir))


def test_the_lock_does_not_outlive_the_daemon_in_a_child(state_dir):
    """A program that was started by it must not keep the next daemon out."""
    fd = control.lock(state_dir)
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_directory_that_others_can_write_to_is_refused_with_78(state_dir, mode):
    """Other users could put another journal there."""
    state_dir.chmod(mode)
    with pytest.raises(control.StateDirectoryUnsafe, match="chmod 0700") as refused:
        control.lock(state_dir)
    assert refused.value.exit_code == 78


def mounted(monkeypatch, fstype):
    """Everything is on this type of file system."""
    mount = files.Mount("server:/export", fstype, b"/var/lib")
    monkeypatch.setattr(files, "mount_of", lambda _: mount)


@pytest.mark.parametrize("fstype", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "ceph", "fuse.rclone"])
def test_a_state_directory_on_a_share_is_refused_with_78_and_nothing_is_made(tmp_path, monkeypatch, fstype):
    mounted(monkeypatch, fstype)
    with pytest.raises(control.StateDirectoryUnsafe) as refused:
        control.lock(tmp_path / "state" / "of" / "bridged")
    assert refused.value.exit_code == 78
    for part in (f"{tmp_path}/state/of/bridged", "server:/export", f"({fstype})", "must be on a local disk"):
        assert part in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fstype", ["ext4", "overlay", "tmpfs", "fuseblk", "fuse.shfs", "9p"])
def test_a_state_directory_on_a_file_system_that_can_all_is_taken(state_dir, monkeypatch, fstype):
    """Not every FUSE file system is a share."""
    mounted(monkeypatch, fstype)
    os.close(control.lock(state_dir))
    assert [path.name for path in state_dir.iterdir()] == [control.LOCK]


class NoSockets(socket.socket):
    """On a file system without them."""

    def bind(self, _):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


class NoRoom(socket.socket):
    """On a full disk."""

    def bind(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_system_without_sockets_is_named_and_refused(state_dir, monkeypatch):
    """Otherwise the start would end with "Function not implemented" alone."""
    mounted(monkeypatch, "fuse.unknown")
    monkeypatch.setattr(control.socket, "socket", NoSockets)
    with pytest.raises(control.StateDirectoryUnsafe, match="Function not implemented") as refused:
        control.lock(state_dir)
    for part in (str(state_dir), "(fuse.unknown)", "must be on a local disk", "no socket"):
        assert part in str(refused.value)


def test_a_full_disk_that_takes_no_socket_is_for_another_start(state_dir, monkeypatch):
    monkeypatch.setattr(control.socket, "socket", NoRoom)
    with pytest.raises(UserError, match="cannot be used now") as refused:
        control.lock(state_dir)
    assert refused.value.exit_code == 1


def test_a_refused_state_directory_is_free_again(state_dir, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(control.socket, "socket", NoSockets)
        with pytest.raises(control.StateDirectoryUnsafe):
            control.lock(state_dir)
    os.close(control.lock(state_dir))


def test_a_directory_that_others_can_only_read_is_taken(state_dir):
    """systemd's StateDirectoryMode= is 0755 unless the unit says otherwise."""
    state_dir.chmod(0o755)
    os.close(control.lock(state_dir))


@pytest.mark.skipif(not AS_ROOT, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused_with_78(state_dir):
    """Its owner could change it."""
    os.chown(state_dir, 12345, 12345)
    with pytest.raises(control.StateDirectoryUnsafe, match="another user"):
        control.lock(state_dir)


def test_a_path_that_cannot_be_a_directory_is_refused_with_78_and_the_reason(tmp_path):
    """A file stands there, above or below."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "state"):
        with pytest.raises(control.StateDirectoryUnsafe, match=r"cannot be used \(.+\).*state_dir") as refused:
            control.lock(path)
        assert refused.value.exit_code == 78


def test_a_full_disk_is_no_refused_configuration(tmp_path, monkeypatch):
    """With 78 the unit would stay down, and there may be room at the next start."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(UserError, match="make room") as failed:
        control.lock(tmp_path / "state")
    assert failed.value.exit_code == 1


def test_a_planted_link_in_place_of_the_lock_is_not_followed(state_dir, tmp_path):
    """Otherwise a file in another place would be locked, or made."""
    (state_dir / control.LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(control.StateDirectoryUnsafe):
        control.lock(state_dir)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.usefixtures("collected")
def test_a_file_system_without_locks_is_refused_with_78(state_dir, monkeypatch):
    """Some network file systems answer ENOLCK; no descriptor is left open."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(control.StateDirectoryUnsafe, match="No locks available"):
        control.lock(state_dir)
    assert len(os.listdir("/proc/self/fd")) == before


# -- the socket


def test_a_request_is_answered(state_dir, serve):
    """The request arrives unchanged, with its accents."""
    serve(state_dir)
    request = {"do": "release", "ids": ["é", "2"]}
    assert control.ask(state_dir, request, DEADLINE) == {"ok": True, "request": request}


def test_only_the_owner_may_open_the_socket(state_dir, serve):
    """Its mode is 0600 under every umask."""
    serve(state_dir)
    assert stat.S_IMODE((state_dir / control.SOCKET).stat().st_mode) == 0o600


def test_a_state_directory_with_a_long_path_has_a_socket_too(state_dir, serve):
    """unix(7) takes 108 bytes; a path takes 4096."""
    directory = state_dir / ("d" * 200) / ("e" * 200)
    directory.mkdir(parents=True)
    server = serve(directory)
    assert control.ask(directory, {}, DEADLINE) == {"ok": True, "request": {}}
    server.close()
    assert not (directory / control.SOCKET).exists()


def test_ask_without_a_daemon_returns_none(state_dir, tmp_path):
    """No socket, no directory, a file in its place: there is no daemon, which is no error."""
    (tmp_path / "file").touch()
    for directory in (state_dir, tmp_path / "absent", tmp_path / "file"):
        assert control.ask(directory, {}, DEADLINE) is None


def stale(state_dir):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left, control._short_path(state_dir) as path:
        left.bind(path)


def test_a_socket_left_by_a_crash_answers_none_and_is_replaced_at_the_start(state_dir, serve):
    """A file named control.sock does not mean that a daemon listens."""
    stale(state_dir)
    assert control.ask(state_dir, {}, DEADLINE) is None
    serve(state_dir)
    assert control.ask(state_dir, {}, DEADLINE)["ok"]


def test_after_close_ask_returns_none(state_dir, serve):
    """And no socket is left."""
    serve(state_dir).close()
    assert control.ask(state_dir, {}, DEADLINE) is None
    assert not (state_dir / control.SOCKET).exists()


def raw(state_dir, sent, end=True):
    """The answer of the daemon to these bytes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(DEADLINE)
        with control._short_path(state_dir) as path:
            channel.connect(path)
        channel.sendall(sent)
        if end:
            channel.shutdown(socket.SHUT_WR)
        return channel.makefile("rb").readline()


@pytest.mark.parametrize(
    "sent",
    [b"\n", b"", b"hello\n", b"[]\n", b"null\n", b'{"a": \n', b"\xff\xfe\n", b"[" * 60_000 + b"\n", b"x" * 65_537],
    ids=["empty line", "nothing", "text", "list", "null", "half", "not UTF-8", "deep", "long"],
)
def test_a_request_that_is_not_understood_is_told_so_and_the_next_one_is_answered(state_dir, serve, sent):
    """No bytes of a client end the service."""
    serve(state_dir)
    answer = json.loads(raw(state_dir, sent))
    assert answer["ok"] is False
    assert answer["error"].endswith(".")
    assert control.ask(state_dir, {}, DEADLINE)["ok"]


def test_a_request_in_pieces_is_put_together(state_dir, serve):
    """A line ends with its line end, and needs no closed connection."""
    serve(state_dir)
    assert json.loads(raw(state_dir, b'{"a": 1}\n', end=False)) == {"ok": True, "request": {"a": 1}}


def test_a_silent_client_keeps_no_other_waiting(state_dir, serve):
    """Each has a thread of its own."""
    serve(state_dir)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent, control._short_path(state_dir) as path:
        silent.connect(path)
        assert control.ask(state_dir, {}, DEADLINE)["ok"]


def test_a_moment_without_free_descriptors_does_not_end_the_service(state_dir, serve):
    """accept(2) answers EMFILE and works again later."""
    server = control.ControlServer(state_dir, lambda _: {"ok": True})
    real = server._socket

    class Full:
        refused = 0

        def accept(self):
            if self.refused < 2:
                self.refused += 1
                raise OSError(errno.EMFILE, "Too many open files")
            return real.accept()

        def __getattr__(self, name):
            return getattr(real, name)

    server._socket = Full()
    server.start()
    try:
        assert control.ask(state_dir, {}, DEADLINE) == {"ok": True}
    finally:
        server.close()
        server._thread.join(DEADLINE)
    assert not server._thread.is_alive()


THREADLESS = """
import os, pathlib, resource, sys, threading
from bridged.daemon import control
from bridged.ged import files

def room(most):
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

state = pathlib.Path(sys.argv[1])
server = control.ControlServer(state, lambda _: {"ok": True})
server.start()
print(control.ask(state, {}, 5.0))
threading.stack_size(256 * 2**20)  # more than there will be, while all else has its memory
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
room(used + 64 * 2**20)
try:
    threading.Thread(target=int).start()
    sys.exit("a thread could be had")
except RuntimeError:
    pass
try:
    control.ask(state, {}, 60.0)
    sys.exit("it was answered")
except control.UserError as refused:
    print(refused)
room(resource.RLIM_INFINITY)
print(control.ask(state, {}, 5.0))
"""


def test_a_moment_without_free_threads_does_not_end_the_service(state_dir):
    """A client of that moment is let go at once, and later ones are answered."""
    command = [sys.executable, "-c", THREADLESS, str(state_dir)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    refused = "The daemon did not answer in time: see its log."
    assert done.stdout.splitlines() == ["{'ok': True}", refused, "{'ok': True}"]
    assert not done.stderr


def test_a_daemon_that_does_not_answer_in_time_is_a_sentence(state_dir, serve):
    """Not None: there is one, and it is stuck."""
    goes_on = threading.Event()

    def stuck(_):
        goes_on.wait(DEADLINE)
        return {}

    serve(state_dir, stuck)
    with pytest.raises(UserError, match="did not answer in time"):
        control.ask(state_dir, {}, 0.05)
    goes_on.set()


def test_a_daemon_that_takes_no_connection_is_a_sentence(state_dir):
    """Its queue of connections is full: it is there, and it is stuck."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf, control._short_path(state_dir) as path:
        deaf.bind(path)
        deaf.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
            first.connect(path)
            with pytest.raises(UserError, match="cannot be reached"):
                control.ask(state_dir, {}, 0.05)


def test_a_user_without_the_right_to_ask_is_told_who_has_it(state_dir, monkeypatch):
    """A permission is not `no daemon is running`."""

    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(UserError, match="as root or its user"):
        control.ask(state_dir, {}, DEADLINE)
