"""`orchestrator audit SWEEP --trial ID`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from orchestrator.cli.options import find_trial, home_option, load_sweep, output_option
from orchestrator.cli.tables import plain, print_table, shown

_WORST = 5  # classes that the summary names


@click.command(
    "audit",
    epilog="Examples: orchestrator audit quickstart --trial t0007 | orchestrator audit quickstart --trial t0007 -o json",
)
@click.argument("sweep")
@click.option("--trial", metavar="ID", required=True, help="The trial, e.g. t0007.")
@home_option
@output_option
def command(sweep: str, trial: str, home: str | None, output: str) -> None:
    """Say what compression changed in a trial of SWEEP that its accuracy does not tell.

    The exported file against the dense model, on the validation split: accuracy by class, flipped predictions, calibration,
    attacked and corrupted pictures, and what predictions rest on. Written to the trial's folder (audit.html, audit.json) and to
    its run in MLflow. docs/audit.md says what it all means.
    """
    place, found, job, front = load_sweep(home, sweep)
    result = find_trial(sweep, found.results(), trial)
    from orchestrator.delivery.audit import audit, log_audit

    audited = audit(place, found, job, result, lambda line: click.echo(line, err=True))
    if output == "json":
        click.echo(json.dumps(audited.record, indent=1))
    else:
        _print_summary(audited.record, audited.metrics)
        click.echo(f"\n{audited.page_file}")
    click.echo("writing the audit to MLflow", err=True)
    log_audit(place, found, job, front, result, audited)


def _print_summary(record: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """The figures of both models, and the classes that lost most."""
    names = [key.removeprefix("audit/") for key in metrics]
    rows = []
    for name in (name for name in names if not name.startswith("dense_")):
        file, dense = metrics[f"audit/{name}"], metrics.get(f"audit/dense_{name}")
        before, change = ("-", "-") if dense is None else (shown(dense), f"{file - dense:+.4f}")
        rows.append([name, before, shown(file), change])
    print_table([f"{record['num_images']} images", "dense", "file", "change"], rows)
    lost = [row for row in record["classes"] if row["change"] < 0][:_WORST]
    if lost:
        click.echo()
        figures = ([shown(row["dense_accuracy"]), shown(row["accuracy"]), f"{row['change']:+.4f}"] for row in lost)
        told = [[plain(row["class"]), str(row["num"]), *three] for row, three in zip(lost, figures, strict=True)]
        print_table(["lost most", "images", "dense", "file", "change"], told)
    for note in record["notes"]:
        click.echo(f"note: {plain(note, 400)}", err=True)
