"""Mixed precision: the arithmetic of the forward pass, and loss scaling where it is needed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast for "bf16" and "fp16", plain for "fp32". The weights stay float32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def loss_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Dynamic loss scaling for "fp16", a pass-through otherwise."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
