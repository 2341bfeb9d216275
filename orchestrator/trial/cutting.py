"""Pruning within a trial: which channels or weights go, in how many steps."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from orchestrator.compression.channels import channel_sensitivity, channel_widths, prune_channels, total_ratios
from orchestrator.compression.scores import layer_ratios
from orchestrator.compression.weights import ends, prune_two_of_four, prune_weights
from orchestrator.trial.calibration import add_gradients, calibration_loss
from orchestrator.trial.work import Work

# At which fractions a layer is tried; what lies between is taken from straight lines.
_TRIED = (0.1, 0.25, 0.5, 0.75, 0.95)


def cut_in_steps(work: Work, model: nn.Module) -> Iterator[None]:
    """Cut `model` in place, step by step; the caller trains it in between and after."""
    pruning = work.recipe.pruning
    if pruning.kind == "channels":
        yield from _cut_channels(work, model)
        return
    for ratio in total_ratios(pruning.ratio, pruning.steps):
        with work.process.permit():
            if pruning.kind == "2:4":
                prune_two_of_four(model, ends(model))
            else:
                prune_weights(model, ratio, "uniform" if pruning.scope == "uniform" else "global", ends(model))
        yield


def _cut_channels(work: Work, model: nn.Module) -> Iterator[None]:
    pruning, example = work.recipe.pruning, work.example()
    widths = channel_widths(model, example)
    shares: dict[str, float] = {}
    if pruning.scope == "sensitivity":
        shares = _shares(work, model, widths)
    for ratio in total_ratios(pruning.ratio, pruning.steps):
        if pruning.criterion == "taylor":
            add_gradients(work, model)
        ratios = {name: share * ratio / pruning.ratio for name, share in shares.items()} or None
        with work.process.permit():
            prune_channels(
                model,
                example,
                ratio,
                pruning.criterion,
                pruning.scope,
                pruning.round_to,
                ratios=ratios,
                original_widths=widths,
            )
        yield


def _shares(work: Work, model: nn.Module, widths: dict[str, int]) -> dict[str, float]:
    """What each layer can bear to lose, so that the whole loses the ratio."""
    pruning = work.recipe.pruning
    if pruning.criterion == "taylor":
        add_gradients(work, model)
    losses = channel_sensitivity(
        model,
        work.example(),
        lambda pruned: calibration_loss(work, pruned),
        _TRIED,
        pruning.criterion,
        pruning.round_to,
    )
    ratios: dict[str, float] = work.process.agreed(layer_ratios(losses, widths, pruning.ratio))
    return ratios
