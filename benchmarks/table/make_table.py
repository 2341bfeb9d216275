"""Run every point of job.yaml's space once, and write what came of it as table.parquet.

    uv run python benchmarks/table/make_table.py [--processes 2] [--store .orchestrator/table] [--probe]

Each point is a recipe run by the product (`trial.pipeline.run_trial`) in a process of one thread, judged on its exported file.
Processes share one stage store, so that a dense network is trained once for all that are cut from it. A point is on disk whole
or not at all: the run may be interrupted at any moment (Ctrl-C waits for the points under way, kill does not), and the same
command goes on. Points lie in a folder named by the hash of the source that made them: one table, one source.
`--probe` runs one point of each kind and says how long the rest would take. README.md beside this file describes the columns.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.table.table import HERE, METHODS, STAGES, all_points, structure_of, table_job
from orchestrator.results.files import as_json, read_json, replace
from orchestrator.spec.space import Choice, fill

ALONE = ("preflight", "export", "measure")  # what every trial does for itself
_OVERHEAD_EPOCHS = 4.0  # what a point costs beside its last phase, in epochs of that: for the estimate only


def name_of(choice: Choice) -> str:
    """The file name of a point: a hash of its choice."""
    return hashlib.sha256(json.dumps(choice, sort_keys=True).encode()).hexdigest()[:16]


def kind_of(choice: Choice) -> tuple[str, int]:
    """What decides how long a point takes: the method, and the epochs of its last phase."""
    return str(choice["quantization.method"]), int(choice.get("quantization.epochs", 0))


def in_order(points: list[Choice]) -> list[Choice]:
    """Parents first, so that processes train different ones side by side, and long points before short ones."""

    def key(choice: Choice) -> tuple[Any, ...]:
        method, epochs = kind_of(choice)
        return METHODS.index(method), -epochs, choice["pruning.ratio"]

    return sorted(points, key=key)


@functools.cache
def _bench(stages: str) -> Any:
    """This process's lock, process and workshop: data and teacher stay warm between points."""
    import torch

    from orchestrator.trial.host import gang_process, machine_quiet
    from orchestrator.trial.stages import StageStore
    from orchestrator.trial.workshop import Workshop

    quiet = machine_quiet()
    process = gang_process(0, 1, torch.device("cpu"), quiet)
    return quiet, process, Workshop(StageStore(Path(stages)), process)


