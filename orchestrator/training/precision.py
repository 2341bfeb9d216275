"""Mixed precision: the arithmetic of the forward pass, loss scaling where it is needed, and what it does to the logits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast for "bf16" and "fp16", plain for "fp32". The weights stay float32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def loss_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Dynamic loss scaling for "fp16", a pass-through otherwise (Micikevicius et al. 2018, section 3.2)."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def drift(model: nn.Module, batches: Iterable[tuple[Tensor, ...]], precision: str, device: torch.device) -> float:
    """How far the logits under `precision` are from those in fp32: the relative L2 distance over all batches, >= 0.

    Taken in evaluation mode; the model's mode is put back.

    Args:
        batches: tuples that begin with images (B, C, H, W) on `device`, as `accuracy` takes them.

    Returns:
        0 when the logits are equal, infinity when some are not finite or fp32's are all zero and the others are not.
    """
    was_training = model.training
    model.eval()
    squares = torch.zeros(2, dtype=torch.float64, device=device)
    with torch.inference_mode():
        for images, *_ in batches:
            exact = model(images).double()
            with arithmetic(precision, device):
                logits = model(images)
            squares += torch.stack([(logits.double() - exact).square().sum(), exact.square().sum()])
    model.train(was_training)
    distance, length = squares.sqrt().tolist()
    if distance == 0.0:
        return 0.0
    return distance / length if length > 0.0 and math.isfinite(distance) else math.inf
