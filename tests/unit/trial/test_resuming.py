"""A stage that was cut short goes on from its checkpoint, and what it makes is what it would have made, to the last bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from orchestrator.errors import DivergedError, TrialAbandoned, TrialStopped
from orchestrator.measure import latency
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.recipe import Recipe
from orchestrator.training.process import Process
from orchestrator.trial import fitting
from orchestrator.trial.networks import prune, quantize, train_student, train_teacher
from orchestrator.trial.order import Order
from orchestrator.trial.pipeline import run_trial
from orchestrator.trial.stages import StageStore
from orchestrator.trial.work import Network, Work
from orchestrator.trial.workshop import Workshop
from tests.unit.trial.conftest import Alone, recipe_tree

NAME = "checkpoint.safetensors"
THREE = {"epochs": 3, "batch_size": 32, "learning_rate": 0.05}
DATA = {"source": "digits", "max_train": 96, "max_val": 32}
CALIBRATION = {"num_calibration": 32}
CASES: dict[str, dict[str, Any]] = {
    "dense, with dropout": {"training": THREE, "model": {"name": "cifar_resnet8", "width": 6, "dropout": 0.3}},
    "muon": {"training": {**THREE, "optimizer": "muon", "channels_last": True, "augmentation": "shift"}},
    "plateau": {"training": {**THREE, "optimizer": "adamw", "schedule": "plateau", "epochs": 5}},
    "lessons": {"training": THREE, "distillation": {"weight": 0.5}},
    "features": {"training": {**THREE, "epochs": 2}, "distillation": {"weight": 0.5, "feature_weight": 10.0}},
    "fast": {"training": THREE, "adversarial": {"method": "fast"}},
    "free": {"training": THREE, "adversarial": {"method": "free", "steps": 2}},
    "weights": {"pruning": {"kind": "weights", "ratio": 0.5, "epochs": 2}},
    "channels in steps": {"pruning": {"ratio": 0.5, "criterion": "taylor", "steps": 3, "epochs": 4, "round_to": 1}},
    "steps without epochs": {"pruning": {"ratio": 0.5, "steps": 3, "epochs": 1, "round_to": 1}},
    "qat": {"quantization": {"method": "qat", "weight_bits": 3, "allocation": "sensitivity", "epochs": 2, **CALIBRATION}},
    "fast qat of pruned weights": {
        "pruning": {"kind": "weights", "ratio": 0.5, "epochs": 1},
        "quantization": {"method": "qat", "weight_bits": 4, "epochs": 1, **CALIBRATION},
        "adversarial": {"method": "fast"},
    },
}


@pytest.fixture(autouse=True, scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> None:
    DECODED.store.root = tmp_path_factory.mktemp("decoded")


DECODED = Workshop(StageStore(Path()), Process())  # the data, decoded once for all tests


class Leaving(Alone):
    """Gives the trial up after each epoch, once."""

    def __init__(self, error: type[Exception] = TrialAbandoned) -> None:
        super().__init__()
        self.error, self.left_at = error, set[tuple[str, int]]()

    def progress(self, event: dict[str, Any]) -> None:
        super().progress(event)
        place = event["stage"], event.get("epoch", -1)
        if "val_accuracy" in event and place not in self.left_at:
            self.left_at.add(place)
            raise self.error("leave")


def walk(host: Alone, root: Path, changed: dict[str, Any]) -> tuple[Work, list[Network]]:
    """The stages that train, in a new process's workshop over a store."""
    tree = recipe_tree({"data": DATA, **changed})
    recipe = Recipe.model_validate(tree)
    order = Order(0, {}, tree, {}, 0, str(root / "t"), str(root))
    material = DECODED.material(recipe.data, recipe.training.channels_last)
    work = Work(order, recipe, host, Workshop(StageStore(root), host.process), material)
    teacher = train_teacher(work)
    student = train_student(work, teacher)
    pruned = prune(work, student, teacher)
    return work, [*([teacher] if teacher else []), student, pruned, quantize(work, pruned, teacher)]


def walk_to_the_end(host: Alone, root: Path, changed: dict[str, Any]) -> tuple[Work, list[Network], int]:
    """The same, begun again whenever it was given up, and how often it was."""
    for times in range(100):
        torch.manual_seed(times)  # whatever a process drew before must not matter
        try:
            return *walk(host, root, changed), times
        except TrialAbandoned:
            continue
    raise AssertionError("it never ends")


def digest(network: Network) -> str:
    found = hashlib.sha256()
    for name, value in network.model.state_dict().items():
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()


def epochs_run(host: Alone) -> list[tuple[str, int]]:
    return [(event["stage"], event["epoch"]) for event in host.heard if "val_accuracy" in event]


