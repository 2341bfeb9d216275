"""A trial that is told to end leaves at its next step, on all ranks at the same one, and sends no message for it."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from ray.exceptions import ActorDiedError

from orchestrator.cluster import lifeline as module
from orchestrator.cluster.desk import Said
from orchestrator.cluster.gang import GangHost
from orchestrator.cluster.lifeline import Lifeline
from orchestrator.errors import TrialAbandoned, TrialStopped
from orchestrator.measure.quiet import Quiet
from orchestrator.training.process import Process


class Talk:
    """A desk that answers a sign of life when the test says what; `said` holds what came with them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: queue.Queue[tuple[Said, Any, float]] = queue.Queue()
        self.answers: queue.Queue[Any] = queue.Queue()
        self.beat = SimpleNamespace(remote=self._beat)
        monkeypatch.setattr(module.ray, "get", lambda value: value)

    def _beat(self, gang: str, incarnation: str, said: Said, knows: Any, wait_s: float) -> Any:
        self.said.put((said, knows, wait_s))
        answer = self.answers.get(timeout=10)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Talk:
    return Talk(monkeypatch)


def host_of(talk: Talk) -> GangHost:
    host = GangHost(talk, "g0", "i0", Process(), Quiet.__new__(Quiet))
    host.lifeline.start()
    return host


def answered(talk: Talk, *answers: Any) -> tuple[Said, Any, float]:
    """Answer the sign of life that is waiting, and return the next one: by then the answer is known."""
    for answer in answers:
        talk.said.get(timeout=10)
        talk.answers.put(answer)
    return talk.said.queue[0] if talk.said.queue else _next(talk)


def _next(talk: Talk) -> tuple[Said, Any, float]:
    item = talk.said.get(timeout=10)
    talk.said.put(item)
    return item


def test_a_trial_is_left_at_the_step_after_the_answer_and_the_next_trial_goes_on(talk: Talk) -> None:
    host = host_of(talk)
    host.begin(4)
    _, knows, _ = answered(talk, (4, "go"))
    assert knows == (4, "go")
    for step in range(100):
        host.step({"stage": "student", "step": step})
    said, _, _ = answered(talk, (4, "go"))
    assert (said.number, said.event) == (4, {"stage": "student", "step": 99}), "only the last step is told"
    answered(talk, (4, "stop"))
    with pytest.raises(TrialStopped):
        host.step({"stage": "student", "step": 100})
    host.begin(5)
    host.step({"stage": "student", "step": 0})
    host.lifeline.close()
    talk.answers.put((5, "go"))


def test_giving_up_reaches_a_step_as_well(talk: Talk) -> None:
    host = host_of(talk)
    host.begin(4)
    answered(talk, (4, "abandon"))
    with pytest.raises(TrialAbandoned, match="given up"):
        host.step({"stage": "student", "step": 0})
    host.lifeline.close()
    talk.answers.put((4, "abandon"))


def test_a_desk_that_is_gone_ends_the_trial_at_its_next_step_and_says_why(talk: Talk) -> None:
    host = host_of(talk)
    host.begin(4)
    talk.answers.put(ActorDiedError())
    wait_for_the_end()
    with pytest.raises(TrialAbandoned, match="nobody answers") as caught:
        host.step({"stage": "student", "step": 0})
    assert isinstance(caught.value.__cause__, ActorDiedError), "so that nothing is told to a desk that lives on"


def test_a_process_whose_trial_is_anothers_ends(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []

    def leave(code: int) -> None:
        ended.append(code)
        line.close()

    monkeypatch.setattr(os, "_exit", leave)
    line = Lifeline(talk, "g0", "i0")
    line.start()
    talk.answers.put(None)
    wait_for_the_end()
    assert ended == [1]


def test_a_gang_that_was_sent_away_does_not_end_itself(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("it ended itself"))
    line = Lifeline(talk, "g0", "i0")
    line.start()
    line.close()
    talk.answers.put(None)
    wait_for_the_end()


def test_a_measurement_is_disturbed_as_seldom_as_can_be(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quiet, "measuring", lambda self: contextlib.nullcontext())
    host = host_of(talk)
    with host.measuring():
        _, _, wait_s = answered(talk, (None, "go"))
        assert wait_s == 10.0
    _, _, wait_s = answered(talk, (None, "go"))
    assert wait_s < 1.0
    host.lifeline.close()
    talk.answers.put((None, "go"))


def wait_for_the_end() -> None:
    for thread in threading.enumerate():
        if thread.name == "lifeline":
            thread.join(timeout=10)
            assert not thread.is_alive()


# Several ranks.


def lead(rank: int, folder: Path) -> None:
    """Rank 0 hears "stop" at its 5th step of a DDP training. Each rank notes where it left, and trains once more."""
    from torch import nn
    from torch.nn.functional import mse_loss

    torch.set_num_threads(1)
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder / 'met'}", rank=rank, world_size=2)
    host = GangHost(None, "g0", "i0", Process(rank, 2), Quiet.__new__(Quiet))
    graph = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(graph.parameters(), 0.1)

    def train(number: int) -> str:
        host.begin(number)
        for step in range(20):
            if number == 0 and rank == 0 and step == 5:
                host.lifeline._heard = (0, "stop")
            try:
                host.step({"stage": "student", "step": step})
            except TrialStopped:
                return f"left at {step}"
            optimizer.zero_grad()
            mse_loss(graph(torch.full((4, 2), float(rank + step))), torch.zeros(4, 2)).backward()
            optimizer.step()
        return f"{sum(float(value.sum()) for value in graph.parameters())!r}"

    ends = train(0), train(1)
    (folder / f"{rank}.txt").write_text("\n".join(ends))
    dist.destroy_process_group()


@pytest.mark.ddp
def test_all_ranks_leave_at_the_same_step_and_the_next_trial_hears_nothing_of_it(tmp_path: Path) -> None:
    mp.spawn(lead, args=(tmp_path,), nprocs=2)
    one, other = ((tmp_path / f"{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert one == other
    assert one[0] == "left at 6"
    assert torch.isfinite(torch.tensor(float(one[1])))
