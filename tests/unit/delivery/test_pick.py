"""Picking: who holds an alias, what would change, and (slow) the whole of it on a real MLflow."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data.sources import Source, read_split
from orchestrator.delivery.pick import Holder, before_and_after
from orchestrator.measure.runtime import Runtime
from orchestrator.results.store import Home
from orchestrator.results.trial_result import Proposal, StageRecord
from orchestrator.spec.load import read_resolved
from orchestrator.tracking.registry import Version
from tests.conftest import orchestrator
from tests.made_sweeps import complete, give_file, write_sweep

HELD = Version("digits", "3", "champion", "models:/digits@champion", "sqlite:///x")


def test_what_an_alias_would_gain_and_lose(tmp_path: Path):
    sweep = write_sweep(tmp_path, "night", [complete(1, 0.9, 60_000, 0.2)])
    (result,), job = sweep.results(), read_resolved(sweep.job_file)
    tags = {"accuracy": "0.875", "size_bytes": "80000", "test.accuracy": "0.5", "latency_ms": "nan"}
    held = Holder(HELD, {f"orchestrator.{key}": value for key, value in tags.items()})
    assert before_and_after(held, job, result, {"accuracy": 0.75}) == {
        "accuracy": (0.875, 0.9),
        "size_bytes": (80_000.0, 60_000.0),
        "latency_ms": (None, 0.2),
        "test accuracy": (0.5, 0.75),
    }
    nothing = before_and_after(Holder(HELD, {}), job, result, {"accuracy": 0.75})
    assert nothing["accuracy"] == (None, 0.9), "a version that somebody else registered"


def test_a_trial_that_holds_the_alias_is_known_again(tmp_path: Path):
    sweep = write_sweep(tmp_path, "night", [complete(1, 0.9, 60_000, 0.2)])
    (result,), job = sweep.results(), read_resolved(sweep.job_file)
    tags = {
        "orchestrator.sweep": "night",
        "orchestrator.identity": job.identity(),
        "orchestrator.trial": "t0001",
        "other": "x",
    }
    assert Holder(HELD, tags).is_of(sweep, job, result)
    for key in list(tags)[:3]:
        assert not Holder(HELD, {**tags, key: "another"}).is_of(sweep, job, result)
    assert not Holder(HELD, {}).is_of(sweep, job, result)


def a_home(tmp_path: Path) -> Home:
    """A sweep of two models of the digits, both on the front."""
    sweep = write_sweep(tmp_path, "night", [])
    for number, accuracy, latency in ((0, 0.9, 0.3), (1, 0.85, 0.1)):
        stages = [StageRecord("teacher", "abc123", 1.0, False, 0.0)]
        result = complete(number, accuracy, 0, latency, stages=stages)
        give_file(sweep, result, recipe={"data": {"source": "digits", "val_fraction": 0.25}})
        sweep.propose(Proposal(number, result.choice, {}))
        sweep.finish(result)
    return Home(tmp_path)


def versions(home: Home, name: str) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=home.tracking_uri, registry_uri=home.tracking_uri)
    return {str(found.version): found for found in client.search_model_versions(f"name = '{name}'")}


def asked(home: Home, *args: str) -> Any:
    return orchestrator("pick", "night", *args, home=home.path)


@pytest.mark.slow
def test_a_pick_is_tested_once_registered_with_its_card_and_asked_about_before_it_is_replaced(tmp_path: Path):
    home = a_home(tmp_path)
    first = asked(home, "--trial", "t0000", "--register", "digits", "-o", "json")
    assert first.returncode == 0, first.stderr[-3000:]
    told = json.loads(first.stdout)
    examples = list(read_split(Source("digits"), "test"))
    images, labels = np.stack([image for image, _ in examples]), np.array([label for _, label in examples])
    file = home.sweep("night").trial_folder(0) / "model.onnx"
    assert told["test"]["accuracy"] == float((Runtime(file, 1).logits(images).argmax(1) == labels).mean())
    assert (told["also_tested"], told["held_before"], told["version"]["version"]) == ([], None, "1")

    version = versions(home, "digits")["1"]
    tags = {key.removeprefix("orchestrator."): value for key, value in version.tags.items()}
    assert (tags["trial"], tags["accuracy"], tags["latency_ms"]) == ("t0000", "0.9", "0.3")
    assert (tags["test.accuracy"], tags["test.opened"]) == (repr(told["test"]["accuracy"]), "1")
    assert (tags["job"], tags["teacher"].split()[1]) == ("night", "abc123")
    job = read_resolved(home.sweep("night").job_file)
    assert tags["identity"] == job.identity()
    assert len(tags["space"]) == len(tags["data"]) == 64
    assert version.description.startswith("# digits, version 1\n")
    assert "It was opened for 1 model(s) of this sweep: t0000." in version.description
    (card,) = (tmp_path / "mlartifacts").rglob("card.md")
    assert card.read_text() == version.description
    assert (card.parent / "MLmodel").exists(), "it lies among the model's own files"

    again = asked(home, "--trial", "t0000", "--register", "digits", "-o", "json")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "t0000 is version 1 of digits already" in again.stderr
    assert json.loads(again.stdout)["test"] == told["test"]
    assert list(versions(home, "digits")) == ["1"]

    refused = asked(home, "--trial", "t0001", "--register", "digits")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "version 1 of 'digits' holds the alias 'champion'" in refused.stderr
    assert "--yes must be added" in refused.stderr
    assert home.sweep("night").tested_trials() == ["t0000"], "the test split was not opened for an answer that nobody gives"

    beside = asked(home, "--trial", "t0001", "--register", "digits", "--yes", "-o", "json")
    assert beside.returncode == 0, beside.stderr[-3000:]
    told = json.loads(beside.stdout)
    assert (told["version"]["version"], told["held_before"]["version"], told["also_tested"]) == ("2", "1", ["t0000"])
    rows = {line.split("  ")[0]: line.split() for line in beside.stderr.splitlines() if "  " in line}
    assert rows["accuracy"][1:] == ["0.9", "0.85", "-0.05"]
    assert rows["latency_ms"][1:] == ["0.3", "0.1", "-0.2"]
    assert versions(home, "digits")["2"].tags["orchestrator.test.opened"] == "2"
    status = json.loads(orchestrator("status", "night", "-o", "json", home=home.path).stdout)
    assert parent_metrics(home) == {"front/size": status["front_size"], "front/hypervolume": status["hypervolume"]}


def parent_metrics(home: Home) -> dict[str, float]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=home.tracking_uri)
    (experiment,) = (found for found in client.search_experiments() if found.name == "orchestrator")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`orchestrator.role` = 'sweep'")
    assert parent.info.status == "FINISHED"
    return {key: value for key, value in parent.data.metrics.items() if key in ("front/size", "front/hypervolume")}


@pytest.mark.slow
def test_one_who_sits_at_the_terminal_is_asked(tmp_path: Path):
    """On a real pseudo-terminal: `n` leaves everything as it is, `y` moves the alias."""
    home = a_home(tmp_path)
    assert asked(home, "--trial", "t0000", "--register", "digits").returncode == 0
    command = [sys.executable, "-m", "orchestrator.cli.main", "pick", "night", "--trial", "t0001", "--register", "digits"]
    for answer, said, count in ((b"n\n", "nothing was registered", 1), (b"y\n", "registering t0001", 2)):
        ours, theirs = pty.openpty()
        os.write(ours, answer)
        environment = {**os.environ, "ORCHESTRATOR_HOME": str(home.path)}
        done = subprocess.run(command, stdin=theirs, env=environment, capture_output=True, text=True, timeout=120, check=False)
        os.close(ours)
        os.close(theirs)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "move champion to t0001?" in done.stderr
        assert said in done.stderr
        assert len(versions(home, "digits")) == count


@pytest.mark.slow
def test_a_name_of_any_signs_stays_text(tmp_path: Path):
    home = a_home(tmp_path)
    name = "<b>ü 🙂 '\"%s"
    told = asked(home, "--trial", "t0000", "--register", name, "-o", "json")
    assert told.returncode == 0, told.stderr[-3000:]
    assert json.loads(told.stdout)["version"]["name"] == name
    version = json.loads(told.stdout)["version"]
    again = asked(home, "--trial", "t0000", "--register", name)
    assert f"is version {version['version']} of {name} already" in again.stderr
    for bad in ("../up", "a/b", "a:b", "x" * 10_000, "two\nlines", "\x1b[31m", "", " "):
        refused = asked(home, "--trial", "t0001", "--register", bad)
        assert refused.returncode == 2, bad
        assert len(refused.stderr.strip().splitlines()) == 1
        assert len(refused.stderr) < 1000
        assert "\x1b" not in refused.stderr
    assert home.sweep("night").tested_trials() == ["t0000"]
