"""The four kinds of image dataset, each as a stream of decoded images with labels.

Nothing here knows about splits other than "train" and "test" as their publishers cut them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import OrchestratorError

Image = npt.NDArray[np.uint8]

# The digits have no test split of their own: a fixed fifth is set aside, the same for every seed.
_DIGITS_TEST_FRACTION, _DIGITS_TEST_SEED = 0.2, 20260101


class DataError(OrchestratorError):
    """The dataset cannot be read as its settings say."""

    exit_code = 2


@dataclass(frozen=True)
class Source:
    """Where images come from. The fields are those of the recipe's data settings that decide what is decoded."""

    kind: str
    path: str | None = None
    name: str | None = None
    download: bool = False
    image_column: str | None = None
    label_column: str | None = None
    image_size: int | None = None
    image_fit: str = "stretch"


def fingerprint(source: Source, split: str) -> dict[str, Any]:
    """What identifies a split's content without decoding it: its settings, and names, sizes and times of its files.

    Of an imagefolder the class folders of train/ too: labels of every split are places among them, of empty ones as well.
    """
    files: list[list[Any]] = []
    if source.path is not None:
        for path in sorted(files_of(source, split)):
            stat = path.stat()
            files.append([str(path), stat.st_size, stat.st_mtime_ns])
    # Whether it may be downloaded is the one setting that changes no pixel and no label.
    settings = {key: value for key, value in asdict(source).items() if key != "download"}
    classes = class_names(source) if source.kind == "imagefolder" else None
    return {"source": settings, "split": split, "files": files, "classes": classes}


def class_names(source: Source) -> list[str] | None:
    """Names of the classes where the dataset holds them.

    Raises:
        DataError: an imagefolder without train/, or columns that cannot be told apart.
    """
    if source.kind == "digits":
        return [str(digit) for digit in range(10)]
    if source.kind == "imagefolder":
        return _imagefolder_class_names(Path(source.path or ""))
    if source.kind == "parquet":
        return _parquet_class_names(source)
    return None


def read_split(source: Source, split: str) -> Iterator[tuple[Image, int]]:
    """Yield every example of "train" or "test" as (image uint8 (C, H, W), label), in the dataset's own order."""
    readers = {"digits": _digits, "parquet": _parquet, "imagefolder": _imagefolder, "torchvision": _torchvision}
    for image, label in readers[source.kind](source, split):
        yield resized(image, source.image_size, source.image_fit), label


def _digits(_: Source, split: str) -> Iterator[tuple[Image, int]]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(_DIGITS_TEST_SEED).permutation(len(labels))
    num_test = int(len(labels) * _DIGITS_TEST_FRACTION)
    chosen = np.sort(order[:num_test] if split == "test" else order[num_test:])
    # Sixteen grey levels, stretched to the byte range.
    pixels = np.round(images * (255.0 / 16.0)).astype(np.uint8).reshape(-1, 1, 8, 8)
    for index in chosen:
        yield pixels[index], int(labels[index])


def _parquet(source: Source, split: str) -> Iterator[tuple[Image, int]]:
    import pyarrow.parquet as pq

    for path in parquet_files(source, split):
        table = pq.ParquetFile(path)
        image_column, label_column = columns_of(table.schema_arrow, source, path)
        for batch in table.iter_batches(columns=[image_column, label_column], batch_size=2048):
            labels = batch.column(label_column).to_pylist()
            for cell, label in zip(batch.column(image_column).to_pylist(), labels, strict=True):
                yield picture(cell["bytes"] if isinstance(cell, dict) else cell, path), int(label)


def parquet_files(source: Source, split: str) -> list[Path]:
    """The Parquet files of a split, in the order in which their rows count.

    Raises:
        DataError: there are none.
    """
    files = sorted(files_of(source, split))
    if not files:
        raise DataError(f"{source.path} must hold {split}.parquet, {split}-*.parquet or {split}/*.parquet")
    return files


def _imagefolder(source: Source, split: str) -> Iterator[tuple[Image, int]]:
    for path, label in imagefolder_labels(source, split):
        yield picture(path.read_bytes(), path), label


