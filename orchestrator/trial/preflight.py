"""What can be known of a recipe before anything is trained: that its networks can be built, cut, quantized and traced.

A fresh network goes through the surgery that the recipe asks for. What does not survive it ends the trial as INFEASIBLE before
it costs anything.
"""

from __future__ import annotations

import time

from torch import nn

from orchestrator.compression.channels import prune_channels
from orchestrator.compression.fake_quantize import insert_quantizers
from orchestrator.compression.folding import fold_norms
from orchestrator.compression.weights import ends, prune_two_of_four
from orchestrator.spec.recipe import PruningSettings
from orchestrator.training.process import seeded
from orchestrator.trial.work import Work


def preflight(work: Work) -> None:
    """Try a recipe on networks that were just initialised.

    Raises:
        UnbuildableError: and why.
    """
    clock, started = time.perf_counter(), time.time()
    recipe, quantization = work.recipe, work.recipe.quantization
    with seeded(0):
        distillation = recipe.distillation
        if distillation.weight > 0.0 or distillation.feature_weight > 0.0:
            work.check(work.fresh(recipe.teacher.model), "teacher")
        model = work.fresh(recipe.model)
        work.check(model, "student")
        with work.process.permit():
            _cut(model, work, recipe.pruning)
            if quantization.method != "none":
                insert_quantizers(model, quantization.weight_bits, quantization.activation_bits, quantization.first_last_8bit)
            else:
                fold_norms(model)
    work.timed("preflight", clock, started)


def _cut(model: nn.Module, work: Work, pruning: PruningSettings) -> None:
    """As the recipe will, but by magnitude: what is left to be seen is whether layers can bear it."""
    if pruning.ratio == 0.0:
        return
    if pruning.kind == "channels":
        scope = "global" if pruning.scope == "global" else "uniform"
        prune_channels(model, work.example(), pruning.ratio, "l2", scope, pruning.round_to)
    elif pruning.kind == "2:4":
        prune_two_of_four(model, ends(model))
