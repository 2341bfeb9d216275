"""The driver of a sweep, killed at random moments and started again: what is lost, and whether the facts hold.

    uv run python benchmarks/resume_storm.py [--trials 60] [--kills 20] [--seed 0] [--gangs 2]

Each kill waits until a random share of the trials has ended, and then a random time more: while Ray starts, say. Every other
one waits at least until a trial has ended under its own driver, and then up to three seconds: in the middle of a stage, between
two facts. It is a SIGKILL to the driver alone. What Ray had started has to go by itself: nobody helps it, and the next driver,
`orchestrator resume`, is started five seconds later, whatever is left.

Then the facts are read, with nothing but `json`:

- every proposed trial has ended, once, and not by a kill; what had ended before a kill is still there, byte for byte;
- no stage that was in the store at a kill was computed again. What a kill costs is what was under way, and each gang has at
  most one thing under way: a stage (`<key>.partial` is in the store; lost is the time since its last checkpoint, or its start),
  or the trial's tail, export and measurement, which are not kept (the attempt's folder is there; lost is the time since its
  first file). A stage that a process began in the middle of another one (the teacher's lessons, while the student is trained)
  is part of that one: who holds the locks of both is asked of the kernel. Preflights are not counted: they are repeated as
  often as a trial is begun;
- the front and its hypervolume are those of a brute force over the facts that shares no code with the product.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import describe
from processes import alive, all_gone, descendants, lock_holders

ORCHESTRATOR = [sys.executable, "-m", "orchestrator.cli.main"]
NAME = "storm"
OBJECTIVES = {"accuracy": 0.5, "size_bytes": 200_000.0, "latency_ms": 2.0}  # with the worst value worth having
MAXIMIZED = {"accuracy"}
_LOOK_S, _SWEEP_S = 5.0, 7200.0


def job(trials: int, gangs: int) -> dict[str, Any]:
    """Digits, networks that train in seconds, and every technique."""
    training = {"epochs": 3, "batch_size": 64, "learning_rate": 0.05, "augmentation": "shift"}
    return {
        "name": NAME,
        "recipe": {
            "data": {"source": "digits", "val_fraction": 0.25},
            "model": {"name": "cifar_resnet8", "width": 8},
            "training": training,
            "teacher": {"model": {"name": "cifar_resnet14", "width": 8}, "training": training},
        },
        "space": {
            "pruning.ratio": {"float": [0.0, 0.8]},
            "quantization.method": {"choice": ["none", "ptq", "qat"]},
            "distillation.weight": {"float": [0.0, 0.9]},
        },
        "objectives": [{"metric": metric, "reference": worst} for metric, worst in OBJECTIVES.items()],
        "budget": {"trials": trials},
        "resources": {"gangs": gangs},
    }


@dataclass(frozen=True)
class Kill:
    """What one kill met.

    Args:
        seconds: since its driver was started.
        ended: trials that had ended.
        stages: stages under way, each with those inside it, and for each of them the seconds since its checkpoint or its start.
        tails: trials that were being exported or measured, with the seconds since their first file.
        children: processes below the driver; `left` are those that were still there five seconds later.
    """

    seconds: float
    ended: int
    stages: dict[str, float]
    tails: dict[str, float]
    children: int
    left: list[str]


class Storm:
    """One home, the drivers on it, and what was seen of the facts."""

    def __init__(self, home: Path, trials: int, gangs: int) -> None:
        self.home, self.job_file = home, home / "job.yaml"
        self.sweep, self.store = home / "sweeps" / NAME, home / "cache" / "stages"
        self.job_file.write_text(json.dumps(job(trials, gangs)))
        self.seen: dict[str, bytes] = {}
        self.stored: list[tuple[float, set[str]]] = []
        self.changed: list[str] = []
        self.children: list[int] = []

    def start(self) -> subprocess.Popen[bytes]:
        """A driver, as a user starts it."""
        there = (self.sweep / "job.yaml").exists()
        command = ["resume", NAME] if there else ["run", str(self.job_file)]
        environment = {**os.environ, "ORCHESTRATOR_HOME": str(self.home)}
        with (self.home / "drivers.log").open("ab") as log:
            return subprocess.Popen([*ORCHESTRATOR, *command], env=environment, stdout=log, stderr=log)

    def results(self) -> dict[str, dict[str, Any]]:
        """By trial's id, every result as it is on disk."""
        return {path.parent.name: json.loads(path.read_bytes()) for path in sorted(self.sweep.glob("trials/*/result.json"))}

    def wait_for(self, driver: subprocess.Popen[bytes], ended: int, seconds: float) -> bool:
        """Wait until so many trials have ended and then so many seconds; False when the driver ended before."""
        deadline = time.monotonic() + _SWEEP_S
        while len(list(self.sweep.glob("trials/*/result.json"))) < ended:
            if driver.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        time.sleep(seconds)
        return driver.poll() is None

    def kill(self, driver: subprocess.Popen[bytes], began: float) -> Kill:
        """SIGKILL to the driver, and a look at what it leaves."""
        children = descendants(driver.pid)
        # Before: whoever gives up clears its folder, which makes it look young.
        held, written = lock_holders(self.store), self.written(began)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        moment = time.time()  # workers may go on for a moment more: what they still wrote is not lost
        self.children += children
        time.sleep(_LOOK_S)
        left = [title for pid in children if (title := alive(pid))]
        self.look()
        names = [path.name for path in self.store.glob("*") if path.is_dir()] if self.store.is_dir() else []
        self.stored.append((time.time(), {name for name in names if not name.endswith(".partial")}))
        stages = {name: self.store / name for name in names if name.endswith(".partial")}
        now = self.written(began)
        lost = {name: max(0.0, moment - written.get(name, now[name])) for name in stages if name in now}
        ended = self.results()
        tails = {path.parent.name: path for path in self.sweep.glob("trials/*/a*") if path.parent.name not in ended}
        return Kill(
            round(moment - began, 2),
            len(ended),
            by_holder(lost, held),
            {name: round(max(0.0, moment - min(times)), 2) for name, path in tails.items() if (times := since(path, began))},
            len(children),
            left,
        )

    def written(self, began: float) -> dict[str, float]:
        """By stage under way that was touched since a driver began: when last."""
        folders = self.store.glob("*.partial") if self.store.is_dir() else ()
        return {path.name: max(times) for path in folders if (times := since(path, began))}

    def half_made(self) -> list[tuple[str, bool]]:
        """What is still under way in the store by its name, and whether the stage was made all the same: then it is litter."""
        return [(path.name, path.with_suffix("").exists()) for path in sorted(self.store.glob("*.partial"))]

    def look(self) -> None:
        """Note every end, and which of those noted before are no more what they were."""
        for path in sorted(self.sweep.glob("trials/*/result.json")):
            content = path.read_bytes()
            if self.seen.setdefault(path.parent.name, content) != content:
                self.changed.append(path.parent.name)
        self.changed += [name for name in self.seen if not (self.sweep / "trials" / name / "result.json").exists()]