def imagefolder_labels(source: Source, split: str) -> Iterator[tuple[Path, int]]:
    """Every picture of an imagefolder with its label, in the order of `read_split`, none of them opened.

    Raises:
        DataError: a class folder that the training split does not have.
    """
    names = _imagefolder_class_names(Path(source.path or ""))
    places = {name: place for place, name in enumerate(names)}
    for path in sorted(files_of(source, split)):
        if path.parent.name not in places:
            raise DataError(f"{path}: class folder must be one of {', '.join(names)}")
        yield path, places[path.parent.name]


def _torchvision(source: Source, split: str) -> Iterator[tuple[Image, int]]:
    from torchvision import datasets

    make = getattr(datasets, source.name or "")
    which = {"split": split} if source.name in ("SVHN", "STL10") else {"train": split == "train"}
    try:
        dataset = make(root=source.path or str(Path.home() / ".cache" / "torchvision"), download=source.download, **which)
    except RuntimeError as error:
        raise DataError(f"{source.name} must be on disk, or data.download must be true: {error}") from None
    for image, label in dataset:
        yield _planes(np.asarray(image)), int(label)


def files_of(source: Source, split: str) -> list[Path]:
    """The files of a split; for torchvision none, as it checks its own."""
    root = Path(source.path or "")
    if source.kind == "parquet":
        return [*root.glob(f"{split}.parquet"), *root.glob(f"{split}-*.parquet"), *root.glob(f"{split}/*.parquet")]
    if source.kind == "imagefolder":
        return [
            path for path in (root / split).glob("*/*") if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
        ]
    return []


def columns_of(schema: Any, source: Source, path: Path) -> tuple[str, str]:
    """Names of the image and label columns: as given, else the only ones whose types fit."""
    import pyarrow as pa

    def is_image(kind: Any) -> bool:
        plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return bool(plain) or bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)

    images = [source.image_column] if source.image_column else [f.name for f in schema if is_image(f.type)]
    labels = [source.label_column] if source.label_column else [f.name for f in schema if pa.types.is_integer(f.type)]
    for key, names in (("image_column", images), ("label_column", labels)):
        if len(names) != 1 or names[0] not in schema.names:
            raise DataError(f"{path}: data.{key} must name one column of {', '.join(schema.names)}; found {names}")
    return images[0], labels[0]


def _imagefolder_class_names(root: Path) -> list[str]:
    """The folders of the training split."""
    train = root / "train"
    if not train.is_dir():
        raise DataError(f"{root} must hold a folder train/ with one folder of images for each class")
    return sorted(path.name for path in train.iterdir() if path.is_dir())


def _parquet_class_names(source: Source) -> list[str] | None:
    """Class names from the schema's metadata, where the Hugging Face hub keeps them."""
    import pyarrow.parquet as pq

    files = files_of(source, "train")
    if not files:
        return None
    schema = pq.ParquetFile(sorted(files)[0]).schema_arrow
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    _, label_column = columns_of(schema, source, files[0])
    names = features.get(label_column, {}).get("names")
    return [str(name) for name in names] if names else None


def picture(content: bytes, path: Path) -> Image:
    """A picture file's pixels, uint8 (C, H, W): grey in one plane, everything else as red, green and blue.

    Args:
        path: where the content comes from, for the error.

    Raises:
        DataError: it is no whole picture.
    """
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(content)) as image:
            return _planes(np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB")))
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        # Pillow's ways to say that the content is of no known kind, cut short or damaged.
        raise DataError(f"{path}: every image must be a whole PNG, JPEG, BMP or WebP: {error}") from None


def _planes(pixels: npt.NDArray[Any]) -> Image:
    """(H, W) or (H, W, C) to (C, H, W)."""
    pixels = pixels.astype(np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def resized(image: Image, size: int | None, fit: str) -> Image:
    """The image as a square.

    Args:
        image: uint8 (C, H, W).
        size: of the square; None leaves the image as it is.
        fit: "stretch" takes the whole image to the square; "crop" its middle, whose side is the image's shorter one.
    """
    if size is None or image.shape[1:] == (size, size):
        return image
    from PIL import Image as Pillow

    whole = Pillow.fromarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0))
    width, height = whole.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side) if fit == "crop" else None
    return _planes(np.asarray(whole.resize((size, size), Pillow.Resampling.BILINEAR, box)))
