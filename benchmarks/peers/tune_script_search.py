"""What the headline's two peers share: their arguments, Ray, and OptunaSearch over the job's space."""

from __future__ import annotations

import argparse
import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from optuna.samplers import TPESampler
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from orchestrator.spec.job import Job
from orchestrator.spec.load import load_job
from orchestrator.spec.space import Choice, is_active


@dataclass(frozen=True)
class Asked:
    """What a script was asked for.

    Args:
        folder: absolute; trials are recorded in its `trials.jsonl`, and everything else lies there too.
        ends: when the time is up, in seconds since the epoch.
    """

    job: Job
    folder: Path
    ends: float

    @property
    def trials(self) -> Path:
        return self.folder / "trials.jsonl"


def arguments(description: str | None) -> Asked:
    """Read the command line. The clock runs from here, so that what a script imports and prepares is its own cost."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--folder", required=True)
    parser.add_argument("--began", type=float, default=time.time(), help="when the command was given")
    parser.add_argument("--minutes", type=float, default=20.0)
    args = parser.parse_args()
    return Asked(load_job(args.job, args.overrides), Path(args.folder).absolute(), args.began + 60 * args.minutes)


def start_ray() -> int:
    """A local Ray with a place for each driver that TorchTrainers are started from; returns how many trials run at once."""
    cores = len(os.sched_getaffinity(0))
    ray.init(num_cpus=cores, resources={"driver": 1000}, log_to_driver=False, logging_level="error")
    return cores


def suggest(job: Job, trial: Any) -> None:
    """The job's space, for Optuna. A function of its own: Ray pickles it with the searcher."""
    choice, tree = Choice(), job.recipe.model_dump()
    for path, domain in job.space.items():
        if not is_active(domain, choice, tree):
            continue
        if domain.choices is not None:
            choice[path] = trial.suggest_categorical(path, domain.choices)
        elif domain.kind == "int":
            choice[path] = trial.suggest_int(path, int(domain.low), int(domain.high), step=int(domain.step or 1))
        else:
            choice[path] = trial.suggest_float(path, domain.low, domain.high, step=domain.step, log=domain.log)


def search(job: Job) -> OptunaSearch:
    """TPE over several objectives, as Ray's documentation has it; it begins with the recipe as written, as the product does."""
    baseline = job.space.baseline(job.recipe)
    return OptunaSearch(
        functools.partial(suggest, job),
        metric=[objective.metric for objective in job.objectives],
        mode=["max" if objective.maximized else "min" for objective in job.objectives],
        points_to_evaluate=[dict(baseline)] if baseline else None,
        sampler=TPESampler(seed=job.seed, n_startup_trials=job.search.num_startup),
    )


def tune_config(asked: Asked, at_once: int, **more: Any) -> tune.TuneConfig:
    """As many trials as fit into the time that is left."""
    left = max(1.0, asked.ends - time.time())
    limits = {"num_samples": -1, "max_concurrent_trials": at_once, "time_budget_s": left}
    return tune.TuneConfig(search_alg=search(asked.job), **limits, **more)
