"""Batches without per-sample Python: the examples live on the device as bytes, a batch is an index and a few tensor ops."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.data.decode import Examples


class Normalizer:
    """Bytes (N, C, H, W) to float32 with zero mean and unit variance per channel, on the examples' device."""

    def __init__(self, mean: npt.NDArray[np.float32], std: npt.NDArray[np.float32], device: torch.device) -> None:
        self.scale = torch.as_tensor(1.0 / (255.0 * std), device=device).view(1, -1, 1, 1)
        self.offset = torch.as_tensor(-mean / std, device=device).view(1, -1, 1, 1)

    def __call__(self, pixels_NCHW: Tensor) -> Tensor:
        return torch.addcmul(self.offset, pixels_NCHW.float(), self.scale)


class DeviceData:
    """A split held on one device.

    Args:
        examples: uint8 images and int64 labels.
        normalizer: what turns bytes into the network's input.
        channels_last: memory format of the batches, and of the bytes themselves.
    """

    def __init__(self, examples: Examples, normalizer: Normalizer, device: torch.device, channels_last: bool) -> None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.images = _tensor(examples.images, device).contiguous(memory_format=layout)
        self.labels = _tensor(examples.labels, device)
        self.normalizer, self.layout = normalizer, layout

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(
        self, batch_size: int, seed: int, rank: int, world_size: int, augmentation: str, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Seeded training batches of this rank: images float32 (B, C, H, W), labels int64 (B,).

        The order over all ranks depends on `seed` alone; a last incomplete batch is dropped unless it is the only one.

        Args:
            batch_size: of all ranks together.
            augmentation: as for `augmented`.
            start: so many batches are left out at the beginning; those that follow are what they would be anyway.
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator)
        for index, randoms in shares(order, batch_size, rank, world_size, generator, start):
            index = index.to(self.images.device)
            yield training_view(self.images[index], randoms, augmentation, self.normalizer, self.layout), self.labels[index]

    def ordered(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Every example of this rank's share once, in order, without padding: shares differ by at most one."""
        for rows in ordered_shares(len(self), batch_size, rank, world_size):
            yield self.normalizer(self.images[rows]).contiguous(memory_format=self.layout), self.labels[rows]

    def sample(self, num: int, seed: int) -> tuple[Tensor, Tensor]:
        """Seeded examples, normalised images (n, C, H, W) and labels (n,), in the dataset's order; all there are when fewer."""
        rows = torch.from_numpy(np.sort(np.random.default_rng(seed).permutation(len(self))[:num])).to(self.images.device)
        return self.normalizer(self.images[rows]), self.labels[rows]

    def first(self, num: int) -> tuple[Tensor, Tensor]:
        """The first examples as they are, uint8 (n, C, H, W), and labels (n,); all there are when fewer."""
        return self.images[:num], self.labels[:num]


def training_view(
    pixels: Tensor, randoms: Tensor, augmentation: str, normalizer: Normalizer, layout: torch.memory_format
) -> Tensor:
    """Bytes as a network sees them in training: augmented, normalised and laid out."""
    return normalizer(augmented(pixels, randoms.to(pixels.device), augmentation)).contiguous(memory_format=layout)


def shares(
    order: Tensor, batch_size: int, rank: int, world_size: int, generator: torch.Generator, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """A rank's part of each batch of an epoch: int64 places (B,), and the draws (3, B) that augment them.

    Args:
        order: int64 (N,), in which the examples come over all ranks.
        generator: draws once a batch, for all ranks.
        start: how many batches are left out; their draws are made.
    """
    batch_size = min(batch_size, len(order) // world_size * world_size)
    share = batch_size // world_size
    mine = slice(rank * share, (rank + 1) * share)
    for number, begin in enumerate(range(0, len(order) - batch_size + 1, batch_size)):
        randoms = torch.randint(0, 1 << 30, (3, batch_size), generator=generator)
        if number >= start:
            yield order[begin : begin + batch_size][mine], randoms[:, mine]


def ordered_shares(num: int, batch_size: int, rank: int, world_size: int) -> Iterator[slice]:
    """A rank's rows of each batch when all `num` examples come once, in order and without padding."""
    for start in range(rank, num, batch_size * world_size):
        yield slice(start, min(start + batch_size * world_size, num), world_size)


def _tensor(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A tensor over an array that may be a read-only map of a file: torch warns of writing to it, which nobody does here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(values, device=device)


def augmented(pixels_NCHW: Tensor, randoms_3N: Tensor, augmentation: str) -> Tensor:
    """Shift by up to an eighth of the size with zero padding, and flip, per example and without a Python loop.

    Args:
        pixels_NCHW: uint8.
        randoms_3N: int64 >= 0, three draws an example: rows, columns, flip.
        augmentation: "none", "shift" or "shift_flip".
    """
    if augmentation == "none":
        return pixels_NCHW
    num, _, height, width = pixels_NCHW.shape
    reach = max(1, height // 8)
    padded = torch.nn.functional.pad(pixels_NCHW, (reach,) * 4)
    rows = torch.arange(height, device=randoms_3N.device) + (randoms_3N[0] % (2 * reach + 1))[:, None]
    columns = torch.arange(width, device=randoms_3N.device) + (randoms_3N[1] % (2 * reach + 1))[:, None]
    if augmentation == "shift_flip":
        columns = torch.where((randoms_3N[2] % 2 == 1)[:, None], columns.flip(1), columns)
    every = torch.arange(num, device=randoms_3N.device)
    # Indexing (N, H, W) pairs of a channels-last view yields (N, H, W, C), which is the layout wanted anyway.
    return padded.permute(0, 2, 3, 1)[every[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
