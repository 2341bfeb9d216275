"""What trainings that differ in the seed alone say: intervals of their mean, and how likely its recipe is on the front."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.pareto.dominance import FloatArray, finite_points
from orchestrator.pareto.noise import contenders, share_on_front

_BEYOND = 6.0  # standard deviations that no draw reaches, for what it matters


def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """Return the t within which Student's variable of `degrees` >= 1 degrees of freedom lies with `confidence` in (0, 1).

    Abramowitz and Stegun 1964, 26.7.3 and 26.7.4: with theta = atan(t / sqrt(degrees)) the probability is a finite sum of
    powers of its cosine. It rises with theta, which is found by halving.
    """
    if degrees < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(f"must have degrees >= 1 and confidence in (0, 1); given {degrees} and {confidence}")
    low, high = 0.0, np.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return float(np.tan(low) * np.sqrt(degrees))


def t_interval(samples: FloatArray, confidence: float = 0.95) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the mean of each column, and the ends of its t-interval.

    Student 1908, "The Probable Error of a Mean": independent and about normal, as runs with different seeds nearly are.

    Args:
        samples: (S, M) float64, finite, S >= 2, M >= 1.
        confidence: in (0, 1).

    Returns:
        (mean, low, high), each (M,) float64.

    Raises:
        ValueError: wrong shape, fewer than two samples, or a value out of range.
    """
    rows = finite_points(samples)
    if len(rows) < 2:
        raise ValueError(f"samples must be at least two; given {len(rows)}")
    mean: FloatArray = rows.mean(axis=0)
    half = t_quantile(len(rows) - 1, confidence) * rows.std(axis=0, ddof=1) / np.sqrt(len(rows))
    return mean, mean - half, mean + half


def seed_front_probability(groups: Sequence[FloatArray], draws: int = 1000, seed: int = 0) -> FloatArray:
    """Return how likely each recipe's mean over seeds is to be non-dominated.

    Bootstrap: in every draw a recipe's samples are drawn again with replacement, whole rows, so that what goes together in a
    run stays together, and averaged. A recipe of one sample is drawn from a normal distribution around it, with the standard
    deviation of the others pooled. With a handful of seeds the bootstrap is too sure of itself, by sqrt((S - 1) / S).

    Source: Efron 1979, "Bootstrap Methods: Another Look at the Jackknife".

    Args:
        groups: N >= 0 arrays (S_i, M) float64, finite, minimised, S_i >= 1, of one M >= 1.
        draws: >= 1.
        seed: the same seed, the same answer.

    Returns:
        (N,) float64 in [0, 1].

    Raises:
        ValueError: wrong shapes, an empty group, a value that is not finite, or draws < 1.
    """
    samples = [finite_points(group) for group in groups]
    if not all(len(rows) and rows.shape[1] == samples[0].shape[1] for rows in samples):
        raise ValueError(f"groups must have shapes (S, M) with S >= 1 and one M; given {[rows.shape for rows in samples]}")
    if draws < 1:
        raise ValueError(f"draws must be >= 1; given {draws}")
    if not samples:
        return np.zeros(0)
    spread = pooled_deviation(samples)
    reach = [_BEYOND * spread if len(rows) == 1 else np.zeros_like(spread) for rows in samples]
    low = np.array([rows.min(axis=0) - more for rows, more in zip(samples, reach, strict=True)])
    high = np.array([rows.max(axis=0) + more for rows, more in zip(samples, reach, strict=True)])
    alive = np.flatnonzero(contenders(low, high))
    generator = np.random.default_rng(seed)
    drawn = np.stack([_drawn(samples[index], spread, draws, generator) for index in alive], axis=1)
    probability = np.zeros(len(samples))
    probability[alive] = share_on_front(drawn)
    return probability


def pooled_deviation(groups: Sequence[FloatArray]) -> FloatArray:
    """Return (M,) the standard deviation within groups (S_i, M), over all of them; 0 where no group has two samples."""
    squares = sum(((rows - rows.mean(axis=0)) ** 2).sum(axis=0) for rows in groups)
    deviation: FloatArray = np.sqrt(squares / max(1, sum(len(rows) - 1 for rows in groups)))
    return deviation


def _drawn(rows: FloatArray, spread: FloatArray, draws: int, generator: np.random.Generator) -> FloatArray:
    """(draws, M) means that one recipe might have had."""
    if len(rows) == 1:
        return np.asarray(rows[0] + spread * generator.standard_normal((draws, len(spread))))
    chosen = generator.integers(len(rows), size=(draws, len(rows)))
    return np.asarray(rows[chosen].mean(axis=1))


def _within(theta: float, degrees: int) -> float:
    """Probability that |t| <= sqrt(degrees) tan(theta)."""
    cosine, odd = float(np.cos(theta)), degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    if odd:
        return float(2 / np.pi * (theta + np.sin(theta) * total))
    return float(np.sin(theta) * total)
