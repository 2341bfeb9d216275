"""Gangs that fall silent, that come back too late, that are started anew, and that are not worth it. All times are made up."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cluster.ledger import CLOSED, MAX_ATTEMPTS, Ledger, Patience, why_lost

WRITTEN = {"outcome": "written"}
FAR = {"stage": "student", "epoch": 0, "step": 3}


def desk(*numbers: int, lost_after_s: float = 60.0, stalled_after_s: float | None = None) -> Ledger:
    """Two gangs that have arrived, and orders that wait."""
    ledger = Ledger(Patience(lost_after_s, stalled_after_s))
    for gang in ("g0", "g1"):
        ledger.arrive(gang, "i0")
    for number in numbers:
        ledger.submit({"number": number})
    return ledger


def lease(ledger: Ledger, gang: str = "g0", incarnation: str = "i0", serial: int = 0) -> Any:
    return ledger.lease(gang, incarnation, 0, serial)


# The policy.


@pytest.mark.parametrize(
    ("heard", "moved", "stalled_after_s", "lost"),
    [
        (None, None, None, False),
        (0.0, None, None, True),
        (39.9, None, None, True),
        (40.0, None, None, False),
        (99.0, 0.0, None, False),
        (99.0, 0.0, 90.0, True),
        (99.0, 10.0, 90.0, False),
        (99.0, None, 90.0, False),
        (None, 0.0, 90.0, True),
    ],
)
def test_who_is_lost_at_100_s_when_60_are_borne(heard, moved, stalled_after_s, lost):
    assert bool(why_lost(100.0, heard, moved, Patience(60.0, stalled_after_s))) is lost


# Silence.


def test_the_order_of_a_silent_gang_is_leased_elsewhere_as_another_attempt():
    ledger = desk(4)
    lease(ledger)
    ledger.hear("g0", "i0", 1000.0, 1)
    assert ledger.bury_silent(1060.0) == {}
    assert list(ledger.bury_silent(1060.5)) == ["g0"]
    assert lease(ledger, "g1") == {"number": 4, "attempt": "a2"}
    assert ledger.bury_silent(5000.0) == {}, "nobody has heard of the other gang yet"


def test_a_gang_without_an_order_may_be_silent_for_as_long_as_it_likes():
    ledger = desk()
    ledger.hear("g0", "i0", 0.0, 1)
    assert ledger.bury_silent(1e9) == {}


def test_signs_of_life_of_a_group_that_was_replaced_do_not_count():
    ledger = desk(4)
    lease(ledger)
    ledger.arrive("g0", "i1")
    lease(ledger, incarnation="i1")
    ledger.hear("g0", "i1", 0.0, 1)
    ledger.hear("g0", "i0", 90.0, 2)
    assert list(ledger.bury_silent(100.0)) == ["g0"]


def test_a_gang_that_lives_and_does_nothing_is_lost_where_the_job_says_so():
    for stalled_after_s, lost in ((None, []), (50.0, ["g0"])):
        ledger = desk(4, stalled_after_s=stalled_after_s)
        lease(ledger)
        for second in range(100):
            ledger.hear("g0", "i0", float(second), min(second, 40))
        assert list(ledger.bury_silent(90.0)) == []
        assert list(ledger.bury_silent(91.0)) == lost


def test_waiting_for_an_order_is_no_stall():
    ledger = desk(stalled_after_s=50.0)
    for second in range(0, 1000, 10):
        ledger.hear("g0", "i0", float(second), 7)
    ledger.submit({"number": 4})
    lease(ledger)
    assert ledger.bury_silent(1000.0) == {}
    ledger.hear("g0", "i0", 1001.0, 7)
    assert ledger.bury_silent(1051.0) == {}
    ledger.hear("g0", "i0", 1052.0, 7)
    assert list(ledger.bury_silent(1052.0)) == ["g0"]


def test_an_order_that_silences_every_gang_fails_after_the_last_attempt():
    ledger = desk(4)
    for attempt in range(MAX_ATTEMPTS):
        assert ledger.outcomes == {}
        ledger.arrive("g0", f"j{attempt}")
        lease(ledger, incarnation=f"j{attempt}")
        ledger.hear("g0", f"j{attempt}", 100.0 * attempt)
        assert list(ledger.bury_silent(100.0 * attempt + 61.0)) == ["g0"]
    assert (ledger.outcomes[4]["outcome"], ledger.outcomes[4]["class"]) == ("failed", "WorkerLost")


# Too late.


def silenced() -> Ledger:
    """Gang g0 was lost with order 4, which g1 now works on."""
    ledger = desk(4)
    ledger.watch(4, [("student", 0)])
    lease(ledger)
    ledger.hear("g0", "i0", 0.0)
    ledger.bury_silent(61.0)
    lease(ledger, "g1")
    return ledger


def test_a_gang_that_comes_back_too_late_is_told_to_leave_and_not_listened_to():
    ledger = silenced()
    ledger.report("g1", "i0", 4, FAR)
    shown = dict(ledger.latest)
    assert ledger.standing("g0", "i0") is None
    assert ledger.report("g0", "i0", 4, {"stage": "student", "epoch": 0, "val_accuracy": 0.1}) == "abandon"
    ledger.note("g0", "i0", 4, {"stage": "teacher"})
    ledger.finish("g0", "i0", 4, {"outcome": "failed"})
    assert (ledger.latest, ledger.outcomes, ledger.awaits_judgement(4)) == (shown, {}, False)
    assert lease(ledger, "g0", serial=1) == CLOSED
    ledger.finish("g1", "i0", 4, WRITTEN)
    assert ledger.outcomes == {4: WRITTEN}


def test_a_new_group_of_a_lost_gang_is_served_again():
    ledger = silenced()
    ledger.submit({"number": 5})
    ledger.arrive("g0", "i1")
    assert lease(ledger, "g0", "i1") == {"number": 5, "attempt": "a1"}
    assert ledger.standing("g0", "i1") == (5, "go")


def test_a_gang_hears_what_it_is_to_do_with_what_it_holds():
    ledger = desk(4)
    assert ledger.standing("g0", "i0") == (None, "go")
    lease(ledger)
    assert ledger.standing("g0", "i0") == (4, "go")
    ledger.stop(4)
    assert ledger.standing("g0", "i0") == (4, "stop")
    ledger.abandon()
    assert ledger.standing("g0", "i0") == (4, "abandon")
    ledger.finish("g0", "i0", 4, {"outcome": "abandoned"})
    assert ledger.standing("g0", "i0") == (None, "go")


# Runs of a gang.


def test_a_gang_that_wants_to_be_started_anew_gets_no_order_and_all_ranks_leave_after_the_same():
    ledger = desk(4, 5)
    last = lease(ledger)
    ledger.finish("g0", "i0", 4, WRITTEN)
    ledger.retire("g0", "i0")
    assert [ledger.lease("g0", "i0", rank, 1) for rank in (0, 1)] == [CLOSED, CLOSED]
    assert ledger.lease("g0", "i0", 1, 0) == last, "a slow rank still takes part"
    assert ledger.left("g0", failed=False)
    assert ledger.called_for() is True
    ledger.arrive("g0", "i1")
    assert lease(ledger, incarnation="i1") == {"number": 5, "attempt": "a1"}


def test_a_retirement_that_comes_too_late_concerns_nobody():
    ledger = desk(4)
    ledger.arrive("g0", "i1")
    ledger.retire("g0", "i0")
    assert lease(ledger, incarnation="i1")["number"] == 4


@pytest.mark.parametrize(("served", "failed", "again"), [(0, True, False), (0, False, True), (1, True, True), (1, False, True)])
def test_a_run_that_failed_before_it_ended_an_order_is_not_followed_by_another(served, failed, again):
    ledger = desk(*range(served + 1))
    for number in range(served):
        lease(ledger, serial=number)
        ledger.finish("g0", "i0", number, WRITTEN)
    ledger.arrive("g0", "i1")
    lease(ledger, incarnation="i1")
    assert ledger.left("g0", failed=failed) is again
    assert [waiting["number"] for waiting in ledger.waiting] == [served], "what it had waits again"
    assert ledger.left("g0", failed=True) is False, "what an earlier run served does not count"


def test_a_gang_that_never_arrived_is_not_started_again():
    assert Ledger().left("g0", failed=True) is False


def test_nobody_is_called_for_but_for_an_order():
    ledger = desk()
    assert ledger.called_for() is None
    ledger.submit({"number": 4})
    assert ledger.called_for() is True
    ledger.abandon()
    assert ledger.called_for() is False
    other = desk(4)
    other.close()
    assert other.called_for() is False


def test_gangs_that_have_left_are_not_counted_as_started():
    ledger = desk()
    assert ledger.num_started == 2
    ledger.left("g0", failed=True)
    assert ledger.num_started == 1


def test_orders_that_wait_and_orders_that_are_worked_on_are_counted_and_no_others():
    ledger = desk(4, 5, 6)
    lease(ledger)
    assert ledger.num_orders == 3
    ledger.finish("g0", "i0", 4, WRITTEN)
    assert ledger.num_orders == 2
