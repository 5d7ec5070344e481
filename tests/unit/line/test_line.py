"""How fast the relay may be used, what an exhausted account and a refusing relay cost, and what outlives the daemon."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.line import DAY, Line
from bridged.line.line import LineEvent, Pace
from bridged.model import Instant
from bridged.relay.outcome import (
    Accepted,
    AddressRefused,
    Deferred,
    Exhausted,
    Misconfigured,
    Refused,
    RelayDown,
    Throttled,
)

RETRY = SimpleNamespace(first=30.0, max=1800.0)
A_MINUTE = SimpleNamespace(count=30, seconds=60.0)
OK, SLOW, NO = Accepted("250 ok"), Throttled("432 4.3.2 slow"), Refused("550 no")


def line(sessions=3, rate=None, **more) -> Line:
    return Line(RETRY, sessions, rate, lambda: 0.0, **more)


def sent_between(a_line: Line, start: float, end: float, outcome=OK) -> int:
    """How many turns a sender that never rests gets."""
    now, count = start, 0
    while now < end:
        if a_line.may_send(now):
            a_line.report(outcome, now)
            count += 1
        else:
            now += max(0.01, a_line.wake_in(now))
    return count


def test_a_throttling_halves_the_rate_and_twenty_acceptances_return_an_eighth():
    a_line = line(rate=A_MINUTE)
    assert sent_between(a_line, 0.0, 60.0) == 30
    assert a_line.may_send(60.0)
    a_line.report(SLOW, 60.0)
    assert sent_between(a_line, 60.0, 120.0) == 0
    assert sent_between(a_line, 120.0, 180.0) == 15
    seen = [sent_between(a_line, 60.0 * n, 60.0 * (n + 1)) for n in range(3, 9)]
    assert seen == sorted(seen)
    assert seen[0] in (15, 18)
    assert seen[-1] == 30


@given(st.lists(st.sampled_from([OK, SLOW, NO, Deferred("451")]), min_size=1, max_size=60))
def test_a_configured_rate_is_never_exceeded_at_any_outcome(outcomes):
    a_line, now, taken = line(rate=A_MINUTE), 0.0, []
    for outcome in outcomes * 3:
        while not a_line.may_send(now):
            now += max(0.01, a_line.wake_in(now))
        taken.append(now)
        a_line.report(outcome, now)
    assert all(later - earlier >= 60.0 - 1e-6 for earlier, later in zip(taken, taken[30:], strict=False))


def test_without_a_rate_the_first_throttling_tells_it():
    a_line = line()
    for n in range(100):
        assert a_line.may_send(n / 100)
        a_line.report(OK, n / 100)
    assert a_line.may_send(1.0)
    a_line.report(SLOW, 1.0)
    seen = [sent_between(a_line, 61.0 + 60 * n, 121.0 + 60 * n) for n in range(12)]
    assert seen[0] in (50, 51, 62, 63)
    assert seen == sorted(seen)
    assert seen[-1] > 101, "and it is tried whether more is borne by now"


def test_a_relay_that_throttles_the_first_mail_is_not_taken_to_want_one_a_minute():
    a_line = line()
    assert a_line.may_send(0.0)
    a_line.report(SLOW, 0.0)
    assert sent_between(a_line, 60.0, 120.0) >= 15


def test_an_exhausted_account_is_probed_once_an_hour_and_said_once_with_its_quota():
    a_line = line()
    assert a_line.may_send(0.0)
    assert a_line.report(Exhausted("554 5.2.0 quota"), 0.0) == LineEvent(
        "relay_throttled", "554 5.2.0 quota", quota=True
    )
    assert (a_line.state, a_line.wake_in(0.0)) == ("throttled", 3600.0)
    for hour in range(1, 9):
        now = 3600.0 * hour
        assert not a_line.may_send(now - 0.1)
        assert a_line.may_send(now)
        assert not a_line.may_send(now)
        assert a_line.report(Exhausted("554 5.2.0 quota"), now) is None
        assert a_line.wake_in(now) == 3600.0
    assert a_line.sessions_allowed == 3


def test_the_daily_quota_is_kept_over_any_24_hours_and_told_once():
    a_line = line(daily_quota=10)
    events = []
    for n in range(10):
        assert a_line.may_send(100.0 * n)
        events.append(a_line.report(OK, 100.0 * n))
    assert events[:-1] == [None] * 9
    assert events[-1].name == "relay_throttled"
    assert events[-1].quota
    assert (a_line.state, a_line.event) == ("throttled", "relay_throttled")
    assert a_line.wake_in(1000.0) == DAY - 1000.0
    assert a_line.may_send(DAY)
    assert not a_line.may_send(DAY)  # the one under way may use it up
    assert a_line.report(OK, DAY) is None
    assert a_line.wake_in(DAY) == 100.0


def test_a_used_up_quota_ends_at_the_next_acceptance_and_is_told_again_another_day():
    a_line = line(daily_quota=10)
    told = []
    for day in range(3):
        for n in range(10):
            now = 3 * DAY * day + n
            assert a_line.may_send(now)
            event = a_line.report(OK, now)
            told += [(day, n, event.name, event.quota)] if event else []
    throttled, recovered = ("relay_throttled", True), ("relay_recovered", False)
    assert told == [(0, 9, *throttled), (1, 0, *recovered), (1, 9, *throttled), (2, 0, *recovered), (2, 9, *throttled)]


def test_a_quota_of_one_that_is_used_up_by_each_mail_is_told_once():
    a_line = line(daily_quota=1)
    events = [a_line.report(OK, DAY * day) for day in range(4) if a_line.may_send(DAY * day)]
    assert [event and event.name for event in events] == ["relay_throttled", None, None, None]


def test_a_line_in_the_place_of_a_troubled_one_tells_that_it_works():
    a_line = line()
    a_line.owe_recovery()
    assert [a_line.may_send(0.0), a_line.may_send(0.0)] == [True, True]
    assert a_line.report(NO, 0.0) is None
    assert a_line.report(OK, 0.0) == LineEvent("relay_recovered", "250 ok")
    assert a_line.may_send(1.0)
    assert a_line.report(OK, 1.0) is None


def test_turns_that_are_out_cannot_exceed_the_quota_together():
    a_line = line(daily_quota=2)
    assert [a_line.may_send(0.0) for _ in range(5)] == [True, True, False, False, False]
    a_line.report(NO, 1.0)
    assert a_line.may_send(1.0)


def test_a_sign_in_that_must_wait_is_tried_after_1_2_5_and_10_minutes():
    a_line, now, waits = line(), 0.0, []
    for _ in range(6):
        assert a_line.may_send(now)
        a_line.report(RelayDown("454 4.7.0 later", signing_in=True), now)
        waits.append(a_line.wake_in(now))
        now += waits[-1]
    assert waits == [60, 120, 300, 600, 600, 600]
    assert a_line.state == "unreachable"


# -- the breaker


def refuse(a_line: Line, client: str, document: int, now: float = 0.0, outcome=NO) -> LineEvent | None:
    assert a_line.may_send(now)
    return a_line.report(outcome, now, client, document)


def test_three_refusals_in_a_row_for_three_clients_halt_the_line_and_put_all_back():
    a_line = line()
    assert refuse(a_line, "a", 1) is None
    assert refuse(a_line, "b", 2, outcome=AddressRefused("550 5.1.1 no")) is None
    event = refuse(a_line, "c", 3)
    assert event.name == "relay_misconfigured"
    assert event.put_back == {1, 2, 3}
    assert all(a_line.blameless(document) for document in (1, 2, 3))
    assert (a_line.state, a_line.wake_in(0.0)) == ("misconfigured", 900.0)


@pytest.mark.parametrize(
    "between",
    [
        [("a", 1, NO), ("b", 2, NO), ("b", 3, NO), ("a", 4, NO)],  # two clients
        [("a", 1, NO), ("b", 2, NO), ("x", 9, OK), ("c", 3, NO)],  # not in a row
        [
            ("a", 1, NO),
            ("b", 2, NO),
            ("c", 3, Refused("552 5.3.4 too big", certain=True)),
            ("a", 4, NO),
        ],  # the document's
    ],
)
def test_fewer_do_not(between):
    a_line = line()
    assert [refuse(a_line, client, document, outcome=outcome) for client, document, outcome in between] == [None] * 4
    assert a_line.state == "up"
    assert not a_line.blameless(1)


def test_a_refused_probe_of_a_halt_keeps_its_document_and_an_acceptance_ends_it():
    a_line = line()
    for number, client in enumerate("abc"):
        refuse(a_line, client, number)
    assert refuse(a_line, "d", 4, now=900.0) is None
    assert a_line.blameless(4)
    assert a_line.wake_in(900.0) == 3600.0
    assert refuse(a_line, "e", 5, now=4500.0, outcome=Deferred("451 later")) is None
    assert a_line.state == "misconfigured"
    a_line.probe_now()
    assert refuse(a_line, "f", 6, now=4600.0, outcome=OK) == LineEvent("relay_recovered", "250 ok")
    assert not a_line.blameless(4)
    assert a_line.suspects() == frozenset()


@pytest.mark.parametrize("outcome", [Deferred("451 4.3.0 later"), Refused("552 5.3.4 too big", certain=True)])
def test_while_it_is_halted_an_answer_that_proves_nothing_is_no_end_of_the_pause(outcome):
    a_line = line()
    for number, client in enumerate("abc"):
        refuse(a_line, client, number)
    assert sent_between(a_line, 900.0, 900.0 + 4 * 3600.0, outcome) == 4
    assert a_line.state == "misconfigured"
    assert a_line.unsaved_pace(Instant(0.0, 900.0)).due_at == pytest.approx(4 * 3600.0)


def test_a_probe_that_was_asked_for_while_one_is_under_way_follows_it_at_once():
    a_line = line()
    for number, client in enumerate("abc"):
        refuse(a_line, client, number)
    assert a_line.may_send(900.0)
    a_line.probe_now()
    a_line.report(Deferred("451 later"), 901.0, "d", 4)
    assert a_line.wake_in(901.0) == 0.0


def test_a_line_that_broke_while_it_was_halted_is_halted_again_by_a_deferral():
    a_line = line()
    for number, client in enumerate("abc"):
        refuse(a_line, client, number)
    assert refuse(a_line, "d", 4, now=900.0, outcome=RelayDown("gone")).name == "relay_unreachable"
    event = refuse(a_line, "d", 4, now=5000.0, outcome=Deferred("451 later"))
    assert (event.name, a_line.state) == ("relay_misconfigured", "misconfigured")
    assert a_line.wake_in(5000.0) == 3600.0


def test_a_document_refused_again_after_an_acceptance_is_at_fault_itself():
    a_line = line()
    for number, client in enumerate("abc"):
        refuse(a_line, client, number)
    a_line.probe_now()
    refuse(a_line, "d", 9, outcome=OK)
    assert [refuse(a_line, client, number) for number, client in enumerate("abc")] == [None] * 3
    assert a_line.state == "up"
    assert not any(a_line.blameless(number) for number in range(3))


# -- alerts


def test_an_alert_and_documents_share_the_rate():
    a_line = line(sessions=1, rate=A_MINUTE)
    assert [a_line.may_send_alert(0.0) for _ in range(3)] == [True] * 3
    for _ in range(3):
        assert a_line.report_alert(0.0, accepted=True) is None
    assert sent_between(a_line, 0.0, 59.0) == 27
    assert not a_line.may_send_alert(59.0)
    assert a_line.may_send_alert(60.0)


def test_an_alert_and_documents_share_the_daily_quota():
    a_line = line(sessions=1, daily_quota=3)
    assert sent_between(a_line, 0.0, 0.5) == 3
    assert not a_line.may_send_alert(1.0)
    fresh = line(sessions=1, daily_quota=1)
    assert fresh.may_send_alert(0.0)
    assert not fresh.may_send(0.0), "the alert under way may use up the quota"
    event = fresh.report_alert(0.0, accepted=True)
    assert (event.name, event.quota) == ("relay_throttled", True)
    assert not fresh.may_send(1000.0)


def test_an_alert_that_is_not_accepted_leaves_the_quota_as_it_was():
    a_line = line(sessions=1, daily_quota=1)
    assert a_line.may_send_alert(0.0)
    assert a_line.report_alert(0.0, accepted=False) is None
    assert a_line.may_send(0.0)


def test_an_alert_keeps_a_pause_that_the_relay_asked_for():
    a_line = line(sessions=3)
    assert a_line.may_send(0.0)
    a_line.report(SLOW, 0.0)
    assert not a_line.may_send_alert(1.0)
    assert a_line.may_send_alert(900.0)


def test_an_alert_may_try_a_line_that_is_down_and_its_acceptance_is_no_recovery():
    a_line = line(sessions=1)
    assert a_line.may_send(0.0)
    a_line.report(RelayDown("no route"), 0.0)
    assert a_line.may_send_alert(1.0)
    assert a_line.report_alert(1.0, accepted=True) is None
    assert a_line.state == "unreachable"


def test_only_one_mail_signs_in_first_be_it_a_document_or_an_alert():
    a_line = line(sessions=2, careful=True)
    assert a_line.may_send(0.0)
    assert not a_line.may_send_alert(0.0)
    a_line.give_back()
    assert a_line.may_send_alert(0.0)
    assert not a_line.may_send_alert(0.0)
    assert not a_line.may_send(0.0)


# -- what outlives the daemon


def after_a_restart(a_line: Line, stopped: Instant, started: Instant, **more) -> Line:
    fresh = line(**more)
    fresh.resume(a_line.unsaved_pace(stopped), [], [], started)
    return fresh


@pytest.mark.parametrize("outcome", [Misconfigured("535 no"), Exhausted("554 5.2.0"), SLOW])
def test_a_halt_and_its_next_probe_outlive_the_daemon_and_its_steady_clock(outcome):
    a_line = line()
    assert a_line.unsaved_pace(Instant(5000.0, 100.0)) is None
    assert a_line.may_send(100.0)
    a_line.report(outcome, 100.0)
    due_in = a_line.wake_in(100.0)
    fresh = after_a_restart(a_line, Instant(5000.0, 100.0), Instant(5020.0, 1.0))
    assert (fresh.state, fresh.detail, fresh.event) == (a_line.state, a_line.detail, a_line.event)
    assert fresh.wake_in(1.0) == pytest.approx(due_in - 20.0)
    assert a_line.unsaved_pace(Instant(5000.0, 100.0)) is None  # nothing has changed since


def test_a_link_that_was_down_is_tried_at_once_after_a_restart():
    a_line = line()
    assert a_line.may_send(0.0)
    a_line.report(RelayDown("gone"), 0.0)
    fresh = after_a_restart(a_line, Instant(10.0, 0.0), Instant(11.0, 0.0))
    assert (fresh.state, fresh.wake_in(0.0)) == ("up", 0.0)


def test_the_halved_rate_and_the_fewer_sessions_outlive_the_daemon():
    a_line = line(rate=A_MINUTE)
    assert a_line.may_send(0.0)
    a_line.report(SLOW, 0.0)
    fresh = after_a_restart(a_line, Instant(10.0, 0.0), Instant(100.0, 0.0), rate=A_MINUTE)
    assert fresh.sessions_allowed == 2
    assert sent_between(fresh, 0.0, 60.0) == 15


def test_the_breaker_outlives_the_daemon():
    a_line = line()
    for number, client in enumerate("abc"):
        refuse(a_line, client, number)
    fresh = after_a_restart(a_line, Instant(10.0, 0.0), Instant(20.0, 0.0))
    fresh.probe_now()
    assert refuse(fresh, "d", 7) is None
    assert fresh.blameless(7)


def test_mails_sent_before_the_stop_count_for_rate_and_quota():
    fresh = line(rate=A_MINUTE, daily_quota=100)
    tried = [1000.0 + n for n in range(30)]
    fresh.resume(None, tried, tried, Instant(1035.0, 7.0))
    assert fresh.wake_in(7.0) == pytest.approx(25.0)
    spent = line(daily_quota=30)
    spent.resume(None, tried, tried, Instant(1035.0, 7.0))
    assert (spent.state, spent.quota) == ("throttled", "ours")
    assert "smtp.daily_quota" in spent.detail
    assert spent.wake_in(7.0) == pytest.approx(DAY - 35.0)


def test_a_due_time_that_a_jumping_clock_has_made_is_at_most_an_hour_away():
    fresh = line()
    fresh.resume(Pace("misconfigured", "535", 9e9, 2, 3, 1.0, 0, breaker=False), [], [], Instant(0.0, 0.0))
    assert fresh.wake_in(0.0) == 3600.0


# -- signing in


def test_a_careful_line_lets_one_in_first_and_the_others_once_it_was_let_in():
    a_line = line(careful=True)
    assert [a_line.may_send(0.0), a_line.may_send(0.0)] == [True, False]
    assert 0 < a_line.wake_in(0.0) < 1
    a_line.give_back()
    assert a_line.may_send(0.0)
    a_line.report(NO, 1.0)
    assert [a_line.may_send(1.0), a_line.may_send(1.0)] == [True, True]


def test_a_careful_line_whose_first_sign_in_failed_goes_on_by_single_probes():
    a_line = line(careful=True)
    assert a_line.may_send(0.0)
    a_line.report(Misconfigured("535 no"), 0.0)
    assert [a_line.may_send(900.0), a_line.may_send(900.0)] == [True, False]
    a_line.report(OK, 901.0)
    assert [a_line.may_send(901.0), a_line.may_send(901.0)] == [True, True]
