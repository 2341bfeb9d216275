"""Quantizers that learn their step size.

Esser et al. 2020, "Learned Step Size Quantization", section 2, with the zero point of Bhalgat et al. 2020 ("LSQ+") for tensors
that take both signs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.compression.ranges import LEAST_STEP, Sample, activation_range, weight_scales

_LEAST_RELATIVE = 1e-6


class _Rounded(torch.autograd.Function):
    """Values on a grid: (clip(round(v / step) + zero, lowest, highest) - zero) * step, with the gradients of LSQ.

    Esser et al. 2020, sections 2.1 to 2.3. A value strictly inside the range passes its gradient on and gives the step
    `code - v / step`; any other passes nothing on and gives the step the code at which it ends.

    torch's learnable fake-quantize kernels take what lies up to half a step beyond the range as inside, wait for the device to
    read the step, and go value by value on a processor, where these vector operations take a tenth of their time.

    Args of `apply`:
        values: float, any shape; the outcome is float32 for anything narrower.
        step: positive float32, broadcast against the values.
        zero: (1,) float32, rounded to the zero point; or None for none.
        factor: LSQ's gradient scale, section 2.2.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, step: Tensor, zero: Tensor | None, lowest: int, highest: int, factor: float
    ) -> Tensor:
        whole = None if zero is None else zero.round().clamp_(lowest, highest)
        codes = _in_steps(values, step).round_()  # round, then add: as the runtime does
        if whole is None:
            codes.clamp_(lowest, highest)
        else:
            codes.add_(whole).clamp_(lowest, highest).sub_(whole)
        ctx.save_for_backward(values, codes, step, whole)
        ctx.lowest, ctx.highest, ctx.factor = lowest, highest, factor
        return codes * step  # a tensor of its own: what follows may write into it (a dropout in place, say)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, codes, step, whole = ctx.saved_tensors
        place = _in_steps(values, step)
        if whole is not None:
            place += whole
        passed = torch.ops.aten.hardtanh_backward(gradient, place, ctx.lowest, ctx.highest)
        if whole is not None:
            place -= whole
        # Inside, (code - v / step) * gradient; beyond, code * gradient. In place: a fresh tensor costs more than arithmetic.
        less = place.mul_(passed).addcmul_(gradient, codes, value=-1)
        to_step = less.sum_to_size(step.shape) * -ctx.factor
        to_zero = None
        if ctx.needs_input_grad[2]:
            # Moves the offset, -zero * step, as LSQ+ does: the gradient of zero itself would be step^2 times that.
            to_zero = ((passed.sum() - gradient.sum()) / step).reshape(whole.shape) * ctx.factor
        return passed.to(values.dtype), to_step, to_zero, None, None, None


def _in_steps(values: Tensor, step: Tensor) -> Tensor:
    """values / step in float32 or wider, a fresh tensor. Casting first spares a processor a hidden copy."""
    return values / step if values.dtype == step.dtype else values.float().div_(step)


class _Step(torch.autograd.Function):
    """A positive step size from one that is counted in units, with the gradient divided by the unit instead of multiplied.

    Plain gradient descent then moves the step itself exactly as the paper does, and an optimizer that makes moves of one size
    (Adam) moves it by a fraction of itself, whether it is 1 or 0.001. A step that comes to the floor can go up again.
    """

    @staticmethod
    def forward(ctx: Any, relative: Tensor, unit: Tensor) -> Tensor:
        ctx.save_for_backward(relative, unit)
        return unit * relative.clamp_min(_LEAST_RELATIVE)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        relative, unit = ctx.saved_tensors
        wanted = gradient / unit
        return wanted.masked_fill_((relative <= _LEAST_RELATIVE) & (wanted > 0), 0.0), None


