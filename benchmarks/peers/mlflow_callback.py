"""How Ray Tune's users get their curves into MLflow: the callback that comes with Tune, and MLflow's own asynchronous logging.

    uv run python benchmarks/peers/mlflow_callback.py callback|async --database FILE [--trials 48] [--epochs 50] [--metrics 12]

`callback` is `MLflowLoggerCallback` as Tune calls it in its driver: one start, one result an epoch, one end a trial. What Tune
itself adds to a result (times, host, process) is left out, which spares the callback about as many writes again. `async` is
what one tunes it to: `mlflow.log_metrics(..., synchronous=False)` once an epoch and one flush at the end. Nothing else runs, so
that what is timed is tracking alone. Standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_LOGGING_LEVEL": "ERROR"}
sys.path.insert(0, str(Path(__file__).parents[2]))

EXPERIMENT = "peer"


class Trial:
    """What the callback asks of a trial of Tune: its config, its name, and that it is itself."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.config = {"learning_rate": 0.01 * (1 + number), "ratio": number / 100, "bits": 8}

    def __str__(self) -> str:
        return f"trial_{self.number:05d}"


def value(number: int, epoch: int, metric: int) -> float:
    """The made-up value of one point; no two points of a metric share one."""
    return number + epoch / 1000 + metric / 100


def epochs_of(number: int, epochs: int, metrics: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Epoch and values, epoch by epoch."""
    for epoch in range(1, epochs + 1):
        yield epoch, {f"m{metric}": value(number, epoch, metric) for metric in range(metrics)}


def by_callback(uri: str, trials: int, epochs: int, metrics: int) -> float:
    """Seconds of the driver's thread, which is where the callback does everything."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    callback = MLflowLoggerCallback(tracking_uri=uri, experiment_name=EXPERIMENT)
    callback.setup()
    started = time.perf_counter()
    for trial in map(Trial, range(trials)):
        callback.log_trial_start(trial)
        for epoch, seen in epochs_of(trial.number, epochs, metrics):
            callback.log_trial_result(epoch, trial, {**seen, "training_iteration": epoch})
        callback.log_trial_end(trial)
    return time.perf_counter() - started


def asynchronous(uri: str, trials: int, epochs: int, metrics: int) -> float:
    """Seconds until everything is in the database."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    experiment = mlflow.set_experiment(EXPERIMENT).experiment_id
    client = mlflow.MlflowClient()
    started = time.perf_counter()
    runs = []
    for trial in map(Trial, range(trials)):
        runs.append(client.create_run(experiment, run_name=str(trial)).info.run_id)
        for key, setting in trial.config.items():
            client.log_param(runs[-1], key, setting, synchronous=False)
        for epoch, seen in epochs_of(trial.number, epochs, metrics):
            mlflow.log_metrics(seen, step=epoch, run_id=runs[-1], synchronous=False)
    mlflow.flush_async_logging()
    for run in runs:
        client.set_terminated(run)
    return time.perf_counter() - started


def main() -> None:
    """Run one of the two on a database that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=["callback", "async"])
    parser.add_argument("--database", required=True)
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--metrics", type=int, default=12)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    run = by_callback if args.variant == "callback" else asynchronous
    seconds = run(f"sqlite:///{args.database}", args.trials, args.epochs, args.metrics)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
