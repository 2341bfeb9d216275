"""The headline's peer, tuned: what somebody who knows Ray and PyTorch well gets out of the same libraries.

    python benchmarks/peers/tune_script_tuned.py --job benchmarks/headline/digits.yaml --folder DIR --minutes 20

No TorchTrainer a trial but a plain class, whose actors are used again (imports, data and the exporter stay warm); no loggers.
The teacher is trained once, before the search, and each dense network once for its rate and temperature: all others load it.
Training has its batches by one index, the recipe's precision and channels_last.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")

import torch
from ray import tune
from torch import nn

from benchmarks.peers.tune_script_search import Asked, arguments, start_ray, tune_config
from benchmarks.peers.tune_script_trial import KeptOnDisk, Script, decode, record, scratch
from orchestrator.spec.job import Job


def load(job: Job, folder: Path, decoded: Path) -> Script:
    """A script that keeps its dense networks in the folder."""

    def fresh(name: str) -> nn.Module:
        return plain.fresh(job.recipe.teacher.model if name == "teacher" else job.recipe.model)

    plain = Script.load(job, decoded, tuned=True)
    return Script.load(job, decoded, tuned=True, kept=KeptOnDisk(folder, fresh))


class Trial(tune.Trainable):  # type: ignore[misc]
    """One trial a step; the actor is used for the next one."""

    def setup(self, config: dict[str, Any], fixed: dict[str, Any] | None = None) -> None:
        assert fixed is not None
        torch.set_num_threads(1)
        self.choice, self.folder = config, Path(fixed["folder"])
        self.script = load(Job.model_validate(fixed["job"]), self.folder, Path(fixed["decoded"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.choice = new_config
        return True

    def step(self) -> dict[str, Any]:
        started = time.time()
        measurements = self.script.trial(self.choice, scratch(self.folder))
        record(self.folder / "trials.jsonl", self.choice, measurements, started)
        return {**measurements, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing is continued."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing is continued."""


def teach(asked: Asked, decoded: Path) -> None:
    """The teacher, on all cores, before anybody needs it."""
    script, recipe = load(asked.job, asked.folder, decoded), asked.job.recipe
    torch.manual_seed(asked.job.seed)
    script.kept("teacher", lambda: script.dense(recipe, recipe.teacher.model, recipe.teacher.training, None))


def main() -> None:
    """Search until the time is up."""
    asked = arguments(__doc__)
    decoded = decode(asked.job, asked.folder)
    teach(asked, decoded)
    at_once = start_ray()
    fixed = {"folder": str(asked.folder), "decoded": str(decoded), "job": asked.job.tree()}
    trial = tune.with_resources(tune.with_parameters(Trial, fixed=fixed), {"CPU": 1})
    tune.Tuner(
        trial,
        tune_config=tune_config(asked, at_once, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(asked.folder),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()


if __name__ == "__main__":
    main()
