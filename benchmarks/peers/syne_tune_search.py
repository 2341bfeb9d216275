# /// script
# requires-python = ">=3.11"
# dependencies = ["syne-tune==0.16.0", "numpy>=2", "pyarrow>=25", "pydantic>=2.12", "pyyaml>=6"]
# ///
"""Syne Tune's searchers on the exhaustive table, in an environment of their own and in our simulated time.

    uv run benchmarks/peers/syne_tune_search.py --seeds 20 --trials 400 --cost 1000 [--pin-epochs] > peers.json

Standard output is one JSON object: method to a list over seeds of [[cost, regret], ...]. Conditions are unknown to Syne Tune:
every hole is sampled, and those that are inactive at a point are left out. Costs are told, so everything is minimised.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice as categorical
from syne_tune.config_space import ordinal
from syne_tune.optimizer.baselines import ASHA
from syne_tune.optimizer.scheduler import SchedulerDecision, TrialScheduler
from syne_tune.optimizer.schedulers.multiobjective import MultiObjectiveRegularizedEvolution
from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA
from syne_tune.optimizer.schedulers.single_fidelity_scheduler import SingleFidelityScheduler

from benchmarks.table.simulation import Simulation, regrets
from benchmarks.table.table import EPOCHS, HERE, Table, read_table
from orchestrator.results.trial_result import TrialResult
from orchestrator.search.points import domain_values
from orchestrator.spec.job import Job
from orchestrator.spec.space import Choice, is_active

TIME = "training_iteration"


def config_space(job: Job) -> dict[str, Any]:
    """Numbers are ordered, words are not."""
    space = {}
    for path, domain in job.space.items():
        values = domain_values(domain, 2)
        words = any(isinstance(value, str) for value in values)
        space[path] = categorical(values) if words else ordinal(values, kind="equal")
    return space


class SyneTune:
    """A scheduler of Syne Tune behind the simulation's searcher: reports and ends reach it as its own Tuner hands them on.

    Args:
        scalar: tell one number, the mean of the costs in units of their references, instead of the costs.
    """

    def __init__(self, table: Table, scheduler: TrialScheduler, *, scalar: bool = False) -> None:
        self._table, self._scheduler, self._scalar = table, scheduler, scalar
        self._tree = table.job.recipe.model_dump()
        self._trials: dict[int, Trial] = {}
        self._gate: dict[int, dict[str, float]] = {}

    def ask(self, number: int) -> Choice | None:
        suggestion = self._scheduler.suggest()
        if suggestion is None:
            return None
        config: dict[str, Any] = suggestion.config
        self._trials[number] = Trial(number, config, datetime(2026, 1, 1))
        self._scheduler.on_trial_add(self._trials[number])
        choice: Choice = {}
        for path, domain in self._table.job.space.items():
            if is_active(domain, choice, self._tree):
                choice[path] = config[path].item() if isinstance(config[path], np.generic) else config[path]
        return choice

    def begins(self, number: int, gate: dict[str, float]) -> None:
        self._gate[number] = gate

    def stops(self, number: int, epoch: int, accuracy: float) -> bool:
        told = self._told({**self._gate[number], "accuracy": accuracy}, epoch)
        return bool(self._scheduler.on_trial_result(self._trials[number], told) != SchedulerDecision.CONTINUE)

    def ended(self, result: TrialResult) -> None:
        if result.state == "COMPLETE":
            told = self._told(result.measurements, max(1, len(result.curve)))
            self._scheduler.on_trial_complete(self._trials[result.number], told)

    def _told(self, measured: dict[str, Any], epoch: int) -> dict[str, Any]:
        costs = {o.metric: o.cost(float(measured[o.metric])) for o in self._table.job.objectives}
        if self._scalar:
            return {"scalar": float(np.mean(self._table.scaled(list(costs.values())))), TIME: epoch}
        return {**costs, TIME: epoch}


def schedulers(table: Table, seed: int, max_epochs: int) -> dict[str, Callable[[], SyneTune]]:
    """How to make a fresh one, by the name under which it is reported."""
    space, metrics = config_space(table.job), [o.metric for o in table.job.objectives]
    halving = {"time_attr": TIME, "max_t": max_epochs, "grace_period": 1, "reduction_factor": 3, "random_seed": seed}

    def evolution(**sizes: int) -> SyneTune:
        searcher = MultiObjectiveRegularizedEvolution(space, random_seed=seed, **sizes)
        return SyneTune(table, SingleFidelityScheduler(space, metrics, searcher=searcher, random_seed=seed))

    return {
        "Syne Tune MO-REA": evolution,
        "Syne Tune MO-REA, population 20": lambda: evolution(population_size=20, sample_size=5),
        "Syne Tune MO-ASHA": lambda: SyneTune(table, MOASHA(space, metrics, **halving)),
        "Syne Tune ASHA, scalarised": lambda: SyneTune(table, ASHA(space, "scalar", **halving), scalar=True),
    }


def main() -> None:
    """Run every scheduler for every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--cost", type=float, default=float("inf"))
    parser.add_argument("--sharing", action="store_true")
    parser.add_argument("--pin-epochs", action="store_true", help="train the last phase in full, as early_stopping.py does")
    parser.add_argument("--table", default=str(HERE / "table.parquet"))
    args = parser.parse_args()
    table = read_table(Path(args.table))
    max_epochs = max(int(value) for value in domain_values(table.job.space.root[EPOCHS], 2))
    table = table.pinned(EPOCHS, max_epochs) if args.pin_epochs else table
    found: dict[str, list[Any]] = {}
    for seed in range(args.seeds):
        for name, make in schedulers(table, seed, max_epochs).items():
            np.random.seed(seed)  # MOASHA draws from numpy's global generator
            ends = Simulation(table, make(), sharing=args.sharing).run(args.trials, args.cost)
            found.setdefault(name, []).append(regrets(table, ends))
            if "ASHA" in name:
                found.setdefault(f"{name}, stopped networks count", []).append(regrets(table, ends, stopped=True))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
