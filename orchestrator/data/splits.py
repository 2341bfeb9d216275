"""Which examples train and which validate. The test split is opened by `open_test_split` alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.data.decode import Examples, attach

# A mean over so many images is as good as one over all.
_MAX_SAMPLE = 5000

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    """The training and the validation examples of a sweep, and the statistics that normalise pixels."""

    train: Examples
    val: Examples
    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]
    num_classes: int


def train_val_indices(
    num_examples: int, val_fraction: float, seed: int, max_train: int | None, max_val: int | None
) -> tuple[Indices, Indices]:
    """A seeded partition of range(num_examples); both parts sorted, neither empty, cut to their maxima."""
    order = np.random.default_rng(seed).permutation(num_examples)
    num_val = min(max(1, round(num_examples * val_fraction)), num_examples - 1)
    val, train = order[:num_val][:max_val], order[num_val:][:max_train]
    return np.sort(train), np.sort(val)


def split_train(
    path: Path, num_classes: int, val_fraction: float, seed: int, max_train: int | None, max_val: int | None
) -> Splits:
    """Cut a decoded training file into what trains and what validates.

    Statistics come from the former alone, from images spread evenly over it: an image folder is in the order of its classes.
    """
    examples = attach(path)
    train, val = train_val_indices(len(examples), val_fraction, seed, max_train, max_val)
    fit = Examples(examples.images[train], examples.labels[train])
    num_sample = min(len(fit), _MAX_SAMPLE)
    sample = fit.images[np.arange(num_sample) * len(fit) // num_sample].astype(np.float32) / 255.0
    mean, std = sample.mean(axis=(0, 2, 3)), sample.std(axis=(0, 2, 3))
    held_out = Examples(examples.images[val], examples.labels[val])
    return Splits(fit, held_out, mean, np.maximum(std, 1e-3), num_classes)


def open_test_split(path: Path) -> Examples:
    """The test split. Only a picked model may see it: an architecture test lists the callers."""
    return attach(path)
