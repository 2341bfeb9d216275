"""A split that stays on disk, held to the one that is decoded: the same examples, the same pixels, within a bound."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orchestrator.data.batches import DeviceData, Normalizer
from orchestrator.data.decode import Examples, attach, decode_split
from orchestrator.data.listing import Listing, decoded_bytes, list_split, open_listing
from orchestrator.data.sources import DataError, Source
from orchestrator.data.splits import moments, open_test_split
from orchestrator.data.stream import Shelf, StreamedData, as_examples, decoded_ahead, streamed_order

CPU = torch.device("cpu")
PLENTY = 1 << 30
KINDS = ("parquet", "imagefolder")
SHAPE = (3, 12, 10)
NUM, GROUP = 90, 7


@pytest.fixture(scope="module")
def rows() -> list[tuple[np.ndarray, int]]:
    """Noise whose labels ascend, as an image folder's do."""
    draw = np.random.default_rng(0)
    return [(draw.integers(0, 256, SHAPE, dtype=np.uint8), place * 5 // NUM) for place in range(NUM)]


@pytest.fixture(scope="module")
def sources(
    tmp_path_factory: pytest.TempPathFactory, encoded: Callable[..., bytes], rows: list[tuple[np.ndarray, int]]
) -> dict[str, Source]:
    """The same ninety pictures as a folder, and as two Parquet files of small row groups."""
    root = tmp_path_factory.mktemp("sources")
    pictures = [encoded(image) for image, _ in rows]
    for place, (content, (_, label)) in enumerate(zip(pictures, rows, strict=True)):
        path = root / "imagefolder" / "train" / f"class{label}" / f"{place:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "parquet").mkdir()
    for number, part in enumerate((slice(0, 50), slice(50, NUM))):
        images = pa.array([{"bytes": content, "path": ""} for content in pictures[part]])
        table = pa.table({"image": images, "label": pa.array([label for _, label in rows[part]], pa.int64())})
        pq.write_table(table, root / "parquet" / f"train-{number}.parquet", row_group_size=GROUP)
    return {kind: Source(kind, str(root / kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory, sources: dict[str, Source]) -> dict[str, Listing]:
    found = {}
    for kind, source in sources.items():
        folder = tmp_path_factory.mktemp(f"listed-{kind}")
        found[kind] = open_listing(folder, list_split(source, "train", folder))
    return found


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, sources: dict[str, Source]) -> Examples:
    path = tmp_path_factory.mktemp("decoded") / "train.arrow"
    decode_split(sources["parquet"], "train", path)
    return attach(path)


CHOSEN = np.flatnonzero(np.arange(NUM) % 10 != 3)  # a training split: a tenth is held out


def pair(listing: Listing, examples: Examples, channels_last: bool = False, memory: int = PLENTY) -> tuple[Any, Any]:
    """The same split, streamed and on the device."""
    fit = Examples(examples.images[CHOSEN], examples.labels[CHOSEN])
    normalizer = Normalizer(*moments([fit.images]), CPU)
    streamed = StreamedData(listing, CHOSEN, normalizer, CPU, channels_last, memory)
    return streamed, DeviceData(fit, normalizer, CPU, channels_last)


def assert_equal_batches(got: Iterator[tuple[Tensor, Tensor]], wanted: Iterator[tuple[Tensor, Tensor]]) -> None:
    for (images, labels), (other_images, other_labels) in zip(got, wanted, strict=True):
        assert torch.equal(images, other_images)
        assert images.stride() == other_images.stride()
        assert torch.equal(labels, other_labels)


@pytest.mark.parametrize("kind", KINDS)
def test_a_listing_knows_what_decoding_finds(kind: str, listed: dict[str, Listing], examples: Examples) -> None:
    listing = listed[kind]
    assert (len(listing), listing.shape, listing.image_bytes) == (NUM, SHAPE, 360)
    np.testing.assert_array_equal(listing.labels, examples.labels)
    # Row groups of seven: 50 are seven and one, 40 are five and one of five.
    assert np.diff(listing.starts).tolist() == ([7] * 7 + [1] + [7] * 5 + [5] if kind == "parquet" else [1] * NUM)
    seen = as_examples(listing)
    np.testing.assert_array_equal(seen.images[:], examples.images)
    np.testing.assert_array_equal(seen.images[5:40:2], examples.images[5:40:2])


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_known_without_decoding(kind: str, sources: dict[str, Source]) -> None:
    assert decoded_bytes(sources[kind], "train") == NUM * 360
    assert decoded_bytes(replace(sources[kind], image_size=8), "train") == NUM * 3 * 64
    assert decoded_bytes(sources[kind], "test") is None
    assert decoded_bytes(Source("digits"), "train") is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2), (2, 3)])
