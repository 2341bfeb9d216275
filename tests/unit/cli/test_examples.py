"""The examples of every command's `--help` do what they say, as far as they need no Ray."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.cli.main import _COMMANDS
from orchestrator.results.store import Home
from orchestrator.trial.shelf import MANIFEST, seal
from tests.conftest import REPOSITORY
from tests.made_sweeps import complete, give_file, train, write_sweep

# tests/pipeline runs them on Ray; `trial` trains, as there; `ui` serves until it is ended, and tests/ui looks at its pages.
ELSEWHERE = {"run", "resume", "trial", "ui"}
# These need a network that was trained, or MLflow.
SLOW = {"pick", "audit", "sync", "report"}


def examples(command: str) -> list[list[str]]:
    """The examples of a command's epilog, each as its arguments."""
    epilog = importlib.import_module(f"orchestrator.cli.{command}").command.epilog
    _, _, text = epilog.partition(": ")
    return [shlex.split(example)[1:] for example in text.split(" | ")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the jobs, and a home with two finished sweeps, and lessons that were kept."""
    for folder in ("jobs", "search_spaces"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    for name in ("quickstart", "night"):
        sweep = write_sweep(tmp_path, name, [], "budget.trials=3")
        for number, accuracy, latency in ((0, 0.95, 0.3), (1, 0.92, 0.2), (2, 0.85, 0.1)):
            result = complete(number, accuracy, 0, latency)
            give_file(sweep, result, recipe={"data": {"source": "digits", "val_fraction": 0.25}})
            (sweep.trial_folder(number) / "model.pt2").write_bytes(b"as the trial left it")
            sweep.finish(result)
    kept = Home(tmp_path).stages / "a"
    kept.mkdir(parents=True)
    (kept / "file").write_bytes(bytes(10))
    seal(kept, "lessons", 1.0)
    os.utime(kept / MANIFEST, (time.time() - 3600,) * 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_has_an_example_that_begins_with_its_name() -> None:
    for command in _COMMANDS:
        assert examples(command), command
        assert all(example[0] == command for example in examples(command))


@pytest.mark.parametrize("command", sorted(set(_COMMANDS) - ELSEWHERE - SLOW))
def test_examples_run(command: str, place: Path, ask) -> None:
    for example in examples(command):
        told = ask(*example)
        assert told.code == 0, f"{example}: {told.err}"
        assert told.out
        if example[-2:] == ["-o", "json"]:
            json.loads(told.out)


@pytest.mark.slow
def test_examples_that_need_a_trained_network_or_mlflow_run(place: Path) -> None:
    """One after the other on one sweep. Nobody serves MLflow at the address of the second example of `sync`."""
    train(place, Home(place).sweep("quickstart"), 7)
    environment = {**os.environ, "ORCHESTRATOR_HOME": str(place), "PYTHONPATH": str(REPOSITORY)}
    for command in sorted(SLOW & set(_COMMANDS)):
        for example in examples(command):
            if any(part.startswith("http://") for part in example):
                continue
            run = [sys.executable, "-m", "orchestrator.cli.main", *example]
            told = subprocess.run(run, cwd=place, env=environment, capture_output=True, text=True, check=False)
            assert told.returncode == 0, f"{example}: {told.stderr[-3000:]}"


def test_what_an_export_example_leaves_can_be_checked(place: Path, ask) -> None:
    for example in examples("export"):
        assert ask(*example).code == 0
    assert (place / "shipped" / "model.pt2").read_bytes() == b"as the trial left it"
