"""Quantizers that learn their step size.

Esser et al. 2020, "Learned Step Size Quantization", section 2, with the zero point of Bhalgat et al. 2020 ("LSQ+") for tensors
that take both signs.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        values: (N, ...) float; the outcome has its type. Arithmetic is in float32 or wider.
        step: positive float32, broadcast against the values.
        zero: (1,) float32, rounded to the zero point; or None for none.
        factor: LSQ's gradient scale, section 2.2.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, step: Tensor, zero: Tensor | None, lowest: int, highest: int, factor: float
    ) -> Tensor:
        whole = None if zero is None else zero.round().clamp_(lowest, highest)
        rounded = torch.empty_like(values)  # of its own: what follows may write into it (a dropout in place, say)
        for value, result, place in _blocks([values, rounded], step, 1):
            place.copy_(value).div_(step)
            result.copy_(_clipped(place.round_(), whole, lowest, highest).mul_(step))
        ctx.save_for_backward(values, step, whole)
        ctx.lowest, ctx.highest, ctx.factor = lowest, highest, factor
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, step, whole = ctx.saved_tensors
        lowest, highest = ctx.lowest, ctx.highest
        to_values, to_step, to_zero = torch.empty_like(values), torch.zeros_like(step), torch.zeros_like(step)
        for value, coming, going, place, arrived, passed, codes in _blocks([values, gradient, to_values], step, 4):
            place.copy_(value).div_(step)
            arrived.copy_(coming)
            offset = place if whole is None else torch.add(place, whole, out=codes)
            torch.ops.aten.hardtanh_backward.grad_input(arrived, offset, lowest, highest, grad_input=passed)
            going.copy_(passed)
            if ctx.needs_input_grad[2]:
                # Moves the offset, -zero * step, as LSQ+ does: the gradient of zero itself would be step^2 times that.
                to_zero += (passed.sum() - arrived.sum()) / step
            # Inside, (code - v / step) * gradient; beyond, code * gradient.
            _clipped(torch.round(place, out=codes), whole, lowest, highest)
            to_step -= passed.mul_(place).addcmul_(arrived, codes, value=-1).sum_to_size(step.shape)
        wanted = (to_zero * ctx.factor).reshape(whole.shape) if ctx.needs_input_grad[2] else None
        return to_values, to_step * ctx.factor, wanted, None, None, None


def _clipped(whole_steps: Tensor, zero: Tensor | None, lowest: int, highest: int) -> Tensor:
    """Rounded values where their codes end, in place: the zero point is added after rounding, as the runtime does."""
    if zero is None:
        return whole_steps.clamp_(lowest, highest)
    return whole_steps.add_(zero).clamp_(lowest, highest).sub_(zero)


_BLOCK_VALUES = 2**19


def _blocks(tensors: list[Tensor], step: Tensor, spare: int) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape in blocks of rows, each with as many spare tensors of its shape, float32 or wider, to work in.

    A processor makes several passes over a block in its caches for little more than the first, where a pass over a whole
    activation, or a fresh tensor for it, would go to memory. A device that launches kernels takes everything at once, as do
    a compiler, which makes one pass of all, and a weight with a step for each channel.
    """
    first = tensors[0]
    width = torch.promote_types(first.dtype, step.dtype)
    if first.device.type != "cpu" or step.numel() != 1 or torch.compiler.is_compiling():
        yield *tensors, *(torch.empty_like(first, dtype=width) for _ in range(spare))
        return
    rows = max(1, _BLOCK_VALUES * len(first) // max(first.numel(), 1))
    rooms = [torch.empty_like(first[:rows], dtype=width) for _ in range(spare)]
    for parts in zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True):
        yield *parts, *(room[: len(parts[0])] for room in rooms)


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
        self.watching, self._signed = True, True
        self._seen = Sample()

    @property
    def rectifies(self) -> bool:
        """Whether it takes what is below zero for zero, in training as well, with no gradient: a ReLU before it is idle."""
        return not (self.watching or self.carrier or self._signed)

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
        zero = self.zero_point if self._signed else None
        return _rounded(x, self.scale, zero, 0, self.limit, (x[0].numel() * self.limit) ** -0.5)

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
        self.resume()

    def resume(self) -> None:
        """Quantize with the step size and the zero point that are held: found by `calibrate`, or come with a state dict."""
        self.watching, self._signed = False, bool(self.zero_point.detach() != 0)
        self.zero_point.requires_grad_(self._signed and not self.carrier)

    def codes(self) -> tuple[float, int]:
        """The step size and the whole zero point that quantization uses."""
        return float(self.scale.detach()), int(self.zero_point.detach().round().clamp(0, self.limit))


def _rounded(values: Tensor, step: Tensor, zero: Tensor | None, lowest: int, highest: int, factor: float) -> Tensor:
    rounded: Tensor = _Rounded.apply(values, step, zero, lowest, highest, factor)  # type: ignore[no-untyped-call]
    return rounded


def _step(relative: Tensor, unit: Tensor) -> Tensor:
    step: Tensor = _Step.apply(relative, unit)  # type: ignore[no-untyped-call]
    return step
