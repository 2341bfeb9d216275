"""How a sweep ends, is extended, has its front trained with more seeds, and reads facts that are not whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster.facts import Facts
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.trial.order import derived_seed
from tests.unit.cluster.test_director import FINISHED, Stage, folder_content, make_job

SIZES = {0: (0.9, 80.0), 1: (0.8, 40.0), 2: (0.7, 60.0), 3: (0.5, 20.0)}  # 0, 1 and 3 are the front


def end(stage: Stage, number: int, state: str = "COMPLETE", *, seconds: float = 10.0, values: tuple[float, float] = (0.5, 9.0)):
    """A gang ends a trial, as the `number`-th event of the sweep."""
    accuracy, size = SIZES.get(number, values)
    measured = {"accuracy": accuracy, "size_bytes": size} if state == "COMPLETE" else {}
    at = 1000.0 * (number + 1)
    stage.sweep.finish(TrialResult(number, state, {}, measured, {}, started=at - seconds, ended=at))
    stage.director.ended(number, {"outcome": "written"})


def back(folder: Path, slots: int = 9, **keys) -> Stage:
    stage = Stage(folder, make_job(**keys), slots)
    stage.director.recall()
    return stage


def budget(**limits) -> dict:
    return {"budget": {"trials": 20, **limits}}


# Limits.


def test_failures_end_a_sweep_and_a_higher_limit_goes_on(tmp_path):
    stage = Stage(tmp_path, make_job(**budget(failures=2)), slots=5)
    for _ in range(4):
        stage.start()
    end(stage, 0, "FAILED")
    end(stage, 2, "INFEASIBLE")
    assert stage.director.limit() is None
    end(stage, 1, "FAILED")
    assert stage.director.limit().reason == "failures"
    assert stage.director.next_config() == FINISHED
    assert len(stage.sweep.proposals()) == 4
    same, higher = back(tmp_path, **budget(failures=2)), back(tmp_path, **budget(failures=3))
    assert same.director.ending().reason == "failures"
    assert same.director.next_config() == FINISHED
    assert higher.director.ending() is None
    assert [higher.start(), higher.start()] == [3, 4]


def test_device_hours_count_what_has_ended_in_any_run_and_what_is_under_way(tmp_path):
    keys = budget(device_hours=0.5) | {"resources": {"workers_per_gang": 2}}  # 900 s of trials
    stage = Stage(tmp_path, make_job(**keys))
    stage.start()
    end(stage, 0, seconds=500.0)
    again = back(tmp_path, **keys)
    again.start()
    assert again.director.limit(seconds=1e9, under_way=399.0) is None
    assert again.director.limit(under_way=400.0).reason == "device_hours"
    end(again, 1, seconds=400.0)
    assert again.director.ending().reason == "device_hours"


def test_hours_are_those_of_one_run(tmp_path):
    stage = Stage(tmp_path, make_job(**budget(hours=1.0)))
    stage.start()
    assert stage.director.limit(seconds=3599.0) is None
    assert stage.director.limit(seconds=3600.0).reason == "hours"
    assert back(tmp_path, **budget(hours=1.0)).director.ending() is None


def test_a_sweep_that_is_done_is_done_whatever_its_limits_say(tmp_path):
    keys = {"budget": {"trials": 2, "failures": 1, "hours": 0.1}}
    stage = Stage(tmp_path, make_job(**keys))
    stage.start()
    stage.start()
    end(stage, 0)
    assert stage.director.limit(seconds=1e6).reason == "hours"
    end(stage, 1, "FAILED")
    assert stage.director.limit(seconds=1e6) is None
    assert stage.director.ending().reason == "trials"


# A plateau.


def test_a_plateau_waits_for_what_is_under_way_and_can_be_left(tmp_path):
    objectives = [{"metric": "accuracy", "reference": 0.0}, {"metric": "size_bytes", "reference": 100.0}]
    keys = budget(plateau={"trials": 2, "gain": 0.0}) | {"objectives": objectives}
    stage = Stage(tmp_path, make_job(**keys), slots=3)
    assert [stage.start() for _ in range(4)] == [0, 1, 2, 3]
    end(stage, 0)
    end(stage, 2)
    assert stage.director.goal() is None
    assert stage.start() == 4
    assert stage.start() == 5
    end(stage, 4, "FAILED")
    assert stage.director.goal() is None, "a failure says nothing of what the search can find"
    end(stage, 5, values=(0.1, 99.0))
    # 0 brought 0.9 x 20; 2 added 0.7 x 40 - 0.7 x 20; 5 nothing; so far one trial without a gain.
    assert stage.director.facts.spent.volumes == pytest.approx([18.0, 32.0, 32.0])
    assert stage.start() == 6
    assert stage.start() == 7
    end(stage, 6, values=(0.1, 99.0))
    assert stage.director.goal().reason == "plateau"
    assert stage.director.next_config() is None, "1, 3 and 7 are under way"
    end(stage, 7, "STOPPED")
    end(stage, 3)  # by the clock it came before 5 and 6
    assert stage.director.goal().reason == "plateau"
    end(stage, 1)
    assert stage.director.next_config() == FINISHED
    assert stage.director.ending().reason == "plateau"
    assert back(tmp_path, **keys).director.ending().reason == "plateau"
    assert back(tmp_path, **{**keys, **budget()}).start() == 8


def test_what_ends_last_can_take_a_plateau_back(tmp_path):
    keys = budget(plateau={"trials": 2, "gain": 0.0})
    objectives = [{"metric": "accuracy", "reference": 0.0}, {"metric": "size_bytes", "reference": 100.0}]
    stage = Stage(tmp_path, make_job(**keys, objectives=objectives), slots=3)
    assert [stage.start() for _ in range(4)] == [0, 1, 2, 3]
    end(stage, 0)
    end(stage, 1, "INFEASIBLE")
    end(stage, 2, "INFEASIBLE")
    assert stage.director.next_config() is None
    end(stage, 3)
    assert stage.director.goal() is None
    assert stage.start() == 4


# A space with few points.


def test_a_grid_ends_when_all_its_points_are_proposed(tmp_path):
    space = {"model.width": {"int": [15, 17]}}
    stage = Stage(tmp_path, make_job(trials=20, space=space, search={"sampler": "grid"}), slots=9)
    assert [config["number"] for config in iter(stage.director.next_config, FINISHED)] == [0, 1, 2]
    assert [proposal.choice["model.width"] for proposal in stage.sweep.proposals()] == [16, 15, 17]
    assert stage.director.ending().reason == "space"


# Seeds.


def seeded(folder: Path, seeds: int = 3) -> Stage:
    """Four trials that have ended, three of them the front."""
    stage = Stage(folder, make_job(budget={"trials": 4, "seeds": seeds}), slots=9)
    for _ in range(4):
        stage.start()
    for number in (2, 0, 1):
        end(stage, number)
    assert stage.director.next_config() is None, "the front is not final"
    end(stage, 3)
    return stage


def test_every_point_of_the_front_gets_its_seeds_seed_by_seed(tmp_path):
    stage = seeded(tmp_path)
    known = {proposal.number: proposal for proposal in stage.sweep.proposals()}
    assert stage.director.remaining == 6
    assert [stage.start() for _ in range(6)] == [4, 5, 6, 7, 8, 9]
    for number in range(4, 10):
        end(stage, number)
    assert stage.director.next_config() == FINISHED
    made = stage.sweep.proposals()[4:]
    assert [proposal.replicate_of for proposal in made] == [0, 1, 3, 0, 1, 3]
    for proposal in made:
        assert proposal.choice == known[proposal.replicate_of].choice
        assert proposal.recipe == known[proposal.replicate_of].recipe
        assert (proposal.source, proposal.told, proposal.fresh) == ("replicate", [], False)
    first, second = derived_seed(5, "replicate", 1), derived_seed(5, "replicate", 2)
    assert [order.sweep_seed for order in stage.orders] == [5] * 4 + [first] * 3 + [second] * 3
    assert len({5, first, second}) == 3


def test_the_sampler_hears_nothing_of_replicates_and_the_observers_do(tmp_path):
    stage = seeded(tmp_path, seeds=2)
    before = len(stage.trials())
    stage.start()
    end(stage, 4)
    assert stage.diary.told[-2:] == [("proposed", 4), ("COMPLETE", 4)]
    assert len(stage.trials()) == before
    again = back(tmp_path, budget={"trials": 4, "seeds": 2})
    assert len(again.trials()) == before
    longer = back(tmp_path, budget={"trials": 5, "seeds": 1})
    assert longer.start() == 5
    assert longer.sweep.proposals()[5].told == [0, 1, 2, 3], "4 is a replicate"


def test_replicates_do_not_count_as_trials_and_change_no_front(tmp_path):
    stage = seeded(tmp_path, seeds=2)
    assert [stage.start() for _ in range(3)] == [4, 5, 6]
    end(stage, 4, values=(0.99, 1.0))  # better than all: still no point that would get seeds of its own
    end(stage, 5, "FAILED")
    assert stage.director.next_config() is None
    end(stage, 6)
    assert stage.director.next_config() == FINISHED
    assert stage.director.facts.spent.fresh == 4
    assert stage.director.ending().reason == "trials"


def test_seeds_go_on_where_a_driver_was_killed_with_the_seeds_that_they_had(tmp_path):
    stage = seeded(tmp_path)
    assert [stage.start() for _ in range(5)] == [4, 5, 6, 7, 8]
    end(stage, 5)
    end(stage, 7)
    facts = folder_content(stage.sweep)
    again = back(tmp_path, budget={"trials": 4, "seeds": 3})
    assert again.director.remaining == 4
    assert [again.start() for _ in range(3)] == [4, 6, 8]
    assert folder_content(again.sweep) == facts
    assert again.orders == [order for order in stage.orders if order.number in (4, 6, 8)]
    assert again.start() == 9
    assert again.sweep.proposal(9).replicate_of == 3
    assert again.sweep.proposal(10) is None


def test_an_extended_sweep_gives_seeds_to_the_new_front_only_where_they_are_missing(tmp_path):
    stage = seeded(tmp_path, seeds=2)
    for number in [stage.start() for _ in range(3)]:
        end(stage, number)
    again = back(tmp_path, budget={"trials": 5, "seeds": 2})
    assert again.start() == 7
    assert again.director.next_config() is None
    end(again, 7, values=(0.85, 30.0))  # takes the place of 1
    assert again.start() == 8
    assert again.sweep.proposals()[8].replicate_of == 7
    assert again.director.next_config() is None
    end(again, 8)
    assert again.director.next_config() == FINISHED


def test_a_sweep_without_a_feasible_trial_has_no_seeds_to_train(tmp_path):
    stage = Stage(tmp_path, make_job(budget={"trials": 1, "seeds": 3}))
    stage.start()
    end(stage, 0, "FAILED")
    assert stage.director.next_config() == FINISHED


# What facts alone tell.


def test_facts_tell_that_a_sweep_is_at_its_end():
    def done(proposals, results, **keys):
        found = Facts(make_job(**keys), proposals, results).end()
        return None if found is None else found.reason

    proposals = [Proposal(number, {}, {}) for number in range(2)]
    results = [TrialResult(number, "COMPLETE", {}, {"accuracy": 0.5, "size_bytes": 1.0}) for number in range(2)]
    assert done([], [], trials=1) is None
    assert done(proposals, results, trials=2) == "trials"
    assert done(proposals, results[:1], trials=2) is None
    assert done(proposals, results, trials=3) is None
    assert done(proposals, results, budget={"trials": 2, "seeds": 2}) is None
    failed = [results[0], TrialResult(1, "FAILED", {})]
    assert done(proposals, failed, budget={"trials": 2, "failures": 1}) == "trials"
    assert done(proposals, failed, budget={"trials": 3, "failures": 1}) == "failures"
    promoting = {"method": "successive_halving", "promote": True}
    assert done(proposals, results, trials=2, stopping=promoting) is None


# Facts that are not whole.


@pytest.mark.parametrize("content", [b"", b'{"number": 1, "sta', b"\0" * 64, b"\xff\xfe"])
def test_a_broken_result_is_set_aside_and_the_trial_runs_again(tmp_path, content):
    stage = Stage(tmp_path, make_job(trials=3), slots=5)
    for _ in range(3):
        stage.start()
    for number in range(3):
        end(stage, number)
    file = stage.sweep.trial_folder(1) / "result.json"
    file.write_bytes(content)
    assert [result.number for result in stage.sweep.results()] == [0, 2], "a reader passes it over and writes nothing"
    assert stage.sweep.mend() == [file.with_name("result.json.broken")]
    assert stage.sweep.mend() == []
    again = back(tmp_path, trials=3)
    assert again.start() == 1
    assert again.director.next_config() == FINISHED
    end(again, 1)
    assert again.director.ending().reason == "trials"
    assert file.with_name("result.json.broken").read_bytes() == content


def test_a_broken_proposal_loses_its_number_and_no_other_trial(tmp_path):
    stage = Stage(tmp_path, make_job(trials=4), slots=5)
    for _ in range(3):
        stage.start()
    end(stage, 0)
    (stage.sweep.trial_folder(1) / "proposal.json").write_bytes(b"{")
    assert len(stage.sweep.mend()) == 1
    again = back(tmp_path, trials=4)
    assert [again.start() for _ in range(3)] == [2, 3, 4]
    assert again.director.next_config() == FINISHED


def test_a_broken_last_proposal_is_made_again(tmp_path):
    stage = Stage(tmp_path, make_job(trials=2))
    stage.start()
    stage.start()
    whole = (stage.sweep.trial_folder(1) / "proposal.json").read_bytes()
    (stage.sweep.trial_folder(1) / "proposal.json").write_bytes(b"")
    stage.sweep.mend()
    again = back(tmp_path, trials=2)
    assert [again.start(), again.start()] == [0, 1]
    assert (again.sweep.trial_folder(1) / "proposal.json").read_bytes() == whole
