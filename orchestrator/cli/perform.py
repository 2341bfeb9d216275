"""What `run` and `resume` share: perform what is left of a sweep, show it, and say what came of it."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from orchestrator.cli.tables import print_front
from orchestrator.delivery.account import settle
from orchestrator.delivery.compare import differences
from orchestrator.errors import UsageError
from orchestrator.pareto.front import Front, find_front, originals
from orchestrator.results.files import exclusive
from orchestrator.results.store import Home, Sweep
from orchestrator.results.table import write_table
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.load import read_resolved, resolved_text

_EXIT = {"hours": 5, "device_hours": 5, "failures": 5, "interrupted": 130, "terminated": 143}  # others have reached a goal


def perform(job: Job, home: Home, sweep: Sweep, output: str, *, address: str | None, verbose: bool, fresh: bool = False) -> int:
    """Run what is left of a sweep, print its front, and return the exit code.

    Raises:
        UsageError: another process runs the sweep, or it was asked for by another job.
        NoFeasibleTrialError: it ended without a trial that is complete and feasible.
    """
    began = time.monotonic()
    with exclusive(sweep.lock_file, wait=False) as mine:
        if not mine:
            raise UsageError(f"sweep {sweep.name!r} must not be running already; another process holds it")
        if fresh:
            sweep = _set_aside(sweep)
        _agree(sweep, job)
        sweep.create(resolved_text(job))
        end = _already_done(job, sweep) or _run(job, home, sweep, address, verbose)
        code = _EXIT.get(end, 0)
        results, proposals = sweep.results(), sweep.proposals()
        front = find_front(results, job.objectives, originals(proposals))
        bought = settle(job, proposals, results)
        _say_result(sweep, front, time.monotonic() - began, end)
        for sentence in [*bought.sentences(), *_regret(job, proposals, results)]:
            click.echo(f"sweep {sweep.name}: {sentence}", err=True)
        _say_next(sweep, front, end)
        if front.points or code == 0:
            print_front(sweep, job, front, output, extra={"bought": bought.to_json()})
    return code


def _regret(job: Job, proposals: list[Proposal], results: list[TrialResult]) -> list[str]:
    """What stopping cost, where trials were stopped."""
    from orchestrator.cluster.referee import regret

    return [regret(job, proposals, results).sentence()] if job.stopping.method != "none" else []


def _already_done(job: Job, sweep: Sweep) -> str | None:
    """Why there is nothing to run, where the facts alone tell so."""
    from orchestrator.cluster.facts import Facts

    end = Facts(job, sweep.proposals(), sweep.results()).end()
    if end is None:
        return None
    if end.reason in _EXIT:
        click.echo(f"sweep {sweep.name!r}: {end.text}", err=True)
    else:
        click.echo(
            f"sweep {sweep.name!r} has finished already ({end.text}); --trials extends it, --fresh starts anew", err=True
        )
    return end.reason


def _run(job: Job, home: Home, sweep: Sweep, address: str | None, verbose: bool) -> str:
    """Run what is left of a sweep, show it, and write what derives from it."""
    from orchestrator.cli.display import SweepDisplay
    from orchestrator.cluster.sweep import run_sweep
    from orchestrator.report.page import write_report
    from orchestrator.tracking.mlflow_tracker import MlflowTracker
    from orchestrator.tracking.tracker import InBackground

    tracker = InBackground(lambda: MlflowTracker(job, home, sweep))
    tracker.open()
    with SweepDisplay(job, sweep.results(), originals(sweep.proposals())) as display:
        end = run_sweep(job, home, sweep, [display, _Shown(tracker, display)], address=address, verbose=verbose)
        display.phase("writing the report")
        write_table(sweep.results(), sweep.table_file)
        report = write_report(sweep, job)
        front = find_front(sweep.results(), job.objectives, originals(sweep.proposals()))
        tracker.close(front, [report, sweep.table_file])
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


def _agree(sweep: Sweep, job: Job) -> None:
    """Refuse another job under the same name; take over another budget for the same one."""
    if not sweep.exists():
        return
    before = read_resolved(sweep.job_file)
    if before.identity() != job.identity():
        found = "; ".join(differences(before.tree(), job.tree())[:5])
        raise UsageError(f"sweep {sweep.name!r} exists and was asked for by another job: {found}. Use --name or --fresh")
    if job.budget != before.budget:
        sweep.rewrite_job(resolved_text(job))


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


def _say_result(sweep: Sweep, front: Front, seconds: float, end: str) -> None:
    from orchestrator.cli.display import final_line

    click.echo(final_line(front, seconds) + ("" if end == "trials" else f" ({end.replace('_', ' ')})"), err=True)


def _say_next(sweep: Sweep, front: Front, end: str) -> None:
    """What to do next, on stderr."""
    name = sweep.name
    if end in ("interrupted", "terminated", "hours"):
        click.echo(f"sweep {name}: `orchestrator resume {name}` goes on", err=True)
    elif end in _EXIT:
        click.echo(f"sweep {name}: `orchestrator resume {name} --set budget.{end}=...` goes on, with more", err=True)
    elif front.knee is not None and sys.stderr.isatty():
        choices = f"orchestrator pick {name} --knee --register NAME | orchestrator report {name} | orchestrator ui"
        click.echo(f"next: {choices}", err=True)
