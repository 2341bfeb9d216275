"""Tracking: 48 trials of 50 epochs of 12 metrics into MLflow on SQLite, by the product and by Tune's users' ways.

    uv run python benchmarks/tracking.py [--rounds 3] [--trials 48] [--epochs 50] [--metrics 12]

Each way runs in a process of its own on a copy of one empty database, in turns. Imports and the making of the database are
left out on all sides. The product is timed from the opening of its tracker to the end of `close`, parameters, tags, fronts and
artefact included; the peers (benchmarks/peers/mlflow_callback.py) write curves and parameters alone. After each run the
database is read: every point of a curve has to be there once, with its value. The driver's share is the processor time of the
driver's thread in calls of the tracker, over the time that tracking took: the driver has nothing else to do here, so that it is
the largest share it could be. The limit is what MLflow's `log_batch` takes alone, in the same round; raw SQLite is told beside.
Printed, and written to docs/benchmarks/tracking.json and .png.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe, ratio

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.peers.mlflow_callback import epochs_of
from orchestrator.pareto.front import find_front
from orchestrator.results.store import Home
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.job import Job

OURS = "ours"
CALLBACK = "Tune's MLflowLoggerCallback"
ASYNC = "MLflow's async logging, once an epoch"
WAYS = (OURS, CALLBACK, ASYNC)
TARGET_RATE, TARGET_RATIO, TARGET_SHARE = 8000.0, 20.0, 0.01
_NAPS = 300


def made_up_job() -> Job:
    """Three holes, two objectives."""
    space = {
        "pruning.ratio": {"float": [0.0, 0.9]},
        "training.learning_rate": {"float": [0.001, 1.0], "log": True},
        "quantization.weight_bits": {"int": [2, 8]},
    }
    objectives = [{"metric": "accuracy"}, {"metric": "size_bytes"}]
    return Job.model_validate({"name": "tracking", "recipe": {}, "space": space, "objectives": objectives})


def made_up(number: int, trials: int, epochs: int, metrics: int) -> TrialResult:
    """A trial that ended well; every fourth is on the front when all have ended."""
    curve = [{"stage": "student", "epoch": epoch, **seen} for epoch, seen in epochs_of(number, epochs, metrics)]
    measured = {"accuracy": 0.5 + number / (2 * trials) - 0.4 * (number % 4 > 0), "size_bytes": 1000 + 10 * number}
    choice = {"pruning.ratio": number / 100, "training.learning_rate": 0.01, "quantization.weight_bits": 8}
    return TrialResult(number, "COMPLETE", choice, measured, curve=curve, attempt="a1", started=1e9, ended=1e9 + number)


def ours(home: Home, trials: int, epochs: int, metrics: int) -> dict[str, float]:
    """Feed the product's tracker as its driver does, as fast as it goes."""
    from orchestrator.tracking.connection import connect
    from orchestrator.tracking.mlflow_tracker import MlflowTracker
    from orchestrator.tracking.tracker import InBackground

    job, sweep = made_up_job(), home.sweep("tracking")
    results = [made_up(number, trials, epochs, metrics) for number in range(trials)]
    fronts = [find_front(results[: number + 1], job.objectives) for number in range(trials)]
    artefact = home.path / "report.html"
    artefact.write_bytes(b" " * 2**20)
    connect(home, None)  # imports MLflow
    began, spent = time.perf_counter(), time.thread_time()
    tracker = InBackground(lambda: MlflowTracker(job, home, sweep))
    tracker.open()
    for result, front in zip(results, fronts, strict=True):
        tracker.trial_ended(result, front)
    spent = time.thread_time() - spent
    late = sorted(_nap() for _ in range(_NAPS))
    tracker.close(fronts[-1], [artefact])
    seconds = time.perf_counter() - began
    if tracker.error is not None:
        raise tracker.error
    return {
        "seconds": seconds,
        "driver_s": spent,
        "nap_late_ms_median": late[_NAPS // 2],
        "nap_late_ms_p99": late[-_NAPS // 100],
    }


def _nap() -> float:
    """By how many milliseconds a nap of one was too long: what the driver's thread feels of the tracker's."""
    began = time.perf_counter()
    time.sleep(0.001)
    return (time.perf_counter() - began) * 1e3 - 1.0


def limits(home: Home, count: int) -> dict[str, float]:
    """Points a second that `log_batch` takes when it is called with as many as it may have, and that raw SQLite takes."""
    from mlflow.entities import Metric

    from orchestrator.tracking.connection import connect

    client = connect(home, None)
    run = client.create_run(client.create_experiment("limit")).info.run_id
    began = time.perf_counter()
    for first in range(0, count, 1000):
        client.log_batch(run, [Metric(f"m{i % 12}", float(i), 0, i // 12) for i in range(first, min(first + 1000, count))])
    batched = count / (time.perf_counter() - began)
    rows = [(f"r{i % 12}", float(i), 0, run, i // 12, 0) for i in range(count)]
    began = time.perf_counter()
    with contextlib.closing(sqlite3.connect(home.path / "mlflow.db")) as database, database:
        database.executemany(
            "insert into metrics (key, value, timestamp, run_uuid, step, is_nan) values (?, ?, ?, ?, ?, ?)", rows
        )
    return {"log_batch": batched, "sqlite": count / (time.perf_counter() - began)}


def check(database: Path, trials: int, epochs: int, metrics: int) -> None:
    """Every point of every curve is there once."""
    wanted = sorted(
        (name, epoch, value)
        for number in range(trials)
        for epoch, seen in epochs_of(number, epochs, metrics)
        for name, value in seen.items()
    )
    query = "select replace(key, 'student/', ''), step, value from metrics where replace(key, 'student/', '') glob 'm[0-9]*'"
    with contextlib.closing(sqlite3.connect(database)) as opened:
        found = sorted(opened.execute(query).fetchall())
    assert found == wanted, f"{len(found)} points of {len(wanted)}"


def measure(way: str, template: Home, sizes: dict[str, int]) -> dict[str, float]:
    """One way in a process of its own, on a copy of the empty database."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(folder)
        database = home.path / "mlflow.db"
        shutil.copy(template.path / "mlflow.db", database)
        options = [f"--{name}={size}" for name, size in sizes.items()]
        here = Path(__file__)
        command = [sys.executable, str(here), "--one", folder, *options]
        if way in (CALLBACK, ASYNC):
            peer = str(here.parent / "peers" / "mlflow_callback.py")
            command = [sys.executable, peer, "callback" if way == CALLBACK else "async", "--database", str(database), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{way}: {done.stderr[-3000:]}")
        check(database, **sizes)
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found


def report(runs: dict[str, list[dict[str, float]]], ceilings: list[dict[str, float]], points: int) -> dict[str, Any]:
    """Print medians against the targets; returns what is written down."""
    rates = {way: [points / run["seconds"] for run in rounds] for way, rounds in runs.items()}
    for way, values in rates.items():
        print(f"{way}: {statistics.median(values):.0f} metrics/s (of {min(values):.0f} to {max(values):.0f})")
    batched = [ceiling["log_batch"] for ceiling in ceilings]
    raw = statistics.median(ceiling["sqlite"] for ceiling in ceilings)
    print(f"limit, log_batch alone: {statistics.median(batched):.0f} metrics/s; raw SQLite: {raw:.0f} rows/s")
    ratios = {name: ratio(rates[OURS], other) for name, other in [*rates.items(), ("limit", batched)] if name != OURS}
    for name, (low, middle, high) in ratios.items():
        print(f"ours / {name}: {middle:.2f} [{low:.2f}, {high:.2f}]")
    share = statistics.median(run["driver_s"] / run["seconds"] for run in runs[OURS])
    naps = {key: statistics.median(run[key] for run in runs[OURS]) for key in ("nap_late_ms_median", "nap_late_ms_p99")}
    print(f"driver's thread: {share:.4%} of the time; its naps are late by {naps['nap_late_ms_median']:.2f} ms (median), "
          f"{naps['nap_late_ms_p99']:.2f} ms (99 of 100) while the tracker writes")  # fmt: skip
    goals = {
        f"at least {TARGET_RATE:.0f} metrics/s": statistics.median(rates[OURS]) >= TARGET_RATE,
        f"at least {TARGET_RATIO:.0f} times the callback": ratios[CALLBACK][1] >= TARGET_RATIO,
        f"at most {TARGET_SHARE:.0%} of the driver's time": share <= TARGET_SHARE,
    }
    for goal, met in goals.items():
        print(f"target {goal}: {'met' if met else 'MISSED'}")
    return {"rates": rates, "ratios": ratios, "limits": ceilings, "driver_share": share, **naps, "targets": goals}


def draw(rates: dict[str, list[float]], limit: float, path: Path) -> None:
    """Median rates as bars, the range as whiskers, the limit as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 2.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = list(reversed(rates))
    middles = [statistics.median(rates[name]) for name in names]
    spread = [[m - min(rates[n]) for n, m in zip(names, middles, strict=True)],
              [max(rates[n]) - m for n, m in zip(names, middles, strict=True)]]  # fmt: skip
    axes.barh(names, middles, xerr=spread, color=["tab:blue" if name == OURS else "0.7" for name in names], ecolor="0.3")
    axes.axvline(limit, color="0.2", linewidth=1, linestyle="--")
    axes.annotate("log_batch alone ", (limit, -0.4), ha="right", fontsize=7, va="bottom")
    axes.set(xlim=(0, 1.2 * max(limit, *middles)), xlabel="metrics a second into MLflow on SQLite, end to end")
    for name, middle in zip(names, middles, strict=True):
        axes.annotate(f"   {middle:,.0f}", (max(rates[name]), name), va="center", fontsize=8)
    figure.savefig(path)


def main() -> None:
    """Run all ways in turns, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--metrics", type=int, default=12)
    parser.add_argument("--out", default="docs/benchmarks")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = {"trials": args.trials, "epochs": args.epochs, "metrics": args.metrics}
    if args.one:
        print(json.dumps(ours(Home(args.one), **sizes)))
        return
    print(describe())
    points = args.trials * args.epochs * args.metrics
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    ceilings = []
    with tempfile.TemporaryDirectory() as folder:
        from orchestrator.tracking.connection import connect

        template = Home(Path(folder) / "template")
        template.path.mkdir()
        connect(template, None)
        for number in range(args.rounds):
            for way in WAYS:
                runs[way].append(measure(way, template, sizes))
                print(f"round {number + 1}, {way}: {points / runs[way][-1]['seconds']:.0f} metrics/s", flush=True)
            home = Home(Path(folder) / f"limit-{number}")
            home.path.mkdir()
            shutil.copy(template.path / "mlflow.db", home.path / "mlflow.db")
            ceilings.append(limits(home, points))
    found = report(runs, ceilings, points)
    out = Path(args.out)
    about = {"machine": describe(), "arguments": vars(args), "points": points, **found}
    (out / "tracking.json").write_text(json.dumps(about, indent=1) + "\n")
    draw(found["rates"], statistics.median(ceiling["log_batch"] for ceiling in ceilings), out / "tracking.png")


if __name__ == "__main__":
    main()
