"""What sharing stages saves on a grid of 96 trials, against its own limit.

    uv run python benchmarks/stage_sharing.py [--sample 8] [--epochs 10] [--recovery 4]

The grid: two recovery rates, four ratios and three criteria of pruning, four bit widths, on the digits with a teacher. So one
teacher, one dense network, 24 pruned ones and 96 quantized ones are all there is to compute. `orchestrator run` runs it on one
gang, with an empty store; every stage says how long it took and whether it was found.

- "from scratch": every trial computes all of its stages. Its time is the sum over trials of what each stage took when it was
  computed. To see that the sum is true, `--sample` trials are really run from an empty store, in one process.
- "from a pretrained base": teacher and dense network are there for everybody, once; everything else is computed.
- The limit is the sum over distinct stages: what nobody can do without.

"Compute" counts the stages that make networks, and what finding and loading them took. "Wall time" runs from the start of the
first trial to the end of the last and has everything in it; its limit has each trial's preflight, export and measurement as
well, which are not shared. The sampled trials' files must be those of the sweep, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.outcome import bars, keep, orchestrate, picture, say, shown, verdict
from orchestrator.results.store import Home
from orchestrator.results.trial_result import TrialResult

TARGETS = {"compute": 0.95, "wall time": 0.85}
FILES = ("model.onnx", "model.safetensors")
_BASE = ("teacher", "student")


def job(args: argparse.Namespace) -> dict[str, Any]:
    """The grid as a job of one gang."""
    training = {"epochs": args.epochs, "batch_size": 64, "learning_rate": 0.05, "augmentation": "shift"}
    space: dict[str, Any] = {
        "pruning.learning_rate": {"choice": args.rates},
        "pruning.ratio": {"choice": args.ratios},
        "pruning.criterion": {"choice": args.criteria},
        "quantization.weight_bits": {"choice": args.bits},
    }
    return {
        "name": "grid",
        "recipe": {
            "data": {"source": "digits", "val_fraction": 0.25},
            "model": {"name": "cifar_resnet8", "width": 16},
            "training": training,
            "teacher": {"model": {"name": "cifar_resnet14", "width": 16}, "training": training},
            "distillation": {"weight": 0.5},
            "pruning": {
                "epochs": args.recovery,
                "learning_rate": args.rates[0],
                "ratio": args.ratios[0],
                "criterion": args.criteria[0],
            },
            "quantization": {"method": "ptq", "weight_bits": args.bits[0]},
        },
        "space": space,
        "objectives": [{"metric": "accuracy", "reference": 0.5}, {"metric": "size_bytes", "reference": 400_000}],
        "search": {"sampler": "grid"},
        "budget": {"trials": len(args.rates) * len(args.ratios) * len(args.criteria) * len(args.bits)},
        "resources": {"gangs": 1, "workers_per_gang": 1, "threads_per_worker": 1},
    }


@dataclass(frozen=True)
class Account:
    """What a sweep computed, in seconds of stages that are kept, and beside them.

    Args:
        scratch: had every trial computed all of its stages.
        base: had every trial computed all but the teacher and the dense network, which are made once.
        distinct: each distinct stage once.
        spent: what was spent, finding and loading included.
        unshared: stages that every trial has for itself: preflight, export, measurement.
        wall: from the first trial's start to the last one's end.
        stages: how many distinct ones there are, by name.
    """

    scratch: float
    base: float
    distinct: float
    spent: float
    unshared: float
    wall: float
    stages: dict[str, int]

    def figures(self) -> dict[str, float]:
        """What sharing saved, what it could have, and the share of the limit in compute and in wall time."""
        return {
            "times less compute": self.scratch / self.spent,
            "limit of compute": self.scratch / self.distinct,
            "share of the limit, compute": self.distinct / self.spent,
            "times faster": (self.scratch + self.unshared) / self.wall,
            "limit of wall time": (self.scratch + self.unshared) / (self.distinct + self.unshared),
            "share of the limit, wall time": (self.distinct + self.unshared) / self.wall,
            "times less compute than from a base": self.base / self.spent,
            "limit from a base": self.base / self.distinct,
        }


def computed(results: Sequence[TrialResult]) -> dict[str, float]:
    """What each distinct stage took, by key."""
    return {stage.key: stage.seconds for result in results for stage in result.stages if stage.key and not stage.cached}


def account(results: Sequence[TrialResult]) -> Account:
    """Add up a sweep of one gang that began with an empty store."""
    costs = computed(results)
    kept = [stage for result in results for stage in result.stages if stage.key]
    base = {stage.key for stage in kept if stage.name in _BASE}
    names = {stage.key: stage.name for stage in kept}
    return Account(
        scratch=sum(costs[stage.key] for stage in kept),
        base=sum(costs[key] for key in base) + sum(costs[stage.key] for stage in kept if stage.key not in base),
        distinct=sum(costs.values()),
        spent=sum(stage.seconds for stage in kept),
        unshared=sum(stage.seconds for result in results for stage in result.stages if not stage.key),
        wall=max(result.ended for result in results) - min(result.started for result in results),
        stages={name: list(names.values()).count(name) for name in dict.fromkeys(names.values())},
    )


def predicted(result: TrialResult, costs: dict[str, float]) -> float:
    """What a trial's kept stages would take from scratch."""
    return sum(costs[stage.key] for stage in result.stages if stage.key)


