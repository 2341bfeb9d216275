"""`orchestrator resume SWEEP`."""

from __future__ import annotations

import click

from orchestrator.cli.options import home_option, output_option, set_option, verbose_option
from orchestrator.cli.perform import perform
from orchestrator.results.store import Home
from orchestrator.spec.load import load_job


@click.command(
    "resume",
    epilog="Examples: orchestrator resume quickstart | orchestrator resume quickstart --trials 48 | "
    "orchestrator resume quickstart --seeds 3",
)
@click.argument("sweep")
@click.option("--trials", type=click.IntRange(1), help="Extend the sweep to so many fresh trials, in all.")
@click.option("--seeds", type=click.IntRange(1), help="Train each point of the front with so many seeds, in all.")
@click.option("--address", help="Ray cluster to join; without it a private one on this machine.")
@set_option
@home_option
@output_option
@verbose_option
def command(
    sweep: str,
    trials: int | None,
    seeds: int | None,
    address: str | None,
    overrides: tuple[str, ...],
    home: str | None,
    output: str,
    verbose: bool,
) -> int:
    """Go on with SWEEP from what is on disk, whatever ended it, or extend it. Only its budget can be changed.

    Trials that had not ended are run again: finished stages come from the store, and one that was under way goes on from its
    checkpoint.
    """
    place = Home(home)
    found = place.existing_sweep(sweep)
    extra = [*([f"budget.trials={trials}"] if trials else []), *([f"budget.seeds={seeds}"] if seeds else [])]
    loaded = load_job(found.job_file, [*overrides, *extra])
    return perform(loaded, place, found, output, address=address, verbose=verbose)
