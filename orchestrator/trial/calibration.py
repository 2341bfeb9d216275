"""The training images on which ranges, scores and sensitivities are taken: a seeded sample, the same for every trial."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.compression.distillation import label_loss
from orchestrator.trial.order import derived_seed
from orchestrator.trial.work import Work

_BATCH = 64


def calibration_images(work: Work) -> list[Tensor]:
    """Normalised, in batches (B, C, H, W)."""
    return [images for images, _ in calibration_batches(work)]


def calibration_batches(work: Work) -> list[tuple[Tensor, Tensor]]:
    """Normalised images (B, C, H, W) with their labels (B,)."""
    seed = derived_seed(work.order.sweep_seed, "calibration")
    images, labels = work.material.train.sample(work.recipe.quantization.num_calibration, seed)
    return list(zip(torch.split(images, _BATCH), torch.split(labels, _BATCH), strict=True))


def calibration_loss(work: Work, model: nn.Module) -> float:
    """Mean loss on the labels, in evaluation mode."""
    model.eval()
    total, count = 0.0, 0
    for images, labels in calibration_batches(work):
        with work.process.permit(), torch.no_grad():
            total += float(label_loss(model(images), labels)) * len(labels)
        count += len(labels)
    return total / count


def add_gradients(work: Work, model: nn.Module) -> None:
    """Leave the loss's gradient, summed over the images, on the parameters. Every rank takes all images."""
    model.eval()
    model.zero_grad(set_to_none=True)  # training leaves its last step's there
    for images, labels in calibration_batches(work):
        with work.process.permit(), torch.enable_grad():
            (label_loss(model(images), labels) * len(labels)).backward()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        if parameter.grad is not None:  # equal already, but for the last bit on some devices
            work.process.summed(parameter.grad)
