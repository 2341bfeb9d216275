"""Adversarial images for judging a file: found on the training graph, held in whole pixels as an image file holds them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

# A bound written with four decimals means the whole pixel beside it: 0.0627 is 16 of 255.
_SLACK = 0.02


def adversarial_images(
    model: nn.Module,
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor],
    pixels: Tensor,
    labels: Tensor,
    epsilon: float,
    scale: Tensor,
    offset: Tensor,
    num_images: int,
    batch_size: int = 256,
) -> npt.NDArray[np.float32]:
    """The first `num_images` images, perturbed against `model`: float32 (N, C, H, W), whole numbers in 0..255.

    White box: the attack takes gradients of the very graph that was trained, through its quantizers by their straight-through
    estimator, and the file is judged on what it found. The quantizers of the images themselves have to be open at the ends of
    their range (`training.adversarial.straight_through`), or black and white pixels are hardly ever changed.
    Rounding to whole pixels keeps within the bound, because the images are whole: nothing changes by more than the whole part
    of `255 * epsilon`, and nothing at all where that is 0.

    Args:
        model: maps normalised images to logits (B, classes).
        attack: (model, normalised images, labels) to perturbed normalised images, as `training.adversarial` makes them.
        pixels: uint8 (N, C, H, W), on the model's device.
        labels: int64 (N,).
        epsilon: the attack's bound, as a fraction of the pixel range.
        scale, offset: (1, C, 1, 1) with `normalised = pixels * scale + offset`.
        num_images: all there are when there are fewer.
        batch_size: images attacked at once.
    """
    found = []
    reach = float(int(255.0 * epsilon + _SLACK))
    parts = (torch.split(values[:num_images], batch_size) for values in (pixels, labels))
    for batch, truth in zip(*parts, strict=True):
        clean = batch.float()
        perturbed = attack(model, torch.addcmul(offset, clean, scale), truth).detach()
        whole = ((perturbed - offset) / scale).round()
        bounded = torch.clamp(whole, clean - reach, clean + reach).clamp(0.0, 255.0)
        found.append(bounded.contiguous().cpu().numpy())
    return np.concatenate(found)
