"""The gate: what is said of a network before training is what its file has in the end, and a broken bound costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from orchestrator.spec.recipe import Recipe
from orchestrator.trial import fitting, preflight
from orchestrator.trial.foresight import (
    LATENCIES,
    estimated_before_training,
    estimated_once_cut,
    known_before_training,
    known_once_cut,
)

QAT = {"method": "qat", "epochs": 1}
CUT = {"ratio": 0.5, "epochs": 1, "round_to": 1}
EXACT: dict[str, dict[str, Any]] = {
    "float, channels by taylor in steps": {"pruning": {**CUT, "criterion": "taylor", "steps": 2, "epochs": 2}},
    "float, single weights": {"pruning": {**CUT, "kind": "weights", "ratio": 0.8, "steps": 2}},
    "float, 2:4": {"pruning": {**CUT, "kind": "2:4"}},
    "6 bits, channels": {"pruning": CUT, "quantization": {**QAT, "weight_bits": 6}},
}
ESTIMATED: dict[str, dict[str, Any]] = {
    "2 bits": {"quantization": {**QAT, "weight_bits": 2}},
    "4 bits by layer": {"quantization": {**QAT, "weight_bits": 4, "allocation": "sensitivity"}},
    "8 bits, single weights": {"pruning": {**CUT, "kind": "weights"}, "quantization": QAT},
}
LATE: dict[str, dict[str, Any]] = {
    "channels, global": {"pruning": {**CUT, "scope": "global"}},
    "channels, global, in steps, 8 bits": {"pruning": {**CUT, "scope": "global", "steps": 2, "epochs": 2}, "quantization": QAT},
    "channels, by sensitivity": {"pruning": {**CUT, "scope": "sensitivity"}},
    "single weights, global": {"pruning": {**CUT, "kind": "weights", "scope": "global"}},
}
AWAITED = ["size_bytes", "macs"]


def most(limit: float) -> dict[str, float | None]:
    return {"min": None, "max": limit}


def recipe(changed: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {section: values for section, values in changed.items() if section in ("pruning", "quantization")}
    )


def from_zero(num_classes: int, in_channels: int) -> nn.Module:
    """A network whose classifier starts at zero, as many do; so do the means of norms, and what is folded of them."""
    classifier, pool = nn.Linear(256, num_classes), (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.zeros_(classifier.weight)
    return nn.Sequential(nn.Conv2d(in_channels, 256, 3, bias=False), nn.BatchNorm2d(256), nn.ReLU(), *pool, classifier)


EXACT["starts at zero"] = {"model": {"name": f"{__name__}:from_zero"}}


@pytest.mark.parametrize("changed", EXACT.values(), ids=EXACT)
def test_what_is_known_before_training_is_what_the_file_has(bench: Any, changed: dict[str, Any]) -> None:
    result, _ = bench.run(changed)
    assert result.state == "COMPLETE", result.failure
    assert result.gate.keys() == known_before_training(recipe(changed)) - LATENCIES
    assert result.gate == {metric: result.measurements[metric] for metric in result.gate}
    assert {"stage": "gate", "gate": result.gate} in bench.host.heard


@pytest.mark.parametrize("changed", ESTIMATED.values(), ids=ESTIMATED)
def test_what_is_estimated_before_training_is_near_what_the_file_has(bench: Any, changed: dict[str, Any]) -> None:
    result, _ = bench.run(changed)
    assert result.state == "COMPLETE", result.failure
    known, estimated = known_before_training(recipe(changed)), estimated_before_training(recipe(changed))
    assert result.gate.keys() == (known | estimated) - LATENCIES
    assert all(result.gate[metric] == result.measurements[metric] for metric in known - LATENCIES)
    assert estimated == {"size_bytes"}
    assert result.gate["size_bytes"] == pytest.approx(result.measurements["size_bytes"], rel=0.1)


@pytest.mark.parametrize("changed", LATE.values(), ids=LATE)
def test_what_waits_for_values_is_told_after_the_last_cut_and_holds(bench: Any, changed: dict[str, Any]) -> None:
    bench.host.heard.clear()
    result, _ = bench.run(changed, objectives=AWAITED)
    assert result.state == "COMPLETE", result.failure
    asked = recipe(changed)
    known = (known_once_cut(asked) | estimated_once_cut(asked)) - LATENCIES
    assert result.gate == {metric: result.measurements[metric] for metric in known}
    heard = [(event["stage"], event.get("epoch")) for event in bench.host.heard if "gate" in event or "val_accuracy" in event]
    last = asked.pruning.epochs * (asked.pruning.steps - 1) // asked.pruning.steps
    told = [place for place, event in enumerate(heard) if event[0] == "gate"]
    assert len(told) == 2
    assert heard[told[1] + 1] == ("pruned", last)


@pytest.mark.parametrize("changed", LATE.values(), ids=LATE)
def test_the_gate_behind_a_cut_stands_only_where_somebody_asks(
    bench: Any, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    bench.host.heard.clear()
    result, _ = bench.run(changed, objectives=["accuracy"], constraints={"accuracy": {"min": 0.0, "max": None}})
    assert result.state == "COMPLETE", result.failure
    assert result.gate.keys() == known_before_training(recipe(changed)) - LATENCIES
    assert sum("gate" in event for event in bench.host.heard) == 1


def test_a_gate_behind_the_cut_changes_no_bit_of_the_file(bench: Any, tmp_path: Any) -> None:
    changed = LATE["channels, global"]
    asked, there = type(bench)(tmp_path / "asked").run(changed, objectives=[*AWAITED, "latency_ms"])
    alone, here = type(bench)(tmp_path / "alone").run(changed)
    assert (asked.state, alone.state) == ("COMPLETE", "COMPLETE")
    assert asked.gate.keys() == known_once_cut(recipe(changed))
    assert alone.gate == {}
    assert (there / "model.onnx").read_bytes() == (here / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("metric", "changed"),
    [
        ("size_bytes", {}),
        ("macs", {"quantization": {"method": "ptq", "weight_bits": 3}}),
        ("num_parameters", {"pruning": {**CUT, "kind": "weights", "scope": "global"}}),
        ("latency_ms", {"pruning": CUT, "quantization": QAT}),
        ("latency_ms_p95", {}),
    ],
)
def test_a_bound_that_cannot_be_kept_costs_no_training(
    bench: Any, monkeypatch: pytest.MonkeyPatch, metric: str, changed: dict[str, Any]
) -> None:
    monkeypatch.setattr(fitting, "fit", lambda *given, **named: pytest.fail("trained"))
    bounds = {metric: most(1e-6), "accuracy": {"min": 0.99, "max": None}, "macs": most(1e9)} | {metric: most(1e-6)}
    result, folder = bench.run(changed, constraints=bounds)
    assert (result.state, result.measurements, result.curve) == ("INFEASIBLE", {}, [])
    assert result.failure is not None
    assert result.failure["class"] == "GatedError"
    assert f"{metric} must be at most 1e-06; it is {result.gate[metric]:.10g} before training" in result.failure["message"]
    assert result.constraints.keys() == {metric, "macs"}
    assert 0.0 < result.constraints[metric] <= result.gate[metric] - 1e-6
    if metric != "macs":
        assert result.constraints["macs"] == result.gate["macs"] - 1e9
    assert [stage.name for stage in result.stages] == ["preflight"]
    assert not folder.exists()


@pytest.mark.parametrize("changed", LATE.values(), ids=LATE)
def test_a_bound_that_is_broken_by_the_cut_costs_no_training_after_it(bench: Any, changed: dict[str, Any]) -> None:
    steps = changed["pruning"].get("steps", 1)
    bounds = {"size_bytes": most(1000.0), "macs": most(1e9)}
    result, folder = bench.run({**changed, "training": {"batch_size": 32}}, constraints=bounds)
    assert result.state == "INFEASIBLE", result.failure
    assert result.failure is not None
    assert result.failure["class"] == "GatedError"
    assert result.constraints == {"size_bytes": result.gate["size_bytes"] - 1000.0, "macs": result.gate["macs"] - 1e9}
    assert [stage.name for stage in result.stages] == ["preflight", "student"]
    assert [(point["stage"], point["epoch"]) for point in result.curve] == [("student", 0)] + [("pruned", 0)] * (steps - 1)
    assert not folder.exists()


def test_a_stored_cut_is_held_to_the_bound_before_training_with_quantizers(bench: Any) -> None:
    changed = {**LATE["channels, global"], "training": {"batch_size": 64}}
    assert bench.run(changed)[0].state == "COMPLETE"
    result, _ = bench.run({**changed, "quantization": QAT}, constraints={"size_bytes": most(1000.0)})
    assert result.state == "INFEASIBLE"
    assert [(stage.name, stage.cached) for stage in result.stages][1:] == [("student", True), ("pruned", True)]


def test_bounds_that_are_kept_do_not_keep_a_trial_from_being_checked_on_its_file(bench: Any) -> None:
    result, _ = bench.run({}, constraints={"size_bytes": most(1e9), "accuracy": {"min": 1.0, "max": None}})
    assert result.state == "COMPLETE"
    assert not result.feasible
    measured = result.measurements
    assert result.constraints == {"size_bytes": measured["size_bytes"] - 1e9, "accuracy": 1.0 - measured["accuracy"]}


@pytest.fixture
def counted(bench: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the gate writes a file and times one."""
    counts = {"export": 0, "call_latency": 0}

    def counting(name: str) -> Callable[..., Any]:
        function = getattr(preflight, name)

        def counted(*given: Any, **named: Any) -> Any:
            counts[name] += 1
            return function(*given, **named)

        return counted

    for name in counts:
        monkeypatch.setattr(preflight, name, counting(name))
    return counts


