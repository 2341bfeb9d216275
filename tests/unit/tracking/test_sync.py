"""`orchestrator sync`: MLflow as the facts have it; real databases, and a real server on the loopback."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.made_sweep import HOSTILE
from orchestrator.delivery.sync import sync
from orchestrator.errors import UnreachableError, UsageError
from orchestrator.pareto.front import find_front
from orchestrator.results.files import exclusive
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.spec.job import Job
from orchestrator.tracking.connection import connect
from orchestrator.tracking.registry import check_names, describe, register
from tests.conftest import orchestrator
from tests.unit.tracking.shown import made, mlflow_server, on_server, write_model

SECRET = "hunter2-and-more"


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Sweep, Job]:
    """A made sweep, shown in the embedded database: for tests that only look, or put back what they change."""
    home = Home(tmp_path_factory.mktemp("synced"))
    sweep, job = made(home)
    sync(home, sweep, job)
    return home, sweep, job


def dump(home: Home) -> dict[str, list[Any]]:
    """Every row of every table."""
    with contextlib.closing(sqlite3.connect(home.path / "mlflow.db")) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        return {name: sorted(map(repr, database.execute(f'select * from "{name}"'))) for name in tables}


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_sweep_that_runs_is_left_to_what_runs_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    sweep, job = made(home, trials=2, epochs=1)
    with exclusive(sweep.lock_file), pytest.raises(UsageError, match="must not be running"):
        sync(home, sweep, job)
    assert not (home.path / "mlflow.db").exists()


@pytest.mark.slow
def test_a_second_sync_writes_nothing(synced: tuple[Home, Sweep, Job]) -> None:
    home, sweep, job = synced
    before, artefacts, facts = dump(home), files(home.artifacts), files(sweep.path)
    assert len(before["runs"]) == 25
    done = sync(home, sweep, job)
    assert (done.trials, done.runs, done.moved, done.models) == (24, 0, 0, 0)
    assert dump(home) == before
    assert files(home.artifacts) == artefacts
    assert files(sweep.path) == facts


@pytest.mark.slow
def test_all_that_the_facts_have_is_shown(synced: tuple[Home, Sweep, Job]) -> None:
    home, sweep, job = synced
    shown = on_server(connect(home, None), job)
    front = find_front(sweep.results(), job.objectives)
    on_front = {run for run, told in shown["runs"].items() if told["tags"].get("orchestrator.pareto") == "true"}
    assert on_front == {point.id for point in front.points} == set(shown["models"])
    parent = shown["runs"]["sweep"]
    assert parent["files"] == ["job.yaml", "report.html", "space.yaml", "trials.parquet"]
    assert parent["metrics"]["front/hypervolume"][-1][:2] == (24, pytest.approx(front.hypervolume))
    assert parent["status"] == "FINISHED"
    assert [context for *_, context in parent["inputs"]] == [context for *_, context in shown["runs"]["t0000"]["inputs"]]
    assert sorted(context for *_, context in parent["inputs"]) == ["train", "val"]
    assert len({frozenset(told["params"]) for run, told in shown["runs"].items() if run != "sweep"}) == 1
    names = {result.choice["model.weights"]: shown["runs"][result.id]["params"]["model.weights"] for result in sweep.results()}
    assert set(HOSTILE) < set(names)
    for name, as_shown in names.items():
        assert as_shown == name if len(name) <= 2000 else as_shown.endswith("... (10000 characters)")
    for trial, model in shown["models"].items():
        measured = {o.metric: next(p for p in front.points if p.id == trial).measurements[o.metric] for o in job.objectives}
        assert {key: value for key, value, *_ in model["metrics"]} == pytest.approx(measured)
        assert model["status"] == "READY"
        assert shown["runs"][trial]["num_outputs"] == 1


@pytest.mark.slow
def test_a_database_that_was_lost_is_rebuilt_whole(synced: tuple[Home, Sweep, Job], tmp_path: Path) -> None:
    home, _, job = synced
    copy = Home(tmp_path / "home")
    shutil.copytree(home.path / "sweeps", copy.path / "sweeps")
    sweep = copy.sweep("made")
    sync(copy, sweep, job)
    before = on_server(connect(copy, None), job)
    moved = Home(tmp_path / "moved")  # MLflow holds on to a database that it has opened: lost is a home without one
    shutil.copytree(copy.path / "sweeps", moved.path / "sweeps")
    sync(moved, moved.sweep("made"), job)
    assert on_server(connect(moved, None), job) == before
    assert before == on_server(connect(home, None), job)


@pytest.mark.slow
def test_a_model_is_the_file_that_was_measured_and_can_be_loaded(synced: tuple[Home, Sweep, Job]) -> None:
    import mlflow
    import onnxruntime

    home, sweep, job = synced
    client = connect(home, None)
    experiment = client.get_experiment_by_name(job.tracking.experiment).experiment_id
    (model, *_) = client.search_logged_models([experiment])
    folder = Path(model.artifact_location.removeprefix("file://"))
    file = sweep.path / "trials" / model.tags["orchestrator.trial"] / "model.onnx"
    assert (folder / "model.onnx").read_bytes() == file.read_bytes()
    loaded = mlflow.pyfunc.load_model(str(folder))
    example = loaded.input_example
    assert example["image"].shape == (2, 1, 8, 8)
    assert example["image"].min() == 0.0
    assert example["image"].max() == 255.0
    logits = onnxruntime.InferenceSession(str(file)).run(None, {"image": example["image"].astype(np.float32)})[0]
    np.testing.assert_array_equal(loaded.predict(example)["logits"], logits)
    assert loaded.metadata.signature.inputs.to_dict()[0]["tensor-spec"]["shape"] == (-1, 1, 8, 8)


@pytest.mark.slow
def test_a_model_that_leaves_the_front_stays_and_says_so(tmp_path: Path) -> None:
    home = Home(tmp_path)
    sweep, job = made(home, trials=6, epochs=1)
    sync(home, sweep, job)
    client = connect(home, None)
    before = on_server(client, job)["models"]
    best = {"accuracy": 1.0, "size_bytes": 10.0, "latency_ms": 1e-6}
    sweep.propose(Proposal(6, {}, {}))
    sweep.finish(TrialResult(6, "COMPLETE", {}, best, started=1.8e9, ended=1.8e9 + 1))
    write_model(sweep.trial_folder(6) / "model.onnx", seed=6)
    done = sync(home, sweep, job)
    assert (done.runs, done.models) == (1, 1)
    assert done.moved >= len(before)
    after = on_server(client, job)["models"]
    assert set(after) == {*before, "t0006"}
    assert {trial: model["tags"]["orchestrator.pareto"] for trial, model in after.items()} == {
        **dict.fromkeys(before, "false"),
        "t0006": "true",
    }
    assert dump(home) == (sync(home, sweep, job), dump(home))[1]


@pytest.mark.slow
def test_a_pick_registers_the_model_that_is_there(tmp_path: Path) -> None:
    home = Home(tmp_path)
    sweep, job = made(home, trials=6, epochs=1)
    sync(home, sweep, job)
    client = connect(home, None)
    experiment = client.get_experiment_by_name(job.tracking.experiment).experiment_id
    (model, *_) = client.search_logged_models([experiment])
    number = int(model.tags["orchestrator.trial"][1:])
    file = sweep.trial_folder(number) / "model.onnx"
    for count in (1, 2):
        version = register(home, None, model.source_run_id, file, "digits 🚀", "champion", {"note": "x" * 9000})
        assert (version.version, version.uri) == (str(count), "models:/digits 🚀@champion")
    held = client.get_model_version_by_alias("digits 🚀", "champion")
    assert (held.source, held.run_id) == (f"models:/{model.model_id}", model.source_run_id)
    assert len(client.search_logged_models([experiment])) == len(find_front(sweep.results(), job.objectives).points)
    card = tmp_path / "card.md"
    card.write_text("# digits")
    describe(home, None, version, card)
    assert client.get_model_version("digits 🚀", "2").description == "# digits"
    assert (Path(model.artifact_location.removeprefix("file://")) / "card.md").read_text() == "# digits"
    assert held.tags["note"].endswith("(9000 characters)")
    off_front = next(r for r in sweep.results() if r.feasible and r not in find_front(sweep.results(), job.objectives).points)
    write_model(sweep.trial_folder(off_front.number) / "model.onnx", seed=9)
    run = next(r for r in client.search_runs([experiment]) if r.data.tags.get("orchestrator.trial") == off_front.id)
    register(home, None, run.info.run_id, sweep.trial_folder(off_front.number) / "model.onnx", "m", "a", {})
    made_anew = client.get_logged_model(client.get_model_version_by_alias("m", "a").source.removeprefix("models:/"))
    assert made_anew.tags["orchestrator.pareto"] == "false"
    assert {m.key for m in made_anew.metrics} >= {"accuracy", "size_bytes", "latency_ms"}


@pytest.mark.parametrize(
    ("name", "alias"), [("a/b", "a"), ("", "a"), ("x" * 10_000, "a"), ("m", "latest"), ("m", "v3"), ("m", "a b")]
)
def test_names_that_mlflow_would_refuse_are_refused_with_a_reason(name: str, alias: str) -> None:
    with pytest.raises(UsageError, match="must be") as refused:
        check_names(name, alias)
    assert len(str(refused.value)) < 300


@pytest.mark.slow
def test_another_server_shows_the_same_and_no_password_is_kept(synced: tuple[Home, Sweep, Job], tmp_path: Path) -> None:
    home, sweep, job = synced
    before, facts = on_server(connect(home, None), job), files(sweep.path)
    with mlflow_server(f"sqlite:///{tmp_path}/server.db", tmp_path / "files", tmp_path / "log.txt") as url:
        secret = url.replace("://", f"://user:{SECRET}@")
        told: list[tuple[str, int, int]] = []
        done = sync(home, sweep, job, secret, lambda *step: told.append(step))
        assert done.tracking_uri == url.replace("://", "://user@")
        assert (done.runs, done.models) == (24, len(before["models"]))
        assert told[23] == ("trials", 24, 24)
        client = connect(home, secret)
        assert on_server(client, job) == before
        again = sync(home, sweep, job, secret)
        assert (again.runs, again.moved, again.models) == (0, 0, 0)
        assert on_server(client, job) == before
    assert files(sweep.path) == facts
    kept = [path for root in (tmp_path, home.path) for path in root.rglob("*") if path.is_file() and path.name != "log.txt"]
    assert len(kept) > 60
    assert [path for path in kept if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_named_without_its_password(synced: tuple[Home, Sweep, Job]) -> None:
    home, sweep, job = synced
    with pytest.raises(UnreachableError) as refused:
        sync(home, sweep, job, f"http://user:{SECRET}@127.0.0.1:9")
    assert SECRET not in str(refused.value)
    assert "user@127.0.0.1:9" in str(refused.value)


@pytest.mark.slow
def test_the_command_shows_a_sweep(synced: tuple[Home, Sweep, Job]) -> None:
    home, _, _ = synced
    done = orchestrator("sync", "made", "-o", "json", home=home.path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["sweep"], told["trials"], told["runs"]) == ("made", 24, 0)
    missing = orchestrator("sync", "maid", home=home.path)
    assert missing.returncode == 2
    assert "did you mean 'made'?" in missing.stderr
