"""One sweep on real Ray, MLflow and ONNX Runtime, looked at from every side."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from orchestrator.data.sources import Source, read_split
from orchestrator.data.splits import train_val_indices
from orchestrator.results.store import Home
from tests.conftest import REPOSITORY, SMALL, orchestrator

pytestmark = pytest.mark.ray


def validation_split() -> tuple[np.ndarray, np.ndarray]:
    examples = list(read_split(Source("digits"), "train"))
    _, val = train_val_indices(len(examples), 0.25, 0, None, None)
    return np.stack([examples[i][0] for i in val]).astype(np.float32), np.array([examples[i][1] for i in val])


def split_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    examples = list(read_split(Source("digits"), name))
    return np.stack([image for image, _ in examples]).astype(np.float32), np.array([label for _, label in examples])


def accuracy_of(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return float((session.run(None, {"image": images})[0].argmax(1) == labels).mean())


def test_every_trial_ends_and_each_gang_serves_several(finished: Path) -> None:
    results = Home(finished).sweep("small").results()
    assert [result.number for result in results] == list(range(6))
    assert {result.state for result in results} == {"COMPLETE"}
    assert results[0].choice["quantization.method"] == "none"
    assert results[0].choice["pruning.ratio"] == 0.0
    assert len({result.gang for result in results}) == len(os.sched_getaffinity(0)) or len(results) < 6


def test_the_measured_file_is_the_one_on_disk(finished: Path) -> None:
    images, labels = validation_split()
    sweep = Home(finished).sweep("small")
    for result in sweep.results():
        file = sweep.trial_folder(result.number) / "model.onnx"
        assert result.measurements["size_bytes"] == file.stat().st_size
        assert result.measurements["accuracy"] == accuracy_of(file, images, labels)
        assert 0 < result.measurements["latency_ms"] <= result.measurements["latency_ms_p95"]


def test_a_trial_gives_the_same_numbers_alone_as_in_a_gang(finished: Path, tmp_path: Path) -> None:
    """The last trial of the sweep, run again by `trial` in a fresh process with an empty stage store."""
    result = Home(finished).sweep("small").result(5)
    assert result is not None
    pins = [f"--set=recipe.{path}={value}" for path, value in result.choice.items()]
    again = orchestrator("trial", "jobs/quickstart.yaml", *SMALL, *pins, "--to", tmp_path / "t", home=tmp_path / "home")
    assert again.returncode == 0, again.stderr[-2000:]
    told = json.loads(again.stdout)
    changing = {"latency_ms", "latency_ms_p95", "latency_ms_low", "latency_ms_high"}
    assert {k: v for k, v in told["measurements"].items() if k not in changing} == {
        k: v for k, v in result.measurements.items() if k not in changing
    }
    assert told["curve"] == result.curve
    file = Home(finished).sweep("small").trial_folder(5) / "model.onnx"
    assert (tmp_path / "t" / "model.onnx").read_bytes() == file.read_bytes()


def test_front_json_keeps_its_contract(finished: Path) -> None:
    shown = orchestrator("front", "small", "-o", "json", home=finished)
    assert shown.returncode == 0
    front = json.loads(shown.stdout)
    assert set(front) >= {"sweep", "objectives", "hypervolume", "trials", "points"}
    assert front["trials"] == {"complete": 6, "infeasible": 0, "stopped": 0, "failed": 0}
    assert [objective["metric"] for objective in front["objectives"]] == ["accuracy", "size_bytes", "latency_ms"]
    assert sum(point["knee"] for point in front["points"]) == 1
    costs = [
        [-p["measurements"]["accuracy"], p["measurements"]["size_bytes"], p["measurements"]["latency_ms"]]
        for p in front["points"]
    ]
    for one in costs:
        assert not any(all(a <= b for a, b in zip(other, one, strict=True)) and other != one for other in costs)


def test_nobody_but_us_talks(finished: Path) -> None:
    lines = (finished / "stderr.txt").read_text().splitlines()
    strangers = [line for line in lines if not re.match(r"\[\d+:\d\d\] |\d+ trials in |sweep ", line)]
    assert strangers == []
    assert (finished / "stdout.txt").read_text().splitlines()[0].startswith("trial")


def test_a_finished_sweep_shows_its_front_again_without_ray(finished: Path) -> None:
    again = orchestrator("run", "jobs/quickstart.yaml", "--name", "small", "--trials", "6", *SMALL, home=finished)
    assert again.returncode == 0
    assert "has finished already" in again.stderr
    assert again.stdout == (finished / "stdout.txt").read_text()


def test_another_job_under_the_same_name_is_refused_with_the_difference(finished: Path) -> None:
    other = [*SMALL, "--set=recipe.training.batch_size=32"]
    refused = orchestrator("run", "jobs/quickstart.yaml", "--name", "small", "--trials", "6", *other, home=finished)
    assert refused.returncode == 2
    assert "recipe.training.batch_size: 64 -> 32" in refused.stderr
    assert len(Home(finished).sweep("small").results()) == 6


def test_mlflow_holds_one_parent_and_one_child_a_trial_with_the_same_keys(finished: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=Home(finished).tracking_uri)
    experiment = client.get_experiment_by_name("orchestrator")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    parents = [run for run in runs if run.data.tags["orchestrator.role"] == "sweep"]
    children = [run for run in runs if run.data.tags["orchestrator.role"] == "trial"]
    assert len(parents) == 1
    assert sorted(run.data.tags["orchestrator.trial"] for run in children) == [f"t{number:04d}" for number in range(6)]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert len({frozenset(run.data.params) for run in children}) == 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    front = json.loads(orchestrator("front", "small", "-o", "json", home=finished).stdout)
    marked = {run.data.tags["orchestrator.trial"] for run in children if run.data.tags["orchestrator.pareto"] == "true"}
    assert marked == {point["trial"] for point in front["points"]}
    assert parents[0].data.metrics["front/size"] == len(front["points"])
    assert parents[0].data.metrics["front/hypervolume"] == pytest.approx(front["hypervolume"])
    names = {artifact.path for artifact in client.list_artifacts(parents[0].info.run_id)}
    assert {"report.html", "trials.parquet", "job.yaml"} <= names
    assert not any("secret" in key.lower() or "token" in key.lower() for run in runs for key in run.data.params)


def test_pick_tests_once_and_registers_a_model_that_reproduces_the_record(finished: Path) -> None:
    first = orchestrator("pick", "small", "--knee", "--register", "digits", "-o", "json", home=finished)
    assert first.returncode == 0, first.stderr[-2000:]
    told = json.loads(first.stdout)
    assert told["version"]["alias"] == "champion"
    images, labels = split_of("test")
    assert told["test"]["num_test_samples"] == len(labels)
    assert told["test"]["accuracy"] == accuracy_of(Path(told["file"]), images, labels)

    loaded = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _LOAD, told["version"]["uri"], told["version"]["tracking_uri"]],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert loaded.returncode == 0, loaded.stderr[-2000:]
    assert float(loaded.stdout.split()[-1]) == told["test"]["accuracy"]

    record = Home(finished).sweep("small").trial_folder(int(told["trial"][1:])) / "test.json"
    before = record.read_bytes()
    size = told["measurements"]["size_bytes"]
    here = ("--trial", told["trial"], "--where", f"size_bytes <= {size}")
    second = json.loads(orchestrator("pick", "small", *here, "-o", "json", home=finished).stdout)
    assert second["test"] == told["test"]
    none = orchestrator("pick", "small", "--knee", "--where", "size_bytes < 1", home=finished)
    assert (none.returncode, "the nearest is t" in none.stderr) == (4, True), none.stderr
    assert record.read_bytes() == before
    other = next(f"t{n:04d}" for n in range(6) if f"t{n:04d}" != told["trial"])
    assert f"opened for {told['trial']}" in orchestrator("pick", "small", "--trial", other, home=finished).stderr


_LOAD = """
import sys, numpy as np, mlflow
from orchestrator.data.sources import Source, read_split
mlflow.set_tracking_uri(sys.argv[2]); mlflow.set_registry_uri(sys.argv[2])
examples = list(read_split(Source("digits"), "test"))
images = np.stack([image for image, _ in examples]).astype(np.float32)
labels = np.array([label for _, label in examples])
output = mlflow.pyfunc.load_model(sys.argv[1]).predict(images)
logits = np.asarray(next(iter(output.values())) if isinstance(output, dict) else output)
print(repr(float((logits.argmax(1) == labels).mean())))
"""


def test_the_report_is_one_file_that_needs_no_network(finished: Path, tmp_path: Path) -> None:
    page = (finished / "sweeps" / "small" / "report.html").read_text()
    assert "<script src=" not in page
    assert "t0000" in page
    assert str(REPOSITORY) not in page
    drawn = orchestrator("report", "small", "--png", tmp_path / "front.png", home=finished)
    assert drawn.returncode == 0
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_holds_every_trial(finished: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(finished / "sweeps" / "small" / "trials.parquet")
    assert table["trial"].to_pylist() == [f"t{number:04d}" for number in range(6)]
    assert "measurements.accuracy" in table.column_names


def workers_of(driver: int) -> list[int]:
    """The processes of gangs that descend from a driver."""
    parents, workers = dict[int, int](), list[int]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number = int(stat.parent.name)
            parents[number] = int(stat.read_text().rpartition(")")[2].split()[1])
            if b"RayTrainWorker" in (stat.parent / "cmdline").read_bytes():
                workers.append(number)

    def descends(number: int) -> bool:
        return number == driver or (number in parents and descends(parents[number]))

    return [number for number in workers if descends(number)]


def kill_a_worker_that_trains(driver: int, stages: Path) -> None:
    """kill -9, once a network is trained."""
    for _ in range(1200):
        decoded, under_way = any(stages.glob("*/images.arrow")), any(stages.glob("*.partial"))
        if decoded and under_way:
            os.kill(workers_of(driver)[-1], signal.SIGKILL)
            return
        time.sleep(0.05)
    raise AssertionError("no worker ever trained")


def test_ctrl_c_keeps_what_has_ended_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """Also a gang of two workers under DDP, one of which is killed, and whose processes are started anew in the second run; and
    a constraint that reaches the results."""
    args = ["run", "jobs/quickstart.yaml", "--name", "cut", "--trials", "4", *SMALL, "--set=resources.workers_per_gang=2"]
    args += ["--set=constraints.size_bytes.max=90000"]
    environment = {**os.environ, "ORCHESTRATOR_HOME": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli.main", *args],
        cwd=REPOSITORY,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "gangs started" in line:
                kill_a_worker_that_trains(process.pid, tmp_path / "cache" / "stages")
            if "t0000 " in line:
                process.send_signal(signal.SIGINT)
                break
        process.stderr.read()
        assert process.wait(timeout=120) == 130
    sweep = Home(tmp_path).sweep("cut")
    kept = {result.number: result.to_json() for result in sweep.results()}
    assert 1 <= len(kept) < 4
    assert kept[0]["attempt"] == "a2", "its first workers were lost, and it was run again"
    done = orchestrator(*args, "--set=gangs.recycle_after=2", home=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("g0 is started anew") == 1
    results = {result.number: result for result in sweep.results()}
    assert sorted(results) == [0, 1, 2, 3]
    assert {number: results[number].to_json() for number in kept} == kept
    assert {result.state for result in results.values()} == {"COMPLETE"}
    assert {results[number].attempt for number in results if number not in kept} == {"a1"}, (
        "nothing is lost when it is recycled"
    )
    for result in results.values():
        assert result.constraints["size_bytes"] == result.measurements["size_bytes"] - 90000
        assert result.feasible == (result.measurements["size_bytes"] <= 90000)
