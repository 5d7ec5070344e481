"""Markers in real directories: with planted files, on full and read-only disks, and over crashes."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bridged.marker import Marker, finding, moving, writing
from bridged.marker.writing import Written
from bridged.model import utc
from bridged.names import is_leftover

AS_ROOT = os.geteuid() == 0
SUFFIX = ".validated.json"
NAME = "Facture été n°12.pdf"
DOCUMENT = NAME.encode()
MARKER = Marker(
    status="validated",
    document=NAME,
    client="Boulangerie Martin",
    collection_email="martin@collecte.example",
    sha256="ab" * 32,
    size=4,
    message_id="<1@cabinet.example>",
    deposited_at=utc(1_795_507_923.12),
    validated_at=utc(1_795_507_926.007),
    relay_reply="250 2.0.0 Ok: queued as 4Xy",
    attempts=1,
    bridged="0.1.0",
)


@pytest.fixture(autouse=True, params=[True, False], ids=["files without a name", "named ones"])
def unnamed(request, monkeypatch):
    """Each test runs as on ext4, XFS and Btrfs, and as where a temporary file must have a name."""
    if not request.param:
        monkeypatch.setattr(writing, "_unnamed", lambda _: None)
    return request.param


@pytest.fixture
def folder(tmp_path):
    (tmp_path / NAME).write_bytes(b"%PDF")
    return tmp_path


@pytest.fixture
def fd(folder):
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    yield opened
    os.close(opened)


def write(fd, document=DOCUMENT, marker=MARKER, suffix=SUFFIX, hidden=False):
    return writing.write(fd, document, marker, suffix, hidden)


def find(fd, document=DOCUMENT, hidden=False):
    return finding.find(fd, document, SUFFIX, hidden)


def names(folder):
    return {os.fsdecode(name) for name in os.listdir(folder)}


def temporary(fd):
    """The name that the temporary file of MARKER gets."""
    made, name = writing._named(fd, MARKER.message_id)
    os.close(made)
    os.unlink(name, dir_fd=fd)
    return name


# The content


def test_a_marker_is_the_utf8_json_of_the_contract(folder, fd):
    assert write(fd) == Written(DOCUMENT + b".validated.json", displaced=False)
    content = (folder / f"{NAME}.validated.json").read_bytes()
    assert NAME.encode() in content
    assert json.loads(content) == {
        "status": "validated",
        "document": NAME,
        "client": "Boulangerie Martin",
        "collection_email": "martin@collecte.example",
        "sha256": "ab" * 32,
        "size": 4,
        "message_id": "<1@cabinet.example>",
        "deposited_at": "2026-11-24T08:12:03.120Z",
        "validated_at": "2026-11-24T08:12:06.007Z",
        "relay_reply": "250 2.0.0 Ok: queued as 4Xy",
        "attempts": 1,
        "bridged": "0.1.0",
    }
    assert list(json.loads(content))[:5] == ["status", "document", "client", "collection_email", "sha256"]
    assert names(folder) == {NAME, f"{NAME}.validated.json"}


def test_a_written_marker_is_found_again(fd):
    assert find(fd) is None
    write(fd)
    assert find(fd) == MARKER


def test_text_that_is_not_utf8_never_stops_a_marker():
    content = replace(MARKER, document="\udce9t\udce9.pdf").to_json()
    read = Marker.from_json(content)
    assert read is not None
    assert read.document == "?t?.pdf"


def test_a_later_version_may_add_fields():
    content = json.dumps({**json.loads(MARKER.to_json()), "new": [1]}).encode()
    assert Marker.from_json(content) == MARKER


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b'"validated"',
        b'{"status": "validated"}',
        b"\xff\xfe",
        b"[" * 60_000,
        MARKER.to_json()[:-20],
        MARKER.to_json().replace(b'"validated",', b'"refused",'),
        MARKER.to_json().replace(b'"size": 4', b'"size": "4"'),
        MARKER.to_json().replace(b'"size": 4', b'"size": true'),
        MARKER.to_json().replace(b"<1@cabinet.example>", b""),
    ],
)
def test_a_file_with_other_content_is_no_marker(content):
    assert Marker.from_json(content) is None


# Names


def test_a_hidden_marker_has_a_dot_in_front(folder, fd):
    assert write(fd, hidden=True).name == b"." + DOCUMENT + b".validated.json"
    assert find(fd, hidden=True) == MARKER
    assert find(fd) is None


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    "document",
    [
        b"a" * 251 + b".pdf",
        "é".encode() * 125 + b"x.pdf",
        b"x" + "é".encode() * 125 + b".pdf",
        b"b" * 255,
    ],
)
def test_a_name_of_255_bytes_gets_a_shortened_one(folder, fd, document, hidden):
    with open(os.path.join(os.fsencode(folder), document), "wb"):
        pass
    name = write(fd, document, hidden=hidden).name
    assert len(name) <= 255
    assert name.decode().endswith((".pdf.validated.json", ".validated.json"))
    assert (b".pdf" in name) == document.endswith(b".pdf")
    assert find(fd, document, hidden) == MARKER


def test_two_long_names_that_differ_at_their_end_get_two_markers(folder, fd):
    made = set()
    for end in (b"1.pdf", b"2.pdf"):
        document = b"a" * 250 + end
        with open(os.path.join(os.fsencode(folder), document), "wb"):
            pass
        written = write(fd, document, replace(MARKER, message_id=f"<{end.decode()}@cabinet.example>"))
        assert not written.displaced
        made.add(written.name)
    assert len(made) == 2


@pytest.mark.parametrize(
    ("suffix", "second"), [(".validated.json", ".validated-2.json"), (".ok", ".ok-2"), ("-sent", "-sent-2")]
)
def test_the_second_name_has_its_number_before_the_extension(folder, fd, suffix, second):
    (folder / f"{NAME}{suffix}").write_bytes(b"foreign")
    assert write(fd, suffix=suffix) == Written(DOCUMENT + second.encode(), displaced=True)


def test_only_a_temporary_name_is_recognised_as_a_leftover(fd):
    assert is_leftover(temporary(fd))
    for name in (
        b".bridged-x.tmp",
        b"bridged-0123456789abcdef.tmp",
        DOCUMENT,
        b".bridged-0123456789abcdef.tmp\n",
    ):
        assert not is_leftover(name)


# Files that others have put there


def plant(kind, path, elsewhere):
    match kind:
        case "file":
            path.write_bytes(b"foreign")
        case "marker of another document":
            path.write_bytes(replace(MARKER, message_id="<2@cabinet.example>").to_json())
        case "link":
            path.symlink_to(elsewhere)
        case "dangling link":
            path.symlink_to(elsewhere.with_name("nowhere"))
        case "link to our marker elsewhere":
            elsewhere.write_bytes(MARKER.to_json())
            path.symlink_to(elsewhere)
        case "FIFO":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "huge file":
            path.touch()
            os.truncate(path, 1 << 40)


PLANTED = [
    "file",
    "marker of another document",
    "link",
    "dangling link",
    "link to our marker elsewhere",
    "FIFO",
    "directory",
    "huge file",
]


def photograph(path):
    status = os.lstat(path)
    return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_uid


@pytest.fixture
def elsewhere(tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "precious"
    path.write_bytes(b"precious")
    return path


@pytest.mark.parametrize("kind", PLANTED)
def test_a_file_at_the_markers_name_is_left_alone_and_the_next_name_is_used(folder, fd, elsewhere, kind):
    taken = folder / f"{NAME}.validated.json"
    plant(kind, taken, elsewhere)
    before, content = photograph(taken), elsewhere.read_bytes()
    written = write(fd)
    assert written == Written(DOCUMENT + b".validated-2.json", displaced=True)
    assert photograph(taken) == before
    assert elsewhere.read_bytes() == content
    assert not elsewhere.with_name("nowhere").exists()
    assert find(fd) == MARKER
    assert write(fd) == written


@pytest.mark.parametrize("kind", PLANTED)
def test_a_file_at_the_temporary_name_is_left_alone(folder, fd, elsewhere, kind):
    taken = folder / os.fsdecode(temporary(fd))
    plant(kind, taken, elsewhere)
    before, content = photograph(taken), elsewhere.read_bytes()
    assert write(fd) == Written(DOCUMENT + b".validated.json", displaced=False)
    assert photograph(taken) == before
    assert elsewhere.read_bytes() == content
    assert find(fd) == MARKER
    assert names(folder) == {NAME, taken.name, f"{NAME}.validated.json"}


def test_a_file_that_comes_between_the_look_and_the_writing_is_not_replaced(folder, fd, monkeypatch):
    taken = folder / f"{NAME}.validated.json"
    link = os.link

    def late(*args, **kwargs):
        if not taken.exists():
            taken.write_bytes(b"foreign")
        link(*args, **kwargs)

    monkeypatch.setattr(os, "link", late)
    assert write(fd) == Written(DOCUMENT + b".validated-2.json", displaced=True)
    assert taken.read_bytes() == b"foreign"
    assert names(folder) == {NAME, taken.name, f"{NAME}.validated-2.json"}


def test_a_folder_in_which_every_name_is_taken_is_an_error_that_says_so(folder, fd):
    for number in range(1, 100):
        (folder / f"{NAME}.validated{f'-{number}' if number > 1 else ''}.json").touch()
    with pytest.raises(OSError, match="every name"):
        write(fd)


# Once


def test_writing_again_changes_nothing(folder, fd):
    first = write(fd)
    before = photograph(folder / os.fsdecode(first.name))
    assert write(fd, marker=replace(MARKER, attempts=2)) == first
    assert photograph(folder / os.fsdecode(first.name)) == before


def test_a_new_document_of_the_same_name_leaves_the_old_marker_and_is_the_one_found(folder, fd):
    write(fd)
    newer = replace(MARKER, message_id="<2@cabinet.example>")
    assert write(fd, marker=newer).name == DOCUMENT + b".validated-2.json"
    assert find(fd) == newer


def test_a_marker_has_the_documents_mode_without_its_execute_bits(folder, fd):
    (folder / NAME).chmod(0o4751)
    made = os.stat(folder / os.fsdecode(write(fd).name))
    assert stat.S_IMODE(made.st_mode) == 0o640


@pytest.mark.skipif(not AS_ROOT, reason="only root gives a file away")
def test_a_marker_belongs_to_the_documents_owner_and_group(folder, fd):
    os.chown(folder / NAME, 12345, 23456)
    made = os.stat(folder / os.fsdecode(write(fd).name))
    assert (made.st_uid, made.st_gid) == (12345, 23456)


@pytest.mark.skipif(not AS_ROOT, reason="another user's rights are taken on by root")
def test_an_owner_that_cannot_be_set_is_no_error_even_in_a_sticky_directory(folder, fd):
    folder.chmod(0o1777)
    os.seteuid(65534)
    try:
        made = os.stat(write(fd).name, dir_fd=fd)
    finally:
        os.seteuid(0)
    assert made.st_uid == 65534


def test_the_order_of_the_disk_is_file_then_name_then_directory(fd, monkeypatch, unnamed):
    """This order alone decides which names a power cut may leave."""
    steps = []
    fsync, link, unlink = os.fsync, os.link, os.unlink

    def synced(what):
        steps.append("sync directory" if stat.S_ISDIR(os.fstat(what).st_mode) else "sync file")
        fsync(what)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", lambda *a, **k: (steps.append("name"), link(*a, **k)))
    monkeypatch.setattr(os, "unlink", lambda *a, **k: (steps.append("temporary gone"), unlink(*a, **k)))
    write(fd)
    assert steps == ["sync file", "name", "sync directory", *([] if unnamed else ["temporary gone"])]


class PowerCutError(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["fsync", "link", "unlink"])
def test_a_crash_at_any_step_leaves_a_whole_marker_or_none_and_the_next_try_ends_it(
    folder, fd, monkeypatch, step, unnamed
):
    if unnamed and step == "unlink":
        pytest.skip("nothing has to be removed")

    def crash(*_, **__):
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", crash)  # the dead remove nothing
        patch.setattr(os, step, crash)
        with pytest.raises(PowerCutError):
            write(fd)
    left = names(folder) - {NAME, f"{NAME}.validated.json"}
    assert all(is_leftover(os.fsencode(name)) for name in left)
    assert not (unnamed and left)
    assert find(fd) in (None, MARKER)
    assert write(fd) == Written(DOCUMENT + b".validated.json", displaced=False)
    assert find(fd) == MARKER


# When it cannot be written


@pytest.mark.usefixtures("collected")
def test_a_nameless_file_without_links_is_written_again_with_a_name_or_raises(folder, fd, monkeypatch):
    """The failure of the second file is the error, and no descriptor is closed twice or left open."""
    link, before = os.link, set(os.listdir("/proc/self/fd"))

    def no_link(source, *arguments, **options):
        if source.startswith(b"/proc"):
            raise OSError(errno.EOPNOTSUPP, "no links")
        link(source, *arguments, **options)

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "link", no_link)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "_named", full)
        with pytest.raises(OSError, match="full"):
            write(fd)
    assert set(os.listdir("/proc/self/fd")) == before
    assert write(fd) == Written(DOCUMENT + b".validated.json", displaced=False)
    assert find(fd) == MARKER
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_document_that_has_left_gets_no_marker(folder, fd):
    (folder / NAME).unlink()
    with pytest.raises(FileNotFoundError):
        write(fd)
    assert names(folder) == set()


def test_a_directory_that_has_been_removed_is_an_error(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    fd = os.open(gone, os.O_RDONLY)
    gone.rmdir()
    with pytest.raises(FileNotFoundError):
        write(fd)
    os.close(fd)


def test_a_directory_that_may_not_be_written_is_an_error_and_nothing_is_left(folder, fd):
    folder.chmod(0o555)
    if AS_ROOT:
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            write(fd)
    finally:
        if AS_ROOT:
            os.seteuid(0)
        folder.chmod(0o755)
    assert names(folder) == {NAME}


def mount(path, options):
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, check=False)


@pytest.fixture
def small(tmp_path):
    """A file system of its own, of 64 kB."""
    point = tmp_path / "small"
    point.mkdir()
    if mount(point, "size=64k").returncode:
        pytest.skip("this user may not mount")
    (point / NAME).write_bytes(b"%PDF")
    yield point
    subprocess.run(["umount", "-l", point], capture_output=True, check=False)


@pytest.fixture
def small_fd(small):
    fd = os.open(small, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_a_read_only_file_system_is_an_error_until_it_can_be_written_again(small, small_fd):
    mount(small, "remount,ro")
    with pytest.raises(OSError) as caught:
        write(small_fd)
    assert caught.value.errno == errno.EROFS
    mount(small, "remount,rw")
    assert write(small_fd) == Written(DOCUMENT + b".validated.json", displaced=False)


def test_a_full_file_system_is_an_error_that_leaves_nothing_behind(small, small_fd):
    ballast = small / "ballast"
    with pytest.raises(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    with pytest.raises(OSError) as caught:
        write(small_fd)
    assert caught.value.errno == errno.ENOSPC
    assert names(small) == {NAME, "ballast"}
    ballast.unlink()
    assert write(small_fd).displaced is False
    assert find(small_fd) == MARKER


# File systems without hard links


def without_links(monkeypatch):
    def link(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)


class Libc:
    """A kernel or file system that does not know the flag."""

    @staticmethod
    def renameat2(*_):
        writing.ctypes.set_errno(errno.EINVAL)
        return -1


@pytest.mark.parametrize("flag", ["with the flag", "without the flag"])
def test_without_hard_links_the_marker_is_renamed_and_still_replaces_nothing(folder, fd, monkeypatch, flag):
    without_links(monkeypatch)
    if flag == "without the flag":
        monkeypatch.setattr(writing, "_libc", Libc())
    assert write(fd) == Written(DOCUMENT + b".validated.json", displaced=False)
    foreign = folder / f"{NAME}.ok"
    monkeypatch.setattr(writing, "exists", lambda *_: False)  # it comes after the look
    foreign.write_bytes(b"foreign")
    assert write(fd, suffix=".ok") == Written(DOCUMENT + b".ok-2", displaced=True)
    assert foreign.read_bytes() == b"foreign"
    assert names(folder) == {NAME, f"{NAME}.validated.json", foreign.name, f"{NAME}.ok-2"}


@pytest.fixture
def poor(monkeypatch):
    """A share without links, without flags of renames, and without renames over a file."""
    rename = os.rename

    def over_nothing(old, new, *, src_dir_fd, dst_dir_fd):
        if finding.exists(dst_dir_fd, new):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    without_links(monkeypatch)
    monkeypatch.setattr(writing, "_libc", Libc())
    monkeypatch.setattr(os, "rename", over_nothing)


def test_on_a_share_without_links_and_renames_over_a_file_the_marker_is_written_at_its_name(folder, fd, poor):
    (folder / NAME).chmod(0o640)
    assert write(fd) == Written(DOCUMENT + b".validated.json", displaced=False)
    assert find(fd) == MARKER
    assert names(folder) == {NAME, f"{NAME}.validated.json"}
    assert stat.S_IMODE((folder / f"{NAME}.validated.json").stat().st_mode) == 0o640


LASTING = MARKER.to_json().index(b'  "validated_at"')
BEGUN = {
    "nothing": b"",
    "zeros": b"\0" * 300,
    "the first bytes": MARKER.to_json()[:40],
    "all but the end": MARKER.to_json()[:-9],
    "up to its time": MARKER.to_json()[:LASTING],
}


@pytest.mark.parametrize("begun", BEGUN.values(), ids=BEGUN)
def test_a_marker_half_written_at_its_name_by_a_crash_is_ended_by_the_next_try(folder, fd, poor, begun):
    """The next try writes another time."""
    later = replace(MARKER, validated_at=utc(1_795_507_999))
    (folder / f"{NAME}.validated.json").write_bytes(begun)
    assert write(fd, marker=later) == Written(DOCUMENT + b".validated.json", displaced=False)
    assert find(fd) == later
    assert names(folder) == {NAME, f"{NAME}.validated.json"}


@pytest.mark.parametrize("kind", PLANTED)
def test_on_such_a_share_a_file_at_the_markers_name_is_left_alone(folder, fd, elsewhere, poor, kind):
    taken = folder / f"{NAME}.validated.json"
    plant(kind, taken, elsewhere)
    before = photograph(taken)
    assert write(fd) == Written(DOCUMENT + b".validated-2.json", displaced=True)
    assert photograph(taken) == before
    assert elsewhere.read_bytes() in (b"precious", MARKER.to_json())


def test_the_beginning_of_another_documents_marker_is_left_alone(folder, fd, poor):
    taken = folder / f"{NAME}.validated.json"
    taken.write_bytes(replace(MARKER, message_id="<2@cabinet.example>").to_json()[:-9])
    assert write(fd).displaced
    assert b"<2@cabinet.example>" in taken.read_bytes()


def test_where_links_exist_an_empty_file_at_the_markers_name_is_another_ones(folder, fd):
    (folder / f"{NAME}.validated.json").touch()
    assert write(fd).displaced
    assert (folder / f"{NAME}.validated.json").read_bytes() == b""


@pytest.mark.parametrize("begun", [None, *BEGUN.values()], ids=["a free name", *BEGUN])
def test_on_such_a_share_a_marker_follows_and_ends_what_a_crash_began(folder, fd, other, other_fd, poor, begun):
    old = write(fd).name
    if begun is not None:
        (other / "renamed.pdf.validated.json").write_bytes(begun)
    assert follow(fd, old, other_fd) == b"renamed.pdf.validated.json"
    assert find(other_fd, b"renamed.pdf") == MARKER
    assert names(folder) == {NAME, "other"}
    assert names(other) == {"renamed.pdf", "renamed.pdf.validated.json"}


# Many at a time


def failing_in(monkeypatch, call, directory, fails):
    """Let a call of the kernel fail in one directory."""
    usual = getattr(os, call)

    def failing(*args, **kwargs):
        at = kwargs.get("dir_fd", kwargs.get("dst_dir_fd", args[0]))
        there = isinstance(at, int) and os.readlink(f"/proc/self/fd/{at}").startswith(str(directory))
        if there and fails(*args, **kwargs):
            if call == "close":
                usual(*args)
            raise OSError(errno.EIO, "Input/output error")
        return usual(*args, **kwargs)

    monkeypatch.setattr(writing.os, call, failing)


FAILING = {
    "no temporary file": ("open", lambda path, flags, *_, **__: flags & os.O_WRONLY),
    "its content is not synced": ("fsync", lambda fd: stat.S_ISREG(os.fstat(fd).st_mode)),
    "it gets no name": ("link", lambda *_, **__: True),
    "its directory is not synced": ("fsync", lambda fd: stat.S_ISDIR(os.fstat(fd).st_mode)),
}


CLIENTS = "abcdef"


@pytest.fixture
def clients(tmp_path):
    """Some directories with a document each, the markers for them, and the number of open descriptors."""
    markers, fds = [], []
    for client in CLIENTS:
        (tmp_path / client).mkdir()
        (tmp_path / client / NAME).write_bytes(b"%PDF")
        fds.append(os.open(tmp_path / client, os.O_RDONLY | os.O_DIRECTORY))
        markers.append((fds[-1], DOCUMENT, replace(MARKER, message_id=f"<{client}@cabinet.example>")))
    opened = len(os.listdir("/proc/self/fd"))
    yield markers
    assert len(os.listdir("/proc/self/fd")) == opened
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("failure", FAILING)
def test_a_failure_in_one_directory_fails_there_alone_and_leaves_nothing(tmp_path, clients, monkeypatch, failure):
    call, fails = FAILING[failure]
    with monkeypatch.context() as patch:
        failing_in(patch, call, tmp_path / "b", fails)
        first, failed, *others = writing.write_all(clients, SUFFIX, hidden=False)
    assert {first, *others} == {Written(DOCUMENT + b".validated.json", displaced=False)}
    assert isinstance(failed, OSError)
    assert not [name for client in CLIENTS for name in names(tmp_path / client) if is_leftover(os.fsencode(name))]
    assert writing.write_all(clients, SUFFIX, hidden=False) == [first] * len(CLIENTS)


@pytest.mark.parametrize("call", ["close", "unlink", "fchown"])
def test_a_failure_after_the_marker_has_its_name_is_no_failure(tmp_path, clients, monkeypatch, call):
    with monkeypatch.context() as patch:
        failing_in(patch, call, tmp_path / "b", lambda *_, **__: True)
        written = writing.write_all(clients, SUFFIX, hidden=False)
    assert written == [Written(DOCUMENT + b".validated.json", displaced=False)] * len(CLIENTS)


def test_a_marker_that_stands_needs_no_room_on_the_disk(tmp_path, clients, monkeypatch):
    """A crash came before the journal knew of it, and then the disk was full."""
    written = writing.write_all(clients, SUFFIX, hidden=False)
    with monkeypatch.context() as patch:
        failing_in(patch, "open", tmp_path, lambda path, flags, *_, **__: flags & os.O_WRONLY)
        assert writing.write_all(clients, SUFFIX, hidden=False) == written


def test_a_document_that_leaves_during_a_slow_sync_gets_no_marker(tmp_path, clients, monkeypatch):
    usual = os.fsync
    monkeypatch.setattr(writing.os, "fsync", lambda fd: ((tmp_path / "b" / NAME).unlink(missing_ok=True), usual(fd)))
    written = writing.write_all(clients, SUFFIX, hidden=False)
    assert isinstance(written[1], FileNotFoundError)
    assert names(tmp_path / "b") == set()


def test_each_step_that_may_wait_for_the_disk_is_told_before(clients, monkeypatch):
    """Many are no hanging file system."""
    asked = []
    for call in ("open", "fsync", "link", "unlink", "close"):
        usual = getattr(os, call)
        monkeypatch.setattr(writing.os, call, lambda *a, u=usual, c=call, **k: asked.append(c) or u(*a, **k))
    writing.write_all(clients, SUFFIX, hidden=False, progress=lambda: asked.append("beat"))
    assert asked.count("fsync") == 2 * len(CLIENTS)
    rests = "".join("b" if one == "beat" else "." for one in asked).split("b")
    assert max(map(len, rests)) <= 3  # a temporary file may be opened, named and closed in one go


# Following a rename


@pytest.fixture
def other(folder):
    (folder / "other").mkdir()
    (folder / "other" / "renamed.pdf").write_bytes(b"%PDF")
    return folder / "other"


@pytest.fixture
def other_fd(other):
    opened = os.open(other, os.O_RDONLY)
    yield opened
    os.close(opened)


def follow(fd, old, other_fd, document=b"renamed.pdf", hidden=False):
    return moving.follow(fd, old, other_fd, document, SUFFIX, hidden)


def test_a_marker_follows_its_document_and_keeps_its_content(folder, fd, other, other_fd):
    old = write(fd).name
    content = (folder / os.fsdecode(old)).read_bytes()
    assert follow(fd, old, other_fd) == b"renamed.pdf.validated.json"
    assert (other / "renamed.pdf.validated.json").read_bytes() == content
    assert names(folder) == {NAME, "other"}


def test_a_marker_follows_within_its_directory_and_takes_the_option_in_force(folder, fd):
    old = write(fd).name
    os.rename(folder / NAME, folder / "renamed.pdf")
    assert follow(fd, old, fd, hidden=True) == b".renamed.pdf.validated.json"
    assert names(folder) == {"renamed.pdf", ".renamed.pdf.validated.json"}


def test_a_marker_that_is_already_where_it_belongs_stays(folder, fd):
    old = write(fd).name
    assert follow(fd, old, fd, DOCUMENT) == old
    assert names(folder) == {NAME, os.fsdecode(old)}


def test_a_file_without_a_marker_has_none_that_follows(fd, other_fd, folder):
    assert follow(fd, DOCUMENT + b".validated.json", other_fd) is None
    foreign = folder / "foreign.validated.json"
    foreign.write_bytes(b"foreign")
    assert follow(fd, os.fsencode(foreign.name), other_fd) is None
    assert foreign.exists()


@pytest.mark.parametrize("kind", PLANTED)
def test_a_following_marker_replaces_nothing(fd, other, other_fd, elsewhere, kind):
    old = write(fd).name
    taken = other / "renamed.pdf.validated.json"
    plant(kind, taken, elsewhere)
    before = photograph(taken)
    assert follow(fd, old, other_fd) == b"renamed.pdf.validated-2.json"
    assert photograph(taken) == before
    assert find(other_fd, b"renamed.pdf") == MARKER


def test_a_crash_while_following_is_ended_by_the_next_try(folder, fd, other, other_fd, monkeypatch):
    old = write(fd).name

    def crash(*_, **__):
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", crash)
        with pytest.raises(PowerCutError):
            follow(fd, old, other_fd)
    assert follow(fd, old, other_fd) == b"renamed.pdf.validated.json"
    assert names(folder) == {NAME, "other"}
    assert names(other) == {"renamed.pdf", "renamed.pdf.validated.json"}


@pytest.fixture
def folding(monkeypatch):
    """A share that folds case: a name is found by any spelling, and a directory lists the one that it was given."""

    def spelled(name, where):
        if isinstance(name, bytes) and b"/" not in name and isinstance(where, int):
            return next((n for n in map(os.fsencode, os.listdir(where)) if n.lower() == name.lower()), name)
        return name

    def folded(usual):
        return lambda name, *rest, dir_fd=None: usual(spelled(name, dir_fd), *rest, dir_fd=dir_fd)

    usual = {call: getattr(os, call) for call in ("lstat", "open", "unlink", "rename", "link")}
    for call in ("lstat", "open", "unlink"):
        monkeypatch.setattr(os, call, folded(usual[call]))

    def rename(old, new, *, src_dir_fd, dst_dir_fd):
        old, there = spelled(old, src_dir_fd), spelled(new, dst_dir_fd)
        same = os.path.samestat(os.fstat(src_dir_fd), os.fstat(dst_dir_fd)) and old == there
        usual["rename"](old, new if same else there, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def link(old, new, *, src_dir_fd, dst_dir_fd, follow_symlinks):
        new = spelled(new, dst_dir_fd)
        usual["link"](old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("renames", [True, False], ids=["renames over itself", "refuses that"])
def test_on_a_share_that_folds_case_a_marker_takes_the_new_spelling_and_is_not_deleted(
    folder, fd, folding, monkeypatch, renames
):
    old = write(fd).name
    new = NAME.upper()
    os.rename(folder / NAME, folder / new, src_dir_fd=fd, dst_dir_fd=fd)
    if not renames:
        monkeypatch.setattr(os, "rename", lambda *_, **__: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no")))
    assert follow(fd, old, fd, new.encode()) == new.encode() + b".validated.json"
    assert names(folder) == {new, f"{new}.validated.json"}
    assert find(fd, new.encode()) == MARKER


def test_on_a_share_that_folds_case_and_makes_up_inodes_a_directory_may_take_a_new_spelling(folder, fd, monkeypatch):
    """The two directories are one, and do not look so."""
    old = write(fd).name
    again = os.open(folder, os.O_RDONLY)
    monkeypatch.setattr(moving, "_same", lambda *_: False)
    try:
        assert follow(fd, old, again, DOCUMENT) == old
    finally:
        os.close(again)
    assert find(fd) == MARKER
    assert names(folder) == {NAME, f"{NAME}.validated.json"}


def test_a_marker_follows_to_another_file_system(folder, fd, small, small_fd):
    old = write(fd).name
    content = Path(folder, os.fsdecode(old)).read_bytes()
    assert follow(fd, old, small_fd, DOCUMENT) == DOCUMENT + b".validated.json"
    assert (small / f"{NAME}.validated.json").read_bytes() == content
    assert not Path(folder, os.fsdecode(old)).exists()


@pytest.mark.usefixtures("collected")
def test_no_descriptor_is_left_open(folder, fd, other_fd):
    before = set(os.listdir("/proc/self/fd"))
    follow(fd, write(fd).name, other_fd)
    write(fd)
    find(fd)
    assert set(os.listdir("/proc/self/fd")) == before
