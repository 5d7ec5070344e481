"""`ged.files` against real files, links, FIFOs, sockets and mounts."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bridged.ged import files
from tests.support.packages import require

AS_ROOT = os.geteuid() == 0


@pytest.fixture
def ged(tmp_path):
    path = tmp_path / "ged"
    (path / "Achats" / "11").mkdir(parents=True)
    (path / "Achats" / "11" / "facture.pdf").write_bytes(b"%PDF-1.7")
    return path


@pytest.fixture
def root(ged):
    with files.root(os.fsencode(ged)) as fd:
        yield fd


def open_descriptors():
    return set(os.listdir("/proc/self/fd"))


def test_a_document_is_read_below_its_ged(root):
    with files.open_document(root, b"Achats/11/facture.pdf") as document:
        assert document.read() == b"%PDF-1.7"
        assert os.get_blocking(document.fileno())
        assert not os.get_inheritable(document.fileno())


def test_a_name_that_is_not_utf8_is_a_name_like_any_other(ged, root):
    name = b"Achats/11/\xe9t\xe9\n.pdf"
    with open(os.path.join(os.fsencode(ged), name), "wb") as file:
        file.write(b"x")
    with files.open_document(root, name) as document:
        assert document.read() == b"x"
    with files.directories(root, b"Achats/11") as (directory,):
        assert b"\xe9t\xe9\n.pdf" in {entry.name for entry in files.listing(directory)}


def test_a_root_that_is_a_link_is_refused_with_or_without_a_slash(ged, tmp_path):
    (tmp_path / "link").symlink_to(ged)
    for path in (b"/link", b"/link/", b"/link//"):
        with pytest.raises(NotADirectoryError):
            files.open_root(os.fsencode(tmp_path) + path)


def test_a_link_on_the_way_is_not_followed(ged, root, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.pdf").write_bytes(b"secret")
    (ged / "Ventes").symlink_to(tmp_path / "outside")
    (ged / "Ventes2").symlink_to("Achats")
    for attempt in (
        lambda: files.open_document(root, b"Ventes/secret.pdf"),
        lambda: files.lstat(root, b"Ventes/secret.pdf"),
        lambda: files.remove(root, b"Ventes/secret.pdf"),
        lambda: files.open_directory(root, b"Ventes"),
        lambda: files.open_directory(root, b"Ventes2/11"),
    ):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert (tmp_path / "outside" / "secret.pdf").exists()


@pytest.mark.parametrize("path", [b"../x", b"Achats/../../x", b"/etc/passwd", b"Achats/..", b"Achats/../Achats"])
def test_a_path_that_leads_out_of_the_ged_is_refused(root, path):
    for attempt in (files.open_document, files.open_directory, files.lstat, files.remove):
        with pytest.raises(OSError, match="leads out of its GED") as caught:
            attempt(root, path)
        assert caught.value.errno == errno.EINVAL


def test_two_dots_in_a_name_lead_nowhere(root):
    with files.directories(root, b"") as (ged,):
        os.mkdir(b"de..a", dir_fd=ged)
    with files.directories(root, b"de..a") as (fd,):
        assert files.listing(fd) == []


def plant(kind, path):
    match kind:
        case "symbolic link":
            path.symlink_to("facture.pdf")
        case "FIFO":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(str(path))
        case "directory":
            path.mkdir()
        case "device":
            if not AS_ROOT:
                pytest.skip("only root makes devices")
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))


@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("kind", ["symbolic link", "FIFO", "socket", "directory", "device"])
def test_a_special_file_is_named_by_its_kind_and_never_read(ged, root, kind, tmp_path):
    # A short path, because the name of a socket has at most 107 bytes (unix(7)).
    os.chdir(ged / "Achats" / "11")
    try:
        plant(kind, Path("it"))
    finally:
        os.chdir("/")
    before = open_descriptors()
    with pytest.raises(files.NotRegular, match=kind):
        files.open_document(root, b"Achats/11/it")
    assert open_descriptors() == before
    with files.directories(root, b"Achats/11") as (directory,):
        entry = next(entry for entry in files.listing(directory) if entry.name == b"it")
    assert entry == files.Entry(b"it", kind if kind == "directory" else f"other:{kind}", None)
    assert files.entry_of(b"it", files.lstat(root, b"Achats/11/it")) == entry


@pytest.mark.usefixtures("collected")
def test_a_fifo_that_takes_the_files_place_after_the_look_neither_blocks_nor_leaks(ged, root, monkeypatch):
    """At the lstat it is a regular file; at the open it is a FIFO without a writer."""
    regular = os.lstat(ged / "Achats/11/facture.pdf")
    os.mkfifo(ged / "Achats/11/swapped.pdf")
    monkeypatch.setattr(files.os, "lstat", lambda *_, **__: regular)
    before = open_descriptors()
    with pytest.raises(files.NotRegular, match="FIFO"):
        files.open_document(root, b"Achats/11/swapped.pdf")
    assert open_descriptors() == before


def test_a_listing_stamps_files_and_may_be_repeated_on_the_same_descriptor(ged, root):
    (ged / "Achats" / "note.txt").write_bytes(b"12345")
    with files.directories(root, b"Achats") as (directory,):
        first, second = files.listing(directory), files.listing(directory)
    assert first == second
    assert {entry.name: entry.kind for entry in first} == {b"11": "directory", b"note.txt": "file"}
    stamp = next(entry.stamp for entry in first if entry.name == b"note.txt")
    assert stamp == files.stamp_of(os.stat(ged / "Achats" / "note.txt"))
    assert stamp is not None
    assert stamp.size == 5


def test_the_ged_itself_can_be_listed_opened_and_looked_at(ged, root):
    with files.directories(root, b"", b"Achats") as (itself, inner):
        assert itself != root
        assert [entry.name for entry in files.listing(itself)] == [b"Achats"]
        assert [entry.name for entry in files.listing(inner)] == [b"11"]
    assert files.lstat(root, b"").st_ino == os.stat(ged).st_ino


@pytest.mark.usefixtures("collected")
def test_no_descriptor_is_left_open(root):
    before = open_descriptors()
    for _ in range(3):
        files.lstat(root, b"Achats/11/facture.pdf")
        files.open_document(root, b"Achats/11/facture.pdf").close()
        with pytest.raises(FileNotFoundError):
            files.open_document(root, b"Achats/12/facture.pdf")
        with pytest.raises(FileNotFoundError), files.directories(root, b"Achats", b"Ventes"):
            pass
    assert open_descriptors() == before


def test_removing_a_link_twice_leaves_its_target(ged, root):
    (ged / "link").symlink_to("Achats/11/facture.pdf")
    files.remove(root, b"link")
    files.remove(root, b"link")
    files.remove(root, b"nowhere/link")
    assert not os.path.lexists(ged / "link")
    assert (ged / "Achats/11/facture.pdf").exists()


@pytest.mark.skipif(not AS_ROOT, reason="another user's rights are taken on by root")
def test_a_folder_below_a_search_only_directory_is_listed_with_its_unreadable_file(ged):
    (ged / "Achats").chmod(0o711)
    (ged / "Achats" / "11").chmod(0o744)  # may be read, not searched
    with files.root(os.fsencode(ged)) as root:
        os.seteuid(65534)
        try:
            with files.directories(root, b"Achats/11") as (directory,):
                assert files.listing(directory) == [files.Entry(b"facture.pdf", "file", None)]
            with pytest.raises(PermissionError):
                files.open_directory(root, b"Achats")
            with pytest.raises(PermissionError):
                files.open_document(root, b"Achats/11/facture.pdf")
        finally:
            os.seteuid(0)


def test_a_writer_is_seen_until_it_closes(ged, root):
    with files.open_document(root, b"Achats/11/facture.pdf") as document:
        if files.has_writer(document.fileno()) is None:
            pytest.skip("this file system gives no leases")
        assert files.has_writer(document.fileno()) is False
        with open(ged / "Achats/11/facture.pdf", "ab"):
            assert files.has_writer(document.fileno()) is True
        assert files.has_writer(document.fileno()) is False
        assert fcntl.fcntl(document, fcntl.F_GETLEASE) == fcntl.F_UNLCK


def test_a_writer_that_comes_while_the_lease_is_held_does_not_end_the_process(ged):
    """The default action of SIGIO would end it. The writer comes just before the lease is given back."""
    script = """if True:
        import fcntl, os, sys
        from bridged.ged import files
        real = fcntl.fcntl
        def kept(fd, command, *rest):
            if command == fcntl.F_SETLEASE and rest[0] == fcntl.F_UNLCK:
                try:
                    os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)  # breaks the lease: the signal is sent
                except BlockingIOError:
                    pass
            return real(fd, command, *rest)
        files.fcntl.fcntl = kept
        print(files.has_writer(os.open(sys.argv[1], os.O_RDONLY)))
    """
    ran = subprocess.run(
        [sys.executable, "-c", script, ged / "Achats/11/facture.pdf"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=Path(files.__file__).parents[2],
        check=False,
    )
    assert ran.returncode != -signal.SIGIO
    assert ran.stdout.strip() in ("False", "None"), ran.stderr


def test_where_leases_are_not_given_a_writer_is_unknown():
    read, write = os.pipe()
    try:
        assert files.has_writer(read) is None
    finally:
        os.close(read)
        os.close(write)


def test_the_mount_of_a_file_is_the_one_that_the_kernel_names(root, ged):
    require("findmnt")
    mount = files.mount_of(root)
    findmnt = subprocess.run(
        ["findmnt", "-n", "-o", "TARGET,FSTYPE", "-T", ged], capture_output=True, text=True, check=False
    )
    if findmnt.returncode:
        pytest.skip("findmnt sees no mount")
    assert [mount.point.decode(), mount.fstype] == findmnt.stdout.split()


@pytest.fixture
def mounted(tmp_path):
    """Mount tmpfs at a name with a space, a backslash and a byte that is not UTF-8."""
    point = os.fsencode(tmp_path) + b"/un \\ partage\xe9"
    os.mkdir(point)
    ran = subprocess.run(["mount", "-t", "tmpfs", "la source", point], capture_output=True, check=False)
    if ran.returncode:
        pytest.skip("this user may not mount")
    yield point
    subprocess.run(["umount", "-l", point], capture_output=True, check=False)


def test_a_mount_point_with_escapes_in_the_mount_table_is_read_as_its_bytes(mounted):
    with files.root(mounted) as root:
        assert files.mount_of(root) == files.Mount("la source", "tmpfs", mounted)


def test_a_file_system_that_has_been_unmounted_has_no_mount(mounted):
    with files.root(mounted) as root:
        subprocess.run(["umount", "-l", mounted], check=True)
        with pytest.raises(OSError, match="unmounted") as caught:
            files.mount_of(root)
        assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize(
    ("fstype", "local"),
    [
        *((name, True) for name in ("ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs")),
        *((name, False) for name in ("nfs4", "cifs", "smb3", "fuse.sshfs", "fuseblk", "9p", "virtiofs", "new")),
    ],
)
def test_a_file_system_is_local_only_if_it_is_listed_as_local(fstype, local):
    assert files.is_local(fstype) is local


def location(path):
    with files.root(os.fsencode(path)) as fd:
        return files.MountTable().location(fd)


def test_directories_side_by_side_have_locations_side_by_side(tmp_path):
    for name in ("a", "a b", "é"):
        (tmp_path / name).mkdir()
    found = [location(tmp_path / name) for name in ("a", "a b", "é")]
    assert len(set(found)) == 3
    above = location(tmp_path)
    assert [one.path for one in found] == [above.path + b"/" + name.encode() for name in ("a", "a b", "é")]
    assert {one.device for one in found} == {above.device}


@pytest.mark.skipif(not AS_ROOT, reason="only root can mount")
def test_a_directory_has_one_location_by_each_mount_of_it(tmp_path):
    require("mount", "umount")
    for name in ("ged/Achats/11", "whole", "inner", "deep/in side"):
        (tmp_path / name).mkdir(parents=True)
    binds = [("ged", "whole"), ("ged/Achats", "inner"), ("ged", "deep/in side")]
    try:
        for source, point in binds:
            subprocess.run(["mount", "--bind", tmp_path / source, tmp_path / point], check=True)
        assert location(tmp_path / "whole") == location(tmp_path / "ged")
        assert location(tmp_path / "inner/11") == location(tmp_path / "ged/Achats/11")
        assert location(tmp_path / "deep/in side/Achats") == location(tmp_path / "ged/Achats")
        assert files.MountTable().below(os.fsencode(tmp_path / "deep")) == [location(tmp_path / "ged")]
        assert files.MountTable().below(os.fsencode(tmp_path / "who")) == []
    finally:
        for _, point in reversed(binds):
            subprocess.run(["umount", "--lazy", tmp_path / point], check=False)
