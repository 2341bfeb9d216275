"""A whole trial on two gloo processes: they make the same networks and end together, and the first alone ships them.

Everything runs in one pair of processes (and the trial once more in another), and the tests look at what it left. The product
is imported in them: parts of torch that it needs are deprecated, and here warnings are errors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

pytestmark = pytest.mark.ddp

TRAINING = {"epochs": 1, "batch_size": 32, "learning_rate": 0.05, "accumulation": 2, "augmentation": "shift"}
EVERYTHING: dict[str, Any] = {
    "data": {"source": "digits", "max_train": 256, "max_val": 65},
    "model": {"name": "cifar_resnet8", "width": 8},
    "training": TRAINING,
    "teacher": {"model": {"name": "cifar_resnet8", "width": 12}, "training": TRAINING},
    "distillation": {"method": "decoupled", "weight": 0.5, "feature_weight": 10.0},
    "pruning": {"ratio": 0.5, "criterion": "taylor", "scope": "sensitivity", "steps": 2, "epochs": 2, "round_to": 1},
    "quantization": {"method": "qat", "weight_bits": 4, "allocation": "sensitivity", "epochs": 1, "num_calibration": 64},
    "adversarial": {"method": "pgd", "steps": 2},
    "measurement": {"rounds": 5, "attack": {"steps": 2, "num_images": 32}, "num_explained": 8},
}
# Without features the teacher's logits are kept, which is another way through the store.
LESSONS = {
    **EVERYTHING,
    "distillation": {"weight": 0.5},
    "pruning": {"kind": "weights", "ratio": 0.5, "epochs": 1},
    "quantization": {"method": "ptq", "bias_correction": True, "norm_reestimation": True, "num_calibration": 64},
    "adversarial": {},
    "measurement": {"rounds": 5},
}
BREAKING = {
    "data": EVERYTHING["data"],
    "model": {"name": f"{__name__}:Squares"},
    "training": {**TRAINING, "learning_rate": 10.0, "epochs": 4},
}
UNBUILDABLE = {"data": EVERYTHING["data"], "model": {"name": "resnet18"}}
NETWORKS = ["teacher", "student", "pruned", "quantized"]


class Squares(nn.Module):
    """Grows without bound when its steps are too long."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64 * in_channels, 16), nn.Linear(16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.two(torch.square(self.one(images.flatten(1))))
        return logits


def digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def noting(function: Callable[..., Any], notes: list[list[str]], note: Callable[..., list[str]]) -> Callable[..., Any]:
    def noted(*given: Any, **named: Any) -> Any:
        returned = function(*given, **named)
        notes.append(note(returned, *given))
        return returned

    return noted


def walked(rank: int, folder: Path, store: str, tree: dict[str, Any]) -> dict[str, Any]:
    """One trial: how it ended here, digests of what was trained here and of what every stage handed on."""
    from orchestrator.measure.quiet import Quiet
    from orchestrator.spec.recipe import Recipe
    from orchestrator.trial import networks
    from orchestrator.trial.host import LocalHost, gang_process
    from orchestrator.trial.order import Order
    from orchestrator.trial.pipeline import run_trial
    from orchestrator.trial.stages import StageStore
    from orchestrator.trial.work import Work
    from orchestrator.trial.workshop import Workshop

    quiet = Quiet(folder / "quiet")
    process = gang_process(rank, 2, torch.device("cpu"), quiet)
    recipe = Recipe.model_validate(tree).model_dump(mode="json")
    place = folder / f"rank{rank}"
    order = Order(0, {}, recipe, {}, 0, str(place), str(folder.parent / store))
    trained: list[list[str]] = []
    handed_on: list[list[str]] = []

    def after_training(returned: None, work: Work, name: str, model: nn.Module, *rest: Any) -> list[str]:
        return [name, digest(dict(model.named_parameters()))]

    def after_stage(network: Any, work: Work, name: str, *rest: Any) -> list[str]:
        return [name, digest(network.model.state_dict())]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "train", noting(networks.train, trained, after_training))
        patch.setattr(Work, "network_stage", noting(Work.network_stage, handed_on, after_stage))
        host = LocalHost(process, quiet, lambda event: None)
        result = run_trial(order, host, Workshop(StageStore(folder.parent / store), process))
    files = sorted(path.name for path in place.iterdir()) if place.exists() else None
    return {"result": result.to_json(), "trained": trained, "handed_on": handed_on, "files": files}


def on_each_rank(rank: int, folder: Path, trials: dict[str, tuple[str, dict[str, Any]]]) -> None:
    """What one of two processes does: the trials one after the other, each over the named store."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    try:
        seen = {}
        for name, (store, tree) in trials.items():
            (folder / name).mkdir(exist_ok=True)
            seen[name] = walked(rank, folder / name, store, tree)
        (folder / f"saw{rank}.json").write_text(json.dumps(seen))
    finally:
        dist.destroy_process_group()


Pair = tuple[Path, list[dict[str, Any]]]


def pair(folder: Path, trials: dict[str, tuple[str, dict[str, Any]]]) -> Pair:
    mp.spawn(on_each_rank, args=(folder, trials), nprocs=2)
    return folder, [json.loads((folder / f"saw{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    trials = {
        "unbuildable": ("stages", UNBUILDABLE),
        "breaking": ("stages", BREAKING),
        "everything": ("stages", EVERYTHING),
        "warm": ("stages", EVERYTHING),
        "lessons": ("stages", LESSONS),
    }
    return pair(tmp_path_factory.mktemp("one"), trials)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Other processes, another store, and nothing before it."""
    return pair(tmp_path_factory.mktemp("other"), {"everything": ("stages", EVERYTHING)})


