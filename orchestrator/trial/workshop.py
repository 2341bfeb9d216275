"""What one process keeps between trials: the data on its device, and the teacher. Everything else starts fresh."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from orchestrator.data.batches import DeviceData, Normalizer
from orchestrator.data.decode import Examples, attach, decode_split, write_examples
from orchestrator.data.listing import Listing, decoded_bytes, list_split, open_listing
from orchestrator.data.sources import Source, fingerprint
from orchestrator.data.splits import IMAGES, Splits, moments, sample_batches, split_train, train_val_indices
from orchestrator.data.stream import StreamedData, as_examples, decoded_rows
from orchestrator.results.files import as_json
from orchestrator.spec.recipe import DataSettings
from orchestrator.training.process import Process
from orchestrator.trial.stages import StageStore, stage_key


@dataclass(frozen=True)
class Material:
    """A dataset, split: on the device, or streamed to it."""

    splits: Splits
    normalizer: Normalizer
    train: DeviceData | StreamedData
    val: DeviceData | StreamedData
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

    def split(self, data: DataSettings, split: str) -> Path:
        """The folder of a split: decoded (`images.arrow`) or, where that would not fit, listed; with `meta.json`."""
        source = source_of(data)
        key = stage_key(f"decode-{split}", fingerprint(source, split), [], {})

        def decode(folder: Path) -> None:
            with self.process.permit():
                meta = decode_split(source, split, folder / IMAGES)
            (folder / "meta.json").write_bytes(as_json(meta))

        def enlist(folder: Path) -> None:
            (folder / "meta.json").write_bytes(as_json(list_split(source, split, folder)))

        if not _fits(source, split, data):
            key, decode = stage_key(f"list-{split}", fingerprint(source, split), [], {}), enlist
        return self.store.obtain(key, self.process, decode, stage="data", alone=True, keep=True)[0]

    def _attached(self, data: DataSettings, channels_last: bool) -> Material:
        folder = self.split(data, "train")
        meta = json.loads((folder / "meta.json").read_text())
        if not (folder / IMAGES).exists():
            return self._streamed(data, channels_last, open_listing(folder, meta), meta["classes"])
        splits = split_train(
            folder / IMAGES,
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

    def _streamed(self, data: DataSettings, channels_last: bool, listing: Listing, classes: list[str]) -> Material:
        """A dataset that stays where it is; its validation split is decoded where it fits into a quarter of the memory."""
        train, val = train_val_indices(len(listing), data.val_fraction, data.split_seed, data.max_train, data.max_val)
        memory = _memory(data)
        whole = len(val) * listing.image_bytes <= memory // 4
        folder = self._prepared(data, listing, train, val if whole else None)
        held_out = attach(folder / IMAGES) if whole else as_examples(listing, val)
        mean, std = (np.asarray(values, np.float32) for values in json.loads((folder / "meta.json").read_text()))
        device = self.process.device
        normalizer = Normalizer(mean, std, device)
        how = normalizer, device, channels_last
        fit = StreamedData(listing, train, *how, memory, self.process.aside)
        judged = DeviceData(held_out, *how) if whole else StreamedData(listing, val, *how, memory, self.process.aside)
        # What is drawn for an epoch hangs on the window, and on the memory only so far.
        digest = hashlib.sha256(json.dumps([listing.digest, "streamed", fit.window_bytes]).encode()).hexdigest()
        splits = Splits(as_examples(listing, train), held_out, mean, std, len(classes))
        return Material(splits, normalizer, fit, judged, listing.shape, classes, digest)

    def _prepared(
        self, data: DataSettings, listing: Listing, train: npt.NDArray[np.int64], val: npt.NDArray[np.int64] | None
    ) -> Path:
        """The folder of what is taken from a listed split once: the statistics, and the validation split decoded."""

        def make(folder: Path) -> None:
            with self.process.permit():
                batches = (decoded_rows(listing, train[places]) for places in sample_batches(len(train)))
                mean, std = moments(batches)
                if val is not None:
                    write_examples(Examples(decoded_rows(listing, val), listing.labels[val]), folder / IMAGES)
            (folder / "meta.json").write_bytes(as_json([mean.tolist(), std.tolist()]))

        cut = data.model_dump(include={"val_fraction", "split_seed", "max_train", "max_val"})
        key = stage_key("prepare-train", cut, [listing.digest], {"val": val is not None})
        return self.store.obtain(key, self.process, make, stage="data", alone=True, keep=True)[0]


def _memory(data: DataSettings) -> int:
    return int(data.memory_gb * 1e9)


def _fits(source: Source, split: str, data: DataSettings) -> bool:
    """Whether a split may be decoded whole."""
    size = decoded_bytes(source, split)
    return size is None or size <= _memory(data)


def source_of(data: DataSettings) -> Source:
    """The settings that decide what is decoded, without those that decide how it is split."""
    columns = data.image_column, data.label_column
    return Source(data.source, data.path, data.name, data.download, *columns, data.image_size, data.image_fit)
