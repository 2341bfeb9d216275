"""What the driver of a sweep decides, on a real folder and a real sampler, without Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial

from orchestrator.cluster.director import Director
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.search.proposer import Proposer
from orchestrator.spec.job import Job
from orchestrator.spec.space import fill
from orchestrator.trial.order import Order

ROOT = Path(__file__).parents[3]
FINISHED = "FINISHED"
FAILED = {"outcome": "failed", "class": "WorkerLost", "message": "its workers were lost 3 times", "traceback": "at line 3"}


class Diary:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def phase(self, text: str) -> None:
        raise AssertionError("a director starts nothing that takes seconds")

    def proposed(self, proposal: Proposal) -> None:
        self.told.append(("proposed", proposal.number))

    def ended(self, result: TrialResult) -> None:
        self.told.append((result.state, result.number))

    def running(self, trials: dict[int, dict[str, Any]]) -> None:
        raise AssertionError("a director watches no clock")


def make_job(trials: int = 6, **keys: Any) -> Job:
    return Job.model_validate(
        {
            "name": "night",
            "seed": 5,
            "recipe": {},
            "space": {"pruning.ratio": {"float": [0.0, 0.5]}, "model.width": {"int": [8, 32]}},
            "objectives": [{"metric": "accuracy"}, {"metric": "size_bytes"}],
            "constraints": {"size_bytes": {"max": 100.0}},
            "search": {"sampler": "tpe", "num_startup": 2},
            "budget": {"trials": trials},
            **keys,
        }
    )


class Stage:
    """A director on a sweep's folder, with what it submitted and told."""

    def __init__(self, folder: Path, job: Job, slots: int = 2) -> None:
        self.sweep: Sweep = Home(folder).sweep("night")
        self.sampler, self.diary, self.orders = Proposer(job), Diary(), list[Order]()
        stages = folder / "cache" / "stages"
        self.director = Director(job, self.sweep, self.sampler, stages, [self.diary], slots, "desk-1", self.orders.append)

    def start(self) -> int:
        """Let Tune ask for a trial, which it has to get; returns its number."""
        config = self.director.next_config()
        assert isinstance(config, dict)
        return config["number"]

    def finish(self, number: int, state: str = "COMPLETE") -> TrialResult:
        """What a gang does at the end of a trial, and then Tune."""
        measurements = {"accuracy": 0.5, "size_bytes": 10.0 + number} if state == "COMPLETE" else {}
        choice = next(known.choice for known in self.sweep.proposals() if known.number == number)
        result = TrialResult(number, state, choice, measurements, {}, ended=float(number))
        self.sweep.finish(result)
        self.director.ended(number, {"outcome": "written"})
        return result

    def states(self) -> list[str]:
        """How the study sees its trials."""
        return [trial.state.name for trial in self.trials()]

    def trials(self) -> list[FrozenTrial]:
        """What was proposed, without the sampler's drafts, as the study has it."""
        return [trial for trial in self.sampler._model._study.trials if "fixed_params" in trial.system_attrs]


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path, make_job())


def folder_content(sweep: Sweep) -> dict[str, bytes]:
    return {str(path.relative_to(sweep.path)): path.read_bytes() for path in sweep.path.rglob("*") if path.is_file()}


# Asking.


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_one_trial_more_than_gangs_is_in_flight(tmp_path, slots):
    stage = Stage(tmp_path, make_job(trials=20), slots)
    numbers = [stage.start() for _ in range(slots + 1)]
    assert numbers == list(range(slots + 1))
    assert [stage.director.next_config() for _ in range(3)] == [None] * 3
    assert len(stage.sweep.proposals()) == len(stage.orders) == slots + 1
    stage.finish(1)
    assert stage.start() == slots + 1
    assert stage.director.next_config() is None


def test_the_baseline_comes_first_and_is_the_recipe_as_written(stage):
    stage.start()
    job = stage.director.job
    recipe = job.recipe.model_dump(mode="json")
    assert stage.sweep.proposals() == [Proposal(0, {"pruning.ratio": 0.0, "model.width": 16}, recipe, "baseline")]
    assert stage.orders[0].recipe == recipe


def test_a_baseline_outside_the_space_is_run_all_the_same(tmp_path):
    stage = Stage(tmp_path, make_job(recipe={"model": {"width": 64}}))
    assert [stage.start(), stage.start()] == [0, 1]
    assert stage.sweep.proposals()[0].choice == {}
    assert stage.orders[0].recipe["model"]["width"] == 64
    stage.finish(0)
    assert stage.diary.told[-1] == ("COMPLETE", 0)


