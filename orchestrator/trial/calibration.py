"""The training images on which ranges, scores and sensitivities are taken: a seeded sample, the same for every trial."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
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
    data = work.material.train
    rows = torch.from_numpy(_rows(work)).to(data.images.device)
    images, labels = data.normalizer(data.images[rows]), data.labels[rows]
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


def _rows(work: Work) -> npt.NDArray[np.int64]:
    count, total = work.recipe.quantization.num_calibration, len(work.material.train)
    seed = derived_seed(work.order.sweep_seed, "calibration")
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])
