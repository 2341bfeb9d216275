"""What cannot be is said before anything is trained, and a training that breaks ends as a failure, never as a number."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from orchestrator.models.cifar_resnet import CifarResNet
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.recipe import Recipe
from orchestrator.trial import fitting
from orchestrator.trial.order import Order
from orchestrator.trial.pipeline import run_trial

THEIRS = '''
import torch
from torch import nn


class Branching(nn.Module):
    """Looks at values to decide what to do."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(in_channels, 8, 3), nn.Linear(8, num_classes)

    def forward(self, images):
        hidden = self.conv(images)
        if hidden.sum() > 0:
            hidden = -hidden
        return self.fc(hidden.mean((2, 3)))


class Shuffling(nn.Module):
    """Deals its channels out anew between two layers."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(in_channels, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, num_classes)

    def forward(self, images):
        hidden = torch.relu(self.one(images))
        batch, channels, height, width = hidden.shape
        dealt = hidden.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.fc(self.two(dealt).mean((2, 3)))


class Rigid(nn.Module):
    """Has the number of its channels written into its program."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(in_channels, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8 * 16, num_classes)

    def forward(self, images):
        return self.fc(self.two(torch.relu(self.one(images))).view(-1, 8 * 16))


class Squares(nn.Module):
    """Grows without bound when its steps are too long: no rectifier dies, no norm holds it."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.one, self.two = nn.Linear(64 * in_channels, 16), nn.Linear(16, num_classes)

    def forward(self, images):
        return self.two(torch.square(self.one(images.flatten(1))))


def flat(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))


def of_threes(num_classes, in_channels):
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(in_channels, 3, 3), nn.ReLU(), nn.Conv2d(3, 5, 3), *pool, nn.Linear(5, num_classes))


def convolutions(num_classes, in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def of_seven(in_channels):
    return of_threes(7, in_channels)


def no_network():
    return "a network"


def of_other_arguments(depth):
    return of_threes(10, 1)
'''
CUT = {"ratio": 0.5}


def named(function: str) -> dict[str, Any]:
    return {"name": f"their_package.networks:{function}"}


@pytest.fixture(scope="module", autouse=True)
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A package of the user's own on the path."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "their_package").mkdir()
    (folder / "their_package" / "networks.py").write_text(THEIRS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
    for name in [name for name in sys.modules if name.startswith("their_package")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of weights, none of which a ResNet-8 that is 8 wide can start from."""
    folder = tmp_path_factory.mktemp("weights")
    state = CifarResNet(8, 8, 10, 1).state_dict()
    save_file(CifarResNet(8, 12, 10, 1).state_dict(), folder / "wider.safetensors")
    save_file({name: value for name, value in state.items() if name != "conv.weight"}, folder / "lacking.safetensors")
    save_file({**state, "extra.weight": torch.zeros(1)}, folder / "more.safetensors")
    save_file(CifarResNet(8, 8, 7, 1).state_dict(), folder / "seven.safetensors")
    (folder / "text.safetensors").write_text("no weights")
    return folder


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a channel shuffle, cut": ({"model": named("Shuffling"), "pruning": CUT}, "cannot be pruned: its channels take a way"),
    "widths in the program, cut": ({"model": named("Rigid"), "pruning": CUT}, "cannot be pruned: half of it does not run"),
    "one layer, cut": ({"model": named("flat"), "pruning": CUT}, "cannot be pruned: none of its layers can lose channels"),
    "one layer, cut by sensitivity": (
        {"model": named("flat"), "pruning": {**CUT, "scope": "sensitivity", "criterion": "taylor", "steps": 2}},
        "cannot be pruned: none of its layers can lose channels",
    ),
    "no fours, 2:4": ({"model": named("of_threes"), "pruning": {**CUT, "kind": "2:4"}}, "2:4 needs a layer whose inputs"),
    "branches, exported": ({"model": named("Branching")}, "traced"),
    "branches, ptq": ({"model": named("Branching"), "quantization": {"method": "ptq"}}, "traced"),
    "branches, bits by layer": (
        {"model": named("Branching"), "quantization": {"method": "qat", "weight_bits": 4, "allocation": "sensitivity"}},
        "traced",
    ),
    "a teacher of seven": (
        {"teacher": {"model": named("of_seven")}, "distillation": {"weight": 0.5}},
        r"the teacher must give logits of shape \(1, 10\).*it gives \(1, 7\)",
    ),
    "a teacher of seven, by features": (
        {"teacher": {"model": named("of_seven")}, "distillation": {"feature_weight": 1.0}},
        r"the teacher must give logits of shape \(1, 10\)",
    ),
    "a student of seven": ({"model": named("of_seven")}, r"the student must give logits of shape \(1, 10\)"),
    "three channels wanted": ({"model": {"name": "resnet18"}}, "takes images with 3 channels; the data has 1"),
    "no such module": ({"model": {"name": "their_package.missing:of_threes"}}, "must be a function that makes a network"),
    "no such function": ({"model": named("missing")}, "must be a function that makes a network"),
    "no network": ({"model": named("no_network")}, "must return a torch.nn.Module; it returned str"),
    "other arguments": ({"model": named("of_other_arguments")}, "must be a function that makes a network"),
    "no classifier to drop out": ({"model": {**named("convolutions"), "dropout": 0.5}}, "dropout stands before a linear"),
}
MISFITS = {
    "wider": "must fit the network; these do not",
    "lacking": "must fit the network; these do not: conv.weight",
    "more": "must fit the network; these do not: extra.weight",
    "text": "weights must be a safetensors file",
    "absent": "weights must be a safetensors file",
}


