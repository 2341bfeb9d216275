"""A split that does not fit decoded, behind the interface of one that does: read where it lies, decoded as it is needed.

What is held at once is bounded by `memory_bytes`, per process:
    half of it     encoded row groups, from which a shuffled order takes its examples (pictures in files need none of it);
    a quarter      decoded batches, ahead of the one in use: at least one, at most eight;
    a quarter      the validation split decoded, where it fits (`trial.workshop` decides).

The order of an epoch depends on its seed and on the half, and on nothing else: not on threads, ranks or what came before. Each
rank reads all row groups and decodes its own examples only.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Self, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from orchestrator.data.batches import Normalizer, ordered_shares, shares, training_view
from orchestrator.data.decode import Examples
from orchestrator.data.listing import Cell, Indices, Listing
from orchestrator.data.sources import DataError

Pixels = npt.NDArray[np.uint8]
Permit = Callable[[], AbstractContextManager[None]]

_MOST_AHEAD = 8


class StreamedData:
    """A split that is decoded as it is asked for; `DeviceData` says what its methods give.

    Where the whole order can be shuffled (pictures in files, or row groups that fit into half the memory together), an epoch is
    bit for bit that of `DeviceData`. Otherwise row groups come in a random order, and their examples are shuffled in a window.

    Args:
        rows: the examples of the listing that are the split's, ascending.
        memory_bytes: what may be held; see the module.
        permit: entered around the decoding of each batch, on a thread beside the caller's.

    Raises:
        DataError: a row group is larger than an eighth of the memory.
    """

    def __init__(
        self,
        listing: Listing,
        rows: Indices,
        normalizer: Normalizer,
        device: torch.device,
        channels_last: bool,
        memory_bytes: int,
        permit: Permit = nullcontext,
    ) -> None:
        self.listing, self.rows, self.normalizer, self.device = listing, rows, normalizer, device
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.labels = torch.from_numpy(listing.labels[rows]).to(device)
        self.window_bytes = window_bytes(listing, memory_bytes)
        self._memory_bytes, self._permit = memory_bytes, permit

    def __len__(self) -> int:
        return len(self.rows)

    def epoch(
        self, batch_size: int, seed: int, rank: int, world_size: int, augmentation: str, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `DeviceData.epoch`; what is left out at the beginning is neither read nor decoded."""
        generator = torch.Generator().manual_seed(seed)
        order = self._order(generator)
        drawn, again = itertools.tee(shares(order, batch_size, rank, world_size, generator, start))
        share = min(batch_size, len(self)) // world_size
        with closing(self._decoded((index.numpy() for index, _ in drawn), share)) as batches:
            for pixels, (index, randoms) in zip(batches, again, strict=True):
                images = training_view(pixels, randoms, augmentation, self.normalizer, self.layout)
                yield images, self.labels[index.to(self.device)]

    def ordered(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """As `DeviceData.ordered`."""
        places = np.arange(len(self))
        rows, again = itertools.tee(ordered_shares(len(self), batch_size, rank, world_size))
        with closing(self._decoded((places[row] for row in rows), batch_size)) as batches:
            for pixels, row in zip(batches, again, strict=True):
                yield self.normalizer(pixels).contiguous(memory_format=self.layout), self.labels[row]

    def sample(self, num: int, seed: int) -> tuple[Tensor, Tensor]:
        """As `DeviceData.sample`, but the examples with which an epoch of this seed would begin: few row groups hold them."""
        self._hold(4 * min(num, len(self)), f"{num} images for calibration")
        places, _ = torch.sort(self._order(torch.Generator().manual_seed(seed))[:num])
        pixels = self._at(places.numpy())
        return self.normalizer(pixels), self.labels[places.to(self.device)]

    def first(self, num: int) -> tuple[Tensor, Tensor]:
        """As `DeviceData.first`."""
        self._hold(min(num, len(self)), f"{num} images at once")
        return self._at(np.arange(min(num, len(self)))), self.labels[:num]

    def _order(self, generator: torch.Generator) -> Tensor:
        blocks = self.listing.blocks_of(self.rows)
        return streamed_order(blocks, self.listing.num_bytes, self.window_bytes, generator)

    def _decoded(self, batches: Iterable[Indices], size: int) -> Generator[Tensor, None, None]:
        """Batches of places on the device."""
        fitting = self._memory_bytes // 4 // max(1, size * self.listing.image_bytes)
        # Besides them: the one in use, and the one before it, which is let go only when the next is there.
        ahead = max(1, min(_MOST_AHEAD, fitting - 2))
        rows = (self.rows[places] for places in batches)
        with closing(decoded_ahead(self.listing, rows, self._memory_bytes // 2, ahead, self._permit)) as arrays:
            for pixels in arrays:
                yield torch.from_numpy(pixels).to(self.device)

    def _at(self, places: Indices) -> Tensor:
        return torch.from_numpy(decoded_rows(self.listing, self.rows[places])).to(self.device)

    def _hold(self, num_images: int, what: str) -> None:
        needed = num_images * self.listing.image_bytes
        if needed > self._memory_bytes // 2:
            raise DataError(f"{what} must fit into half of data.memory_gb; they take {needed / 1e9:.3g} GB")


class Pictures:
    """Decoded images of a listing as far as judging a file needs an array of them: their number, and slices (n, C, H, W)."""

    def __init__(self, listing: Listing, rows: Indices) -> None:
        self._listing, self._rows = listing, rows
        self._shelf = Shelf(listing, 0)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: slice) -> Pixels:
        with _Decoders() as decoders:
            return decoders.images(self._listing, self._shelf, self._rows[place])


def as_examples(listing: Listing, rows: Indices | None = None) -> Examples:
    """Examples whose images are decoded when they are sliced; all of the listing's, or the given ones."""
    rows = np.arange(len(listing)) if rows is None else rows
    return Examples(cast(Pixels, Pictures(listing, rows)), listing.labels[rows])


def window_bytes(listing: Listing, memory_bytes: int) -> int | None:
    """How many encoded bytes an order is shuffled over; None where it can be shuffled as a whole.

    Raises:
        DataError: a row group is larger than an eighth of the memory: a window would hold too few.
    """
    if listing.column is None:
        return None
    largest, capacity = int(listing.num_bytes.max()), memory_bytes // 2
    if largest > capacity // 4:
        block = int(listing.num_bytes.argmax())
        raise DataError(
            f"{listing.path(block)}: a row group must be at most an eighth of data.memory_gb "
            f"({memory_bytes / 8e9:.3g} GB); row group {listing.groups[block]} has {largest / 1e9:.3g} GB. "
            "Raise data.memory_gb, or write the file with a smaller row_group_size"
        )
    return None if int(listing.num_bytes.sum()) <= capacity else capacity - 2 * largest


def streamed_order(blocks_N: Indices, num_bytes_B: Indices, window: int | None, generator: torch.Generator) -> Tensor:
    """A permutation of range(N), int64 (N,), that needs no more blocks at a time than a window and one block hold.

    Blocks are laid end to end in a random order. Each example then moves back by a uniform draw from the window, and all are
    sorted by where they come to lie: at byte x of the order only blocks that begin within (x - window, x] are still wanted.

    Args:
        blocks_N: the block of each example.
        num_bytes_B: how large each block is.
        window: in bytes; None permutes all examples alike, whichever their blocks.
    """
    if window is None:
        return torch.randperm(len(blocks_N), generator=generator)
    present, place = np.unique(blocks_N, return_inverse=True)
    order = torch.randperm(len(present), generator=generator).numpy()
    sizes = num_bytes_B[present][order]
    begins = np.empty(len(present))
    begins[order] = np.cumsum(sizes) - sizes
    draws = torch.rand(len(blocks_N), dtype=torch.float64, generator=generator).numpy()
    return torch.from_numpy(np.argsort(begins[place] + draws * window, kind="stable"))


class Shelf:
    """Encoded row groups in memory, those that were read last: at most `capacity` bytes, or the last one alone."""

    def __init__(self, listing: Listing, capacity: int) -> None:
        self._listing, self._capacity = listing, capacity
        self._blocks: OrderedDict[int, pa.Array] = OrderedDict()
        self.num_read = 0

    def cells(self, rows: Indices) -> list[tuple[Cell, int]]:
        """The pictures of these examples, not decoded, each with its block. Those in files are not read either."""
        blocks = self._listing.blocks_of(rows)
        if self._listing.column is None:
            return [(self._listing.path(block), block) for block in blocks.tolist()]
        inside = (rows - self._listing.starts[blocks]).tolist()
        # Block by block, so that one that is read again is so once a batch at most.
        found: dict[int, tuple[Cell, int]] = {}
        for place in np.argsort(blocks, kind="stable").tolist():
            block = int(blocks[place])
            found[place] = (self._block(block)[inside[place]].as_py() or b"", block)
        return [found[place] for place in range(len(rows))]

    def _block(self, block: int) -> pa.Array:
        if block not in self._blocks:
            held = sum(int(self._listing.num_bytes[other]) for other in self._blocks)
            while self._blocks and held + int(self._listing.num_bytes[block]) > self._capacity:
                oldest, _ = self._blocks.popitem(last=False)
                held -= int(self._listing.num_bytes[oldest])
            self._blocks[block] = self._listing.read(block)
            self.num_read += 1
        return self._blocks[block]


def decoded_ahead(
    listing: Listing, batches: Iterable[Indices], capacity: int, ahead: int, permit: Permit = nullcontext
) -> Generator[Pixels, None, None]:
    """Images of batches of examples, uint8 (B, C, H, W), in order; the next ones are decoded while one is in use.

    Args:
        batches: int64 (B,) each; asked for as they are needed.
        capacity: bytes of encoded row groups to hold.
        ahead: how many batches are held besides the one in use.
        permit: entered on another thread for as long as it reads and decodes one batch.
    """
    shelf = Shelf(listing, capacity)
    pending: deque[Future[Pixels]] = deque()

    def make(rows: Indices) -> Pixels:
        with permit():
            return decoders.images(listing, shelf, rows)

    with _Decoders() as decoders, ThreadPoolExecutor(1) as reader:
        try:
            for rows in batches:
                pending.append(reader.submit(make, rows))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def decoded_rows(listing: Listing, rows: Indices) -> Pixels:
    """Images of these examples, uint8 (N, C, H, W), all at once; `rows` ascending, so that each row group is read once."""
    with _Decoders() as decoders:
        return decoders.images(listing, Shelf(listing, 0), rows)


class _Decoders:
    """As many threads as this process computes with. No pixel depends on how many."""

    def __init__(self) -> None:
        self._num = torch.get_num_threads()  # of this thread: another may be told another number

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._num)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def images(self, listing: Listing, shelf: Shelf, rows: Indices) -> Pixels:
        """Read these examples, and decode them, each thread every so-many-th: uint8 (N, C, H, W)."""
        cells = shelf.cells(rows)
        out = np.empty((len(rows), *listing.shape), np.uint8)

        def fill(first: int) -> None:
            for place in range(first, len(rows), self._num):
                cell, block = cells[place]
                out[place] = listing.image(cell, listing.path(block))

        for done in [self._pool.submit(fill, first) for first in range(self._num)]:
            done.result()
        return out
