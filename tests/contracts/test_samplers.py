"""What every sampler of a sweep has to do: the contract of `search.sampler.Sampler`, for each name that a job may give.

A search is a list of facts: the same facts in the same order give the same proposals, live or replayed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import pytest

from orchestrator.errors import SpaceExhausted
from orchestrator.pareto.hypervolume import hypervolume
from orchestrator.results.trial_result import Proposal, State, TrialResult
from orchestrator.search.points import fits, point_key
from orchestrator.search.proposer import Proposer
from orchestrator.search.sampler import replay
from orchestrator.spec.job import Job, SearchSettings
from orchestrator.spec.space import Choice, fill, is_active

SAMPLERS = get_args(SearchSettings.model_fields["sampler"].annotation)
MODELS = ("tpe", "nsga2", "nsga3", "gp", "ehvi")
METRICS = ("accuracy", "size_bytes", "latency_ms", "macs")
SPACE: dict[str, Any] = {
    "pruning.ratio": {"float": [0.0, 0.8]},
    "distillation.weight": {"float": [0.0, 0.75], "step": 0.25},
    "training.learning_rate": {"float": [0.001, 0.5], "log": True},
    "training.channels_last": {"choice": [True, False]},
    "model.width": {"int": [8, 32], "step": 8},
    "quantization.method": {"choice": ["none", "ptq", "qat"]},
    "quantization.weight_bits": {"int": [2, 8], "when": {"quantization.method": ["ptq", "qat"]}},
    "quantization.epochs": {"int": [1, 16], "log": True, "when": {"quantization.method": "qat"}},
}
SIX_POINTS: dict[str, Any] = {
    "model.width": {"int": [8, 16], "step": 8},
    "quantization.method": {"choice": ["none", "ptq"]},
    "quantization.weight_bits": {"choice": [4, 8], "when": {"quantization.method": "ptq"}},
}
ENDS: tuple[State, ...] = ("COMPLETE", "COMPLETE", "COMPLETE", "STOPPED", "FAILED", "INFEASIBLE", "COMPLETE")
LIMIT = 5000.0

every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def make_job(name: str, space: dict[str, Any] = SPACE, objectives: int = 2, seed: int = 0, **search: Any) -> Job:
    return Job.model_validate(
        {
            "name": "job",
            "seed": seed,
            "recipe": {},
            "space": space,
            "objectives": [{"metric": metric} for metric in METRICS[:objectives]],
            "constraints": {"size_bytes": {"max": LIMIT}},
            "search": {"num_startup": 4, "sampler": name, **search},
        }
    )


def count_for(name: str, count: int) -> int:
    """A Gaussian process takes its time for every point, the others take none."""
    return min(count, 7) if name == "gp" else count


def ended(proposal: Proposal, state: State = "COMPLETE") -> TrialResult:
    """How a trial could end: a smooth trade of accuracy against size."""
    choice = {"pruning.ratio": 0.0, "model.width": 16, "quantization.weight_bits": 32, **proposal.choice}
    size = 400.0 * choice["model.width"] * (1 - choice["pruning.ratio"]) * choice["quantization.weight_bits"] / 32
    values = {
        "accuracy": 1 - choice["pruning.ratio"] ** 2 - 8 / size,
        "size_bytes": size,
        "latency_ms": size**0.5,
        "macs": size,
    }
    complete = state == "COMPLETE"
    return TrialResult(
        proposal.number,
        state,
        proposal.choice,
        measurements=values if complete else {},
        gate={"size_bytes": size} if state == "INFEASIBLE" and size > LIMIT else {},
        constraints={"size_bytes": size - LIMIT} if complete or state == "INFEASIBLE" else {},
        ended=float(proposal.number),
    )


End = Callable[[Proposal], TrialResult]


def cycle(ends: Sequence[State]) -> End:
    return lambda proposal: ended(proposal, ends[proposal.number % len(ends)])


def search(job: Job, count: int, end: End = ended) -> tuple[Proposer, list[Proposal], list[TrialResult]]:
    """The baseline and at most `count` - 1 proposals, each told its end before the next is asked for."""
    sampler = Proposer(job)
    proposals, results = [], []
    for number in range(count):
        if number == 0:
            proposal = Proposal(0, job.space.baseline(job.recipe) or {}, {}, "baseline")
            sampler.know(proposal)
        elif sampler.has_more():
            proposal = Proposal(number, sampler.ask(number), {}, told=[number - 1])
        else:
            break
        result = end(proposal)
        sampler.tell(result)
        proposals.append(proposal)
        results.append(result)
    return sampler, proposals, results


def choices(job: Job, count: int, end: End = ended) -> list[Choice]:
    return [proposal.choice for proposal in search(job, count, end)[1]]


# Proposals.


@every_sampler
@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_every_proposal_is_a_point_of_the_space_and_fills_the_recipe(name, objectives):
    job = make_job(name, objectives=objectives)
    for choice in choices(job, count_for(name, 24), cycle(ENDS)):
        assert fits(choice, job.space, job.recipe)
        for path, value in choice.items():
            domain = job.space.root[path]
            if domain.kind != "choice":
                assert type(value) is (int if domain.kind == "int" else float)
        fill(job.recipe, choice)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("grid", "gp")])
def test_a_hole_is_filled_exactly_when_its_condition_holds(name):
    job, tree = make_job(name), {"quantization": {"method": "none"}}
    proposed = choices(job, count_for(name, 24))
    for choice in proposed:
        assert set(choice) == {path for path, domain in job.space.items() if is_active(domain, choice, tree)}
    assert {choice["quantization.method"] for choice in proposed} == {"none", "ptq", "qat"}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("state", ["STOPPED", "FAILED", "INFEASIBLE"])
def test_a_search_goes_on_when_no_trial_completes(name, state):
    job = make_job(name)
    proposed = choices(job, count_for(name, 16), cycle([state]))
    assert all(fits(choice, job.space, job.recipe) for choice in proposed)


@every_sampler
def test_no_point_is_proposed_twice_and_a_space_with_few_points_comes_to_an_end(name):
    job = make_job(name, SIX_POINTS)
    sampler, proposals, _ = search(job, 9, cycle(ENDS))
    assert len(proposals) == 6  # 2 widths times: no quantization, 4 bits, 8 bits
    assert len({point_key(proposal.choice, job.space) for proposal in proposals}) == 6
    assert not sampler.has_more()
    with pytest.raises(SpaceExhausted, match="all 6 were proposed"):
        sampler.ask(9)


@every_sampler
def test_a_point_under_way_is_not_proposed_again(name):
    job = make_job(name, SIX_POINTS)
    sampler = Proposer(job)
    asked = [sampler.ask(number) for number in range(1, 7)]
    assert len({point_key(choice, job.space) for choice in asked}) == 6


@every_sampler
def test_a_space_without_holes_has_the_recipe_and_nothing_else(name):
    assert choices(make_job(name, {}), 4) == [{}]


@every_sampler
def test_a_baseline_outside_the_space_is_left_out_and_the_search_goes_on(name):
    job = make_job(name, {"model.width": {"int": [20, 40], "step": 4}, "pruning.ratio": {"float": [0.1, 0.8]}})
    proposed = choices(job, 5)
    assert proposed[0] == {}
    assert all(fits(choice, job.space, job.recipe) for choice in proposed[1:])


@every_sampler
def test_a_replicate_and_a_promotion_share_a_point_and_are_taken_in(name):
    job = make_job(name)
    sampler, proposals, _ = search(job, 6, cycle(ENDS))
    for number, known in ((6, {"replicate_of": 1}), (7, {"continues": 3})):
        again = Proposal(number, proposals[1 if number == 6 else 3].choice, {}, **known)
        sampler.know(again)
        sampler.tell(ended(again))
    taken = {point_key(proposal.choice, job.space) for proposal in proposals}
    assert point_key(sampler.ask(8), job.space) not in taken


# The same facts give the same proposals.


@every_sampler
def test_the_same_facts_in_the_same_order_give_the_same_proposals(name):
    job = make_job(name)
    first = choices(job, count_for(name, 16), cycle(ENDS))
    np.random.seed(7)
    assert choices(job, count_for(name, 16), cycle(ENDS)) == first


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "grid"])
def test_another_seed_gives_other_proposals(name):
    assert choices(make_job(name, seed=1), 3)[1:] != choices(make_job(name, seed=2), 3)[1:]


@every_sampler
@pytest.mark.parametrize("space", [SPACE, SIX_POINTS], ids=["many points", "six points"])
@pytest.mark.parametrize("objectives", [1, 2])
def test_a_search_with_trials_side_by_side_comes_back_from_its_facts_at_any_cut(name, space, objectives):
    """In the space of six points nearly every draft is a duplicate: what was passed over may not matter."""
    startup = 2 if name == "gp" else 4  # few trials have to do for a Gaussian process
    job = make_job(name, space, objectives, seeds=[{"model.width": 8}], num_startup=startup)
    order = np.random.default_rng(1)
    live = Proposer(job)
    proposals, results, under_way, told = [], [], [], []
    for number in range(count_for(name, 24)):
        again = Proposer(job)
        assert replay(again, reversed(proposals), reversed(results)) == told
        assert again.has_more() == live.has_more()
        if not live.has_more():
            break
        choice = live.ask(number)
        assert again.ask(number) == choice
        proposals.append(Proposal(number, choice, {}, told=told))
        under_way.append(proposals[-1])
        told = []
        while len(under_way) > order.integers(4):
            proposal = under_way.pop(order.integers(len(under_way)))
            result = ended(proposal, ENDS[proposal.number % len(ENDS)])
            results.append(dataclasses.replace(result, ended=float(len(results))))
            live.tell(results[-1])
            told.append(proposal.number)


# Seeds.


@every_sampler
def test_seeds_come_first_in_their_order_completed_from_the_recipe_and_each_once(name):
    seeds = [{"pruning.ratio": 0.5}, {}, {"quantization.method": "ptq", "quantization.weight_bits": 4}, {"pruning.ratio": 0.5}]
    job = make_job(name, seeds=seeds)
    baseline, first, second, third = choices(job, 4)
    assert first == {**baseline, "pruning.ratio": 0.5}
    assert second == {**baseline, "quantization.method": "ptq", "quantization.weight_bits": 4}
    assert third not in (baseline, first, second)


@every_sampler
def test_the_sensitivity_pass_comes_after_the_seeds(name):
    job = make_job(name, seeds=[{"pruning.ratio": 0.5}], one_at_a_time=True)
    baseline, seed, *steps = choices(job, 6)
    assert seed == {**baseline, "pruning.ratio": 0.5}
    assert steps[0] == {**baseline, "pruning.ratio": 0.8}  # it begins at 0, the other end
    assert steps[1] == {**baseline, "distillation.weight": 0.75}
    assert [len(baseline.items() ^ step.items()) for step in steps] == [2] * 4


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2", "ehvi"])
def test_a_sampler_learns_from_how_its_seeds_ended(name):
    seeds = [{"pruning.ratio": ratio / 10} for ratio in range(1, 8)]
    job = make_job(name, seeds=seeds)
    good = search(job, 8)[0]
    bad = search(
        job, 8, lambda proposal: ended(Proposal(proposal.number, {"pruning.ratio": 0.8 - proposal.choice["pruning.ratio"]}, {}))
    )[0]
    assert good.ask(8) != bad.ask(8)


# What each sampler is for.


def test_quasi_random_points_are_a_net_whatever_else_is_proposed_between_them():
    """64 points of a Sobol sequence in two dimensions lie one in each of 64 equal boxes, of whatever shape (Sobol 1967)."""
    space = {"pruning.ratio": {"float": [0.0, 0.8]}, "training.learning_rate": {"float": [0.001, 0.1], "log": True}}
    job = make_job("qmc", space, seeds=[{"pruning.ratio": 0.25}])
    baseline, seed, *proposed = choices(job, 66)
    assert (baseline["pruning.ratio"], seed["pruning.ratio"]) == (0.0, 0.25)
    unit = np.array(
        [[c["pruning.ratio"] / 0.8, math.log(c["training.learning_rate"] / 0.001) / math.log(100.0)] for c in proposed]
    )
    for columns in (1, 2, 4, 8, 16, 32, 64):
        boxes = np.floor(unit * [columns, 64 // columns]).astype(int)
        assert len({tuple(box) for box in boxes}) == 64


def test_a_hole_that_is_seldom_active_does_not_disturb_the_spread_of_the_others():
    job = make_job("qmc")
    counts = np.histogram([choice["pruning.ratio"] for choice in choices(job, 65)[1:]], bins=16, range=(0.0, 0.8))[0]
    assert counts.tolist() == [4] * 16


def test_a_grid_is_every_combination_in_file_order_the_last_hole_fastest():
    space = {
        "distillation.weight": {"float": [0.0, 0.6], "step": 0.3},
        "quantization.method": {"choice": ["none", "ptq"]},
        "quantization.weight_bits": {"int": [3, 4], "when": {"quantization.method": "ptq"}},
    }
    job = make_job("grid", space)
    inner = [("none", None), ("ptq", 3), ("ptq", 4)]
    expected = [(weight, *rest) for weight in (0.0, 0.3, 0.6) for rest in inner]
    proposed = choices(job, 20)
    assert [
        (c["distillation.weight"], c["quantization.method"], c.get("quantization.weight_bits")) for c in proposed
    ] == expected


def test_a_grid_cuts_a_float_without_a_step_evenly_and_a_logarithmic_one_by_factors():
    space = {"pruning.ratio": {"float": [0.0, 0.8]}, "training.learning_rate": {"float": [0.001, 0.1], "log": True}}
    sampler = Proposer(make_job("grid", space, grid_points=3))
    proposed = []
    while sampler.has_more():
        proposed.append(sampler.ask(len(proposed) + 1))
    assert [c["pruning.ratio"] for c in proposed] == pytest.approx([0.0] * 3 + [0.4] * 3 + [0.8] * 3)
    assert [c["training.learning_rate"] for c in proposed] == pytest.approx([0.001, 0.01, 0.1] * 3)


CONTINUOUS: dict[str, dict[str, list[float]]] = {
    "pruning.ratio": {"float": [0.0, 0.8]},
    "distillation.weight": {"float": [0.0, 0.8]},
    "training.momentum": {"float": [0.0, 0.96]},
}


def curved(proposal: Proposal) -> TrialResult:
    """Two objectives in the manner of ZDT1: on the front the second and the third hole are at three quarters."""
    x, y, z = (proposal.choice[path] / hole["float"][1] for path, hole in CONTINUOUS.items())
    away = 1 + 4 * (abs(y - 0.75) + abs(z - 0.75))
    accuracy, size = 1 - away * (1 - math.sqrt(x / away)) / 7, 4000.0 * x + 1.0
    return TrialResult(
        proposal.number,
        "COMPLETE",
        proposal.choice,
        {"accuracy": accuracy, "size_bytes": size},
        constraints={"size_bytes": size - LIMIT},
        ended=float(proposal.number),
    )


@functools.cache
def volume(name: str, count: int, seed: int) -> float:
    results = search(make_job(name, CONTINUOUS, seed=seed), count, curved)[2]
    costs = np.array([[-result.measurements["accuracy"], result.measurements["size_bytes"]] for result in results])
    return hypervolume(costs, np.array([-1 / 7, 4001.0]))


@pytest.mark.parametrize(
    ("name", "count", "seeds"), [("tpe", 60, 3), ("nsga2", 60, 3), ("nsga3", 60, 3), ("gp", 14, 1), ("ehvi", 30, 2)]
)
def test_a_search_that_learns_beats_chance(name, count, seeds):
    learned = np.mean([volume(name, count, seed) for seed in range(seeds)])
    assert learned > np.mean([volume("random", count, seed) for seed in range(3)])


@pytest.mark.parametrize("name", ["tpe", "gp", "ehvi"])
def test_a_search_that_learns_keeps_to_the_constraint(name):
    """A quarter of the space is small enough. What is not is refused by a gate: by how much is all that is learned of it."""

    def gated(proposal: Proposal) -> TrialResult:
        size = 20_000.0 * proposal.choice["pruning.ratio"] / 0.8
        if size > LIMIT:
            return TrialResult(
                proposal.number,
                "INFEASIBLE",
                proposal.choice,
                gate={"size_bytes": size},
                constraints={"size_bytes": size - LIMIT},
            )
        return TrialResult(
            proposal.number,
            "COMPLETE",
            proposal.choice,
            {"accuracy": size / LIMIT, "latency_ms": 1.0 + proposal.choice["distillation.weight"]},
            constraints={"size_bytes": size - LIMIT},
        )

    tree = make_job(name, {path: CONTINUOUS[path] for path in ("pruning.ratio", "distillation.weight")}).tree()
    tree["objectives"] = [{"metric": "accuracy"}, {"metric": "latency_ms"}]
    count = 12 if name == "gp" else 40
    _, _, results = search(Job.model_validate(tree), count, gated)
    late = results[count // 2 :]
    assert sum(result.feasible for result in late) > len(late) / 3