def test_later_proposals_are_the_samplers_with_the_recipe_filled(stage):
    for _ in range(3):
        stage.start()
    job = stage.director.job
    for proposal in stage.sweep.proposals()[1:]:
        assert proposal.source == "sampler"
        assert set(proposal.choice) == {"pruning.ratio", "model.width"}
        assert proposal.recipe == fill(job.recipe, proposal.choice).model_dump(mode="json")


def test_tune_is_told_where_the_desk_is_and_nothing_of_the_recipe(stage):
    assert stage.director.next_config() == {"number": 0, "desk": "desk-1", "namespace": "orchestrator"}


def test_an_order_holds_all_that_a_worker_needs_as_plain_data(tmp_path):
    resources = {"threads_per_worker": 3, "workers_per_gang": 2}
    stage = Stage(tmp_path, make_job(resources=resources))
    number = stage.start()
    order = stage.orders[0]
    assert Order(**json.loads(json.dumps(order.to_json()))) == order
    assert (order.number, order.sweep_seed, order.threads, order.device) == (number, 5, 3, "cpu")
    assert order.constraints == {"size_bytes": {"min": None, "max": 100.0}}
    assert order.choice == stage.sweep.proposals()[0].choice
    assert (order.folder, order.stages) == (str(tmp_path / "sweeps/night/trials/t0000"), str(tmp_path / "cache/stages"))
    assert Path(order.folder).is_absolute()


def test_gangs_with_gpus_get_orders_for_them(tmp_path):
    stage = Stage(tmp_path, make_job(resources={"gpus_per_worker": 0.5}))
    stage.start()
    assert stage.orders[0].device == "cuda"


def test_a_proposal_is_on_disk_before_its_order_leaves(tmp_path):
    stage = Stage(tmp_path, make_job())
    known_when_submitted: list[list[int]] = []
    stage.director.submit = lambda order: known_when_submitted.append([it.number for it in stage.sweep.proposals()])
    stage.start()
    stage.start()
    assert known_when_submitted == [[0], [0, 1]]


def test_a_sweep_is_finished_when_its_budget_is_proposed(tmp_path):
    stage = Stage(tmp_path, make_job(trials=2))
    assert stage.director.remaining == 2
    assert [stage.start(), stage.start()] == [0, 1]
    assert stage.director.remaining == 0
    assert stage.director.next_config() == FINISHED
    assert len(stage.sweep.proposals()) == 2


def test_nothing_is_started_while_stopping(stage):
    stage.start()
    stage.director.stopping = True
    assert stage.director.next_config() == FINISHED
    assert len(stage.sweep.proposals()) == 1


# Ends.


def test_an_end_is_told_to_the_sampler_and_the_observers_as_the_facts_say(stage):
    stage.start()
    stage.start()
    stage.finish(1)
    stage.finish(0, "INFEASIBLE")
    assert stage.diary.told == [("proposed", 0), ("proposed", 1), ("COMPLETE", 1), ("INFEASIBLE", 0)]
    assert stage.states() == ["COMPLETE", "COMPLETE"]
    assert [trial.values for trial in stage.sampler._model._study.best_trials] == [[0.5, 11.0]]
    assert stage.trials()[1].values == [0.5, 11.0]


def test_a_failed_outcome_is_written_as_a_failed_result_and_told(stage):
    stage.start()
    stage.director.ended(0, FAILED)
    result = stage.sweep.result(0)
    assert result is not None
    assert (result.state, result.choice, result.seed) == ("FAILED", stage.sweep.proposals()[0].choice, 5)
    assert result.failure == {"class": "WorkerLost", "message": "its workers were lost 3 times", "traceback": "at line 3"}
    assert 0 < result.started <= result.ended
    assert stage.states() == ["FAIL"]
    assert stage.diary.told[-1] == ("FAILED", 0)


def test_what_is_on_disk_counts_and_not_what_the_desk_says(stage):
    stage.start()
    stage.sweep.finish(TrialResult(0, "COMPLETE", {}, {"accuracy": 0.5, "size_bytes": 1.0}))
    stage.director.ended(0, FAILED)
    assert stage.sweep.result(0).state == "COMPLETE"
    assert stage.states() == ["COMPLETE"]
    assert stage.diary.told[-1] == ("COMPLETE", 0)


