"""A log line as JSON, on a terminal, and in the journal of systemd."""

from __future__ import annotations

import io
import json
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from bridged import logs

CONTRACT = """
    daemon_started daemon_ready daemon_stopping daemon_stopped config_reloaded config_rejected
    folder_switched_on folder_switched_off folder_unreachable folder_recovered folder_rebaselined
    document_ignored document_missed document_queued document_sent document_validated document_deferred document_held
    document_withdrawn document_released document_changed document_resumed
    relay_unreachable relay_recovered relay_misconfigured relay_throttled
    hints_lost watch_limit_reached observer_restarted marker_failed state_failed
"""


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    yield
    structlog.reset_defaults()
    logs._bound = structlog.get_logger()


def said(*args, form="json", **fields):
    """The text of one line."""
    out = io.StringIO()
    logs.configure(form, "debug", out)
    logs.say(*args, **fields)
    return out.getvalue()


def test_the_catalogue_has_exactly_the_names_of_the_contract():
    """Alerts are built on them; docs/logs.md lists them with the same levels."""
    assert set(logs.EVENTS) == set(CONTRACT.split())
    table = (Path(__file__).parents[2] / "docs" / "logs.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| (\w+) \| (debug|info|warning|error) \|", table, re.MULTILINE)) == {
        name: event.level for name, event in logs.EVENTS.items()
    }


def test_an_event_that_is_not_in_the_catalogue_raises():
    """Otherwise a line would bear a name that docs/logs.md does not list."""
    with pytest.raises(KeyError):
        said("document_lost")


def test_a_line_is_one_json_object_whose_first_keys_are_in_order():
    """A person finds time, level, event and client at the beginning of each line."""
    text = said("document_sent", relay_reply="250 Ok", id="d1", document="Achats/a.pdf", client="Martin", attempts=1)
    assert text.endswith("}\n")
    assert text.count("\n") == 1
    line = json.loads(text)
    assert list(line) == ["timestamp", "level", "event", "client", "document", "id", "relay_reply", "attempts"]
    assert (line["level"], line["event"], line["attempts"]) == ("info", "document_sent", 1)


def test_the_timestamp_is_utc_with_milliseconds():
    """ISO 8601 with a Z, as in the marker."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", json.loads(said("daemon_ready"))["timestamp"])


def test_a_line_has_its_usual_level_or_a_given_one_and_lesser_ones_are_left_out():
    """`log.level` decides which lines are left out."""
    assert json.loads(said("document_held"))["level"] == "error"
    assert json.loads(said("document_ignored", level="debug"))["level"] == "debug"
    out = io.StringIO()
    logs.configure("json", "warning", out)
    logs.say("daemon_ready")
    logs.say("document_ignored", level="debug")
    assert out.getvalue() == ""
    logs.say("hints_lost")
    assert json.loads(out.getvalue())["event"] == "hints_lost"


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_name_cannot_forge_a_line_or_drive_a_terminal(form):
    """Line breaks, escapes, C1 controls, line separators and direction marks are replaced; French spaces are not."""
    nasty = 'a\n<3>{"event": "x"}\r\x1b[2J\x00\x7f\x9b\u2028\u202e\udce9b\u00a0c\u202fd'
    text = said("document_held", form=form, document=nasty, problems=[nasty], other={"k": nasty})
    assert text.count("\n") == 1
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e\udc00-\udfff]", text)
    assert form == "console" or "b\u00a0c\u202fd" in json.loads(text)["document"]


def test_values_that_json_does_not_know_are_written_as_text():
    """Paths are bytes in bridged."""
    line = json.loads(said("document_held", path=Path("/srv"), raw="é".encode() + b"\xff", many=(b"a", 1), no=None))
    assert (line["path"], line["raw"], line["many"], line["no"]) == ("/srv", "é\ufffd", ["a", "1"], None)


@pytest.mark.parametrize("character", ["x", "é", "😀", '"', "\\"])
def test_a_line_stays_below_four_kilobytes_whatever_it_holds(character):
    """A longer line is cut on its way, and a part of a line is no JSON."""
    long = character * 100_000
    fields = {f"field_{n}": long for n in range(12)} | {"document": long, "client": long, "problems": [long] * 500}
    text = said("config_rejected", **fields)
    assert len(text.encode()) < 4096
    assert set(json.loads(text)) > set(fields)


def test_a_list_is_whole_while_there_is_room_and_says_how_many_entries_are_left_out():
    """config_rejected tells every problem that fits into the line, and that there are more."""
    ten = [f"bridged.yaml:{n}: smtp: This is wrong. Correct it." for n in range(10)]
    assert json.loads(said("config_rejected", problems=ten))["problems"] == ten
    shown = json.loads(said("config_rejected", problems=ten * 100))["problems"]
    assert shown[:10] == ten
    assert shown[-1] == f"… and {1000 - len(shown) + 1} more"


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_of_a_mistake_of_ours_shows_its_end_and_no_values(form):
    """The values of variables may hold the password."""
    out = io.StringIO()
    logs.configure(form, "info", out)
    secret = "hunter" + "2"
    assert secret
    try:
        raise RuntimeError("x" * 9000 + " the end")  # noqa: TRY301
    except RuntimeError:
        logs.say("state_failed", exc_info=True)
    assert "the end" in out.getvalue()
    assert "hunter2" not in out.getvalue()
    assert len(out.getvalue().encode()) < 4096


def test_no_traceback_is_written_where_there_is_none():
    """exc_info=False is no field of the line."""
    assert set(json.loads(said("state_failed", exc_info=False))) == {"timestamp", "level", "event"}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_auto_is_console_on_a_terminal_and_json_otherwise():
    """Colours only on a terminal."""
    terminal = Terminal()
    logs.configure("auto", "info", terminal)
    logs.say("document_sent", document="Achats/a.pdf")
    assert "document_sent" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")
    assert json.loads(said("document_sent", form="auto"))
    console = said("document_sent", form="console", document="a b.pdf")
    assert "\x1b" not in console
    assert "a b.pdf" in console


@dataclass
class Channel:
    write_end: int
    read: object


@pytest.fixture(params=["pipe", "socket"])
def channel(request):
    """The stderr of a unit (a stream socket), and the stderr of a shell's pipe."""
    if request.param == "pipe":
        reader, writer = os.pipe()
        yield Channel(writer, lambda: os.read(reader, 65536).decode())
        os.close(reader)
        os.close(writer)
        return
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(theirs.fileno(), lambda: ours.recv(65536).decode())


