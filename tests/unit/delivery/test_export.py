"""Exported folders: whole or absent, the very file that was measured, and running without us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from orchestrator.compression.packing import function, store_codes
from orchestrator.data.sources import Source, read_split
from orchestrator.data.splits import train_val_indices
from orchestrator.delivery.card import subject_of
from orchestrator.delivery.export import export, measured_file
from orchestrator.errors import UsageError
from orchestrator.measure.runtime import Runtime
from orchestrator.pareto.front import find_front
from orchestrator.results.store import Home
from orchestrator.spec.load import read_resolved
from tests.conftest import orchestrator
from tests.made_sweeps import CLASSES, complete, give_file, linear_model, model_of, train, write_sweep

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)

# Runs a script with these packages out of reach, whatever is installed.
_ALONE = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "orchestrator", "onnx", "mlflow", "ray"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

Write = Callable[..., dict[str, int]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Exports trial 0 of a sweep that has one, of a model, to `tmp_path / "out"`."""

    def exported(model: Any = None, form: str = "onnx", folder: str = "out", *, force: bool = False) -> dict[str, int]:
        sweep = Home(tmp_path).sweep("night")
        if not sweep.exists():
            sweep = write_sweep(tmp_path, "night", [])
            result = complete(0, 0.0, 0, 0.1)
            file = give_file(sweep, result, model)
            labels = np.arange(len(IMAGES)) % 10
            result.measurements["accuracy"] = float((Runtime(file, 1).logits(IMAGES).argmax(1) == labels).mean())
            sweep.finish(result)
        job, (result,) = read_resolved(sweep.job_file), sweep.results()
        subject = subject_of(sweep, job, find_front([result], job.objectives), result)
        return export(Home(tmp_path), sweep, subject, "# a card\n", tmp_path / folder, form, force=force)

    return exported


def alone(script: Path, *args: Path) -> str:
    """What a script of an exported folder prints where it finds numpy and onnxruntime, and nothing of ours."""
    environment = {"PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", _ALONE, str(script), *map(str, args)]
    done = subprocess.run(command, cwd=script.parent.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_exported_folder_runs_alone_and_predicts_what_was_recorded(tmp_path: Path, write):
    write()
    np.save(tmp_path / "images.npy", IMAGES)
    predicted = alone(tmp_path / "out" / "run.py", tmp_path / "images.npy").split()
    (result,) = Home(tmp_path).sweep("night").results()
    labels = [CLASSES[index % 10] for index in range(len(IMAGES))]
    right = sum(one == other for one, other in zip(predicted, labels, strict=True))
    assert right / len(IMAGES) == result.measurements["accuracy"]
    logits = Runtime(tmp_path / "out" / "model.onnx", 1).logits(IMAGES)
    assert predicted == [CLASSES[index] for index in logits.argmax(1)]


def test_it_holds_the_very_file_and_all_that_is_needed_to_use_it(tmp_path: Path, write):
    written = write()
    folder = tmp_path / "out"
    measured = Home(tmp_path).sweep("night").trial_folder(0) / "model.onnx"
    assert (folder / "model.onnx").read_bytes() == measured.read_bytes()
    assert json.loads((folder / "labels.json").read_text()) == CLASSES
    told = json.loads((folder / "preprocessing.json").read_text())
    assert (told["shape"], told["layout"], told["range"]) == ([None, 1, 8, 8], "NCHW", [0, 255])
    assert told["normalisation"]["mean"] == pytest.approx([0.25])
    assert told["normalisation"]["std"] == pytest.approx([0.5])
    assert (folder / "card.md").read_text() == "# a card\n"
    assert len((folder / "run.py").read_text().splitlines()) <= 12
    assert written == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(written) == {
        "model.onnx",
        "run.py",
        "labels.json",
        "preprocessing.json",
        "card.md",
        "README.md",
        "SHA256SUMS",
    }
    readme = (folder / "README.md").read_text()
    assert all(name in readme for name in set(written) - {"README.md"})


def test_checksums_are_what_sha256sum_accepts(tmp_path: Path, write):
    write()
    check = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    done = subprocess.run(check, cwd=tmp_path / "out", capture_output=True, text=True, check=True)
    assert done.stdout.count(": OK") == 6
    with (tmp_path / "out" / "run.py").open("a") as file:
        file.write("#")
    assert subprocess.run(check, cwd=tmp_path / "out", capture_output=True, check=False).returncode == 1


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, write):
    (tmp_path / "out").mkdir()
    write()  # an empty one is taken
    before = (tmp_path / "out" / "run.py").stat().st_mtime_ns
    with pytest.raises(UsageError, match="--force replaces an export"):
        write()
    write(force=True)
    assert (tmp_path / "out" / "run.py").stat().st_mtime_ns > before
    (tmp_path / "out" / "mine.txt").write_text("dear to me")
    with pytest.raises(UsageError, match=r"replace an earlier export and nothing else.*mine.txt"):
        write(force=True)
    assert (tmp_path / "out" / "mine.txt").read_text() == "dear to me"
    with pytest.raises(UsageError, match="nothing else"):
        write(folder="sweeps", force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        write(folder="file", force=True)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, write, monkeypatch):
    """The disk is full at the third file: what was there before is there still, and nothing else."""
    write()
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    done = 0

    def full(handle: int) -> None:
        nonlocal done
        done += 1
        if done == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("orchestrator.delivery.export.os.fsync", full)
    for folder, force in (("new", False), ("out", True)):
        done = 0
        with pytest.raises(UsageError, match="No space left on device"):
            write(folder=folder, force=force)
    assert not (tmp_path / "new").exists()
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_link_to_a_folder_is_followed_and_stays(tmp_path: Path, write):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    write()
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real" / "model.onnx").exists()