class WeightQuantizer(nn.Module):
    """Symmetric; codes in [-(2^(bits-1) - 1), 2^(bits-1) - 1]. A parametrization of a layer's weight.

    Args:
        weight: (O, ...) float, from which the step sizes are found by least squared error.
        bits: 2 to 8.
        granularity: "channel": a step size for each of the O output channels; "tensor": one for all.
    """

    unit: Tensor

    def __init__(self, weight: Tensor, bits: int, granularity: str = "channel") -> None:
        super().__init__()
        if granularity not in ("channel", "tensor"):
            raise ValueError(f"granularity must be channel or tensor; given {granularity!r}")
        self.bits, self.limit, self.num_channels = bits, 2 ** (bits - 1) - 1, len(weight)
        rows = weight.detach().flatten(1) if granularity == "channel" else weight.detach().reshape(1, -1)
        start = weight_scales(rows, self.limit)
        self.register_buffer("unit", start.mean().reshape(1))
        self.relative_step = nn.Parameter(start / self.unit)
        self._factor = (rows.shape[1] * self.limit) ** -0.5

    @property
    def scale(self) -> Tensor:
        """The step sizes (O,) that quantization uses, all equal for "tensor"."""
        return _step(self.relative_step, self.unit).expand(self.num_channels)

    def forward(self, weight: Tensor) -> Tensor:
        step = _step(self.relative_step, self.unit).view(-1, *[1] * (weight.ndim - 1))
        return _rounded(weight, step, None, -self.limit, self.limit, self._factor)

    def step(self) -> Tensor:
        """The same (O,), to read and not to learn."""
        return self.scale.detach()


class ActivationQuantizer(nn.Module):
    """Per tensor; codes in [0, 2^bits - 1]. Watches what passes until `calibrate`, then quantizes it.

    A tensor that is never negative keeps zero point 0, so that a runtime can drop the ReLU before it.

    Args:
        carrier: it stands where no layer reads but the file needs whole numbers (sums, say). Its rounding is too small to
            train against and would cost a pass over the tensor, so it rests in training and learns nothing.
    """

    unit: Tensor

    def __init__(self, bits: int, carrier: bool = False) -> None:
        super().__init__()
        self.bits, self.limit, self.carrier = bits, 2**bits - 1, carrier
        self.register_buffer("unit", torch.ones(1))
        self.relative_step = nn.Parameter(torch.ones(1), requires_grad=not carrier)
        self.zero_point = nn.Parameter(torch.zeros(1), requires_grad=not carrier)
        self.watching = True
        self._seen = Sample()

    @property
    def scale(self) -> Tensor:
        """The step size (1,) that quantization uses."""
        return _step(self.relative_step, self.unit)

    def forward(self, x: Tensor) -> Tensor:
        if self.watching:
            self._seen.add(x.detach())
            return x
        if self.carrier and self.training:
            return x
        return _rounded(x, self.scale, self.zero_point, 0, self.limit, (x[0].numel() * self.limit) ** -0.5)

    def watch(self) -> None:
        """Let everything pass, and look at it, until `calibrate`."""
        self.watching, self._seen = True, Sample()

    def calibrate(self, method: str) -> None:
        """Set step size and zero point from what was seen; of nothing but zeros, to codes that cover [0, 1].

        Raises:
            DivergedError: what was seen is not finite.
        """
        low, high = activation_range(self._seen.values(), self.limit, method)
        self._seen = Sample()
        scale = max((high - low) / self.limit, LEAST_STEP) if high > low else 1 / self.limit
        self.unit.fill_(scale)
        self.relative_step.data.fill_(1.0)
        self.zero_point.data.fill_(round(-low / scale))
        self.zero_point.requires_grad_(low < 0 and not self.carrier)
        self.watching = False

    def codes(self) -> tuple[float, int]:
        """The step size and the whole zero point that quantization uses."""
        return float(self.scale.detach()), int(self.zero_point.detach().round().clamp(0, self.limit))


def _rounded(values: Tensor, step: Tensor, zero: Tensor | None, lowest: int, highest: int, factor: float) -> Tensor:
    rounded: Tensor = _Rounded.apply(values, step, zero, lowest, highest, factor)  # type: ignore[no-untyped-call]
    return rounded


def _step(relative: Tensor, unit: Tensor) -> Tensor:
    step: Tensor = _Step.apply(relative, unit)  # type: ignore[no-untyped-call]
    return step
