"""The headline: wall time until the product has the hypervolume that a plain script ends with after twenty minutes.

    uv run python benchmarks/headline.py [--task digits] [--minutes 20] [--repetitions 1]
    uv run python benchmarks/headline.py --task cifar10 --data DIR

The task is a job file, benchmarks/headline/<task>.yaml; DIR holds train.parquet in the Hugging Face layout. Everybody has
the same networks, images, splits, space, objectives, sampler (TPE, the same seeds and number of random points), and the same
minutes on this machine, one after the other:

- "default": Ray Tune, OptunaSearch and a TorchTrainer a trial, which trains its teacher and its dense network
  (benchmarks/peers/tune_script.py);
- "tuned": actors that are used again, a teacher and dense networks that are trained once and loaded
  (benchmarks/peers/tune_script_tuned.py);
- "ours": `orchestrator run`.

Peers cut, quantize, export and measure with the product's own functions, so that what is compared is orchestration and search.
The clock starts when a command is given. A trial counts when its file has been measured. Hypervolume is a fraction of the box
between the references and a perfect network (accuracy 1, no bytes, no operations).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from benchmarks.outcome import ROOT, environment, interval, keep, orchestrate, picture, say, shown, verdict
from orchestrator.pareto.hypervolume import hypervolume_history
from orchestrator.results.store import Home
from orchestrator.spec.job import Job
from orchestrator.spec.load import load_job
from orchestrator.spec.objective import Objective

PEERS = {"default": "tune_script.py", "tuned": "tune_script_tuned.py"}
TARGETS = {"default": 10.0, "tuned": 4.0}
_GRACE_S = 120.0


@dataclass(frozen=True)
class End:
    """A finished trial: when it began and ended, in seconds since the command, and what was measured."""

    began: float
    ended: float
    measurements: dict[str, float]


@dataclass(frozen=True)
class Course:
    """How a search went: (seconds, hypervolume) after each trial, in order, and when its first trial began."""

    steps: list[tuple[float, float]]
    first_began: float

    @property
    def final(self) -> float:
        return self.steps[-1][1] if self.steps else 0.0

    def at(self, seconds: float) -> float:
        """The hypervolume at a time."""
        return max((volume for when, volume in self.steps if when <= seconds), default=0.0)

    def reached(self, volume: float) -> float:
        """When it had a hypervolume; infinite where it never did."""
        return min((when for when, found in self.steps if found >= volume), default=float("inf"))


def course(ends: Sequence[End], objectives: Sequence[Objective], limit: float) -> Course:
    """From trials to hypervolume over time; those that ended after the limit do not count."""
    inside = sorted((end for end in ends if end.ended <= limit), key=lambda end: end.ended)
    if not inside:
        return Course([], float("inf"))
    costs = np.array([[o.cost(end.measurements[o.metric]) for o in objectives] for end in inside], dtype=np.float64)
    worst = np.array([o.cost(float(o.reference or 0.0)) for o in objectives])
    best = np.array([o.cost(1.0 if o.maximized else 0.0) for o in objectives])
    volumes = hypervolume_history(costs, worst) / np.prod(worst - best)
    steps = [(end.ended, float(volume)) for end, volume in zip(inside, volumes, strict=True)]
    return Course(steps, min(end.began for end in inside))


def compared(ours: Course, peer: Course, limit: float) -> dict[str, float]:
    """How much sooner the product had what a peer ends with.

    `faster` counts the peer's time until it had it, which is strict; `faster_than_all` all of the peer's time; `apart` is
    `faster` without both start-ups.
    """
    mine, theirs = ours.reached(peer.final), peer.reached(peer.final)
    return {
        "seconds": mine,
        "peer_seconds": theirs,
        "faster": theirs / mine,
        "faster_than_all": limit / mine,
        "apart": (theirs - peer.first_began) / max(1e-9, mine - ours.first_began),
        "at_equal_time": ours.at(limit) - peer.final,
    }


def run_peer(script: str, job_file: Path, overrides: Sequence[str], minutes: float, folder: Path) -> list[End]:
    """A peer's script for so many minutes; what it leaves running is ended with it."""
    folder.mkdir(parents=True)
    began = time.time()
    given = ["--job", str(job_file), *(f"--set={text}" for text in overrides), "--folder", str(folder)]
    command = [sys.executable, str(ROOT / "benchmarks" / "peers" / script), *given]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--began={began}", f"--minutes={minutes}"],
            cwd=ROOT,
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            process.wait(60 * minutes + _GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    trials = folder / "trials.jsonl"
    if not trials.exists():
        say((folder / "log.txt").read_text()[-3000:])
        return []
    lines = [json.loads(line) for line in trials.read_text().splitlines()]
    return [End(line["started"] - began, line["ended"] - began, line["measurements"]) for line in lines]


def run_ours(job_file: Path, overrides: Sequence[str], minutes: float, folder: Path) -> list[End]:
    """The product for so many minutes."""
    began = time.time()
    limits = [f"--set=budget.hours={minutes / 60}", *(f"--set={text}" for text in overrides)]
    orchestrate("run", job_file, "--name", "headline", *limits, "-o", "json", home=folder, fine=(0, 5))
    results = Home(folder).sweep("headline").results()
    return [End(r.started - began, r.ended - began, r.measurements) for r in results if r.state == "COMPLETE"]


def repetition(job: Job, job_file: Path, given: Sequence[str], args: argparse.Namespace, seed: int) -> dict[str, Course]:
    """Everybody once, with one seed."""
    found = {}
    overrides = [*given, f"seed={seed}"]
    with tempfile.TemporaryDirectory(prefix="headline-", ignore_cleanup_errors=True) as scratch:
        for name in args.only:
            say(f"seed {seed}: {name}, {args.minutes} minutes")
            folder, runs = Path(scratch) / name, PEERS.get(name)
            if runs is None:
                ends = run_ours(job_file, overrides, args.minutes, folder)
            else:
                ends = run_peer(runs, job_file, overrides, args.minutes, folder)
            found[name] = course(ends, job.objectives, 60 * args.minutes)
            done = found[name]
            print(
                f"seed {seed}, {name}: {len(done.steps)} trials, hypervolume {done.final:.4f} "
                f"(since {done.reached(done.final):.0f} s); first trial began at {done.first_began:.1f} s",
                flush=True,
            )
    return found


def draw(axes: Any, rounds: Sequence[dict[str, Course]], limit: float) -> None:
    """Hypervolume over wall time, a line a run."""
    colours = {"default": "0.6", "tuned": "C1", "ours": "C0"}
    for number, courses in enumerate(rounds):
        for name, one in courses.items():
            times = [0.0, *(when for when, _ in one.steps), limit]
            volumes = [0.0, *(volume for _, volume in one.steps), one.final]
            label = name if number == 0 else None
            axes.step(times, volumes, where="post", color=colours[name], label=label, linewidth=2 if name == "ours" else 1.2)
    axes.set(xlabel="seconds since the command", ylabel="hypervolume, of a perfect network's")
    axes.set_xscale("symlog", linthresh=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def judge(rounds: Sequence[dict[str, Course]], limit: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Every peer against the product, with targets."""
    lines: dict[str, Any] = {}
    verdicts = []
    for name in (name for name in PEERS if all({name, "ours"} <= courses.keys() for courses in rounds)):
        each = [compared(courses["ours"], courses[name], limit) for courses in rounds]
        columns = {key: [one[key] for one in each] for key in each[0]}
        lines[name] = columns
        print(f"against {name}: at its final hypervolume after {shown(columns['seconds'], 1)} s; it had that after")
        print(f"  {shown(columns['peer_seconds'], 1)} s: {shown(columns['faster'])} times as fast, start-up included;")
        print(f"  {shown(columns['apart'])} without both start-ups; {shown(columns['faster_than_all'])} of all its minutes;")
        print(f"  hypervolume at equal time {shown(columns['at_equal_time'], 4)} higher")
        verdicts.append(verdict(f"times as fast as {name}", interval(columns["faster"])[1], TARGETS[name]))
    return lines, verdicts


def main() -> None:
    """Run everybody, compare, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["digits", "cifar10"], default="digits")
    parser.add_argument("--data", help="folder with train.parquet, for cifar10")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=["ours", *PEERS], choices=["ours", *PEERS])
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="of the job, for everybody")
    parser.add_argument("--out", default="docs/benchmarks")
    args = parser.parse_args()
    job_file = ROOT / "benchmarks" / "headline" / f"{args.task}.yaml"
    given = [*args.overrides, *([f"recipe.data.path={Path(args.data).absolute()}"] if args.data else [])]
    job, machine, limit = load_job(job_file, given), describe(), 60 * args.minutes
    print(machine, flush=True)
    rounds = [repetition(job, job_file, given, args, seed) for seed in range(args.repetitions)]
    lines, verdicts = judge(rounds, limit)
    name = "headline" if args.task == "digits" else f"headline_{args.task}"
    courses = [{who: asdict(one) for who, one in courses.items()} for courses in rounds]
    facts = {"machine": machine, "arguments": vars(args), "against": lines, "verdicts": verdicts, "courses": courses}
    keep(name, facts, Path(args.out))
    title = f"Hypervolume over wall time, {args.task}, {args.minutes:g} minutes each"
    picture(name, title, [lambda axes: draw(axes, rounds, limit)], Path(args.out))


if __name__ == "__main__":
    main()
