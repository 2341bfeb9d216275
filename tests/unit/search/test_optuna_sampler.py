"""What every sampler behind the port has to do, and how Optuna's study is told.

The contract is `search.sampler.Sampler`: ask, tell, know. A search is a list of facts: the same facts give the same proposals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from pydantic import ValidationError

from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.search.optuna_sampler import OptunaSampler
from orchestrator.search.sampler import replay
from orchestrator.spec.job import Job
from orchestrator.spec.space import fill, is_active, value_at

SAMPLERS = ("tpe", "nsga2", "random")
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
BASELINE = {
    "pruning.ratio": 0.0,
    "distillation.weight": 0.0,
    "training.learning_rate": 0.1,
    "training.channels_last": True,
    "model.width": 16,
    "quantization.method": "none",
}
LIMIT = 5000.0
ENDS = ["COMPLETE", "COMPLETE", "COMPLETE", "STOPPED", "FAILED", "INFEASIBLE", "COMPLETE"]

every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def make_job(name: str, seed: int = 0, space: dict[str, Any] | None = None, recipe: dict[str, Any] | None = None) -> Job:
    return Job.model_validate(
        {
            "name": "job",
            "seed": seed,
            "recipe": recipe or {},
            "space": SPACE if space is None else space,
            "objectives": [{"metric": "accuracy"}, {"metric": "size_bytes"}],
            "constraints": {"size_bytes": {"max": LIMIT}},
            "search": {"sampler": name, "num_startup": 4},
        }
    )


def ended(proposal: Proposal, state: str = "COMPLETE") -> TrialResult:
    """How a trial could end: a smooth trade of accuracy against size."""
    choice = {**BASELINE, "quantization.weight_bits": 32, **proposal.choice}
    size = 400.0 * choice["model.width"] * (1 - choice["pruning.ratio"]) * choice["quantization.weight_bits"] / 32
    accuracy = 1 - choice["pruning.ratio"] ** 2 - abs(choice["training.learning_rate"] - 0.1) - 8 / size
    complete = state == "COMPLETE"
    return TrialResult(
        proposal.number,
        state,
        proposal.choice,
        measurements={"accuracy": accuracy, "size_bytes": size} if complete else {},
        constraints={"size_bytes": size - LIMIT} if complete else {},
        ended=float(proposal.number),
    )


def measured(number: int, accuracy: float, size: float) -> TrialResult:
    measurements = {"accuracy": accuracy, "size_bytes": size}
    return TrialResult(number, "COMPLETE", {}, measurements, {"size_bytes": size - LIMIT}, ended=float(number))


def search(
    sampler: OptunaSampler, job: Job, count: int, ends: Sequence[str] = ("COMPLETE",)
) -> tuple[list[Proposal], list[TrialResult]]:
    """The baseline and `count` - 1 proposals, one after the other, each told its end before the next is asked for."""
    proposals, results = [], []
    for number in range(count):
        if number == 0:
            proposal = Proposal(0, job.space.baseline(job.recipe) or {}, {}, "baseline")
            sampler.know(proposal)
        else:
            proposal = Proposal(number, sampler.ask(number), {}, told=[number - 1])
        result = ended(proposal, ends[number % len(ends)])
        sampler.tell(result)
        proposals.append(proposal)
        results.append(result)
    return proposals, results


# Proposals.


@every_sampler
def test_every_proposal_lies_in_its_domains_and_fills_the_recipe(name):
    job = make_job(name)
    proposals, _ = search(OptunaSampler(job), job, 24)
    for proposal in proposals:
        for path, value in proposal.choice.items():
            domain = job.space.root[path]
            assert domain.contains(value), f"{path}: {value!r}"
            if domain.step is not None:
                assert (value - domain.low) % domain.step == 0, f"{path}: {value!r}"
            if domain.kind != "choice":
                assert type(value) is (int if domain.kind == "int" else float)
        fill(job.recipe, proposal.choice)


@every_sampler
def test_a_hole_is_filled_exactly_when_its_condition_holds(name):
    job = make_job(name)
    proposals, _ = search(OptunaSampler(job), job, 24)
    tree = job.recipe.model_dump()
    for proposal in proposals:
        active = {path for path, domain in job.space.items() if is_active(domain, proposal.choice, tree)}
        assert set(proposal.choice) == active
    methods = {proposal.choice["quantization.method"] for proposal in proposals}
    assert methods == {"none", "ptq", "qat"}, "the search is too short to say something about conditions"


@every_sampler
def test_proposals_differ_from_one_another(name):
    job = make_job(name)
    proposals, _ = search(OptunaSampler(job), job, 24)
    assert len({str(proposal.choice) for proposal in proposals}) > 12


@every_sampler
def test_a_space_without_holes_proposes_the_recipe(name):
    job = make_job(name, space={})
    proposals, _ = search(OptunaSampler(job), job, 12)
    assert [proposal.choice for proposal in proposals] == [{}] * 12


# The same facts give the same proposals.


@every_sampler
def test_the_same_facts_in_the_same_order_give_the_same_proposals(name):
    job = make_job(name)
    first, _ = search(OptunaSampler(job), job, 16, ENDS)
    np.random.seed(7)
    second, _ = search(OptunaSampler(job), job, 16, ENDS)
    assert first == second


@every_sampler
def test_another_seed_gives_other_proposals(name):
    one, other = make_job(name, seed=1), make_job(name, seed=2)
    assert search(OptunaSampler(one), one, 3)[0][1:] != search(OptunaSampler(other), other, 3)[0][1:]


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_proposals_learn_from_how_trials_ended(name):
    job = make_job(name)
    good, bad = OptunaSampler(job), OptunaSampler(job)
    proposals, _ = search(good, job, 12)
    for proposal in proposals:
        bad.know(proposal)
        bad.tell(measured(proposal.number, accuracy=proposal.choice["pruning.ratio"], size=1.0))
    assert good.ask(12) != bad.ask(12)


@every_sampler
@pytest.mark.parametrize("ends", [["COMPLETE"], ENDS], ids=["all complete", "every kind of end"])
@pytest.mark.parametrize("count", [11, 18])
def test_a_search_brought_back_from_its_facts_goes_on_as_it_would_have(name, ends, count):
    job = make_job(name)
    live, again = OptunaSampler(job), OptunaSampler(job)
    proposals, results = search(live, job, count, ends)
    replay(again, reversed(proposals), reversed(results))
    assert again.ask(count) == live.ask(count)


@every_sampler
def test_facts_with_trials_under_way_come_back_as_well(name):
    job = make_job(name)
    live, again = OptunaSampler(job), OptunaSampler(job)
    proposals, results = search(live, job, 8, ENDS)
    for number, told in ((8, [7]), (9, [])):
        proposals.append(Proposal(number, live.ask(number), {}, told=told))
    replay(again, proposals, results)
    for sampler in (live, again):
        sampler.tell(ended(proposals[9]))
        sampler.tell(ended(proposals[8]))
    assert again.ask(10) == live.ask(10)


@every_sampler
@pytest.mark.parametrize("seed", [0, 1])
def test_a_search_with_trials_side_by_side_comes_back_from_its_facts_at_any_time(name, seed):
    job, order = make_job(name), np.random.default_rng(seed)
    live = OptunaSampler(job)
    proposals, results, under_way, told = [], [], [], []
    for number in range(24):
        again = OptunaSampler(job)
        assert replay(again, proposals, results) == told
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


class Listener:
    """A sampler that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def ask(self, number: int) -> dict[str, Any]:
        raise AssertionError("facts are not asked for")

    def know(self, proposal: Proposal) -> None:
        self.heard.append(("know", proposal.number))

    def tell(self, result: TrialResult) -> None:
        self.heard.append(("tell", result.number))


