"""Two sweeps against each other, by hand."""

from __future__ import annotations

import pytest

from orchestrator.delivery.compare import Told, compare, differences
from orchestrator.errors import UsageError
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.spec.job import Job


def a_job(objectives: list[dict[str, object]], **more: object) -> Job:
    space = {"pruning.ratio": {"float": [0.0, 0.5]}}
    return Job.model_validate({"name": "a", "recipe": {}, "space": space, "objectives": objectives, **more})


TWO = [{"metric": "accuracy", "reference": 0.5}, {"metric": "size_bytes", "reference": 100.0}]
JOB = a_job(TWO)


def told(name: str, points: list[tuple[float, float]], job: Job = JOB, **more: object) -> Told:
    results = [
        TrialResult(n, "COMPLETE", {}, {"accuracy": accuracy, "size_bytes": size, **more}, started=0.0, ended=36.0)
        for n, (accuracy, size) in enumerate(points)
    ]
    return Told(name, job, [Proposal(result.number, {}, {}) for result in results], results)


def test_two_fronts_by_hand():
    one = told("one", [(0.9, 80.0), (0.7, 40.0), (0.6, 90.0)])
    other = told("other", [(0.9, 80.0), (0.8, 40.0), (0.6, 20.0)])
    found = compare(one, other)
    assert found.reference == (0.5, 100.0)
    first, second = found.sides
    # Boxes against (0.5, 100): (0.4, 20) and (0.2, 60), and (0.4, 20), (0.3, 60), (0.1, 80).
    assert first.hypervolume == pytest.approx(0.4 * 20 + 0.2 * 40)
    assert second.hypervolume == pytest.approx(0.4 * 20 + 0.3 * 40 + 0.1 * 20)
    assert (first.front_size, second.front_size) == (2, 3)
    # The first covers the equal point alone; the second covers both of the first's.
    assert (first.coverage, second.coverage) == (pytest.approx(1 / 3), 1.0)
    assert [(name, trial.id) for name, trial in found.joint] == [
        ("one", "t0000"),
        ("other", "t0000"),
        ("other", "t0001"),
        ("other", "t0002"),
    ]
    assert (first.owned, second.owned) == (1, 3)
    assert (first.device_hours, first.trials) == (pytest.approx(3 * 36 / 3600), 3)
    assert (found.differences, found.cautions) == ((), ())


def test_the_other_way_round_is_the_mirror_image():
    one = told("one", [(0.9, 80.0), (0.7, 40.0)])
    other = told("other", [(0.8, 30.0)])
    there, back = compare(one, other), compare(other, one)
    assert there.sides == tuple(reversed(back.sides))
    assert there.reference == back.reference
    assert {(name, trial.id) for name, trial in there.joint} == {(name, trial.id) for name, trial in back.joint}


def test_the_reference_is_the_worse_of_those_named_or_a_little_beyond_the_worst_value():
    near = a_job([{"metric": "accuracy", "reference": 0.7}, {"metric": "size_bytes"}])
    found = compare(told("one", [(0.9, 80.0)]), told("other", [(0.8, 200.0)], near))
    assert found.reference == (0.5, 100.0)
    free = a_job([{"metric": "accuracy"}, {"metric": "size_bytes"}])
    found = compare(told("one", [(0.9, 80.0)], free), told("other", [(0.8, 180.0)], free))
    assert found.reference == (pytest.approx(0.79), pytest.approx(190.0))


def test_the_order_of_objectives_does_not_matter():
    turned = a_job(list(reversed(TWO)))
    points = [(0.9, 80.0), (0.7, 40.0)]
    found = compare(told("one", points), told("other", points, turned))
    assert found.sides[0].hypervolume == found.sides[1].hypervolume
    assert (found.sides[0].coverage, found.sides[0].owned) == (1.0, 2)


@pytest.mark.parametrize(
    ("objectives", "said"),
    [
        ([{"metric": "accuracy"}], "size_bytes: minimize -> none"),
        ([{"metric": "accuracy"}, {"metric": "latency_ms"}], "size_bytes: minimize -> none; latency_ms: none -> minimize"),
        (
            [{"metric": "accuracy", "direction": "minimize"}, {"metric": "size_bytes"}],
            "accuracy: maximize -> minimize",
        ),
    ],
)
def test_other_objectives_are_refused_with_the_difference(objectives, said):
    with pytest.raises(UsageError, match="must have the same objectives") as caught:
        compare(told("one", [(0.9, 80.0)]), told("other", [(0.9, 80.0)], a_job(objectives)))
    assert str(caught.value).endswith(said)


def test_a_sweep_without_a_front_covers_nothing_and_cannot_be_covered():
    found = compare(told("one", [(0.9, 80.0)]), told("other", []))
    first, second = found.sides
    assert (first.coverage, second.coverage) == (None, 0.0)
    assert (first.owned, second.owned, second.hypervolume) == (1, 0, 0.0)
    nothing = compare(told("one", []), told("other", []))
    assert (nothing.joint, nothing.sides[0].owned) == ((), 0)


def test_what_makes_another_sweep_is_told_and_what_does_not_is_not():
    other = a_job(
        TWO,
        name="b",
        recipe={"training": {"epochs": 3}},
        budget={"trials": 3},
        resources={"gangs": 2},
        tracking={"experiment": "x"},
    )
    assert differences(JOB.tree(), other.tree()) == ["recipe.training.epochs: 10 -> 3"]
    assert compare(told("one", []), told("other", [], other)).differences == ("recipe.training.epochs: 10 -> 3",)
    assert (JOB.identity() == other.identity()) is False
    assert differences(JOB.tree(), a_job(TWO, name="b", resources={"gangs": 2}).tree()) == []


def test_what_was_measured_otherwise_is_warned_about():
    other = a_job(TWO, recipe={"data": {"split_seed": 1}, "measurement": {"threads": 2}})
    found = compare(told("one", [(0.9, 80.0)], executor="a 1"), told("other", [(0.9, 80.0)], other, executor="a 2"))
    assert found.cautions == (
        "the data differ: accuracies are of other images",
        "the settings of recipe.measurement differ",
        "the executor differs: a 1 -> a 2",
    )
