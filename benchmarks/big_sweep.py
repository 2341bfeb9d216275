"""A sweep of 1,000 trials after the search: its front in a terminal, its page written, and the page in a browser.

    uv run python benchmarks/big_sweep.py [--trials 1000] [--rounds 3] [--home DIR]

The facts are made up (benchmarks/made_sweep.py): 600 numbers a curve, all four states, hostile names. Each command runs in a
process of its own and is timed from its start to its end, imports included. The page is opened from disk in Chromium without a
window, each time in a fresh browser. It is interactive when table, sliders, axes and scatter are drawn and listen; it notes
that itself, in milliseconds since it was asked for. A slider is moved right then, and has to move the suggestion.
Printed, and written to docs/benchmarks/big_sweep.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.made_sweep import NAME, make_sweep
from orchestrator.results.store import Home, Sweep

FRONT_S, REPORT_S, PAGE_BYTES, INTERACTIVE_S = 1.0, 10.0, 8_000_000, 2.0


def run(home: Path, *args: str) -> float:
    """Seconds that a command takes, from nothing to its exit."""
    command = [sys.executable, "-m", "orchestrator.cli.main", *args, "--home", str(home)]
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1], env=dict(os.environ))
    return time.perf_counter() - began


def opened(page: Path) -> dict[str, float]:
    """Seconds until the page listens, until a slider's answer is there, and until all is drawn."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    assert path is not None, "chromium must be installed"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1280, "height": 900})
        view.goto(page.as_uri(), wait_until="commit")
        view.wait_for_selector("html[data-ready]", state="attached")
        answered = view.evaluate(
            """() => {
                const slider = document.getElementById('weight-0');
                const before = document.getElementById('pick-command').textContent;
                slider.value = 10;
                slider.dispatchEvent(new Event('input'));
                const moved = document.getElementById('pick-command').textContent !== before;
                return moved ? performance.now() / 1000 : NaN;
            }"""
        )
        view.wait_for_selector("html[data-drawn]", state="attached")
        ready, drawn = view.evaluate(
            "[Number(document.documentElement.dataset.ready), Number(document.documentElement.dataset.drawn)]"
        )
        browser.close()
    return {"interactive_s": ready / 1000, "answered_s": answered, "drawn_s": drawn / 1000}


def measured(sweep: Sweep, home: Path, rounds: int) -> dict[str, list[float]]:
    """Every figure, once a round."""
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        once = {"front_s": run(home, "front", NAME, "-o", "json"), "report_s": run(home, "report", NAME)}
        once |= {"page_bytes": float(sweep.report_file.stat().st_size)} | opened(sweep.report_file)
        for key, value in once.items():
            found.setdefault(key, []).append(value)
        print(f"round {number + 1}: {', '.join(f'{key} {value:.4g}' for key, value in once.items())}", flush=True)
    return found


def report(found: dict[str, list[float]]) -> dict[str, Any]:
    """Print medians against the targets; returns what is written down."""
    middle = {key: statistics.median(values) for key, values in found.items()}
    for key, values in found.items():
        print(f"{key}: {middle[key]:.4g} (of {min(values):.4g} to {max(values):.4g})")
    goals = {
        f"front -o json in at most {FRONT_S:g} s": middle["front_s"] <= FRONT_S,
        f"report in at most {REPORT_S:g} s": middle["report_s"] <= REPORT_S,
        f"a page of at most {PAGE_BYTES / 1e6:g} MB": middle["page_bytes"] <= PAGE_BYTES,
        f"interactive within {INTERACTIVE_S:g} s": middle["interactive_s"] <= INTERACTIVE_S,
    }
    for goal, met in goals.items():
        print(f"target {goal}: {'met' if met else 'MISSED'}")
    return {"figures": found, "targets": goals}


def main() -> None:
    """Make the sweep, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--home", type=Path, help="where a made-up sweep lies, or is to lie")
    parser.add_argument("--out", default="docs/benchmarks")
    args = parser.parse_args()
    machine = describe()
    print(machine)
    with tempfile.TemporaryDirectory() as folder:
        home = args.home or Path(folder)
        sweep = Home(home).sweep(NAME)
        if not sweep.exists():
            make_sweep(home, args.trials)
        found = report(measured(sweep, home, args.rounds))
    about = {"machine": machine, "trials": args.trials, "rounds": args.rounds, **found}
    (Path(args.out) / "big_sweep.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
