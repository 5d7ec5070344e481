"""Alerts and digests: their conditions, their times, their contents and their words."""

from __future__ import annotations

import json
import string
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.alerts import letters
from bridged.alerts.digest import ACTIVE_DAYS, SILENT_FOR, Digest, Silence, digest_due, scheduled, silence, silences
from bridged.alerts.events import Kind, Raised, read
from bridged.alerts.ledger import AGAIN, CONFIRMED_WITHIN, GATHER, PROBED_WITHIN, Condition, Ledger
from bridged.model import Instant

PARIS = ZoneInfo("Europe/Paris")
NOON = datetime(2026, 11, 24, 12, 0, tzinfo=PARIS).timestamp()
AWAY = {"client": "Martin", "ged": "/ged/martin", "reason": "Host is down", "level": "warning"}


def at(seconds: float) -> Instant:
    return Instant(NOON + seconds, 1000.0 + seconds)


def hear(ledger: Ledger, seconds: float, event: str, **fields: Any) -> None:
    for news in read(event, fields):
        ledger.take(news, at(seconds))


def told(ledger: Ledger, seconds: float) -> list[list[Raised]]:
    return [[condition.raised for condition in mail] for mail in ledger.due(at(seconds))]


EVENTS = [
    ("relay_misconfigured", {"reason": "535 5.7.8 no", "relay": "smtp.example"}, Kind.ACCOUNT),
    ("relay_throttled", {"reason": "554 5.2.0", "relay": "smtp.example", "quota": True}, Kind.QUOTA),
    ("folder_unreachable", AWAY, Kind.SHARE),
    ("folder_unreachable", {"client": "Martin", "folder": b"Achats", "reason": "permission denied"}, Kind.SHARE),
    ("state_failed", {"half": "intake", "reason": "disk is full", "level": "error"}, Kind.STATE),
    ("marker_failed", {"client": "M", "path": "/a", "reason": "No space left on device; tried again"}, Kind.DISK),
    ("marker_failed", {"client": "M", "path": "/a", "reason": "Read-only file system; tried again"}, Kind.DISK),
    ("document_held", {"client": "M", "address_refused": True, "collection_email": "m@c.example"}, Kind.ADDRESS),
    ("watch_limit_reached", {"reason": "no inotify instance"}, Kind.WATCHES),
]


@pytest.mark.parametrize(("event", "fields", "kind"), EVENTS)
def test_a_condition_is_told_once_after_the_gathering(event, fields, kind):
    ledger = Ledger()
    hear(ledger, 0, event, **fields)
    assert told(ledger, GATHER - 0.1) == []
    [[raised]] = told(ledger, GATHER)
    assert raised.kind is kind
    hear(ledger, 20, event, **fields)
    assert told(ledger, 10 * AGAIN) == []


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("relay_throttled", {"reason": "451 4.7.0 slow down"}),
        ("relay_unreachable", {"reason": "timed out"}),
        ("document_held", {"client": "M", "reason": "552 too large"}),
        ("marker_failed", {"client": "M", "reason": "permission denied"}),
        ("state_failed", {"half": "alerts", "reason": "x", "level": "warning"}),
        ("state_failed", {"half": "alerts", "reason": "x", "level": "error"}),
        ("config_rejected", {"problems": ["x"]}),
    ],
)
def test_an_event_that_mends_itself_or_was_told_before_is_no_alert(event, fields):
    assert [news for news in read(event, fields) if isinstance(news, Raised)] == []


def test_eight_hundred_shares_of_one_server_are_one_mail_that_names_fifty():
    ledger = Ledger()
    for number in range(800):
        hear(ledger, number / 100, "folder_unreachable", client=f"C{number:03}", ged=f"/ged/{number}", reason="down")
    [conditions] = ledger.due(at(GATHER))
    assert len(conditions) == 800
    for language, more in (("en", "… and 750 more"), ("fr", "… et 750 de plus")):
        text = letters.alert(conditions, language).text
        assert sum(line.startswith("- ") for line in text.splitlines()) == 50
        assert more in text
    assert told(ledger, 10 * AGAIN) == []


def test_a_condition_that_ends_within_the_gathering_is_not_told():
    ledger = Ledger()
    hear(ledger, 0, "folder_unreachable", **AWAY)
    hear(ledger, 5, "folder_recovered", client="Martin", ged="/ged/martin")
    assert told(ledger, 100) == []


def test_the_return_of_one_share_says_nothing_of_another():
    ledger = Ledger()
    hear(ledger, 0, "folder_unreachable", **AWAY)
    hear(ledger, 1, "folder_recovered", client="Martin", folder=b"Achats")
    hear(ledger, 2, "folder_rebaselined", client="Durand", ged="/ged/martin")
    assert len(told(ledger, 20)) == 1


