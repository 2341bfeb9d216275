"""What a trial's run says besides its measurements."""

from __future__ import annotations

from pathlib import Path

from orchestrator.results.store import Home
from orchestrator.results.trial_result import Proposal
from orchestrator.spec.job import Job
from orchestrator.tracking.mlflow_tracker import MlflowTracker


def test_a_trial_names_the_one_that_it_comes_from(tmp_path: Path) -> None:
    space = {"pruning.ratio": {"float": [0.0, 0.5]}}
    objectives = [{"metric": "accuracy"}, {"metric": "size_bytes"}]
    job = Job.model_validate({"name": "a", "recipe": {}, "space": space, "objectives": objectives})
    home = Home(tmp_path)
    sweep = home.sweep("a")
    sweep.propose(Proposal(0, {}, {}))
    sweep.propose(Proposal(1, {}, {}, replicate_of=0))
    sweep.propose(Proposal(2, {}, {}, continues=1))
    tracker = MlflowTracker(job, home, sweep)
    assert [tracker._origin(number) for number in range(4)] == [
        {},
        {"orchestrator.replicate_of": "t0000"},
        {"orchestrator.continues": "t0001"},
        {},
    ]
