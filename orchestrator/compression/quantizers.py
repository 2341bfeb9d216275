"""Quantizers that learn their step size, and the ranges that they start from.

Esser et al. 2020, "Learned Step Size Quantization", section 2, with the offset of Bhalgat et al. 2020 ("LSQ+") for tensors that
take both signs. torch's learnable fake-quantize kernels do the arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CANDIDATES = 40
_SAMPLE = 1 << 15


class WeightQuantizer(nn.Module):
    """Symmetric, per output channel; codes in [-(2^(bits-1) - 1), 2^(bits-1) - 1]. A parametrization of a layer's weight.

    Args:
        weight: (O, ...) float, from which the step sizes (O,) are found by least squared error.
    """

    zero_point: Tensor

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.bits, self.limit = bits, 2 ** (bits - 1) - 1
        self.scale = nn.Parameter(weight_scales(weight.detach(), self.limit))
        self.register_buffer("zero_point", torch.zeros_like(self.scale))

    def forward(self, weight: Tensor) -> Tensor:
        factor = (weight[0].numel() * self.limit) ** -0.5
        quantized: Tensor = torch._fake_quantize_learnable_per_channel_affine(
            weight.float(), self.scale.abs().clamp_min(1e-8), self.zero_point, 0, -self.limit, self.limit, factor
        )
        return quantized

    def step(self) -> Tensor:
        """The step sizes (O,) that quantization uses."""
        return self.scale.detach().abs().clamp_min(1e-8)


class ActivationQuantizer(nn.Module):
    """Per tensor; codes in [0, 2^bits - 1]. Watches what passes until `calibrate`, then quantizes it.

    A tensor that is never negative keeps zero point 0, so that a runtime can drop the ReLU before it.

    Args:
        carrier: it stands where no layer reads but the file needs whole numbers (sums, say). Its rounding is too small to
            train against and would cost a pass over the tensor, so it rests in training and learns nothing.
    """

    def __init__(self, bits: int, carrier: bool = False) -> None:
        super().__init__()
        self.bits, self.limit, self.carrier = bits, 2**bits - 1, carrier
        self.scale = nn.Parameter(torch.ones(1), requires_grad=not carrier)
        self.zero_point = nn.Parameter(torch.zeros(1), requires_grad=not carrier)
        self.watching = True
        self._seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.watching:
            flat = x.detach().flatten()
            self._seen.append(flat[:: max(1, flat.numel() // _SAMPLE)].float().clone())
            return x
        if self.carrier and self.training:
            return x
        factor = (x[0].numel() * self.limit) ** -0.5
        scale = self.scale.abs().clamp_min(1e-8)
        quantized: Tensor = torch._fake_quantize_learnable_per_tensor_affine(
            x.float(), scale, self.zero_point, 0, self.limit, factor
        )
        return quantized

    def watch(self) -> None:
        """Let everything pass, and look at it, until `calibrate`."""
        self.watching, self._seen = True, []

    def calibrate(self, method: str) -> None:
        """Set scale and zero point from what was seen."""
        low, high = activation_range(torch.cat(self._seen), self.limit, method)
        self._seen = []
        scale = max((high - low) / self.limit, 1e-8)
        self.scale.data.fill_(scale)
        self.zero_point.data.fill_(round(-low / scale))
        self.zero_point.requires_grad_(low < 0 and not self.carrier)
        self.watching = False

    def codes(self) -> tuple[float, int]:
        """The scale and the whole zero point that quantization uses."""
        scale, zero_point = self.scale.detach().abs().clamp_min(1e-8), self.zero_point.detach().clamp(0, self.limit)
        return float(scale), int(zero_point.round())


def weight_scales(weight: Tensor, limit: int) -> Tensor:
    """Step size per output channel (O,) with the least squared error, over a grid of clipping ranges."""
    flat = weight.flatten(1).float()
    peak = flat.abs().amax(1).clamp_min(1e-8)
    best, best_error = peak / limit, torch.full_like(peak, float("inf"))
    for fraction in torch.linspace(0.3, 1.0, _CANDIDATES):
        scale = peak * fraction / limit
        rounded = (flat / scale[:, None]).round().clamp(-limit, limit) * scale[:, None]
        error = (rounded - flat).square().sum(1)
        better = error < best_error
        best, best_error = torch.where(better, scale, best), torch.where(better, error, best_error)
    return best


def activation_range(values: Tensor, limit: int, method: str) -> tuple[float, float]:
    """The range (low <= 0 <= high) that the codes cover.

    Args:
        values: what passed, 1-D.
        limit: the largest code.
        method: "minmax", "percentile" (0.1 and 99.9) or "mse" (least squared error over a grid).
    """
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if method == "percentile":
        ends = torch.quantile(values[: 1 << 24], torch.tensor([0.001, 0.999], device=values.device))
        return min(float(ends[0]), 0.0), max(float(ends[1]), 0.0)
    if method == "minmax" or high == low:
        return low, high
    best, best_error = (low, high), float("inf")
    for fraction in torch.linspace(0.2, 1.0, _CANDIDATES).tolist():
        scale = (high - low) * fraction / limit
        zero = round(-low * fraction / scale)
        rounded = ((values / scale).round() + zero).clamp(0, limit).sub(zero).mul(scale)
        error = float((rounded - values).square().mean())
        if error < best_error:
            best, best_error = (low * fraction, high * fraction), error
    return best
