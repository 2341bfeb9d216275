"""`orchestrator compare SWEEP_A SWEEP_B`."""

from __future__ import annotations

import json

import click

from orchestrator.cli.options import home_option, output_option
from orchestrator.cli.tables import plain, print_columns, shown
from orchestrator.delivery.compare import Compared, Told, compare
from orchestrator.errors import NoFeasibleTrialError
from orchestrator.results.store import Home
from orchestrator.spec.load import read_resolved


@click.command(
    "compare", epilog="Examples: orchestrator compare quickstart night | orchestrator compare quickstart night -o json"
)
@click.argument("sweep_a")
@click.argument("sweep_b")
@home_option
@output_option
def command(sweep_a: str, sweep_b: str, home: str | None, output: str) -> None:
    """Hold two sweeps with the same objectives against each other.

    Hypervolumes are against one reference, the worse of the two jobs'. "covers" is the share of the other's front that a
    sweep's front is nowhere worse than (C metric, Zitzler and Thiele 1999), "owns" counts points of the front of both together.
    """
    place = Home(home)
    found = compare(_told(place, sweep_a), _told(place, sweep_b))
    if output == "json":
        click.echo(json.dumps(found.to_json(), indent=1))
    else:
        _print(found)
    for caution in found.cautions:
        click.echo(f"warning: {plain(caution, 200)}", err=True)
    if not found.joint:
        raise NoFeasibleTrialError("one of the sweeps must have a trial that is complete and feasible; neither has")


def _told(home: Home, name: str) -> Told:
    sweep = home.existing_sweep(name)
    return Told(sweep.name, read_resolved(sweep.job_file), sweep.proposals(), sweep.results())


def _print(found: Compared) -> None:
    sides = found.sides
    columns = {
        "sweep": [side.sweep for side in sides],
        "trials": [str(side.trials) for side in sides],
        "device-hours": [f"{side.device_hours:.3g}" for side in sides],
        "front": [str(side.front_size) for side in sides],
        "hypervolume": [f"{side.hypervolume:.6g}" for side in sides],
        "covers": ["-" if side.coverage is None else f"{side.coverage:.2f}" for side in sides],
        "owns": [f"{side.owned} of {len(found.joint)}" for side in sides],
    }
    print_columns(columns, {"sweep"})
    references = (f"{o.metric} {shown(value)}" for o, value in zip(found.objectives, found.reference, strict=True))
    click.echo(f"\nreference: {', '.join(references)}")
    if found.joint:
        click.echo("\njoint front:")
        columns = {"sweep": [name for name, _ in found.joint], "trial": [trial.id for _, trial in found.joint]}
        for objective in found.objectives:
            columns[objective.metric] = [shown(trial.measurements[objective.metric]) for _, trial in found.joint]
        print_columns(columns, {"sweep", "trial"})
    click.echo("\n" + ("the jobs differ:" if found.differences else "the jobs are the same, but for budget and name"))
    for difference in found.differences:
        click.echo(f"  {plain(difference, 200)}")