@pytest.mark.parametrize("outcome", [None, {"outcome": "abandoned"}])
def test_a_trial_that_was_given_up_has_no_end(stage, outcome):
    stage.start()
    stage.director.ended(0, outcome)
    assert stage.sweep.result(0) is None
    assert stage.states() == ["RUNNING"]
    assert stage.diary.told == [("proposed", 0)]


def test_a_trial_that_was_given_up_makes_room_for_another(tmp_path):
    stage = Stage(tmp_path, make_job(), slots=1)
    stage.start()
    stage.start()
    assert stage.director.next_config() is None
    stage.director.ended(0, {"outcome": "abandoned"})
    assert stage.start() == 2


# Values that do not go together.

SOURCES = {
    "space": {"data.source": {"choice": ["digits", "torchvision"]}, "pruning.ratio": {"float": [0.0, 0.5]}},
    "search": {"sampler": "random"},
}
NAMELESS = "data: must have a name when source is torchvision; given "


def test_a_recipe_that_its_own_limits_forbid_ends_infeasible_and_the_search_goes_on(tmp_path):
    stage = Stage(tmp_path, make_job(12, **SOURCES), slots=20)
    started = [config["number"] for config in iter(stage.director.next_config, FINISHED)]
    chosen = {proposal.number: proposal.choice["data.source"] for proposal in stage.sweep.proposals()}
    refused = [number for number, source in chosen.items() if source == "torchvision"]
    assert len(chosen) == 12
    assert 2 <= len(refused) <= 10
    assert started == [order.number for order in stage.orders] == [number for number in chosen if number not in refused]
    for number in refused:
        result, proposal = stage.sweep.result(number), stage.sweep.proposals()[number]
        assert (result.state, result.choice, result.seed) == ("INFEASIBLE", proposal.choice, 5)
        assert result.failure["class"] == "UnbuildableError"
        assert result.failure["message"].startswith(NAMELESS)
        assert proposal.recipe["data"] == {**stage.orders[0].recipe["data"], "source": "torchvision"}
        assert proposal.recipe["pruning"]["ratio"] == proposal.choice["pruning.ratio"]
        assert [event for event in stage.diary.told if event[1] == number] == [("proposed", number), ("INFEASIBLE", number)]
    assert stage.states() == ["COMPLETE" if number in refused else "RUNNING" for number in chosen]
    assert stage.director.remaining == 0
    told = [number for proposal in stage.sweep.proposals() for number in proposal.told]
    assert told == [number for number in refused if number < 11], "a later proposal names them, so a resumed search is the same"


def test_a_sweep_with_such_a_recipe_resumes(tmp_path):
    """Also where it was killed between the two facts."""
    stage = Stage(tmp_path, make_job(12, **SOURCES), slots=20)
    started = [config["number"] for config in iter(stage.director.next_config, FINISHED)]
    refused = [result.number for result in stage.sweep.results()]
    (stage.sweep.trial_folder(refused[0]) / "result.json").unlink()
    again = Stage(tmp_path, make_job(12, **SOURCES), slots=20)
    again.director.recall()
    assert [config["number"] for config in iter(again.director.next_config, FINISHED)] == started
    assert again.sweep.result(refused[0]).state == "INFEASIBLE"
    assert [result.number for result in again.sweep.results()] == refused


def test_two_of_four_goes_with_every_ratio(tmp_path):
    space = {"pruning.kind": {"choice": ["channels", "2:4"]}, "pruning.ratio": {"float": [0.0, 0.9]}}
    stage = Stage(tmp_path, make_job(8, space=space), slots=20)
    assert [config["number"] for config in iter(stage.director.next_config, FINISHED)] == list(range(8))
    assert {order.recipe["pruning"]["kind"] for order in stage.orders} == {"channels", "2:4"}


# Coming back.


def interrupted(folder: Path, trials: int = 6) -> Stage:
    """A sweep that was killed with 0 and 2 ended, 1 and 3 under way."""
    stage = Stage(folder, make_job(trials), slots=3)
    for _ in range(4):
        stage.start()
    stage.finish(2)
    stage.finish(0, "FAILED")
    return stage


def test_resuming_runs_what_did_not_end_first_and_never_what_did(tmp_path):
    interrupted(tmp_path)
    again = Stage(tmp_path, make_job(), slots=9)
    again.director.recall()
    assert again.director.remaining == 4
    assert [again.start() for _ in range(4)] == [1, 3, 4, 5]
    assert again.director.next_config() == FINISHED
    assert [order.number for order in again.orders] == [1, 3, 4, 5]