def test_what_fits_encoded_is_served_to_the_bit_as_decoded(
    kind: str, channels_last: bool, rank: int, world_size: int, listed: dict[str, Listing], examples: Examples
) -> None:
    streamed, decoded = pair(listed[kind], examples, channels_last)
    assert len(streamed) == len(decoded) == 81
    for augmentation in ("none", "shift_flip"):
        how = 12, 5, rank, world_size, augmentation
        assert_equal_batches(streamed.epoch(*how), decoded.epoch(*how))
        assert_equal_batches(streamed.epoch(*how, start=4), decoded.epoch(*how, start=4))
        assert_equal_batches(streamed.epoch(*how, start=4), islice(decoded.epoch(*how), 4, None))
    assert_equal_batches(streamed.ordered(8, rank, world_size), decoded.ordered(8, rank, world_size))
    for got, wanted in zip(streamed.first(7), decoded.first(7), strict=True):
        assert torch.equal(got, wanted)


def tight(listing: Listing) -> int:
    """The least memory that row groups of this size may have."""
    return 8 * int(listing.num_bytes.max())


def test_a_window_shuffles_alike_on_all_ranks(listed: dict[str, Listing], examples: Examples) -> None:
    listing = listed["parquet"]
    streamed, decoded = pair(listing, examples, memory=tight(listing))
    assert streamed.window_bytes == 2 * int(listing.num_bytes.max())
    pixels = {tuple(image.flatten().tolist()): int(label) for image, label in zip(*decoded.first(81), strict=True)}
    alone = list(streamed.epoch(9, 5, 0, 1, "shift"))
    ranks = [list(streamed.epoch(9, 5, rank, 3, "shift")) for rank in range(3)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(torch.cat([images for images, _ in parts]), whole[0])
        assert torch.equal(torch.cat([labels for _, labels in parts]), whole[1])
    plain = [(tuple(image.tolist()), int(label)) for image, label in served(streamed, 5)]
    assert dict(plain) == pixels
    assert len(plain) == len(pixels) == 81
    assert plain != [(tuple(image.tolist()), int(label)) for image, label in served(streamed, 6)]
    assert_equal_batches(streamed.epoch(9, 5, 0, 1, "shift", start=7), islice(streamed.epoch(9, 5, 0, 1, "shift"), 7, None))


def served(data: StreamedData, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch's examples, their bytes and labels."""
    for images, labels in data.epoch(9, seed, 0, 1, "none"):
        whole = (images - data.normalizer.offset) / data.normalizer.scale
        yield from zip(whole.round().to(torch.uint8).flatten(1), labels, strict=True)


def test_evaluation_is_that_of_the_decoded_split(listed: dict[str, Listing], examples: Examples) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(320, 5)).eval()
    for kind in KINDS:
        streamed, decoded = pair(listed[kind], examples, memory=tight(listed["parquet"]))
        with torch.inference_mode():
            got, wanted = (torch.cat([model(images) for images, _ in data.ordered(16)]) for data in (streamed, decoded))
        assert torch.equal(got, wanted)
        right = [sum(int((model(i).argmax(1) == k).sum()) for i, k in d.ordered(16)) for d in (streamed, decoded)]
        assert right[0] == right[1]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    window=st.integers(1, 3000),
    seed=st.integers(0, 2**20),
)
def test_an_order_wants_no_more_than_a_window_and_a_block(sizes: list[int], window: int, seed: int) -> None:
    blocks = np.repeat(np.arange(len(sizes)), sizes)
    num_bytes = np.asarray(sizes, np.int64) * 100
    order = streamed_order(blocks, num_bytes, window, torch.Generator().manual_seed(seed)).numpy()
    np.testing.assert_array_equal(np.sort(order), np.arange(len(blocks)))
    places = [np.flatnonzero(blocks[order] == block) for block in range(len(sizes))]
    for at in range(len(order)):
        wanted = [block for block, own in enumerate(places) if own[0] <= at <= own[-1]]
        assert num_bytes[wanted].sum() <= window + num_bytes.max()


