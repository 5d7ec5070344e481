"""The pace outlives the daemon: a real journal, also with values that a later version wrote into it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridged.config.settings import Retry, Smtp
from bridged.journal import Journal, JournalUnavailable
from bridged.line import Line, restart
from bridged.model import Instant
from bridged.relay.outcome import Accepted, Misconfigured

HOUR = 3600.0
START = 1_000_000.0


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    (tmp_path / "state").mkdir(mode=0o700)
    journal = Journal(tmp_path / "state")
    yield journal
    journal.close()


def smtp(host: str = "a.example", **more: Any) -> Smtp:
    given = {"host": host, "sender": "factures@cabinet.example", "username": "factures", "password_env": "SECRET"}
    return Smtp.model_validate(given | more)


def at(seconds: float) -> Instant:
    return Instant(START + seconds, seconds)


def line(journal: Journal, relay: Smtp, now: float) -> Line:
    """A line as the daemon makes it at a start and at a reload."""
    made = Line(Retry(), 2, daily_quota=relay.daily_quota)
    restart.resume(journal, relay, made, at(now))
    return made


def accept(journal: Journal, count: int, now: float) -> None:
    for _ in range(count):
        journal.write(lambda tx: tx.attempt(1, START + now, "accepted", "250 ok"))


def left(a_line: Line, now: float) -> int:
    """The number of mails that the quota lets through."""
    count = 0
    while a_line.may_send(now):
        a_line.report(Accepted("250 ok"), now)
        count += 1
    return count


# -- attempts and their accounts


def test_an_attempt_counts_for_its_own_account_and_for_no_other(journal):
    a, b = smtp("a.example", daily_quota=10), smtp("b.example", daily_quota=10)
    line(journal, a, 0)
    accept(journal, 4, 100)
    assert left(line(journal, b, HOUR), HOUR) == 10
    accept(journal, 7, 2 * HOUR)
    assert left(line(journal, b, 3 * HOUR), 3 * HOUR) == 3
    assert left(line(journal, a, 4 * HOUR), 4 * HOUR) == 6, "back at the first one, the same day"
    assert left(line(journal, a, 25 * HOUR), 25 * HOUR) == 10


@pytest.mark.parametrize(("username", "expected"), [("factures", 6), (None, 10)])
def test_another_port_is_another_account_only_without_a_sign_in(journal, username, expected):
    whose = {"daily_quota": 10} | ({"username": None, "password_env": None} if username is None else {})
    line(journal, smtp(**whose), 0)
    accept(journal, 4, 100)
    assert left(line(journal, smtp(port=2525, **whose), HOUR), HOUR) == expected


def test_a_mail_in_transit_at_a_change_of_account_counts_for_both(journal):
    a, b = smtp("a.example", daily_quota=10), smtp("b.example", daily_quota=10)
    line(journal, a, 0)
    line(journal, b, HOUR)
    accept(journal, 1, HOUR + 300)
    assert left(line(journal, a, 2 * HOUR), 2 * HOUR) == 9
    assert left(line(journal, b, 3 * HOUR), 3 * HOUR) == 9


def test_an_attempt_from_before_accounts_were_kept_counts_for_any(journal):
    accept(journal, 4, -HOUR)
    assert left(line(journal, smtp(daily_quota=10), 0), 0) == 6
    assert left(line(journal, smtp("b.example", daily_quota=10), 1), 1) == 6


def test_a_journal_that_cannot_be_written_stops_no_line(journal, said, monkeypatch):
    def full(_: object) -> None:
        raise JournalUnavailable("database or disk is full")

    monkeypatch.setattr(journal, "write", full)
    assert left(line(journal, smtp(daily_quota=10), 0), 0) == 10
    assert [(one["event"], one["level"]) for one in said] == [("state_failed", "warning")]


# -- a halt that a person has seen to


def halted(journal: Journal, relay: Smtp) -> None:
    a_line = line(journal, relay, 0)
    a_line.probe_now()
    assert a_line.may_send(0)
    a_line.report(Misconfigured("535 5.7.3"), 0)
    restart.keep(journal, relay, a_line, at(0))


def test_a_halt_outlives_a_restart_and_is_tried_at_once_when_the_secret_is_another(journal, monkeypatch):
    monkeypatch.setenv("SECRET", "old~secret")
    halted(journal, smtp())
    again = line(journal, smtp(), 60)
    assert (again.state, again.wake_in(60)) == ("misconfigured", 840.0)
    monkeypatch.setenv("SECRET", "new~secret")
    again = line(journal, smtp(), 60)
    assert (again.state, again.wake_in(60)) == ("misconfigured", 0.0)
    assert again.may_send(60)
    again.report(Misconfigured("535 5.7.3"), 60)
    restart.keep(journal, smtp(), again, at(60))
    assert line(journal, smtp(), 120).wake_in(120) == 840.0, "once"


def test_a_halt_is_tried_at_once_when_settings_change_or_the_secret_file_appears(journal, tmp_path):
    relay = smtp(password_env=None, password_file=str(tmp_path / "secret"))
    halted(journal, relay)
    assert line(journal, relay, 60).wake_in(60) == 840.0
    assert line(journal, relay.model_copy(update={"sender": "autre@cabinet.example"}), 60).wake_in(60) == 0.0
    (tmp_path / "secret").write_text("a~secret\n")
    assert line(journal, relay, 60).wake_in(60) == 0.0


def test_a_halt_is_tried_at_once_when_the_client_secret_is_another(journal, tmp_path):
    (tmp_path / "secret").write_text("old\n")
    auth = {"method": "xoauth2", "tenant": "t", "client_id": "c", "client_secret_file": str(tmp_path / "secret")}
    relay = smtp(password_env=None, auth=auth)
    halted(journal, relay)
    assert line(journal, relay, 60).wake_in(60) == 840.0
    (tmp_path / "secret").write_text("new\n")
    assert line(journal, relay, 60).wake_in(60) == 0.0


def test_a_kept_pace_shows_nothing_of_the_secret(journal, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "old~secret")
    halted(journal, smtp())
    first = kept(journal)["signs_in"]
    halted(journal, smtp())
    assert first != kept(journal)["signs_in"], "salted anew each time"
    journal.close()
    assert not [path for path in (tmp_path / "state").iterdir() if b"old~secret" in path.read_bytes()]


# -- values that cannot be read


def key() -> str:
    return "pace of factures at a.example:587"


def kept(journal: Journal) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(journal.read(lambda tx: tx.kept(key())) or "")
    return found


WHOLE: dict[str, Any] = {
    "matter": "misconfigured", "detail": "535", "due_at": START + 100, "failures": 1, "sessions": 2, "share": 0.5,
    "measured": 0, "breaker": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "written",
    ["", "null", "[]", "3", "{}", "no JSON", *(json.dumps(WHOLE | change) for change in (
        {"matter": "a later version's"}, {"sessions": None}, {"share": "much"}, {"due_at": [1]}, {"signs_in": "x:y"},
    ))],
)  # fmt: skip
def test_a_kept_pace_that_cannot_be_read_is_none_and_is_told(journal, said, written):
    journal.write(lambda tx: tx.keep(key(), written))
    assert line(journal, smtp(), 0).state == "up"
    assert [(one["event"], one["half"], one["level"]) for one in said] == [("state_failed", "pace", "warning")]


@pytest.mark.parametrize("more", [{}, {"of_a_later_version": 1}])
def test_a_kept_pace_goes_on_with_or_without_the_keys_of_a_later_version(journal, said, more):
    journal.write(lambda tx: tx.keep(key(), json.dumps(WHOLE | more)))
    assert line(journal, smtp(), 0).wake_in(0) == 100.0
    assert said == []


@pytest.mark.parametrize("written", ["", "null", "[1]", "{}", '[["a", "b"]]', '[[1, "a", 2]]'])
def test_accounts_that_cannot_be_read_let_every_attempt_count(journal, written):
    journal.write(lambda tx: tx.keep(restart.ACCOUNTS, written))
    accept(journal, 4, -HOUR)
    assert left(line(journal, smtp(daily_quota=10), 0), 0) == 6
