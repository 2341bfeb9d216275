"""What a trial costs when it does nothing: the product's whole path against Ray Tune's, default and tuned.

    uv run python benchmarks/dispatch.py [--trials 300] [--default-trials 300] [--rounds 3]

300 trials with two objectives, Optuna's TPE, two at a time, and everything on disk that a crash must leave. The product runs
as `orchestrator run` runs it (facts, Director, desk, Tune, two gangs, the display), but for MLflow, which has a figure of its
own, and for the trial itself: in the workers' processes, and only there, the function that runs a trial is replaced by one that
returns made-up measurements (noop_sweep.py). Each side runs in a process of its own with a Ray of its own, in turns.

Reported: milliseconds a trial from when both slots have served one to the end of the last (so start-up is left out, and two at
a time share each millisecond), the same with start-up, and where the product's time goes: what each trial waits for, and what
the driver's thread is busy with. The limit is one round trip to an actor and the sampler's own time. Printed, and written to
docs/benchmarks/dispatch.json and .png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe, ratio

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.peers.tune_dispatch import SLOTS

OURS, DEFAULT, REUSE = "ours", "Tune, default", "Tune, tuned: reuse_actors, no loggers"
VARIANTS = {DEFAULT: "default", REUSE: "reuse"}
TARGET_DEFAULT, TARGET_REUSE = 20.0, 1.0


def round_trip() -> float:
    """Milliseconds of one call of an actor and its answer, on this machine now."""
    import ray

    @ray.remote(num_cpus=0)
    class Echo:
        def say(self, word: int) -> int:
            return word

    ray.init(num_cpus=SLOTS, log_to_driver=False, logging_level="ERROR")
    echo = Echo.remote()
    took = []
    for word in range(300):
        began = time.perf_counter()
        ray.get(echo.say.remote(word))
        took.append((time.perf_counter() - began) * 1e3)
    ray.shutdown()
    return statistics.median(took)


def measure(way: str, trials: int) -> dict[str, Any]:
    """One side in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(__file__).parent
        script, which = ("noop_sweep.py", folder) if way == OURS else ("peers/tune_dispatch.py", VARIANTS[way])
        command = [sys.executable, str(here / script), which, "--trials", str(trials)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{way}: {done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    ends = found["ends"]
    warm = [end for end in ends if end >= found["warm"]]
    return {**found, "ms": (warm[-1] - warm[0]) / (len(warm) - 1) * 1e3, "ms_with_start": found["total"] / len(ends) * 1e3}


def report(runs: dict[str, list[dict[str, Any]]], trip: float) -> dict[str, Any]:
    """Print medians against the targets, and where our time goes; returns what is written down."""
    per_trial = {way: [run["ms"] for run in rounds] for way, rounds in runs.items()}
    for way, values in per_trial.items():
        whole = statistics.median(run["ms_with_start"] for run in runs[way])
        middle, spread = statistics.median(values), f"{min(values):.1f} to {max(values):.1f}"
        print(f"{way}: {middle:.1f} ms/trial (of {spread}); {whole:.1f} with start-up")
    ratios = {way: ratio(values, per_trial[OURS]) for way, values in per_trial.items() if way != OURS}
    for way, (low, middle, high) in ratios.items():
        print(f"{way} / ours: {middle:.2f} [{low:.2f}, {high:.2f}]")
    tables = {
        table: {
            name: statistics.median(run["parts"][table][name] for run in runs[OURS]) for name in runs[OURS][0]["parts"][table]
        }
        for table in ("way", "driver")
    }
    middle, spent = statistics.median(per_trial[OURS]), sum(tables["driver"].values())
    tables["driver"]["the rest: Tune's loop, and waiting"] = middle - spent
    print("\nwhat a trial waits for, in ms (median)")
    for name, value in tables["way"].items():
        print(f"  {name}: {value:.2f}")
    print("the driver's thread, in ms a trial")
    for name, value in tables["driver"].items():
        print(f"  {name}: {value:.2f}")
    limit = trip + tables["way"]["sampler asked"] + tables["way"]["sampler told"]
    print(f"limit: one actor round trip {trip:.2f} ms and the sampler: {limit:.2f} ms; ours is {middle / limit:.1f} times that")
    goals = {
        f"Tune's default at least {TARGET_DEFAULT:.0f} times as long": ratios[DEFAULT][1] >= TARGET_DEFAULT,
        "no slower than tuned reuse": ratios[REUSE][1] >= TARGET_REUSE,
    }
    for goal, met in goals.items():
        print(f"target {goal}: {'met' if met else 'MISSED'}")
    return {"ms_per_trial": per_trial, "ratios": ratios, **tables, "round_trip_ms": trip, "limit_ms": limit, "targets": goals}


def draw(per_trial: dict[str, list[float]], limit: float, path: Path) -> None:
    """Median milliseconds as bars on a logarithmic axis, the limit as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 2.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = list(reversed(per_trial))
    middles = [statistics.median(per_trial[name]) for name in names]
    axes.barh(names, middles, color=["tab:blue" if name == OURS else "0.7" for name in names])
    axes.axvline(limit, color="0.2", linewidth=1, linestyle="--", label="limit: actor round trip and sampler")
    axes.set(xscale="log", xlabel="ms a trial that does nothing, two at a time")
    axes.legend(frameon=False, fontsize=7)
    for name, middle in zip(names, middles, strict=True):
        axes.annotate(f" {middle:,.1f}", (middle, name), va="center", fontsize=8)
    figure.savefig(path)


def main() -> None:
    """Run all sides in turns, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--default-trials", type=int, default=300, help="of Tune's default, about a second each")
    parser.add_argument("--out", default="docs/benchmarks")
    args = parser.parse_args()
    print(describe())
    runs: dict[str, list[dict[str, Any]]] = {OURS: [], REUSE: [], DEFAULT: []}
    for number in range(args.rounds):
        for way, rounds in runs.items():
            rounds.append(measure(way, args.default_trials if way == DEFAULT else args.trials))
            print(f"round {number + 1}, {way}: {rounds[-1]['ms']:.1f} ms/trial", flush=True)
    found = report(runs, round_trip())
    out = Path(args.out)
    about = {"machine": describe(), "arguments": vars(args), **found}
    (out / "dispatch.json").write_text(json.dumps(about, indent=1) + "\n")
    draw(found["ms_per_trial"], found["limit_ms"], out / "dispatch.png")


if __name__ == "__main__":
    main()