def test_a_share_that_comes_and_goes_is_told_once_an_hour():
    ledger = Ledger()
    mails = []
    for minute in range(181):
        hear(ledger, 60 * minute, "folder_unreachable", **AWAY)
        mails += [minute for _ in told(ledger, 60 * minute + 30)]
        if minute % 10 == 9:
            hear(ledger, 60 * minute + 40, "folder_recovered", client="Martin", ged="/ged/martin")
    assert mails == [0, 60, 120, 180]


@pytest.mark.parametrize(
    ("raising", "ending"),
    [
        (("relay_misconfigured", {}), ("relay_recovered", {})),
        (("relay_throttled", {"quota": True}), ("relay_recovered", {})),
        (("folder_unreachable", AWAY), ("folder_rebaselined", {"client": "Martin", "ged": "/ged/martin"})),
        (("state_failed", {"half": "intake"}), ("document_queued", {"client": "M"})),
        (
            ("marker_failed", {"client": "M", "reason": "No space left on device"}),
            ("document_validated", {"client": "M", "marker": "a.validated.json"}),
        ),
        (
            ("document_held", {"client": "M", "collection_email": "m@c.example", "address_refused": True}),
            ("document_sent", {"client": "M", "collection_email": "m@c.example"}),
        ),
        (
            ("document_held", {"client": "M", "collection_email": "m@c.example", "address_refused": True}),
            ("document_released", {"client": "M"}),
        ),
    ],
)
def test_a_condition_that_ended_and_begins_again_is_told_again(raising, ending):
    ledger = Ledger()
    hear(ledger, 0, raising[0], **raising[1])
    assert len(told(ledger, 60)) == 1
    hear(ledger, 70, ending[0], **ending[1])
    hear(ledger, AGAIN + 100, raising[0], **raising[1])
    assert len(told(ledger, AGAIN + 200)) == 1


def test_one_refused_address_is_one_alert_however_many_documents():
    ledger = Ledger()
    for client, address in (("A", "a@c.example"), ("A", "a@c.example"), ("A", "ndf@c.example"), ("B", "a@c.example")):
        hear(ledger, 0, "document_held", client=client, collection_email=address, address_refused=True)
    hear(ledger, 1, "document_sent", client="A", collection_email="other@c.example")
    [mail] = told(ledger, 20)
    assert [raised.what for raised in mail] == ["a@c.example", "ndf@c.example"]


def again(ledger: Ledger) -> Ledger:
    """The ledger of the next start, by the memory that the journal keeps."""
    return Ledger(json.loads(json.dumps(ledger.memory())))


def test_a_restart_in_the_middle_of_a_halt_does_not_tell_it_again():
    ledger = Ledger()
    hear(ledger, 0, "relay_misconfigured", reason="535")
    assert len(told(ledger, 20)) == 1
    ledger = again(ledger)
    assert told(ledger, 100) == []
    hear(ledger, 3600, "relay_misconfigured", reason="535, in other words")
    assert told(ledger, 10 * AGAIN) == []


@pytest.mark.parametrize(
    ("event", "fields", "patience"),
    [("relay_misconfigured", {}, PROBED_WITHIN), ("folder_unreachable", AWAY, CONFIRMED_WITHIN)],
)
def test_a_condition_that_ended_during_a_stop_is_forgotten_and_told_when_it_begins(event, fields, patience):
    ledger = Ledger()
    hear(ledger, 0, event, **fields)
    assert len(told(ledger, 20)) == 1
    ledger = again(ledger)
    assert told(ledger, 2 * AGAIN) == []
    assert told(ledger, 2 * AGAIN + patience + 1) == []
    hear(ledger, 5 * AGAIN, event, **fields)
    assert len(told(ledger, 5 * AGAIN + 20)) == 1


def test_a_sent_document_ends_a_remembered_halt_but_none_that_was_logged_again():
    ledger = Ledger()
    hear(ledger, 0, "relay_misconfigured")
    assert len(told(ledger, 20)) == 1
    hear(ledger, 30, "document_sent", client="M", collection_email="m@c.example")  # it began before the halt
    hear(ledger, 2 * AGAIN, "relay_misconfigured")
    assert told(ledger, 3 * AGAIN) == []
    ledger = again(ledger)
    hear(ledger, 3 * AGAIN, "document_sent", client="M", collection_email="m@c.example")
    hear(ledger, 4 * AGAIN, "relay_misconfigured")
    assert len(told(ledger, 5 * AGAIN)) == 1


def test_a_refused_address_that_was_not_told_before_the_stop_is_told_after_the_start():
    ledger = Ledger()
    hear(ledger, 0, "document_held", client="A", collection_email="a@c.example", address_refused=True)
    hear(ledger, 0, "folder_unreachable", **AWAY)
    assert [[raised.kind for raised in mail] for mail in told(again(ledger), 60)] == [[Kind.ADDRESS]]


