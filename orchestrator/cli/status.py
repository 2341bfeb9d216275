"""`orchestrator status SWEEP`."""

from __future__ import annotations

import json
from datetime import datetime

import click

from orchestrator.cli.options import home_option, output_option
from orchestrator.cli.tables import plain, shown
from orchestrator.delivery.standing import Standing, is_held, standing
from orchestrator.pareto.front import counts_text
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.load import read_resolved


@click.command("status", epilog="Examples: orchestrator status quickstart | orchestrator status quickstart -o json")
@click.argument("sweep")
@home_option
@output_option
def command(sweep: str, home: str | None, output: str) -> None:
    """Tell where SWEEP stands: running, finished or interrupted, its trials, its front, and what was spent.

    Read from its facts, also while it runs.
    """
    told = standing_of(Home(home).existing_sweep(sweep))
    if output == "json":
        click.echo(json.dumps(told.to_json(), indent=1))
        return
    under_way = f", {told.under_way} {'under way' if told.state == 'running' else 'not ended'}" if told.under_way else ""
    lines = {
        "sweep": told.sweep,
        "state": f"{told.state} ({told.reason})",
        "trials": f"{counts_text(told.front)}{under_way}",
        "front": f"{len(told.front.points)} models" + (f", knee {told.front.knee.id}" if told.front.knee else ""),
        "hypervolume": f"{told.front.hypervolume:.6g}",
        "time": f"{hours_text(told.seconds)} with trials under way",
        "device-hours": f"{told.device_hours:.3g}",
        "last ended": _last(told),
    }
    for name, text in lines.items():
        click.echo(f"{name:<14}{text}")


def standing_of(sweep: Sweep) -> Standing:
    """Where a sweep stands, from its facts and its lock."""
    from orchestrator.cluster.facts import Facts

    job, proposals, results = read_resolved(sweep.job_file), sweep.proposals(), sweep.results()
    facts = Facts(job, proposals, results)
    owed = len(facts.unended) + len(facts.missing_seeds()) + (facts.wanted_form() is not None)
    running = is_held(sweep.lock_file)
    return standing(sweep.name, job, proposals, results, facts.spent, owed=owed, running=running)


def hours_text(seconds: float) -> str:
    """`1:02:03`, or `2:03` for less than an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def when_text(seconds: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A time since the epoch in the zone of this machine."""
    return datetime.fromtimestamp(seconds).astimezone().strftime(form)


def _last(told: Standing) -> str:
    if told.last is None:
        return "none"
    return f"{told.last.id} at {when_text(told.last.ended)}: {_outcome(told.last, told)}"


def _outcome(last: TrialResult, told: Standing) -> str:
    if last.state != "COMPLETE":
        return f"{last.state.lower()} {plain((last.failure or {}).get('class', ''))}".strip()
    values = ", ".join(f"{o.metric} {shown(last.measurements[o.metric])}" for o in told.front.objectives)
    return values if last.feasible else f"{values} (breaks a constraint)"
