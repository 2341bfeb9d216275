"""The stopping rule on a sweep's facts: judging, coming back, going on later, and what it costs. Without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.director import Director
from orchestrator.cluster.referee import Referee, Regret, regret
from orchestrator.results.store import Home
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.search.optuna_sampler import OptunaSampler
from orchestrator.search.stopping import is_control
from orchestrator.spec.job import Job
from orchestrator.trial.order import Order

FINISHED = "FINISHED"


def make_job(trials: int = 4, **stopping: Any) -> Job:
    return Job.model_validate(
        {
            "name": "night",
            "seed": 5,
            "recipe": {"training": {"epochs": 4}},
            "space": {"training.learning_rate": {"float": [0.001, 0.5]}},
            "objectives": [{"metric": "accuracy", "reference": 0.0}, {"metric": "size_bytes", "reference": 20.0}],
            "search": {"sampler": "random"},
            "budget": {"trials": trials},
            "stopping": {"method": "successive_halving", "control_fraction": 0.0, **stopping},
        }
    )


def proposal(number: int, tree: dict[str, Any] | None = None, **keys: Any) -> Proposal:
    return Proposal(number, {}, tree or {"training": {"epochs": 4}}, **keys)


def result(number: int, accuracies: list[float], size: float = 10.0, state: str = "COMPLETE") -> TrialResult:
    curve = [{"stage": "student", "epoch": epoch, "val_accuracy": value} for epoch, value in enumerate(accuracies)]
    measured = {"accuracy": accuracies[-1], "size_bytes": size} if state == "COMPLETE" else {}
    return TrialResult(number, state, {}, measured, {"size_bytes": size}, curve=curve, ended=float(number))


def report(accuracy: float, size: float | None = 10.0, epoch: int = 0) -> dict[str, Any]:
    gate = {} if size is None else {"size_bytes": size}
    return {"stage": "student", "epoch": epoch, "val_accuracy": accuracy, "gate": gate}


def referee(*proposals: Proposal, **stopping: Any) -> Referee:
    found = Referee(make_job(**stopping))
    for known in proposals:
        found.rungs(known)
    return found


# Where.


def test_rungs_are_told_as_reports_count_epochs():
    assert referee().rungs(proposal(1)) == [("student", 0), ("student", 2)]
    iterative = {"pruning": {"ratio": 0.5, "epochs": 8, "steps": 2}}
    assert referee().rungs(proposal(1, iterative)) == [("pruned", 4), ("pruned", 6)]


def test_nobody_is_judged_without_a_method_nor_at_the_end_of_a_sweep():
    assert referee(method="none").rungs(proposal(1)) == []
    assert referee().rungs(proposal(7, replicate_of=1)) == []
    assert referee().rungs(proposal(7, derived_from=1)) == []
    assert referee(method="none").looks_at == []
    assert referee().looks_at == ["accuracy", "size_bytes"], "which the gate has to measure"


# Judging.


def test_a_trial_that_is_left_behind_does_not_go_on():
    judge = referee(proposal(1), proposal(2), proposal(3))
    assert judge.goes_on(1, report(0.8))
    assert not judge.goes_on(2, report(0.5))
    assert judge.goes_on(3, report(0.5, size=9.0)), "a smaller one is not stopped for being less accurate"


def test_the_baseline_always_goes_on():
    judge = referee(proposal(0), proposal(1))
    assert judge.goes_on(1, report(0.8))
    assert judge.goes_on(0, report(0.1))


def test_controls_always_go_on():
    judge = referee(*map(proposal, range(1, 6)), control_fraction=1.0)
    assert all(judge.goes_on(number, report(0.9 - number / 10)) for number in range(1, 6))


def test_a_trial_whose_size_is_not_known_yet_goes_on_and_is_nobodys_rival():
    judge = referee(proposal(1), proposal(2))
    assert judge.goes_on(1, report(0.9, size=None))
    assert judge.goes_on(2, report(0.1))


def test_the_same_epoch_of_another_stage_is_another_rung():
    judge = referee(proposal(1), proposal(2, {"training": {"epochs": 4}, "quantization": {"method": "qat", "epochs": 4}}))
    assert judge.goes_on(1, report(0.9))
    assert judge.goes_on(2, {**report(0.1), "stage": "quantized"})


# Coming back.


def test_a_referee_that_recalls_the_facts_judges_as_the_one_that_was_there():
    results = [result(1, [0.8, 0.8, 0.8, 0.9]), result(2, [0.5], state="STOPPED"), result(3, [0.4], 12.0, "STOPPED")]
    there = referee(*map(proposal, range(1, 7)))
    for known in results:
        for epoch in (0, 2):
            if epoch < len(known.curve):
                there.goes_on(known.number, report(known.curve[epoch]["val_accuracy"], known.gate["size_bytes"], epoch))
    back = Referee(make_job())
    back.recall(map(proposal, range(1, 7)), reversed(results))
    for judge in (there, back):
        assert [judge.goes_on(4, report(0.7)), judge.goes_on(5, report(0.6)), judge.goes_on(4, report(0.7, epoch=2))] == [
            True,  # the second best of four
            False,
            False,  # behind 1
        ]


def test_an_end_is_compared_with_where_it_was_not_judged_in_time():
    judge = referee(proposal(1), proposal(2))
    judge.ended(result(1, [0.8, 0.8, 0.8, 0.9]))
    assert not judge.goes_on(2, report(0.7))


def test_facts_of_a_trial_that_never_trained_are_no_rivals():
    infeasible = TrialResult(1, "INFEASIBLE", {}, gate={"size_bytes": 1.0})
    back = Referee(make_job())
    back.recall([proposal(1, {"data": {"source": "torchvision"}}), proposal(2)], [infeasible])
    assert back.goes_on(2, report(0.1))


# Going on later.


class Stage:
    """A director on a sweep's folder, whose gang is played by the tests."""

    def __init__(self, folder: Path, job: Job) -> None:
        self.sweep = Home(folder).sweep("night")
        self.orders: list[Order] = []
        self.rungs: dict[int, list[tuple[str, int]]] = {}
        self.verdicts: list[tuple[int, bool]] = []
        self.director = Director(job, self.sweep, OptunaSampler(job), folder / "stages", [], slots=9, submit=self.orders.append)
        self.director.watch = self.rungs.__setitem__
        self.director.judge = lambda number, goes_on: self.verdicts.append((number, goes_on))

    def run(self, accuracies: list[float]) -> int:
        """Run the next trial: it ends where it is told to stop."""
        config = self.director.next_config()
        assert isinstance(config, dict), config
        number = config["number"]
        for done, value in enumerate(accuracies, start=1):
            if ("student", done - 1) in self.rungs[number]:
                self.director.judged(number, report(value, epoch=done - 1))
                if self.verdicts[-1] == (number, False):
                    self.sweep.finish(result(number, accuracies[:done], state="STOPPED"))
                    break
        else:
            self.sweep.finish(result(number, accuracies))
        self.director.ended(number, {"outcome": "written"})
        return number


