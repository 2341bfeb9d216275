"""`orchestrator run JOB`."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from orchestrator.cli.options import home_option, output_option, print_front, set_option, verbose_option
from orchestrator.errors import UsageError
from orchestrator.pareto.front import Front, find_front
from orchestrator.results.files import exclusive
from orchestrator.results.store import Home, Sweep
from orchestrator.results.table import write_table
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.load import load_job, read_resolved, resolved_text

_EXIT = {"finished": 0, "out_of_time": 5, "interrupted": 130, "terminated": 143}


@click.command(
    "run",
    epilog="Examples: orchestrator run jobs/quickstart.yaml | "
    "orchestrator run jobs/cifar10_resnet20.yaml --name night --trials 12",
)
@click.argument("job")
@click.option("--name", help="Name of the sweep. [default: the job's]")
@click.option("--trials", type=click.IntRange(1), help="How many trials, in all.")
@click.option("--fresh", is_flag=True, help="Set an earlier sweep of that name aside and start anew.")
@click.option("--address", help="Ray cluster to join; without it a private one on this machine.")
@set_option
@home_option
@output_option
@verbose_option
def command(
    job: str,
    name: str | None,
    trials: int | None,
    fresh: bool,
    address: str | None,
    overrides: tuple[str, ...],
    home: str | None,
    output: str,
    verbose: bool,
) -> int:
    """Run the sweep that JOB asks for, and print its front.

    Run again after an interruption, it goes on where it was; a finished sweep shows its front. Ctrl-C once stops it gracefully.
    """
    began = time.monotonic()
    extra = [*overrides, *([f"name={name}"] if name else []), *([f"budget.trials={trials}"] if trials else [])]
    loaded, place = load_job(job, extra), Home(home)
    sweep = place.sweep(loaded.name)
    with exclusive(sweep.lock_file, wait=False) as mine:
        if not mine:
            raise UsageError(f"sweep {sweep.name!r} must not be running already; another process holds it")
        if fresh:
            sweep = _set_aside(sweep)
        loaded = _agree(sweep, loaded)
        sweep.create(resolved_text(loaded))
        end = _perform(loaded, place, sweep, address, verbose)
        front = find_front(sweep.results(), loaded.objectives)
        _say_next(sweep, front, time.monotonic() - began, end)
        if front.points or end == "finished":
            print_front(sweep, loaded, front, output)
    return _EXIT[end]


def _perform(job: Job, home: Home, sweep: Sweep, address: str | None, verbose: bool) -> str:
    """Run what is left of a sweep, show it, and write what derives from it."""
    results = sweep.results()
    if len(results) >= job.budget.trials:
        click.echo(f"sweep {sweep.name!r} has finished already; --trials extends it, --fresh starts anew", err=True)
        return "finished"
    from orchestrator.cli.display import SweepDisplay
    from orchestrator.cluster.sweep import run_sweep
    from orchestrator.report.page import write_report
    from orchestrator.tracking.mlflow_tracker import MlflowTracker
    from orchestrator.tracking.tracker import InBackground

    tracker = InBackground(lambda: MlflowTracker(job, home, sweep))
    tracker.open()
    with SweepDisplay(job, results, 0) as display:
        end = run_sweep(job, home, sweep, [display, _Shown(tracker, display)], address=address, verbose=verbose)
        display.phase("writing the report")
        write_table(sweep.results(), sweep.table_file)
        report = write_report(sweep, job)
        tracker.close(find_front(sweep.results(), job.objectives), [report, sweep.table_file])
    if tracker.error is not None:
        click.echo(f"warning: MLflow was not kept up to date: {tracker.error}", err=True)
    return end


class _Shown:
    """Passes ends on to the tracker, with the front as the display has it."""

    def __init__(self, tracker: Any, display: Any) -> None:
        self._tracker, self._display = tracker, display

    def phase(self, text: str) -> None: ...

    def proposed(self, proposal: Proposal) -> None: ...

    def running(self, trials: dict[int, dict[str, Any]]) -> None: ...

    def ended(self, result: TrialResult) -> None:
        self._tracker.trial_ended(result, self._display.front)


def _agree(sweep: Sweep, job: Job) -> Job:
    """Refuse another job under the same name; take over a larger budget for the same one."""
    if not sweep.exists():
        return job
    before = read_resolved(sweep.job_file)
    if before.identity() != job.identity():
        differences = "; ".join(_differences(before.tree(), job.tree())[:5])
        raise UsageError(f"sweep {sweep.name!r} exists and was asked for by another job: {differences}. Use --name or --fresh")
    if job.budget != before.budget:
        sweep.rewrite_job(resolved_text(job))
    return job


def _differences(before: Any, after: Any, path: str = "") -> list[str]:
    """`path: old -> new` for every leaf that differs, apart from what does not make another sweep."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [key for key in dict.fromkeys([*before, *after]) if f"{path}{key}" not in ("name", "budget", "tracking")]
        return [line for key in keys for line in _differences(before.get(key), after.get(key), f"{path}{key}.")]
    return [] if before == after else [f"{path.removesuffix('.')}: {before} -> {after}"]


def _set_aside(sweep: Sweep) -> Sweep:
    """Rename an earlier sweep: nothing that was computed is lost."""
    if not sweep.exists():
        return sweep
    number = 1
    while (aside := sweep.path.with_name(f"{sweep.name}.{number}")).exists():
        number += 1
    sweep.path.rename(aside)
    click.echo(f"the earlier sweep is now {aside.name!r}", err=True)
    return sweep


def _say_next(sweep: Sweep, front: Front, seconds: float, end: str) -> None:
    """What came of it, and what to do next, on stderr."""
    from orchestrator.cli.display import final_line

    click.echo(final_line(front, seconds) + ("" if end == "finished" else f" ({end.replace('_', ' ')})"), err=True)
    if end != "finished":
        click.echo("run the same command again to go on", err=True)
    elif front.knee is not None and sys.stderr.isatty():
        name = sweep.name
        click.echo(
            f"next: orchestrator pick {name} --knee --register NAME | orchestrator report {name} | orchestrator ui",
            err=True,
        )