def from_scratch(job_file: Path, result: TrialResult, folder: Path) -> TrialResult:
    """Run a trial in this process as `orchestrator trial` does, with a store of its own."""
    from click.testing import CliRunner

    from orchestrator.cli.trial import command

    overrides = [f"--set=recipe.{path}={json.dumps(value)}" for path, value in result.choice.items()]
    places = ["--to", str(folder / "files"), "--home", str(folder / "home")]
    done = CliRunner().invoke(command, [str(job_file), *overrides, *places], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return TrialResult.from_json(json.loads(done.stdout))


def sampled(args: argparse.Namespace, job_file: Path, home: Path, results: Sequence[TrialResult]) -> list[dict[str, Any]]:
    """Trials really run from an empty store: what they took against the sum, and whether their files are the sweep's."""
    costs, sweep, lines = computed(results), Home(home).sweep("grid"), []
    chosen = random.Random(args.seed).sample(list(results), min(args.sample, len(results)))
    for number, result in enumerate([*chosen[:1], *chosen]):  # the first twice: it finds the process cold
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            alone = from_scratch(job_file, result, folder)
            there = sweep.trial_folder(result.number)
            equal = {name: (folder / "files" / name).read_bytes() == (there / name).read_bytes() for name in FILES}
        keys = [[stage.key for stage in one.stages] for one in (alone, result)]
        took = sum(stage.seconds for stage in alone.stages if stage.key)
        sums = predicted(result, costs)
        say(f"trial {result.id} from scratch: {took:.2f} s, the sum says {sums:.2f} s; equal files: {equal}")
        if number:
            lines.append({"trial": result.id, "took": took, "sum": sums, "same_keys": keys[0] == keys[1], **equal})
    return lines


def judge(found: Account, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print what was found, and verdicts."""
    print(f"distinct stages {found.stages}; {found.wall:.1f} s from first to last")
    figures = found.figures()
    for name, value in figures.items():
        print(f"{name}: {value:.3f}")
    verdicts = [
        verdict(f"share of the limit, {what}", figures[f"share of the limit, {what}"], target)
        for what, target in TARGETS.items()
    ]
    if lines:
        print(f"a trial really run from scratch took {shown([line['took'] / line['sum'] for line in lines])} of the sum")
        equal = [all(line[name] for name in FILES) for line in lines]
        verdicts.append(verdict("share of sampled trials with equal files", sum(equal) / len(equal), 1.0))
    return verdicts


def draw(found: Account, trials: int, out: Path) -> None:
    """Compute and wall time, beside the limits."""
    compute = {"from scratch": found.scratch, "from a base": found.base, "ours": found.spent, "limit": found.distinct}
    wall = {name: seconds + found.unshared for name, seconds in compute.items()} | {"ours": found.wall}

    def panel(values: dict[str, float], unit: str) -> Any:
        return lambda axes: bars(axes, {name: [seconds] for name, seconds in values.items()}, unit)

    panels = [panel(compute, "seconds of stages that make networks"), panel(wall, "seconds of wall time, one gang")]
    picture("stage_sharing", f"A grid of {trials} trials", panels, out)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10, help="of the teacher and of the dense network")
    parser.add_argument("--recovery", type=int, default=4, help="epochs after pruning")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.02, 0.05])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.4, 0.6, 0.8])
    parser.add_argument("--criteria", nargs="+", default=["l1", "l2", "bn_scale"])
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--sample", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--out", default="docs/benchmarks")
    return parser.parse_args()


def main() -> None:
    """Run the grid, add up, run the sample, print, draw."""
    args, machine = arguments(), describe()
    print(machine, flush=True)
    with tempfile.TemporaryDirectory(prefix="sharing-", ignore_cleanup_errors=True) as folder:
        home, job_file = Path(folder) / "home", Path(folder) / "grid.yaml"
        job_file.write_text(json.dumps(job(args)))
        say(f"{job(args)['budget']['trials']} trials on one gang")
        orchestrate("run", job_file, "-o", "json", home=home)
        results = Home(home).sweep("grid").results()
        if unfinished := [result.id for result in results if result.state != "COMPLETE"]:
            sys.exit(f"every trial must complete; these did not: {', '.join(unfinished)}")
        found = account(results)
        lines = sampled(args, job_file, home, results)
    verdicts = judge(found, lines)
    facts: dict[str, Any] = {"machine": machine, "arguments": vars(args), "trials": len(results), "account": asdict(found)}
    facts |= {"figures": found.figures(), "sample": lines, "verdicts": verdicts}
    keep("stage_sharing", facts, Path(args.out))
    draw(found, len(results), Path(args.out))


if __name__ == "__main__":
    main()
