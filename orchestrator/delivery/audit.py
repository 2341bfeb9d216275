"""Audit a trial: what compression changed that its accuracy does not tell.

The exported file is compared with the dense model on the validation split. The test split stays closed: an audit is part of
choosing, and `pick` alone opens it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from orchestrator.delivery.audit_parts import Judged, Logits, Subject, compare
from orchestrator.delivery.export import measured_file
from orchestrator.delivery.revisit import dense_student, recipe_of, revisit, shipped_graph
from orchestrator.delivery.standing import is_held
from orchestrator.errors import UsageError
from orchestrator.measure.audit import agreement
from orchestrator.measure.runtime import Runtime
from orchestrator.pareto.front import Front
from orchestrator.report.audit_page import audit_page
from orchestrator.results.files import as_json, replace
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.recipe import AttackSettings
from orchestrator.tracking.connection import answering, tracking_uri
from orchestrator.tracking.mlflow_tracker import MlflowTracker
from orchestrator.trial.shelf import sha256
from orchestrator.trial.work import Work

_BATCH, _NUM_EXPLAINED, _NUM_AGREEING = 256, 64, 1000


@dataclass(frozen=True)
class Audit:
    """What an audit found, and where it was written."""

    record: dict[str, Any]
    record_file: Path
    page_file: Path

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that MLflow shows on the trial's run."""
        return metrics_of(self.record)


def audit(home: Home, sweep: Sweep, job: Job, result: TrialResult, say: Callable[[str], None]) -> Audit:
    """Audit a trial, and write `audit.json` and `audit.html` into its folder. A second audit finds the same, but for times.

    Args:
        say: told of progress, a line each.

    Raises:
        UsageError: the trial is not COMPLETE, its file is gone, or there is nothing left to compare it with.
    """
    file = measured_file(sweep, result)
    started = time.time()
    with _threads(job.resources.threads_per_worker):
        say(f"opening {result.id}: its data, its file and its networks")
        work = revisit(home, job, sweep, result)
        compressed = _shipped(work, result)
        dense, notes = _dense(work, home, sweep, job, result)
        subject = _subject(work, say)
        parts, pictures = compare(subject, compressed, dense)
        stands = _agreement(work, subject, compressed)
    if compressed.graph is None:
        notes.append(f"{result.id} has no model.safetensors any more, so the graph behind its file cannot be rebuilt.")
    record = {
        "sweep": sweep.name,
        "trial": result.id,
        "choice": result.choice,
        "split": "validation",
        "num_images": len(subject.examples),
        "compressed": {"what": compressed.what, "executor": compressed.executor, "graph_agreement": stands},
        "dense": {"what": dense.what, "executor": dense.executor},
        "file_sha256": sha256(file),
        "size_bytes": file.stat().st_size,
        "seed": result.seed,
        **parts,
        "notes": notes + parts["notes"],
        "made": started,
        "seconds": time.time() - started,
    }
    found = Audit(record, file.with_name("audit.json"), file.with_name("audit.html"))
    replace(found.page_file, audit_page(record, pictures).encode("utf-8", "replace"))
    replace(found.record_file, as_json(record))
    return found


def _subject(work: Work, say: Callable[[str], None]) -> Subject:
    """What a trial's models are shown: its validation split, and its recipe's attack or the default one."""
    settings, material = work.recipe.measurement, work.material
    return Subject(
        material.splits.val,
        material.classes,
        material.normalizer,
        settings.attack or AttackSettings(),
        settings.num_explained or _NUM_EXPLAINED,
        work.order.sweep_seed,
        say,
        work.process.permit,
    )


def log_audit(home: Home, sweep: Sweep, job: Job, front: Front, result: TrialResult, found: Audit) -> None:
    """Put an audit's figures and files on the trial's run in MLflow.

    Args:
        front: of the whole sweep.

    Raises:
        UnreachableError: the tracking server does not answer; the files in the trial's folder are there all the same.
    """
    tracker = MlflowTracker(job, home, sweep)
    with answering(tracking_uri(home, job.tracking.uri)):
        tracker.connect()
        if tracker.catch_up() and not is_held(sweep.lock_file):
            tracker.close(front, [])
        tracker.add(result.number, found.metrics, [found.page_file, found.record_file])


