"""A sweep's data as MLflow's dataset inputs: which split, and a digest of all that decides what is in it.

The digest of the pixels and labels is known where the training split has been decoded. It is kept with the sweep then, in
`data.json`: the cache may go, the data may lie elsewhere, and the sweep is shown with the same digest all the same.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.results.files import as_json, read_json, write_once
from orchestrator.results.store import Home, Sweep
from orchestrator.spec.recipe import DataSettings
from orchestrator.tracking import limits

CONTEXT = "mlflow.data.context"
_CUT: dict[str, tuple[str, ...]] = {
    "train": ("val_fraction", "split_seed", "max_train"),
    "val": ("val_fraction", "split_seed", "max_val"),
    "test": (),
}
_DIGEST = 32  # characters; MLflow takes 36


def dataset_inputs(home: Home, sweep: Sweep, data: DataSettings) -> dict[str, Any]:
    """DatasetInputs by context: what trained, what validated, and what a picked model was tested on. Nothing is opened."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    known = _content(home, sweep, data)
    name = Path(data.path).name if data.path else data.name or data.source
    source = {"uri": limits.text(data.path)} if data.path else {"tags": {"source": data.source, "name": data.name or ""}}
    found = {}
    for context, cut in _CUT.items():
        profile = {key: known[key] for key in (f"num_{context}",) if key in known}
        dataset = Dataset(
            name=limits.text(name or data.source, 400),
            digest=split_digest(known["digest"], data, context),
            source_type="local" if data.path else "code",  # MLflow reads no others back
            source=json.dumps(source),
            profile=json.dumps(profile | {"split": context} | {key: getattr(data, key) for key in cut}),
        )
        found[context] = DatasetInput(dataset, tags=[InputTag(CONTEXT, context)])
    return found


def split_digest(content: str, data: DataSettings, context: str) -> str:
    """What identifies a split: the content that it is cut from, and those settings that decide how."""
    cut = {key: getattr(data, key) for key in _CUT[context]}
    return hashlib.sha256(json.dumps([content, context, cut]).encode()).hexdigest()[:_DIGEST]


def _content(home: Home, sweep: Sweep, data: DataSettings) -> dict[str, Any]:
    """The digest of what the data is, and how many examples of it train and validate where that is known."""
    file = sweep.path / "data.json"
    kept: dict[str, Any] | None = read_json(file)
    if kept is not None:
        return kept
    decoded, files = _from_stages(home, data)
    if decoded is None:
        return {"digest": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()}
    from orchestrator.data.splits import train_val_indices

    counts = decoded["num_examples"], data.val_fraction, data.split_seed, data.max_train, data.max_val
    train, val = train_val_indices(*counts)
    found = {"digest": decoded["digest"], "num_train": len(train), "num_val": len(val)}
    write_once(file, as_json(found))
    return found


def _from_stages(home: Home, data: DataSettings) -> tuple[dict[str, Any] | None, Any]:
    """What the stage store says of the decoded or listed training split; and what is known without: names, sizes, times."""
    from orchestrator.data.sources import Source, fingerprint
    from orchestrator.trial.stages import stage_key

    columns = data.image_column, data.label_column
    # As workshop.source_of has it, which needs torch.
    source = Source(data.source, data.path, data.name, data.download, *columns, data.image_size, data.image_fit)
    try:
        files = fingerprint(source, "train")
    except (OrchestratorError, OSError):  # the data is not on this machine
        return None, data.model_dump(mode="json", exclude={"download", "memory_gb"})
    for kind in ("decode", "list"):
        meta: dict[str, Any] | None = read_json(home.stages / stage_key(f"{kind}-train", files, [], {}) / "meta.json")
        if meta is not None:
            return meta, files
    return None, files
