"""Learning-rate schedules as one pure function of progress."""

from __future__ import annotations

import math

# Smith & Topin 2018, section 3: up from 1/25 of the peak over 30 % of the steps, then down to nothing.
_ONE_CYCLE_START, _ONE_CYCLE_UP = 1 / 25, 0.3


def rate_factor(schedule: str, progress: float, warmup: float) -> float:
    """What the peak learning rate is multiplied by.

    Args:
        schedule: "constant", "step" (a tenth at one half, a hundredth at three quarters), "cosine" or "one_cycle".
        progress: fraction of all steps done, in [0, 1).
        warmup: fraction of all steps with a linear rise; "one_cycle" has its own and ignores it.
    """
    if schedule == "one_cycle":
        if progress < _ONE_CYCLE_UP:
            return _ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * _half_cosine(1 - progress / _ONE_CYCLE_UP)
        return _half_cosine((progress - _ONE_CYCLE_UP) / (1 - _ONE_CYCLE_UP))
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    progress = (progress - warmup) / (1 - warmup)
    match schedule:
        case "constant":
            return 1.0
        case "step":
            return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01
        case "cosine":
            return _half_cosine(progress)
    raise ValueError(f"schedule must be constant, step, cosine or one_cycle; given {schedule!r}")


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))