def test_an_order_mixes_blocks_and_depends_on_its_seed_alone() -> None:
    blocks, num_bytes = np.repeat(np.arange(50), 20), np.full(50, 1000)
    first, same, other = (
        streamed_order(blocks, num_bytes, 10_000, torch.Generator().manual_seed(seed)).numpy() for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    in_batch = [len(set(blocks[first[start : start + 64]])) for start in range(200, 800, 64)]
    assert min(in_batch) >= 8  # ten blocks are open at a time
    whole = streamed_order(blocks, num_bytes, None, torch.Generator().manual_seed(1))
    assert torch.equal(whole, torch.randperm(1000, generator=torch.Generator().manual_seed(1)))


def test_each_row_group_is_read_about_once_an_epoch(listed: dict[str, Listing]) -> None:
    listing = listed["parquet"]
    capacity = tight(listing) // 2
    window = capacity - 2 * int(listing.num_bytes.max())
    shelf = Shelf(listing, capacity)
    order = streamed_order(listing.blocks_of(np.arange(NUM)), listing.num_bytes, window, torch.Generator().manual_seed(3))
    for rows in torch.split(order, 6):
        shelf.cells(rows.numpy())
        assert sum(int(listing.num_bytes[block]) for block in shelf._blocks) <= capacity
    assert 14 <= shelf.num_read <= 16


def test_a_sample_is_the_beginning_of_an_epoch(listed: dict[str, Listing], examples: Examples) -> None:
    streamed, _ = pair(listed["parquet"], examples, memory=tight(listed["parquet"]))
    images, labels = streamed.sample(9, 4)
    (begun, begun_labels), *_ = streamed.epoch(9, 4, 0, 1, "none")
    assert images.shape == (9, *SHAPE)
    assert sorted(images.flatten(1).sum(1).tolist()) == sorted(begun.flatten(1).sum(1).tolist())
    assert sorted(labels.tolist()) == sorted(begun_labels.tolist())
    roomy, _ = pair(listed["parquet"], examples)
    assert len(roomy.sample(500, 4)[1]) == 81


def test_threads_change_nothing(listed: dict[str, Listing], examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed, _ = pair(listed["parquet"], examples, memory=tight(listed["parquet"]))
    wanted = list(streamed.epoch(10, 1, 0, 1, "shift"))
    for num in (2, 5, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda num=num: num)
        assert_equal_batches(streamed.epoch(10, 1, 0, 1, "shift"), iter(wanted))


def test_no_more_is_decoded_than_asked_for_and_ahead(listed: dict[str, Listing]) -> None:
    """The rest is neither read nor decoded: the batches are asked for one by one, and all threads end."""
    asked: list[int] = []

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, 80, 4):
            asked.append(start)
            yield np.arange(start, start + 4)

    before = threading.active_count()
    taken = decoded_ahead(listed["imagefolder"], batches(), 0, ahead=3)
    next(taken)
    assert asked == [0, 4, 8, 12]
    next(taken)
    assert asked == [0, 4, 8, 12, 16]
    taken.close()
    assert threading.active_count() == before


def test_each_batch_is_decoded_under_a_permit_on_another_thread(listed: dict[str, Listing]) -> None:
    entered: list[int] = []

    @contextmanager
    def permit() -> Iterator[None]:
        entered.append(threading.get_ident())
        yield

    assert len(list(decoded_ahead(listed["parquet"], [np.arange(4)] * 5, PLENTY, 2, permit))) == 5
    assert len(entered) == 5
    assert threading.get_ident() not in entered


def test_a_damaged_picture_is_named_in_its_turn(tmp_path: Path, encoded: Callable[..., bytes], rows: list[Any]) -> None:
    for place in range(6):
        path = tmp_path / "train" / "a" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(rows[place][0]))
    listing = open_listing(tmp_path, list_split(Source("imagefolder", str(tmp_path)), "train", tmp_path))
    (tmp_path / "train" / "a" / "4.png").write_bytes(b"no picture")
    taken = decoded_ahead(listing, [np.arange(0, 2), np.arange(2, 4), np.arange(4, 6)], 0, 2)
    assert [len(next(taken)), len(next(taken))] == [2, 2]
    with pytest.raises(DataError, match=r"4\.png: every image must be"):
        next(taken)


