"""What one process keeps between trials: the data on its device, and the teacher. Everything else starts fresh."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from orchestrator.data.batches import DeviceData, Normalizer
from orchestrator.data.decode import decode_split
from orchestrator.data.sources import Source, fingerprint
from orchestrator.data.splits import Splits, split_train
from orchestrator.results.files import as_json
from orchestrator.spec.recipe import DataSettings
from orchestrator.training.process import Process
from orchestrator.trial.stages import StageStore, stage_key


@dataclass(frozen=True)
class Material:
    """A dataset, split and on the device."""

    splits: Splits
    normalizer: Normalizer
    train: DeviceData
    val: DeviceData
    shape: tuple[int, int, int]
    classes: list[str]
    digest: str


@dataclass(frozen=True)
class Teacher:
    """A teacher in memory: the key of its stage, the network, and the curve that every trial records with it."""

    key: str
    model: nn.Module
    curve: list[dict[str, Any]]


class Workshop:
    """Warm things, each under the key that it depends on."""

    def __init__(self, store: StageStore, process: Process) -> None:
        self.store, self.process = store, process
        self._material: tuple[object, Material] | None = None
        self.teacher: Teacher | None = None
        self.dense: tuple[str, npt.NDArray[np.float32]] | None = None  # a student's key, its logits on the validation split

    def material(self, data: DataSettings, channels_last: bool) -> Material:
        """The training and validation split; decoded by the first process that asks, mapped by every other."""
        wanted = (data, channels_last)
        if self._material is None or self._material[0] != wanted:
            self._material = (wanted, self._attached(data, channels_last))
        return self._material[1]

    def decoded(self, data: DataSettings, split: str) -> Path:
        """The folder of a decoded split: `images.arrow` and `meta.json`."""
        source = source_of(data)
        key = stage_key(f"decode-{split}", fingerprint(source, split), [], {})

        def make(folder: Path) -> None:
            with self.process.permit():
                meta = decode_split(source, split, folder / "images.arrow")
            (folder / "meta.json").write_bytes(as_json(meta))

        return self.store.obtain(key, self.process, make, alone=True)[0]

    def _attached(self, data: DataSettings, channels_last: bool) -> Material:
        folder = self.decoded(data, "train")
        meta = json.loads((folder / "meta.json").read_text())
        splits = split_train(
            folder / "images.arrow",
            len(meta["classes"]),
            data.val_fraction,
            data.split_seed,
            data.max_train,
            data.max_val,
        )
        device = self.process.device
        normalizer = Normalizer(splits.mean, splits.std, device)
        return Material(
            splits,
            normalizer,
            DeviceData(splits.train, normalizer, device, channels_last),
            DeviceData(splits.val, normalizer, device, channels_last),
            tuple(meta["shape"]),
            meta["classes"],
            meta["digest"],
        )


def source_of(data: DataSettings) -> Source:
    """The settings that decide what is decoded, without those that decide how it is split."""
    return Source(data.source, data.path, data.name, data.download, data.image_column, data.label_column, data.image_size)
