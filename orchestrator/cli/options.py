"""Options that several commands share, and how they are read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import click

from orchestrator.errors import UsageError, nearest_name
from orchestrator.pareto.front import Front, find_front, originals
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.load import read_resolved

home_option = click.option(
    "--home",
    type=click.Path(file_okay=False),
    envvar="ORCHESTRATOR_HOME",
    help="Folder of sweeps, caches and MLflow's database. [default: .orchestrator]",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Override a value of the job, e.g. recipe.training.epochs=3.",
)
output_option = click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
verbose_option = click.option("--verbose", is_flag=True, help="Let Ray, MLflow and torch talk as well.")


def load_sweep(home: str | None, name: str) -> tuple[Home, Sweep, Job, Front]:
    """A sweep by name, with its job and its front."""
    place = Home(home)
    sweep = place.existing_sweep(name)
    job = read_resolved(sweep.job_file)
    return place, sweep, job, find_front(sweep.results(), job.objectives, originals(sweep.proposals()))


def find_trial(sweep: str, results: Sequence[TrialResult], trial: str) -> TrialResult:
    """An ended trial by its id; UsageError with the nearest one where there is none."""
    found = {result.id: result for result in results}
    if trial not in found:
        near = nearest_name(trial, list(found))
        hint = f"; did you mean {near!r}?" if near else f"; `orchestrator front {sweep} --all` shows them" if found else ""
        raise UsageError(f"--trial must name an ended trial of {sweep!r}, as t0007; given {trial!r}{hint}")
    return found[trial]


def read_weights(text: str) -> dict[str, float]:
    """`a=1,b=2` as a mapping; UsageError for another form, a weight that is negative or infinite, or none above 0."""
    weights = {}
    for part in text.split(","):
        metric, _, number = part.partition("=")
        try:
            weights[metric.strip()] = float(number)
        except ValueError:
            raise UsageError(f"--weights must look like metric=number,metric=number; given {part!r}") from None
    if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
        raise UsageError(f"--weights must be finite, 0 or more, and one above 0; given {text!r}")
    return weights
