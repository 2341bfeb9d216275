"""Distillation is a loss, not a step of its own kind: recovery after pruning and quantization-aware training use it too."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def distillation_loss(
    logits_BC: Tensor,
    labels_B: Tensor,
    teacher_logits_BC: Tensor,
    weight: float,
    temperature: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Hinton, Vinyals, Dean 2015, section 2.

    `(1 - weight) * CE(labels) + weight * T^2 * KL(teacher_T || student_T)`; T^2 keeps the gradients' size over temperatures.
    Computed in float32 whatever the logits' precision.
    """
    logits, teacher = logits_BC.float() / temperature, teacher_logits_BC.float() / temperature
    soft = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(teacher, 1), reduction="batchmean", log_target=True)
    return (1 - weight) * label_loss(logits_BC, labels_B, label_smoothing) + weight * temperature**2 * soft


def label_loss(logits_BC: Tensor, labels_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in float32."""
    return F.cross_entropy(logits_BC.float(), labels_B, label_smoothing=label_smoothing)


def make_loss(
    teacher: nn.Module | None, weight: float, temperature: float, label_smoothing: float
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The loss of a training stage: labels alone, or labels and a frozen teacher that sees the same images."""
    if teacher is None or weight == 0.0:
        return lambda images, logits, labels: label_loss(logits, labels, label_smoothing)
    teacher.eval().requires_grad_(False)

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher(images)
        return distillation_loss(logits, labels, teacher_logits, weight, temperature, label_smoothing)

    return loss
