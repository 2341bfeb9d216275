"""One table a technique: what each choice does to a small network, all else equal.

    uv run python benchmarks/techniques.py --data DIR [--seeds 3] [--epochs 8] [--processes 2] [--store DIR] [--only GROUP,...]

ResNet-8 (width 16) on 5,000 images of CIFAR-10, 2,000 for validation; the shipped file judged on the 10,000 of the test split.
DIR holds train.parquet and test.parquet in the Hugging Face layout. The networks are far from what longer training reaches: the
tables compare choices, they do not show off. Settings were fixed before, nothing is selected, the test split is read once for
each file. What is stored is not computed again. Written to docs/benchmarks/techniques.json, and printed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from pathlib import Path
from typing import Any

from compression_quality import run
from machine import describe

Recipes = dict[str, dict[str, Any]]
Tree = dict[str, Any]


def groups(data: str, epochs: int) -> dict[str, tuple[tuple[str, ...], Recipes]]:
    """Group to the measurements that it is about, and recipes by name."""
    training = {
        "epochs": epochs,
        "batch_size": 64,
        "learning_rate": 0.1,
        "augmentation": "shift_flip",
        "weight_decay": 5e-4,
        "schedule": "one_cycle",
    }
    base: Tree = {
        "data": {"source": "parquet", "path": data, "val_fraction": 0.1, "max_train": 5000, "max_val": 2000},
        "model": {"name": "cifar_resnet8", "width": 16},
        "training": training,
        "measurement": {"rounds": 100},
    }
    recovery = {"epochs": epochs // 2, "learning_rate": 0.05}

    def trained(**settings: Any) -> Tree:
        return base | {"training": training | settings}

    def pruned(**settings: Any) -> Tree:
        return base | {"pruning": recovery | settings}

    def quantized(**settings: Any) -> Tree:
        return base | {"quantization": {"method": "ptq", "num_calibration": 512} | settings}

    def attacked(**settings: Any) -> Tree:
        measured = {"measurement": {"rounds": 100, "attack": {"num_images": 1000}}}
        return base | {"adversarial": settings} | measured

    explained = {"measurement": {"rounds": 100, "num_explained": 256}}
    return {
        "optimizers": (
            (),
            {
                "sgd": base,
                "adamw": trained(optimizer="adamw", learning_rate=0.004, weight_decay=0.02),
                "adafactor": trained(optimizer="adafactor", learning_rate=0.02, weight_decay=0.02),
                "muon": trained(optimizer="muon", learning_rate=0.02, weight_decay=0.02),
                "sgd, plateau": trained(schedule="plateau", learning_rate=0.05),
            },
        ),
        "precision": (("precision_drift",), {"fp32": trained(precision="fp32"), "bf16": base}),
        "channels": (
            ("macs", "size_bytes", "latency_ms"),
            {
                "dense": base,
                "uniform, l2": pruned(ratio=0.4, round_to=2),
                "uniform, taylor": pruned(ratio=0.4, round_to=2, criterion="taylor"),
                "global, l2": pruned(ratio=0.4, round_to=2, scope="global"),
                "global, taylor": pruned(ratio=0.4, round_to=2, scope="global", criterion="taylor"),
                "sensitivity, taylor": pruned(ratio=0.4, round_to=2, scope="sensitivity", criterion="taylor"),
            },
        ),
        "weights": (
            ("size_bytes", "latency_ms"),
            {
                "dense": base,
                "50 %": pruned(kind="weights", ratio=0.5),
                "80 %": pruned(kind="weights", ratio=0.8),
                "95 %": pruned(kind="weights", ratio=0.95),
                "2:4": pruned(kind="2:4", ratio=0.5),
            },
        ),
        "bits": (
            ("size_bytes",),
            {
                "float": base,
                "3 everywhere": quantized(weight_bits=3),
                "3 in the mean": quantized(weight_bits=3, allocation="sensitivity"),
                "4 everywhere": quantized(weight_bits=4),
                "4 in the mean": quantized(weight_bits=4, allocation="sensitivity"),
            },
        ),
        "adversarial": (
            ("accuracy", "robust_accuracy"),
            {
                "none": attacked(method="none"),
                "fgsm": attacked(method="fgsm"),
                "fast": attacked(method="fast"),
                "free, 4 replays": attacked(method="free", steps=4),
                "pgd, 4 steps": attacked(method="pgd", steps=4, step_size=4 / 255),
            },
        ),
        "audit": (
            ("worst_class_accuracy", "calibration_error", "flip_rate", "explanation_similarity"),
            {
                "dense": base | explained,
                "ptq W8A8": quantized() | explained,
                "ptq W4A4": quantized(weight_bits=4, activation_bits=4) | explained,
                "ptq W3A3": quantized(weight_bits=3, activation_bits=3) | explained,
                "80 % of weights": pruned(kind="weights", ratio=0.8) | explained,
            },
        ),
    }


def summary(group: str, metrics: tuple[str, ...], rows: dict[str, list[Tree]]) -> dict[str, Tree]:
    """Means and spreads over seeds by recipe; printed as well."""
    print(f"\n{group}")
    found: dict[str, Tree] = {}
    for name, outcomes in rows.items():
        columns = {metric: [float(outcome[metric]) for outcome in outcomes] for metric in ("test_accuracy", *metrics)}
        columns["seconds"] = [sum(outcome["seconds"].values()) for outcome in outcomes]
        spread = {metric: statistics.stdev(values) if len(values) > 1 else 0.0 for metric, values in columns.items()}
        found[name] = {metric: {"mean": statistics.mean(values), "sd": spread[metric]} for metric, values in columns.items()}
        said = [f"{metric} {statistics.mean(values):.5g} (sd {spread[metric]:.2g})" for metric, values in columns.items()]
        print(f"  {name}: {', '.join(said)}")
    return found


def main() -> None:
    """Run all recipes for all seeds in processes of one thread, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--store", default=".orchestrator/techniques")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    about = f"{describe()}; {args.seeds} seeds, {args.epochs} epochs, {args.processes} processes of one thread"
    print(about)
    started = time.time()
    wanted = groups(str(Path(args.data).resolve()), args.epochs)
    if args.only:
        wanted = {name: wanted[name] for name in args.only.split(",")}
    store = str(Path(args.store).resolve())
    jobs = [
        (f"{group}, {name}".replace("/", "-").replace(":", "-").replace(" %", ""), seed, recipe, store, "cpu")
        for seed in range(args.seeds)
        for group, (_, recipes) in wanted.items()
        for name, recipe in recipes.items()
    ]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        outcomes = iter(pool.map(run, jobs, chunksize=1))
    by_seed = [
        {group: {name: next(outcomes) for name in recipes} for group, (_, recipes) in wanted.items()} for _ in range(args.seeds)
    ]
    tables = {
        group: summary(group, metrics, {name: [one[group][name] for one in by_seed] for name in recipes})
        for group, (metrics, recipes) in wanted.items()
    }
    path = Path("docs/benchmarks/techniques.json")
    path.write_text(json.dumps({"about": about, "seconds": round(time.time() - started), "tables": tables}, indent=1) + "\n")
    print(f"{round(time.time() - started)} s")


if __name__ == "__main__":
    main()