def test_grey_among_colours_is_repeated_and_other_shapes_are_refused(tmp_path: Path, encoded: Callable[..., bytes]) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    shapes = {"0": (1, 8, 8), "1": (3, 8, 8)}
    for name, shape in shapes.items():
        (tmp_path / "train" / "a" / f"{name}.png").write_bytes(encoded(np.full(shape, 7, np.uint8)))
    source = Source("imagefolder", str(tmp_path))
    listing = open_listing(tmp_path, list_split(source, "train", tmp_path))
    assert listing.shape == (3, 8, 8)
    assert (as_examples(listing).images[:] == 7).all()
    (tmp_path / "train" / "a" / "2.png").write_bytes(encoded(np.zeros((3, 8, 9), np.uint8)))
    with pytest.raises(DataError, match=r"2\.png: images must have one shape, or data\.image_size be given"):
        list_split(source, "train", tmp_path)
    mended = list_split(replace(source, image_size=6), "train", tmp_path)
    assert as_examples(open_listing(tmp_path, mended)).images[:].shape == (3, 3, 6, 6)


@pytest.mark.parametrize(("labels", "told"), [([0, -2], "example 1 of train has -2"), ([], "must hold at least one example")])
def test_a_listing_refuses_what_decoding_refuses(
    tmp_path: Path, write_parquet: Callable[..., None], rows: list[Any], labels: list[int], told: str
) -> None:
    write_parquet(tmp_path / "train.parquet", [(rows[0][0], label) for label in labels], "plain")
    with pytest.raises(DataError, match=told):
        list_split(Source("parquet", str(tmp_path)), "train", tmp_path)


def test_a_row_group_beyond_the_bound_is_refused_with_the_way_out(listed: dict[str, Listing], examples: Examples) -> None:
    with pytest.raises(DataError, match=r"train-\d\.parquet: a row group must be at most an eighth of data\.memory_gb"):
        pair(listed["parquet"], examples, memory=tight(listed["parquet"]) - 16)
    streamed, _ = pair(listed["imagefolder"], examples, memory=10_000)  # files have no row groups
    with pytest.raises(DataError, match=r"81 images for calibration must fit into half of data\.memory_gb"):
        streamed.sample(81, 0)
    with pytest.raises(DataError, match=r"30 images at once must fit"):
        streamed.first(30)


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_follows_the_files_and_not_their_place(
    kind: str, tmp_path: Path, sources: dict[str, Source], listed: dict[str, Listing]
) -> None:
    import shutil

    copy = tmp_path / "elsewhere"
    shutil.copytree(sources[kind].path or "", copy)
    source = replace(sources[kind], path=str(copy))
    assert list_split(source, "train", tmp_path)["digest"] == listed[kind].digest
    assert list_split(replace(source, image_size=8), "train", tmp_path)["digest"] != listed[kind].digest
    if kind == "parquet":
        table = pq.read_table(copy / "train-1.parquet")
        pq.write_table(table, copy / "train-1.parquet", row_group_size=11)
    else:
        (copy / "train" / "class0" / "000.png").rename(copy / "train" / "class1" / "000.png")
    assert list_split(source, "train", tmp_path)["digest"] != listed[kind].digest


