"""A table that is computed in a moment: the real job and space, with made-up networks that behave like networks."""

from __future__ import annotations

import math

import pytest

from benchmarks.table.table import Point, Stage, Table, all_points, table_job
from orchestrator.spec.space import Choice


def made_up(choice: Choice) -> Point:
    """Accuracy falls with the ratio and with fewer bits, QAT wins some back, and more of it the longer it lasts."""
    rate, temperature = choice["training.learning_rate"], choice["distillation.temperature"]
    ratio, method = float(choice["pruning.ratio"]), choice["quantization.method"]
    bits = int(choice.get("quantization.weight_bits", 32))
    dense = 0.97 - 0.02 * (rate == 0.02) - 0.01 * (temperature == 1.0)
    pruned = dense - 0.1 * ratio**3
    harm = 1.5 / 2**bits
    measured = {"size_bytes": 1000 + 300_000 * (1 - ratio) * bits / 32, "macs": 760_000 * (1 - ratio), "latency_ms": 0.03}
    stages = [
        Stage("teacher", "teacher", 6.0, (0.9, 0.98), (3.0, 6.0)),
        Stage("student", f"student {rate} {temperature}", 2.0, (0.8, dense), (1.0, 2.0)),
    ]
    if ratio:
        stages.append(Stage("pruned", f"pruned {rate} {temperature} {ratio}", 1.5, (pruned - 0.05, pruned), (0.7, 1.4)))
    accuracy = pruned
    if method == "ptq":
        accuracy = pruned - harm
        stages.append(Stage("quantized", f"ptq {sorted(choice.items())}", 0.2, (), ()))
    elif method == "qat":
        epochs, step = int(choice["quantization.epochs"]), float(choice["quantization.learning_rate"])
        speed = {0.001: 0.05, 0.01: 0.3, 0.1: 0.15}[step]
        curve = tuple(pruned + 0.01 - (harm + 0.05) * math.exp(-speed * epoch) for epoch in range(1, epochs + 1))
        ends = tuple(0.1 + 0.2 * epoch for epoch in range(1, epochs + 1))
        stages.append(Stage("quantized", f"qat {sorted(choice.items())}", 0.2 + 0.2 * epochs, curve, ends))
        accuracy = curve[-1]
    return Point(choice, "COMPLETE", {"accuracy": accuracy, **measured}, measured, tuple(stages), 0.1, 0.3)


@pytest.fixture(scope="session")
def table() -> Table:
    job = table_job()
    return Table(job, [made_up(choice) for choice in all_points(job)])