def test_another_file_than_the_one_that_was_measured_is_refused(tmp_path: Path, write):
    write()
    file = Home(tmp_path).sweep("night").trial_folder(0) / "model.onnx"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(UsageError, match="must be the file that was measured"):
        measured_file(Home(tmp_path).sweep("night"), Home(tmp_path).sweep("night").results()[0])


def test_floats_are_not_packed(tmp_path: Path, write):
    with pytest.raises(UsageError, match=r"must be quantized.*--format onnx"):
        write(form="packed")
    assert not (tmp_path / "out").exists()


def test_a_trial_whose_weights_are_gone_gives_no_program(tmp_path: Path, write):
    with pytest.raises(UsageError, match="the weights of t0000 must be there"):
        write(form="torch")


def quantized_model(bits: int, layout: str, channels: int = 10) -> tuple[Any, np.ndarray]:
    """A linear layer of codes on a grid, and its weights as floats (O, I)."""
    generator = np.random.default_rng(bits)
    limit = 2 ** (bits - 1) - 1
    codes = generator.integers(-limit, limit + 1, (channels, 64)).astype(np.int8)
    codes[0, 0] = limit
    codes[1:5] *= layout != "sparse"  # else zeros would not pay
    step = generator.uniform(0.01, 0.1, channels).astype(np.float32)
    stored = store_codes("fc.weight_codes", codes, bits, layout)  # type: ignore[arg-type]
    nodes = [
        *stored.nodes,
        helper.make_node("DequantizeLinear", ["fc.weight_codes", "fc.step"], ["fc.weight"], axis=0),
        helper.make_node("Transpose", ["fc.weight"], ["w"], perm=[1, 0]),
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    model = model_of(nodes, {"fc.step": step, **stored.constants}, functions=[function(name) for name in stored.functions])
    return model, codes * step[:, None]


def loaded(folder: Path) -> dict[str, np.ndarray]:
    """The weights as the folder's own script reads them."""
    module = ModuleType("unpack")
    module.__file__ = str(folder / "unpack.py")
    exec((folder / "unpack.py").read_text(), module.__dict__)
    return module.load()


@pytest.mark.parametrize("layout", ["plain", "packed", "sparse"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_weights_are_those_of_the_file(bits: int, layout: str, tmp_path: Path, write):
    model, weight = quantized_model(bits, layout)
    write(model, "packed")
    found = loaded(tmp_path / "out")
    np.testing.assert_array_equal(found["fc"], weight.astype(np.float32))
    told = json.loads((tmp_path / "out" / "weights.json").read_text())
    assert told["layers"]["fc"]["bits"] == bits
    assert sum(told["layers"]["fc"]["fields"]) == bits
    rest = 4 * (10 + 2)  # steps, scale and offset
    assert (tmp_path / "out" / "weights.bin").stat().st_size <= -(-640 * bits // 8) + rest + 3
    file = Home(tmp_path).sweep("night").trial_folder(0) / "model.onnx"
    np.testing.assert_array_equal(found["fc"], dequantized(file, "fc"))


def test_packed_weights_are_read_without_us(tmp_path: Path, write):
    write(quantized_model(3, "packed")[0], "packed")
    assert alone(tmp_path / "out" / "unpack.py") == "fc [10, 64] 3 bits\n"


def test_an_incomplete_trial_has_no_model(tmp_path: Path, write):
    write(linear_model())
    sweep = Home(tmp_path).sweep("night")
    (result,) = sweep.results()
    with pytest.raises(UsageError, match="t0000 of 'night' is FAILED"):
        measured_file(sweep, replace(result, state="FAILED"))
    (sweep.trial_folder(0) / "model.onnx").unlink()
    with pytest.raises(UsageError, match="it is gone"):
        measured_file(sweep, result)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qat", "none"])
def test_a_trained_model_in_every_form_predicts_what_was_recorded(method: str, tmp_path: Path):
    """A real trial: pruned, distilled, quantized to 4 bits or not at all."""
    sweep = write_sweep(tmp_path, "night", [])
    result = train(tmp_path, sweep, 0, f"--set=recipe.quantization.method={method}")
    examples = list(read_split(Source("digits"), "train"))
    _, val = train_val_indices(len(examples), 0.25, 0, None, None)
    np.save(tmp_path / "val.npy", np.stack([examples[index][0] for index in val]))
    labels = [str(examples[index][1]) for index in val]
    predicted = {}
    for form in ("onnx", "torch"):
        assert exported(tmp_path, form).returncode == 0
        run = [sys.executable, str(tmp_path / form / "run.py"), str(tmp_path / "val.npy")]
        if form == "onnx":
            predicted[form] = alone(tmp_path / form / "run.py", tmp_path / "val.npy").split()
        else:
            predicted[form] = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    right = sum(one == other for one, other in zip(predicted["onnx"], labels, strict=True))
    assert right / len(labels) == result.measurements["accuracy"]
    shared = sum(one == other for one, other in zip(*predicted.values(), strict=True))
    assert shared / len(labels) == pytest.approx(result.measurements["agreement"])
    packing = exported(tmp_path, "packed")
    if method == "none":
        assert (packing.returncode, "must be quantized" in packing.stderr) == (2, True)
        return
    assert packing.returncode == 0, packing.stderr
    told = json.loads((tmp_path / "packed" / "weights.json").read_text())["layers"]
    assert {layer["bits"] for layer in told.values()} <= set(range(2, 9))
    assert sorted(layer["bits"] for layer in told.values())[0] <= 4
    packed = (tmp_path / "packed" / "weights.bin").stat().st_size
    assert packed < (tmp_path / "onnx" / "model.onnx").stat().st_size
    for name, weight in loaded(tmp_path / "packed").items():
        np.testing.assert_array_equal(weight, dequantized(tmp_path / "onnx" / "model.onnx", name))


def exported(home: Path, form: str) -> subprocess.CompletedProcess[str]:
    args = ["--trial", "t0000", "--to", home / form, "--format", form]
    return orchestrator("export", "night", *args, home=home)


def dequantized(file: Path, layer: str) -> np.ndarray:
    """A layer's weight as ONNX Runtime computes it when it opens the file."""
    model = onnx.load(str(file))
    (node,) = (n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[1] == f"{layer}.step")
    model.graph.output.append(helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([node.output[0]], {"image": IMAGES[:1].astype(np.float32)})[0]
