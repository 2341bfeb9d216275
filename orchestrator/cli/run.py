"""`orchestrator run JOB`."""

from __future__ import annotations

import click

from orchestrator.cli.options import home_option, load_sweep, output_option, set_option, verbose_option
from orchestrator.cli.perform import perform
from orchestrator.results.store import Home, Sweep
from orchestrator.spec.job import Job
from orchestrator.spec.load import load_job, read_resolved


@click.command(
    "run",
    epilog="Examples: orchestrator run jobs/quickstart.yaml | "
    "orchestrator run jobs/cifar10_resnet20.yaml --name night --trials 12",
)
@click.argument("job")
@click.option("--name", help="Name of the sweep. [default: the job's]")
@click.option("--trials", type=click.IntRange(1), help="How many trials, in all.")
@click.option("--fresh", is_flag=True, help="Set an earlier sweep of that name aside and start anew.")
@click.option("--warm-start", "source", metavar="SWEEP", help="Propose the points of this sweep's front first.")
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
    source: str | None,
    address: str | None,
    overrides: tuple[str, ...],
    home: str | None,
    output: str,
    verbose: bool,
) -> int:
    """Run the sweep that JOB asks for, and print its front.

    Run again after an interruption, it goes on where it was; a finished sweep shows its front. Ctrl-C once stops it gracefully.
    """
    extra = [*overrides, *([f"name={name}"] if name else []), *([f"budget.trials={trials}"] if trials else [])]
    loaded, place = load_job(job, extra), Home(home)
    sweep = place.sweep(loaded.name)
    if source is not None:
        loaded = _seeded(loaded, None if fresh else sweep, source, home)
    return perform(loaded, place, sweep, output, address=address, verbose=verbose, fresh=fresh)


def _seeded(job: Job, sweep: Sweep | None, source: str, home: str | None) -> Job:
    """The job with another sweep's front for seeds, as it was when this sweep began: that front may have changed since."""
    from orchestrator.search.points import seeds_from_front

    if sweep is not None and sweep.exists():
        seeds = read_resolved(sweep.job_file).search.seeds
    else:
        front = load_sweep(home, source)[-1]
        found = seeds_from_front([point.choice for point in front.points], job.space, job.recipe)
        seeds = [*job.search.seeds, *(seed for seed in found if seed not in job.search.seeds)]
        click.echo(f"{len(seeds) - len(job.search.seeds)} of {len(front.points)} points of {source!r} come first", err=True)
    return job.model_copy(update={"search": job.search.model_copy(update={"seeds": seeds})})
