"""What every figure has to name, and how two rows of figures are compared."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import numpy as np


def describe() -> str:
    """Processor, cores, load, Python and the libraries that matter, in one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line for line in lines if line.startswith("flags")), "")
    features = " ".join(flag for flag in ("avx512_vnni", "avx512_bf16") if f" {flag}" in flags)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "ray", "optuna", "mlflow", "onnxruntime"))
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    return f"{model} ({features}), {cores} cores, load {load:.2f}; Python {platform.python_version()}, {versions}"


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Median ratio of paired rounds with a bootstrapped 95 % interval."""
    pairs = np.array(ours) / np.array(theirs)
    draws = np.random.default_rng(0).choice(pairs, (10_000, len(pairs)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(np.median(pairs)), float(high)
