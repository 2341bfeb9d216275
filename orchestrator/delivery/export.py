"""A trial's model as a folder that needs nothing of this product: the measured file or another form of it, ready to run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from orchestrator.delivery.card import Subject, image_shape
from orchestrator.delivery.codes import packed_files
from orchestrator.errors import UsageError
from orchestrator.results.files import as_json
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import TrialResult

Format = Literal["onnx", "torch", "packed"]

CHECKSUMS = "SHA256SUMS"

_RUN_ONNX = '''"""python run.py images.npy: pixels from 0 to 255, (N, {shape}). Prints the class of each image, a line each."""
import json
import sys
from pathlib import Path
import numpy as np
import onnxruntime
here = Path(__file__).parent
session = onnxruntime.InferenceSession(str(here / "model.onnx"), providers=["CPUExecutionProvider"])
logits = session.run(["logits"], {{"image": np.load(sys.argv[1]).astype(np.float32)}})[0]
labels = json.loads((here / "labels.json").read_text())
print("\\n".join(labels[index] for index in logits.argmax(1)))
'''

_RUN_TORCH = '''"""python run.py images.npy: pixels from 0 to 255, (N, {shape}). Prints the class of each image, a line each."""
import json
import sys
from pathlib import Path
import numpy as np
import torch
here = Path(__file__).parent
model = torch.export.load(here / "model.pt2").module()
with torch.no_grad():
    logits = model(torch.from_numpy(np.load(sys.argv[1]).astype(np.float32)))
labels = json.loads((here / "labels.json").read_text())
print("\\n".join(labels[index] for index in logits.argmax(1).tolist()))
'''

_README = """\
# {title}

Trial {trial} of sweep {sweep}, exported as {format}. card.md says what it is, how it was measured, and its limits.

{use}

| file | holds |
|---|---|
{files}

`sha256sum -c SHA256SUMS` tells whether all files are as they were.
"""

_USES = {
    "onnx": """\
```sh
pip install numpy onnxruntime
python run.py images.npy   # an array (N, {shape}) of pixels from 0 to 255; prints a class a line
```

`model.onnx` is the very file that was measured. It takes pixels and normalises them itself.""",
    "torch": """\
```sh
pip install numpy torch
python run.py images.npy   # an array (N, {shape}) of pixels from 0 to 255; prints a class a line
```

`model.pt2` is the trained graph as torch.export wrote it. It takes pixels and normalises them itself. Quantizers in it are
simulated with floats: its predictions are those of the measured file up to rounding, its size and its speed are not.""",
    "packed": """\
```sh
pip install numpy
python unpack.py           # lists the layers; `from unpack import load` gives their weights as arrays
```

