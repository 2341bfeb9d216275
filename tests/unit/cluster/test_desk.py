"""The desk as an asynchronous object: a report at a rung is answered when the driver has judged it."""

from __future__ import annotations

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from orchestrator.cluster import desk as module
from orchestrator.cluster.desk import Desk, Said
from orchestrator.cluster.ledger import CLOSED
from orchestrator.cluster.scheduler import SweepScheduler
from orchestrator.cluster.searcher import close_conversation, open_conversation

EPOCH = {"stage": "student", "epoch": 0, "val_accuracy": 0.5, "loss": 1.0}
STEP = {"stage": "student", "epoch": 0, "step": 7}
GATE = {"stage": "gate", "gate": {"size_bytes": 7.0}}


async def at_a_rung() -> Desk:
    desk = Desk()
    await desk.submit({"number": 4})
    await desk.arrive("g0", "i0")
    await desk.lease("g0", "i0", 0, 0)
    await desk.watch(4, [("student", 0)])
    await desk.report("g0", "i0", 4, GATE)
    return desk


@pytest.mark.parametrize(("goes_on", "verdict"), [(True, "go"), (False, "stop")])
def test_a_trial_at_a_rung_waits_for_its_judgement(goes_on, verdict):
    async def scene() -> None:
        desk = await at_a_rung()
        trial = asyncio.create_task(desk.report("g0", "i0", 4, EPOCH))
        assert await desk.news(4) == {"report": {**EPOCH, "gate": {"size_bytes": 7.0}}}
        assert not trial.done()
        await desk.judge(4, goes_on)
        assert await trial == verdict
        assert await desk.report("g0", "i0", 4, {"stage": "student", "epoch": 1, "val_accuracy": 0.5}) == verdict

    asyncio.run(scene())


def test_giving_up_frees_a_trial_at_a_rung():
    async def scene() -> None:
        desk = await at_a_rung()
        trial = asyncio.create_task(desk.report("g0", "i0", 4, EPOCH))
        await desk.news(4)
        await desk.abandon()
        assert await trial == "abandon"

    asyncio.run(scene())


def test_a_driver_that_says_nothing_does_not_hold_a_trial_up_and_is_heard_later(monkeypatch):
    monkeypatch.setattr(module, "_JUDGEMENT_S", 0.01)

    async def scene() -> None:
        desk = await at_a_rung()
        assert await desk.report("g0", "i0", 4, EPOCH) == "go"
        await desk.judge(4, False)
        assert await desk.report("g0", "i0", 4, {"stage": "student", "step": 20}) == "stop"

    asyncio.run(scene())


def test_an_end_is_news_at_once_and_comes_before_a_report():
    async def scene() -> None:
        desk = await at_a_rung()
        trial = asyncio.create_task(desk.report("g0", "i0", 4, EPOCH))
        await desk.news(4)
        await desk.finish("g0", "i0", 4, {"outcome": "written"})
        assert await desk.news(4) == {"outcome": {"outcome": "written"}}
        await trial

    asyncio.run(scene())


# Signs of life.


def test_a_stop_reaches_a_gang_that_is_in_the_middle_of_a_step_at_once():
    async def scene() -> None:
        desk = await at_a_rung()
        assert await desk.beat("g0", "i0", Said(1, 4, None), (None, "go"), 60.0) == (4, "go"), "it knew of no order"
        alive = asyncio.create_task(desk.beat("g0", "i0", Said(2, 4, STEP), (4, "go"), 60.0))
        await asyncio.sleep(0)
        assert (await desk.running())["trials"] == {4: {**STEP, "gang": "g0"}}
        assert not alive.done()
        await desk.judge(4, False)
        assert await alive == (4, "stop")

    asyncio.run(scene())


def test_a_gang_that_hears_nothing_new_keeps_what_it_knows():
    async def scene() -> None:
        desk = await at_a_rung()
        assert await desk.beat("g0", "i0", Said(2, 4, STEP), (4, "go"), 0.01) == (4, "go")

    asyncio.run(scene())


def test_a_silent_gang_is_found_when_the_driver_looks_and_its_order_goes_to_who_waits(monkeypatch):
    async def scene() -> None:
        desk = await at_a_rung()
        now = [100.0]
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
        await desk.beat("g0", "i0", Said(1, 4, None), (None, "go"), 60.0)
        assert (await desk.running())["lost"] == {}
        now[0] += 1000.0
        await desk.arrive("g1", "i0")
        other = asyncio.create_task(desk.lease("g1", "i0", 0, 0))
        await asyncio.sleep(0)
        assert list((await desk.running())["lost"]) == ["g0"]
        assert await other == {"number": 4, "attempt": "a2"}
        assert await desk.beat("g0", "i0", Said(2, 4, STEP), (4, "go"), 60.0) is None, "it is to leave"

    asyncio.run(scene())


def test_a_gang_that_is_started_anew_is_called_for_when_an_order_waits():
    async def scene() -> None:
        desk = await at_a_rung()
        await desk.finish("g0", "i0", 4, {"outcome": "written"})
        await desk.retire("g0", "i0")
        assert await desk.lease("g0", "i0", 0, 1) == CLOSED
        assert await desk.left("g0", False) is True
        called = asyncio.create_task(desk.called_for())
        await asyncio.sleep(0)
        assert not called.done()
        await desk.submit({"number": 5})
        assert await called is True
        await desk.close()
        assert await desk.called_for() is False

    asyncio.run(scene())


# Tune's side.


class Talk:
    """What the scheduler leads to."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def next_config(self) -> None:
        raise AssertionError("a scheduler asks for nothing")

    def judged(self, number: int, report: dict[str, Any]) -> None:
        self.heard.append((number, report))

    def ended(self, number: int, outcome: dict[str, Any] | None) -> None:
        raise AssertionError("a scheduler ends nothing")


def test_the_scheduler_has_reports_judged_and_lets_tune_go_on():
    talk, trial = Talk(), SimpleNamespace(config={"number": 4})
    open_conversation("token", talk)
    try:
        scheduler = pickle.loads(pickle.dumps(SweepScheduler("token")))
        for news in ({"report": "null"}, {"report": '{"epoch": 3}'}, {}):
            assert scheduler.on_trial_result(None, trial, news) == TrialScheduler.CONTINUE
    finally:
        close_conversation("token")
    assert talk.heard == [(4, {"epoch": 3})]
