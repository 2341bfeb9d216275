"""From facts to runs, without a server."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.pareto.front import find_front
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.objective import Objective
from orchestrator.tracking.projection import fronts_by_step, parameters_of, standing_of, tags_of

values = st.sampled_from([0.0, 0.25, 0.5, 0.5000001, 0.75, 1.0])
trials = st.lists(st.tuples(values, values, st.sampled_from(["COMPLETE", "COMPLETE", "FAILED", "broken"])), max_size=14)


def ended(number: int, accuracy: float, size: float, state: str) -> TrialResult:
    if state == "FAILED":
        return TrialResult(number, "FAILED", {})
    measured = {"accuracy": accuracy, "size_bytes": 1000 * size}
    return TrialResult(number, "COMPLETE", {}, measured, constraints={"size_bytes": 1.0 if state == "broken" else -1.0})


@settings(max_examples=60, deadline=None)
@given(trials, st.booleans(), st.integers(0, 3))
def test_the_front_by_step_is_that_of_all_ends_so_far(drawn: list[tuple[float, float, str]], fixed: bool, twin: int) -> None:
    """With a reference of the job's, and with one that moves as worse trials come; with a replicate among the ends."""
    objectives = [
        Objective(metric="accuracy", reference=0.3 if fixed else None),
        Objective(metric="size_bytes", reference=900.0 if fixed else None),
    ]
    results = [ended(number, *trial) for number, trial in enumerate(drawn)]
    replicate_of = {twin: 0} if 0 < twin < len(results) else {}
    fronts = list(fronts_by_step(results, objectives, replicate_of))
    assert len(fronts) == len(results)
    for step, shown in enumerate(fronts, 1):
        front = find_front(results[:step], objectives, replicate_of)
        assert shown["front/size"] == len(front.points)
        assert shown["front/hypervolume"] == pytest.approx(front.hypervolume, rel=1e-12)


def test_every_trial_has_the_same_parameters() -> None:
    unasked = {"model.weights": None, "quantization.weight_bits": 8}
    chosen = parameters_of(TrialResult(1, "COMPLETE", {"model.weights": "../../x<script>🚀"}), unasked)
    assert chosen == {"model.weights": "../../x<script>🚀", "quantization.weight_bits": "8"}
    assert parameters_of(TrialResult(0, "FAILED", {}), unasked).keys() == chosen.keys()


def test_the_class_of_a_failure_is_text_of_bounded_length() -> None:
    tags = tags_of(TrialResult(3, "FAILED", {}, failure={"class": "E" * 9000, "message": "", "traceback": ""}), None)
    assert len(tags["orchestrator.failure"]) == 2000
    assert tags["orchestrator.failure"].endswith("(9000 characters)")
    assert tags["orchestrator.trial"] == "t0003"


def test_where_a_trial_stands() -> None:
    results = [ended(0, 0.5, 0.5, "COMPLETE"), ended(1, 0.25, 0.75, "COMPLETE"), ended(2, 1.0, 0.0, "broken")]
    front = find_front(results, [Objective(metric="accuracy"), Objective(metric="size_bytes")])
    pareto, rank, knee = "orchestrator.pareto", "orchestrator.rank", "orchestrator.knee"
    assert standing_of(front, 0) == {pareto: "true", rank: "0", knee: "true"}
    assert standing_of(front, 1) == {pareto: "false", rank: "1", knee: "false"}
    assert standing_of(front, 2) == {pareto: "false"}
