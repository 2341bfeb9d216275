"""`orchestrator list`."""

from __future__ import annotations

import json
from typing import Any

import click

from orchestrator.cli.options import home_option, output_option
from orchestrator.cli.status import standing_of, when_text
from orchestrator.cli.tables import print_table
from orchestrator.errors import OrchestratorError
from orchestrator.results.store import Home, Sweep

_HEADS = ["sweep", "state", "ended", "front", "hypervolume", "device-h", "last activity"]


@click.command("list", epilog="Examples: orchestrator list | orchestrator list -o json")
@home_option
@output_option
def command(home: str | None, output: str) -> None:
    """List the sweeps of the home folder, the one that was active last first."""
    place = Home(home)
    sweeps = [Sweep(place.path / "sweeps" / name) for name in place.sweep_names()]
    found = sorted((_line(sweep) for sweep in sweeps), key=lambda line: -line["last_activity"])
    if output == "json":
        click.echo(json.dumps({"home": str(place.path), "sweeps": found}, indent=1))
        return
    if found:
        print_table(_HEADS, [_cells(line) for line in found], {"sweep", "state"})
    else:
        click.echo(f"no sweep in {place.path}; `orchestrator run JOB` starts one", err=True)


def _line(sweep: Sweep) -> dict[str, Any]:
    """What `status -o json` says, and when something happened last; of a sweep that cannot be read, why."""
    began = sweep.job_file.stat().st_mtime
    try:
        told = standing_of(sweep)
    except OrchestratorError as error:  # its job is another version's, say: the others are shown all the same
        return {"sweep": sweep.name, "state": "unreadable", "reason": str(error), "last_activity": began}
    return told.to_json() | {"last_activity": began if told.last is None else told.last.ended}


def _cells(line: dict[str, Any]) -> list[str]:
    if line["state"] == "unreadable":
        return [line["sweep"], line["state"], "-", "-", "-", "-", when_text(line["last_activity"], "%m-%d %H:%M")]
    return [
        line["sweep"],
        line["state"],
        f"{sum(line['trials'].values())}/{line['budget_trials']}",
        str(line["front_size"]),
        f"{line['hypervolume']:.4g}",
        f"{line['device_hours']:.3g}",
        when_text(line["last_activity"], "%m-%d %H:%M"),
    ]
