"""From a cold command to a printed front: when the first trial has ended, when all have, and where the time goes.

    uv run python benchmarks/quickstart.py [--repetitions 3] [--job jobs/quickstart.yaml]

Dependencies are installed and compiled; the home folder is new each time. "Between trials" is the time of a gang from the end
of a trial's last stage to the start of the next trial's first. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe

from orchestrator.results.store import Home
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.load import load_job


def measure(job: str) -> dict[str, Any]:
    """One cold run in a home of its own; seconds since the command was given."""
    name = load_job(job).name
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "ORCHESTRATOR_HOME": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        began = time.time()
        command = [sys.executable, "-m", "orchestrator.cli.main", "run", job, "-o", "json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        total = time.time() - began
        results = Home(folder).sweep(name).results()
    phases = re.findall(r"^\[(\d+):(\d\d)\] (start.*|\d+ of .*)$", done.stderr, re.MULTILINE)
    first = min(results, key=lambda result: result.ended)
    return {
        "phases": [(int(minutes) * 60 + int(seconds), text) for minutes, seconds, text in phases],
        "first trial begins": first.started - began,
        "first trial, by stage": {stage.name: round(stage.seconds, 2) for stage in first.stages},
        "first finished trial": first.ended - began,
        "all finished": max(result.ended for result in results) - began,
        "front printed": total,
        "between trials, median": statistics.median(gaps(results)),
        "points on the front": len(json.loads(done.stdout)["points"]),
    }


def gaps(results: list[TrialResult]) -> list[float]:
    """Seconds outside any stage between two trials of one gang."""
    found = []
    for gang in {result.gang for result in results}:
        row = sorted((result for result in results if result.gang == gang), key=lambda result: result.started)
        for before, after in itertools.pairwise(row):
            found.append(after.stages[0].started - (before.stages[-1].started + before.stages[-1].seconds))
    return found


def main() -> None:
    """Print every repetition, then medians against the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--job", default=str(Path("jobs/quickstart.yaml")))
    args = parser.parse_args()
    print(describe())
    runs = []
    for repetition in range(args.repetitions):
        runs.append(measure(args.job))
        print(f"\nrepetition {repetition + 1}")
        for key, value in runs[-1].items():
            print(f"  {key}: {value if not isinstance(value, float) else round(value, 3)}")
    print(f"\nmedians of {len(runs)}")
    for key, target in (("first finished trial", 60), ("all finished", 150), ("between trials, median", 0.2)):
        values = [run[key] for run in runs]
        middle = statistics.median(values)
        verdict = "met" if middle <= target else "MISSED"
        print(f"  {key}: {middle:.2f} s (of {', '.join(f'{v:.2f}' for v in values)}); target {target} s: {verdict}")


if __name__ == "__main__":
    main()
