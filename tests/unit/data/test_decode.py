"""Decoding into one mapped file, and cutting it into what trains and what validates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data import splits
from orchestrator.data.decode import attach, decode_split
from orchestrator.data.sources import DataError, Source, read_split
from orchestrator.data.splits import open_test_split, split_train, train_val_indices

Write = Callable[..., None]


@pytest.fixture
def decoded(tmp_path: Path) -> Path:
    decode_split(Source("digits"), "train", tmp_path / "train.arrow")
    return tmp_path / "train.arrow"


def test_what_was_decoded_comes_back(decoded: Path) -> None:
    examples = attach(decoded)
    wanted = list(read_split(Source("digits"), "train"))
    assert len(examples) == len(wanted) == 1438
    assert (examples.images.dtype, examples.labels.dtype) == (np.uint8, np.int64)
    np.testing.assert_array_equal(examples.images, np.stack([image for image, _ in wanted]))
    np.testing.assert_array_equal(examples.labels, [label for _, label in wanted])


def test_attached_examples_are_views_into_the_mapped_file(decoded: Path) -> None:
    examples = attach(decoded)
    for array in (examples.images, examples.labels):
        assert not array.flags.owndata
        assert not array.flags.writeable
        address = array.__array_interface__["data"][0]
        spans = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(decoded))]
        ends = [[int(end, 16) for end in span[0].split("-")] for span in spans]
        assert any(start <= address and address + array.nbytes <= end for start, end in ends)


def test_attached_examples_outlive_the_file_name(decoded: Path) -> None:
    examples = attach(decoded)
    total = int(examples.images.sum())
    decoded.unlink()
    assert int(examples.images.sum()) == total


def test_decoding_reports_what_it_found(tmp_path: Path) -> None:
    meta = decode_split(Source("digits"), "test", tmp_path / "a.arrow")
    assert {key: meta[key] for key in ("num_examples", "num_classes", "shape")} == {
        "num_examples": 359,
        "num_classes": 10,
        "shape": [1, 8, 8],
    }


@pytest.mark.parametrize("layout", ["hub", "plain"])
def test_equal_pixels_have_equal_digests_wherever_they_come_from(tmp_path: Path, write_parquet: Write, layout: str) -> None:
    rows = list(read_split(Source("digits"), "test"))
    write_parquet(tmp_path / "test-0.parquet", rows[:200], layout)
    write_parquet(tmp_path / "test-1.parquet", rows[200:], layout)
    parquet = decode_split(Source("parquet", str(tmp_path)), "test", tmp_path / "parquet.arrow")
    direct = decode_split(Source("digits"), "test", tmp_path / "digits.arrow")
    assert parquet == direct
    assert (tmp_path / "parquet.arrow").read_bytes() == (tmp_path / "digits.arrow").read_bytes()


@pytest.mark.parametrize("part", ["pixel", "label", "order"])
def test_the_digest_sees_one_changed(tmp_path: Path, digits: Any, write_parquet: Write, part: str) -> None:
    changed = [(image.copy(), label) for image, label in digits]
    if part == "pixel":
        changed[17][0][0, 3, 3] ^= 1
    elif part == "label":
        changed[17] = (changed[17][0], (changed[17][1] + 1) % 10)
    else:
        changed.reverse()
    for name, rows in (("a", digits), ("b", changed)):
        write_parquet(tmp_path / name / "train.parquet", rows, "plain")
    one, other = (decode_split(Source("parquet", str(tmp_path / name)), "train", tmp_path / f"{name}.arrow") for name in "ab")
    assert one["digest"] != other["digest"]


def test_the_digest_sees_shape_and_class_names(tmp_path: Path, write_parquet: Write) -> None:
    """The bytes of all four are the same."""
    flat = np.arange(48, dtype=np.uint8)
    names = ["cat", "dog"]
    kinds: dict[str, tuple[tuple[int, int, int], list[str] | None]] = {
        "wide": ((1, 4, 6), None),
        "high": ((1, 6, 4), None),
        "named": ((1, 4, 6), names),
        "renamed": ((1, 4, 6), names[::-1]),
    }
    digests = set()
    for kind, (shape, classes) in kinds.items():
        rows = [(flat[half * 24 :][:24].reshape(shape), half) for half in (0, 1)]
        write_parquet(tmp_path / kind / "train.parquet", rows, "hub", classes)
        meta = decode_split(Source("parquet", str(tmp_path / kind)), "train", tmp_path / f"{kind}.arrow")
        assert attach(tmp_path / f"{kind}.arrow").images.tobytes() == flat.tobytes()
        assert meta["classes"] == (classes or ["0", "1"])
        digests.add(meta["digest"])
    assert len(digests) == 4


@pytest.mark.parametrize("second", [(1, 8, 9), (1, 9, 8), (3, 8, 8)])
def test_pictures_of_different_shapes_are_refused(tmp_path: Path, write_parquet: Write, second: tuple[int, int, int]) -> None:
    rows = [(np.zeros((1, 8, 8), np.uint8), 0), (np.zeros(second, np.uint8), 1)]
    write_parquet(tmp_path / "train.parquet", rows, "plain")
    with pytest.raises(DataError, match=r"one shape, or data\.image_size be given"):
        decode_split(Source("parquet", str(tmp_path)), "train", tmp_path / "x.arrow")


def test_image_size_mends_different_shapes(tmp_path: Path, write_parquet: Write) -> None:
    rows = [(np.zeros((1, 8, 8 + i), np.uint8), i) for i in range(3)]
    write_parquet(tmp_path / "train.parquet", rows, "plain")
    meta = decode_split(Source("parquet", str(tmp_path), image_size=10), "train", tmp_path / "x.arrow")
    assert meta["shape"] == [1, 10, 10]


def test_a_negative_label_is_refused_with_its_place(tmp_path: Path, digits: Any, write_parquet: Write) -> None:
    write_parquet(tmp_path / "train.parquet", [*digits[:4], (digits[4][0], -1)], "plain")
    with pytest.raises(DataError, match="example 4 of train has -1"):
        decode_split(Source("parquet", str(tmp_path)), "train", tmp_path / "x.arrow")


@pytest.mark.parametrize("kind", ["parquet", "imagefolder"])
def test_a_split_without_examples_is_refused(tmp_path: Path, write_parquet: Write, kind: str) -> None:
    write_parquet(tmp_path / "test.parquet", [], "plain")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="the test split must hold at least one example"):
        decode_split(Source(kind, str(tmp_path)), "test", tmp_path / "x.arrow")


def test_the_test_split_is_what_was_decoded(tmp_path: Path) -> None:
    decode_split(Source("digits"), "test", tmp_path / "images.arrow")
    assert len(open_test_split(tmp_path)) == 359


maxima = st.none() | st.integers(1, 300)


@given(
    num=st.integers(2, 400),
    fraction=st.floats(1e-3, 0.5),
    seed=st.integers(0, 2**32),
    max_train=maxima,
    max_val=maxima,
)
def test_indices_are_a_seeded_partition(
    num: int, fraction: float, seed: int, max_train: int | None, max_val: int | None
) -> None:
    train, val = train_val_indices(num, fraction, seed, None, None)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), np.arange(num))
    assert len(train) >= 1
    assert len(val) >= 1
    assert abs(len(val) - fraction * num) <= 1
    few_train, few_val = train_val_indices(num, fraction, seed, max_train, max_val)
    for few, whole, limit in ((few_train, train, max_train), (few_val, val, max_val)):
        assert set(few) <= set(whole)
        assert len(few) == min(len(whole), limit or len(whole))
        assert (np.diff(few) > 0).all()


def test_indices_depend_on_the_seed() -> None:
    parts = [train_val_indices(100, 0.2, seed, None, None)[1].tolist() for seed in (0, 1, 2, 0)]
    assert parts[0] == parts[3]
    assert parts[0] != parts[1] != parts[2]


def test_statistics_come_from_the_training_part_alone(decoded: Path) -> None:
    splits = split_train(decoded, 10, 0.25, 3, 500, 100)
    assert (len(splits.train), len(splits.val), splits.num_classes) == (500, 100, 10)
    train, val = train_val_indices(1438, 0.25, 3, 500, 100)
    examples = attach(decoded)
    np.testing.assert_array_equal(splits.train.images, examples.images[train])
    np.testing.assert_array_equal(splits.val.labels, examples.labels[val])
    pixels = examples.images[train].astype(np.float64) / 255
    np.testing.assert_allclose(splits.mean, [pixels.mean()], rtol=1e-5)
    np.testing.assert_allclose(splits.std, [pixels.std()], rtol=1e-5)


@pytest.mark.parametrize(("num", "shown"), [(10, range(10)), (13, [0, 1, 2, 3, 5, 6, 7, 9, 10, 11]), (95, range(0, 95))])
def test_statistics_come_from_all_classes_of_a_sorted_dataset(
    tmp_path: Path, write_parquet: Write, monkeypatch: pytest.MonkeyPatch, num: int, shown: Iterable[int]
) -> None:
    monkeypatch.setattr(splits, "_MAX_SAMPLE", 10)
    rows = [(np.full((1, 4, 4), 2 * place, np.uint8), place // 5) for place in range(num + 1)]  # one validates
    write_parquet(tmp_path / "train.parquet", rows, "plain")
    decode_split(Source("parquet", str(tmp_path)), "train", tmp_path / "x.arrow")
    cut = split_train(tmp_path / "x.arrow", 20, 0.001, 0, None, None)
    brightness = cut.train.images[:, 0, 0, 0] / 255
    assert len(brightness) == num
    picked = brightness[list(shown)] if num < 95 else brightness[[0, 9, 19, 28, 38, 47, 57, 66, 76, 85]]
    np.testing.assert_allclose(cut.mean, [picked.mean()], rtol=1e-6)
    np.testing.assert_allclose(cut.std, [picked.std()], rtol=1e-6)


def test_statistics_of_flat_pictures_do_not_divide_by_zero(tmp_path: Path, write_parquet: Write) -> None:
    write_parquet(tmp_path / "train.parquet", [(np.full((3, 4, 4), 9, np.uint8), i % 2) for i in range(8)], "plain")
    decode_split(Source("parquet", str(tmp_path)), "train", tmp_path / "x.arrow")
    splits = split_train(tmp_path / "x.arrow", 2, 0.25, 0, None, None)
    assert (splits.std > 0).all()
    assert splits.mean.shape == splits.std.shape == (3,)


def test_reading_streams_and_does_not_decode_ahead(tmp_path: Path, digits: Any, write_parquet: Write) -> None:
    write_parquet(tmp_path / "train-0.parquet", digits, "plain")
    (tmp_path / "train-1.parquet").write_bytes(b"broken")
    assert len(list(islice(read_split(Source("parquet", str(tmp_path)), "train"), 60))) == 60
