"""How a trial of a gang ends: what is told to the desk, by whom, and what is left for Ray Train to start again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ray.exceptions import ActorDiedError, ActorUnavailableError, RaySystemError, RayTaskError

from orchestrator.cluster import gang
from orchestrator.errors import TrialAbandoned
from orchestrator.measure.quiet import Quiet
from orchestrator.results.store import Home
from orchestrator.results.trial_result import TrialResult
from orchestrator.training.process import Process
from orchestrator.trial.order import Order

CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4992."
RESET = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:27829: Connection reset by peer."
LATE = "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation"
SIZES = "[enforce fail at /pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:454] op.preamble.length <= op.nbytes. 16 vs 8"


def chained(cause: Exception) -> Exception:
    error = ValueError("while the network was rebuilt")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(CLOSED), True),
        (RuntimeError(RESET), True),
        (RuntimeError(LATE), True),
        (dist.DistBackendError("NCCL communicator was aborted"), True),
        (dist.DistNetworkError("the client socket has failed"), True),
        (dist.DistError("anything of torch.distributed"), True),
        (chained(RuntimeError(CLOSED)), True),
        (RuntimeError(SIZES), False),
        (RuntimeError("Connection closed by peer"), False),
        (ValueError(CLOSED), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (chained(KeyError("label")), False),
    ],
)
def test_which_errors_say_that_a_rank_was_lost(error: Exception, lost: bool) -> None:
    assert gang.lost_a_rank(error) is lost


def reduce_one() -> None:
    dist.all_reduce(torch.ones(2))


def broadcast_some() -> None:
    for _ in range(3):
        dist.broadcast_object_list(["said"], src=1)


def train_a_step() -> None:
    layer = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    layer(torch.ones(1, 2)).sum().backward()


def lose_the_other(rank: int, folder: Path, name: str, collective: Callable[[], None], exits: bool) -> None:
    """Rank 1 exits, or comes too late; rank 0 notes what its collective raises."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / name}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=1.0 + 9 * exits))
    dist.barrier()
    if rank == 1:
        if not exits:
            time.sleep(2.5)
        os._exit(0)  # as a killed worker: nothing is shut down
    try:
        collective()
    except RuntimeError as error:
        (folder / f"{name}.txt").write_text(f"{gang.lost_a_rank(error)} {type(error).__name__} {error}")
    os._exit(0)


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("collective", "exits"), [(reduce_one, True), (broadcast_some, True), (train_a_step, True), (reduce_one, False)]
)
def test_gloos_own_errors_are_known(tmp_path: Path, collective: Callable[[], None], exits: bool) -> None:
    mp.spawn(lose_the_other, args=(tmp_path, "met", collective, exits), nprocs=2)
    noted = (tmp_path / "met.txt").read_text()
    assert noted.startswith("True RuntimeError"), noted


