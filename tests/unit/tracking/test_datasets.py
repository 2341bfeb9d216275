"""A sweep's splits as dataset inputs: digests that say what is in them, found without opening anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from orchestrator.results.store import Home
from orchestrator.spec.recipe import DataSettings
from orchestrator.tracking.datasets import dataset_inputs, split_digest


@pytest.mark.parametrize(
    ("context", "settings", "same"),
    [
        ("train", {"split_seed": 1}, False),
        ("train", {"max_train": 5}, False),
        ("train", {"max_val": 5}, True),
        ("val", {"max_val": 5}, False),
        ("val", {"val_fraction": 0.2}, False),
        ("val", {"max_train": 5}, True),
        ("test", {"split_seed": 1, "max_val": 5}, True),
    ],
)
def test_a_digest_depends_on_what_decides_the_split_and_on_nothing_else(context: str, settings: object, same: bool) -> None:
    assert isinstance(settings, dict)
    before, after = (split_digest("content", data, context) for data in (DataSettings(), DataSettings(**settings)))
    assert (before == after) == same
    assert len(before) <= 36
    assert split_digest("other", DataSettings(), context) != before


def test_the_digest_is_that_of_the_decoded_data_and_is_kept_with_the_sweep(tmp_path: Path) -> None:
    from orchestrator.data.splits import split_train
    from orchestrator.training.process import Process
    from orchestrator.trial.stages import StageStore
    from orchestrator.trial.workshop import Workshop

    home, data = Home(tmp_path / "home"), DataSettings(max_train=700)
    sweep = home.sweep("a")
    sweep.path.mkdir(parents=True)
    unknown = dataset_inputs(home, sweep, data)
    assert not (sweep.path / "data.json").exists()
    folder = Workshop(StageStore(home.stages), Process()).split(data, "train")
    meta = json.loads((folder / "meta.json").read_text())
    splits = split_train(folder / "images.arrow", 10, data.val_fraction, data.split_seed, data.max_train, data.max_val)
    found = dataset_inputs(home, sweep, data)
    assert json.loads((sweep.path / "data.json").read_text()) == {
        "digest": meta["digest"],
        "num_train": len(splits.train),
        "num_val": len(splits.val),
    }
    for context, each in found.items():
        assert each.dataset.digest == split_digest(meta["digest"], data, context) != unknown[context].dataset.digest
        assert [(tag.key, tag.value) for tag in each.tags] == [("mlflow.data.context", context)]
        assert each.dataset.name == "digits"
    assert json.loads(found["train"].dataset.profile)["num_train"] == 700
    shutil.rmtree(home.stages)
    assert dataset_inputs(home, sweep, data)["val"].dataset.digest == found["val"].dataset.digest


def test_data_that_is_not_on_this_machine_has_a_digest_of_its_settings(tmp_path: Path) -> None:
    home = Home(tmp_path)
    data = DataSettings(source="imagefolder", path=f"/gone/{'<script>🚀' * 500}")
    found = dataset_inputs(home, home.sweep("a"), data)["train"].dataset
    assert len(found.name) <= 400
    assert len(found.source) <= 65535
    assert json.loads(found.source)["uri"].startswith("/gone/<script>")
    assert found.digest == dataset_inputs(home, home.sweep("b"), data)["train"].dataset.digest
