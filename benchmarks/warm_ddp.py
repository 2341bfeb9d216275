"""What a short DDP trial costs: on a warm gang, and with a TorchTrainer of its own.

    uv run python benchmarks/warm_ddp.py [--trials 8] [--rounds 2] [--cold 2]

A trial is ten steps of ResNet-8 on the digits, by two gloo workers of one thread each, with a rate of its own so that nothing
can come from the store. Everybody runs `--trials` of them one after the other, in turns:

- "default": benchmarks/peers/trainer_per_trial.py, one `TorchTrainer.fit()` a trial;
- "tuned": the same with a controller that looks after its workers every 0.05 s;
- "ours": `orchestrator run` with one gang of two workers.

The first trial of each process is left out: it starts what stays. A warm trial of ours is the time from the end of one trial to
the end of the next, so everything is in it: the proposal, Tune, the desk, the lease, building the network, training, validation
and the facts on disk. Peers write no file and measure nothing, so the export and the measurement of a trial of ours are told
apart and left out of the comparison; the whole is printed too.

Some trials are run once more, cold: alone under torchrun, from an empty store. Losses, accuracies and weights must have the
same bits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.outcome import ROOT, bars, interval, keep, orchestrate, picture, run, say, shown, verdict
from orchestrator.results.store import Home
from orchestrator.results.trial_result import TrialResult

TARGETS = {"seconds": 0.3, "default": 40.0, "tuned": 20.0}
RATE = "training.learning_rate"
_APART = ("export", "measure")


def job(trials: int) -> dict[str, Any]:
    """Ten steps a trial: a thousand images in batches of a hundred, fifty a worker."""
    return {
        "name": "warm",
        "recipe": {
            "data": {"source": "digits", "val_fraction": 0.25, "max_train": 1000},
            "model": {"name": "cifar_resnet8", "width": 8},
            "training": {"epochs": 1, "batch_size": 100, "learning_rate": 0.05, "precision": "fp32"},
        },
        "space": {RATE: {"float": [0.01, 0.1], "log": True}},
        "objectives": [{"metric": "accuracy", "reference": 0.0}, {"metric": "size_bytes", "reference": 1e6}],
        "search": {"sampler": "random"},
        "budget": {"trials": trials},
        "resources": {"gangs": 1, "workers_per_gang": 2, "threads_per_worker": 1},
    }


@dataclass(frozen=True)
class Warm:
    """A warm trial in seconds: `trained` is the whole without what peers do not do."""

    whole: float
    trained: float


def warm_trials(results: Sequence[TrialResult]) -> list[Warm]:
    """From the end of each trial to the end of the next, on one gang; the first trial has none before it."""
    found = []
    for before, after in itertools.pairwise(sorted(results, key=lambda result: result.started)):
        whole = after.ended - before.ended
        found.append(Warm(whole, whole - sum(stage.seconds for stage in after.stages if stage.name in _APART)))
    return found


def theirs(trials: int, folder: Path, *, tuned: bool) -> list[float]:
    """Seconds of a peer's trials."""
    out = folder / "times.json"
    script = ROOT / "benchmarks" / "peers" / "trainer_per_trial.py"
    run([sys.executable, script, "--trials", str(trials), "--out", out, *(["--tuned"] if tuned else [])])
    seconds: list[float] = json.loads(out.read_text())["seconds"]
    return seconds


def ours(trials: int, home: Path) -> list[TrialResult]:
    """The product's trials."""
    file = home / "warm.yaml"
    file.write_text(json.dumps(job(trials)))
    orchestrate("run", file, "-o", "json", home=home)
    return Home(home).sweep("warm").results()


def cold(result: TrialResult, warm_home: Path) -> dict[str, bool]:
    """Run a trial alone from an empty store, and compare: its curve, its weights, its file."""
    with tempfile.TemporaryDirectory() as folder:
        file, to = Path(folder) / "warm.yaml", Path(folder) / "files"
        file.write_text(json.dumps(job(1)))
        torchrun: list[str | Path] = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
        command = [*torchrun, "orchestrator.cli.main", "trial", file, f"--set=recipe.{RATE}={result.choice[RATE]!r}"]
        done = run([*command, "--to", to], ORCHESTRATOR_HOME=str(Path(folder) / "home"), OMP_NUM_THREADS="1")
        alone = TrialResult.from_json(json.loads(done.stdout))
        there = Home(warm_home).sweep("warm").trial_folder(result.number)
        equal = {name: (to / name).read_bytes() == (there / name).read_bytes() for name in ("model.safetensors", "model.onnx")}
    return {"curve": alone.curve == result.curve, **equal}


def block(name: str, args: argparse.Namespace) -> tuple[list[float], list[Warm], list[dict[str, bool]]]:
    """One turn of one side: what is compared, and of ours the warm trials and whether cold ones are the same."""
    with tempfile.TemporaryDirectory(prefix="warm-", ignore_cleanup_errors=True) as folder:
        if name != "ours":
            return theirs(args.trials, Path(folder), tuned=name == "tuned")[1:], [], []
        results = ours(args.trials, Path(folder))
        warm = warm_trials(results)
        same = [cold(result, Path(folder)) for result in results[-args.cold :]] if args.cold else []
        return [trial.trained for trial in warm], warm, same


def main() -> None:
    """Run in turns, compare, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cold", type=int, default=2, help="trials of a round that are run again, alone")
    parser.add_argument("--only", nargs="+", default=["default", "tuned", "ours"], choices=["default", "tuned", "ours"])
    parser.add_argument("--out", default="docs/benchmarks")
    args = parser.parse_args()
    machine = describe()
    print(machine, flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in args.only}
    whole: list[float] = []
    same: list[dict[str, bool]] = []
    for number in range(args.rounds):
        for name in args.only:
            say(f"round {number + 1}: {name}, {args.trials} trials")
            found, warm, equal = block(name, args)
            seconds[name] += found
            whole += [trial.whole for trial in warm]
            same += equal
            say(f"  {', '.join(f'{value:.2f}' for value in found)} s")
    for name, values in seconds.items():
        print(f"{name}: {shown(values)} s a trial ({len(values)} trials, {min(values):.2f} to {max(values):.2f})")
    verdicts = []
    if "ours" in seconds:
        print(f"ours with export and measurement: {shown(whole)} s")
        print(f"cold runs alone, bit for bit the same: {same}")
        verdicts.append(verdict("seconds a warm trial", interval(seconds["ours"])[1], TARGETS["seconds"], most=True))
        for name in (name for name in ("default", "tuned") if name in seconds):
            times = interval(seconds[name])[1] / interval(seconds["ours"])[1]
            verdicts.append(verdict(f"times as fast as {name}", times, TARGETS[name]))
        if same:
            verdicts.append(verdict("share of cold runs with equal curves", sum(one["curve"] for one in same) / len(same), 1.0))
    facts = {"machine": machine, "arguments": vars(args), "seconds": seconds, "whole": whole, "cold": same}
    keep("warm_ddp", {**facts, "verdicts": verdicts}, Path(args.out))
    rows = seconds | ({"ours, with export and measurement": whole} if whole else {})
    title = "A trial of ten DDP steps, two workers"
    picture("warm_ddp", title, [lambda axes: bars(axes, rows, "seconds a trial", log=True)], Path(args.out))


if __name__ == "__main__":
    main()
