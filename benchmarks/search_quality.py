"""What it costs to find the front: searchers on the exhaustive table, in simulated time, over many seeds.

    uv run python benchmarks/search_quality.py [--seeds 20] [--gp-seeds 5] [--trials 100] [--processes 2] [--table FILE]

The table holds every point of its space (benchmarks/table/README.md), so the true front is known. Regret is 1 - hypervolume /
the true front's. Cost is gangs x seconds, for two gangs, as the stages took when the table was made. The yardstick is the
median regret of Optuna's TPE (its default settings) after `--trials` trials; every searcher is asked what it cost to come down
to it.
Peers run as their users write them: no stage is shared but the teacher, which anybody would train once, and a point asked for
twice is run twice. They are also run with the product's stage sharing, so that what is due to searching can be told from
what is due to sharing. Printed, and written to docs/benchmarks/search_quality.json and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from machine import describe

from benchmarks.table.contest import Entry, Steps, checkpoints, draw, middle, play_all, reached, syne_tune
from benchmarks.table.table import HERE

PEERS = ("Optuna random", "Optuna NSGA-II", "Optuna TPE", "Optuna GP")
HALVING = {"method": "successive_halving", "promote": True}
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours, random": ("random", {}),
    "ours, nsga2": ("nsga2", {}),
    "ours, tpe": ("tpe", {}),
    "ours, ehvi": ("ehvi", {}),
    "ours, ehvi, stopping": ("ehvi", HALVING),
}
MAIN, TARGET = "ours, ehvi", 3.0
RIVALS = ("Optuna TPE", "Optuna NSGA-II", "Optuna GP")
_MORE = 4  # searchers whose trials are cheaper may make so many times more of them, within the same cost


def peers(args: argparse.Namespace) -> list[Entry]:
    """Optuna's samplers, alone and with sharing."""
    return [
        Entry(f"{name}, sharing" if sharing else name, name, seed, args.trials, sharing=sharing, table=args.table)
        for name in PEERS
        for sharing in (False, True)
        for seed in range(args.gp_seeds if "GP" in name else args.seeds)
    ]


def product(args: argparse.Namespace, names: Iterable[str], seeds: range, cost: float) -> list[Entry]:
    """The product's searchers, for as many trials as a cost allows."""
    return [
        Entry(name, OURS[name][0], seed, args.trials * _MORE, True, True, cost, OURS[name][1], table=args.table)
        for name in names
        for seed in seeds
    ]


def fresh(args: argparse.Namespace, cost: float) -> dict[str, Any]:
    """The main comparison once more, with seeds that nothing was chosen by (docs/decisions/0011)."""
    seeds = range(args.seeds, 2 * args.seeds)
    entries = [Entry("Optuna TPE", "Optuna TPE", seed, args.trials, table=args.table) for seed in seeds]
    outcomes = play_all([*entries, *product(args, [MAIN], seeds, cost)], args.processes)
    steps = {name: [one["steps"] for one in found] for name, found in outcomes.items()}
    goal = statistics.median(one[-1][1] for one in steps["Optuna TPE"])
    factor = reached(steps["Optuna TPE"], goal) / reached(steps[MAIN], goal)
    print(f"with seeds {seeds[0]} to {seeds[-1]}: regret {goal:.4f}, {MAIN} {factor:.2f}x cheaper than Optuna TPE")
    return {"seeds": [seeds[0], seeds[-1]], "goal": goal, "cheaper": factor}


def judge(steps: dict[str, list[Steps]], goal: float, top: float) -> list[dict[str, Any]]:
    """One line a searcher: its cost to the goal, against TPE alone and with sharing, and where it is worse than random."""
    yardsticks = {name: reached(steps[name], goal) for name in ("Optuna TPE", "Optuna TPE, sharing")}
    costs = checkpoints(top)
    lines = []
    for name, seeds in steps.items():
        shares = "sharing" in name or name.startswith("ours")
        cost, random = reached(seeds, goal), steps["Optuna random, sharing" if shares else "Optuna random"]
        worse = [c for c, r, other in zip(costs, middle(seeds, costs), middle(random, costs), strict=True) if r > other]
        line: dict[str, Any] = {
            "name": name,
            "cost": cost if cost < float("inf") else None,
            "regret": middle(seeds, costs),
            "worse_than_random_at": worse,
        }
        line |= {f"cheaper_than_{key}": ratio(value, cost) for key, value in yardsticks.items()}
        lines.append(line)
    return lines


