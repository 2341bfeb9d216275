"""`orchestrator plan JOB`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict

import click
from pydantic import ValidationError

from orchestrator.cli.options import home_option, output_option, set_option
from orchestrator.cli.tables import print_table, shown
from orchestrator.errors import JobError
from orchestrator.results.store import Home
from orchestrator.search.forecast import Forecast, Observed, costs_alike, forecast, observe
from orchestrator.spec.job import Job
from orchestrator.spec.load import load_job, read_resolved
from orchestrator.spec.recipe import Recipe
from orchestrator.spec.space import Choice, fill

_SHOWN = 3


@click.command("plan", epilog="Example: orchestrator plan jobs/quickstart.yaml -o json")
@click.argument("job")
@click.option("--probe", is_flag=True, help="Time the first recipes here, with one epoch a phase, to tell what they cost.")
@set_option
@home_option
@output_option
def command(job: str, probe: bool, overrides: tuple[str, ...], home: str | None, output: str) -> None:
    """Show what `run JOB` would do on this machine: gangs, trials, epochs of training, the first recipes, and what it may cost.

    The cost is what an earlier sweep of the same recipe, space and stopping rule had, or what --probe finds; without either it
    is not known, and that is said.
    """
    from orchestrator.cluster.capacity import num_gangs
    from orchestrator.results.trial_result import Proposal
    from orchestrator.search.proposer import Proposer

    loaded = load_job(job, overrides)
    resources = loaded.resources
    here = {"CPU": float(len(os.sched_getaffinity(0)))}
    gangs = num_gangs(resources, [here], loaded.budget.trials) if resources.gpus_per_worker == 0 else resources.gangs
    sampler = Proposer(loaded)
    first = [loaded.space.baseline(loaded.recipe) or {}]
    sampler.know(Proposal(0, first[0], {}))
    first += [sampler.ask(number) for number in range(1, min(_SHOWN, loaded.budget.trials)) if sampler.has_more()]
    recipe = loaded.recipe
    epochs = {
        "teacher (once)": recipe.teacher.training.epochs,
        "student": recipe.training.epochs,
        "after pruning": recipe.pruning.epochs,
        "with quantizers": recipe.quantization.epochs,
    }
    expected = _expected(loaded, first, gangs, Home(home), probe=probe) if isinstance(gangs, int) else None
    plan = {
        "trials": loaded.budget.trials,
        "gangs": gangs,
        "workers_per_gang": resources.workers_per_gang,
        "threads_per_worker": resources.threads_per_worker,
        "epochs": epochs,
        "first": first,
        "estimate": None if expected is None else asdict(expected),
    }
    if output == "json":
        click.echo(json.dumps(plan, indent=1))
        return
    workers = f"{resources.workers_per_gang} worker(s) of {resources.threads_per_worker} thread(s)"
    click.echo(f"{plan['trials']} trials on {gangs} gang(s) of {workers}")
    click.echo("epochs a trial: " + ", ".join(f"{name} {count}" for name, count in epochs.items()))
    click.echo(_cost_text(expected))
    click.echo("\nfirst proposals (later ones depend on results):")
    paths = [path for path, _ in loaded.space.items()]
    rows = [[str(number), *(shown(choice.get(path, "-")) for path in paths)] for number, choice in enumerate(first)]
    print_table(["trial", *(path.split(".", 1)[1] for path in paths)], rows)


def _expected(job: Job, first: Sequence[Choice], gangs: int, home: Home, *, probe: bool) -> Forecast | None:
    """What the sweep may cost, from an earlier one (the one with the most trials), or from a probe where that is asked for."""
    if probe:
        from orchestrator.trial.probe import probe as time_recipes

        recipes = [recipe for recipe in (_filled(job, choice) for choice in first) if recipe is not None]
        once, each = time_recipes(job, recipes)
        rests_on = f"one epoch of each phase of {len(recipes)} recipes, on one worker, multiplied"
        return forecast(job, gangs, Observed(once, each, len(recipes)), rests_on)
    seen = [(name, observe(home.sweep(name).results())) for name in home.sweep_names() if _alike(job, home, name)]
    found = [(name, observed) for name, observed in seen if observed is not None]
    if not found:
        return None
    name, observed = max(found, key=lambda pair: pair[1].trials)
    return forecast(job, gangs, observed, f"{observed.trials} trials of sweep {name}, wherever they ran")


def _alike(job: Job, home: Home, name: str) -> bool:
    try:
        return costs_alike(job, read_resolved(home.sweep(name).job_file))
    except JobError:
        return False  # of another version of the product: it says nothing of this one's cost


def _filled(job: Job, choice: Choice) -> Recipe | None:
    """The recipe of a proposal, or None where its values do not go together."""
    try:
        return fill(job.recipe, choice)
    except ValidationError:
        return None


def _cost_text(expected: Forecast | None) -> str:
    if expected is None:
        return (
            "cost: not known; no sweep in this home has this recipe, space and stopping rule (--probe times the first recipes)"
        )
    once = f" and {expected.seconds_once:.0f} s once" if expected.seconds_once else ""
    return (
        f"cost: about {60 * expected.hours:.1f} minutes and {expected.device_hours:.2g} device-hours, at "
        f"{expected.seconds_per_trial:.1f} s a trial{once}; from {expected.rests_on}"
    )