def test_a_client_that_is_no_longer_configured_has_no_conditions():
    ledger = Ledger()
    hear(ledger, 0, "folder_unreachable", **AWAY)
    hear(ledger, 0, "relay_misconfigured")
    ledger.keep_clients(["Durand"])
    assert [[raised.kind for raised in mail] for mail in told(ledger, 60)] == [[Kind.ACCOUNT]]


def test_a_clock_that_was_set_back_does_not_silence_an_alert():
    ledger = Ledger()
    hear(ledger, 0, "relay_misconfigured")
    assert ledger.due(Instant(NOON + 86400, 2000.0))
    hear(ledger, 0, "relay_recovered")
    hear(ledger, 0, "relay_misconfigured")
    assert ledger.due(Instant(NOON, 9000.0))


# -- the words


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_every_kind_of_alert_has_its_words_in_both_languages():
    assert letters.ALERTS["fr"].keys() == letters.ALERTS["en"].keys() == set(Kind)
    for kind in Kind:
        french, english = letters.ALERTS["fr"][kind], letters.ALERTS["en"][kind]
        for name in ("subject", "happened", "remedy"):
            assert getattr(french, name)
            assert getattr(english, name)
            assert getattr(french, name) != getattr(english, name)


def test_every_phrase_takes_the_same_words_in_both_languages():
    assert letters.PHRASES["fr"].keys() == letters.PHRASES["en"].keys()
    for name, phrase in letters.PHRASES["en"].items():
        assert placeholders(phrase) == placeholders(letters.PHRASES["fr"][name]), name


@pytest.mark.parametrize("language", ["fr", "en"])
@pytest.mark.parametrize("kind", list(Kind))
def test_an_alert_names_the_event_its_time_the_thing_and_the_remedy(kind, language):
    condition = Condition(Raised(kind, "Martin", "/ged/martin", "the relay's own words"), NOON, 0.0)
    letter = letters.alert([condition], language, PARIS)
    words = letters.ALERTS[language][kind]
    assert letter.subject.startswith(f"[bridged] {words.subject}")
    assert "\n" not in letter.subject
    for part in (words.happened, words.remedy, "the relay's own words"):
        assert part in letter.text
    assert "bridged" in words.remedy or "balayage" in words.remedy or "sweep" in words.remedy
    if kind is not Kind.CONFIGURATION:
        when = {"fr": "depuis le 24/11/2026 12:00 (UTC+01:00)", "en": "since 2026-11-24 12:00 (UTC+01:00)"}[language]
        assert when in letter.text
        assert "Martin" in letter.text
        assert "/ged/martin" in letter.text


@pytest.mark.parametrize("language", ["fr", "en"])
def test_a_name_or_a_reason_cannot_forge_a_line_of_an_alert(language):
    raised = Raised(Kind.SHARE, "A\r\nBcc: x@evil.example", "a\u202eb\x1b[2J", "x" * 10_000)
    letter = letters.alert([Condition(raised, NOON, 0.0)], language, PARIS)
    assert "\n" not in letter.subject
    assert "\r" not in letter.subject
    assert not set("\r\u202e\x1b") & set(letter.text)
    assert not any(line.startswith("Bcc") for line in letter.text.splitlines())
    assert max(map(len, letter.text.splitlines())) < 1000


@pytest.mark.parametrize("language", ["fr", "en"])
def test_a_digest_says_all_that_was_found_and_how_to_look_at_it(language):
    found = Digest(
        held=(("Martin", "550 5.1.1 unknown", 3), ("Durand", "", 1)),
        late=(("Martin", 2, NOON),),
        missed=(("Durand", 7),),
        silent=(Silence("Petit", date(2026, 10, 1), 6),),
    )
    letter = letters.digest(found, language, PARIS)
    for command in ("--state held", "bridged release", "--state missed", "bridged send", "bridged status"):
        assert command in letter.text
    for word in ("Martin", "550 5.1.1 unknown", "Durand", "Petit", letters.PHRASES[language]["no_reason"]):
        assert word in letter.text
    assert {"fr": "01/10/2026", "en": "2026-10-01"}[language] in letter.text
    assert "4" in letter.subject
    assert "7" in letter.subject


def test_a_digest_has_no_section_without_entries():
    letter = letters.digest(Digest(missed=(("Durand", 7),)), "en", PARIS)
    assert letter.subject == "[bridged] Daily digest: 7 missed"
    assert "--state held" not in letter.text
    assert not Digest()


# -- when the digest is due


def paris(*when: int) -> float:
    return datetime(*when, tzinfo=PARIS).timestamp()  # type: ignore[arg-type,misc]


