"""Decode a dataset once into Arrow IPC files; every process on a node maps the same pages.

A split is one file with two columns: `image` (fixed-size binary, C*H*W bytes) and `label` (int64), in one record batch, so
that the pixels are one contiguous block and a NumPy array over it costs nothing.
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

from orchestrator.data.listing import as_shaped
from orchestrator.data.sources import DataError, Image, Source, class_names, read_split


@dataclass(frozen=True)
class Examples:
    """Images uint8 (N, C, H, W) and labels int64 (N,), views into a memory-mapped file."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def decode_split(source: Source, split: str, path: Path) -> dict[str, Any]:
    """Decode a split into `path`; returns shape, classes and a digest of all that a network could learn from.

    Classes without names in the dataset are named by their labels. Equal pixels of another shape, and equal labels that stand
    for other classes, have another digest.

    Raises:
        DataError: no examples, images of different shapes, or negative labels.
    """
    images, labels = _collected(read_split(source, split), split)
    num_classes = int(labels.max()) + 1
    classes = class_names(source) or [str(label) for label in range(num_classes)]
    digest = hashlib.sha256(json.dumps([list(images.shape), classes]).encode())
    digest.update(images.data)
    digest.update(labels.tobytes())
    write_examples(Examples(images, labels), path)
    return {
        "num_examples": len(labels),
        "num_classes": num_classes,
        "classes": classes,
        "shape": list(images.shape[1:]),
        "digest": digest.hexdigest(),
    }


def write_examples(examples: Examples, path: Path) -> None:
    """Write decoded examples for `attach`."""
    images, labels = examples.images, examples.labels
    width = int(np.prod(images.shape[1:]))
    flat = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(labels), [None, pa.py_buffer(images)])
    schema = pa.schema(
        [("image", pa.binary(width)), ("label", pa.int64())],
        metadata={"shape": ",".join(str(size) for size in images.shape[1:])},
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([flat, pa.array(labels)], schema=schema))


def attach(path: Path) -> Examples:
    """Map a decoded split; costs milliseconds whatever its size."""
    with pa.memory_map(str(path)) as mapped:
        reader = pa.ipc.open_file(mapped)
        batch = reader.get_batch(0)
    shape = tuple(int(size) for size in reader.schema.metadata[b"shape"].split(b","))
    pixels = np.frombuffer(batch.column(0).buffers()[1], dtype=np.uint8, count=len(batch) * int(np.prod(shape)))
    return Examples(pixels.reshape(len(batch), *shape), batch.column(1).to_numpy())


def _collected(examples: Iterator[tuple[Image, int]], split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    images: list[Image] = []
    labels: list[int] = []
    for image, label in examples:
        if images:
            image = as_shaped(image, images[0].shape, f"example {len(images)} of {split}")
        if label < 0:
            raise DataError(f"labels must be 0 or more; example {len(labels)} of {split} has {label}")
        images.append(image)
        labels.append(label)
    if not images:
        raise DataError(f"the {split} split must hold at least one example")
    return np.stack(images), np.asarray(labels, dtype=np.int64)
