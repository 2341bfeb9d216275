"""Train a network, and judge it. The same code alone and under DDP, dense, pruned or fake-quantized."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orchestrator.errors import DivergedError
from orchestrator.training.precision import arithmetic, loss_scaler
from orchestrator.training.process import Process, laid_out
from orchestrator.training.schedule import rate_factor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images, logits, labels) to a scalar: a loss may look at the images again, as distillation does."""

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
"""Epoch to this rank's batches of (images, labels)."""


@dataclass(frozen=True)
class Fit:
    """How to train; the fields are those of the recipe's training settings."""

    epochs: int
    learning_rate: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_fraction: float = 0.0
    gradient_clip: float | None = None
    precision: str = "fp32"
    channels_last: bool = False


def fit(
    model: nn.Module,
    batches: Batches,
    steps_per_epoch: int,
    loss: Loss,
    how: Fit,
    process: Process,
    on_epoch: Callable[[int, float], None],
    on_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Train `model` in place.

    Args:
        batches: called with each epoch's number, from 0.
        on_epoch: called on every rank with the epoch's number and its mean loss over all ranks; may raise to end training.
        on_step: called on every rank before each step with its number, counted over all epochs; may raise as well.

    Raises:
        DivergedError: on every rank, after an epoch whose loss is not finite.
    """
    together = process.together(laid_out(model, channels_last=how.channels_last))
    optimizer = make_optimizer(model, how)
    scaler = loss_scaler(how.precision, process.device)
    total = max(1, how.epochs * steps_per_epoch)
    step = 0
    for epoch in range(how.epochs):
        together.train()
        seen = torch.zeros(2, device=process.device)
        for images, labels in batches(epoch):
            on_step(step)
            with process.permit():
                rate = how.learning_rate * rate_factor(how.schedule, min(step / total, 1.0), how.warmup_fraction)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                with arithmetic(how.precision, process.device):
                    value = loss(images, together(images), labels)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(value).backward()  # type: ignore[no-untyped-call]
                if how.gradient_clip is not None:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), how.gradient_clip)
                scaler.step(optimizer)
                scaler.update()
                seen += torch.stack([value.detach().float(), torch.ones((), device=process.device)])
                step += 1
        mean_loss = _mean(process.summed(seen))
        if not math.isfinite(mean_loss):
            raise DivergedError(f"loss must stay finite; it was {mean_loss} in epoch {epoch}: lower the learning rate")
        on_epoch(epoch, mean_loss)


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str, process: Process) -> float:
    """Fraction of all ranks' examples that the training graph classifies rightly. Shares may differ in size."""
    model.eval()
    counts = torch.zeros(2, dtype=torch.int64, device=process.device)
    for images, labels in batches:
        with process.permit(), torch.inference_mode(), arithmetic(precision, process.device):
            counts[0] += (model(images).argmax(1) == labels).sum()
            counts[1] += len(labels)
    return _mean(process.summed(counts))


def make_optimizer(model: nn.Module, how: Fit) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW; vectors (norms, biases, step sizes) are not decayed."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": how.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if how.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=how.learning_rate)
    return torch.optim.SGD(groups, lr=how.learning_rate, momentum=how.momentum, nesterov=how.momentum > 0)


def _mean(total_and_count: Tensor) -> float:
    total, count = total_and_count.tolist()
    return float(total / max(1, count))