def test_a_digest_is_due_once_from_its_time_on():
    last = paris(2026, 11, 23, 18, 0, 1)
    assert not digest_due("18:00", last, paris(2026, 11, 24, 17, 59, 59), PARIS)
    assert digest_due("18:00", last, paris(2026, 11, 24, 18, 0), PARIS)
    assert not digest_due("18:00", paris(2026, 11, 24, 18, 0), paris(2026, 11, 24, 23, 0), PARIS)


def test_a_digest_due_while_bridged_was_stopped_goes_once_at_the_next_start():
    last, start = paris(2026, 11, 20, 18, 0, 1), paris(2026, 11, 24, 9, 0)
    assert digest_due("18:00", last, start, PARIS)
    assert not digest_due("18:00", start, start + 60, PARIS)
    assert digest_due("18:00", start, paris(2026, 11, 24, 18, 0), PARIS)


@pytest.mark.parametrize("time", ["00:00", "02:00", "02:30", "03:00", "18:00", "23:59"])
@pytest.mark.parametrize("day", [(2026, 3, 27), (2026, 10, 23)])
def test_there_is_one_digest_a_day_when_summer_time_begins_and_ends(day, time):
    now, last, days = paris(*day), paris(*day) - 1, []
    after = date(*day) + timedelta(days=5)
    end = paris(after.year, after.month, after.day)
    while now < end:
        if digest_due(time, last, now, PARIS):
            last = now
            days.append(datetime.fromtimestamp(now, PARIS).date())
        now += 60
    assert days == [date(*day) + timedelta(days=number) for number in range(5)]


@given(st.integers(1_577_836_800, 2_051_222_400), st.times())
def test_the_last_time_of_a_digest_is_within_the_day_before(instant, time):
    last = scheduled(f"{time:%H:%M}", instant, PARIS)
    assert last <= instant < last + 25 * 3600 + 1


# -- silence


def days_with_gaps(first: date, gaps: list[int]) -> list[date]:
    days = [first]
    for gap in gaps:
        days.append(days[-1] + timedelta(days=gap))
    return days


def test_a_client_is_silent_after_twice_its_longest_pause():
    days = days_with_gaps(date(2026, 9, 1), [7, 10, 7, 7])
    on = days[-1] + timedelta(days=21)
    assert silence("A", days, on - timedelta(days=1), on) == Silence("A", days[-1], 10)
    assert silence("A", days, on - timedelta(days=2), on - timedelta(days=1)) is None
    assert silence("A", days, on, on + timedelta(days=1)) is None


def test_two_weeks_are_no_silence_of_a_client_that_deposits_daily():
    days = days_with_gaps(date(2026, 9, 1), [1] * 20)
    on = days[-1] + timedelta(days=SILENT_FOR)
    assert silence("A", days, on - timedelta(days=2), on - timedelta(days=1)) is None
    assert silence("A", days, on - timedelta(days=1), on) is not None


def test_a_long_pause_of_long_ago_makes_no_silence_usual():
    days = days_with_gaps(date(2026, 1, 1), [90, *[10] * 13])
    on = days[-1] + timedelta(days=21)
    assert silence("A", days, on - timedelta(days=1), on) == Silence("A", days[-1], 10)


def test_a_client_with_few_days_of_deposits_is_never_silent():
    days = days_with_gaps(date(2026, 9, 1), [1] * (ACTIVE_DAYS - 2))
    assert silence("A", days, date(2026, 9, 2), date(2027, 9, 1)) is None
    assert silence("A", [], date(2026, 9, 2), date(2027, 9, 1)) is None


def test_only_configured_clients_are_silent():
    days = [(client, day.isoformat()) for client in ("A", "B") for day in days_with_gaps(date(2026, 9, 1), [1] * 9)]
    found = silences(days, ["A", "C"], date(2026, 9, 11), date(2026, 12, 1))
    assert [one.client for one in found] == ["A"]


@given(st.lists(st.integers(1, 60), min_size=0, max_size=40), st.lists(st.integers(1, 9), min_size=1, max_size=60))
def test_one_silence_is_told_at_most_once_by_all_digests(gaps, steps):
    days = days_with_gaps(date(2026, 1, 1), gaps)
    last, told = days[-1], []
    for step in steps:
        today = last + timedelta(days=step)
        found = silence("A", days, last, today)
        if found is not None:
            told.append((today, found))
        last = today
    active = [day for day in days if days[-1] - day <= timedelta(days=120)]
    longest = max([(b - a).days for a, b in pairwise(active)], default=0)
    unusual = days[-1] + timedelta(days=max(2 * longest + 1, SILENT_FOR))
    assert len(told) == (1 if len(active) >= ACTIVE_DAYS and unusual <= last else 0)
    assert all(today - days[-1] > timedelta(days=2 * longest) for today, _ in told)
