"""How Optuna's study is told, and how facts are replayed. What every sampler has to do is in tests/contracts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.search.optuna_sampler import OptunaSampler
from orchestrator.search.sampler import replay
from orchestrator.spec.job import Job
from orchestrator.spec.space import value_at

SAMPLERS = ("random", "tpe", "nsga2", "nsga3")  # GP's seconds are spent in tests/contracts
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
    return TrialResult(number, "COMPLETE", {}, measurements, constraints={"size_bytes": size - LIMIT}, ended=float(number))


def known(sampler: OptunaSampler) -> list[FrozenTrial]:
    """The trials of the study, without the drafts: what is known was enqueued with its values."""
    trials = sampler._study.trials
    drafts = [trial for trial in trials if "fixed_params" not in trial.system_attrs]
    assert {trial.state for trial in drafts} <= {TrialState.FAIL}
    return [trial for trial in trials if trial not in drafts]


def best(sampler: OptunaSampler) -> list[int]:
    """Which of the known trials are the best, by their place among them."""
    best_trials = sampler._study.best_trials
    return [index for index, trial in enumerate(known(sampler)) if trial in best_trials]


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


@every_sampler
def test_a_space_without_holes_proposes_the_recipe(name):
    job = make_job(name, space={})
    proposals, _ = search(OptunaSampler(job), job, 12)
    assert [proposal.choice for proposal in proposals] == [{}] * 12


# Facts.


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_proposals_learn_from_how_trials_ended(name):
    job = make_job(name)
    good, bad = OptunaSampler(job), OptunaSampler(job)
    proposals, _ = search(good, job, 12)
    for proposal in proposals:
        bad.know(proposal)
        bad.tell(measured(proposal.number, accuracy=proposal.choice["pruning.ratio"], size=1.0))
    assert good.ask(12) != bad.ask(12)


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
    assert [trial.state.name for trial in known(sampler)] == [told[ENDS[number % 7]] for number in range(14)]


@every_sampler
def test_a_trial_runs_until_it_is_told(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    choices = {number: sampler.ask(number) for number in (1, 2, 3)}
    assert [trial.state for trial in known(sampler)] == [TrialState.RUNNING] * 3
    sampler.tell(ended(Proposal(2, choices[2], {})))
    assert [trial.state.name for trial in known(sampler)] == ["RUNNING", "COMPLETE", "RUNNING"]
    assert known(sampler)[1].params == choices[2]


@every_sampler
def test_the_study_holds_what_was_proposed_and_measured(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    proposals, results = search(sampler, job, 8)
    assert [trial.params for trial in known(sampler)] == [proposal.choice for proposal in proposals]
    measured_values = [[result.measurements["accuracy"], result.measurements["size_bytes"]] for result in results]
    assert [trial.values for trial in known(sampler)] == measured_values


@every_sampler
def test_larger_accuracy_and_smaller_size_are_better(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    for number, (accuracy, size) in enumerate([(0.5, 100.0), (0.9, 50.0), (0.4, 50.0), (0.95, 80.0)], start=1):
        sampler.ask(number)
        sampler.tell(measured(number, accuracy, size))
    assert best(sampler) == [1, 3]


@every_sampler
def test_a_trial_that_breaks_a_constraint_is_not_among_the_best(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    for number, (accuracy, size) in enumerate([(0.5, LIMIT), (1.0, LIMIT + 1), (0.4, 10.0)], start=1):
        sampler.ask(number)
        sampler.tell(measured(number, accuracy, size))
    assert best(sampler) == [0, 2]


@every_sampler
@pytest.mark.parametrize("state", ["INFEASIBLE", "STOPPED", "FAILED"])
def test_a_trial_without_a_model_is_not_among_the_best(name, state):
    job = make_job(name)
    sampler = OptunaSampler(job)
    sampler.tell(ended(Proposal(1, sampler.ask(1), {}), state))
    assert best(sampler) == []
    sampler.ask(2)
    sampler.tell(measured(2, 0.5, 100.0))
    sampler.tell(ended(Proposal(3, sampler.ask(3), {}), state))
    assert best(sampler) == [1]


@every_sampler
def test_what_cannot_be_built_counts_as_the_worst_that_was_seen(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    for number, (accuracy, size) in enumerate([(0.5, 100.0), (0.9, 300.0)], start=1):
        sampler.ask(number)
        sampler.tell(measured(number, accuracy, size))
    sampler.tell(ended(Proposal(3, sampler.ask(3), {}), "INFEASIBLE"))
    assert known(sampler)[2].values == [0.5, 300.0]


@every_sampler
def test_what_the_gate_refused_is_told_with_what_it_measured_and_by_how_much_it_broke_a_constraint(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    sampler.ask(1)
    sampler.tell(measured(1, 0.5, 100.0))
    sampler.tell(
        TrialResult(2, "INFEASIBLE", sampler.ask(2), gate={"size_bytes": LIMIT + 7}, constraints={"size_bytes": 7.0}, ended=2.0)
    )
    sampler.tell(TrialResult(3, "INFEASIBLE", sampler.ask(3), ended=3.0))
    built, gated, unbuildable = known(sampler)
    assert built.constraints == {"buildable": -1.0, "size_bytes": 100.0 - LIMIT}
    assert (gated.values, gated.constraints) == ([0.5, LIMIT + 7], {"buildable": -1.0, "size_bytes": 7.0})
    assert (unbuildable.values, unbuildable.constraints) == ([0.5, 100.0], {"buildable": 1.0, "size_bytes": 0.0})
    assert best(sampler) == [0]


def test_before_anything_completed_an_infeasible_trial_counts_as_the_worst_still_worth_having():
    tree = make_job("tpe").tree()
    tree["objectives"][0]["reference"] = 0.3
    sampler = OptunaSampler(Job.model_validate(tree))
    sampler.tell(TrialResult(1, "INFEASIBLE", sampler.ask(1)))
    assert known(sampler)[0].values == [0.3, 0.0]


@every_sampler
def test_drafts_leave_nothing_behind(name):
    job = make_job(name)
    drafted, plain = OptunaSampler(job), OptunaSampler(job)
    search(drafted, job, 9, ENDS)
    search(plain, job, 9, ENDS)
    drafts = list(drafted.drafts(9))
    assert len({str(draft) for draft in drafts}) > 1, "each draft is another try"
    assert [(trial.params, trial.state) for trial in known(drafted)] == [(t.params, t.state) for t in known(plain)]
    assert drafted.ask(9) == plain.ask(9) == drafts[0]


@every_sampler
def test_a_choice_that_lacks_an_active_hole_or_fills_another_teaches_nothing(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    sampler.know(Proposal(1, {path: value for path, value in BASELINE.items() if path != "model.width"}, {}))
    sampler.know(Proposal(2, {**BASELINE, "quantization.weight_bits": 4}, {}))
    assert known(sampler) == []


@every_sampler
def test_only_the_first_end_of_a_trial_counts(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    sampler.ask(1)
    sampler.tell(measured(1, 0.5, 100.0))
    sampler.tell(measured(1, 0.9, 10.0))
    sampler.tell(measured(99, 0.9, 10.0))
    assert [trial.values for trial in known(sampler)] == [[0.5, 100.0]]


# The baseline.


@every_sampler
def test_the_baseline_is_trial_number_0_with_the_values_of_the_recipe(name):
    job = make_job(name)
    sampler = OptunaSampler(job)
    sampler.know(Proposal(0, BASELINE, {}, "baseline"))
    assert [(trial.number, trial.params) for trial in known(sampler)] == [(0, BASELINE)]
    sampler.tell(measured(0, 0.9, 100.0))
    assert known(sampler)[0].state is TrialState.COMPLETE
    assert sampler.ask(1) != BASELINE


@every_sampler
def test_a_baseline_outside_the_space_is_left_out_and_the_search_goes_on(name):
    job = make_job(name, recipe={"model": {"width": 64}})
    sampler = OptunaSampler(job)
    proposals, _ = search(sampler, job, 4)
    assert proposals[0].choice == {}
    assert [trial.params for trial in known(sampler)] == [proposal.choice for proposal in proposals[1:]]
    assert {trial.state for trial in known(sampler)} == {TrialState.COMPLETE}


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
    assert known(sampler) == []
    proposals, _ = search(sampler, job, 4)
    assert proposals[0].choice == {}
    assert all(job.space.root[path].contains(value) for proposal in proposals for path, value in proposal.choice.items())
    assert [trial.params for trial in known(sampler)] == [proposal.choice for proposal in proposals[1:]]
    assert {trial.state for trial in known(sampler)} == {TrialState.COMPLETE}


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
    assert [trial.params for trial in known(sampler)] == [choice]
    sampler.tell(measured(0, 0.9, 100.0))
    assert all(job.space.root[path].contains(value) for path, value in sampler.ask(1).items())
