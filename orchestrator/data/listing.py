"""Where the examples of a split lie, so that any of them can be read without those before it.

A split is a row of blocks, and a block is what is read at once: a row group of a Parquet file, or one picture of a folder. A
listing knows labels and sizes of all, and decodes none but a few that tell the images' shape. It is kept as two Arrow files,
`blocks.arrow` and `labels.arrow`, so that every process of a node maps the same pages, however many examples there are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchestrator.data.row_groups import encoded_bytes, first_picture, footer, picture_columns, read_group
from orchestrator.data.sources import (
    DataError,
    Image,
    Source,
    class_names,
    files_of,
    imagefolder_labels,
    parquet_files,
    picture,
    resized,
)

Indices = npt.NDArray[np.int64]
Cell = bytes | Path
"""A picture that is not decoded yet: its content, or its file."""

# Kinds of source whose examples can be reached one by one; the others are small.
LISTED = ("parquet", "imagefolder")
_PROBES = 16
_BLOCKS = pa.schema([("path", pa.string()), ("group", pa.int64()), ("num_rows", pa.int64()), ("num_bytes", pa.int64())])
_LABELS = pa.schema([("label", pa.int64())])


@dataclass(frozen=True)
class Listing:
    """A split that is read where it lies.

    Args:
        paths: string (B,), each block's file, relative to `root`.
        groups: int64 (B,), its row group.
        starts: int64 (B + 1,), the first example of each block, and how many there are.
        num_bytes: int64 (B,), encoded.
        labels: int64 (N,).
        column: of the encoded image in a Parquet file; None where each block is a picture's file.
        shape: (C, H, W) of all images.
        image_size, image_fit: how pictures are resized; see `sources.resized`.
        digest: of names, sizes, labels, class names and shape, and of Parquet files' footers; of no pixels.
    """

    root: Path
    paths: pa.Array
    groups: Indices
    starts: Indices
    num_bytes: Indices
    labels: Indices
    column: str | None
    shape: tuple[int, int, int]
    image_size: int | None
    image_fit: str
    digest: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_bytes(self) -> int:
        """Of one decoded image."""
        return int(np.prod(self.shape))

    def path(self, block: int) -> Path:
        return self.root / str(self.paths[block])

    def blocks_of(self, rows: Indices) -> Indices:
        """The block in which each example lies, int64 (N,)."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def read(self, block: int) -> pa.Array:
        """The encoded pictures of a row group, binary (rows,)."""
        assert self.column is not None
        return read_group(self.path(block), int(self.groups[block]), self.column)

    def image(self, cell: Cell, path: Path) -> Image:
        """Decode a picture, uint8 of the listing's shape.

        Raises:
            DataError: it is no picture, or has another shape.
        """
        content = cell if isinstance(cell, bytes) else cell.read_bytes()
        return as_shaped(self.sized(content, path), self.shape, path)

    def sized(self, content: bytes, path: Path) -> Image:
        return resized(picture(content, path), self.image_size, self.image_fit)


def as_shaped(image: Image, shape: tuple[int, ...], path: Path | str) -> Image:
    """The image, a grey one among colours repeated in three planes.

    Raises:
        DataError: it has another shape.
    """
    if len(image) == 1 and shape[0] == 3:
        image = np.repeat(image, 3, axis=0)
    if image.shape != shape:
        raise DataError(f"{path}: images must have one shape, or data.image_size be given; {image.shape} is not {shape}")
    return image


def decoded_bytes(source: Source, split: str) -> int | None:
    """How large a split would be decoded, from the number of its examples and the shape of one.

    None where the source is of a kind that is always decoded, or has no example.
    """
    import pyarrow.parquet as pq

    if source.kind not in LISTED:
        return None
    files = sorted(files_of(source, split))
    if source.kind == "imagefolder":
        if not files:
            return None
        return len(files) * _size(files[0].read_bytes(), files[0], source)
    rows = [int(pq.read_metadata(path).num_rows) for path in files]
    if not sum(rows):
        return None
    path = next(path for path, num in zip(files, rows, strict=True) if num)
    column, _ = picture_columns(path, source)
    return sum(rows) * _size(first_picture(path, column), path, source)


def _size(content: bytes, path: Path, source: Source) -> int:
    return resized(picture(content, path), source.image_size, source.image_fit).size