def test_replay_tells_ends_in_the_order_in_which_they_came():
    listener = Listener()
    proposals = [Proposal(number, {}, {}) for number in (2, 0, 1)]
    results = [TrialResult(number, "COMPLETE", {}, ended=time) for number, time in [(0, 5.0), (1, 3.0), (2, 3.0)]]
    assert replay(listener, proposals, results) == [1, 2, 0]
    assert listener.heard == [("know", 0), ("know", 1), ("know", 2), ("tell", 1), ("tell", 2), ("tell", 0)]


def test_replay_tells_an_end_once_before_the_proposal_that_came_after_it_whatever_the_clocks_of_the_machines_say():
    listener = Listener()
    proposals = [
        Proposal(0, {}, {}),
        Proposal(1, {}, {}),
        Proposal(2, {}, {}, told=[1, 0, 1, 9]),
        Proposal(3, {}, {}, told=[0]),
    ]
    results = [TrialResult(number, "COMPLETE", {}, ended=float(number)) for number in (0, 1, 2)]
    assert replay(listener, proposals, results) == [2]
    assert listener.heard == [
        *[("know", 0), ("know", 1), ("tell", 1), ("tell", 0)],
        *[("know", 2), ("know", 3), ("tell", 2)],
    ]


# What the study is told.


