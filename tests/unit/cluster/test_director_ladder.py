"""Networks of the front at other bit widths: proposals of their own, which the sampler is told of and no budget counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.results.trial_result import TrialResult
from tests.unit.cluster.test_director import FINISHED, Stage, make_job

SPACE = {
    "pruning.ratio": {"float": [0.0, 0.5]},
    "quantization.method": {"choice": ["none", "ptq"]},
    "quantization.weight_bits": {"choice": [4, 8], "when": {"quantization.method": "ptq"}},
}


def stage_for(folder: Path, trials: int = 2, reference: float | None = None, **search: Any) -> Stage:
    search = {"sampler": "tpe", "num_startup": 2, "bit_ladder": True} | search
    objectives = [{"metric": "accuracy", "reference": reference}, {"metric": "size_bytes"}]
    return Stage(folder, make_job(trials, space=SPACE, search=search, objectives=objectives), slots=1)


def end(stage: Stage, number: int, accuracy: float, size: float) -> None:
    choice = next(known.choice for known in stage.sweep.proposals() if known.number == number)
    measured = {"accuracy": accuracy, "size_bytes": size}
    stage.sweep.finish(TrialResult(number, "COMPLETE", choice, measured, {}, ended=float(number + 1)))
    stage.director.ended(number, {"outcome": "written"})


def played(stage: Stage) -> list[tuple[int | None, float, Any, Any]]:
    """Run all there is to run, the later the worse: (origin, ratio, method, bits) of every proposal."""
    while isinstance(config := stage.director.next_config(), dict):
        end(stage, config["number"], 0.9 - 0.01 * config["number"], 50.0 + config["number"])
    assert config == FINISHED
    keys = ("pruning.ratio", "quantization.method", "quantization.weight_bits")
    return [(known.derived_from, *(known.choice.get(key) for key in keys)) for known in stage.sweep.proposals()]


def test_the_front_is_shipped_in_its_other_forms_before_anything_fresh(tmp_path):
    stage = stage_for(tmp_path)
    proposals = played(stage)
    assert proposals[:3] == [(None, 0.0, "none", None), (0, 0.0, "ptq", 8), (0, 0.0, "ptq", 4)]
    assert [origin for origin, *_ in proposals[3:]] == [None], "number 3 is dominated: nobody wants its other forms"
    fresh = [known.fresh for known in stage.sweep.proposals()]
    assert fresh == [True, False, False, True], "the budget counts two trials"
    assert stage.states() == ["COMPLETE"] * 4, "the sampler is told of every one"
    assert stage.director.remaining == 0


def test_a_form_has_the_recipe_and_the_seed_of_its_origin(tmp_path):
    stage = stage_for(tmp_path)
    stage.start()
    end(stage, 0, 0.9, 50.0)
    assert stage.start() == 1
    origin, form = stage.orders
    assert form.recipe["quantization"].pop("method") == "ptq"
    assert origin.recipe["quantization"].pop("method") == "none"
    assert form.recipe == origin.recipe
    assert form.sweep_seed == origin.sweep_seed


def test_a_search_that_is_brought_back_wants_the_same_forms(tmp_path):
    whole = played(stage_for(tmp_path / "whole", trials=4))
    first = stage_for(tmp_path / "again", trials=4)
    for number in range(2):
        assert first.start() == number
        end(first, number, 0.9 - 0.01 * number, 50.0 + number)
    again = stage_for(tmp_path / "again", trials=4)
    again.director.recall()
    assert played(again) == whole


def test_the_last_trial_may_bring_forms_so_the_sweep_waits_for_it(tmp_path):
    stage = stage_for(tmp_path, trials=1)
    stage.start()
    assert stage.director.next_config() is None
    end(stage, 0, 0.9, 50.0)
    assert stage.director.remaining == 1, "as far as is known"
    assert stage.start() == 1


def test_without_the_setting_there_is_no_ladder(tmp_path):
    assert [origin for origin, *_ in played(stage_for(tmp_path, trials=3, bit_ladder=False))] == [None] * 3


def test_a_network_that_is_not_worth_having_has_no_other_forms(tmp_path):
    assert len(played(stage_for(tmp_path / "worth", trials=1, reference=0.9))) == 3
    assert len(played(stage_for(tmp_path / "not", trials=1, reference=0.95))) == 1
