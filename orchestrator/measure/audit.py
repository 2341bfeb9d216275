"""What compression changed that accuracy does not tell: flipped predictions, classes, and what predictions rest on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

_BATCH = 64

Logits = npt.NDArray[np.float32]


def flip_rate(logits_NC: Logits, dense_logits_NC: Logits) -> float:
    """Fraction of predictions that differ from the dense network's; 0 where all are the same.

    Two networks of one accuracy may disagree on many images (Dutta et al. 2024, "Accuracy is not all you need", who count only
    changes between right and wrong; here a change from one wrong class to another counts too).

    Raises:
        ValueError: the logits are not of the same images and classes.
    """
    return float(_flipped(logits_NC, dense_logits_NC).mean())


def agreement(logits_NC: Logits, graph_logits_NC: Logits) -> float:
    """Fraction of predictions that the file and the training graph share; 1 where all are the same.

    Raises:
        ValueError: the logits are not of the same images and classes.
    """
    return 1.0 - flip_rate(logits_NC, graph_logits_NC)


def flips_by_class(logits_NC: Logits, dense_logits_NC: Logits, labels_N: npt.NDArray[np.int64]) -> dict[int, float]:
    """`flip_rate` over the images of each class present, by label: compression forgets unevenly (Hooker et al. 2019).

    Raises:
        ValueError: the logits are not of the same images and classes.
    """
    return _by_class(_flipped(logits_NC, dense_logits_NC), labels_N)


def per_class_accuracy(logits_NC: Logits, labels_N: npt.NDArray[np.int64]) -> dict[int, float]:
    """Fraction of the images of each class present that are classified rightly, by label."""
    return _by_class(logits_NC.argmax(1) == labels_N, labels_N)


def explanation_similarity(dense: nn.Module, compressed: nn.Module, images: Tensor, targets: Tensor) -> float:
    """How alike two networks weigh the pixels, in [-1, 1]: mean rank correlation of their saliency maps; 1 for equal networks.

    A map is the absolute gradient of the target's logit, the largest over channels (Simonyan et al. 2014, section 3.1); maps
    are compared by Spearman's rank correlation of absolute values (as in Adebayo et al. 2018). Saliency and not integrated
    gradients, because there the image is a factor of every map, which makes maps of unlike networks look alike (the same,
    section 5.2). It costs one backward pass a network, where integrated gradients cost tens, and
    follows the straight-through gradient of quantizers, whose steps no path integral adds up. The quantizers of the images
    themselves have to be open at the ends of their range, or black and white pixels weigh nothing.
    A map without any contrast has no ranks: it counts 1 against a map that has none either, and else 0.

    Args:
        dense, compressed: map normalised images to logits (B, classes); looked at in evaluation mode, and left as they were.
        images: normalised, float32 (N, C, H, W).
        targets: int64 (N,), the dense network's predictions.

    Raises:
        ValueError: there are no images.
    """
    if len(images) == 0:
        raise ValueError("there must be images to explain; given none")
    similarities = []
    for batch, wanted in zip(torch.split(images, _BATCH), torch.split(targets, _BATCH), strict=True):
        maps = _saliency(dense, batch, wanted), _saliency(compressed, batch, wanted)
        similarities += [_rank_correlation(one, other) for one, other in zip(*maps, strict=True)]
    return float(np.mean(similarities))


def _saliency(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Maps (N, H * W), 0 or more."""
    from captum.attr import Saliency  # takes a second to import, and few trials ask for it

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        explain: Callable[..., Any] = Saliency(model).attribute
        by_channel: Tensor = explain(images.detach().requires_grad_(), target=targets, abs=True)
    finally:
        for module, training in modes:
            module.training = training
    return by_channel.detach().float().amax(1).flatten(1)


def _rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's: the correlation of ranks, where equal values share the mean of theirs."""
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


def _flipped(logits_NC: Logits, other_NC: Logits) -> npt.NDArray[np.bool_]:
    if logits_NC.shape != other_NC.shape:
        raise ValueError(f"logits must be of the same images and classes; given {logits_NC.shape} and {other_NC.shape}")
    flipped: npt.NDArray[np.bool_] = logits_NC.argmax(1) != other_NC.argmax(1)
    return flipped


def _by_class(hits_N: npt.NDArray[np.bool_], labels_N: npt.NDArray[np.int64]) -> dict[int, float]:
    return {int(label): float(hits_N[labels_N == label].mean()) for label in np.unique(labels_N)}