trials = pytest.mark.parametrize("trial", ["everything", "lessons"])


@trials
def test_both_ranks_end_and_the_first_alone_leaves_files(one: Pair, trial: str) -> None:
    folder, (first, second) = one
    for seen in (first, second):
        assert seen[trial]["result"]["failure"] is None
        assert seen[trial]["result"]["state"] == "COMPLETE"
    networks = ["preflight", *NETWORKS]
    assert [stage["name"] for stage in first[trial]["result"]["stages"]] == [*networks, "export", "measure"]
    assert [stage["name"] for stage in second[trial]["result"]["stages"]] == networks
    assert first[trial]["files"] == ["model.onnx", "model.safetensors", "recipe.json"]
    assert second[trial]["files"] is None
    assert second[trial]["result"]["measurements"] == {}
    assert not list(folder.glob("stages/*.partial"))


@trials
def test_both_ranks_train_the_same_weights_to_the_bit(one: Pair, trial: str) -> None:
    _, (first, second) = one
    trainings = {"everything": ["teacher", "student", "pruned", "pruned", "quantized"], "lessons": ["student", "pruned"]}
    assert [name for name, _ in first[trial]["trained"]] == trainings[trial]
    assert first[trial]["trained"] == second[trial]["trained"]
    assert len({weights for _, weights in first[trial]["trained"]}) == len(trainings[trial])


@trials
def test_both_ranks_hold_the_same_networks(one: Pair, trial: str) -> None:
    _, (first, second) = one
    assert [name for name, _ in first[trial]["handed_on"]] == NETWORKS
    assert first[trial]["handed_on"] == second[trial]["handed_on"]
    keys = [[stage["key"] for stage in seen[trial]["result"]["stages"] if stage["key"]] for seen in (first, second)]
    assert keys[0] == keys[1]


@trials
def test_both_ranks_tell_the_same_curve(one: Pair, trial: str) -> None:
    _, (first, second) = one
    curve = first[trial]["result"]["curve"]
    assert curve == second[trial]["result"]["curve"]
    epochs = {
        "everything": [("teacher", 0), ("student", 0), ("pruned", 0), ("pruned", 1), ("quantized", 0)],
        "lessons": [("teacher", 0), ("student", 0), ("pruned", 0)],
    }
    assert [(point["stage"], point["epoch"]) for point in curve] == epochs[trial]


def test_the_file_is_of_those_networks(one: Pair) -> None:
    _, (first, _) = one
    measured = first["everything"]["result"]["measurements"]
    assert measured["agreement"] == 1.0
    assert measured["num_eval_samples"] == 65
    assert 0.0 <= measured["robust_accuracy"] <= 1.0
    assert -1.0 <= measured["explanation_similarity"] <= 1.0


def test_what_is_there_is_taken_by_both(one: Pair) -> None:
    folder, ranks = one
    for seen in ranks:
        warm, before = seen["warm"], seen["everything"]
        assert all(stage["cached"] for stage in warm["result"]["stages"] if stage["name"] in NETWORKS)
        assert warm["trained"] == []
        assert warm["handed_on"] == before["handed_on"]
        assert warm["result"]["curve"] == before["result"]["curve"]
    assert_equal_files(folder / "warm" / "rank0", folder / "everything" / "rank0")


def test_the_same_again_is_the_same_to_the_bit(one: Pair, other: Pair) -> None:
    (folder, ranks), (other_folder, other_ranks) = one, other
    for seen, again in zip(ranks, other_ranks, strict=True):
        for what in ("trained", "handed_on", "files"):
            assert again["everything"][what] == seen["everything"][what], what
        assert again["everything"]["result"]["curve"] == seen["everything"]["result"]["curve"]
    assert not any(stage["cached"] for stage in other_ranks[0]["everything"]["result"]["stages"])
    assert_equal_files(folder / "everything" / "rank0", other_folder / "everything" / "rank0")


def test_what_cannot_be_built_or_breaks_ends_on_both(one: Pair) -> None:
    _, ranks = one
    for seen in ranks:
        unbuildable, breaking = seen["unbuildable"]["result"], seen["breaking"]["result"]
        assert unbuildable["state"] == "INFEASIBLE"
        assert unbuildable["failure"]["class"] == "UnbuildableError"
        assert unbuildable["stages"] == []
        assert breaking["state"] == "FAILED"
        assert breaking["failure"]["class"] == "DivergedError"
        assert breaking["measurements"] == {}
        assert seen["breaking"]["files"] is None
    messages = {seen["breaking"]["result"]["failure"]["message"] for seen in ranks}
    assert len(messages) == 1
    assert "step" in messages.pop()


def assert_equal_files(one: Path, other: Path) -> None:
    for name in ("model.onnx", "model.safetensors", "recipe.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
