"""Every kind of dataset as a stream of images and labels, and what is said when it cannot be read."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from orchestrator.data.sources import DataError, Source, class_names, fingerprint, read_split
from orchestrator.errors import OrchestratorError

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
Write = Callable[..., None]


def assert_same(got: list[tuple[Any, int]], wanted: list[tuple[Any, int]]) -> None:
    assert [label for _, label in got] == [label for _, label in wanted]
    np.testing.assert_array_equal(np.stack([image for image, _ in got]), np.stack([image for image, _ in wanted]))


def test_digits_are_cut_into_train_and_test_without_loss() -> None:
    from sklearn.datasets import load_digits

    train, test = list(read_split(Source("digits"), "train")), list(read_split(Source("digits"), "test"))
    assert len(test) == 359
    everything, labels = load_digits(return_X_y=True)
    mine = sorted((tuple(image.ravel()), label) for image, label in [*train, *test])
    pixels = np.round(everything * 255 / 16).astype(np.uint8)
    theirs = sorted((tuple(row), int(label)) for row, label in zip(pixels, labels, strict=True))
    assert mine == theirs


def test_digits_use_the_whole_byte_range() -> None:
    images = np.stack([image for image, _ in read_split(Source("digits"), "train")])
    assert images.dtype == np.uint8
    assert images.shape[1:] == (1, 8, 8)
    assert (images.min(), images.max()) == (0, 255)


@pytest.mark.parametrize("layout", ["hub", "plain"])
def test_parquet_of_pngs_gives_the_very_pixels(tmp_path: Path, digits: Any, write_parquet: Write, layout: str) -> None:
    write_parquet(tmp_path / "train.parquet", digits, layout)
    assert_same(list(read_split(Source("parquet", str(tmp_path)), "train")), digits)


@pytest.mark.parametrize(
    "files",
    [
        ["train.parquet"],
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["train/0.parquet", "train/1.parquet", "train/2.parquet"],
    ],
)
def test_parquet_files_of_a_split_are_read_in_the_order_of_their_names(
    tmp_path: Path, digits: Any, write_parquet: Write, files: list[str]
) -> None:
    step = len(digits) // len(files)
    for position, name in reversed(list(enumerate(files))):
        write_parquet(tmp_path / name, digits[position * step : (position + 1) * step], "hub")
    write_parquet(tmp_path / "test.parquet", digits[:3], "hub")
    assert_same(list(read_split(Source("parquet", str(tmp_path)), "train")), digits)
    assert_same(list(read_split(Source("parquet", str(tmp_path)), "test")), digits[:3])


def test_imagefolder_numbers_its_classes_by_the_training_folders(
    tmp_path: Path, digits: Any, encoded: Callable[..., bytes]
) -> None:
    for split, rows in (("train", digits), ("test", [row for row in digits if row[1] == 7])):
        for position, (image, label) in enumerate(rows):
            path = tmp_path / split / f"class{label}" / f"{position:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image))
    (tmp_path / "train" / "class0" / "notes.txt").write_text("not a picture")
    source = Source("imagefolder", str(tmp_path))
    assert class_names(source) == [f"class{digit}" for digit in range(10)]
    assert_same(list(read_split(source, "train")), sorted(digits, key=lambda row: row[1]))
    assert {label for _, label in read_split(source, "test")} == {7}


def test_imagefolder_refuses_a_class_that_was_not_trained_on(
    tmp_path: Path, digits: Any, encoded: Callable[..., bytes]
) -> None:
    for name in ("train/cat", "test/dog"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.png").write_bytes(encoded(digits[0][0]))
    with pytest.raises(DataError, match=r"dog.*must be one of cat"):
        list(read_split(Source("imagefolder", str(tmp_path)), "test"))


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_colour_pictures_become_three_planes(
    tmp_path: Path, encoded: Callable[..., bytes], write_parquet: Write, kind: str
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    if kind == "parquet":
        write_parquet(tmp_path / "train.parquet", [(image, 0)], "hub")
    else:
        (tmp_path / "train" / "a").mkdir(parents=True)
        (tmp_path / "train" / "a" / "0.png").write_bytes(encoded(image))
    ((got, label),) = read_split(Source(kind, str(tmp_path)), "train")
    np.testing.assert_array_equal(got, image)
    assert label == 0


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "1"])
def test_other_picture_modes_are_turned_into_colour(tmp_path: Path, mode: str) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Pillow.new("RGB", (4, 4), (255, 255, 255)).convert(mode).save(tmp_path / "train" / "a" / "0.png")
    ((image, _),) = read_split(Source("imagefolder", str(tmp_path)), "train")
    assert image.shape == (3, 4, 4)
    assert image.min() == 255


@pytest.mark.parametrize("channels", [1, 3])
def test_image_size_resizes_every_picture(
    tmp_path: Path, encoded: Callable[..., bytes], write_parquet: Write, channels: int
) -> None:
    flat = [(np.full((channels, 6, 4 + i), 10 * i, np.uint8), i) for i in range(3)]
    write_parquet(tmp_path / "train.parquet", flat, "plain")
    got = list(read_split(Source("parquet", str(tmp_path), image_size=12), "train"))
    for (image, label), (_, wanted) in zip(got, flat, strict=True):
        assert image.shape == (channels, 12, 12)
        assert label == wanted
        assert np.unique(image).tolist() == [10 * wanted]  # a flat picture stays flat


def test_image_fit_stretches_the_whole_or_crops_the_middle(tmp_path: Path, write_parquet: Write) -> None:
    bars = np.repeat(np.asarray([10, 10, 60, 60, 60, 60, 200, 200], np.uint8)[None], 4, axis=0)
    lying, standing = bars[None], np.ascontiguousarray(bars.T)[None]
    write_parquet(tmp_path / "train.parquet", [(lying, 0), (standing, 1)], "plain")
    for fit, values in (("stretch", [10, 60, 60, 200]), ("crop", [60, 60, 60, 60])):
        source = Source("parquet", str(tmp_path), image_size=4, image_fit=fit)
        (one, _), (other, _) = read_split(source, "train")
        np.testing.assert_array_equal(one[0].T, other[0])
        assert np.abs(one[0].astype(int) - values).max() <= 25  # stretching is antialiased at the edges of bars
        assert (one[0][:, 1:3] == 60).all() == (fit == "crop")


def test_class_names_come_from_the_hub_metadata(tmp_path: Path, digits: Any, write_parquet: Write) -> None:
    write_parquet(tmp_path / "train-0.parquet", digits, "hub", NAMES)
    assert class_names(Source("parquet", str(tmp_path))) == NAMES


def test_class_names_are_unknown_where_the_schema_has_none(tmp_path: Path, digits: Any, write_parquet: Write) -> None:
    write_parquet(tmp_path / "train.parquet", digits, "plain")
    assert class_names(Source("parquet", str(tmp_path))) is None


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_parquet_folder_without_files_of_the_split_is_an_error(tmp_path: Path, split: str) -> None:
    (tmp_path / "other.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=rf"must hold {split}\.parquet"):
        list(read_split(Source("parquet", str(tmp_path)), split))


def test_an_imagefolder_without_a_train_folder_is_an_error_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        list(read_split(Source("imagefolder", str(tmp_path / "nowhere")), "train"))


def two_of_each(path: Path, encoded: Callable[..., bytes]) -> None:
    picture = encoded(np.zeros((1, 4, 4), np.uint8))
    table = {"left": [picture], "right": [encoded(np.ones((1, 4, 4), np.uint8))], "kind": [3], "age": [5]}
    pq.write_table(pa.table(table), path)


@pytest.mark.parametrize(
    ("columns", "key"),
    [
        ({}, "image_column"),
        ({"image_column": "left"}, "label_column"),
        ({"label_column": "kind"}, "image_column"),
        ({"image_column": "middle", "label_column": "kind"}, "image_column"),
        ({"image_column": "left", "label_column": "colour"}, "label_column"),
    ],
)
def test_ambiguous_or_unknown_columns_are_named_with_their_choices(
    tmp_path: Path, encoded: Callable[..., bytes], columns: dict[str, str], key: str
) -> None:
    two_of_each(tmp_path / "train.parquet", encoded)
    with pytest.raises(DataError, match=rf"data\.{key} must name one column of left, right, kind, age"):
        list(read_split(Source("parquet", str(tmp_path), **columns), "train"))


def test_named_columns_settle_the_ambiguity(tmp_path: Path, encoded: Callable[..., bytes]) -> None:
    two_of_each(tmp_path / "train.parquet", encoded)
    source = Source("parquet", str(tmp_path), image_column="right", label_column="age")
    ((image, label),) = read_split(source, "train")
    assert (int(image.max()), label) == (1, 5)


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_an_unreadable_picture_is_an_error_that_names_its_file(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pq.write_table(pa.table({"image": [b"no picture at all"], "label": [0]}), tmp_path / "train.parquet")
    else:
        (tmp_path / "train" / "a").mkdir(parents=True)
        (tmp_path / "train" / "a" / "broken.png").write_bytes(b"no picture at all")
    with pytest.raises(DataError, match=r"(train\.parquet|broken\.png): every image must be"):
        list(read_split(Source(kind, str(tmp_path)), "train"))


def test_a_picture_cut_short_is_an_error_that_names_its_file(
    tmp_path: Path, digits: Any, encoded: Callable[..., bytes]
) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    content = encoded(digits[0][0])
    (tmp_path / "train" / "a" / "broken.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="broken"):
        list(read_split(Source("imagefolder", str(tmp_path)), "train"))


def test_fingerprint_follows_the_files_of_its_split_alone(tmp_path: Path, digits: Any, write_parquet: Write) -> None:
    source = Source("parquet", str(tmp_path))
    write_parquet(tmp_path / "train.parquet", digits[:10], "hub")
    before = fingerprint(source, "train")
    write_parquet(tmp_path / "test.parquet", digits[10:], "hub")
    assert fingerprint(source, "train") == before
    assert fingerprint(source, "test") != before
    write_parquet(tmp_path / "train.parquet", digits[:20], "hub")
    assert fingerprint(source, "train") != before


@pytest.mark.parametrize("change", [{"image_size": 16}, {"name": "MNIST"}, {"path": "/elsewhere"}])
def test_fingerprint_depends_on_what_decides_the_pixels(change: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"kind": "torchvision", "path": "/nowhere", "name": "CIFAR10", "image_size": 32}
    assert fingerprint(Source(**plain), "train") != fingerprint(Source(**{**plain, **change}), "train")


def test_fingerprint_depends_on_the_columns_that_are_read(tmp_path: Path, encoded: Callable[..., bytes]) -> None:
    two_of_each(tmp_path / "train.parquet", encoded)
    prints = [
        fingerprint(Source("parquet", str(tmp_path), image_column=image, label_column=label), "train")
        for image in ("left", "right")
        for label in ("kind", "age")
    ]
    assert all(prints.count(one) == 1 for one in prints)


@pytest.mark.parametrize("split", ["train", "test"])
def test_fingerprint_of_an_imagefolder_follows_its_training_classes(
    tmp_path: Path, digits: Any, encoded: Callable[..., bytes], split: str
) -> None:
    """Labels are places among them: a class that comes before the others moves the labels of all, of the test split too."""
    for name in ("train/b", "test/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.png").write_bytes(encoded(digits[0][0]))
    source = Source("imagefolder", str(tmp_path))
    before = fingerprint(source, split)
    (tmp_path / "train" / "notes.txt").touch()
    assert fingerprint(source, split) == before
    (tmp_path / "train" / "a").mkdir()
    assert [label for _, label in read_split(source, split)] == [1]
    assert fingerprint(source, split) != before


def test_a_data_error_is_the_users_and_crosses_processes() -> None:
    error = DataError("must be read")
    assert isinstance(error, OrchestratorError)
    assert error.exit_code == 2
    assert str(pickle.loads(pickle.dumps(error))) == "must be read"
