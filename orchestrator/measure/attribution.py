"""What predictions rest on: maps of the pixels that count, and how alike those of two networks are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def saliency(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """How much each pixel weighs in a prediction: float32 (N, H, W), 0 or more.

    The absolute gradient of the target's logit, the largest over channels (Simonyan et al. 2014, section 3.1).

    Args:
        model: maps normalised images to logits (N, classes); looked at in evaluation mode, and left as it was.
        images: normalised, float32 (N, C, H, W).
        targets: int64 (N,), the classes that are explained.
    """
    from captum.attr import Saliency  # takes a second to import, and few trials ask for it

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        explain: Callable[..., Any] = Saliency(model).attribute
        by_channel: Tensor = explain(images.detach().requires_grad_(), target=targets, abs=True)
    finally:
        for module, training in modes:
            module.training = training
    return by_channel.detach().float().amax(1)


def similarities(one: Tensor, other: Tensor) -> list[float]:
    """How alike two maps of an image are, for each of N images: Spearman's rank correlation, in [-1, 1].

    A map without any contrast has no ranks: it counts 1 against a map that has none either, and else 0.

    Args:
        one, other: (N, H, W).
    """
    return [_rank_correlation(a.flatten(), b.flatten()) for a, b in zip(one, other, strict=True)]


def _rank_correlation(one: Tensor, other: Tensor) -> float:
    """The correlation of ranks, where equal values share the mean of theirs."""
    first, second = (_ranks(values) - (len(values) + 1) / 2 for values in (one, other))
    size = float(first.norm() * second.norm())
    if size == 0.0:
        return float(torch.equal(first, second))
    return float(first @ second) / size


def _ranks(values: Tensor) -> Tensor:
    """From 1, float64 (N,)."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = counts.cumsum(0).double() - (counts - 1) / 2
    return ranks[place]
