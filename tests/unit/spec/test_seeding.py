"""Seeds of a job: points of its space, checked when the file is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import JobError
from orchestrator.spec.load import load_job, read_resolved, resolved_text
from orchestrator.spec.recipe import Recipe
from orchestrator.spec.seeding import completed
from orchestrator.spec.space import SearchSpace

SPACE = SearchSpace.model_validate(
    {
        "model.width": {"int": [8, 32], "step": 8},
        "distillation.weight": {"float": [0.0, 0.9]},
        "quantization.method": {"choice": ["none", "ptq"]},
        "quantization.weight_bits": {"int": [2, 8], "when": {"quantization.method": "ptq"}},
    }
)
JOB = """\
recipe: {{}}
space:
  model.width: {{int: [8, 32], step: 8}}
  quantization.method: {{choice: [none, ptq]}}
  quantization.weight_bits: {{int: [2, 8], when: {{quantization.method: ptq}}}}
objectives: [{{metric: accuracy}}]
search:
  seeds:
    - {{model.width: 24}}
    - {{{seed}}}
"""


def job_file(folder: Path, seed: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(JOB.format(seed=seed))
    return path


def test_what_a_seed_leaves_out_is_as_the_recipe_has_it_and_inactive_holes_stay_out():
    recipe = Recipe.model_validate({"model": {"width": 16}, "distillation": {"weight": 0.5}, "quantization": {"method": "ptq"}})
    bits = recipe.quantization.weight_bits
    quantized = {"quantization.method": "ptq", "quantization.weight_bits": bits}
    assert completed({}, SPACE, recipe) == {"model.width": 16, "distillation.weight": 0.5, **quantized}
    none = {"model.width": 8, "quantization.method": "none"}
    assert completed(none, SPACE, recipe) == {**none, "distillation.weight": 0.5}


def test_values_have_the_type_in_which_a_sampler_proposes_them():
    choice = completed({"model.width": 24.0, "distillation.weight": 0}, SPACE, Recipe())
    assert (type(choice["model.width"]), type(choice["distillation.weight"])) == (int, float)


@pytest.mark.parametrize(
    ("seed", "said"),
    [
        ("model.widht: 8", "job.yaml:10: search.seeds.1.model.widht: must be a path of the space; given model.widht"),
        ("model.width: 12", "job.yaml:10: search.seeds.1.model.width: must lie in its domain, 8 to 32 in steps of 8; given 12"),
        ("quantization.method: qat", "must lie in its domain, one of 'none', 'ptq'; given 'qat'"),
        (
            "quantization.weight_bits: 4",
            "search.seeds.1.quantization.weight_bits: must be left out, for its condition does not hold; given 4",
        ),
    ],
)
def test_a_seed_that_is_no_point_of_the_space_is_refused_with_file_line_and_path(tmp_path, seed, said):
    with pytest.raises(JobError) as caught:
        load_job(job_file(tmp_path, seed))
    assert said in str(caught.value)


def test_the_nearest_path_is_named(tmp_path):
    with pytest.raises(JobError) as caught:
        load_job(job_file(tmp_path, "model.widht: 8"))
    assert caught.value.nearest == "model.width"


def test_a_recipe_whose_own_value_lies_outside_has_to_be_named_in_the_seed():
    recipe = Recipe.model_validate({"model": {"width": 64}})
    with pytest.raises(JobError, match=r"model.width: must lie in its domain"):
        completed({"quantization.method": "none"}, SPACE, recipe)


def test_seeds_stand_in_the_resolved_job(tmp_path):
    job = load_job(job_file(tmp_path, "quantization.method: ptq, quantization.weight_bits: 4"))
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(resolved_text(job))
    assert read_resolved(resolved).search.seeds == job.search.seeds
    assert job.search.seeds[1] == {"quantization.method": "ptq", "quantization.weight_bits": 4}
    assert read_resolved(resolved).identity() == job.identity()