def compute(choice: Choice, store: str) -> tuple[str, int, float]:
    """Run one point in this process and leave `points/<name>.json`; returns its kind and its seconds."""
    from orchestrator.trial.host import LocalHost
    from orchestrator.trial.order import Order
    from orchestrator.trial.pipeline import run_trial
    from orchestrator.trial.stages import source_hash

    root, job, name = Path(store), table_job(), name_of(choice)
    if root.name != source_hash()[:12]:
        raise SystemExit("the source changed while the table was being made: start again")
    quiet, process, workshop = _bench(str(root / "stages"))
    epochs: dict[str, list[float]] = {}

    def note(event: dict[str, Any]) -> None:
        if "val_accuracy" in event:
            epochs.setdefault(event["stage"], []).append(time.time())

    recipe = fill(job.recipe, choice).model_dump(mode="json")
    folder = root / "trials" / name
    order = Order(0, dict(choice), recipe, {}, job.seed, str(folder), str(root / "stages"))
    clock = time.perf_counter()
    result = run_trial(order, LocalHost(process, quiet, note), workshop)
    begun = {stage.name: stage.started for stage in result.stages}
    tree = {
        "choice": choice,
        "state": result.state,
        "failure": result.failure and result.failure["class"],
        "measurements": result.measurements,
        "stages": [stage.__dict__ for stage in result.stages],
        "curve": result.curve,
        "ends_s": {stage: [end - begun[stage] for end in ends] for stage, ends in epochs.items() if stage in begun},
    }
    replace(root / "points" / f"{name}.json", as_json(tree))
    return *kind_of(choice), time.perf_counter() - clock


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_all(points: list[Choice], store: Path, processes: int) -> None:
    """Compute what is missing, and say how far it is."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_leave_interrupts_to_the_parent) as pool:
        futures = [pool.submit(compute, point, str(store)) for point in points]
        progress = _Progress(points, processes)
        try:
            for future in as_completed(futures):
                progress.note(*future.result())
        except KeyboardInterrupt:
            print("interrupted: the points under way are finished; the same command goes on", file=sys.stderr)
            raise SystemExit(130) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Progress:
    """What is done and what is left. A kind not seen yet is estimated by its epochs from those that were."""

    def __init__(self, points: list[Choice], processes: int) -> None:
        self.processes, self.total, self.done = processes, len(points), 0
        self.left: dict[tuple[str, int], int] = {}
        for point in points:
            self.left[kind_of(point)] = self.left.get(kind_of(point), 0) + 1
        self.seconds: dict[tuple[str, int], list[float]] = {}
        self.said = 0.0

    def note(self, method: str, epochs: int, seconds: float) -> None:
        kind = method, epochs
        self.done += 1
        self.left[kind] -= 1
        self.seconds.setdefault(kind, []).append(seconds)
        if time.time() - self.said > 5 or self.done == self.total:
            self.said = time.time()
            print(f"{self.done} of {self.total} points; {self.remaining() / 60:.1f} min left", file=sys.stderr, flush=True)

    def remaining(self) -> float:
        """Seconds, as far as can be told."""
        spent = sum(sum(seconds) for seconds in self.seconds.values())
        units = sum(len(seconds) * (_OVERHEAD_EPOCHS + kind[1]) for kind, seconds in self.seconds.items())
        known = {kind: statistics.median(seconds) for kind, seconds in self.seconds.items()}
        guess = spent / units
        return (
            sum(num * known.get(kind, guess * (_OVERHEAD_EPOCHS + kind[1])) for kind, num in self.left.items()) / self.processes
        )


def probe(points: list[Choice], store: Path) -> None:
    """Run two missing points of each kind, the second with most of its stages in the store, and estimate the rest."""
    kinds = {kind: [point for point in points if kind_of(point) == kind] for kind in sorted({kind_of(p) for p in points})}
    total = 0.0
    for kind, members in kinds.items():
        cold, warm = (_processor_seconds(member, store) for member in (members * 2)[:2])
        total += cold + (len(members) - 1) * warm
        print(f"{kind}: first {cold:.2f} s, second {warm:.2f} s of the processor, {len(members)} of them", flush=True)
    print(f"about {total / 60:.1f} minutes on one idle core, {total / 120:.1f} on two, parents not counted")


def _processor_seconds(choice: Choice, store: Path) -> float:
    """What a point takes on a core of its own, whatever else the machine does."""
    began = time.process_time()
    compute(choice, str(store))
    return time.process_time() - began


def rows(points: list[Choice], store: Path) -> list[dict[str, Any]]:
    """The table's rows, with every shared stage's seconds and curve as whoever computed it saw them."""
    trees = [read_json(store / "points" / f"{name_of(point)}.json") for point in points]
    made = dict(_computed(trees))
    latencies: dict[str, list[float]] = {}
    for tree in trees:
        if tree["state"] == "COMPLETE":
            latencies.setdefault(structure_of(tree["choice"]), []).append(tree["measurements"]["latency_ms"])
    return [_row(tree, made, latencies) for tree in trees]


def _computed(trees: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """By stage key: seconds, accuracies and when each epoch was judged, counted from the stage's start.

    A stage whose point was killed between computing and writing has no seconds of its own; it gets the median of its like.
    """
    measured: dict[str, dict[str, Any]] = {}
    curves: dict[str, tuple[str, list[float]]] = {}
    for tree in trees:
        for stage in tree["stages"]:
            if stage["name"] not in STAGES:
                continue
            accuracies = [point["val_accuracy"] for point in tree["curve"] if point["stage"] == stage["name"]]
            curves[stage["key"]] = stage["name"], accuracies
            if not stage["cached"]:
                ends = tree["ends_s"].get(stage["name"], [])
                measured[stage["key"]] = {"s": stage["seconds"], "accuracy": accuracies, "ends_s": ends, "guessed": False}
    for key, (name, accuracies) in curves.items():
        like = [m for k, m in measured.items() if curves[k][0] == name and len(m["accuracy"]) == len(accuracies)]
        yield key, measured.get(key) or _median(like, accuracies)


def _median(like: list[dict[str, Any]], accuracies: list[float]) -> dict[str, Any]:
    ends = [statistics.median(member["ends_s"][epoch] for member in like) for epoch in range(len(accuracies))]
    return {"s": statistics.median(member["s"] for member in like), "accuracy": accuracies, "ends_s": ends, "guessed": True}


def _row(tree: dict[str, Any], made: dict[str, dict[str, Any]], latencies: dict[str, list[float]]) -> dict[str, Any]:
    row: dict[str, Any] = dict(tree["choice"])
    row |= {"state": tree["state"], "failure": tree["failure"], "structure": structure_of(tree["choice"])}
    row |= {metric: value for metric, value in tree["measurements"].items() if isinstance(value, int | float)}
    if row["structure"] in latencies:
        row["latency_structure_ms"] = statistics.median(latencies[row["structure"]])
    for stage in tree["stages"]:
        if stage["name"] in STAGES:
            row[f"{stage['name']}_key"] = stage["key"]
            row |= {f"{stage['name']}_{what}": value for what, value in made[stage["key"]].items()}
        elif stage["name"] in ALONE:
            row[f"{stage['name']}_s"] = stage["seconds"]
    return row


def write(table: list[dict[str, Any]], path: Path) -> None:
    """Write Parquet with the job, the machine and the versions in its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from orchestrator.trial.stages import library_versions, source_hash

    names = list(dict.fromkeys(name for row in table for name in row))
    arrays = {name: pa.array([row.get(name) for row in table]) for name in names}
    about = {"job": table_job().tree(), "source": source_hash(), "libraries": library_versions(), "rows": len(table)}
    schema_bytes = {b"orchestrator.table": json.dumps(about).encode()}
    partial = path.with_suffix(".partial")
    pq.write_table(pa.table(arrays).replace_schema_metadata(schema_bytes), partial, compression="zstd")
    partial.replace(path)


def main() -> None:
    """Compute what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--store", default=".orchestrator/table")
    parser.add_argument("--out", default=str(HERE / "table.parquet"))
    parser.add_argument("--probe", action="store_true")
    args = parser.parse_args()
    from orchestrator.trial.stages import source_hash

    started = time.time()
    points = in_order(all_points(table_job()))
    store = Path(args.store).resolve() / source_hash()[:12]
    missing = [point for point in points if not (store / "points" / f"{name_of(point)}.json").exists()]
    print(f"{len(points)} points, {len(missing)} to be computed, in {store}", file=sys.stderr)
    if args.probe:
        probe(missing, store)
        return
    run_all(missing, store, args.processes)
    write(rows(points, store), Path(args.out))
    print(f"wrote {args.out} after {time.time() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
