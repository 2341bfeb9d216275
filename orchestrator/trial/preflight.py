"""What can be known of a recipe before it is trained: that its networks can be built and exported, and what they cost.

A fresh network goes through the surgery that the recipe asks for, and into a file. What does not survive it ends the trial as
INFEASIBLE before it costs anything, and so does a file that is already known to break a constraint: the gate. Where a plan
waits for values, the gate stands behind the cut as well (`gate_cut`).
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator.compression.channels import prune_channels
from orchestrator.compression.distillation import attention_transfer, make_loss
from orchestrator.compression.fake_quantize import set_calibrated
from orchestrator.compression.weights import ends, layer_weights, prune_two_of_four, prune_weights
from orchestrator.errors import GatedError, UnbuildableError
from orchestrator.measure.latency import processor_model
from orchestrator.measure.runtime import Runtime
from orchestrator.results.files import as_json
from orchestrator.search.gate import judge, refusal
from orchestrator.spec.objective import Constraint
from orchestrator.spec.recipe import PruningSettings
from orchestrator.training.process import seeded
from orchestrator.trial import foresight
from orchestrator.trial.quantizing import with_quantizers
from orchestrator.trial.ship import call_latency, export
from orchestrator.trial.stages import stage_key
from orchestrator.trial.work import Network, Work

# Of the gate's latency: less than of the final one, as it stands between every two trials of a gang.
_ROUNDS, _SECONDS = 20, 0.05
_NOISE = 1e-3


def preflight(work: Work) -> None:
    """Try a recipe on networks that were just initialised, and hold what is known of them to the constraints.

    Raises:
        UnbuildableError, GatedError: and why, on every rank.
    """
    clock, started = time.perf_counter(), time.time()
    recipe, quantization = work.recipe, work.recipe.quantization
    with seeded(0):
        model = work.fresh(recipe.model)
        work.check(model, "student")
        _try_teacher(work, model)
    if quantization.norm_reestimation and min(quantization.num_calibration, len(work.material.train)) < 2:
        raise UnbuildableError("norms need two images or more to be estimated from; raise num_calibration")

    def surgery() -> nn.Module:
        _move_off_zero(model)
        _cut(model, work, recipe.pruning)
        return _quantized(work, model)

    known = foresight.known_before_training(recipe)
    _foresee(work, _plan(work), surgery, known | foresight.estimated_before_training(recipe))
    work.timed("preflight", clock, started)
    _hold(work, known)


def gate_cut(work: Work, model: nn.Module) -> None:
    """Hold a network that was just cut for the last time to the constraints, where `preflight` could not yet.

    Does nothing where nobody asks for what became known, and where nothing is trained any more.

    Args:
        model: equal on all ranks; stays as it is.

    Raises:
        GatedError: on every rank.
    """
    recipe = work.recipe
    known = foresight.known_once_cut(recipe)
    foreseen = (known | foresight.estimated_once_cut(recipe)) - work.gate.keys()
    trains_on = recipe.pruning.epochs > 0 or (recipe.quantization.method == "qat" and recipe.quantization.epochs > 0)
    if not trains_on or not _asked(work) & foreseen:
        return
    structure: dict[str, Any] = {"shapes": {name: list(value.shape) for name, value in model.state_dict().items()}}
    if recipe.pruning.kind != "channels":
        structure["left"] = {name: int(weight.count_nonzero()) for name, weight in layer_weights(model)}
    _foresee(work, _plan(work) | structure, lambda: _quantized(work, copy.deepcopy(model)), foreseen)
    _hold(work, known)


def _foresee(work: Work, plan: dict[str, Any], network: Callable[[], nn.Module], foreseen: frozenset[str]) -> None:
    """Take what is foreseen into `work.gate`, and say so: rank 0 writes the file of `network()` and measures it.

    The numbers are kept in the stage store: a file of equal structure is written and timed once for all trials.
    """
    threads = work.recipe.measurement.threads
    timed = bool(foreseen & foresight.LATENCIES & _asked(work))
    place = {"processor": processor_model(), "executor": Runtime.executor, "threads": threads} if timed else {}

    def make(folder: Path) -> None:
        with seeded(0), work.process.permit():
            model = network()
        with tempfile.TemporaryDirectory() as scratch:
            measured = export(work, Network(model, ""), Path(scratch))
            file = Path(scratch) / "model.onnx"
            measured["size_bytes"] = file.stat().st_size
            if timed:
                measured |= call_latency(work, Runtime(file, threads), _ROUNDS, _SECONDS)
        (folder / "gate.json").write_bytes(as_json(measured))

    data = {"shape": work.material.shape, "num_classes": len(work.material.classes)}
    key = stage_key("gate", plan, [], data | place)
    folder, _ = work.workshop.store.obtain(key, work.process, make, stage="gate", alone=True)
    measured = json.loads((folder / "gate.json").read_bytes())
    work.gate |= {metric: value for metric, value in measured.items() if metric in foreseen}
    work.host.progress({"stage": "gate", "gate": dict(work.gate)})


def _hold(work: Work, known: frozenset[str]) -> None:
    """Hold what is known to the constraints; the same on every rank, as the numbers are."""
    bounds = {metric: Constraint.model_validate(bound) for metric, bound in work.order.constraints.items()}
    values = {metric: value for metric, value in work.gate.items() if metric in known}
    work.amounts = judge(bounds, values)
    if (why := refusal(bounds, values)) is not None:
        raise GatedError(why)


def _asked(work: Work) -> frozenset[str]:
    return frozenset([*work.order.constraints, *work.order.objectives])


def _plan(work: Work) -> dict[str, Any]:
    """Everything in a recipe that the structure of its file depends on."""
    recipe = work.recipe
    cut, codes = {"kind", "ratio", "scope", "round_to"}, {"weight_bits", "activation_bits", "granularity", "first_last_8bit"}
    return {
        "model": recipe.model.model_dump(),
        "origin": work.origin(recipe.model),
        "pruning": recipe.pruning.model_dump(include=cut) if recipe.pruning.ratio > 0.0 else None,
        "quantization": recipe.quantization.model_dump(include=codes) if recipe.quantization.method != "none" else None,
        "export": recipe.export.model_dump(),
    }


def _try_teacher(work: Work, student: nn.Module) -> None:
    """The teacher has the data's classes, and its stages the student's sizes where features are matched."""
    distillation, settings = work.recipe.distillation, work.recipe.teacher
    if distillation.weight == 0.0 and distillation.feature_weight == 0.0:
        return
    teacher = work.fresh(settings.model, loaded=settings.training.epochs == 0)
    work.check(teacher, "teacher")
    if distillation.feature_weight > 0.0:
        loss = make_loss(distillation.method, 0.0, distillation.temperature, distillation.beta)
        with attention_transfer(student, teacher, work.example(), distillation.feature_weight, loss):
            pass


def _move_off_zero(model: nn.Module) -> None:
    """Leave no weight and no mean at 0, where some start and none stays: zeros are stored in fewer bytes."""
    means = [buffer for name, buffer in model.named_buffers() if name.endswith("running_mean")]
    with torch.no_grad():
        for tensor in (*model.parameters(), *means):
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor), alpha=_NOISE)


def _cut(model: nn.Module, work: Work, pruning: PruningSettings) -> None:
    """As the recipe will, but by magnitude: what is left to be seen is whether layers can bear it, and how much is left."""
    if pruning.ratio == 0.0:
        return
    if pruning.kind == "channels":
        scope = "global" if pruning.scope == "global" else "uniform"
        prune_channels(model, work.example(), pruning.ratio, "l2", scope, pruning.round_to)
    elif pruning.kind == "2:4":
        prune_two_of_four(model, ends(model))
    elif pruning.scope == "uniform":
        prune_weights(model, pruning.ratio, "uniform", ends(model))


def _quantized(work: Work, model: nn.Module) -> nn.Module:
    """With the quantizers that the recipe asks for, at one number of bits: their ranges are of no meaning yet."""
    quantization = work.recipe.quantization
    if quantization.method == "none":
        return model
    quantized = with_quantizers(model, quantization, quantization.weight_bits)
    set_calibrated(quantized)
    return quantized
