"""What can be known of a recipe before anything is trained: that its networks can be built, cut, quantized and exported.

A fresh network goes through the surgery that the recipe asks for, and into a file. What does not survive it ends the trial as
INFEASIBLE before it costs anything.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from torch import nn

from orchestrator.compression.channels import prune_channels
from orchestrator.compression.distillation import attention_transfer, make_loss
from orchestrator.compression.fake_quantize import set_calibrated
from orchestrator.compression.weights import ends, prune_two_of_four
from orchestrator.errors import UnbuildableError
from orchestrator.spec.recipe import PruningSettings
from orchestrator.training.process import seeded
from orchestrator.trial.quantizing import with_quantizers
from orchestrator.trial.ship import export
from orchestrator.trial.work import Network, Work


def preflight(work: Work) -> None:
    """Try a recipe on networks that were just initialised.

    Raises:
        UnbuildableError: and why, on every rank.
    """
    clock, started = time.perf_counter(), time.time()
    recipe, quantization = work.recipe, work.recipe.quantization
    with seeded(0):
        model = work.fresh(recipe.model)
        work.check(model, "student")
        _try_teacher(work, model)
        with work.process.permit():
            _cut(model, work, recipe.pruning)
            if quantization.method != "none":
                quantized = with_quantizers(model, quantization, quantization.weight_bits)
                set_calibrated(quantized)
                model = quantized
    if quantization.norm_reestimation and min(quantization.num_calibration, len(work.material.train)) < 2:
        raise UnbuildableError("norms need two images or more to be estimated from; raise num_calibration")
    _try_export(work, model)
    work.timed("preflight", clock, started)


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


def _cut(model: nn.Module, work: Work, pruning: PruningSettings) -> None:
    """As the recipe will, but by magnitude: what is left to be seen is whether layers can bear it."""
    if pruning.ratio == 0.0:
        return
    if pruning.kind == "channels":
        scope = "global" if pruning.scope == "global" else "uniform"
        prune_channels(model, work.example(), pruning.ratio, "l2", scope, pruning.round_to)
    elif pruning.kind == "2:4":
        prune_two_of_four(model, ends(model))


def _try_export(work: Work, model: nn.Module) -> None:
    """Rank 0 writes the file; what it says, all ranks say. The graph that it translates is kept for the trial's own export."""
    said = None
    if work.process.first:
        try:
            with tempfile.TemporaryDirectory() as folder:
                export(work, Network(model, ""), Path(folder))
        except UnbuildableError as error:
            said = str(error)
    said = work.process.agreed(said)
    if said is not None:
        raise UnbuildableError(said)
