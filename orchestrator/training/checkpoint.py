"""A training between two epochs: enough to go on from it as if nothing had happened.

Tensors and plain facts in one safetensors file, no pickles. What is not in it follows from the number of the epoch alone: the
batches, and the seed of everything that is drawn.
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from orchestrator.training.process import Process

Write = Callable[[Path, bytes], None]
"""Replaces a file: whoever reads it sees the old content or the new, whatever happens meanwhile."""


@dataclass(frozen=True)
class Checkpoint:
    """What a training was after an epoch.

    Args:
        tensors: weights and statistics as "model.<name>", what an optimizer remembers as "optimizer.<part>.<number>.<name>".
        facts: everything else, as JSON holds it.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of a training, not copied. Groups and rates are left out: they follow from the settings."""
    found: dict[str, Tensor] = {f"model.{name}": value for name, value in model.state_dict().items()}
    for part, inside in enumerate(_parts(optimizer.state_dict())):
        for number, remembered in inside["state"].items():
            found |= {f"optimizer.{part}.{number}.{name}": value for name, value in remembered.items()}
    return found


def load_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `tensors_of` gave, in place: weights stay where they lie in memory, and as."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(tensors[f"model.{name}"])
    state = optimizer.state_dict()
    parts = _parts(state)
    for part in parts:
        part["state"] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, place, number, what = name.split(".", 3)
            parts[int(place)]["state"].setdefault(int(number), {})[what] = value
    optimizer.load_state_dict(state)


def check_tensors(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Hold a checkpoint to the network that it is to be put into.

    Raises:
        ValueError: names, shapes or types of the weights differ; the network was not touched.
    """
    wanted = {f"model.{name}": (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}
    given = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items() if name.startswith("model.")}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise ValueError(f"{name} must be {_told(wanted.get(name))}; the checkpoint's is {_told(given.get(name))}")


def packed(checkpoint: Checkpoint) -> bytes:
    """As a safetensors file, with the facts, the layout of each tensor in memory and a checksum in its header."""
    tensors = dict(sorted(checkpoint.tensors.items()))  # equal checkpoints are equal files
    layouts = {name: list(value.stride()) for name, value in tensors.items()}
    flat = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps({"facts": checkpoint.facts, "layouts": layouts})
    return save(flat, {"checkpoint": _checksum(flat, text) + text})


def unpacked(content: bytes) -> Checkpoint:
    """What `packed` was given, on the processor, each tensor in memory of its own and laid out as it was.

    Raises:
        ValueError: it is cut short, no such file, or not what was written.
    """
    try:
        flat = load(content)
        (length,) = struct.unpack_from("<Q", content)  # safetensors: the header's length, then the header as JSON
        note = json.loads(content[8 : 8 + length])["__metadata__"]["checkpoint"]
        checksum, text = note[:8], note[8:]
        said = json.loads(text)
        facts, layouts = dict(said["facts"]), said["layouts"]
    except (SafetensorError, KeyError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"it must be a whole checkpoint: {type(error).__name__}: {error}") from error
    if _checksum(flat, text) != checksum:
        raise ValueError("it must hold what was written; its checksum differs")
    return Checkpoint({name: _laid_out(value, layouts[name]) for name, value in flat.items()}, facts)


class Keeper:
    """Keeps the newest checkpoint of one training in a file, for whoever runs the same training after this one was cut short.

    In memory there is one of every epoch, on disk one of now and then: written when the last is old enough, and when an
    exception leaves the context (it was stopped or given up). What a kill costs is `least_s` seconds and an epoch at most; tiny
    epochs do not wait for the disk. Which epochs are written depends on the clock, what comes of the training does not.

    Args:
        path: on storage that rank 0 of the next training sees.
        least_s: seconds between two files.
    """

    def __init__(self, path: Path, process: Process, write: Write, least_s: float) -> None:
        self._path, self._process, self._write, self._least_s = path, process, write, least_s
        self._pending: bytes | None = None
        self._written = time.monotonic()

    def found(self) -> bytes | None:
        """What the last training left, read by rank 0 for all."""
        content = self._path.read_bytes() if self._process.first and self._path.is_file() else None
        agreed: bytes | None = self._process.agreed(content)
        return agreed

    def offer(self, checkpoint: Callable[[], Checkpoint]) -> None:
        """Keep an epoch's checkpoint; called after every epoch, and of use on rank 0 only."""
        if not self._process.first:
            return
        self._pending = packed(checkpoint())
        if time.monotonic() - self._written >= self._least_s:
            self._flush()

    def _flush(self) -> None:
        if self._pending is not None:
            self._write(self._path, self._pending)
            self._pending, self._written = None, time.monotonic()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._flush()


def _parts(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The state dicts of the optimizers inside one, or its own."""
    parts: list[dict[str, Any]] = state.get("inside", [state])
    return parts


def _checksum(flat: Mapping[str, Tensor], text: str) -> str:
    """CRC-32 of the text and of all tensors with their names and types: eight hexadecimal digits."""
    found = zlib.crc32(text.encode())
    for name, value in sorted(flat.items()):
        found = zlib.crc32(f"{name} {_told((tuple(value.shape), value.dtype))}".encode(), found)
        found = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def _laid_out(value: Tensor, strides: list[int]) -> Tensor:
    """The same values in memory that is laid out so: an optimizer may take another path, and round otherwise, over another."""
    return torch.empty_strided(value.shape, strides, dtype=value.dtype).copy_(value)


def _told(kind: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "absent" if kind is None else f"{kind[1]} of shape {kind[0]}"