def test_a_listed_test_split_is_opened_like_a_decoded_one(
    tmp_path: Path, sources: dict[str, Source], examples: Examples
) -> None:
    import json

    meta = list_split(sources["parquet"], "train", tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    seen = open_test_split(tmp_path)
    np.testing.assert_array_equal(seen.labels, examples.labels)
    np.testing.assert_array_equal(np.ascontiguousarray(seen.images[:1], dtype=np.float32), examples.images[:1])
    parts = [seen.images[start : start + 16] for start in range(0, len(seen.images), 16)]
    np.testing.assert_array_equal(np.concatenate(parts), examples.images)


def test_streams_side_by_side_do_not_disturb_each_other(listed: dict[str, Listing], examples: Examples) -> None:
    streamed, _ = pair(listed["parquet"], examples, memory=tight(listed["parquet"]))
    wanted = [list(streamed.epoch(8, seed, 0, 1, "shift")) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: list(streamed.epoch(8, seed, 0, 1, "shift")), range(4)))
    for got, want in zip(found, wanted, strict=True):
        assert_equal_batches(iter(got), iter(want))


BOUNDED = """
import sys, tracemalloc
from pathlib import Path
import numpy as np, pyarrow as pa, torch
torch.set_num_threads(2)
from orchestrator.data.batches import Normalizer
from orchestrator.data.listing import list_split, open_listing
from orchestrator.data.sources import Source
from orchestrator.data.stream import StreamedData

root, memory = Path(sys.argv[1]), int(sys.argv[2])
listing = open_listing(root, list_split(Source("parquet", str(root)), "train", root))
ones, cpu = np.ones(3, np.float32), torch.device("cpu")
few, data = (StreamedData(listing, np.arange(n), Normalizer(ones, ones, cpu), cpu, False, memory) for n in (32, len(listing)))
list(few.ordered(16))  # imports what decoding needs
tracemalloc.start()
seen = sum(len(labels) for _, labels in data.epoch(16, 0, 0, 1, "none"))
seen += sum(len(labels) for _, labels in data.ordered(16))
held = tracemalloc.get_traced_memory()[1] + pa.default_memory_pool().max_memory()
print(seen, data.window_bytes, len(listing) * listing.image_bytes, held)
"""


def test_memory_stays_within_the_bound_on_a_larger_set(tmp_path: Path, encoded: Callable[..., bytes]) -> None:
    """Noise is as large encoded as decoded: 69 MB of either, streamed twice through 16."""
    draw = np.random.default_rng(0)
    few = [encoded(draw.integers(0, 256, (3, 128, 128), dtype=np.uint8), "BMP") for _ in range(20)]
    table = pa.table({"image": pa.array(few, pa.binary()), "label": pa.array(range(20), pa.int64())})
    with pq.ParquetWriter(tmp_path / "train.parquet", table.schema, compression="none", use_dictionary=False) as writer:
        for _ in range(70):
            writer.write_table(table)
    memory = 16_000_000
    told = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(tmp_path), str(memory)], capture_output=True, text=True, check=True, timeout=120
    )
    seen, window, decoded, held = (int(number) for number in told.stdout.split())
    assert (seen, decoded) == (2792, 1400 * 3 * 128 * 128)
    assert 0 < window < memory // 2
    assert held < memory < decoded // 4  # the most that Python, NumPy and Arrow held at any one time
