"""From a float ONNX graph with marks to one of whole numbers: QuantizeLinear and DequantizeLinear pairs, and coded weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.compression.grids import Grids, TensorGrid, WeightGrid
from orchestrator.errors import UnbuildableError

_PACKED_BITS = 4
_MOST_BIAS = 2**30


def write_integers(proto: Any, grids: Grids) -> None:
    """Replace marks by quantizer pairs and float weights by codes, in place.

    Codes of tensors are stored as UINT8 whatever their bits, since that is what the runtime's kernels read; those below 8 bits
    are clipped as whole numbers. Weights of up to 4 bits are packed two to a byte (INT4), others take a byte. Biases are INT32
    at the step of the sums that they are added to.

    Raises:
        UnbuildableError: the exporter renamed a weight, or took a mark out.
    """
    from onnx import numpy_helper

    floats = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    gone: set[str] = set()
    added: list[Any] = []
    nodes: list[Any] = []
    readers = {name: node for node in proto.graph.node for name in node.input if name in floats}
    missing = [name for name in grids.weights if f"{name}.weight" not in readers]
    if missing:
        raise UnbuildableError(f"the exporter renamed the weights of {', '.join(missing)}")
    for name, grid in grids.weights.items():
        step = grids.tensors[grid.reads].scale
        _replace_weight(readers[f"{name}.weight"], name, grid, step, floats, gone, added, nodes)
    marks = {f"{name}.mark": grid for name, grid in grids.tensors.items()}
    for node in proto.graph.node:
        mark = next((name for name in node.input if name in marks), None)
        if mark is None:
            nodes.append(node)
            continue
        gone.add(mark)
        source = next(name for name in node.input if name != mark)
        nodes += _pair(source, node.output[0], mark.removesuffix(".mark"), marks[mark], added)
    if lost := sorted(set(marks) - gone):
        raise UnbuildableError(f"the exporter took out the quantizers {', '.join(lost)}")
    kept = [one for one in proto.graph.initializer if one.name not in gone]
    _set(proto.graph.node, nodes)
    _set(proto.graph.initializer, [*kept, *added])


def _replace_weight(
    reader: Any,
    name: str,
    grid: WeightGrid,
    input_step: float,
    floats: dict[str, npt.NDArray[Any]],
    gone: set[str],
    added: list[Any],
    nodes: list[Any],
) -> None:
    """Make a layer read the codes of its weight and of its bias, each through a DequantizeLinear."""
    weight, bias = floats[f"{name}.weight"], floats.get(f"{name}.bias")
    step = grid.step.numpy().astype(np.float32)
    if bias is not None:  # a channel of almost nothing may have a bias beyond its grid
        step = np.maximum(step, np.abs(bias) / (input_step * _MOST_BIAS)).astype(np.float32)
    limit = 2 ** (grid.bits - 1) - 1
    codes = np.clip(np.rint(weight / step.reshape(-1, *[1] * (weight.ndim - 1))), -limit, limit).astype(np.int8)
    parts: list[tuple[str, npt.NDArray[Any], npt.NDArray[np.float32], bool]] = [
        ("weight", codes, step, grid.bits <= _PACKED_BITS)
    ]
    if bias is not None:
        scale = (step * np.float32(input_step)).astype(np.float32)
        parts.append(("bias", np.rint(bias.astype(np.float64) / scale).astype(np.int32), scale, False))
    from onnx import helper

    for kind, values, scale, packed in parts:
        old, new = f"{name}.{kind}", f"{name}.{kind}_codes"
        gone.add(old)
        added += [_initializer(new, values, packed), _initializer(f"{name}.{kind}_step", scale, False)]
        nodes.append(helper.make_node("DequantizeLinear", [new, f"{name}.{kind}_step"], [old], axis=0))
    assert set(reader.input) & gone


def _pair(source: str, target: str, name: str, grid: TensorGrid, added: list[Any]) -> list[Any]:
    """The nodes that take a tensor to its codes and back."""
    from onnx import helper

    scale, zero = f"{name}.scale", f"{name}.zero_point"
    added += [
        _initializer(scale, np.array(grid.scale, np.float32), False),
        _initializer(zero, np.array(grid.zero_point, np.uint8), False),
    ]
    codes = f"{name}.codes"
    nodes = [helper.make_node("QuantizeLinear", [source, scale, zero], [codes])]
    if grid.bits < 8:
        limit, clipped = f"{name}.limit", f"{name}.clipped"
        added.append(_initializer(limit, np.array(2**grid.bits - 1, np.uint8), False))
        nodes.append(helper.make_node("Clip", [codes, "", limit], [clipped]))
        codes = clipped
    return [*nodes, helper.make_node("DequantizeLinear", [codes, scale, zero], [target])]


def _initializer(name: str, values: npt.NDArray[Any], packed: bool) -> Any:
    """A tensor of the graph; `packed` stores int8 values of up to 4 bits two to a byte."""
    from onnx import TensorProto, helper, numpy_helper

    if not packed:
        return numpy_helper.from_array(values, name)
    flat = values.flatten().astype(np.uint8) & 0xF
    pairs = np.append(flat, np.zeros(len(flat) % 2, np.uint8)).reshape(-1, 2)
    content = (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).tobytes()
    return helper.make_tensor(name, TensorProto.INT4, values.shape, content, raw=True)


def _set(field: Any, values: list[Any]) -> None:
    """Replace the content of a repeated field by messages that may come from it."""
    taken = []
    for value in values:
        fresh = type(value)()
        fresh.CopyFrom(value)
        taken.append(fresh)
    del field[:]
    field.extend(taken)
