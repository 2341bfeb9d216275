"""The integer weights of a file, taken out of it: packed into as few bits as they need, for runtimes of other makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.compression.packing import fields_of, pack
from orchestrator.errors import UsageError

_STEP = ".step"

_UNPACK = '''\
"""Reads weights.bin with numpy alone: `load()` gives each layer's weight as float32. As a program it lists the layers."""
import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def array(raw, where):
    """One of the arrays that lie in the file one after the other."""
    count = int(np.prod(where["shape"]))
    return np.frombuffer(raw, np.dtype(where["dtype"]), count, where["offset"]).reshape(where["shape"])


def codes(fields, layer):
    """The integers of a layer, within 2^(bits - 1) - 1 of zero: the fields of each are joined, and the offset is taken off."""
    count, left = int(np.prod(layer["shape"])), layer["bits"]
    whole = np.zeros(count, np.int16)
    for width, packed in zip(layer["fields"], fields):
        left -= width
        shifts = np.arange(8 // width, dtype=np.uint8) * np.uint8(width)
        parts = (packed[:, None] >> shifts) & np.uint8(2**width - 1)
        whole |= parts.reshape(-1)[:count].astype(np.int16) << left
    return (whole - 2 ** (layer["bits"] - 1)).reshape(layer["shape"])


def load(folder=HERE):
    """Weights by the name of their layer: codes times the step of each output channel."""
    told, raw, weights = json.loads((folder / "weights.json").read_text()), (folder / "weights.bin").read_bytes(), {}
    arrays = {name: array(raw, where) for name, where in told["arrays"].items()}
    for name, layer in told["layers"].items():
        whole = codes([arrays[f"{name}.codes{width}"] for width in layer["fields"]], layer)
        step = arrays[layer["step"]].reshape(-1, *[1] * (whole.ndim - 1))
        weights[name] = (whole * step).astype(np.float32)
    return weights


if __name__ == "__main__":
    layers = json.loads((HERE / "weights.json").read_text())["layers"]
    for name, weight in load().items():
        print(name, list(weight.shape), layers[name]["bits"], "bits")
'''


def packed_files(file: Path, trial: str) -> dict[str, bytes]:
    """`weights.bin`, `weights.json` and `unpack.py` of a quantized ONNX file.

    A layer's codes are cut into fields as in `compression.packing`, one array a field; everything else that the file holds
    (steps, biases, scales and zero points of tensors) is there under the name that it has in the file. Arrays lie one after the
    other, little-endian; `weights.json` says where, of what kind and shape.

    Raises:
        UsageError: the file holds no integer weights.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(file))
    by_layer = {
        node.input[1].removesuffix(_STEP): node.input[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[1].endswith(_STEP)
    }
    if not by_layer:
        raise UsageError(f"a model must be quantized to be exported as packed integers; {trial} holds floats: --format onnx")
    makers = _ancestors(model, set(by_layer.values()))
    inner = {name for node in makers for name in node.input} | set(by_layer.values())
    found = _evaluated(model, makers, sorted(set(by_layer.values())))
    arrays = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer if one.name not in inner}
    layers: dict[str, Any] = {}
    for name, target in by_layer.items():
        codes = found[target]
        bits = max(2, int(np.abs(codes.astype(np.int16)).max(initial=0)).bit_length() + 1)
        fields = [8] if bits == 8 else fields_of(bits)
        shifted = (codes.ravel().astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
        parts = [shifted] if bits == 8 else pack(shifted, bits)
        arrays |= {f"{name}.codes{width}": part for width, part in zip(fields, parts, strict=True)}
        layers[name] = {"shape": list(codes.shape), "bits": bits, "fields": fields, "step": f"{name}{_STEP}"}
    raw, places = _laid_down(arrays)
    manifest = json.dumps({"layers": layers, "arrays": places})
    return {"weights.bin": raw, "weights.json": manifest.encode(), "unpack.py": _UNPACK.encode()}


def _laid_down(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[bytes, dict[str, Any]]:
    """Arrays one after the other, and where each begins."""
    parts, places, offset = [], {}, 0
    for name, values in arrays.items():
        little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"))
        places[name] = {"offset": offset, "dtype": little.dtype.str, "shape": list(values.shape)}
        parts.append(little.tobytes())
        offset += little.nbytes
    return b"".join(parts), places


def _ancestors(model: Any, names: set[str]) -> list[Any]:
    """The nodes that make the named values, in the order of the graph."""
    makers, wanted = [], set(names)
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            makers.append(node)
            wanted |= set(node.input)
    return makers[::-1]


def _evaluated(model: Any, makers: list[Any], names: list[str]) -> dict[str, npt.NDArray[np.int8]]:
    """Integer weights by their names: constants of the file, or what its own nodes unpack."""
    import onnxruntime
    from onnx import ModelProto, TensorProto, helper, numpy_helper

    found = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer if one.name in names}
    missing = [name for name in names if name not in found]
    if missing:
        part = ModelProto()
        part.CopyFrom(model)
        del part.graph.node[:], part.graph.input[:], part.graph.output[:]
        part.graph.node.extend(makers)
        part.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.INT8, None) for name in missing)
        read = {name for node in makers for name in node.input}
        kept = [one for one in model.graph.initializer if one.name in read]
        del part.graph.initializer[:]
        part.graph.initializer.extend(kept)
        session = onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
        found |= dict(zip(missing, session.run(missing, {}), strict=True))
    return found