`weights.bin` holds the integer weights of the measured file in as few bits as they need, with their steps and the other
constants, for a runtime of your own. What connects the layers is not in it: `--format onnx` exports a file that runs.""",
}

_HOLDS = {
    "model.onnx": "the model",
    "model.pt2": "the model",
    "weights.bin": "packed codes, steps, biases, scales",
    "weights.json": "what each array is",
    "unpack.py": "reads them with numpy alone",
    "run.py": "classifies images",
    "labels.json": "names of the classes, in the order of the logits",
    "preprocessing.json": "what goes in, and the normalisation that is in the file",
    "card.md": "the model card",
}


def export(
    home: Home, sweep: Sweep, subject: Subject, card: str, folder: Path, form: Format, *, force: bool = False
) -> dict[str, int]:
    """Write a trial's model with all that is needed to use it into a folder, which appears whole or not at all.

    Args:
        card: the model card, in markdown.
        folder: is made, its parents too. One that holds something is refused; with `force` an earlier export is replaced.

    Returns:
        Bytes by the name of each file.

    Raises:
        UsageError: the trial has no file or not the one that was measured, does not take this form, or the folder is in use.
    """
    folder = folder.absolute().resolve()
    _check_free(folder, force=force)
    file = measured_file(sweep, subject.result)
    shape = ", ".join(map(str, image_shape(file)))
    if form == "onnx":
        files = {"model.onnx": file.read_bytes(), "run.py": _RUN_ONNX.format(shape=shape).encode()}
    elif form == "torch":
        files = {"model.pt2": _program(home, sweep, subject), "run.py": _RUN_TORCH.format(shape=shape).encode()}
    else:
        files = packed_files(file, subject.result.id)
    files |= {
        "labels.json": as_json(list(subject.classes)),
        "preprocessing.json": as_json(_preprocessing(file, subject)),
        "card.md": card.encode(),
    }
    files["README.md"] = _readme(subject, form, shape, files).encode()
    _appear(folder, files)
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def measured_file(sweep: Sweep, result: TrialResult) -> Path:
    """The file of a trial that was measured.

    Raises:
        UsageError: the trial did not complete, or its file is gone or another.
    """
    file = sweep.trial_folder(result.number) / "model.onnx"
    if result.state != "COMPLETE":
        raise UsageError(f"a trial must be complete to have a model; {result.id} of {sweep.name!r} is {result.state}")
    if not file.is_file():
        raise UsageError(f"the file of {result.id} must be at {file}; it is gone")
    size, measured = file.stat().st_size, result.measurements["size_bytes"]
    if size != measured:
        raise UsageError(f"{file} must be the file that was measured; it has {size} bytes, and had {measured}")
    return file


def _program(home: Home, sweep: Sweep, subject: Subject) -> bytes:
    """The trained graph as torch.export's program: the trial's own where it left one, else written anew from its weights."""
    kept = sweep.trial_folder(subject.result.number) / "model.pt2"
    if kept.is_file():
        return kept.read_bytes()
    if not (kept.parent / "model.safetensors").is_file():
        raise UsageError(f"the weights of {subject.result.id} must be there to write a program; --format onnx needs none")
    import torch

    from orchestrator.compression.onnx_export import FromPixels, export_program
    from orchestrator.delivery.revisit import revisit, shipped_graph

    work = revisit(home, subject.job, sweep, subject.result)
    graph = shipped_graph(work)
    assert graph is not None, "its weights are there"
    normalizer = work.material.normalizer
    model = FromPixels(graph, normalizer.scale.cpu(), normalizer.offset.cpu())
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.pt2"
        try:
            export_program(model, torch.zeros(1, *work.material.shape), path)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(f"torch.export must take the network of {subject.result.id}; it says: {first}") from None
        return path.read_bytes()


def _preprocessing(file: Path, subject: Subject) -> dict[str, Any]:
    """What goes into the file, and what it does to that: mean and deviation of pixels as fractions of 255, a channel each."""
    import onnx
    from onnx import numpy_helper

    constants = {one.name: one for one in onnx.load(str(file)).graph.initializer if one.name in ("scale", "offset")}
    normalisation: dict[str, Any] = {"done_by": "the model", "mean": None, "std": None}
    if len(constants) == 2:
        scale, offset = (numpy_helper.to_array(constants[name]).ravel().astype(np.float64) for name in ("scale", "offset"))
        std = 1.0 / (255.0 * scale)
        normalisation |= {"mean": (-offset * std).tolist(), "std": std.tolist()}
    channels, height, width = image_shape(file)
    return {
        "input": "image",
        "layout": "NCHW",
        "dtype": "float32",
        "shape": [None, channels, height, width],
        "range": [0, 255],
        "image_size": subject.recipe.data.image_size,
        "image_fit": subject.recipe.data.image_fit,
        "normalisation": normalisation,
    }


def _readme(subject: Subject, form: Format, shape: str, files: Mapping[str, bytes]) -> str:
    return _README.format(
        title=f"{subject.recipe.model.name}, {subject.result.id}",
        trial=subject.result.id,
        sweep=subject.sweep,
        format=form,
        use=_USES[form].format(shape=shape),
        files="\n".join(f"| `{name}` | {_HOLDS[name]} |" for name in files),
    )


def checksums(files: Mapping[str, bytes]) -> bytes:
    """What `sha256sum -c` reads."""
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())).encode()


def _check_free(folder: Path, *, force: bool) -> None:
    """Refuse a folder that holds something; with force, one that holds more than an export."""
    with _complaining(folder):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise UsageError(f"--to must be a folder; {folder} is a file")
        held = sorted(path.name for path in folder.iterdir())
        if not held:
            return
        if not force:
            raise UsageError(f"--to must be a new or an empty folder; {folder} holds {held[0]!r}; --force replaces an export")
        foreign = sorted(set(held) - {*_HOLDS, "README.md", CHECKSUMS, "__pycache__"})
        if foreign or CHECKSUMS not in held:
            raise UsageError(
                f"--force must replace an earlier export and nothing else; {folder} holds {(foreign or held)[0]!r}"
            )


def _appear(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder of files and their checksums at once: written beside its place, then moved there."""
    with _complaining(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial, aside = (folder.parent / f".export-{uuid.uuid4().hex}" for _ in range(2))
        try:
            partial.mkdir()
            for name, content in {**files, CHECKSUMS: checksums(files)}.items():
                with (partial / name).open("wb") as handle:
                    handle.write(content)
                    handle.flush()
                    os.fsync(handle.fileno())
            if folder.exists():
                folder.rename(aside)
            partial.rename(folder)
        finally:
            if aside.exists() and not folder.exists():
                aside.rename(folder)
            for left in (partial, aside):
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _complaining(folder: Path) -> Iterator[None]:
    """Say what is wrong with a folder that cannot be written."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"--to must be a folder that can be written; {folder}: {error.strerror or error}") from None