def stopped_one(folder: Path, **stopping: Any) -> Stage:
    """Four fresh trials, of which 1 and 2 were stopped at the first rung; by the end 1 is the second best of four."""
    stage = Stage(folder, make_job(promote=True, **stopping))
    for accuracies in ([0.9] * 4, [0.8] * 4, [0.7] * 4, [0.6] * 4):
        stage.run(accuracies)
    assert [known.state for known in stage.sweep.results()] == ["COMPLETE", "STOPPED", "STOPPED", "STOPPED"]
    return stage


def test_a_stopped_trial_goes_on_as_a_new_proposal_when_the_fresh_ones_are_used_up(tmp_path):
    stage = stopped_one(tmp_path)
    assert stage.director.remaining == 1
    assert stage.run([0.8, 0.8, 0.95, 0.95]) == 4
    before, after = stage.sweep.proposals()[1], stage.sweep.proposals()[4]
    assert (after.continues, after.source, after.fresh) == (1, "promotion", False)
    assert (after.recipe, after.choice) == (before.recipe, before.choice)
    assert stage.orders[4].sweep_seed == stage.orders[1].sweep_seed, "so that it finds its stages in the store"
    assert stage.sweep.result(1).state == "STOPPED", "ends stay as they are"
    assert stage.sweep.result(4).state == "COMPLETE"
    assert (stage.director.next_config(), stage.director.remaining) == (FINISHED, 0)