def list_split(source: Source, split: str, folder: Path) -> dict[str, Any]:
    """List a split into `folder`; returns what `open_listing` needs besides, with classes and digest as `decode_split` does.

    Raises:
        DataError: no examples, negative labels, or images of different shapes among the few that are decoded.
    """
    root = Path(source.path or "")
    digest = hashlib.sha256()
    column: str | None = None
    if source.kind == "parquet":
        column, blocks, labels = _parquet_blocks(source, split, root, digest)
    else:
        blocks, labels = _folder_blocks(source, split, root)
    if not len(labels):
        raise DataError(f"the {split} split must hold at least one example")
    if (labels < 0).any():
        place = int((labels < 0).argmax())
        raise DataError(f"labels must be 0 or more; example {place} of {split} has {labels[place]}")
    _write(folder / "blocks.arrow", pa.table(blocks, schema=_BLOCKS))
    _write(folder / "labels.arrow", pa.table({"label": labels}, schema=_LABELS))
    num_classes = int(labels.max()) + 1
    meta: dict[str, Any] = {
        "num_examples": len(labels),
        "num_classes": num_classes,
        "classes": class_names(source) or [str(label) for label in range(num_classes)],
        "root": str(root),
        "column": column,
        "image_size": source.image_size,
        "image_fit": source.image_fit,
    }
    meta["shape"] = list(_probed(open_listing(folder, {**meta, "shape": [0, 0, 0], "digest": ""})))
    facts = [blocks["path"], blocks["num_bytes"], column, meta["image_size"], meta["image_fit"], meta["classes"], meta["shape"]]
    digest.update(json.dumps(facts).encode())
    digest.update(labels.tobytes())
    return {**meta, "digest": digest.hexdigest()}


def open_listing(folder: Path, meta: dict[str, Any]) -> Listing:
    """Map what `list_split` wrote."""
    blocks, labels = _mapped(folder / "blocks.arrow"), _mapped(folder / "labels.arrow")
    groups, num_rows, num_bytes = (blocks.column(name).to_numpy() for name in ("group", "num_rows", "num_bytes"))
    starts = np.concatenate([[0], np.cumsum(num_rows)]).astype(np.int64)
    shape = tuple(int(size) for size in meta["shape"])
    return Listing(
        Path(meta["root"]),
        blocks.column("path"),
        groups,
        starts,
        num_bytes,
        labels.column("label").to_numpy(),
        meta["column"],
        (shape[0], shape[1], shape[2]),
        meta["image_size"],
        meta["image_fit"],
        meta["digest"],
    )


def _folder_blocks(source: Source, split: str, root: Path) -> tuple[dict[str, list[Any]], Indices]:
    paths: list[str] = []
    sizes: list[int] = []
    labels: list[int] = []
    for path, label in imagefolder_labels(source, split):
        paths.append(str(path.relative_to(root)))
        sizes.append(path.stat().st_size)
        labels.append(label)
    blocks: dict[str, list[Any]] = {"path": paths, "group": [0] * len(paths), "num_rows": [1] * len(paths), "num_bytes": sizes}
    return blocks, np.asarray(labels, dtype=np.int64)


def _parquet_blocks(source: Source, split: str, root: Path, digest: Any) -> tuple[str, dict[str, list[Any]], Indices]:
    """The image column, the row groups, and all labels; footers go into the digest."""
    import pyarrow.parquet as pq

    found: set[str] = set()
    blocks: dict[str, list[Any]] = {name: [] for name in _BLOCKS.names}
    labels: list[Indices] = []
    for path in parquet_files(source, split):
        column, label_column = picture_columns(path, source)
        found.add(column)
        if len(found) > 1:
            raise DataError(f"{path}: the image column must be the same in all files; found {', '.join(sorted(found))}")
        digest.update(footer(path))
        with pq.ParquetFile(path) as file:
            labels.append(file.read(columns=[label_column]).column(0).to_numpy().astype(np.int64))
            for place in range(file.num_row_groups):
                group = file.metadata.row_group(place)
                if group.num_rows == 0:
                    continue
                blocks["path"].append(str(path.relative_to(root)))
                blocks["group"].append(place)
                blocks["num_rows"].append(group.num_rows)
                blocks["num_bytes"].append(encoded_bytes(group, column))
    return found.pop(), blocks, np.concatenate(labels)


def _probed(listing: Listing) -> tuple[int, int, int]:
    """The shape of all images, from the first of a few blocks spread over the split: of colours, where one of them has any."""
    num = len(listing.starts) - 1
    probes = np.unique(np.linspace(0, num - 1, min(num, _PROBES)).astype(int))
    images = [(listing.sized(content, path), path) for content, path in _firsts(listing, probes)]
    _, height, width = images[0][0].shape
    shape = max(len(image) for image, _ in images), height, width
    for image, path in images:
        as_shaped(image, shape, path)
    return shape


def _firsts(listing: Listing, blocks: Indices) -> Iterator[tuple[bytes, Path]]:
    for block in blocks.tolist():
        path = listing.path(block)
        yield (path.read_bytes() if listing.column is None else listing.read(block)[0].as_py()), path


def _write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_batch(table.combine_chunks().to_batches()[0])


def _mapped(path: Path) -> pa.RecordBatch:
    with pa.memory_map(str(path)) as mapped:
        return pa.ipc.open_file(mapped).get_batch(0)
