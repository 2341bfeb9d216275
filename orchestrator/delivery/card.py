"""What is said of a model wherever it goes: a card for people, and where it comes from for programs."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from orchestrator.pareto.front import Front, counts_text
from orchestrator.results.store import Sweep
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.recipe import Recipe, TrainingSettings

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#!|~$])")  # what markdown would read as more than text, besides HTML's signs
_LONGEST, _MOST_CLASSES, _KERNEL_BITS = 100, 20, 8


@dataclass(frozen=True)
class Subject:
    """The model that a card is about.

    Args:
        shape: of one image, (C, H, W).
        front: of the sweep that it comes from.
        test: what the test split said of it, or None where it was not opened for it.
        opened: ids of the sweep's trials for which the test split was opened.
    """

    sweep: str
    job: Job
    result: TrialResult
    recipe: Recipe
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    front: Front
    test: Mapping[str, Any] | None
    opened: tuple[str, ...]


def subject_of(sweep: Sweep, job: Job, front: Front, result: TrialResult) -> Subject:
    """A trial of a sweep, with what its folder says of it."""
    folder = sweep.trial_folder(result.number)
    tree = json.loads((folder / "recipe.json").read_text())
    return Subject(
        sweep=sweep.name,
        job=job,
        result=result,
        recipe=Recipe.model_validate(tree["recipe"]),
        classes=tuple(str(name) for name in tree["classes"]),
        shape=image_shape(folder / "model.onnx"),
        front=front,
        test=sweep.test_record(result.number),
        opened=tuple(sweep.tested_trials()),
    )


def image_shape(file: Path) -> tuple[int, int, int]:
    """The shape (C, H, W) of one image, as an ONNX file declares it."""
    import onnx

    dims = onnx.load(str(file)).graph.input[0].type.tensor_type.shape.dim
    channels, height, width = (dim.dim_value for dim in dims[1:])
    return channels, height, width


def lineage(subject: Subject, data_digest: str | None, commit: str | None) -> dict[str, str]:
    """Where a model comes from: job, search space, data and teacher by their hashes, and the code by its commit.

    Args:
        data_digest: of the decoded training split; None where it is not known.
        commit: see `working_commit`.
    """
    space = json.dumps(subject.job.space.model_dump(mode="json", by_alias=True), sort_keys=True)
    teachers = [stage.key for stage in subject.result.stages if stage.name == "teacher"]
    found = {
        "sweep": subject.sweep,
        "trial": subject.result.id,
        "job": subject.job.name,
        "identity": subject.job.identity(),
        "space": hashlib.sha256(space.encode()).hexdigest(),
        "data": data_digest,
        "teacher": f"{subject.recipe.teacher.model.name} {teachers[0]}" if teachers else None,
        "commit": commit,
    }
    return {name: value for name, value in found.items() if value is not None}


def working_commit(folder: Path | None = None) -> str | None:
    """The git commit of the working folder, with `-dirty` where files differ from it; None outside git, or without it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        told = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None if told.returncode == 0 else None


def model_card(title: str, subject: Subject, how: str, origin: Mapping[str, str]) -> str:
    """A model card in markdown: what it is, how it was chosen, measured, tested and made, its limits, and how to have it again.

    After Mitchell et al. 2019, "Model Cards for Model Reporting".

    Args:
        title: a name, of whatever signs.
        how: how it was chosen, as a phrase.
        origin: as `lineage` gives it.
    """
    recipe, result = subject.recipe, subject.result
    sections = {
        "": [
            f"`{recipe.model.name}` for {len(subject.classes)} classes: {_classes(subject.classes)}. "
            f"Trial {result.id} of sweep {subject.sweep}.",
            f"In: `image`, pixels from 0 to 255, float32 (N, {', '.join(map(str, subject.shape))}); the file normalises them. "
            "Out: `logits`, one a class, in the order above.",
        ],
        "How it was chosen": [
            f"{how[:1].upper()}{how[1:]}. The sweep has {counts_text(subject.front)}; {len(subject.front.points)} are on the "
            "front. Validation images decided.",
        ],
        "Measured": _measured(subject),
        "Tested": _tested(subject),
        "How it was made": [f"- {line}" for line in _recipe_lines(recipe, result)],
        "Limits": [f"- {line}" for line in _limits(subject)],
        "Where it comes from": _table(("what", "which"), [(name, _text(value)) for name, value in origin.items()]),
        "Again": ["```sh", *_commands(subject), "```"],
    }
    parts = [f"# {_text(title)}"]
    for head, lines in sections.items():
        parts.append("\n".join(([f"## {head}", ""] if head else []) + lines))
    return "\n\n".join(parts) + "\n"