def test_what_is_run_again_is_what_was_proposed(tmp_path):
    before = interrupted(tmp_path)
    facts = folder_content(before.sweep)
    again = Stage(tmp_path, make_job())
    again.director.recall()
    assert [again.start(), again.start()] == [1, 3]
    assert folder_content(again.sweep) == facts
    assert again.orders == [before.orders[1], before.orders[3]]


def test_resuming_tells_the_sampler_what_ended(tmp_path):
    interrupted(tmp_path)
    again = Stage(tmp_path, make_job())
    again.director.recall()
    assert again.states() == ["FAIL", "RUNNING", "COMPLETE", "RUNNING"]
    assert again.diary.told == []
    again.start()
    again.finish(1)
    assert again.states() == ["FAIL", "COMPLETE", "COMPLETE", "RUNNING"]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_an_interrupted_sweep_goes_on_as_it_would_have(tmp_path, sampler):
    def play(stage: Stage, upto: int) -> None:
        while stage.director.facts.next_number < upto:
            stage.finish(stage.start())

    job = make_job(12, search={"sampler": sampler, "num_startup": 2})
    whole, first, second, third = (Stage(tmp_path / name, job) for name in ("whole", "parts", "parts", "parts"))
    play(whole, 12)
    play(first, 4)
    second.director.recall()
    play(second, 9)
    third.director.recall()
    play(third, 12)
    assert third.sweep.proposals() == whole.sweep.proposals()
    assert third.director.next_config() == FINISHED


def test_a_proposal_names_the_ends_that_the_sampler_was_told_before_it(tmp_path):
    interrupted(tmp_path)
    again = Stage(tmp_path, make_job(), slots=3)
    again.director.recall()
    assert [again.start(), again.start()] == [1, 3]
    again.finish(3)
    assert [again.start(), again.start()] == [4, 5]
    assert [proposal.told for proposal in again.sweep.proposals()] == [[], [], [], [], [0, 2, 3], []]


def test_a_finished_sweep_has_nothing_left_and_a_larger_budget_extends_it(tmp_path):
    stage = Stage(tmp_path, make_job(trials=2))
    for _ in range(2):
        stage.finish(stage.start())
    same, larger, smaller = (Stage(tmp_path, make_job(trials=trials)) for trials in (2, 3, 1))
    for back in (same, larger, smaller):
        back.director.recall()
    assert [back.director.remaining for back in (same, larger, smaller)] == [0, 1, 0]
    assert same.director.next_config() == FINISHED
    assert larger.start() == 2


def test_a_new_sweep_recalls_nothing_and_writes_nothing(tmp_path):
    stage = Stage(tmp_path, make_job())
    stage.director.recall()
    assert stage.director.remaining == 6
    assert list(tmp_path.iterdir()) == []


def test_a_gap_in_the_numbers_does_not_stop_a_sweep(tmp_path):
    stage = interrupted(tmp_path)
    (stage.sweep.trial_folder(1) / "proposal.json").unlink()
    again = Stage(tmp_path, make_job())
    again.director.recall()
    assert [again.start(), again.start()] == [3, 4]
    assert again.director.remaining == 2, "six trials are asked for, and four proposals are there"


# Without Ray.


def in_a_process_of_its_own(source: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_sweep_imports_no_ray():
    source = (
        "import sys, orchestrator.cluster.sweep; print([name for name in ('ray', 'torch', 'mlflow') if name in sys.modules])"
    )
    assert in_a_process_of_its_own(source) == "[]"


def test_the_word_for_finished_is_tunes():
    assert in_a_process_of_its_own("from ray.tune.search import Searcher; print(Searcher.FINISHED)") == FINISHED
    assert in_a_process_of_its_own("from orchestrator.cluster import director; print(director._FINISHED)") == FINISHED


def test_tune_takes_all_trials_that_the_searcher_has_so_no_client_is_one_too_many():
    source = (
        "from pathlib import Path; from orchestrator.cluster.connection import prepare_environment; "
        "prepare_environment(Path(), local=False); "
        "from ray.tune.execution.tune_controller import _get_max_pending_trials; "
        "from ray.tune.search import SearchGenerator; from orchestrator.cluster.searcher import SweepSearcher; "
        "print(_get_max_pending_trials(SearchGenerator(SweepSearcher('token'))))"
    )
    assert int(in_a_process_of_its_own(source)) >= 1000
