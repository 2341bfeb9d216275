"""Small datasets on disk, in the layouts that people have."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import settings
from PIL import Image as Pillow

from orchestrator.data.batches import DeviceData, Normalizer
from orchestrator.data.decode import Examples
from orchestrator.data.sources import Image, Source, read_split

torch.set_num_threads(1)
settings.register_profile("shared machine", deadline=None, max_examples=60)
settings.load_profile("shared machine")

Rows = Sequence[tuple[Image, int]]


@pytest.fixture(scope="session")
def digits() -> list[tuple[Image, int]]:
    """The first sixty training digits: every class is among them."""
    return list(islice(read_split(Source("digits"), "train"), 60))


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """Image (C, H, W) to the bytes of a picture file."""

    def encode(image: Image, kind: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        Pillow.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, kind)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def write_parquet(encoded: Callable[..., bytes]) -> Callable[..., None]:
    """Write rows as a Parquet file: "hub" has struct<bytes, path> and class names in the schema, "plain" has bytes."""

    def write(path: Path, rows: Rows, layout: str, names: list[str] | None = None) -> None:
        pictures = [encoded(image) for image, _ in rows]
        if layout == "hub":
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            column = pa.array([{"bytes": picture, "path": f"{i}.png"} for i, picture in enumerate(pictures)], kind)
        else:
            column = pa.array(pictures, pa.binary())
        labels = pa.array([label for _, label in rows], pa.int64())
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
        schema = pa.schema([("image", column.type), ("label", pa.int64())], metadata=metadata)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table([column, labels], schema=schema), path)

    return write


@pytest.fixture(scope="session")
def device_data() -> Callable[..., DeviceData]:
    """A split whose label is the example's number, and whose every pixel is too (modulo 256)."""

    def make(num: int, shape: tuple[int, int, int] = (1, 2, 2), channels_last: bool = False) -> DeviceData:
        labels = np.arange(num, dtype=np.int64)
        images = np.broadcast_to((labels % 256).astype(np.uint8)[:, None, None, None], (num, *shape)).copy()
        mean, std = np.zeros(shape[0], np.float32), np.full(shape[0], 1 / 255, np.float32)
        cpu = torch.device("cpu")
        return DeviceData(Examples(images, labels), Normalizer(mean, std, cpu), cpu, channels_last)

    return make