def _measured(subject: Subject) -> list[str]:
    """Every number of the record, and what it was measured with."""
    measured = subject.result.measurements
    numbers = [(name, _number(value)) for name, value in measured.items() if _is_number(value) and name != "num_eval_samples"]
    executor = _text(measured.get("executor", "a runtime that was not recorded"))
    device = _text(measured.get("device", "a device that was not recorded"))
    threads, images = subject.recipe.measurement.threads, measured.get("num_eval_samples", "the")
    with_what = (
        f"On the file that ships, in {executor} on {device} with {threads} thread(s); accuracy over {images} "
        "validation images. Nothing is simulated."
    )
    return [with_what, "", *_table(("measurement", "value"), numbers)]


def _tested(subject: Subject) -> list[str]:
    """What the test split said, and how often it was asked."""
    count = len(subject.opened)
    often = f"It was opened for {count} model(s) of this sweep{': ' + ', '.join(subject.opened) if count else ''}."
    if subject.test is None:
        return [f"The test split was not opened for this model. {often}"]
    record = {name: value for name, value in subject.test.items() if _is_number(value) and name != "opened"}
    flattering = " The best of several is a little flattering." if count > 1 else ""
    return [f"{often}{flattering}", "", *_table(("test", "value"), [(name, _number(value)) for name, value in record.items()])]


def _recipe_lines(recipe: Recipe, result: TrialResult) -> list[str]:
    """Training, distillation, pruning and quantization, a line each."""
    pruning, quantization, distillation, adversarial = (
        recipe.pruning,
        recipe.quantization,
        recipe.distillation,
        recipe.adversarial,
    )
    lines = [f"trained {_training(recipe.training)}; seed {result.seed}"]
    if adversarial.method != "none":
        lines.append(f"on images perturbed by {adversarial.method}, epsilon {adversarial.epsilon:.4g}")
    if distillation.weight or distillation.feature_weight:
        lines.append(
            f"distilled from `{recipe.teacher.model.name}` ({distillation.method}, weight {distillation.weight:.4g}, "
            f"temperature {distillation.temperature:.4g}), which was trained {_training(recipe.teacher.training)}"
        )
    else:
        lines.append("not distilled")
    if pruning.ratio:
        how = "two of four weights" if pruning.kind == "2:4" else f"the fraction {pruning.ratio:.4g} of the {pruning.kind}"
        lines.append(f"pruned: without {how} ({pruning.criterion}, {pruning.scope}); {pruning.epochs} epoch(s) to recover")
    else:
        lines.append("not pruned")
    if quantization.method == "none":
        lines.append("not quantized: 32-bit floats")
    else:
        ends = "; first and last layer 8 bits" if quantization.first_last_8bit else ""
        lines.append(
            f"quantized ({quantization.method}): weights {quantization.weight_bits} bits, activations "
            f"{quantization.activation_bits} bits{ends}"
        )
    return lines


def _training(training: TrainingSettings) -> str:
    return (
        f"for {training.epochs} epoch(s) by {training.optimizer}, learning rate {training.learning_rate:.4g} "
        f"({training.schedule}), batches of {training.batch_size}, {training.precision}, augmentation {training.augmentation}"
    )


def _limits(subject: Subject) -> list[str]:
    """What the figures do not say."""
    quantization, measured = subject.recipe.quantization, subject.result.measurements
    lines = [
        "It gives every picture one of its classes, also one that shows none of them.",
        "The validation split chose it among others, so its figures there are a little flattering.",
        "Latency is that of single images on the machine that measured it; other machines and batches differ.",
    ]
    if quantization.method != "none" and min(quantization.weight_bits, quantization.activation_bits) < _KERNEL_BITS:
        lines.append("Fewer than 8 bits make the file smaller, not faster: it is computed with 8-bit integers.")
    if "robust_accuracy" not in measured:
        lines.append("How it stands up to adversarial pictures was not measured.")
    if "worst_class_accuracy" in measured:
        lines.append(f"Its worst class has an accuracy of {_number(measured['worst_class_accuracy'])}.")
    return lines


def _commands(subject: Subject) -> list[str]:
    """What makes the model again from the sweep's job, and what looks at it."""
    pins = [f"recipe.{path}={_line(value)}" for path, value in subject.result.choice.items()]
    again = [f"--set {shlex.quote(pin)}" for pin in pins]
    name, trial = subject.sweep, subject.result.id
    return [
        " \\\n  ".join(["orchestrator trial job.yaml", *again]) + "  # job.yaml as the sweep and its MLflow run keep it",
        f"orchestrator pick {name} --trial {trial}",
        f"orchestrator export {name} --trial {trial} --to DIR",
    ]


def _classes(classes: Sequence[str]) -> str:
    shown = ", ".join(_text(name) for name in classes[:_MOST_CLASSES])
    return shown if len(classes) <= _MOST_CLASSES else f"{shown} and {len(classes) - _MOST_CLASSES} more"


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _number(value: float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _line(value: object) -> str:
    """A value as one line of visible signs."""
    text = "true" if value is True else "false" if value is False else str(value)
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return "".join(sign if sign.isprintable() else " " for sign in cut)


def _text(value: object) -> str:
    """A value of whatever signs that markdown and HTML show as it is."""
    return escape(_SPECIAL.sub(r"\\\1", _line(value)), quote=False)
