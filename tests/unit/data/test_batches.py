"""Batches: which examples, in which order, on which rank, and how they are altered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orchestrator.data.batches import DeviceData, Normalizer, augmented

Make = Callable[..., DeviceData]


def joined(parts: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


def labels_of(data: DeviceData, batch_size: int, seed: int, world_size: int) -> list[list[list[int]]]:
    """Per rank, per batch, the examples' numbers."""
    return [
        [labels.tolist() for _, labels in data.epoch(batch_size, seed, rank, world_size, "none")] for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("augmentation", ["none", "shift", "shift_flip"])
def test_shares_of_all_ranks_form_the_same_global_batches(device_data: Make, world_size: int, augmentation: str) -> None:
    data = device_data(53, (2, 8, 8))
    data.images.random_(0, 256, generator=torch.Generator().manual_seed(0))
    alone = list(data.epoch(8, 5, 0, 1, augmentation))
    ranks = [list(data.epoch(8, 5, rank, world_size, augmentation)) for rank in range(world_size)]
    assert [len(batches) for batches in ranks] == [len(alone)] * world_size == [6] * world_size
    for whole, *parts in zip(alone, *ranks, strict=True):
        torch.testing.assert_close(torch.cat([images for images, _ in parts]), whole[0], rtol=0, atol=0)
        assert torch.cat([labels for _, labels in parts]).tolist() == whole[1].tolist()


@given(
    num=st.integers(4, 70),
    batch_size=st.integers(4, 80),
    world_size=st.sampled_from([1, 2, 3, 4]),
    seed=st.integers(0, 1000),
)
def test_an_epoch_shows_every_example_at_most_once_in_equal_shares(
    device_data: Make, num: int, batch_size: int, world_size: int, seed: int
) -> None:
    ranks = labels_of(device_data(num), batch_size, seed, world_size)
    seen = [number for batches in ranks for batch in batches for number in batch]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(num))
    used = min(batch_size, num // world_size * world_size)
    share = used // world_size
    assert [[len(batch) for batch in batches] for batches in ranks] == [[share] * (num // used)] * world_size


def test_an_epoch_of_whole_batches_shows_everything(device_data: Make) -> None:
    (batches,) = labels_of(device_data(24), 6, 0, 1)
    assert sorted(joined(batches)) == list(range(24))


@pytest.mark.parametrize(("num", "world_size", "share"), [(5, 1, 5), (5, 2, 2), (2, 2, 1)])
def test_the_only_batch_is_kept_though_it_is_short(device_data: Make, num: int, world_size: int, share: int) -> None:
    ranks = labels_of(device_data(num), 64, 0, world_size)
    assert [[len(batch) for batch in batches] for batches in ranks] == [[share]] * world_size


def test_order_follows_from_the_seed_alone(device_data: Make) -> None:
    data = device_data(40)
    first = labels_of(data, 8, 1, 1)
    torch.manual_seed(99)
    np.random.seed(99)
    assert labels_of(data, 8, 1, 1) == first
    assert labels_of(data, 8, 2, 1) != first
    assert sorted(joined(first[0])) != joined(first[0])


def test_an_image_keeps_its_label(device_data: Make) -> None:
    for images, labels in device_data(40).epoch(8, 3, 0, 1, "none"):
        torch.testing.assert_close(images[:, 0, 0, 0], labels.float())


@given(num=st.integers(1, 60), batch_size=st.integers(1, 20), world_size=st.integers(1, 7))
def test_ordered_shares_cover_every_example_once(device_data: Make, num: int, batch_size: int, world_size: int) -> None:
    data = device_data(num)
    shares = []
    for rank in range(world_size):
        batches = [(images, labels.tolist()) for images, labels in data.ordered(batch_size, rank, world_size)]
        assert all(1 <= len(labels) <= batch_size for _, labels in batches)
        for images, labels in batches:
            assert images[:, 0, 0, 0].round().tolist() == labels
        shares.append(joined(labels for _, labels in batches))
    assert sorted(joined(shares)) == list(range(num))
    assert all(share == sorted(share) for share in shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_come_in_the_memory_format_that_was_asked_for(device_data: Make, channels_last: bool) -> None:
    data = device_data(20, (3, 8, 8), channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for augmentation in ("none", "shift", "shift_flip"):
        for images, _ in [*data.epoch(8, 0, 0, 1, augmentation), *data.ordered(8)]:
            assert images.is_contiguous(memory_format=layout)
            assert (images.dtype, images.shape[1:]) == (torch.float32, (3, 8, 8))


def test_the_memory_format_changes_no_pixel(device_data: Make) -> None:
    plain, last = device_data(20, (3, 8, 8)), device_data(20, (3, 8, 8), True)
    noise = torch.randint(0, 256, plain.images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    plain.images.copy_(noise)
    last.images.copy_(noise)
    for (one, _), (other, _) in zip(plain.epoch(4, 0, 0, 1, "shift_flip"), last.epoch(4, 0, 0, 1, "shift_flip"), strict=True):
        assert torch.equal(one, other)


def test_the_normalizer_gives_zero_mean_and_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 200, (64, 3, 6, 6), dtype=torch.uint8, generator=generator)
    pixels[:, 1] //= 3
    scaled = pixels.double() / 255
    mean, std = (getattr(scaled, what)((0, 2, 3)).numpy().astype(np.float32) for what in ("mean", "std"))
    out = Normalizer(mean, std, torch.device("cpu"))(pixels)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(3), rtol=1e-4, atol=0)


def by_hand(pixels: Tensor, randoms: Tensor, flips: bool) -> Tensor:
    """The same, one pixel at a time."""
    num, _, height, width = pixels.shape
    reach = max(1, height // 8)
    out = torch.zeros_like(pixels)
    for n in range(num):
        down, right = (int(randoms[axis, n]) % (2 * reach + 1) - reach for axis in (0, 1))
        for row in range(height):
            for column in range(width):
                y, x = row + down, column + right
                place = width - 1 - column if flips and randoms[2, n] % 2 == 1 else column
                if 0 <= y < height and 0 <= x < width:
                    out[n, :, row, place] = pixels[n, :, y, x]
    return out


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (2, 5, 7), (1, 24, 9)])
@pytest.mark.parametrize("augmentation", ["shift", "shift_flip"])
def test_augmentation_agrees_with_a_loop(shape: tuple[int, int, int], augmentation: str) -> None:
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randint(0, 256, (9, *shape), dtype=torch.uint8, generator=generator)
    randoms = torch.randint(0, 1 << 30, (3, 9), generator=generator)
    got = augmented(pixels, randoms, augmentation)
    assert (got.shape, got.dtype) == (pixels.shape, torch.uint8)
    assert torch.equal(got, by_hand(pixels, randoms, augmentation == "shift_flip"))


def test_no_augmentation_changes_nothing() -> None:
    pixels = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(augmented(pixels, torch.arange(12).view(3, 4), "none"), pixels)


def test_shift_alone_never_flips() -> None:
    pixels = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    randoms = torch.tensor([[1] * 4, [1] * 4, [0, 1, 2, 3]])
    assert torch.equal(augmented(pixels, randoms, "shift"), pixels)  # 1 is the middle of 0..2


def test_an_odd_third_draw_flips_left_to_right() -> None:
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    randoms = torch.tensor([[1] * 4, [1] * 4, [0, 1, 2, 3]])
    got = augmented(pixels, randoms, "shift_flip")
    assert torch.equal(got[::2], pixels[::2])
    assert torch.equal(got[1::2], pixels[1::2].flip(3))


def test_about_half_of_an_epoch_is_flipped_and_shifts_reach_every_place(device_data: Make) -> None:
    data = device_data(256, (1, 8, 8))
    data.images.zero_()
    data.images[:, :, 3, 2] = 200  # one bright pixel; flipped it lies at column 5
    places = torch.cat([images for images, _ in data.epoch(64, 0, 0, 1, "shift_flip")]).flatten(1).argmax(1)
    rows, columns = places // 8, places % 8
    assert set(rows.tolist()) == {2, 3, 4}
    assert set(columns.tolist()) == {1, 2, 3, 4, 5, 6}
    assert 0.35 < (columns >= 4).float().mean() < 0.65