@pytest.mark.parametrize("case", CASES)
def test_given_up_after_every_epoch_it_ends_as_if_it_never_was(case: str, tmp_path: Path) -> None:
    work, networks = walk(Alone(), tmp_path / "whole", CASES[case])
    host = Leaving()
    again, same, times = walk_to_the_end(host, tmp_path / "cut", CASES[case])
    assert [digest(network) for network in same] == [digest(network) for network in networks]
    assert [network.key for network in same] == [network.key for network in networks]
    assert again.curve == work.curve
    assert times == len(work.curve)
    assert not list((tmp_path / "cut").glob("*.partial"))
    epochs = [(point["stage"], point["epoch"]) for point in work.curve]
    if case == "channels in steps":  # a training of epoch 0, one of 1 and one of 2 and 3: but for the first they are run again
        epochs[1:] = [("pruned", epoch) for epoch in (0, 1, 1, 2, 1, 2, 3, 1, 2, 3)]
    assert epochs_run(host) == epochs


def left(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)).partition(".")[2] for path in root.rglob("*") if ".partial" in str(path))


def test_a_stopped_trial_leaves_its_checkpoint_and_can_be_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_LEAST_S", 0.0)
    monkeypatch.setattr(latency, "_WARM_UP_S", 0.0)

    def run(host: Alone) -> TrialResult:
        tree = recipe_tree({"data": DATA, "training": {**THREE, "epochs": 2}})
        order = Order(1, {}, tree, {}, 0, str(tmp_path / "trial"), str(tmp_path / "stages"))
        return run_trial(order, host, Workshop(StageStore(tmp_path / "stages"), Process()))

    stopped = run(Leaving(TrialStopped))
    assert stopped.state == "STOPPED"
    assert [point["epoch"] for point in stopped.curve] == [0]
    assert left(tmp_path / "stages") == ["partial", f"partial/{NAME}"]
    host = Alone()
    promoted = run(host)
    assert promoted.state == "COMPLETE"
    assert [point["epoch"] for point in promoted.curve] == [0, 1]
    assert promoted.curve[:1] == stopped.curve
    assert epochs_run(host) == [("student", 1)]
    assert left(tmp_path / "stages") == []


def abandoned(root: Path, changed: dict[str, Any]) -> Path:
    """Where a checkpoint lies after one epoch."""
    with pytest.raises(TrialAbandoned):
        walk(Leaving(), root, changed)
    (path,) = root.glob(f"*.partial/{NAME}")
    return path


def truncated(path: Path, foreign: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path, foreign: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path, foreign: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)


def replaced(path: Path, foreign: Path) -> None:
    path.write_bytes(foreign.read_bytes())


@pytest.mark.parametrize("damage", [truncated, emptied, flipped, replaced])
def test_a_checkpoint_that_is_of_no_use_costs_a_note(tmp_path: Path, damage: Callable[[Path, Path], None]) -> None:
    changed = {"training": {**THREE, "epochs": 2}}
    foreign = abandoned(tmp_path / "foreign", {**changed, "model": {"name": "cifar_resnet8", "width": 6}})
    work, networks = walk(Alone(), tmp_path / "whole", changed)
    damage(abandoned(tmp_path / "cut", changed), foreign)
    host = Alone()
    again, same = walk(host, tmp_path / "cut", changed)
    (note,) = [event for event in host.heard if "note" in event]
    assert note["stage"] == "student"
    assert note["note"].startswith("begins anew, as its checkpoint is of no use: ")
    assert [digest(network) for network in same] == [digest(network) for network in networks]
    assert again.curve == work.curve


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would come again; here after an epoch that is on disk already."""
    monkeypatch.setattr(fitting, "_SECONDS_BETWEEN", 0.0)
    seen: list[list[str]] = []

    class Failing(Alone):
        def progress(self, event: dict[str, Any]) -> None:
            if "val_accuracy" in event:
                seen.append([path for path in left(tmp_path) if path.endswith(NAME)])
                raise DivergedError("loss must stay finite")

    with pytest.raises(DivergedError):
        walk(Failing(), tmp_path, {"training": THREE})
    assert seen == [[f"partial/{NAME}"]]
    assert left(tmp_path) == []


def test_a_checkpoint_holds_the_epoch_and_its_curve(tmp_path: Path) -> None:
    """Readable with safetensors alone: weights of the epoch, under their names."""
    path = abandoned(tmp_path, {"training": THREE})
    tensors: dict[str, Tensor] = load_file(path)
    model: nn.Module = walk(Alone(), tmp_path, {"training": THREE})[1][0].model
    names = {name.removeprefix("model.") for name in tensors if name.startswith("model.")}
    assert names == set(model.state_dict())
    assert any(name.startswith("optimizer.0.") for name in tensors)
