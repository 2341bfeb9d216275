"""The command line itself: help, errors, exit codes. Bad input never starts Ray and never writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.main import _COMMANDS
from tests.conftest import REPOSITORY, orchestrator

_IMPORTED = """
import sys
from orchestrator.cli.main import main
sys.argv = ["orchestrator", "--help"]
try:
    main()
except SystemExit:
    print([name for name in ("torch", "ray", "mlflow", "optuna", "plotly", "pandas") if name in sys.modules])
"""

_STARTED = """
import sys
from orchestrator.cli.main import main
sys.argv = ["orchestrator", "--help"]
for _ in range(2):
    try:
        main()
    except SystemExit:
        pass
import beside_the_job
print(sys.path.count(sys.path[0]), sys.path[0])
"""


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, ask) -> None:
    """tests/unit/cli/test_examples.py runs them."""
    shown = ask(command, "--help")
    assert shown.code == 0
    assert "Example" in shown.out
    assert f"orchestrator {command}" in " ".join(shown.out.split())


def test_help_imports_nothing_heavy() -> None:
    """Which is why it answers within a second."""
    told = subprocess.run([sys.executable, "-c", _IMPORTED], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"


def test_modules_of_the_users_own_are_found_where_the_command_runs(tmp_path: Path) -> None:
    """Also where an installed script starts it, whose own folder Python puts on the path instead."""
    job, scripts = tmp_path / "job", tmp_path / "bin"
    job.mkdir()
    scripts.mkdir()
    (job / "beside_the_job.py").write_text("print('found')\n")
    (scripts / "orchestrator").write_text(_STARTED)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    told = subprocess.run(
        [sys.executable, scripts / "orchestrator"], cwd=job, env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines()[-2:] == ["found", f"1 {job}"]


def test_an_unknown_command_names_the_nearest(tmp_path: Path) -> None:
    told = orchestrator("frnt", "x", home=tmp_path)
    assert told.returncode == 2
    assert "did you mean 'front'" in told.stderr


@pytest.mark.parametrize("command", ["check", "plan", "run", "trial"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.training.epoch=3", "did you mean 'epochs'"),
        ("recipe.training.epochs=many", "must be a whole number"),
        ("recipe.training.learning_rate=-1", "must be > 0"),
        ("recipe.model.name=cifar_resnt20", "did you mean 'cifar_resnet20'"),
    ],
)
def test_bad_input_is_one_error_and_leaves_no_trace(command: str, override: str, message: str, tmp_path: Path) -> None:
    told = orchestrator(command, "jobs/quickstart.yaml", "--set", override, home=tmp_path / "home")
    assert told.returncode == 2
    assert told.stdout == ""
    assert message in told.stderr
    assert "Traceback" not in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "home").exists()


def test_check_and_plan_write_nothing(tmp_path: Path) -> None:
    assert "24 trials over 7 paths" in orchestrator("check", "jobs/quickstart.yaml", home=tmp_path / "home").stdout
    plan = json.loads(orchestrator("plan", "jobs/quickstart.yaml", "-o", "json", home=tmp_path / "home").stdout)
    assert plan["trials"] == 24
    assert plan["first"][0]["pruning.ratio"] == 0.0
    assert len(plan["first"]) == 3
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("name", ["nowhere", "../nowhere", "a/b", ""])
@pytest.mark.parametrize("command", ["front", "pick", "report", "resume"])
def test_a_sweep_that_is_not_there_is_named(command: str, name: str, tmp_path: Path) -> None:
    extra = ["--knee"] if command == "pick" else []
    told = orchestrator(command, name, *extra, home=tmp_path / "home")
    assert told.returncode == 2
    assert repr(name) in told.stderr
    assert not (tmp_path / "home").exists()


def test_pick_wants_exactly_one_way_to_choose(tmp_path: Path) -> None:
    assert orchestrator("pick", "x", home=tmp_path).returncode == 2
    assert orchestrator("pick", "x", "--knee", "--best", "accuracy", home=tmp_path).returncode == 2


def test_a_sweep_name_cannot_leave_the_home_folder(tmp_path: Path) -> None:
    told = orchestrator("run", "jobs/quickstart.yaml", "--name", "../../x", home=tmp_path / "home")
    assert told.returncode == 2
    assert "name" in told.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_does_not_fit_the_machine_says_what_it_needs(tmp_path: Path) -> None:
    told = orchestrator("plan", "jobs/quickstart.yaml", "--set", "resources.threads_per_worker=200", home=tmp_path)
    assert told.returncode == 2
    assert "200 CPU" in told.stderr
