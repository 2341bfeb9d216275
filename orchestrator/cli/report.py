"""`orchestrator report SWEEP`."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.options import home_option, load_sweep
from orchestrator.pareto.front import no_feasible


@click.command("report", epilog="Examples: orchestrator report quickstart | orchestrator report quickstart --png front.png")
@click.argument("sweep")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Write a picture of the front instead.")
@home_option
def command(sweep: str, png: Path | None, home: str | None) -> None:
    """Write the HTML page of SWEEP, one file that needs no network, and print where it is.

    A sweep without a feasible trial has a page too, which says by how much each constraint is missed; the exit code is 4 then.
    """
    _, found, job, front = load_sweep(home, sweep)
    if png is not None:
        from orchestrator.report.picture import draw_front

        draw_front(front, found.name, png, job.constraints)
        click.echo(png)
    else:
        from orchestrator.report.page import write_report
        from orchestrator.results.table import write_table

        write_table(found.results(), found.table_file)
        click.echo(write_report(found, job))
    if not front.points:
        raise no_feasible(found.name, front, job.constraints)
