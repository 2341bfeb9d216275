"""Quantizers that learn their step size, and the ranges that they start from.

Esser et al. 2020, "Learned Step Size Quantization", section 2, with the zero point of Bhalgat et al. 2020 ("LSQ+") for tensors
that take both signs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.errors import DivergedError

_LEAST_STEP = 1e-12
_LEAST_RELATIVE = 1e-6
_COARSE = 20
_SAMPLE, _MOST = 1 << 15, 1 << 20


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
        rounded = codes.mul_(step)
        ctx.save_for_backward(values, rounded, step, whole)
        ctx.lowest, ctx.highest, ctx.factor = lowest, highest, factor
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, rounded, step, whole = ctx.saved_tensors
        place = _in_steps(values, step)
        if whole is not None:
            place += whole
        passed = torch.ops.aten.hardtanh_backward(gradient, place, ctx.lowest, ctx.highest)
        if whole is not None:
            place -= whole
        # Inside, (code - v / step) * gradient; beyond, code * gradient. In place: a fresh tensor costs more than arithmetic.
        of_step = place.mul_(passed).mul_(-step).addcmul_(gradient, rounded)
        to_step = of_step.sum_to_size(step.shape) / step * ctx.factor
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
        self._seen = _Seen()

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
        self.watching, self._seen = True, _Seen()

    def calibrate(self, method: str) -> None:
        """Set step size and zero point from what was seen; of nothing but zeros, to codes that cover [0, 1].

        Raises:
            DivergedError: what was seen is not finite.
        """
        low, high = activation_range(self._seen.values(), self.limit, method)
        self._seen = _Seen()
        scale = max((high - low) / self.limit, _LEAST_STEP) if high > low else 1 / self.limit
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


class _Seen:
    """An even sample of what passed, and all of its extremes.

    At random places: at regular ones it would be one column of every image wherever their width divides the distance.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._extremes: list[Tensor] = []
        self._share = 1
        self._random = torch.Generator().manual_seed(0)

    def add(self, x: Tensor) -> None:
        flat = x.flatten().float()
        self._extremes.append(torch.stack(flat.aminmax()))
        self._parts.append(self._some(flat, max(1, min(len(flat), _SAMPLE) // self._share)))
        if sum(map(len, self._parts)) > _MOST:
            everything = torch.cat(self._parts)
            self._parts = [self._some(everything, len(everything) // 2)]
            self._share *= 2

    def _some(self, flat: Tensor, count: int) -> Tensor:
        if count >= len(flat):
            return flat.clone()
        return flat[torch.randint(len(flat), (count,), generator=self._random).to(flat.device)]

    def values(self) -> Tensor:
        """1-D float32."""
        assert self._parts, "calibrate follows images"
        return torch.cat([*self._parts, *self._extremes])


def weight_scales(rows: Tensor, limit: int) -> Tensor:
    """Step size (R,) of each row of weights (R, N) with the least squared error, over a grid of clipping ranges.

    The paper starts from 2 mean|w| / sqrt(limit), which loses more at any number of bits. A row of zeros gets the mean step of
    the others, so that it can learn.
    """
    flat = rows.float()
    peak = flat.abs().amax(1)
    some = peak.clamp_min(_LEAST_STEP)

    def error(fraction: Tensor) -> Tensor:
        scale = (some * fraction / limit)[:, None]
        return ((flat / scale).round_().clamp_(-limit, limit).mul_(scale) - flat).square_().sum(1)

    scales, zeros = (some * _least(error, some) / limit).clamp_min(_LEAST_STEP), peak == 0
    if not zeros.any():
        return scales
    return torch.where(zeros, torch.full_like(scales, 1 / limit) if zeros.all() else scales[~zeros].mean(), scales)


def activation_range(values: Tensor, limit: int, method: str) -> tuple[float, float]:
    """The range (low <= 0 <= high) that the codes cover.

    Args:
        values: what passed, 1-D.
        limit: the largest code.
        method: "minmax", "percentile" (0.1 and 99.9; "minmax" where nothing lies between them) or "mse" (least squared error
            over a grid).

    Raises:
        DivergedError: a value is not finite.
    """
    ends = torch.stack(values.aminmax())
    if not bool(ends.isfinite().all()):
        raise DivergedError("calibration needs finite activations; the network gives others: lower the learning rate")
    low, high = min(float(ends[0]), 0.0), max(float(ends[1]), 0.0)
    match method:
        case "minmax":
            return low, high
        case "percentile":
            inner = torch.quantile(values[: 1 << 24].float(), torch.tensor([0.001, 0.999], device=values.device))
            inner_low, inner_high = min(float(inner[0]), 0.0), max(float(inner[1]), 0.0)
            return (inner_low, inner_high) if inner_high > inner_low else (low, high)
        case "mse":
            fraction = _least_error_fraction(values, low, high, limit)
            return low * fraction, high * fraction
    raise ValueError(f"calibration must be minmax, percentile or mse; given {method!r}")


def _least_error_fraction(values: Tensor, low: float, high: float, limit: int) -> float:
    """By how much to shrink a range so that rounding and clipping together lose least."""
    if (high - low) / limit < _LEAST_STEP:
        return 1.0
    zero = round(-low * limit / (high - low))

    def error(fraction: Tensor) -> Tensor:
        scale = fraction * ((high - low) / limit)
        rounded = (values / scale).round_().add_(zero).clamp_(0, limit).sub_(zero).mul_(scale)
        return rounded.sub_(values).square_().mean().reshape(1)

    return float(_least(error, values[:1]))


def _least(error: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The fraction in (0, 1] with the least error, for each entry of `like`: on a coarse grid, then on a fine one around it."""
    best = torch.ones_like(like)
    best_error = error(best)
    for distance, places in ((1 / _COARSE, range(1 - _COARSE, 0)), (2 / _COARSE**2, range(1 - _COARSE // 2, _COARSE // 2))):
        centre = best
        for place in places:
            fraction = (centre + place * distance).clamp(1 / _COARSE**2, 1.0)
            loss = error(fraction)
            better = loss < best_error
            best, best_error = torch.where(better, fraction, best), torch.where(better, loss, best_error)
    return best
