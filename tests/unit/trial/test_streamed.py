"""A trial whose data stays on disk: trained, calibrated and measured like any other."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from orchestrator.data.batches import DeviceData
from orchestrator.data.sources import Source, read_split
from orchestrator.data.stream import StreamedData
from orchestrator.measure.accuracy import classification
from orchestrator.measure.runtime import Runtime
from orchestrator.spec.recipe import DataSettings
from tests.unit.trial.conftest import Bench


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    for place, (image, label) in enumerate(read_split(Source("digits"), "train")):
        if place < 240:
            path = root / "train" / str(label) / f"{place:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Pillow.fromarray(image[0]).save(path)
    return root


def settings(root: Path, memory_bytes: int) -> dict[str, Any]:
    data = {"source": "imagefolder", "path": str(root), "memory_gb": memory_bytes / 1e9, "val_fraction": 0.2}
    return {**data, "max_train": None, "max_val": None}


@pytest.mark.parametrize(("memory", "val"), [(100_000, DeviceData), (14_000, DeviceData), (6_000, StreamedData)])
def test_memory_decides_what_is_streamed_and_changes_no_example(
    bench: Bench, digits_folder: Path, memory: int, val: type
) -> None:
    """Decoded, 240 digits take 15,360 bytes and the 48 that validate 3,072, which is less than a quarter of 14,000."""
    material = bench.cold().material(DataSettings(**settings(digits_folder, memory)), channels_last=True)
    whole = bench.cold().material(DataSettings(**settings(digits_folder, 10**9)), channels_last=True)
    assert isinstance(material.train, DeviceData if memory == 100_000 else StreamedData)
    assert type(material.val) is val
    assert (material.shape, material.classes) == (whole.shape, whole.classes)
    assert (material.digest == whole.digest) == (memory == 100_000)
    np.testing.assert_array_equal(material.splits.mean, whole.splits.mean)
    np.testing.assert_array_equal(material.splits.std, whole.splits.std)
    np.testing.assert_array_equal(material.splits.val.labels, whole.splits.val.labels)
    for mine, theirs in ((material.train.epoch, whole.train.epoch), (material.val.epoch, whole.val.epoch)):
        for (images, labels), (others, other_labels) in zip(
            mine(16, 3, 0, 1, "shift"), theirs(16, 3, 0, 1, "shift"), strict=True
        ):
            assert torch.equal(images, others)
            assert torch.equal(labels, other_labels)


def test_a_streamed_trial_ends_with_what_its_file_says_of_the_decoded_split(bench: Bench, digits_folder: Path) -> None:
    few = {"num_calibration": 8, "method": "ptq"}
    attack = {"attack": {"num_images": 20, "steps": 1}, "num_explained": 4}
    changed = {"data": settings(digits_folder, 6_000), "quantization": few, "measurement": attack}
    result, folder = bench.run(changed, workshop=bench.cold())
    assert result.state == "COMPLETE", result.failure
    whole = bench.cold().material(DataSettings(**settings(digits_folder, 10**9)), channels_last=True)
    logits = Runtime(folder / "model.onnx", 1).logits(whole.splits.val.images)
    assert result.measurements["num_eval_samples"] == 48
    for metric, value in classification(logits, whole.splits.val.labels).items():
        assert result.measurements[metric] == value


def test_decoding_asks_for_a_permit_beside_the_trials_own(
    bench: Bench, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[str] = []

    @contextlib.contextmanager
    def aside() -> Any:
        entered.append("aside")
        yield

    workshop = bench.cold()
    monkeypatch.setattr(workshop, "process", type(workshop.process)(aside=aside))
    material = workshop.material(DataSettings(**settings(digits_folder, 14_000)), channels_last=True)
    assert entered == []
    assert len(list(material.train.epoch(64, 0, 0, 1, "none"))) == 3
    assert entered == ["aside"] * 3