def ratio(theirs: float, ours: float) -> float | None:
    """How many times as much theirs is; None where one of the two never came to the goal."""
    return theirs / ours if max(theirs, ours) < float("inf") else None


def against(
    rival: str, steps: dict[str, list[Steps]], outcomes: dict[str, list[dict[str, Any]]], goal: float
) -> dict[str, Any]:
    """How much less the product's own sampler costs than a rival, to the goal; where the rival never comes to it, at least."""
    cost, theirs = reached(steps[MAIN], goal), reached(steps[rival], goal)
    came = theirs < float("inf")
    # No more than all its trials cost: seeds that are late to come to it had dear trials.
    factor = min(theirs, statistics.median(one["cost"] for one in outcomes[rival])) / cost
    verdict = "met" if factor >= TARGET else "MISSED"
    print(f"target {TARGET}x cheaper than {rival}: {MAIN} {'' if came else 'at least '}{factor:.2f}x: {verdict}")
    return {"rival": rival, "came_to_the_goal": came, "cheaper": factor}


def described(line: dict[str, Any]) -> str:
    """One searcher, for people."""
    if line["cost"] is None:
        return f"{line['name']}: never came to it"
    found = [f"{line['name']}: cost {line['cost']:.0f}"]
    found += [
        f"{line[key]:.2f}x {key.replace('_', ' ')}" for key in line if key.startswith("cheaper") and line[key] is not None
    ]
    if line["worse_than_random_at"]:
        found.append(f"worse than random at {len(line['worse_than_random_at'])} of 12 costs")
    return ", ".join(found)


def main() -> None:
    """Simulate, judge, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--gp-seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--table", default=str(HERE / "table.parquet"))
    parser.add_argument("--out", default="docs/benchmarks")
    args = parser.parse_args()
    started = time.time()
    print(describe())
    outcomes = play_all(peers(args), args.processes)
    top = statistics.median(one["cost"] for one in outcomes["Optuna TPE"])
    outcomes |= play_all(product(args, OURS, range(args.seeds), top), args.processes)
    steps: dict[str, list[Steps]] = {name: [one["steps"] for one in seeds] for name, seeds in outcomes.items()}
    for sharing in (False, True):
        found = syne_tune(args.seeds, args.trials * _MORE, top, args.table, sharing=sharing, pin=False)
        steps |= {f"{name}, sharing" if sharing else name: seeds for name, seeds in found.items()}
    goal = statistics.median(one[-1][1] for one in steps["Optuna TPE"])
    lines = judge(steps, goal, top)
    print(f"regret of Optuna's TPE after {args.trials} trials: {goal:.4f}, for a cost of {top:.0f}")
    for line in lines:
        print(described(line))
    rivals = [against(rival, steps, outcomes, goal) for rival in RIVALS]
    again = fresh(args, top)
    thinking = {name: statistics.median(one["seconds_per_trial"] for one in seeds) for name, seeds in outcomes.items()}
    about = {"machine": describe(), "arguments": vars(args), "seconds": round(time.time() - started)}
    about |= {
        "rivals": rivals,
        "fresh_seeds": again,
        "goal": goal,
        "top": top,
        "checkpoints": checkpoints(top),
        "seconds_per_trial": thinking,
        "lines": lines,
    }
    out = Path(args.out)
    (out / "search_quality.json").write_text(json.dumps(about, indent=1) + "\n")
    shown = {name: seeds for name, seeds in steps.items() if ", sharing" not in name and ", stopped" not in name}
    draw(shown, top, f"Cost of finding the front, {args.seeds} seeds (median, quartiles)", out / "search_quality.png")


if __name__ == "__main__":
    main()
