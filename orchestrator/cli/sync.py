"""`orchestrator sync SWEEP`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from orchestrator.cli.options import home_option, output_option
from orchestrator.cli.tables import plain
from orchestrator.results.store import Home
from orchestrator.spec.load import read_resolved


@click.command(
    "sync",
    epilog="Examples: orchestrator sync quickstart | orchestrator sync quickstart --uri http://127.0.0.1:5000",
)
@click.argument("sweep")
@click.option("--uri", help="MLflow server or database to show it in. [default: the job's, or the one in the home folder]")
@home_option
@output_option
def command(sweep: str, uri: str | None, home: str | None, output: str) -> None:
    """Show SWEEP in MLflow as its facts have it, also where MLflow has lost it or never had it.

    What is there already is left alone: a second time nothing is written.
    """
    place = Home(home)
    found = place.existing_sweep(sweep)
    job = read_resolved(found.job_file)
    from orchestrator.delivery.sync import sync

    click.echo(f"showing {sweep} in MLflow", err=True)
    with _progress() as progress:
        done = sync(place, found, job, uri, progress)
    if output == "json":
        click.echo(json.dumps(done.to_json(), indent=1))
        return
    click.echo(f"{sweep} is in {plain(done.tracking_uri, 500)}")
    click.echo(f"  {done.runs} of {done.trials} trials written, {done.moved} moved, {done.models} models of the front written")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr where that is a terminal, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        tasks = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield told