def metrics_of(record: dict[str, Any]) -> dict[str, float]:
    """The figures of an audit by MLflow key: `audit/flip_rate` of the file, `audit/dense_accuracy` of the dense model."""
    found: dict[str, float] = {"flip_rate": record["flips"]["rate"]}
    for name, prefix in (("compressed", ""), ("dense", "dense_")):
        found[f"{prefix}accuracy"] = record["accuracy"][name]["accuracy"]
        found[f"{prefix}worst_class_accuracy"] = record["accuracy"][name]["worst_class_accuracy"]
        found[f"{prefix}calibration_error"] = record["calibration"][name]["error"]
        if record["attack"] is not None:
            found[f"{prefix}robust_accuracy"] = record["attack"][name]["accuracy"]
        if record["corruptions"] is not None:
            found[f"{prefix}corruption_accuracy"] = record["corruptions"]["mean"][name]
    found["worst_class_change"] = record["classes"][0]["change"]
    if record["attributions"] is not None:
        found["explanation_similarity"] = record["attributions"]["mean"]
    return {f"audit/{key}": value for key, value in found.items()}


def _shipped(work: Work, result: TrialResult) -> Judged:
    """The file, and the graph that it was written from."""
    path = Path(work.order.folder) / "model.onnx"
    runtime = Runtime(path, work.recipe.measurement.threads)
    return Judged(
        f"the exported file of {result.id}",
        f"{runtime.executor} {runtime.version}",
        lambda pixels: runtime.logits(pixels, work.process.permit),
        shipped_graph(work),
    )


def _dense(work: Work, home: Home, sweep: Sweep, job: Job, result: TrialResult) -> tuple[Judged, list[str]]:
    """What the file is compared with: the trial's own dense network, or the baseline's file where the store lost that."""
    student = dense_student(work, result)
    if student is not None:
        what = f"the dense student network of {result.id}, before pruning and quantization"
        return Judged(what, f"torch {torch.__version__}", _graph_logits(work, student), student), []
    baseline = sweep.result(0)
    folder = sweep.trial_folder(0)
    if baseline is None or baseline.state != "COMPLETE" or not (folder / "model.onnx").is_file():
        raise UsageError(
            f"an audit compares with the dense network of {result.id}, which is not in the stage store any more, or with the "
            "baseline t0000, which has no file; `orchestrator run` under another name makes both again"
        )
    recipe = recipe_of(folder)
    if recipe.data != work.recipe.data:
        raise UsageError(
            f"the baseline t0000 sees other data than {result.id}, whose dense network is not in the stage store any more"
        )
    note = f"The dense network of {result.id} is not in the stage store any more: compared with the baseline's file, t0000."
    if result.number == 0:
        note += " That is this very file, so no difference can show."
    elif recipe.pruning.ratio > 0.0 or recipe.quantization.method != "none":
        note += " That is compressed itself, by the job's own recipe."
    return _shipped(revisit(home, job, sweep, baseline), baseline), [note]


def _graph_logits(work: Work, graph: nn.Module) -> Callable[[npt.NDArray[Any]], Logits]:
    """Logits of pixels from a graph, in float32."""

    def logits(pixels: npt.NDArray[Any]) -> Logits:
        found = []
        for start in range(0, len(pixels), _BATCH):
            batch = np.array(pixels[start : start + _BATCH])  # a copy: torch warns of arrays that may not be written to
            with work.process.permit(), torch.inference_mode():
                found.append(graph(work.material.normalizer(torch.from_numpy(batch))).float().numpy())
        return np.concatenate(found)

    return logits


def _agreement(work: Work, subject: Subject, compressed: Judged) -> float | None:
    """How far the graph that attacks and maps are made on stands for the file: the fraction of equal predictions."""
    if compressed.graph is None:
        return None
    _, pixels, _ = subject.spread(_NUM_AGREEING)
    return agreement(compressed.logits(pixels), _graph_logits(work, compressed.graph)(pixels))


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """As many threads as the trial had: their number changes the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
