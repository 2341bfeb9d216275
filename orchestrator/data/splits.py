"""Which examples train and which validate. The test split is opened by `open_test_split` alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.decode import Examples, attach
from orchestrator.data.listing import open_listing
from orchestrator.data.stream import as_examples

# A mean over so many images is as good as one over all; so many at a time are taken into it.
_MAX_SAMPLE, _SAMPLE_BATCH = 5000, 256

IMAGES = "images.arrow"
"""The file of a decoded split in its folder."""

Indices = npt.NDArray[np.int64]
Moments = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


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
    mean, std = moments(fit.images[rows] for rows in sample_batches(len(fit)))
    held_out = Examples(examples.images[val], examples.labels[val])
    return Splits(fit, held_out, mean, std, num_classes)


def sample_batches(num: int) -> list[Indices]:
    """Which of `num` training examples the statistics are taken from: at most 5000, spread evenly, in batches."""
    num_sample = min(num, _MAX_SAMPLE)
    rows = np.arange(num_sample) * num // num_sample
    return [rows[start : start + _SAMPLE_BATCH] for start in range(0, num_sample, _SAMPLE_BATCH)]


def moments(batches: Iterable[npt.NDArray[np.uint8]]) -> Moments:
    """Mean and standard deviation per channel, float32 (C,), of images (N, C, H, W) as fractions of 255; the latter >= 0.001.

    From whole sums, so that they are the same however the images are cut into batches.
    """
    count, sums, squares = 0, Counter[int](), Counter[int]()
    for images in batches:
        count += images[:, 0].size
        sums.update(_channel_sums(images))
        squares.update(_channel_sums(np.square(images, dtype=np.uint16)))  # 255 squared has 16 bits
    mean = [sums[channel] / count / 255.0 for channel in sorted(sums)]
    std = [math.sqrt(count * squares[channel] - sums[channel] ** 2) / count / 255.0 for channel in sorted(sums)]
    return np.asarray(mean, np.float32), np.maximum(np.asarray(std, np.float32), np.float32(1e-3))


def _channel_sums(values_NCHW: npt.NDArray[Any]) -> dict[int, int]:
    """By channel; Python's numbers, as products of theirs have more than 64 bits."""
    return dict(enumerate(values_NCHW.sum(axis=(0, 2, 3), dtype=np.int64).tolist()))


def open_test_split(folder: Path) -> Examples:
    """The test split, from the folder of one that was decoded or listed. Only a picked model may see it: an architecture test
    lists the callers."""
    if (folder / IMAGES).exists():
        return attach(folder / IMAGES)
    return as_examples(open_listing(folder, json.loads((folder / "meta.json").read_text())))
