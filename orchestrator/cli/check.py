"""`orchestrator check JOB`."""

from __future__ import annotations

import click

from orchestrator.cli.options import set_option
from orchestrator.spec.load import load_job


@click.command("check", epilog="Example: orchestrator check jobs/quickstart.yaml --set recipe.training.epochs=3")
@click.argument("job")
@set_option
def command(job: str, overrides: tuple[str, ...]) -> None:
    """Validate everything about JOB that can be known before running. Nothing is written, Ray is not started."""
    loaded = load_job(job, overrides)
    objectives = ", ".join(objective.metric for objective in loaded.objectives)
    click.echo(f"{job} is valid: {loaded.budget.trials} trials over {len(loaded.space)} paths for {objectives}")
