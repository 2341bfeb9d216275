"""What tests of MLflow share: a made sweep with files that are models, a server, and all that a server shows of a sweep."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.made_sweep import make_sweep
from orchestrator.pareto.front import find_front
from orchestrator.results.store import Home, Sweep
from orchestrator.spec.job import Job
from orchestrator.spec.load import read_resolved


def made(home: Home, trials: int = 24, epochs: int = 5, seed: int = 0) -> tuple[Sweep, Job]:
    """A sweep from facts, with a `model.onnx` in the folder of each trial of its front."""
    sweep = make_sweep(home.path, trials, seed, epochs)
    job = read_resolved(sweep.job_file)
    for point in find_front(sweep.results(), job.objectives).points:
        write_model(sweep.trial_folder(point.number) / "model.onnx", seed=point.number)
    return sweep, job


def write_model(path: Path, seed: int) -> None:
    """A linear classifier of images (1, 8, 8) into ten classes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(seed).standard_normal((64, 10)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "weights"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(weights, "weights")],
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString())
    onnx.checker.check_model(str(path))


def on_server(client: Any, job: Job) -> dict[str, Any]:
    """All that a server shows of a sweep, without what it made up itself: ids, and when it was told."""
    experiment = client.get_experiment_by_name(job.tracking.experiment)
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    parents = {
        run.info.run_id: run.data.tags["orchestrator.sweep"] for run in runs if "orchestrator.trial" not in run.data.tags
    }
    models = client.search_logged_models([experiment.experiment_id])
    return {
        "runs": {run.data.tags.get("orchestrator.trial", "sweep"): _run(client, run, parents) for run in runs},
        "models": {
            model.tags["orchestrator.trial"]: {
                "name": model.name,
                "status": str(model.status),
                "tags": dict(model.tags),
                "params": dict(model.params),
                "metrics": sorted((m.key, m.value, m.step, m.timestamp) for m in model.metrics or []),
            }
            for model in models
        },
        "counts": [len(runs), len(models)],
    }


def _run(client: Any, run: Any, parents: dict[str, str]) -> dict[str, Any]:
    history = {
        key: [(point.step, point.value, point.timestamp) for point in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
    tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.user"}
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "times": [run.info.start_time, run.info.end_time],
        "tags": {key: parents.get(value, value) for key, value in tags.items() if not key.startswith("orchestrator.sha256")},
        "params": dict(run.data.params),
        "metrics": {key: sorted(points) for key, points in history.items()},
        "inputs": sorted((i.dataset.name, i.dataset.digest, i.tags[0].value) for i in run.inputs.dataset_inputs),
        "num_outputs": len(run.outputs.model_outputs) if run.outputs else 0,
        "files": sorted(file.path for file in client.list_artifacts(run.info.run_id)),
    }


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(command: Sequence[str], url: str, log: Path) -> Iterator[str]:
    """A process that answers at a URL while the block runs. What it says goes to `log`."""
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with log.open("wb") as said, subprocess.Popen(
        [*command], stdout=said, stderr=said, env=environment, start_new_session=True
    ) as process:  # fmt: skip
        try:
            _wait(url, process, log)
            yield url
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} has ended: {log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise RuntimeError(f"nothing answers at {url}: {log.read_text()[-3000:]}")


@contextlib.contextmanager
def mlflow_server(store: str, files: Path, log: Path) -> Iterator[str]:
    """A real `mlflow server` on a free port of the loopback."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        store,
        "--artifacts-destination",
        files.as_uri(),
    ]
    with serving(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"], f"http://127.0.0.1:{port}", log
    ) as url:
        yield url
