"""`orchestrator export SWEEP`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.options import find_trial, home_option, load_sweep, output_option
from orchestrator.cli.tables import plain


@click.command(
    "export",
    epilog="Examples: orchestrator export quickstart --trial t0000 --to shipped | "
    "orchestrator export quickstart --trial t0000 --to shipped --force --format torch",
)
@click.argument("sweep")
@click.option("--trial", required=True, metavar="ID", help="Whose model, e.g. t0007.")
@click.option("--to", "folder", required=True, type=click.Path(path_type=Path), help="Folder to write; new or empty.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["onnx", "torch", "packed"]),
    default="onnx",
    show_default=True,
    help="The measured file, torch.export's program, or the integer weights alone.",
)
@click.option("--force", is_flag=True, help="Replace an earlier export in that folder.")
@home_option
@output_option
def command(sweep: str, trial: str, folder: Path, form: Any, force: bool, home: str | None, output: str) -> None:
    """Write the model of one trial of SWEEP with all that is needed to use it, into a folder of its own.

    The folder has the model, labels and input format, a card, a README, checksums, and a script that runs it with numpy and
    onnxruntime alone (`--format onnx`). It appears whole or not at all.
    """
    place, found, job, front = load_sweep(home, sweep)
    result = find_trial(sweep, found.results(), trial)
    from orchestrator.delivery.card import lineage, model_card, subject_of, working_commit
    from orchestrator.delivery.export import export, measured_file

    measured_file(found, result)
    subject = subject_of(found, job, front, result)
    title = f"{subject.recipe.model.name}, {result.id} of {found.name}"
    card = model_card(title, subject, "it was named by hand", lineage(subject, None, working_commit()))
    written = export(place, found, subject, card, folder, form, force=force)
    if output == "json":
        told = {"sweep": found.name, "trial": result.id, "format": form, "folder": str(folder.absolute()), "files": written}
        click.echo(json.dumps(told, indent=1))
        return
    click.echo(plain(folder, 500))
    for name, num_bytes in written.items():
        click.echo(f"  {name:<20}{num_bytes:>12}")
