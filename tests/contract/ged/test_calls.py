"""Calls that do not return: the caller gives up in time, and no file stays open. An empty pipe hangs each read."""

from __future__ import annotations

import os
import threading
import time

import pytest

from bridged.ged import CalledFile, Calls, Hanging, calls
from tests.support.bridge import until


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        os.close(fd)


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(calls, "HANGING", 0.2)
    return Calls(time.monotonic)


def test_a_call_returns_what_it_returns_and_raises_what_it_raises():
    calls = Calls(time.monotonic)
    assert calls.call(b"/ged", lambda: 42) == 42
    with pytest.raises(FileNotFoundError):
        calls.call(b"/ged", lambda: os.stat("/there/is/nothing"))


@pytest.mark.parametrize("at_most", [0.5, 60.0])
def test_a_call_that_reports_progress_is_awaited_for_the_time_asked_for(hurried, at_most):
    ended, began = threading.Event(), time.monotonic()

    def work_on():
        while not ended.wait(0.05) and time.monotonic() - began < 2.0:
            hurried.progress()
        return 42

    if at_most > 2.0:
        assert hurried.call(b"/ged", work_on, at_most) == 42
    else:
        with pytest.raises(Hanging):
            hurried.call(b"/ged", work_on, at_most)
        assert time.monotonic() - began >= at_most
        ended.set()


def test_a_call_that_hangs_raises_hanging_and_blocks_the_next_into_its_mount(pipe, hurried):
    reading, writing = pipe
    for ged in (b"/share/a", b"/share/b"):
        hurried.locate(ged, "the share")
    hurried.locate(b"/disk", "the disk")
    with pytest.raises(Hanging):
        hurried.call(b"/share/a", lambda: os.read(reading, 1))
    begun = []
    with pytest.raises(Hanging):
        hurried.call(b"/share/b", lambda: begun.append(1))
    assert begun == []
    assert set(hurried.hanging()) == {b"/share/a", b"/share/b"}
    assert hurried.call(b"/disk", lambda: "well") == "well"
    os.write(writing, b"x")
    until(lambda: hurried.hanging() == (), "it answers")
    assert hurried.call(b"/share/b", lambda: "well") == "well"


def test_a_ged_that_a_call_finds_on_another_mount_hangs_with_the_call(pipe, hurried):
    """Several GEDs have their turn in one call, which counts for the first of them."""
    reading, writing = pipe
    for ged in (b"/ged/a", b"/ged/b"):
        hurried.locate(ged, "the disk")
    hurried.locate(b"/share/c", "the share")

    def turn():
        hurried.locate(b"/ged/b", "the share")
        os.read(reading, 1)

    with pytest.raises(Hanging):
        hurried.call(b"/ged/a", turn)
    assert hurried.silent_for(b"/ged/b") >= 0.2
    assert set(hurried.hanging()) == {b"/ged/a", b"/ged/b", b"/share/c"}
    os.write(writing, b"x")
    until(lambda: hurried.hanging() == (), "it answers")


def test_a_call_that_gets_no_thread_leaves_its_mount_well(monkeypatch, hurried):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(threading.Thread, "start", refuse)
        hurried.call(b"/ged", lambda: 42)
    time.sleep(0.25)
    assert hurried.silent_for(b"/ged") == 0.0
    assert hurried.call(b"/ged", lambda: 42) == 42


def test_a_forgotten_ged_is_not_named_among_the_hanging(pipe, hurried):
    reading, writing = pipe
    hurried.locate(b"/share", "the share")
    with pytest.raises(Hanging):
        hurried.call(b"/share", lambda: os.read(reading, 1))
    hurried.forget(b"/share")
    assert hurried.hanging() == ()
    os.write(writing, b"x")


def test_a_file_opened_after_its_reader_gave_up_is_closed(pipe, hurried, tmp_path):
    reading, writing = pipe
    (tmp_path / "document").write_bytes(b"late")
    opened = []

    def slowly():
        os.read(reading, 1)
        opened.append((tmp_path / "document").open("rb"))
        return opened[-1]

    with pytest.raises(Hanging), CalledFile(hurried, b"/share", slowly):
        pass
    os.write(writing, b"x")
    until(lambda: opened and opened[0].closed, "the file that was opened late is closed")


def test_a_document_read_by_calls_is_whole_and_then_closed(tmp_path):
    (tmp_path / "document").write_bytes(b"0123456789")
    calls, opened = Calls(time.monotonic), []

    def plainly():
        opened.append((tmp_path / "document").open("rb"))
        return opened[-1]

    with CalledFile(calls, b"/ged", plainly) as file:
        assert file.read(4) + file.read(100) == b"0123456789"
        assert file.status().st_size == 10
    until(lambda: opened[0].closed, "it is closed")