@every_sampler
def test_no_trial_is_left_running_however_it_ended(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    search(sampler, job, 14, ENDS)
    told = {"COMPLETE": "COMPLETE", "INFEASIBLE": "COMPLETE", "STOPPED": "PRUNED", "FAILED": "FAIL"}
    assert [trial.state.name for trial in sampler._study.trials] == [told[ENDS[number % 7]] for number in range(14)]


@every_sampler
def test_a_trial_runs_until_it_is_told(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    choices = {number: sampler.ask(number) for number in (1, 2, 3)}
    assert [trial.state for trial in sampler._study.trials] == [TrialState.RUNNING] * 3
    sampler.tell(ended(Proposal(2, choices[2], {})))
    assert [trial.state.name for trial in sampler._study.trials] == ["RUNNING", "COMPLETE", "RUNNING"]
    assert sampler._study.trials[1].params == choices[2]


@every_sampler
def test_the_study_holds_what_was_proposed_and_measured(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    proposals, results = search(sampler, job, 8)
    assert [trial.params for trial in sampler._study.trials] == [proposal.choice for proposal in proposals]
    measured_values = [[result.measurements["accuracy"], result.measurements["size_bytes"]] for result in results]
    assert [trial.values for trial in sampler._study.trials] == measured_values


@every_sampler
def test_larger_accuracy_and_smaller_size_are_better(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    for number, (accuracy, size) in enumerate([(0.5, 100.0), (0.9, 50.0), (0.4, 50.0), (0.95, 80.0)], start=1):
        sampler.ask(number)
        sampler.tell(measured(number, accuracy, size))
    assert [trial.number for trial in sampler._study.best_trials] == [1, 3]


@every_sampler
def test_a_trial_that_breaks_a_constraint_is_not_among_the_best(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    for number, (accuracy, size) in enumerate([(0.5, LIMIT), (1.0, LIMIT + 1), (0.4, 10.0)], start=1):
        sampler.ask(number)
        sampler.tell(measured(number, accuracy, size))
    assert [trial.number for trial in sampler._study.best_trials] == [0, 2]


@every_sampler
@pytest.mark.parametrize("state", ["INFEASIBLE", "STOPPED", "FAILED"])
def test_a_trial_without_a_model_is_not_among_the_best(name, state):
    job = make_job(name)
    sampler = OptunaSampler(job)
    sampler.tell(ended(Proposal(1, sampler.ask(1), {}), state))
    assert sampler._study.best_trials == []
    sampler.ask(2)
    sampler.tell(measured(2, 0.5, 100.0))
    sampler.tell(ended(Proposal(3, sampler.ask(3), {}), state))
    assert [trial.number for trial in sampler._study.best_trials] == [1]


@every_sampler
def test_what_cannot_be_built_counts_as_the_worst_that_was_seen(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    for number, (accuracy, size) in enumerate([(0.5, 100.0), (0.9, 300.0)], start=1):
        sampler.ask(number)
        sampler.tell(measured(number, accuracy, size))
    sampler.tell(ended(Proposal(3, sampler.ask(3), {}), "INFEASIBLE"))
    assert sampler._study.trials[2].values == [0.5, 300.0]


@every_sampler
def test_only_the_first_end_of_a_trial_counts(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    sampler.ask(1)
    sampler.tell(measured(1, 0.5, 100.0))
    sampler.tell(measured(1, 0.9, 10.0))
    sampler.tell(measured(99, 0.9, 10.0))
    assert [trial.values for trial in sampler._study.trials] == [[0.5, 100.0]]


# The baseline.


@every_sampler
def test_the_baseline_is_trial_number_0_with_the_values_of_the_recipe(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    sampler.know(Proposal(0, BASELINE, {}, "baseline"))
    assert [(trial.number, trial.params) for trial in sampler._study.trials] == [(0, BASELINE)]
    sampler.tell(measured(0, 0.9, 100.0))
    assert sampler._study.trials[0].state is TrialState.COMPLETE
    assert sampler.ask(1) != BASELINE


@every_sampler
def test_a_baseline_outside_the_space_is_left_out_and_the_search_goes_on(name):
    job = make_job(name, recipe={"model": {"width": 64}})
    sampler = OptunaSampler(job)
    proposals, _ = search(sampler, job, 4)
    assert proposals[0].choice == {}
    assert [trial.params for trial in sampler._study.trials] == [proposal.choice for proposal in proposals[1:]]
    assert {trial.state for trial in sampler._study.trials} == {TrialState.COMPLETE}


@pytest.mark.parametrize(
    "hole",
    [
        pytest.param({"model.width": {"int": [8, 30], "step": 8}}, id="whole numbers"),
        pytest.param({"distillation.weight": {"float": [0.0, 0.5], "step": 0.2}}, id="fractions"),
    ],
)
def test_a_step_that_optuna_cannot_take_is_refused_at_load(hole):
    """Optuna warns on every ask, and searches another range than was written."""
    with pytest.raises(ValidationError, match="have a step that divides the range"):
        make_job("random", space=hole)


@every_sampler
@pytest.mark.parametrize(
    ("hole", "recipe"),
    [
        pytest.param({"model.width": {"int": [10, 30], "step": 10}}, {}, id="off the steps"),
        pytest.param(
            {"distillation.weight": {"float": [0.1, 0.7], "step": 0.3}}, {"distillation": {"weight": 0.3}}, id="fraction"
        ),
        pytest.param({"distillation.temperature": {"int": [1, 8]}}, {"distillation": {"temperature": 2.5}}, id="in between"),
    ],
)
def test_a_baseline_between_the_values_of_its_domain_is_left_out_and_the_search_goes_on(name, hole, recipe):
    job = make_job(name, space=hole, recipe=recipe)
    assert job.space.baseline(job.recipe) is None
    sampler = OptunaSampler(job)
    sampler.know(Proposal(0, {path: value_at(job.recipe.model_dump(), path) for path in hole}, {}, "baseline"))
    assert sampler._study.trials == []
    proposals, _ = search(sampler, job, 4)
    assert proposals[0].choice == {}
    assert all(job.space.root[path].contains(value) for proposal in proposals for path, value in proposal.choice.items())
    assert [trial.params for trial in sampler._study.trials] == [proposal.choice for proposal in proposals[1:]]
    assert {trial.state for trial in sampler._study.trials} == {TrialState.COMPLETE}


@every_sampler
@pytest.mark.parametrize(
    ("hole", "recipe"),
    [
        pytest.param(
            {"distillation.weight": {"float": [0.1, 0.7], "step": 0.1}}, {"distillation": {"weight": 0.3}}, id="rounded"
        ),
        pytest.param(
            {"distillation.temperature": {"int": [1, 8]}}, {"distillation": {"temperature": 4.0}}, id="4.0 among whole"
        ),
    ],
)
def test_a_baseline_on_the_values_of_its_domain_is_trial_number_0(name, hole, recipe):
    job = make_job(name, space=hole, recipe=recipe)
    sampler = OptunaSampler(job)
    choice = job.space.baseline(job.recipe)
    sampler.know(Proposal(0, choice, {}, "baseline"))
    assert [trial.params for trial in sampler._study.trials] == [choice]
    sampler.tell(measured(0, 0.9, 100.0))
    assert all(job.space.root[path].contains(value) for path, value in sampler.ask(1).items())
