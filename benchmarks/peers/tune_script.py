"""The headline's peer as a competent user writes it: Ray Tune with OptunaSearch, and a TorchTrainer for each trial.

    python benchmarks/peers/tune_script.py --job benchmarks/headline/digits.yaml --folder DIR --minutes 20

This is the recipe of Ray's documentation for Train in Tune: a function trial starts a TorchTrainer, whose worker trains and
reports. Each trial trains its teacher and its dense network, as scripts do. Trials are recorded in DIR/trials.jsonl.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from benchmarks.peers.tune_script_search import arguments, start_ray, tune_config
from benchmarks.peers.tune_script_trial import Script, decode, record, scratch
from orchestrator.spec.job import Job


def worker(config: dict[str, Any]) -> None:
    """In the TorchTrainer's worker: one trial."""
    started, folder = time.time(), Path(config["folder"])
    torch.set_num_threads(1)
    script = Script.load(Job.model_validate(config["job"]), Path(config["decoded"]))
    measurements = script.trial(config["choice"], scratch(folder))
    record(folder / "trials.jsonl", config["choice"], measurements, started)
    ray.train.report(measurements)


def main() -> None:
    """Search until the time is up."""
    asked = arguments(__doc__)
    decoded = decode(asked.job, asked.folder)
    at_once = start_ray()
    fixed = {"folder": str(asked.folder), "decoded": str(decoded), "job": asked.job.tree()}

    def driver(config: dict[str, Any]) -> None:
        TorchTrainer(
            worker,
            train_loop_config={**fixed, "choice": config},
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(
                name=f"train-{tune.get_context().get_trial_id()}",
                storage_path=str(asked.folder / "train"),
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    tune.Tuner(
        tune.with_resources(driver, {"driver": 1}),
        tune_config=tune_config(asked, at_once),
        run_config=tune.RunConfig(name="tune", storage_path=str(asked.folder), verbose=0),
    ).fit()


if __name__ == "__main__":
    main()