def since(folder: Path, began: float) -> list[float]:
    """When a folder and what lies in it was written, where that was since a driver began: an earlier one may have left some."""
    times = []
    with contextlib.suppress(FileNotFoundError):  # it was made, or given up, while it was looked at
        times = [path.stat().st_mtime for path in (folder, *folder.iterdir())]
    return [moment for moment in times if moment >= began]


def by_holder(lost: dict[str, float], held: dict[str, int]) -> dict[str, float]:
    """Seconds lost. Stages that one process had under way together count as one: the outer one's seconds hold the inner's."""
    groups: dict[int | str, list[str]] = {}
    for name in sorted(lost, key=lambda name: -lost[name]):
        groups.setdefault(held.get(name.removesuffix(".partial"), name), []).append(name)
    return {"+".join(names): round(max(0.0, lost[names[0]]), 2) for names in groups.values()}


def computed_again(results: dict[str, dict[str, Any]], stored: Sequence[tuple[float, set[str]]]) -> list[str]:
    """Stages that were computed though they lay in the store at a kill before, or twice; by trial and stage."""
    stages = [(trial, stage) for trial, result in results.items() for stage in result["stages"]]
    made = [(trial, stage) for trial, stage in stages if stage["key"] and not stage["cached"]]
    keys = [stage["key"] for _, stage in made]
    return [
        f"{trial} {stage['name']}"
        for trial, stage in made
        if keys.count(stage["key"]) > 1 or any(moment < stage["started"] and stage["key"] in there for moment, there in stored)
    ]


def brute_force(results: dict[str, dict[str, Any]]) -> tuple[list[str], float]:
    """The front by comparing all with all, and its hypervolume by adding up cells between all coordinates."""
    points = {
        trial: [(-1 if metric in MAXIMIZED else 1) * float(result["measurements"][metric]) for metric in OBJECTIVES]
        for trial, result in results.items()
        if result["state"] == "COMPLETE" and all(amount <= 0 for amount in result["constraints"].values())
    }
    front = [
        trial
        for trial, mine in points.items()
        if not any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in points.values())
    ]
    corner = [(-1 if metric in MAXIMIZED else 1) * worst for metric, worst in OBJECTIVES.items()]
    edges = [
        sorted({corner[axis], *(points[trial][axis] for trial in front if points[trial][axis] < corner[axis])})
        for axis in range(3)
    ]
    volume = 0.0
    for cell in itertools.product(*(itertools.pairwise(edge) for edge in edges)):
        if any(all(points[trial][axis] <= cell[axis][0] for axis in range(3)) for trial in front):
            volume += (cell[0][1] - cell[0][0]) * (cell[1][1] - cell[1][0]) * (cell[2][1] - cell[2][0])
    return sorted(front), volume


