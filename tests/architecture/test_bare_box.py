"""What runs where little is installed: a trial without ray, mlflow, optuna or plotly; specs, facts and fronts without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ONE_RECIPE = """\
import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

BLOCKED = ("ray", "mlflow", "optuna", "plotly")


class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} on this box", name=name)


sys.meta_path.insert(0, Absent())

from orchestrator.spec.recipe import Recipe
from orchestrator.trial.host import LocalHost, local_process, machine_quiet
from orchestrator.trial.order import Order
from orchestrator.trial.pipeline import run_trial
from orchestrator.trial.stages import StageStore
from orchestrator.trial.workshop import Workshop

folder = Path(sys.argv[1])
recipe = Recipe.model_validate(
    {
        "data": {"source": "digits", "max_train": 512, "max_val": 128},
        "model": {"name": "cifar_resnet8", "width": 4},
        "training": {"epochs": 1, "batch_size": 256},
        "teacher": {"model": {"name": "cifar_resnet8", "width": 4}, "training": {"epochs": 1, "batch_size": 256}},
        "distillation": {"weight": 0.5},
        "pruning": {"ratio": 0.5, "epochs": 1, "round_to": 1},
        "quantization": {"method": "qat", "epochs": 1, "num_calibration": 64},
        "measurement": {"rounds": 5},
    }
)
order = Order(
    number=0,
    choice={},
    recipe=recipe.model_dump(mode="json"),
    constraints={"size_bytes": {"min": None, "max": 1e9}},
    sweep_seed=0,
    folder=str(folder / "trial"),
    stages=str(folder / "stages"),
)
quiet = machine_quiet()
with local_process(quiet, "cpu") as process:
    result = run_trial(order, LocalHost(process, quiet, lambda event: None), Workshop(StageStore(folder / "stages"), process))
there = sorted(name for name in sys.modules if name.split(".")[0] in BLOCKED)
print(json.dumps({"result": result.to_json(), "blocked": there}))
"""


def run_python(source: str, *arguments: str, folder: Path) -> str:
    """Run a program in a process of its own, in `folder`, with temporary files there; returns its standard output."""
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", source, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare")
    told = json.loads(run_python(ONE_RECIPE, str(folder), folder=folder).splitlines()[-1])
    return {"folder": folder, **told}


def test_a_recipe_runs_to_its_end_without_ray_mlflow_optuna_and_plotly(bare):
    assert bare["result"]["failure"] is None
    assert bare["result"]["state"] == "COMPLETE"


def test_nothing_gets_hold_of_what_is_not_installed(bare):
    assert bare["blocked"] == []


def test_every_stage_ran_on_the_bare_box(bare):
    stages = [stage["name"] for stage in bare["result"]["stages"]]
    assert stages == ["preflight", "teacher", "student", "pruned", "quantized", "export", "measure"]


def test_the_bare_trial_measured_the_file_that_it_left(bare):
    folder, measured = bare["folder"] / "trial", bare["result"]["measurements"]
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.safetensors", "recipe.json"]
    assert measured["size_bytes"] == (folder / "model.onnx").stat().st_size
    assert 0.0 <= measured["accuracy"] <= 1.0
    assert measured["latency_ms"] > 0.0
    assert measured["num_eval_samples"] == 128
    assert bare["result"]["constraints"]["size_bytes"] == measured["size_bytes"] - 1e9


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("orchestrator.spec.load", ("torch", "ray", "mlflow", "optuna", "plotly")),
        ("orchestrator.results.store", ("torch", "ray", "mlflow", "optuna", "plotly")),
        ("orchestrator.pareto.front", ("torch", "ray", "mlflow", "optuna", "plotly")),
        ("orchestrator.cli.main", ("torch", "ray", "mlflow", "optuna", "plotly")),
        ("orchestrator.cli.check", ("torch", "ray", "mlflow", "optuna", "plotly")),
        ("orchestrator.cli.front", ("torch", "ray", "mlflow", "optuna", "plotly")),
        ("orchestrator.cluster.sweep", ("torch", "ray", "mlflow", "plotly")),
    ],
)
def test_importing_a_light_module_brings_in_nothing_heavy(module, heavy, tmp_path):
    source = f"import {module}, json, sys; print(json.dumps([name for name in {heavy!r} if name in sys.modules]))"
    assert json.loads(run_python(source, folder=tmp_path)) == []
