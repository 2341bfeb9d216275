"""`orchestrator pick SWEEP`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.options import find_trial, home_option, load_sweep, output_option, read_weights
from orchestrator.cli.tables import plain, print_table, shown
from orchestrator.cli.where import metrics_of, none_satisfies, satisfying
from orchestrator.errors import UsageError
from orchestrator.pareto.condition import parse_condition
from orchestrator.pareto.front import Front, no_feasible
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.job import Job

if TYPE_CHECKING:
    from orchestrator.delivery.pick import Holder
    from orchestrator.tracking.registry import Version


@click.command(
    "pick",
    epilog="Examples: orchestrator pick quickstart --knee --register digits | "
    'orchestrator pick quickstart --best accuracy --where "size_bytes<5e5"',
)
@click.argument("sweep")
@click.option("--knee", is_flag=True, help="The point furthest below the plane through the front's extremes.")
@click.option("--trial", metavar="ID", help="This trial, e.g. t0007.")
@click.option("--best", metavar="METRIC", help="The best by one objective.")
@click.option("--weights", metavar="M=W,...", help="The best by weighted objectives.")
@click.option("--where", metavar="CONDITION", help="Among the trials that satisfy this, as size_bytes<1e6 or macs<1e7.")
@click.option("--register", "name", metavar="NAME", help="Register it as the next version of this model in MLflow.")
@click.option("--alias", default="champion", show_default=True, help="Alias that the version gets.")
@click.option("--yes", is_flag=True, help="Move the alias off the version that holds it without asking.")
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
    yes: bool,
    home: str | None,
    output: str,
) -> None:
    """Choose a model of SWEEP, evaluate the test split for it once, and register it if asked.

    A second pick of the same trial reads the record. Every other model that is tested is a chance to fool oneself: how many
    were is said, and recorded. What holds the alias now is shown beside it, and is asked about before it is replaced.
    """
    if sum([knee, trial is not None, best is not None, weights is not None]) != 1:
        raise UsageError("must give exactly one of --knee, --trial, --best, --weights")
    place, found, job, whole = load_sweep(home, sweep)
    front = _to_choose_from(found, job, whole, trial, where)
    from orchestrator.delivery.pick import Wish, choose, holder_of, register_pick
    from orchestrator.tracking.registry import check_names

    wish = Wish(knee, trial, best, read_weights(weights) if weights is not None else None, where)
    result = choose(front, wish)
    held = None
    if name is not None:
        check_names(name, alias)
        held = holder_of(place, job, name, alias)
        _may_be_asked(held, held is not None and held.is_of(found, job, result), yes)
    test, recorded, others = _tested(place, found, result)
    if output == "table":
        _print(found, job, result, test, recorded)
    version: Version | None = None
    if held is not None and held.is_of(found, job, result):
        click.echo(f"{result.id} is version {held.version.version} of {plain(name)} already", err=True)
        version = held.version
    elif name is not None and _agreed(held, job, result, test, yes):
        click.echo(f"registering {result.id} as {plain(name)}", err=True)
        version = register_pick(place, found, job, whole, result, name, alias, wish.phrase())
    if output == "json":
        click.echo(json.dumps(_tree(found, result, test, others, held, version), indent=1))
    elif version is not None:
        click.echo(f"registered {plain(version.name)} version {version.version} as {plain(version.uri, 300)}")
        click.echo(f"  in {version.tracking_uri}")


def _to_choose_from(sweep: Sweep, job: Job, front: Front, trial: str | None, where: str | None) -> Front:
    """The sweep's front, or that of the trials that satisfy a condition; there is something on it."""
    if trial is not None:
        find_trial(sweep.name, sweep.results(), trial)  # an unknown one is named before anything else is complained about
    if not front.points:
        raise no_feasible(sweep.name, front, job.constraints)
    if where is None:
        return front
    condition = parse_condition(where, metrics_of(front), "--where")
    part = satisfying(front, condition)
    if not part.points:
        raise none_satisfies(sweep.name, front, condition)
    return part


def _tested(home: Home, sweep: Sweep, result: TrialResult) -> tuple[dict[str, Any], bool, list[str]]:
    """What the test split says, whether that was on record, and the other trials for which it was opened."""
    from orchestrator.delivery.pick import open_test_once

    click.echo("opening the test split", err=True)
    test, recorded = open_test_once(home, sweep, result)
    others = [other for other in sweep.tested_trials() if other != result.id]
    if others:
        click.echo(f"warning: the test split was opened for {', '.join(others)} of this sweep as well", err=True)
    return test, recorded, others


def _may_be_asked(held: Holder | None, same: bool, yes: bool) -> None:
    """Refuse to replace a version where nobody can be asked: before the test split is opened, and not after."""
    if held is None or same or yes or sys.stdin.isatty():
        return
    version = held.version
    raise UsageError(
        f"version {version.version} of {version.name!r} holds the alias {version.alias!r}, and nobody can be asked here: "
        "--yes must be added to move it, or another --alias be named"
    )


def _agreed(held: Holder | None, job: Job, result: TrialResult, test: Mapping[str, Any], yes: bool) -> bool:
    """Show what would be replaced beside what replaces it, and ask, unless the answer is given."""
    if held is None:
        return True
    from orchestrator.delivery.pick import before_and_after

    rows = []
    for quantity, (before, after) in before_and_after(held, job, result, test).items():
        change = "-" if before is None else f"{after - before:+.4g}"
        rows.append([quantity, "-" if before is None else shown(before), shown(after), change])
    head = ["", f"now: version {held.version.version}", f"then: {result.id}", "change"]
    print_table(head, rows, err=True)
    if yes or click.confirm(f"move {held.version.alias} to {result.id}?", err=True):
        return True
    click.echo("nothing was registered", err=True)
    return False


def _print(sweep: Sweep, job: Job, result: TrialResult, test: Mapping[str, Any], recorded: bool) -> None:
    click.echo(f"{result.id}  {sweep.trial_folder(result.number) / 'model.onnx'}")
    for objective in job.objectives:
        click.echo(f"  {objective.metric:<24}{shown(result.measurements[objective.metric])}")
    note = f"{test['num_test_samples']} images{', as recorded' if recorded else ''}"
    click.echo(f"  {'test accuracy':<24}{shown(test['accuracy'])}  ({note})")


def _tree(
    sweep: Sweep,
    result: TrialResult,
    test: Mapping[str, Any],
    others: list[str],
    held: Holder | None,
    version: Version | None,
) -> dict[str, Any]:
    """The contract of `pick -o json`."""
    return {
        "trial": result.id,
        "file": str(sweep.trial_folder(result.number) / "model.onnx"),
        "measurements": result.measurements,
        "choice": result.choice,
        "test": dict(test),
        "also_tested": others,
        "version": vars(version) if version else None,
        "held_before": None if held is None else {"version": held.version.version, "tags": dict(held.tags)},
    }
