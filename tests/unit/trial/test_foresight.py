"""What a recipe alone says of its file, case by case."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.spec.names import MEASUREMENTS
from orchestrator.spec.recipe import Recipe
from orchestrator.trial.foresight import (
    LATENCIES,
    estimated_before_training,
    estimated_once_cut,
    known_before_training,
    known_once_cut,
)

STRUCTURE = LATENCIES | {"macs", "num_parameters"}
ALL = STRUCTURE | {"size_bytes", "sparsity"}
SIZED = STRUCTURE | {"size_bytes"}
NOTHING: frozenset[str] = frozenset()

PTQ = {"method": "ptq"}
CHANNELS = {"ratio": 0.5}
WEIGHTS = {"ratio": 0.5, "kind": "weights"}
GIVEN = {"weights": "/given.safetensors"}

BEFORE: dict[str, tuple[dict[str, Any], frozenset[str]]] = {
    "plain": ({}, ALL),
    "a scope without a ratio": ({"pruning": {"scope": "global"}}, ALL),
    "channels, uniform, whatever the criterion": ({"pruning": {**CHANNELS, "criterion": "taylor", "steps": 3}}, ALL),
    "channels, global": ({"pruning": {**CHANNELS, "scope": "global"}}, NOTHING),
    "channels, by sensitivity": ({"pruning": {**CHANNELS, "scope": "sensitivity"}}, NOTHING),
    "channels, global, quantized": ({"pruning": {**CHANNELS, "scope": "global"}, "quantization": PTQ}, NOTHING),
    "weights, uniform": ({"pruning": WEIGHTS}, ALL),
    "weights, global": ({"pruning": {**WEIGHTS, "scope": "global"}}, STRUCTURE),
    "weights, by sensitivity": ({"pruning": {**WEIGHTS, "scope": "sensitivity"}}, STRUCTURE),
    "weights, uniform, quantized": ({"pruning": WEIGHTS, "quantization": PTQ}, STRUCTURE),
    "2:4, whatever the scope": ({"pruning": {**WEIGHTS, "kind": "2:4", "scope": "global"}}, ALL),
    "2:4, quantized": ({"pruning": {**WEIGHTS, "kind": "2:4"}, "quantization": PTQ}, STRUCTURE),
    "8 bits": ({"pruning": CHANNELS, "quantization": {"method": "qat"}}, SIZED),
    "6 bits": ({"quantization": {**PTQ, "weight_bits": 6}}, SIZED),
    "5 bits": ({"quantization": {**PTQ, "weight_bits": 5}}, STRUCTURE),
    "one step for all channels": ({"quantization": {**PTQ, "granularity": "tensor"}}, STRUCTURE),
    "bits by layer": ({"quantization": {**PTQ, "allocation": "sensitivity"}}, STRUCTURE),
    "given weights, trained on": ({"model": GIVEN}, ALL),
    "given weights as they are": ({"model": GIVEN, "training": {"epochs": 0}}, STRUCTURE),
}


def recipe(changed: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(changed)


@pytest.mark.parametrize(("changed", "known"), BEFORE.values(), ids=BEFORE)
def test_what_is_known_before_training(changed, known):
    assert known_before_training(recipe(changed)) == known


@pytest.mark.parametrize("changed", [changed for changed, _ in BEFORE.values()], ids=BEFORE)
def test_cutting_takes_no_knowledge_away_and_all_of_it_is_measured(changed):
    asked = recipe(changed)
    before, cut = known_before_training(asked), known_once_cut(asked)
    assert before <= cut <= set(MEASUREMENTS)
    assert cut >= STRUCTURE
    assert not before & estimated_before_training(asked)
    assert not cut & estimated_once_cut(asked)
    assert "size_bytes" in cut | estimated_once_cut(asked)


@pytest.mark.parametrize("scope", ["global", "sensitivity"])
def test_a_plan_that_waits_for_values_is_known_once_it_is_carried_out(scope):
    assert known_once_cut(recipe({"pruning": {**CHANNELS, "scope": scope}})) == ALL
    assert known_once_cut(recipe({"pruning": {**CHANNELS, "scope": scope}, "quantization": PTQ})) == SIZED
    assert estimated_before_training(recipe({"pruning": {**CHANNELS, "scope": scope}, "quantization": PTQ})) == set()


def test_the_size_of_few_bits_is_estimated_before_training():
    assert estimated_before_training(recipe({"quantization": {**PTQ, "weight_bits": 4}})) == {"size_bytes"}
    assert estimated_before_training(recipe({"quantization": PTQ})) == set()
    assert estimated_before_training(recipe({})) == set()
    assert estimated_before_training(recipe({"pruning": {**WEIGHTS, "scope": "global"}, "quantization": PTQ})) == set()
