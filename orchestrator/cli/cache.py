"""`orchestrator cache`."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence

import click

from orchestrator.cli.options import home_option, output_option
from orchestrator.cli.tables import print_table
from orchestrator.errors import JobError, UsageError, nearest_name
from orchestrator.results.store import Home
from orchestrator.spec.load import read_resolved
from orchestrator.trial.shelf import Entry, entries, remove, selected

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@click.command("cache", epilog="Examples: orchestrator cache | orchestrator cache --clear --older-than 7d --kind lessons")
@click.option("--clear", is_flag=True, help="Delete what would be shown, apart from what is in use.")
@click.option("--older-than", "age", metavar="AGE", help="Only what was not used for so long, e.g. 12h, 7d or 2w.")
@click.option("--kind", metavar="STAGE", help="Only what this stage made, e.g. teacher, lessons or checkpoint.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@home_option
@output_option
def command(clear: bool, age: str | None, kind: str | None, yes: bool, home: str | None, output: str) -> None:
    """Show what stages left in the home folder, by kind of stage, or delete it.

    What is deleted is computed again when a trial needs it; results do not change. A shared store is neither shown nor cleared.
    """
    place, now = Home(home), time.time()
    found = entries(place.stages)
    kinds = sorted({entry.stage for entry in found})
    if kind is not None and kind not in kinds:
        near = nearest_name(kind, kinds)
        hint = f"; did you mean {near!r}?" if near else ""
        raise UsageError(f"--kind must be one of {', '.join(kinds) or 'none, as nothing is kept'}; given {kind!r}{hint}")
    chosen = selected(found, stage=kind, least_age_s=0.0 if age is None else _age_s(age), now=now)
    if clear:
        _clear(chosen, output, yes=yes)
    elif output == "json":
        click.echo(json.dumps({"folder": str(place.stages), **_tree(chosen), "limit_bytes": _limit_bytes(place)}, indent=1))
    else:
        _print(place, chosen, now)


def _clear(chosen: Sequence[Entry], output: str, *, yes: bool) -> None:
    """Delete entries, once the user agrees."""
    what = f"{len(chosen)} entries, {_size(sum(entry.num_bytes for entry in chosen))}"
    if chosen and not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"--yes must be given where nobody can be asked; {what} would be deleted")
        if not click.confirm(f"delete {what}?", err=True):
            click.echo("nothing was deleted", err=True)
            return
    gone = [entry for entry in chosen if remove(entry)]
    num_bytes, in_use = sum(entry.num_bytes for entry in gone), len(chosen) - len(gone)
    if output == "json":
        click.echo(json.dumps({"deleted": len(gone), "bytes": num_bytes, "in_use": in_use}, indent=1))
    else:
        left = f"; {in_use} in use were left" if in_use else ""
        click.echo(f"deleted {len(gone)} entries, {_size(num_bytes)}{left}")


def _tree(chosen: Sequence[Entry]) -> dict[str, object]:
    kinds = []
    for kind in sorted({entry.stage for entry in chosen}):
        those = [entry for entry in chosen if entry.stage == kind]
        last_used = max(entry.used for entry in those)
        kinds.append({"kind": kind, "entries": len(those), "bytes": _bytes(those), "last_used": last_used})
    return {"kinds": kinds, "entries": len(chosen), "bytes": _bytes(chosen)}


def _print(place: Home, chosen: Sequence[Entry], now: float) -> None:
    rows = []
    for kind in sorted({entry.stage for entry in chosen}):
        those = [entry for entry in chosen if entry.stage == kind]
        last_used = _ago(now - max(entry.used for entry in those))
        rows.append([kind, str(len(those)), _size(_bytes(those)), last_used])
    if rows:
        print_table(["stage", "entries", "size", "last used"], rows)
    limit = _limit_bytes(place)
    bound = "no limit" if limit is None else f"limit {_size(limit)}"
    click.echo(f"{len(chosen)} entries, {_size(_bytes(chosen))} in {place.stages} ({bound})")


def _limit_bytes(place: Home) -> int | None:
    """`storage.limit_gb` of the sweep that was begun last: whichever sweep runs holds the store to its own."""
    sweeps = sorted((place.sweep(name) for name in place.sweep_names()), key=lambda sweep: sweep.job_file.stat().st_mtime)
    try:
        limit_gb = read_resolved(sweeps[-1].job_file).storage.limit_gb if sweeps else None
    except JobError:
        return None  # of another version of the product
    return None if limit_gb is None else round(limit_gb * 1e9)


def _age_s(text: str) -> float:
    """`7d` in seconds; UsageError for another form."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if match is None:
        raise UsageError(f"--older-than must be a number and one of s, m, h, d, w, as in 7d; given {text!r}")
    return float(match[1]) * _SECONDS[match[2]]


def _bytes(chosen: Sequence[Entry]) -> int:
    return sum(entry.num_bytes for entry in chosen)


def _size(num_bytes: float) -> str:
    """With three significant digits, in powers of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} TB"


def _ago(seconds: float) -> str:
    unit = next((unit for unit in ("d", "h", "m") if seconds >= _SECONDS[unit]), "s")
    return f"{max(0.0, seconds) / _SECONDS[unit]:.0f} {unit} ago"
