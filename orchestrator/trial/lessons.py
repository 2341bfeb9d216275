"""What a teacher says about a seeded view of the training data: computed once, stored, and mapped by every trial.

Order and augmentation of an epoch depend on its seed alone, so that its batches are the same in every trial. The logits are
float32 as the loss reads them, so that nothing is lost, and a distilled step costs what a plain one costs.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.errors import TrialError
from orchestrator.training.loop import in_parts
from orchestrator.training.precision import arithmetic
from orchestrator.training.process import Process, seeded
from orchestrator.trial.stages import StageStore

FILE = "lessons.arrow"
_BATCHES_PER_QUESTION = 20

View = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Starts this rank's batches of one epoch, (images, labels), the same at every call."""


class LessonsError(TrialError):
    """A file of logits that cannot be read whole."""


def lessons(
    store: StageStore,
    key: str,
    process: Process,
    teacher: nn.Module,
    view: View,
    precision: str,
    accumulation: int,
    ask: Callable[[int], None],
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This rank's batches of an epoch: images, labels (B,) and the teacher's logits, float32 (B, C).

    The logits are those that the teacher would give in the step, bit for bit. All ranks compute what is missing together,
    each for its own batches; where another gang does already, they wait for it.

    Args:
        key: hash of all that decides them: teacher, seed, batch size, augmentation, layout, the two below, and world size and
            device and their like.
        precision: of the training step.
        accumulation: how many parts the step takes a batch in. A teacher's last bit may depend on how many images it sees.
        ask: called on every rank with the batch's number, each 20 batches that are computed; may raise to end it.

    Raises:
        LessonsError: the file is damaged; on every rank at the same batch.
    """

    def make(folder: Path) -> None:
        with seeded(0):  # training goes on from the same generators, whether this is computed or not
            rows = spoken(teacher, view(), precision, accumulation, process, ask)
            if process.first:
                try:
                    write_lessons(folder / FILE, rows)
                except OSError:
                    _to_the_end(rows)  # the disk is full, say: the other ranks do not know it, and compute on
                    raise
            else:
                _to_the_end(rows)

    folder, _ = store.obtain(key, process, make, stage="lessons")
    remembered = read_lessons(folder / FILE, process.rank, process.world_size)
    for (images, labels), logits in zip(view(), remembered, strict=True):
        yield images, labels, _moved(logits, process.device)


def spoken(
    teacher: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    precision: str,
    accumulation: int,
    process: Process,
    ask: Callable[[int], None],
) -> Iterator[Tensor]:
    """The frozen teacher's logits of all ranks, batch by batch in the epoch's order: float32 (B, C) on the CPU."""
    teacher.eval().requires_grad_(False)
    for number, (images, _) in enumerate(batches):
        if number % _BATCHES_PER_QUESTION == 0:
            ask(number)
        with process.permit(), torch.no_grad():
            with arithmetic(precision, process.device):
                logits = torch.cat([teacher(part).float() for (part,) in in_parts((images,), accumulation)])
            rows = _gathered(logits, process).cpu()
        yield rows


def write_lessons(path: Path, batches_BC: Iterable[Tensor]) -> None:
    """Write logits as an Arrow IPC file: a column of float32 lists, a record batch for each training batch.

    Each carries a checksum: a machine that dies may leave a file of full length with holes in it.
    """
    with contextlib.ExitStack() as stack:
        writer, schema = None, None
        for rows in batches_BC:
            values = rows.numpy()
            if writer is None:
                schema = pa.schema([("logits", pa.list_(pa.float32(), values.shape[1]))])
                writer = stack.enter_context(pa.ipc.new_file(stack.enter_context(pa.OSFile(str(path), "wb")), schema))
            column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
            writer.write_batch(pa.record_batch([column], schema=schema), {"crc32": str(zlib.crc32(values.data))})


def read_lessons(path: Path, rank: int, world_size: int) -> Iterator[Tensor]:
    """A rank's rows of every batch, float32 (B / world_size, C); the file is mapped and not read ahead.

    Raises:
        LessonsError: it is cut short, not such a file, or not what was written.
    """
    try:
        with pa.memory_map(str(path)) as mapped:
            reader = pa.ipc.open_file(mapped)
            for place in range(reader.num_record_batches):
                batch, notes = reader.get_batch_with_custom_metadata(place)
                values = batch.column(0).values.to_numpy().reshape(len(batch), -1)
                if str(zlib.crc32(values.data)).encode() != dict(notes or {}).get(b"crc32"):
                    raise LessonsError(f"{path} must hold what was written; batch {place} differs: remove {path.parent}")
                share = len(batch) // world_size
                yield torch.tensor(values[rank * share : (rank + 1) * share])
    except (pa.ArrowException, OSError) as error:
        raise LessonsError(f"{path} must be a whole Arrow file: {error}; remove {path.parent}") from error


def _to_the_end(rows: Iterator[Tensor]) -> None:
    for _ in rows:
        pass


def _gathered(rows: Tensor, process: Process) -> Tensor:
    """The rows of all ranks, in their order."""
    if process.world_size == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(process.world_size)]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def _moved(rows: Tensor, device: torch.device) -> Tensor:
    """Onto the device, without waiting for what it is doing."""
    return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows
