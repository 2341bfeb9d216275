"""What stopping saves: the product's rule against training in full, and against others' rules, on the exhaustive table.

    uv run python benchmarks/early_stopping.py [--seeds 20] [--trials 60] [--processes 2] [--table FILE]

The part of the table whose last phase has all its epochs (27 where it trains quantizers), so that every trial asks for the
whole and a rule decides how much it gets. Random points for everybody, so that rules are compared and not searchers; TPE and
ehvi beside it. Everybody shares stages, as in the product. Regret and cost as in search_quality.py. Only networks that were
trained to the end count, as the product ships no others; the lines "stopped networks count" give peers theirs as they were when
they were stopped. "limit": the same random points, had every last phase been over after its first epoch without any loss: all
that a stopping rule could save, where stages are shared. "ASHA, scalarised" is told the mean of the costs, each in units of its
reference.
Printed, and written to docs/benchmarks/early_stopping.json and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import describe

from benchmarks.table.contest import Entry, Steps, checkpoints, draw, middle, play, play_all, reached, syne_tune
from benchmarks.table.table import EPOCHS, HERE, table_job
from orchestrator.search.points import domain_values

TARGET = 4.0
HALVING = {"method": "successive_halving", "promote": True}
FULL, MAIN, LIMIT = "random, in full", "ours, random", "limit: one epoch, and nothing lost"
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    FULL: ("random", {}),
    "TPE, in full": ("tpe", {}),
    "ehvi, in full": ("ehvi", {}),
    MAIN: ("random", HALVING),
    "ours, random, no control": ("random", HALVING | {"control_fraction": 0.0}),
    "ours, random, stopped for good": ("random", HALVING | {"promote": False}),
    "ours, random, from epoch 9": ("random", HALVING | {"min_epochs": 9}),
    "ours, ehvi, from epoch 9": ("ehvi", HALVING | {"min_epochs": 9}),
}
_MORE = 5  # trials that are stopped are cheap: so many times more of them, within the same cost
_LARGE, _LARGE_SECONDS = 820, 10.0  # all points of the whole table; the target is for a thousand trials


def entries(names: list[str], args: argparse.Namespace, trials: int, cost: float) -> list[Entry]:
    """The product's searcher with or without its rule, on the part of the table that is trained in full."""
    pin = max(int(value) for value in domain_values(table_job().space.root[EPOCHS], 2))
    common: dict[str, Any] = {"ours": True, "sharing": True, "cost": cost, "pin": pin, "table": args.table}
    return [
        Entry(name, OURS[name][0], seed, trials, stopping=OURS[name][1], **common)
        for name in names
        for seed in range(args.seeds)
    ]


def behind(steps: list[Steps], peer: list[Steps], costs: list[float]) -> list[float]:
    """The costs at which the median regret is above a peer's."""
    pairs = zip(costs, middle(steps, costs), middle(peer, costs), strict=True)
    return [cost for cost, ours, theirs in pairs if ours > theirs]


def judge(steps: dict[str, list[Steps]], goal: float, top: float) -> list[dict[str, Any]]:
    """One line a rule: how much less it costs to come to the goal, and how far it is on the way."""
    lines = []
    for name, seeds in steps.items():
        cheaper = reached(steps[FULL], goal) / reached(seeds, goal)
        three = ", ".join(f"{regret:.4f}" for regret in middle(seeds, [top / 8, top / 2, top]))
        print(f"{name}: {cheaper:.2f}x less cost; regret at an eighth, a half and all of it: {three}")
        lines.append({"name": name, "cheaper": cheaper, "regret": middle(seeds, checkpoints(top))})
    ours = next(line for line in lines if line["name"] == MAIN)
    ours["behind"] = {
        peer: behind(steps[MAIN], steps[peer], checkpoints(top)) for peer in steps if peer.startswith("Syne Tune")
    }
    for peer, costs in ours["behind"].items():
        print(
            f"{MAIN}, against {peer}: {f'BEHIND at {len(costs)} of {len(checkpoints(top))} costs' if costs else 'never behind'}"
        )
    verdict = "met" if ours["cheaper"] >= TARGET else "MISSED"
    print(f"target {TARGET}x less cost at equal regret: {ours['cheaper']:.2f}x: {verdict}")
    return lines


def seconds_per_thousand(table: str) -> float:
    """What a thousand simulated trials take, on the whole table."""
    clock = time.perf_counter()
    large = play(Entry(MAIN, "random", 0, _LARGE, ours=True, sharing=True, stopping=HALVING, table=table))
    found = 1000 * (time.perf_counter() - clock) / large["trials"]
    verdict = "met" if found <= _LARGE_SECONDS else "MISSED"
    print(f"{large['trials']} simulated trials, {found:.1f} s a thousand; target {_LARGE_SECONDS} s: {verdict}")
    return found


def main() -> None:
    """Simulate, judge, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--table", default=str(HERE / "table.parquet"))
    parser.add_argument("--out", default="docs/benchmarks")
    args = parser.parse_args()
    started = time.time()
    print(describe())
    limit = [replace(entry, name=LIMIT, hurried=True) for entry in entries([FULL], args, args.trials, float("inf"))]
    full, ruled = [name for name in OURS if "full" in name], [name for name in OURS if "full" not in name]
    outcomes = play_all([*entries(full, args, args.trials, float("inf")), *limit], args.processes)
    top = statistics.median(one["cost"] for one in outcomes[FULL])
    more = args.trials * _MORE
    outcomes |= play_all(entries(ruled, args, more, top), args.processes)
    steps: dict[str, list[Steps]] = {name: [one["steps"] for one in seeds] for name, seeds in outcomes.items()}
    peers = syne_tune(args.seeds, more, top, args.table, sharing=True, pin=True)
    steps |= {name: seeds for name, seeds in peers.items() if "ASHA" in name}
    goal = statistics.median(one[-1][1] for one in steps[FULL])
    print(f"regret of {args.trials} random points trained in full: {goal:.4f}, for a cost of {top:.0f}")
    lines, thousand = judge(steps, goal, top), seconds_per_thousand(args.table)
    about = {"machine": describe(), "arguments": vars(args), "seconds": round(time.time() - started), "goal": goal, "top": top}
    about |= {"checkpoints": checkpoints(top), "lines": lines, "seconds_per_thousand": thousand}
    about["stopped"] = {name: statistics.median(one["stopped"] for one in seeds) for name, seeds in outcomes.items()}
    out = Path(args.out)
    (out / "early_stopping.json").write_text(json.dumps(about, indent=1) + "\n")
    draw(steps, top, f"What stopping saves, {args.seeds} seeds (median, quartiles)", out / "early_stopping.png")


if __name__ == "__main__":
    main()
