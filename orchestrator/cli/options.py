"""Options and output that several commands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from orchestrator.errors import NoFeasibleTrialError
from orchestrator.pareto.front import Front, find_front
from orchestrator.results.store import Home, Sweep
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
    return place, sweep, job, find_front(sweep.results(), job.objectives)


def print_front(sweep: Sweep, job: Job, front: Front, output: str) -> None:
    """The front on stdout. NoFeasibleTrialError, after JSON was written, when there is none."""
    if output == "json":
        click.echo(json.dumps(front.to_json(sweep.name), indent=1))
    elif front.points:
        metrics = [objective.metric for objective in front.objectives]
        paths = [path for path, _ in job.space.items()]
        knee = front.knee.number if front.knee else -1
        rows = [
            [f"{point.id}{' *' if point.number == knee else ''}"]
            + [shown(point.measurements[metric]) for metric in metrics]
            + [shown(point.choice.get(path, "-")) for path in paths]
            for point in front.points
        ]
        print_table(["trial", *metrics, *(path.split(".", 1)[1] for path in paths)], rows)
    if not front.points:
        raise NoFeasibleTrialError(f"sweep {sweep.name!r} has no trial that is complete and feasible: {counts_text(front)}")


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table on stdout: the same text in a terminal and in a file."""
    widths = [max(len(str(row[column])) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        cells = [
            str(cell).ljust(width) if not column else str(cell).rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def counts_text(front: Front) -> str:
    """`24 complete, 1 failed`."""
    return ", ".join(f"{count} {state.lower()}" for state, count in front.counts.items() if count) or "no trial has ended"


def shown(value: Any) -> str:
    """A value in a table: four significant digits, integers whole."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
