"""What a network costs by counting."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one forward pass of `example` (1, C, H, W), over convolutions and matrix products."""
    was_training = model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(example)
    model.train(was_training)
    return int(counter.get_total_flops()) // (2 * len(example))


def count_parameters(model: nn.Module) -> int:
    """Number of weights and biases."""
    return sum(parameter.numel() for parameter in model.parameters())
