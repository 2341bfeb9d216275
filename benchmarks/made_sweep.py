"""A sweep that was never run: its facts are made up, so that what comes after a sweep can be measured without training.

Trials end in all four states. Curves hold 12 numbers an epoch. Names that try to leave their place are among the choices, and
among the messages of failures. The same seed makes the same facts.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import Proposal, StageRecord, TrialResult
from orchestrator.search.points import quasi_random
from orchestrator.spec.job import Job
from orchestrator.spec.load import resolved_text
from orchestrator.spec.space import Choice, fill

NAME = "made"
METRICS = ("loss", "val_accuracy", *(f"seen_{index}" for index in range(10)))
NUM_EVAL = 2000
EPOCH_0 = 1_790_000_000.0  # when the first trial began, in seconds since 1970

HOSTILE = (
    "<script>document.documentElement.dataset.broken = 'yes'; alert('a name ran')</script>",
    '"><img src=x onerror="alert(1)"><b>bold</b>',
    "</script><script>alert(2)</script>",
    "../../../../etc/passwd",
    "a naïve 🚀 model, \u202edrawrof dna",
    "10,000 characters: " + "x" * 9_981,
)
PLAIN = "start.safetensors"
FAILURES = (
    ("ValueError", f"{HOSTILE[0]}\nat {HOSTILE[3]}"),
    ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB\nGPU 0 has a total capacity of 79.1 GiB"),
    ("DivergedError", "the loss must be finite; it was nan in epoch 3"),
    ("WorkersLostError", "the gang's workers were lost three times"),
    ("RuntimeError", f"\x1b[31m{HOSTILE[5]}"),
)


def make_sweep(home: Path, trials: int = 1000, seed: int = 0, epochs: int = 50) -> Sweep:
    """Write job, proposals and ends of a sweep called `NAME` into a home folder that has none of that name.

    Args:
        trials: all with an end. The first is the baseline; from 21 on every state occurs.
        seed: of choices, measurements and curves.
        epochs: of each curve of a trial that completed, with a number for each of `METRICS`; stopped and failed ones have less.
    """
    job = made_job(trials, epochs)
    sweep = Home(home).sweep(NAME)
    sweep.create(resolved_text(job))
    for number, choice in enumerate(_choices(job, trials, seed)):
        told = list(range(max(0, number - 3), max(0, number - 2)))
        sweep.propose(Proposal(number, choice, fill(job.recipe, choice).model_dump(mode="json"), told=told))
        sweep.finish(made_result(number, choice, seed, epochs))
    return sweep


def made_job(trials: int, epochs: int) -> Job:
    """Seven holes, one of them conditional, three objectives and a constraint."""
    quantized: dict[str, Any] = {"when": {"quantization.method": ["ptq", "qat"]}}
    space = {
        "model.width": {"choice": [8, 16, 24, 32]},
        "training.learning_rate": {"float": [0.005, 0.5], "log": True},
        "distillation.weight": {"float": [0.0, 0.9]},
        "pruning.ratio": {"float": [0.0, 0.8]},
        "quantization.method": {"choice": ["none", "ptq", "qat"]},
        "quantization.weight_bits": {"int": [2, 8], **quantized},
        "model.weights": {"choice": [PLAIN, *HOSTILE]},
    }
    return Job.model_validate(
        {
            "name": NAME,
            "recipe": {"model": {"name": "cifar_resnet20", "weights": PLAIN}, "training": {"epochs": epochs}},
            "space": space,
            "objectives": [
                {"metric": "accuracy", "reference": 0.6},
                {"metric": "size_bytes", "reference": 400_000.0},
                {"metric": "latency_ms", "reference": 1.0},
            ],
            "constraints": {"size_bytes": {"max": 300_000.0}, "accuracy": {"min": 0.5}},
            "budget": {"trials": trials},
            "tracking": {"experiment": "nights & 'days' 🌙"},
        }
    )


def made_result(number: int, choice: Choice, seed: int, epochs: int) -> TrialResult:
    """How a trial might have ended: by its number FAILED, STOPPED or unbuildable, by its size stopped at the gate."""
    draw = np.random.default_rng([seed, number])
    known = _known(choice)
    started = EPOCH_0 + 9.0 * (number // 2)
    seconds = float(10.0 + 8.0 * draw.random())
    facts: dict[str, Any] = {"attempt": "a1", "gang": f"g{number % 2}", "seed": seed, "started": started}
    if number % 47 == 13:
        kind, message = FAILURES[number // 47 % len(FAILURES)]
        failure = {"class": kind, "message": message, "traceback": f"Traceback (most recent call last):\n{kind}: {message}"}
        curve = _curve(draw, 0.6, epochs // 2)
        return TrialResult(number, "FAILED", choice, curve=curve, failure=failure, ended=started + seconds / 2, **facts)
    if number % 31 == 7:
        curve = _curve(draw, 0.6, max(1, epochs // 3))
        return TrialResult(number, "STOPPED", choice, gate=known, curve=curve, ended=started + seconds / 3, **facts)
    if number % 101 == 20:
        failure = {"class": "UnbuildableError", "message": "a layer must keep one channel; given 0", "traceback": ""}
        return TrialResult(number, "INFEASIBLE", choice, failure=failure, ended=started + 0.1, **facts)
    if known["size_bytes"] > 600_000:
        amount = {"size_bytes": known["size_bytes"] - 300_000.0}
        return TrialResult(number, "INFEASIBLE", choice, gate=known, constraints=amount, ended=started + 0.2, **facts)
    measured = _measured(draw, choice, known)
    amounts = {"size_bytes": measured["size_bytes"] - 300_000.0, "accuracy": 0.5 - measured["accuracy"]}
    told = {"measurements": measured, "gate": known, "constraints": amounts, "stages": _stages(number, started, seconds)}
    curve = _curve(draw, measured["accuracy"], epochs)
    return TrialResult(number, "COMPLETE", choice, curve=curve, ended=started + seconds, **told, **facts)


def _choices(job: Job, trials: int, seed: int) -> Iterator[Choice]:
    """The baseline, then points spread over the space; one in ten starts from a name that is hostile."""
    baseline = job.space.baseline(job.recipe)
    assert baseline is not None
    yield baseline
    for number, choice in enumerate(quasi_random(job.space, job.recipe, seed, trials - 1), 1):
        place = (number - 1) % 60
        yield {**choice, "model.weights": HOSTILE[place] if place < len(HOSTILE) else PLAIN}


def _known(choice: Choice) -> dict[str, Any]:
    """What the plan alone tells."""
    kept = 1.0 - float(choice["pruning.ratio"])
    parameters = int(270 * int(choice["model.width"]) ** 2 * kept**1.5)
    return {
        "macs": parameters * 150,
        "num_parameters": parameters,
        "sparsity": 0.0,
        "size_bytes": int(parameters * _bits(choice) / 8) + 9_000,
    }


def _bits(choice: Choice) -> int:
    return 32 if choice["quantization.method"] == "none" else int(choice["quantization.weight_bits"])


def _measured(draw: np.random.Generator, choice: Choice, known: dict[str, Any]) -> dict[str, Any]:
    """Larger networks are better and slower; few bits hurt, less so after training with them."""
    rate, ratio = float(choice["training.learning_rate"]), float(choice["pruning.ratio"])
    coarse = {"none": 0.0, "ptq": 1.2, "qat": 0.5}[str(choice["quantization.method"])] * 2.0 ** (1 - _bits(choice))
    taught = 0.01 * float(choice["distillation.weight"])
    missed = 0.05 + 0.8 / int(choice["model.width"]) + 0.12 * ratio**3 + coarse + 0.04 * math.log10(rate / 0.05) ** 2 - taught
    accuracy = round(min(0.99, max(0.1, 1.0 - missed + 0.006 * draw.standard_normal())) * NUM_EVAL) / NUM_EVAL
    quick = 1.0 if _bits(choice) == 32 else 0.45
    latency = (0.02 + known["macs"] / 1e8 * quick) * float(np.exp(0.02 * draw.standard_normal()))
    return {
        **known,
        "accuracy": accuracy,
        "worst_class_accuracy": accuracy * 0.9,
        "calibration_error": 0.02 + 0.05 * float(draw.random()),
        "agreement": 1.0,
        "flip_rate": min(1.0, coarse / 2 + 0.02 * float(draw.random())),
        "precision_drift": 0.004 * float(draw.random()),
        "latency_ms": latency,
        "latency_ms_p95": latency * 1.3,
        "latency_ms_low": latency * 0.99,
        "latency_ms_high": latency * 1.01,
        "executor": "onnxruntime 1.32.0",
        "device": "cpu",
        "num_eval_samples": NUM_EVAL,
    }


def _curve(draw: np.random.Generator, accuracy: float, epochs: int) -> list[dict[str, Any]]:
    """Four fifths of the epochs train the student, the rest the quantized network."""
    noise = draw.standard_normal((epochs, len(METRICS)))
    first = epochs - epochs // 5
    curve = []
    for index in range(epochs):
        stage, epoch = ("student", index) if index < first else ("quantized", index - first)
        share = 1.0 - math.exp(-4.0 * (index + 1) / max(1, epochs))
        seen = {metric: share + 0.05 * float(noise[index, place]) for place, metric in enumerate(METRICS)}
        seen |= {"loss": 2.3 * (1.0 - share) + 0.05, "val_accuracy": accuracy * share + 0.003 * float(noise[index, 1])}
        curve.append({"stage": stage, "epoch": epoch, **seen})
    return curve


def _stages(number: int, started: float, seconds: float) -> list[StageRecord]:
    shares = {"preflight": 0.01, "student": 0.7, "quantized": 0.2, "export": 0.01, "measure": 0.08}
    stored = {"student", "quantized"}
    records, at = [], started
    for name, share in shares.items():
        key = f"{number:08x}{name.encode().hex()[:8]:0<8}" if name in stored else ""
        records.append(StageRecord(name, key, share * seconds, False, at))
        at += share * seconds
    return records