def assert_nothing_was_trained(result: TrialResult, folder: Path, message: str) -> None:
    assert result.state == "INFEASIBLE", result.failure
    assert result.failure is not None
    assert result.failure["class"] == "UnbuildableError"
    assert result.curve == []
    assert {stage.name for stage in result.stages} <= {"preflight"}
    assert result.measurements == {}
    assert not folder.exists()
    assert re.search(message, result.failure["message"]), result.failure["message"]


@pytest.fixture
def untrained(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The bench, where nothing may be trained."""
    monkeypatch.setattr(fitting, "fit", lambda *given, **named: pytest.fail("trained"))
    return bench


@pytest.mark.parametrize(("changed", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_built_ends_before_training(untrained: Any, changed: dict[str, Any], message: str) -> None:
    assert_nothing_was_trained(*untrained.run(changed), message)


@pytest.mark.parametrize(("file", "message"), MISFITS.items(), ids=MISFITS)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_weights_that_do_not_fit_end_before_training(untrained: Any, weights: Path, role: str, file: str, message: str) -> None:
    model = {"name": "cifar_resnet8", "width": 8, "weights": str(weights / f"{file}.safetensors")}
    changed = {"model": model} if role == "student" else {"teacher": {"model": model}, "distillation": {"weight": 0.5}}
    assert_nothing_was_trained(*untrained.run(changed), message)


def test_weights_with_a_head_for_other_classes_fit(bench: Any, weights: Path) -> None:
    path = weights / "seven.safetensors"
    training = {"epochs": 0, "precision": "fp32"}
    result, folder = bench.run({"model": {"name": "cifar_resnet8", "width": 8, "weights": str(path)}, "training": training})
    assert result.state == "COMPLETE", result.failure
    given, shipped = load_file(path), load_file(folder / "model.safetensors")
    assert shipped["fc.weight"].shape == (10, 32)
    assert all(torch.equal(value, shipped[name]) for name, value in given.items() if not name.startswith("fc."))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.width", 3),
        ("model.width", 257),
        ("quantization.weight_bits", 1),
        ("quantization.weight_bits", 9),
        ("quantization.activation_bits", 16),
        ("pruning.ratio", 1.0),
    ],
)
def test_numbers_out_of_range_are_refused_by_the_recipe_itself(untrained: Any, tmp_path: Path, path: str, value: float) -> None:
    section, leaf = path.split(".")
    with pytest.raises(ValidationError, match=leaf):
        Recipe.model_validate({section: {leaf: value}})
    order = Order(0, {}, {section: {leaf: value}}, {}, 0, str(tmp_path / "trial"), str(untrained.stages))
    result = run_trial(order, untrained.host, untrained.workshop)
    assert result.state == "FAILED"
    assert result.failure is not None
    assert path in result.failure["message"]
    assert result.stages == []
    assert not (tmp_path / "trial").exists()


def test_a_trial_that_ends_early_leaves_no_trace_in_the_next(bench: Any, tmp_path: Path) -> None:
    whole, there = bench.run({})
    other = type(bench)(tmp_path)
    early, _ = other.run(REFUSED["a channel shuffle, cut"][0])
    again, here = other.run({})
    assert (whole.state, early.state, again.state) == ("COMPLETE", "INFEASIBLE", "COMPLETE")
    assert not any(stage.cached for stage in again.stages)
    assert (here / "model.onnx").read_bytes() == (there / "model.onnx").read_bytes()


# A training that breaks.

STUDENT: dict[str, Any] = {"model": named("Squares"), "training": {"epochs": 3, "batch_size": 16, "learning_rate": 0.001}}
# A quantizer bounds what it lets through, whatever is learned. A decay that is longer than the weight itself grows it for sure.
DECAYING = {**STUDENT, "training": {**STUDENT["training"], "weight_decay": 1.0}}
BREAKING: dict[str, tuple[dict[str, Any], list[str]]] = {
    "student": ({**STUDENT, "training": {"epochs": 3, "batch_size": 16, "learning_rate": 10.0}}, []),
    "pruned": ({**STUDENT, "pruning": {**CUT, "learning_rate": 10.0, "epochs": 3}}, ["student"]),
    "quantized": ({**DECAYING, "quantization": {"method": "qat", "learning_rate": 10.0, "epochs": 3}}, ["student"]),
}


@pytest.mark.parametrize("stage", BREAKING)
def test_a_loss_that_is_no_number_is_a_failure_that_names_its_step(bench: Any, stage: str) -> None:
    changed, before = BREAKING[stage]
    result, folder = bench.run(changed)
    assert result.state == "FAILED", result.measurements
    assert result.failure is not None
    assert result.failure["class"] == "DivergedError"
    assert re.fullmatch(
        r"loss must stay finite; it was (nan|inf) in epoch [0-2], step \d+: lower the learning rate", result.failure["message"]
    )
    assert result.measurements == {}
    assert [record.name for record in result.stages] == ["preflight", *before]
    assert all(math.isfinite(point["loss"]) for point in result.curve)
    assert not folder.exists()
    json.dumps(result.to_json(), allow_nan=False)


def test_a_failure_is_not_kept(bench: Any) -> None:
    changed, _ = BREAKING["student"]
    (one, _), (other, _) = bench.run(changed), bench.run(changed)
    assert one.failure is not None
    assert other.failure is not None
    assert other.failure["message"] == one.failure["message"]
    assert [path.name for path in bench.stages.iterdir() if ".partial" in path.name] == []
