"""Many searchers, many seeds, one table: run side by side in processes, then read as costs, regrets and a picture."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.table.searchers import Optuna, Ours, optuna_samplers, with_search
from benchmarks.table.simulation import Simulation, cost_of, regret_at, regrets
from benchmarks.table.table import EPOCHS, Table, read_table

Steps = list[tuple[float, float]]
"""(cost, regret) wherever the regret fell, from (0, 1)."""


@dataclass(frozen=True)
class Entry:
    """One searcher with one seed.

    Args:
        name: as reported.
        sampler: of Optuna by its reported name, or of the product.
        ours: whether the product runs it.
        sharing: whether stages are shared.
        stopping: settings of the product's rule.
        stopped_count: networks of stopped trials count as they are.
        pin: epochs of the last phase for all trials; 0 leaves them to the search.
        hurried: whether last phases are over after one epoch, and lose nothing by it: what no stopping rule can do better.
    """

    name: str
    sampler: str
    seed: int
    trials: int
    ours: bool = False
    sharing: bool = False
    cost: float = float("inf")
    stopping: Mapping[str, Any] = field(default_factory=dict)
    pin: int = 0
    hurried: bool = False
    table: str = ""


@cache
def _table(path: str, pin: int, hurried: bool) -> Table:
    table = read_table(Path(path))
    table = table.pinned(EPOCHS, pin) if pin else table
    return table.hurried() if hurried else table


def play(entry: Entry) -> dict[str, Any]:
    """Simulate one entry: its steps, its trials, and what deciding took, in seconds a trial."""
    table = _table(entry.table, entry.pin, entry.hurried)
    searcher: Ours | Optuna
    if entry.ours:
        searcher = Ours(with_search(table.job, entry.seed, entry.sampler, **entry.stopping), entry.trials)
    else:
        searcher = Optuna(table.job, optuna_samplers(entry.seed)[entry.sampler]())
    started = time.perf_counter()
    ends = Simulation(table, searcher, sharing=entry.sharing).run(entry.trials * (2 if entry.ours else 1), entry.cost)
    return {
        "name": entry.name,
        "seed": entry.seed,
        "steps": regrets(table, ends),
        "trials": len(ends),
        "stopped": sum(end.state == "STOPPED" for end in ends),
        "cost": max(end.cost for end in ends),
        "seconds_per_trial": (time.perf_counter() - started) / len(ends),
    }


def play_all(entries: Sequence[Entry], processes: int) -> dict[str, list[dict[str, Any]]]:
    """All entries, by name and in the order of seeds; says how far it is."""
    found: dict[str, list[dict[str, Any]]] = {}
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for number, outcome in enumerate(pool.imap(play, entries), start=1):
            found.setdefault(outcome["name"], []).append(outcome)
            if number % 10 == 0 or number == len(entries):
                print(f"{number} of {len(entries)} simulated", file=sys.stderr, flush=True)
    return found


def syne_tune(seeds: int, trials: int, cost: float, table: str, *, sharing: bool, pin: bool) -> dict[str, list[Steps]]:
    """Syne Tune's methods, by a script in an environment of its own; none where that cannot be made."""
    script = Path(__file__).parents[1] / "peers" / "syne_tune_search.py"
    options = ["--sharing"] * sharing + ["--pin-epochs"] * pin
    numbers = ["--seeds", str(seeds), "--trials", str(trials), "--cost", str(cost), "--table", table]
    done = subprocess.run(["uv", "run", "-q", str(script), *numbers, *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"Syne Tune did not run: {done.stderr[-500:]}", file=sys.stderr)
        return {}
    found: dict[str, list[Steps]] = json.loads(done.stdout)
    return found


def middle(steps: Sequence[Steps], costs: Sequence[float]) -> list[float]:
    """The median over seeds of the regret at each cost."""
    return [statistics.median(regret_at(one, cost) for one in steps) for cost in costs]


def reached(steps: Sequence[Steps], regret: float) -> float:
    """The cost at which half of the seeds had come down to a regret; infinite where more than half never did."""
    return float(statistics.median_low(cost_of(one, regret) for one in steps))


def checkpoints(top: float, number: int = 12) -> list[float]:
    """Costs at which searchers are compared, evenly spaced in their logarithm."""
    return [float(cost) for cost in np.geomspace(top / 30, top, number)]


def draw(steps: Mapping[str, Sequence[Steps]], top: float, title: str, path: Path) -> None:
    """Median regret over cost, on logarithmic axes; the product's thick, with the quartiles over seeds as a band."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    costs = [float(cost) for cost in np.geomspace(top / 100, top, 200)]
    figure = Figure(figsize=(8.0, 5.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    floor = 1e-4
    colors, styles = colormaps["tab10"], {"Optuna": "--", "Syne": "-.", "limit": ":"}
    ours = [name for name in steps if name.startswith("ours")]
    others = [name for name in steps if name not in ours]
    for names, width in ((others, 1.3), (ours, 2.4)):
        for number, name in enumerate(names):
            values = np.maximum([[regret_at(one, cost) for cost in costs] for one in steps[name]], floor)
            low, mid, high = np.percentile(values, [25, 50, 75], axis=0)
            how = {"color": colors(number % 10), "linewidth": width, "linestyle": styles.get(name.split()[0].strip(":"), "-")}
            axes.plot(costs, mid, label=name, **how)
            if name in ours:
                axes.fill_between(costs, low, high, color=colors(number % 10), alpha=0.1, linewidth=0)
    axes.set(xscale="log", yscale="log", xlabel="cost: gangs x seconds", ylabel="regret: 1 - hypervolume / best")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=7)
    figure.suptitle(title, fontsize=10)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png")
    partial.replace(path)
