"""Which other forms a trained network has that train nothing, and which of them are worth a trial."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.ladder import forms, wanted
from orchestrator.search.points import fits, grid, point_key
from orchestrator.spec.job import Job
from orchestrator.spec.space import Choice

TRAINED = {"quantization.method": ["ptq", "qat"]}
SPACE: dict[str, Any] = {
    "pruning.ratio": {"choice": [0.0, 0.5]},
    "quantization.method": {"choice": ["none", "ptq", "qat"]},
    "quantization.weight_bits": {"int": [2, 8], "step": 3, "when": TRAINED},
    "quantization.activation_bits": {"int": [4, 6], "when": TRAINED},
    "quantization.epochs": {"int": [1, 3], "when": {"quantization.method": "qat"}},
    "training.learning_rate": {"choice": [0.1, 0.2]},
}


def make_job(space: dict[str, Any] = SPACE, **recipe: Any) -> Job:
    objectives = [{"metric": "accuracy"}, {"metric": "size_bytes"}]
    return Job.model_validate({"name": "ladder", "recipe": recipe, "space": space, "objectives": objectives})


def ladder(choice: Choice, job: Job) -> list[Choice]:
    return list(forms(choice, job.space, job.recipe))


FLOAT = {"pruning.ratio": 0.5, "quantization.method": "none", "training.learning_rate": 0.2}


def form(bits: int, activations: int) -> Choice:
    quantized = {"quantization.method": "ptq", "quantization.weight_bits": bits, "quantization.activation_bits": activations}
    return FLOAT | quantized


def test_a_float_network_has_each_width_and_itself():
    # The recipe's own 8 bits for activations lie outside the domain: its last value takes their place.
    assert ladder(FLOAT, make_job()) == [FLOAT, form(8, 6), form(5, 6), form(2, 6)]


def test_a_network_that_was_trained_with_quantizers_is_also_shipped_as_it_was_before():
    trained = form(5, 4) | {"quantization.method": "qat", "quantization.epochs": 2}
    assert ladder(trained, make_job()) == [FLOAT, form(8, 4), form(5, 4), form(2, 4)]


def test_where_the_method_is_not_searched_the_recipe_s_own_holds():
    space = {"quantization.weight_bits": {"int": [4, 8], "step": 2}}
    widths = [{"quantization.weight_bits": bits} for bits in (8, 6, 4)]
    assert ladder({"quantization.weight_bits": 4}, make_job(space, quantization={"method": "ptq"})) == widths
    assert ladder({"quantization.weight_bits": 4}, make_job(space, quantization={"method": "qat"})) == []
    assert ladder({}, make_job({"model.width": {"int": [8, 9]}}, quantization={"method": "ptq"})) == []


@given(st.sampled_from(list(grid(make_job().space, make_job().recipe, 2))))
def test_forms_are_points_of_the_space_that_train_nothing_and_share_what_was_trained(choice):
    job = make_job()
    found = ladder(choice, job)
    assert all(fits(each, job.space, job.recipe) for each in found)
    assert {each["quantization.method"] for each in found} == {"none", "ptq"}
    assert len({point_key(each, job.space) for each in found}) == len(found)
    before = ("pruning.ratio", "training.learning_rate")
    assert all(each[path] == choice[path] for each in found for path in before)


@given(st.sampled_from(list(grid(make_job().space, make_job().recipe, 2))))
def test_one_by_one_every_form_of_the_front_is_wanted_once(choice):
    job = make_job()
    proposed = {point_key(choice, job.space)}
    came = []
    while (found := wanted(job, [(7, choice)], proposed)) is not None:
        assert found[0] == 7
        came.append(found[1])
        proposed.add(point_key(found[1], job.space))
    assert came == [each for each in ladder(choice, job) if point_key(each, job.space) != point_key(choice, job.space)]


def test_a_point_from_another_space_has_no_forms():
    assert wanted(make_job(), [(1, {"model.width": 8})], set()) is None
