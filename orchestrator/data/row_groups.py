"""Encoded pictures in Parquet files, and what a file tells of itself without being read."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.sources import Source, columns_of


def picture_columns(path: Path, source: Source) -> tuple[str, str]:
    """The column of encoded images, as Parquet names it ("image" or "image.bytes"), and that of labels."""
    schema = pq.read_schema(path)
    image, label = columns_of(schema, source, path)
    return (f"{image}.bytes" if pa.types.is_struct(schema.field(image).type) else image), label


def encoded_bytes(group: Any, column: str) -> int:
    """How large a row group's encoded pictures are, in memory.

    Args:
        group: its metadata, as pyarrow has it.
    """
    sizes = {group.column(place).path_in_schema: group.column(place) for place in range(group.num_columns)}
    return int(sizes[column].total_uncompressed_size)


def footer(path: Path) -> bytes:
    """The bytes of a Parquet file's footer: counts, sizes, places and statistics of all its columns."""
    with path.open("rb") as handle:
        handle.seek(-8, 2)
        (length,) = struct.unpack("<I", handle.read(4))
        handle.seek(-8 - length, 2)
        return handle.read(length)


def read_group(path: Path, group: int, column: str) -> pa.Array:
    """The encoded pictures of a row group, binary (rows,); no other column is read."""
    with pq.ParquetFile(path) as file:
        chunks = file.read_row_group(group, columns=[column], use_threads=False).column(0).chunks
    chunk = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    return chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk


def first_picture(path: Path, column: str) -> bytes:
    """The first encoded picture of a file that has one."""
    with pq.ParquetFile(path) as file:
        batch = next(file.iter_batches(batch_size=1, columns=[column]))
    cell = batch.column(0)[0].as_py()
    content: bytes = cell["bytes"] if isinstance(cell, dict) else cell
    return content