def described(kill: Kill) -> str:
    """One line."""
    stages = [f"stage {'+'.join(name[:8] for name in key.split('+'))} ({seconds} s)" for key, seconds in kill.stages.items()]
    tails = [f"tail of {trial} ({seconds} s)" for trial, seconds in kill.tails.items()]
    left = f"{len(kill.left)} of {kill.children} processes are left"
    return f"{kill.seconds:6.1f} s, {kill.ended:3d} ended; {left}; lost: {', '.join(stages + tails) or 'nothing'}"


def run(storm: Storm, trials: int, kills: int, seed: int) -> list[Kill]:
    """The storm: `kills` drivers that are killed, and one that is not."""
    generator = random.Random(seed)
    moments = sorted(int(generator.uniform(0.0, 0.95) * trials) for _ in range(kills))
    met: list[Kill] = []
    for number, ended in enumerate(moments):
        at_work = number % 2 == 1
        if at_work:  # Ray takes longer to start than most waits
            ended = max(ended, len(storm.results()) + 1)
        began, driver = time.time(), storm.start()
        if not storm.wait_for(driver, ended, generator.uniform(0.0, 3.0 if at_work else 12.0)):
            print(f"  driver {number}: ended by itself with code {driver.wait()}")
            continue
        met.append(storm.kill(driver, began))
        print(f"  kill {len(met):2d}: {described(met[-1])}", flush=True)
    for _ in range(3):  # on a machine that is too busy Ray may fail to start, which is no fault of the facts
        code = storm.start().wait(timeout=_SWEEP_S)
        print(f"  the last driver ended with code {code}")
        if code == 0:
            break
    storm.look()
    return met


def checks(storm: Storm, met: Sequence[Kill], trials: int, gangs: int) -> dict[str, bool]:
    """What has to hold."""
    results = storm.results()
    proposals = sorted(path.parent.name for path in storm.sweep.glob("trials/*/proposal.json"))
    command = [*ORCHESTRATOR, "front", NAME, "-o", "json", "--home", str(storm.home)]
    shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    front, volume = brute_force(results)
    return {
        "every proposed trial has ended, and no other": proposals == sorted(results) == [f"t{n:04d}" for n in range(trials)],
        "no trial failed for a kill": all(result["state"] != "FAILED" for result in results.values()),
        "no end was written again or lost": not storm.changed,
        "no stored stage was computed again": not computed_again(results, storm.stored),
        "at most one stage or tail a gang and kill was lost": all(len(k.stages) + len(k.tails) <= gangs for k in met),
        "no stage was begun and never made": all(whole for _, whole in storm.half_made()),
        "no process of a killed driver was left": all_gone(storm.children),
        "the front is that of a brute force": sorted(point["trial"] for point in shown["points"]) == front,
        "so is its hypervolume": abs(shown["hypervolume"] - volume) <= 1e-9 * max(1.0, volume),
    }


def main() -> None:
    """Run the storm, print what it met and whether everything holds, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--gangs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/resume_storm.json"))
    args, machine = parser.parse_args(), describe()
    print(machine, flush=True)
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        storm = Storm(Path(folder), args.trials, args.gangs)
        met = run(storm, args.trials, args.kills, args.seed)
        holds = checks(storm, met, args.trials, args.gangs)
        results, half_made = storm.results(), storm.half_made()
    work = sum(stage["seconds"] for result in results.values() for stage in result["stages"] if not stage["cached"])
    lost = sum(sum(kill.stages.values()) + sum(kill.tails.values()) for kill in met)
    again = computed_again(results, storm.stored)
    print(f"\n{len(met)} kills of {args.kills}, {len(results)} trials; lost {lost:.1f} s of {work:.1f} s of stages")
    print(f"computed again: {', '.join(again) or 'nothing'}")
    print(f"still under way in the store (name, whether it was made): {half_made or 'nothing'}")
    for what, held in holds.items():
        print(f"  {'holds ' if held else 'BROKEN'}  {what}")
    written = {
        "machine": machine,
        "asked": {name: value for name, value in vars(args).items() if name != "out"},
        "kills": [asdict(kill) for kill in met],
        "seconds_lost": round(lost, 2),
        "seconds_of_stages": round(work, 2),
        "states": {result: found["state"] for result, found in results.items()},
        "computed_again": again,
        "half_made": half_made,
        "holds": holds,
    }
    args.out.write_text(json.dumps(written, indent=1) + "\n")
    sys.exit(0 if all(holds.values()) and len(met) == args.kills else 1)


if __name__ == "__main__":
    main()
