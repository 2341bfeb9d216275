"""Where quantizers start: what passed, and the range of it that codes should cover."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from orchestrator.errors import DivergedError

LEAST_STEP = 1e-12
_COARSE = 20
_SAMPLE, _MOST = 1 << 15, 1 << 20


class Sample:
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
    some = peak.clamp_min(LEAST_STEP)

    def error(fraction: Tensor) -> Tensor:
        scale = (some * fraction / limit)[:, None]
        return ((flat / scale).round_().clamp_(-limit, limit).mul_(scale) - flat).square_().sum(1)

    scales, zeros = (some * _least(error, some) / limit).clamp_min(LEAST_STEP), peak == 0
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
    if (high - low) / limit < LEAST_STEP:
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