def test_latency_is_measured_only_where_it_is_asked_for(bench: Any, counted: dict[str, int]) -> None:
    wider = {"model": {"name": "cifar_resnet8", "width": 9}}
    plain, _ = bench.run(wider, constraints={"size_bytes": most(1e9)})
    assert (counted["export"], counted["call_latency"]) == (1, 0)
    assert not plain.gate.keys() & LATENCIES
    timed, _ = bench.run(wider, objectives=["latency_ms"])
    assert (counted["export"], counted["call_latency"]) == (2, 1)
    assert plain.gate.keys() | LATENCIES == timed.gate.keys()
    assert 0.0 < timed.gate["latency_ms_low"] <= timed.gate["latency_ms"] <= timed.gate["latency_ms_high"]


def test_a_file_of_equal_structure_is_measured_once_for_all_trials(bench: Any, counted: dict[str, int]) -> None:
    bounds = {"latency_ms": most(1e9)}
    first = {"model": {"name": "cifar_resnet8", "width": 10}, "quantization": {"method": "ptq"}}
    others = [
        {**first, "training": {"learning_rate": 0.05}},
        {**first, "quantization": QAT, "distillation": {"weight": 0.5}},
    ]
    gates = [bench.run(changed, constraints=bounds)[0].gate for changed in (first, *others)]
    assert (counted["export"], counted["call_latency"]) == (1, 1)
    assert gates[0] == gates[1] == gates[2]
    bench.run({**first, "quantization": {"method": "ptq", "weight_bits": 7}}, constraints=bounds)
    assert (counted["export"], counted["call_latency"]) == (2, 2)