def test_it_may_be_stopped_again_higher_up_and_is_then_left_alone(tmp_path):
    stage = stopped_one(tmp_path)
    assert stage.run([0.8, 0.8, 0.8, 0.8]) == 4
    assert stage.verdicts[-2:] == [(4, True), (4, False)], "at the rung where it was stopped before it is not judged again"
    assert stage.sweep.result(4).state == "STOPPED"
    assert stage.director.next_config() == FINISHED


def test_nobody_goes_on_later_unless_the_job_says_so(tmp_path):
    stage = Stage(tmp_path, make_job())
    for accuracies in ([0.9] * 4, [0.8] * 4, [0.7] * 4, [0.6] * 4):
        stage.run(accuracies)
    assert stage.director.next_config() == FINISHED


def test_what_is_under_way_may_make_room_so_the_sweep_waits_for_it(tmp_path):
    stage = Stage(tmp_path, make_job(trials=1, promote=True))
    assert stage.director.next_config()["number"] == 0
    assert stage.director.next_config() is None
    stage.sweep.finish(result(0, [0.9] * 4))
    stage.director.ended(0, {"outcome": "written"})
    assert stage.director.next_config() == FINISHED


@pytest.mark.parametrize("proposed", [False, True])
def test_a_driver_that_comes_back_knows_who_was_promoted(tmp_path, proposed):
    before = stopped_one(tmp_path)
    if proposed:
        before.director.next_config()
    again = Stage(tmp_path, before.director.job)
    again.director.recall()
    assert again.director.remaining == 1
    assert again.run([0.8, 0.8, 0.95, 0.95]) == 4
    assert again.sweep.proposals()[4].continues == 1
    assert again.director.next_config() == FINISHED


# What it costs.


def test_regret_by_hand():
    """Trials of equal size, so that accuracy is all: 1 is a control that starts slowly and ends as the best."""
    job = make_job(control_fraction=1.0)
    results = [
        result(0, [0.5, 0.5, 0.5, 0.5]),
        result(1, [0.4, 0.5, 0.8, 0.8]),
        result(2, [0.3, 0.3, 0.3, 0.3]),
        result(3, [0.6, 0.6, 0.6, 0.6]),
    ]
    found = regret(job, map(proposal, range(4)), results)
    # Volumes against (accuracy 0, size 20): (20 - 10) * 0.8 with trial 1, (20 - 10) * 0.6 without.
    assert found == Regret(controls=(1, 2, 3), stopped=(1, 2), on_front=(1,), volume_lost=pytest.approx(1 - 0.6 / 0.8))
    assert found.sentence() == (
        "of 3 controls 2 would have been stopped, 1 of them from the front; "
        "without them 0.250 of the hypervolume would be missing"
    )


def test_there_is_no_regret_without_controls_or_without_trials():
    job = make_job()
    assert regret(job, map(proposal, range(3)), [result(n, [0.9 - n / 10] * 4) for n in range(3)]) == Regret((), (), (), 0.0)
    assert regret(job, [], []) == Regret((), (), (), 0.0)


def test_a_control_that_was_never_judged_says_nothing():
    job = make_job(control_fraction=1.0)
    assert is_control(1, job.seed, 1.0)
    replayed = TrialResult(1, "COMPLETE", {}, {"accuracy": 0.5, "size_bytes": 1.0}, {"size_bytes": 1.0})
    assert regret(job, [proposal(1)], [replayed]).controls == ()
