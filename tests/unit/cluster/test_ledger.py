"""The rules of the desk: who gets which order, what happens to the orders of a gang that is lost, and how a sweep ends."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cluster.ledger import CLOSED, MAX_ATTEMPTS, Ledger

WRITTEN = {"outcome": "written"}
ABANDONED = {"outcome": "abandoned"}


def order(number: int) -> dict[str, Any]:
    return {"number": number, "recipe": {"seed": number}}


def desk(*numbers: int, gangs: tuple[str, ...] = ("g0",)) -> Ledger:
    """A ledger with orders that wait, and gangs that have arrived with incarnation "i0"."""
    ledger = Ledger()
    for gang in gangs:
        ledger.arrive(gang, "i0")
    for number in numbers:
        ledger.submit(order(number))
    return ledger


def lease(ledger: Ledger, serial: int = 0, *, gang: str = "g0", incarnation: str = "i0", rank: int = 0) -> Any:
    return ledger.lease(gang, incarnation, rank, serial)


def leased_number(ledger: Ledger, serial: int = 0, **who: Any) -> int:
    return lease(ledger, serial, **who)["number"]


def lose(ledger: Ledger, times: int) -> None:
    """Lease the first order and lose the gang, again and again; the last group to arrive is `i<times>`."""
    for index in range(times):
        lease(ledger, incarnation=f"i{index}")
        ledger.arrive("g0", f"i{index + 1}")


# Leases.


def test_orders_are_leased_in_the_order_in_which_they_came():
    ledger = desk(4, 2, 9)
    found = []
    for serial in range(3):
        found.append(leased_number(ledger, serial))
        ledger.finish("g0", "i0", found[-1], WRITTEN)
    assert found == [4, 2, 9]


def test_a_lease_is_the_order_and_the_name_of_the_attempt():
    assert lease(desk(4)) == {**order(4), "attempt": "a1"}


def test_nothing_is_leased_while_nothing_waits():
    ledger = desk()
    assert lease(ledger) is None
    ledger.submit(order(1))
    assert leased_number(ledger) == 1


def test_every_rank_gets_the_same_order_by_its_serial_whenever_it_asks():
    ledger = desk(4, 2)
    assert lease(ledger, rank=1) is None, "an order is taken by rank 0"
    first = lease(ledger)
    assert [lease(ledger, rank=rank) for rank in (1, 2, 1, 0)] == [first] * 4
    ledger.finish("g0", "i0", 4, WRITTEN)
    second = lease(ledger, 1)
    assert second["number"] == 2
    assert lease(ledger, 0, rank=3) == first, "a slow rank is served the serial that it asks for"
    assert lease(ledger, 1, rank=3) == second


def test_a_rank_that_runs_ahead_waits_for_rank_0():
    ledger = desk(4, 2)
    lease(ledger)
    assert lease(ledger, 1, rank=1) is None
    assert [waiting["number"] for waiting in ledger.waiting] == [2]


def test_two_gangs_never_get_the_same_order():
    ledger = desk(0, 1, 2, gangs=("g0", "g1"))
    assert [leased_number(ledger, gang="g0"), leased_number(ledger, gang="g1")] == [0, 1]
    ledger.finish("g1", "i0", 1, WRITTEN)
    assert leased_number(ledger, 1, gang="g1") == 2
    assert leased_number(ledger, gang="g0") == 0


def test_an_end_is_kept_under_its_number():
    ledger = desk(4)
    lease(ledger)
    assert ledger.outcomes == {}
    ledger.finish("g0", "i0", 4, WRITTEN)
    assert ledger.outcomes == {4: WRITTEN}


# Submitting twice.


@pytest.mark.parametrize("when", ["waiting", "leased", "finished", "abandoned"])
def test_an_order_that_is_known_is_not_queued_again(when):
    ledger = desk(4)
    if when in ("leased", "finished"):
        lease(ledger)
    if when == "finished":
        ledger.finish("g0", "i0", 4, WRITTEN)
    if when == "abandoned":
        ledger.abandon()
    before = dict(ledger.outcomes)
    ledger.submit(order(4))
    assert [waiting["number"] for waiting in ledger.waiting] == ([4] if when == "waiting" else [])
    assert ledger.outcomes == before


def test_an_order_that_waits_again_after_a_loss_is_not_queued_twice():
    ledger = desk(4)
    lose(ledger, 1)
    ledger.submit(order(4))
    assert [waiting["number"] for waiting in ledger.waiting] == [4]


# Gangs that are lost.


def test_the_order_of_a_lost_group_goes_to_the_head_of_the_queue_as_another_attempt():
    ledger = desk(4, 2)
    lease(ledger)
    ledger.arrive("g0", "i1")
    assert [waiting["number"] for waiting in ledger.waiting] == [4, 2]
    assert lease(ledger, incarnation="i1") == {**order(4), "attempt": "a2"}
    assert ledger.outcomes == {}


def test_another_gang_may_take_the_order_of_a_lost_one():
    ledger = desk(4, gangs=("g0", "g1"))
    lease(ledger, gang="g0")
    ledger.arrive("g0", "i1")
    assert lease(ledger, gang="g1") == {**order(4), "attempt": "a2"}
    assert lease(ledger, gang="g0", incarnation="i1") is None


def test_a_new_group_counts_its_serials_from_0():
    ledger = desk(4, 2)
    lease(ledger)
    ledger.finish("g0", "i0", 4, WRITTEN)
    ledger.arrive("g0", "i1")
    assert leased_number(ledger, 0, incarnation="i1") == 2


def test_a_finished_order_is_not_leased_again_after_a_loss():
    ledger = desk(4)
    lease(ledger)
    ledger.finish("g0", "i0", 4, WRITTEN)
    ledger.arrive("g0", "i1")
    assert lease(ledger, incarnation="i1") is None
    assert ledger.outcomes == {4: WRITTEN}


def test_the_ranks_of_one_group_arrive_as_one():
    ledger = desk(4)
    first = lease(ledger)
    for _ in range(3):
        ledger.arrive("g0", "i0")
    assert lease(ledger, rank=1) == first
    assert list(ledger.waiting) == []


def test_a_group_that_was_replaced_is_sent_away():
    ledger = desk(4, 2)
    lease(ledger)
    ledger.arrive("g0", "i1")
    assert [lease(ledger, serial, rank=rank) for serial in (0, 1) for rank in (0, 1)] == [CLOSED] * 4
    assert [waiting["number"] for waiting in ledger.waiting] == [4, 2]


def test_an_order_is_given_up_after_the_last_attempt():
    ledger = desk(4, 2)
    lose(ledger, MAX_ATTEMPTS - 1)
    assert ledger.outcomes == {}
    assert lease(ledger, incarnation=f"i{MAX_ATTEMPTS - 1}")["attempt"] == f"a{MAX_ATTEMPTS}"
    ledger.arrive("g0", f"i{MAX_ATTEMPTS}")
    outcome = ledger.outcomes[4]
    assert (outcome["outcome"], outcome["class"]) == ("failed", "WorkerLost")
    assert set(outcome) == {"outcome", "class", "message", "traceback"}
    assert str(MAX_ATTEMPTS) in outcome["message"]
    assert leased_number(ledger, incarnation=f"i{MAX_ATTEMPTS}") == 2


def test_a_lost_worker_is_replaced_twice():
    assert MAX_ATTEMPTS == 3


def test_losses_of_one_order_are_not_counted_against_another():
    ledger = desk(4)
    lose(ledger, MAX_ATTEMPTS - 1)
    last = f"i{MAX_ATTEMPTS - 1}"
    lease(ledger, incarnation=last)
    ledger.finish("g0", "i0", 4, WRITTEN)
    ledger.submit(order(2))
    assert lease(ledger, 1, incarnation=last) == {**order(2), "attempt": "a1"}


# Reports and verdicts.


def test_a_trial_goes_on_until_it_is_stopped_and_others_are_not_touched():
    ledger = desk(4, 2, gangs=("g0", "g1"))
    lease(ledger, gang="g0")
    lease(ledger, gang="g1")
    assert ledger.report("g0", "i0", 4, {"stage": "student"}) == "go"
    ledger.stop(4)
    assert ledger.report("g0", "i0", 4, {"stage": "student"}) == "stop"
    assert ledger.report("g1", "i0", 2, {"stage": "student"}) == "go"


def test_what_is_shown_is_the_latest_report_until_the_trial_ends():
    ledger = desk(4)
    lease(ledger)
    ledger.report("g0", "i0", 4, {"stage": "student", "epoch": 0})
    ledger.report("g0", "i0", 4, {"stage": "student", "epoch": 1})
    assert ledger.latest == {4: {"stage": "student", "epoch": 1, "gang": "g0"}}
    ledger.finish("g0", "i0", 4, WRITTEN)
    assert ledger.latest == {}


def test_a_new_stage_forgets_what_the_last_one_said():
    ledger = desk(4)
    lease(ledger)
    ledger.report("g0", "i0", 4, {"stage": "student", "epoch": 1, "loss": 0.5})
    ledger.report("g0", "i0", 4, {"stage": "student"})
    assert ledger.latest[4] == {"stage": "student", "epoch": 1, "loss": 0.5, "gang": "g0"}
    ledger.report("g0", "i0", 4, {"stage": "export"})
    assert ledger.latest[4] == {"stage": "export", "gang": "g0"}


@pytest.mark.parametrize("abandoning", [False, True])
def test_a_trial_that_is_given_up_is_no_longer_shown(abandoning):
    ledger = desk(4)
    lose(ledger, MAX_ATTEMPTS - 1)
    last = f"i{MAX_ATTEMPTS - 1}"
    lease(ledger, incarnation=last)
    ledger.report("g0", last, 4, {"stage": "student"})
    if abandoning:
        ledger.abandon()
    ledger.arrive("g0", "new")
    assert 4 in ledger.outcomes
    assert ledger.latest == {}


# Rungs.


def at_epoch(epoch: int, stage: str = "student") -> dict[str, Any]:
    return {"stage": stage, "epoch": epoch, "val_accuracy": 0.5}


def watched(*rungs: tuple[str, int]) -> Ledger:
    ledger = desk(4)
    ledger.watch(4, list(rungs))
    lease(ledger)
    return ledger


def test_only_the_end_of_a_watched_epoch_awaits_judgement():
    ledger = watched(("student", 2))
    for event in ({"stage": "student", "epoch": 2, "step": 0}, at_epoch(1), at_epoch(2, "teacher"), at_epoch(3)):
        ledger.report("g0", "i0", 4, event)
        assert not ledger.awaits_judgement(4)
    ledger.report("g0", "i0", 4, at_epoch(2))
    assert ledger.awaits_judgement(4)
    assert ledger.news(4) == {"report": {**at_epoch(2), "gate": {}}}


def test_a_report_brings_all_that_the_gate_measured():
    ledger = watched(("student", 0))
    ledger.report("g0", "i0", 4, {"stage": "gate", "gate": {"macs": 9.0}})
    ledger.report("g0", "i0", 4, {"stage": "gate", "gate": {"size_bytes": 7.0}})
    ledger.report("g0", "i0", 4, at_epoch(0))
    assert ledger.news(4) == {"report": {**at_epoch(0), "gate": {"macs": 9.0, "size_bytes": 7.0}}}


@pytest.mark.parametrize(("goes_on", "verdict"), [(True, "go"), (False, "stop")])
def test_a_judged_report_is_news_no_more_and_a_trial_obeys(goes_on, verdict):
    ledger = watched(("student", 0))
    assert ledger.report("g0", "i0", 4, at_epoch(0)) == "go"
    ledger.judge(4, goes_on=goes_on)
    assert (ledger.awaits_judgement(4), ledger.news(4)) == (False, None)
    assert ledger.verdict(4) == ledger.report("g0", "i0", 4, at_epoch(1)) == verdict


def test_nobody_waits_for_judgement_while_everything_is_given_up():
    ledger = watched(("student", 0))
    ledger.report("g0", "i0", 4, at_epoch(0))
    ledger.abandon()
    assert not ledger.awaits_judgement(4)
    assert ledger.verdict(4) == "abandon"


def test_what_a_lost_attempt_reported_is_not_judged_any_more():
    ledger = watched(("student", 0))
    ledger.report("g0", "i0", 4, at_epoch(0))
    ledger.arrive("g0", "i1")
    assert ledger.news(4) is None


def test_the_end_is_the_last_news():
    ledger = watched(("student", 0))
    ledger.report("g0", "i0", 4, at_epoch(0))
    ledger.finish("g0", "i0", 4, WRITTEN)
    assert ledger.news(4) == {"outcome": WRITTEN}
    assert not ledger.awaits_judgement(4)


# The end.


def test_abandoning_gives_up_what_waits_and_tells_what_runs():
    ledger = desk(4, 2, 7)
    lease(ledger)
    ledger.abandon()
    assert ledger.outcomes == {2: ABANDONED, 7: ABANDONED}
    assert ledger.report("g0", "i0", 4, {"stage": "student"}) == "abandon"
    ledger.finish("g0", "i0", 4, ABANDONED)
    assert ledger.outcomes[4] == ABANDONED
    assert lease(ledger, 1) is None


def test_abandoning_comes_before_stopping():
    ledger = desk(4)
    lease(ledger)
    ledger.stop(4)
    ledger.abandon()
    assert ledger.report("g0", "i0", 4, {}) == "abandon"


def test_an_order_that_comes_after_abandoning_is_given_up_at_once():
    ledger = desk()
    ledger.abandon()
    ledger.submit(order(4))
    assert ledger.outcomes == {4: ABANDONED}
    assert lease(ledger) is None


def test_a_group_lost_while_abandoning_is_not_followed_by_another_attempt():
    ledger = desk(4)
    lease(ledger)
    ledger.abandon()
    ledger.arrive("g0", "i1")
    assert ledger.outcomes == {4: ABANDONED}
    assert lease(ledger, incarnation="i1") is None


def test_a_trial_that_ends_while_abandoning_keeps_its_end():
    ledger = desk(4)
    lease(ledger)
    ledger.abandon()
    ledger.finish("g0", "i0", 4, WRITTEN)
    assert ledger.outcomes == {4: WRITTEN}


def test_a_closed_desk_sends_every_rank_away_after_the_leases_that_it_gave():
    ledger = desk(4, 2)
    first = lease(ledger)
    ledger.close()
    assert lease(ledger, 0, rank=1) == first, "the other ranks take part in what rank 0 has begun"
    assert [lease(ledger, 1, rank=rank) for rank in (0, 1)] == [CLOSED, CLOSED]