class Desk:
    """Notes what it is told; its methods are called as those of a Ray actor."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.asked: list[int] = []
        self.finish = SimpleNamespace(remote=lambda name, incarnation, number, outcome: self.told.append(outcome))
        self.outcome = SimpleNamespace(remote=self.asked.append)


@pytest.fixture
def serve_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Desk]:
    """Serve one trial as a rank of a gang: `ends` is its result, or what it raises."""
    monkeypatch.setattr(gang.ray, "get", lambda value: value)

    def serve(ends: TrialResult | Exception, *, rank: int = 0, desk: Desk | None = None) -> Desk:
        def run_trial(*given: Any) -> TrialResult:
            if isinstance(ends, Exception):
                raise ends
            return ends

        monkeypatch.setattr(gang, "run_trial", run_trial)
        desk = desk or Desk()
        host = gang.GangHost(desk, "g0", "i0", Process(rank), Quiet.__new__(Quiet))
        folder = Home(tmp_path).sweep("night").trial_folder(4)
        gang._serve_one(Order(4, {}, {}, {}, 0, str(folder), "stages"), host, None)  # type: ignore[arg-type]
        return desk

    return serve


def test_a_result_is_on_disk_before_the_desk_is_told(serve_one: Callable[..., Desk], tmp_path: Path) -> None:
    result = TrialResult(4, "COMPLETE", {}, {"accuracy": 0.5})
    assert serve_one(result).told == [{"outcome": "written"}]
    assert Home(tmp_path).sweep("night").result(4) == result


def test_other_ranks_write_and_tell_nothing(serve_one: Callable[..., Desk], tmp_path: Path) -> None:
    assert serve_one(TrialResult(4, "COMPLETE", {}), rank=1).told == []
    assert serve_one(TrialAbandoned("given up"), rank=1).told == []
    assert list(tmp_path.iterdir()) == []


def test_a_trial_that_was_given_up_is_told_as_that(serve_one: Callable[..., Desk]) -> None:
    assert serve_one(TrialAbandoned("given up")).told == [{"outcome": "abandoned"}]


def test_a_result_that_cannot_be_written_fails_the_trial_once_and_not_the_gang(
    serve_one: Callable[..., Desk], tmp_path: Path
) -> None:
    (outcome,) = serve_one(TrialResult(4, "COMPLETE", {}, {"accuracy": float("nan")})).told
    assert (outcome["outcome"], outcome["class"]) == ("failed", "ValueError")
    assert "JSON" in outcome["message"]
    assert "as_json" in outcome["traceback"]
    assert Home(tmp_path).sweep("night").result(4) is None


def test_the_first_rank_tells_a_failure_and_leaves(serve_one: Callable[..., Desk]) -> None:
    desk = Desk()
    with pytest.raises(KeyError):
        serve_one(KeyError("label"), desk=desk)
    assert [(told["outcome"], told["class"], told["message"]) for told in desk.told] == [("failed", "KeyError", "'label'")]
    assert "run_trial" in desk.told[0]["traceback"]


def test_another_rank_tells_no_failure_but_waits_for_the_first_to(serve_one: Callable[..., Desk]) -> None:
    desk = Desk()
    with pytest.raises(KeyError):
        serve_one(KeyError("label"), rank=1, desk=desk)
    assert (desk.told, desk.asked) == ([], [4])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_rank_is_no_failure_of_the_trial(serve_one: Callable[..., Desk], rank: int) -> None:
    desk = Desk()
    with pytest.raises(RuntimeError, match="Connection closed"):
        serve_one(RuntimeError(CLOSED), rank=rank, desk=desk)
    assert desk.told == []


@pytest.mark.parametrize(
    "error", [ActorDiedError(), ActorUnavailableError("the desk's node is gone", None), RaySystemError("gone")]
)
@pytest.mark.parametrize("how", ["progress", "progress_alone"])
def test_a_trial_whose_desk_is_gone_is_given_up_and_has_not_failed(
    monkeypatch: pytest.MonkeyPatch, error: Exception, how: str
) -> None:
    """The driver was killed, and the gang lived on for a moment: FAILED would be final."""

    def get(value: Any) -> Any:
        raise error

    monkeypatch.setattr(gang.ray, "get", get)
    desk = SimpleNamespace(report=SimpleNamespace(remote=lambda *given: None))
    host = gang.GangHost(desk, "g0", "i0", Process(), Quiet.__new__(Quiet))
    with pytest.raises(TrialAbandoned, match="nobody answers"):
        getattr(host, how)({"stage": "student"})


def test_what_the_desk_itself_raises_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in the ledger must be told as one, and not pass for a trial that was given up."""
    fault = RayTaskError("report", "traceback", KeyError("stage"))

    def get(value: Any) -> Any:
        raise fault

    monkeypatch.setattr(gang.ray, "get", get)
    desk = SimpleNamespace(report=SimpleNamespace(remote=lambda *given: None))
    with pytest.raises(RayTaskError):
        gang.GangHost(desk, "g0", "i0", Process(), Quiet.__new__(Quiet)).progress({"stage": "student"})


def test_a_gang_that_nobody_answers_leaves_and_tells_nothing(serve_one: Callable[..., Desk]) -> None:
    """Were it told as given up to a desk that lives on, nobody would run the trial again in this sweep."""
    desk, silence = Desk(), TrialAbandoned("nobody answers")
    silence.__cause__ = ActorUnavailableError("the network", None)
    with pytest.raises(TrialAbandoned):
        serve_one(silence, desk=desk)
    assert desk.told == []
