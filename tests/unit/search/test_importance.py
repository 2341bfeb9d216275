"""Importance of settings, on trials of which it is known what mattered."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.results.trial_result import TrialResult
from orchestrator.search.importance import MIN_TRIALS, importances
from orchestrator.spec.job import Job
from orchestrator.spec.objective import Objective

SPACE = {
    "pruning.ratio": {"float": [0.0, 0.8]},
    "training.learning_rate": {"float": [0.001, 1.0], "log": True},
    "quantization.method": {"choice": ["none", "ptq"]},
    "quantization.weight_bits": {"int": [2, 8], "when": {"quantization.method": ["ptq"]}},
}


def job() -> Job:
    return Job.model_validate({"name": "t", "recipe": {}, "space": SPACE, "objectives": [{"metric": "accuracy"}]})


def trials(count: int, accuracy) -> list[TrialResult]:
    """Random points of the space, with an accuracy of one's own."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(count):
        choice = {
            "pruning.ratio": float(draw.uniform(0.0, 0.8)),
            "training.learning_rate": float(10 ** draw.uniform(-3, 0)),
            "quantization.method": str(draw.choice(["none", "ptq"])),
        }
        if choice["quantization.method"] == "ptq":
            choice["quantization.weight_bits"] = int(draw.integers(2, 9))
        found.append(TrialResult(number, "COMPLETE", choice, {"accuracy": accuracy(choice)}))
    return found


@pytest.mark.parametrize(
    ("cause", "accuracy"),
    [
        ("pruning.ratio", lambda choice: 1.0 - choice["pruning.ratio"]),
        ("training.learning_rate", lambda choice: 1.0 - abs(np.log10(choice["training.learning_rate"]) + 1.5)),
        ("quantization.weight_bits", lambda choice: choice.get("quantization.weight_bits", 0) / 10),
    ],
)
def test_what_alone_decides_comes_first_and_shares_add_up(cause, accuracy):
    count, shares = importances(job(), trials(200, accuracy), Objective(metric="accuracy"))
    assert count == 200
    assert next(iter(shares)) == cause
    assert shares[cause] > 0.5
    assert sum(shares.values()) == pytest.approx(1.0)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_a_measurement_to_be_minimised_looks_at_the_other_end():
    low = Objective(metric="accuracy", direction="minimize")
    results = trials(200, lambda choice: 0.9 if choice["quantization.method"] == "ptq" else choice["pruning.ratio"] / 10)
    _, best_low = importances(job(), results, low)
    assert next(iter(best_low)) == "pruning.ratio"


def test_few_trials_and_equal_values_have_no_shares():
    def rising(choice):
        return choice["pruning.ratio"]

    objective = Objective(metric="accuracy")
    assert importances(job(), trials(MIN_TRIALS - 1, rising), objective) == (MIN_TRIALS - 1, {})
    assert importances(job(), trials(MIN_TRIALS, rising), objective)[1] != {}
    assert importances(job(), trials(50, lambda choice: 0.5), objective) == (50, {})


def test_what_was_not_measured_or_lies_outside_the_space_is_passed_over():
    results = trials(30, lambda choice: choice["pruning.ratio"])
    stopped = TrialResult(90, "STOPPED", results[0].choice)
    outside = TrialResult(91, "COMPLETE", {"pruning.ratio": 0.9}, {"accuracy": 1.0})
    assert importances(job(), [*results, stopped, outside], Objective(metric="accuracy")) == importances(
        job(), results, Objective(metric="accuracy")
    )
