"""Learning-rate schedules as pure functions: of progress, and of the validation scores so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Smith & Topin 2018, section 3: up from 1/25 of the peak over 30 % of the steps, then down to nothing.
_ONE_CYCLE_START, _ONE_CYCLE_UP = 1 / 25, 0.3


def rate_factor(schedule: str, progress: float, warmup: float) -> float:
    """What the peak learning rate is multiplied by.

    Args:
        schedule: "constant", "step" (a tenth at one half, a hundredth at three quarters), "cosine", "one_cycle", or
            "plateau", which is constant here and multiplied by `plateau_factor`.
        progress: fraction of all steps done, in [0, 1).
        warmup: fraction of all steps with a linear rise; "one_cycle" has its own and ignores it.

    Raises:
        ValueError: another schedule.
    """
    if schedule == "one_cycle":
        if progress < _ONE_CYCLE_UP:
            return _ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * _half_cosine(1 - progress / _ONE_CYCLE_UP)
        return _half_cosine((progress - _ONE_CYCLE_UP) / (1 - _ONE_CYCLE_UP))
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    progress = (progress - warmup) / (1 - warmup)
    match schedule:
        case "constant" | "plateau":
            return 1.0
        case "step":
            return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01
        case "cosine":
            return _half_cosine(progress)
    raise ValueError(f"schedule must be constant, step, cosine, one_cycle or plateau; given {schedule!r}")


def plateau_factor(scores: Sequence[float], patience: int, factor: float = 0.1) -> float:
    """What reduce-on-plateau multiplies the rate by, after epochs with these validation scores; the rule of torch's own.

    Args:
        scores: one an epoch, the higher the better; one that is not a number is no better than any other.
        patience: how many epochs in a row may pass without a new best; the next one lowers the rate, and counting starts anew.
        factor: by which the rate is lowered, each time.
    """
    best, waited, reduction = -math.inf, 0, 1.0
    for score in scores:
        best, waited = (score, 0) if score > best else (best, waited + 1)
        if waited > patience:
            reduction, waited = reduction * factor, 0
    return reduction


def plateau_patience(epochs: int) -> int:
    """A tenth of the epochs, and no fewer than two: one bad epoch is noise."""
    return max(2, epochs // 10)


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))