def journal_stream(fd):
    status = os.fstat(fd)
    return f"{status.st_dev}:{status.st_ino}"


def written_to(channel, form="json"):
    with open(channel.write_end, "w", encoding="utf-8", closefd=False) as stream:
        logs.configure(form, "debug", stream)
        logs.say("document_held", document="é.pdf")
        logs.say("hints_lost")
        logs.say("daemon_ready")
        logs.say("document_ignored", level="debug")
    return channel.read().splitlines()


def test_a_line_to_the_journal_begins_with_its_priority(channel, monkeypatch):
    """`journalctl -p err` finds the lines on which a person must act."""
    monkeypatch.setenv("JOURNAL_STREAM", journal_stream(channel.write_end))
    lines = written_to(channel)
    assert [line[:4] for line in lines] == ["<3>{", "<4>{", "<6>{", "<7>{"]
    assert json.loads(lines[0][3:])["document"] == "é.pdf"


@pytest.mark.parametrize("stream", [None, "", "1:1", "nonsense"])
def test_a_line_to_anything_else_is_bare_json(channel, monkeypatch, stream):
    """A process inherits JOURNAL_STREAM even when its stderr goes elsewhere."""
    if stream is not None:
        monkeypatch.setenv("JOURNAL_STREAM", stream)
    assert [json.loads(line)["event"] for line in written_to(channel)][:2] == ["document_held", "hints_lost"]


def test_the_console_has_no_priority_even_in_the_journal(channel, monkeypatch):
    """The console is for a person's eye."""
    monkeypatch.setenv("JOURNAL_STREAM", journal_stream(channel.write_end))
    assert not any(line.startswith("<") for line in written_to(channel, "console"))


def test_a_stream_that_is_not_utf_8_still_gets_json(tmp_path):
    """In a Latin-1 or C locale stderr would write a `\\xe9`, which no JSON reader takes."""
    file = tmp_path / "log"
    with file.open("w", encoding="ascii", errors="backslashreplace") as stream:
        logs.configure("json", "info", stream)
        logs.say("document_sent", document="Facture été.pdf")
    assert json.loads(file.read_text(encoding="ascii"))["document"] == "Facture été.pdf"
