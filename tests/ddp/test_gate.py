"""The gate on two gloo processes: rank 0 alone measures, and both hear the same and end together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

pytestmark = pytest.mark.ddp

TRAINING = {"epochs": 1, "batch_size": 32, "learning_rate": 0.05}
COMMON: dict[str, Any] = {
    "data": {"source": "digits", "max_train": 128, "max_val": 64},
    "model": {"name": "cifar_resnet8", "width": 8},
    "training": TRAINING,
    "measurement": {"rounds": 5},
}
GLOBAL = {"pruning": {"ratio": 0.5, "scope": "global", "epochs": 1, "round_to": 1}}
TINY = {"min": None, "max": 1000.0}
TRIALS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "before training": (COMMON, {"size_bytes": TINY, "latency_ms": {"min": None, "max": 1e9}}),
    "after the cut": (COMMON | GLOBAL, {"size_bytes": TINY}),
    "through": (COMMON | GLOBAL, {"latency_ms": {"min": None, "max": 1e9}}),
}


def on_each_rank(rank: int, folder: Path) -> None:
    from orchestrator.measure.quiet import Quiet
    from orchestrator.spec.recipe import Recipe
    from orchestrator.trial import preflight
    from orchestrator.trial.host import LocalHost, gang_process
    from orchestrator.trial.order import Order
    from orchestrator.trial.pipeline import run_trial
    from orchestrator.trial.stages import StageStore
    from orchestrator.trial.workshop import Workshop

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    try:
        quiet = Quiet(folder / "quiet")
        process = gang_process(rank, 2, torch.device("cpu"), quiet)
        exports: list[str] = []
        export = preflight.export

        def noted(*given: Any) -> Any:
            exports.append("exported")
            return export(*given)

        seen: dict[str, Any] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(preflight, "export", noted)
            for name, (changed, constraints) in TRIALS.items():
                exports.clear()
                recipe = Recipe.model_validate(changed).model_dump(mode="json")
                order = Order(0, {}, recipe, constraints, 0, str(folder / name), str(folder / "stages"))
                host = LocalHost(process, quiet, lambda event: None)
                result = run_trial(order, host, Workshop(StageStore(folder / "stages"), process))
                seen[name] = {"result": result.to_json(), "exports": len(exports)}
        (folder / f"saw{rank}.json").write_text(json.dumps(seen))
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gate")
    mp.spawn(on_each_rank, args=(folder,), nprocs=2)
    return [json.loads((folder / f"saw{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(("trial", "exports"), [("before training", 1), ("after the cut", 2), ("through", 1)])
def test_rank_0_alone_measures_and_both_know(ranks: list[dict[str, Any]], trial: str, exports: int) -> None:
    first, second = (seen[trial] for seen in ranks)
    assert (first["exports"], second["exports"]) == (exports, 0)
    assert first["result"]["gate"] == second["result"]["gate"]
    assert first["result"]["gate"]["size_bytes"] > 1000
    assert ("latency_ms" in first["result"]["gate"]) == ("latency_ms" in TRIALS[trial][1])


@pytest.mark.parametrize(("trial", "trained"), [("before training", []), ("after the cut", ["student"])])
def test_both_ranks_end_where_a_bound_is_broken(ranks: list[dict[str, Any]], trial: str, trained: list[str]) -> None:
    for seen in ranks:
        result = seen[trial]["result"]
        assert result["state"] == "INFEASIBLE"
        assert result["failure"]["class"] == "GatedError"
        assert "size_bytes must be at most 1000" in result["failure"]["message"]
        assert result["constraints"]["size_bytes"] == result["gate"]["size_bytes"] - 1000
        assert [stage["name"] for stage in result["stages"]] == ["preflight", *trained]


def test_a_trial_whose_bounds_hold_goes_on_to_its_end(ranks: list[dict[str, Any]]) -> None:
    assert [seen["through"]["result"]["state"] for seen in ranks] == ["COMPLETE", "COMPLETE"]
    result = ranks[0]["through"]["result"]
    assert all(result["gate"][metric] == result["measurements"][metric] for metric in ("macs", "num_parameters", "size_bytes"))
