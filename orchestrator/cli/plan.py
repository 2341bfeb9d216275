"""`orchestrator plan JOB`."""

from __future__ import annotations

import json
import os

import click

from orchestrator.cli.options import output_option, print_table, set_option, shown
from orchestrator.spec.load import load_job

_SHOWN = 3


@click.command("plan", epilog="Example: orchestrator plan jobs/quickstart.yaml -o json")
@click.argument("job")
@set_option
@output_option
def command(job: str, overrides: tuple[str, ...], output: str) -> None:
    """Show what `run JOB` would do on this machine: gangs, trials, epochs of training, and the first recipes."""
    from orchestrator.cluster.capacity import num_gangs
    from orchestrator.results.trial_result import Proposal
    from orchestrator.search.optuna_sampler import OptunaSampler

    loaded = load_job(job, overrides)
    resources = loaded.resources
    here = {"CPU": float(len(os.sched_getaffinity(0)))}
    gangs = num_gangs(resources, here, loaded.budget.trials) if resources.gpus_per_worker == 0 else resources.gangs
    sampler = OptunaSampler(loaded)
    first = [loaded.space.baseline(loaded.recipe) or {}]
    sampler.know(Proposal(0, first[0], {}))
    first += [sampler.ask(number) for number in range(1, min(_SHOWN, loaded.budget.trials))]
    recipe = loaded.recipe
    epochs = {
        "teacher (once)": recipe.teacher.training.epochs,
        "student": recipe.training.epochs,
        "after pruning": recipe.pruning.epochs,
        "with quantizers": recipe.quantization.epochs,
    }
    plan = {
        "trials": loaded.budget.trials,
        "gangs": gangs,
        "workers_per_gang": resources.workers_per_gang,
        "threads_per_worker": resources.threads_per_worker,
        "epochs": epochs,
        "first": first,
    }
    if output == "json":
        click.echo(json.dumps(plan, indent=1))
        return
    workers = f"{resources.workers_per_gang} worker(s) of {resources.threads_per_worker} thread(s)"
    click.echo(f"{plan['trials']} trials on {gangs} gang(s) of {workers}")
    click.echo("epochs a trial: " + ", ".join(f"{name} {count}" for name, count in epochs.items()))
    click.echo("\nfirst proposals (later ones depend on results):")
    paths = [path for path, _ in loaded.space.items()]
    rows = [[str(number), *(shown(choice.get(path, "-")) for path in paths)] for number, choice in enumerate(first)]
    print_table(["trial", *(path.split(".", 1)[1] for path in paths)], rows)
