"""Sync: a sweep of 1,000 trials with 600 metric values each, from its facts into MLflow on SQLite.

    uv run python benchmarks/sync.py [--rounds 2] [--trials 1000] [--epochs 50] [--out docs/benchmarks]

The facts are made up (benchmarks/made_sweep.py; nothing is trained), in a new home folder each round. Timed is the command as a
user gives it, in a process of its own: imports, the making of the database, the page and the table are part of it. Then it is
given once more: that one finds everything, and must write nothing. After each round the database is read: every value of every
curve has to be there once, and each table has to have as many rows after the second sync as after the first. Calls a run are
counted apart, on a small sweep. Printed, and written to docs/benchmarks/sync.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import describe
from benchmarks.made_sweep import NAME, make_sweep
from benchmarks.outcome import keep, orchestrate, say, verdict
from orchestrator.results.store import Home, Sweep
from orchestrator.spec.load import read_resolved

TARGET_S = 120.0
_COUNTED = ("create_run", "log_batch", "log_inputs", "set_terminated", "set_tag", "log_artifact")


def rows(database: Path) -> dict[str, int]:
    """How many rows each table has."""
    with contextlib.closing(sqlite3.connect(database)) as opened:
        tables = [name for (name,) in opened.execute("select name from sqlite_master where type = 'table'")]
        return {name: opened.execute(f'select count(*) from "{name}"').fetchone()[0] for name in tables}  # noqa: S608 - its own


def check(database: Path, sweep: Sweep) -> int:
    """Every value of every curve is there once; returns how many those are."""
    wanted = Counter(
        (result.id, f"{point['stage']}/{key}", point["epoch"], value)
        for result in sweep.results()
        for point in result.curve
        for key, value in point.items()
        if key not in ("stage", "epoch")
    )
    query = (
        "select tags.value, metrics.key, metrics.step, metrics.value from metrics join tags using (run_uuid) "
        "where tags.key = 'orchestrator.trial' and (metrics.key like 'student/%' or metrics.key like 'quantized/%')"
    )
    with contextlib.closing(sqlite3.connect(database)) as opened:
        found = Counter(opened.execute(query))
    assert found == wanted, f"{found.total()} values of {wanted.total()}"
    return wanted.total()


def timed(home: Path) -> tuple[float, dict[str, Any]]:
    """Seconds that the command took, and what it said."""
    began = time.perf_counter()
    done = orchestrate("sync", NAME, "-o", "json", home=home)
    return time.perf_counter() - began, json.loads(done.stdout)


def measure(trials: int, epochs: int) -> dict[str, float]:
    """One round: made up, shown, shown again, checked."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        sweep = make_sweep(home, trials, epochs=epochs)
        seconds, told = timed(home)
        assert told["runs"] == trials, told
        before = rows(home / "mlflow.db")
        again, told = timed(home)
        assert (told["runs"], told["moved"], told["models"]) == (0, 0, 0), told
        assert rows(home / "mlflow.db") == before
        return {"seconds": seconds, "again_s": again, "values": check(home / "mlflow.db", sweep)}


def calls_a_run(trials: int = 40, epochs: int = 50) -> dict[str, float]:
    """How many calls of MLflow's client a trial's run costs, by name: the difference between two sweeps, by trial."""
    from mlflow import MlflowClient

    from orchestrator.delivery.sync import sync

    counts: Counter[str] = Counter()

    def counted(name: str) -> Any:
        inner = getattr(MlflowClient, name)

        def call(*args: Any, **more: Any) -> Any:
            counts[name] += 1
            return inner(*args, **more)

        return call

    for name in _COUNTED:
        setattr(MlflowClient, name, counted(name))
    totals = []
    for number in (trials, 2 * trials):
        with tempfile.TemporaryDirectory() as folder:
            counts.clear()
            sweep = make_sweep(Path(folder), number, epochs=epochs)
            sync(Home(folder), sweep, read_resolved(sweep.job_file))
            totals.append(counts.copy())
    return {name: (totals[1][name] - totals[0][name]) / trials for name in _COUNTED}


def main() -> None:
    """All rounds, then the calls; print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args()
    machine = describe()
    print(machine)
    runs = []
    for number in range(args.rounds):
        runs.append(measure(args.trials, args.epochs))
        say(f"round {number + 1}: {runs[-1]}")
    seconds = [run["seconds"] for run in runs]
    rates = [run["values"] / run["seconds"] for run in runs]
    print(f"{args.trials} runs, {runs[0]['values']:,.0f} values of curves: {statistics.median(seconds):.1f} s "
          f"(of {min(seconds):.1f} to {max(seconds):.1f}), {statistics.median(rates):,.0f} values/s; "
          f"a second time {statistics.median(run['again_s'] for run in runs):.1f} s")  # fmt: skip
    goal = verdict("seconds for the whole sweep, median", statistics.median(seconds), TARGET_S, most=True)
    calls = calls_a_run()
    print(f"calls a run: {', '.join(f'{name} {count:g}' for name, count in calls.items() if count)}")
    facts = {"machine": machine, "trials": args.trials, "epochs": args.epochs, "rounds": runs, "calls": calls, "target": goal}
    keep("sync", facts, args.out)


if __name__ == "__main__":
    main()
