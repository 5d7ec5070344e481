"""When a document is tried again, and how the way to the relay opens and closes."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.line import Line, next_due, tried_for
from bridged.line.line import LineEvent
from bridged.relay.outcome import Accepted, Deferred, Misconfigured, Refused, RelayDown, Throttled, Uncertain

RETRY = SimpleNamespace(first=30.0, max=1800.0)
DOWN, HALT, SLOW, OK = RelayDown("gone"), Misconfigured("535 no"), Throttled("451 slow"), Accepted("250 ok")


def line(sessions=2, rate=None, random=lambda: 0.0) -> Line:
    return Line(RETRY, sessions, rate, random)


def probe(a_line: Line, outcome, now: float) -> LineEvent | None:
    assert a_line.may_send(now)
    return a_line.report(outcome, now)


# -- documents


def test_waits_double_from_the_first_to_the_longest():
    waits = [next_due(RETRY, n, 0.0, lambda: 0.0) for n in range(1, 9)]
    assert waits == [30, 60, 120, 240, 480, 960, 1500, 1500]


@given(st.integers(0, 5000), st.floats(0, 1, exclude_max=True), st.floats(0.01, 1e4), st.floats(1, 1e3))
def test_jitter_is_at_most_a_fifth_and_never_goes_beyond_the_longest_wait(attempts, chance, first, factor):
    retry = SimpleNamespace(first=first, max=first * factor)
    plain = next_due(retry, attempts, 0.0, lambda: 0.0)
    assert plain <= next_due(retry, attempts, 0.0, lambda: chance) <= plain * 1.2 + 1e-9
    assert 0 < next_due(retry, attempts, 0.0, lambda: chance) <= retry.max + 1e-9


def test_a_document_has_been_tried_since_its_first_attempt():
    assert tried_for([100.0, 150.0], 199.9, 3600.0) == pytest.approx(99.9)
    assert tried_for([], 199.9, 3600.0) == 0.0


def test_a_jump_of_the_clock_counts_as_the_longest_wait_at_most():
    assert tried_for([100.0, 130.0], 31_536_000.0, 3600.0) == pytest.approx(3630.0)
    assert tried_for([100.0, 130.0], 40.0, 3600.0) == pytest.approx(30.0)


# -- the line


def test_a_line_that_is_up_gives_every_turn_and_no_event_for_a_success():
    a_line = line()
    assert [a_line.may_send(0.0) for _ in range(3)] == [True] * 3
    assert [a_line.report(o, 0.0) for o in (OK, Deferred("450 x"), Refused("550 x"))] == [None] * 3
    assert (a_line.state, a_line.detail, a_line.wake_in(0.0)) == ("up", "", 0.0)


def test_a_relay_that_is_down_is_said_once_and_probed_by_one_with_growing_pauses():
    a_line = line()
    assert probe(a_line, DOWN, 0.0) == LineEvent("relay_unreachable", "gone")
    assert (a_line.state, a_line.detail) == ("unreachable", "gone")
    now, pauses = 0.0, []
    for _ in range(12):
        pause = a_line.wake_in(now)
        pauses.append(pause)
        assert not a_line.may_send(now + pause - 0.01)
        now += pause
        assert a_line.may_send(now)
        assert not a_line.may_send(now), "one prober"
        assert a_line.wake_in(now) > 0
        assert a_line.report(DOWN, now) is None
    assert pauses[:4] == [5, 10, 20, 40]
    assert max(pauses) == 1500


def test_pauses_are_jittered_and_stay_within_the_longest():
    a_line = line(random=lambda: 0.999)
    now, pauses = 0.0, []
    for _ in range(15):
        probe(a_line, DOWN, now)
        pauses.append(a_line.wake_in(now))
        now += pauses[-1]
    assert 1500 < max(pauses) <= RETRY.max


@pytest.mark.parametrize("outcome", [OK, Deferred("450 x"), Refused("550 x")])
@pytest.mark.parametrize("trouble", [DOWN, HALT, SLOW])
def test_an_outcome_of_a_working_relay_is_a_recovery_said_once(trouble, outcome):
    a_line = line()
    probe(a_line, trouble, 0.0)
    assert probe(a_line, outcome, 10_000.0) == LineEvent("relay_recovered", outcome.reply)
    assert probe(a_line, outcome, 10_000.0) is None
    assert (a_line.state, a_line.detail) == ("up", "")


def test_a_recovery_makes_the_next_trouble_start_from_the_first_pause():
    a_line = line()
    for now in (0.0, 100.0, 200.0):
        probe(a_line, DOWN, now)
    probe(a_line, OK, 300.0)
    probe(a_line, DOWN, 400.0)
    assert a_line.wake_in(400.0) == 5


def test_a_misconfiguration_is_probed_after_a_quarter_of_an_hour_and_then_hourly():
    a_line = line()
    assert probe(a_line, HALT, 0.0) == LineEvent("relay_misconfigured", "535 no")
    assert a_line.wake_in(0.0) == 900
    assert probe(a_line, HALT, 900.0) is None
    assert a_line.wake_in(900.0) == 3600


def test_an_outage_in_between_does_not_make_failed_logins_more_frequent():
    a_line = line()
    probe(a_line, HALT, 0.0)
    assert probe(a_line, DOWN, 900.0) == LineEvent("relay_unreachable", "gone")
    assert probe(a_line, HALT, 1000.0) == LineEvent("relay_misconfigured", "535 no")
    assert a_line.wake_in(1000.0) == 3600


def test_throttling_pauses_a_minute_doubling_to_a_quarter_of_an_hour():
    a_line = line()
    assert probe(a_line, SLOW, 0.0) == LineEvent("relay_throttled", "451 slow")
    now, pauses = 0.0, []
    for _ in range(6):
        pauses.append(a_line.wake_in(now))
        now += pauses[-1]
        probe(a_line, SLOW, now)
    assert pauses == [60, 120, 240, 480, 750, 750]
    assert max(pauses) * 1.2 == 900


def test_throttling_lowers_the_sessions_to_one_and_acceptances_restore_them_slowly():
    a_line = line(sessions=3)
    assert a_line.sessions_allowed == 3
    for now in (0.0, 1000.0, 2000.0):
        probe(a_line, SLOW, now)
    assert a_line.sessions_allowed == 1
    seen = []
    for minute in range(60):
        probe(a_line, OK, 9000.0 + 60 * minute)
        seen.append(a_line.sessions_allowed)
    assert seen == [1] * 19 + [2] * 20 + [3] * 21


def test_a_relay_that_throttles_after_each_mail_gets_longer_pauses_all_the_same():
    a_line = line()
    probe(a_line, SLOW, 0.0)
    probe(a_line, OK, 60.0)
    probe(a_line, SLOW, 60.0)
    assert a_line.wake_in(60.0) == 120


def test_conversations_from_before_a_pause_neither_lengthen_nor_repeat_it():
    a_line = line(sessions=3)
    for _ in range(3):
        assert a_line.may_send(0.0)
    assert a_line.report(DOWN, 1.0) is not None
    assert a_line.report(DOWN, 2.0) is None
    assert a_line.report(DOWN, 3.0) is None
    assert a_line.wake_in(1.0) == 5


@pytest.mark.parametrize("trouble", [HALT, SLOW])
def test_a_conversation_from_before_does_not_end_a_halt_or_a_throttling(trouble):
    a_line = line()
    assert [a_line.may_send(0.0), a_line.may_send(0.0)] == [True, True]
    a_line.report(trouble, 1.0)
    assert a_line.report(OK, 2.0) is None
    assert not a_line.may_send(2.0)
    assert probe(a_line, OK, 2000.0) is not None


def test_the_graver_trouble_of_two_conversations_counts():
    a_line = line()
    assert [a_line.may_send(0.0), a_line.may_send(0.0)] == [True, True]
    a_line.report(DOWN, 0.0)
    assert a_line.report(HALT, 1.0) == LineEvent("relay_misconfigured", "535 no")
    assert a_line.wake_in(1.0) == 900


def test_uncertainty_says_nothing_of_a_line_that_is_up_and_is_no_recovery():
    a_line = line()
    assert probe(a_line, Uncertain("lost"), 0.0) is None
    assert a_line.state == "up"
    probe(a_line, DOWN, 0.0)
    assert probe(a_line, Uncertain("lost"), 5.0) is None
    assert (a_line.state, a_line.wake_in(5.0)) == ("unreachable", 10)


@pytest.mark.parametrize("trouble", [DOWN, HALT, SLOW])
def test_probe_now_ends_any_pause_for_one_prober(trouble):
    a_line = line()
    probe(a_line, trouble, 0.0)
    a_line.probe_now()
    assert a_line.wake_in(0.1) == 0
    assert [a_line.may_send(0.1), a_line.may_send(0.1)] == [True, False]


def test_probe_now_while_a_probe_is_away_leads_to_another_one_at_once():
    a_line = line()
    probe(a_line, HALT, 0.0)
    assert a_line.may_send(900.0)
    a_line.probe_now()
    a_line.report(HALT, 901.0)
    assert probe(a_line, HALT, 901.0) is None
    assert a_line.wake_in(901.0) == 3600


def test_a_probe_that_is_given_back_may_be_taken_by_another():
    a_line = line()
    probe(a_line, DOWN, 0.0)
    assert a_line.may_send(5.0)
    a_line.give_back()
    assert a_line.may_send(5.0)


def test_no_window_of_time_sees_more_turns_than_the_rate_allows():
    a_line = line(rate=SimpleNamespace(count=3, seconds=60.0))
    taken, now = [], 0.0
    while now < 300:
        if a_line.may_send(now):
            taken.append(now)
            a_line.report(OK, now)
        else:
            assert a_line.wake_in(now) > 0
        now += 7.0
    assert all(sum(t <= other < t + 60 for other in taken) <= 3 for t in taken)
    assert len(taken) >= 13


def test_wake_in_tells_when_the_rate_allows_the_next_and_a_turn_given_back_is_free():
    a_line = line(rate=SimpleNamespace(count=1, seconds=10.0))
    assert a_line.may_send(0.0)
    assert a_line.wake_in(4.0) == 6
    a_line.give_back()
    assert a_line.may_send(4.0)


def test_many_threads_that_ask_at_once_get_one_probe_and_one_event():
    a_line = line(sessions=8)
    probe(a_line, DOWN, 0.0)
    barrier, turns = threading.Barrier(8), []

    def ask() -> None:
        barrier.wait(5)
        turns.append(a_line.may_send(100.0))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(turns) == [False] * 7 + [True]
