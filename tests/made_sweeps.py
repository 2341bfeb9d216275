"""Sweeps as a run would have left them, written from facts: nothing is trained, and files are tiny but real."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from orchestrator.results.files import as_json
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.spec.load import load_job, resolved_text
from tests.conftest import REPOSITORY, SMALL, orchestrator

CLASSES = [str(digit) for digit in range(10)]
SCALE, OFFSET = 1 / (255 * 0.5), -0.25 / 0.5  # of pixels with mean 0.25 and deviation 0.5, as fractions of 255


def complete(number: int, accuracy: float, size: float, latency: float, **more: Any) -> TrialResult:
    """A trial of the quickstart that was measured; the whole trial took 10 s, one after the other."""
    measured = {
        "accuracy": accuracy,
        "size_bytes": size,
        "latency_ms": latency,
        "executor": "onnxruntime 1",
        "device": "cpu",
        "num_eval_samples": 360,
    }
    given = {
        "choice": {"pruning.ratio": 0.25},
        "measurements": measured,
        "started": 10.0 * number,
        "ended": 10.0 * number + 10.0,
    }
    return TrialResult(number, "COMPLETE", **{**given, **more})


def write_sweep(
    home: Path, name: str, results: Sequence[TrialResult], *overrides: str, pending: int = 0, job: str = "jobs/quickstart.yaml"
) -> Sweep:
    """A sweep with these ends, and `pending` proposals more that have not ended."""
    loaded = load_job(REPOSITORY / job, [f"name={name}", *overrides])
    sweep = Home(home).sweep(name)
    sweep.create(resolved_text(loaded))
    for result in results:
        sweep.propose(Proposal(result.number, result.choice, loaded.recipe.model_dump(mode="json")))
        sweep.finish(result)
    first = max((result.number for result in results), default=-1) + 1
    for number in range(first, first + pending):
        sweep.propose(Proposal(number, {}, loaded.recipe.model_dump(mode="json")))
    return sweep


def give_file(sweep: Sweep, result: TrialResult, model: Any | None = None, recipe: Mapping[str, Any] | None = None) -> Path:
    """Put a model and its recipe into a trial's folder, and its size into the record, which must not be there yet."""
    folder = sweep.trial_folder(result.number)
    folder.mkdir(parents=True, exist_ok=True)
    content = (model or linear_model(seed=result.number)).SerializeToString()
    (folder / "model.onnx").write_bytes(content)
    result.measurements["size_bytes"] = len(content)
    (folder / "recipe.json").write_bytes(as_json({"recipe": dict(recipe or {}), "classes": CLASSES}))
    return folder / "model.onnx"


def linear_model(seed: int = 0, classes: int = 10, shape: tuple[int, int, int] = (1, 8, 8)) -> Any:
    """Pixels (N, C, H, W) to logits (N, classes): normalised, and times a random matrix."""
    weight = np.random.default_rng(seed).standard_normal((int(np.prod(shape)), classes)).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["image", "scale"], ["a"]),
        helper.make_node("Add", ["a", "offset"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "weight"], ["logits"]),
    ]
    return model_of(nodes, {"weight": weight}, classes, shape)


def model_of(
    nodes: Sequence[Any],
    constants: Mapping[str, npt.NDArray[Any]],
    classes: int = 10,
    shape: tuple[int, int, int] = (1, 8, 8),
    functions: Sequence[Any] = (),
) -> Any:
    """A model with the names that exported files have, of the operator set that they are in."""
    ends = np.full((1, shape[0], 1, 1), SCALE, np.float32), np.full((1, shape[0], 1, 1), OFFSET, np.float32)
    every = {"scale": ends[0], "offset": ends[1], **constants}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(values, name) for name, values in every.items()],
    )
    imports = [helper.make_opsetid("", 21), *([helper.make_opsetid("orchestrator.packing", 1)] if functions else [])]
    model = helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=10)
    onnx.checker.check_model(model)
    return model


def train(home: Path, sweep: Sweep, number: int, *overrides: str) -> TrialResult:
    """Run one small recipe as a trial of a sweep, as `orchestrator trial` does; takes some seconds.

    Distilled, pruned, and quantized to 4 bits where no override says otherwise.
    """
    folder = sweep.trial_folder(number)
    told = orchestrator("trial", "jobs/quickstart.yaml", *SMALL, *_COMPRESSED, *overrides, "--to", folder, home=home)
    assert told.returncode == 0, told.stderr[-3000:]
    result = replace(TrialResult.from_json(json.loads(told.stdout)), number=number)
    sweep.propose(Proposal(number, result.choice, json.loads((folder / "recipe.json").read_text())["recipe"]))
    sweep.finish(result)
    return result


_COMPRESSED = [
    f"--set=recipe.{setting}"
    for setting in (
        "pruning.ratio=0.5",
        "quantization.method=qat",
        "quantization.weight_bits=4",
        "distillation.weight=0.5",
    )
]
