"""`orchestrator pick SWEEP`."""

from __future__ import annotations

import json

import click

from orchestrator.cli.options import home_option, load_sweep, output_option, read_weights
from orchestrator.cli.tables import shown
from orchestrator.cli.where import metrics_of, none_satisfies, satisfying
from orchestrator.errors import UsageError
from orchestrator.pareto.condition import parse_condition
from orchestrator.pareto.front import Front


@click.command(
    "pick",
    epilog="Examples: orchestrator pick quickstart --knee --register digits | "
    'orchestrator pick quickstart --best accuracy --where "size_bytes<5e4"',
)
@click.argument("sweep")
@click.option("--knee", is_flag=True, help="The point furthest below the plane through the front's extremes.")
@click.option("--trial", metavar="ID", help="This trial, e.g. t0007.")
@click.option("--best", metavar="METRIC", help="The best by one objective.")
@click.option("--weights", metavar="M=W,...", help="The best by weighted objectives.")
@click.option("--where", metavar="CONDITION", help="Among the trials that satisfy this, as size_bytes<1e6 or macs<1e7.")
@click.option("--register", "name", metavar="NAME", help="Register it as the next version of this model in MLflow.")
@click.option("--alias", default="champion", show_default=True, help="Alias that the version gets.")
@home_option
@output_option
def command(
    sweep: str,
    knee: bool,
    trial: str | None,
    best: str | None,
    weights: str | None,
    where: str | None,
    name: str | None,
    alias: str,
    home: str | None,
    output: str,
) -> None:
    """Choose a model of SWEEP, evaluate the test split for it once, and register it if asked.

    A second pick of the same trial reads the record. Every other model that is tested is a chance to fool oneself: how many
    were is said, and recorded.
    """
    if sum([knee, trial is not None, best is not None, weights is not None]) != 1:
        raise UsageError("must give exactly one of --knee, --trial, --best, --weights")
    place, found, job, front = load_sweep(home, sweep)
    front = _part(sweep, front, where) if where is not None else front
    from orchestrator.delivery.pick import Wish, choose, open_test_once, register_pick

    click.echo("opening the test split", err=True)
    result = choose(front, Wish(knee, trial, best, read_weights(weights) if weights is not None else None))
    test, recorded = open_test_once(place, found, result)
    others = [other for other in found.tested_trials() if other != result.id]
    if others:
        click.echo(f"warning: the test split was opened for {', '.join(others)} of this sweep as well", err=True)
    if name:
        click.echo(f"registering {result.id} as {name}", err=True)
    version = register_pick(place, found, job, result, test, name, alias) if name else None
    file = found.trial_folder(result.number) / "model.onnx"
    if output == "json":
        told = {
            "trial": result.id,
            "file": str(file),
            "measurements": result.measurements,
            "choice": result.choice,
            "test": test,
        }
        click.echo(json.dumps(told | {"version": vars(version) if version else None}, indent=1))
        return
    click.echo(f"{result.id}  {file}")
    for objective in job.objectives:
        click.echo(f"  {objective.metric:<24}{shown(result.measurements[objective.metric])}")
    note = f"{test['num_test_samples']} images{', as recorded' if recorded else ''}"
    click.echo(f"  {'test accuracy':<24}{shown(test['accuracy'])}  ({note})")
    if version is not None:
        click.echo(f"registered {version.name} version {version.version} as {version.uri} in {version.tracking_uri}")


def _part(sweep: str, front: Front, where: str) -> Front:
    condition = parse_condition(where, metrics_of(front), "--where")
    part = satisfying(front, condition)
    if front.points and not part.points:
        raise none_satisfies(sweep, front, condition)
    return part
