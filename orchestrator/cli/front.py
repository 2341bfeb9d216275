"""`orchestrator front SWEEP`."""

from __future__ import annotations

import click

from orchestrator.cli.options import counts_text, home_option, load_sweep, output_option, print_front


@click.command("front", epilog="Example: orchestrator front quickstart -o json")
@click.argument("sweep")
@home_option
@output_option
def command(sweep: str, home: str | None, output: str) -> None:
    """Show the Pareto front of SWEEP: every model measured on its exported file. The knee is marked *."""
    _, found, job, front = load_sweep(home, sweep)
    print_front(found, job, front, output)
    if output == "table":
        click.echo(f"\n{counts_text(front)}; hypervolume {front.hypervolume:.6g}", err=True)
