"""What the techniques cost in accuracy, each against the dense network that it was cut from, on CIFAR-10.

    uv run python benchmarks/compression_quality.py --data DIR [--seeds 3] [--epochs 8] [--processes 2] [--store DIR]

DIR holds train.parquet and test.parquet in the Hugging Face layout. Split: 45,000 train, 5,000 validation, 10,000 test. Every
line is a recipe run by the product (`trial.pipeline.run_trial`), judged on the exported file in ONNX Runtime. Nothing is
selected: settings were fixed before, every seed and the last epoch count, and the test split is read once for each file.
Recovery takes at most half of the dense network's epochs. What is stored is not computed again, so an interrupted run goes on.
Printed and written to docs/benchmarks/compression_quality.json: mean and spread over seeds, targets beside them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

TARGETS = {
    "half the MACs by channels": ("accuracy against the dense network, points", -1.5),
    "W8A8 PTQ": ("accuracy against the dense network, points", -0.3),
    "W4A8 QAT": ("accuracy against the dense network, points", -0.8),
    "W4A4 QAT": ("accuracy against the dense network, points", -2.0),
}


def recipes(data: str, epochs: int) -> dict[str, dict[str, Any]]:
    """Name to recipe. The dense network is the teacher of those that distil: the stage store trains it once a seed."""
    training = {
        "epochs": epochs,
        "batch_size": 128,
        "learning_rate": 0.1,
        "augmentation": "shift_flip",
        "weight_decay": 5e-4,
        "schedule": "one_cycle",
    }
    dense = {
        "data": {"source": "parquet", "path": data, "val_fraction": 0.1},
        "model": {"name": "cifar_resnet20", "width": 16},
        "training": training,
        "measurement": {"rounds": 200},
        "quantization": {"num_calibration": 512},
    }
    half = {"name": "cifar_resnet20", "width": 8}
    teacher = {"teacher": {"model": dense["model"], "training": training}}
    qat = {"method": "qat", "epochs": max(1, epochs // 2), "learning_rate": 0.02, "num_calibration": 512}
    ptq = {"method": "ptq", "num_calibration": 512}
    pruning = {"ratio": 0.27, "criterion": "taylor", "round_to": 2, "epochs": epochs // 2, "learning_rate": 0.05}
    distilled = {"distillation": {"weight": 0.9, "temperature": 4.0}, **teacher}
    return {
        "dense": dense,
        "half the MACs by channels": dense | {"pruning": pruning},
        "W8A8 PTQ": dense | {"quantization": ptq},
        "W8A8 PTQ, corrected": dense | {"quantization": ptq | {"bias_correction": True, "norm_reestimation": True}},
        "W4A8 QAT": dense | {"quantization": qat | {"weight_bits": 4}},
        "W4A4 QAT": dense | {"quantization": qat | {"weight_bits": 4, "activation_bits": 4}},
        "half width": dense | {"model": half},
        "half width, distilled": dense | {"model": half} | distilled,
    }


def run(job: tuple[str, int, dict[str, Any], str, str]) -> dict[str, Any]:
    """One recipe with one seed, in this process."""
    name, seed, recipe, store, device = job
    from orchestrator.data.splits import open_test_split
    from orchestrator.measure.accuracy import classification
    from orchestrator.measure.runtime import Runtime
    from orchestrator.spec.recipe import Recipe
    from orchestrator.trial.host import LocalHost, local_process, machine_quiet
    from orchestrator.trial.order import Order
    from orchestrator.trial.pipeline import run_trial
    from orchestrator.trial.stages import StageStore
    from orchestrator.trial.workshop import Workshop

    folder = Path(store) / "trials" / f"{seed}-{name.replace(' ', '_').replace(',', '')}"
    kept = folder / "outcome.json"
    if kept.exists():
        outcome: dict[str, Any] = json.loads(kept.read_text())
        return outcome
    quiet = machine_quiet()
    stages = Path(store) / "stages"
    order = Order(0, {}, Recipe.model_validate(recipe).model_dump(mode="json"), {}, seed, str(folder), str(stages), 1, device)

    def say(event: dict[str, Any]) -> None:
        if "val_accuracy" in event:
            said = f"{event['stage']} {event['epoch'] + 1}/{event['epochs']} val {event['val_accuracy']:.4f}"
            print(f"[{time.strftime('%H:%M:%S')}] seed {seed}, {name}: {said}", file=sys.stderr, flush=True)

    with local_process(quiet, device) as process:
        workshop = Workshop(StageStore(stages), process)
        result = run_trial(order, LocalHost(process, quiet, say), workshop)
        if result.state != "COMPLETE":
            raise SystemExit(f"{name}, seed {seed}: {result.failure}")
        test = open_test_split(workshop.split(Recipe.model_validate(recipe).data, "test"))
        logits = Runtime(folder / "model.onnx", 1).logits(test.images.astype(np.float32))
    judged = classification(logits, test.labels)
    outcome = {"name": name, "seed": seed, "test_accuracy": judged["accuracy"], **result.measurements}
    outcome["seconds"] = {stage.name: round(stage.seconds, 1) for stage in result.stages}
    kept.write_text(json.dumps(outcome))
    return outcome


def table(outcomes: list[dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
    """Means and spreads over seeds, and differences from the dense network of the same seed."""
    by = {(outcome["name"], outcome["seed"]): outcome for outcome in outcomes}
    lines = []
    for name in dict.fromkeys(outcome["name"] for outcome in outcomes):
        rows = [by[name, seed] for seed in range(seeds)]
        dense = [by["dense", seed] for seed in range(seeds)]
        points = [100 * (row["test_accuracy"] - base["test_accuracy"]) for row, base in zip(rows, dense, strict=True)]
        line = {
            "name": name,
            "test_accuracy": [row["test_accuracy"] for row in rows],
            "val_accuracy": [row["accuracy"] for row in rows],
            "points": points,
            "macs_ratio": dense[0]["macs"] / rows[0]["macs"],
            "size_ratio": rows[0]["size_bytes"] / dense[0]["size_bytes"],
            "latency_ms": [row["latency_ms"] for row in rows],
            "agreement": min(row["agreement"] for row in rows),
        }
        lines.append(line)
        spread = statistics.stdev(points) if seeds > 1 else 0.0
        met = ""
        if name in TARGETS:
            met = f"; target {TARGETS[name][1]}: {'met' if statistics.mean(points) >= TARGETS[name][1] else 'MISSED'}"
        print(
            f"{name}: test {100 * statistics.mean(line['test_accuracy']):.2f} %, {statistics.mean(points):+.2f} points "
            f"(sd {spread:.2f}; {', '.join(f'{value:+.2f}' for value in points)}), {line['macs_ratio']:.2f}x fewer MACs, "
            f"{line['size_ratio']:.3f} of the bytes, {statistics.median(line['latency_ms']):.3f} ms{met}"
        )
    return lines


def main() -> None:
    """Run all recipes for all seeds, in processes of one thread, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--store", default=".orchestrator/compression_quality")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    print(describe(), f"; {args.seeds} seeds, {args.epochs} epochs, {args.processes} processes of one thread")
    started = time.time()
    chosen = recipes(str(Path(args.data).resolve()), args.epochs)
    if args.only:
        chosen = {name: recipe for name, recipe in chosen.items() if name in {"dense", *args.only.split(",")}}
    store = str(Path(args.store).resolve())
    ordered = sorted(chosen, key=lambda name: name != "dense")  # the others are cut from it
    jobs = [("dense", seed, chosen["dense"], store, args.device) for seed in range(args.seeds)]
    jobs += [(name, seed, chosen[name], store, args.device) for seed in range(args.seeds) for name in ordered[1:]]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        outcomes = pool.map(run, jobs, chunksize=1)
    lines = table(outcomes, args.seeds)
    path = Path("docs/benchmarks/compression_quality.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = round(time.time() - started)
    about = {"machine": describe(), "epochs": args.epochs, "seeds": args.seeds, "seconds": seconds, "lines": lines}
    path.write_text(json.dumps(about, indent=1) + "\n")
    print(f"{seconds} s")


if __name__ == "__main__":
    main()
