"""From a float ONNX graph with marks to one of whole numbers: QuantizeLinear and DequantizeLinear pairs, and coded weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.compression.grids import Grids, TensorGrid, WeightGrid
from orchestrator.compression.packing import DOMAIN, Layout, Stored, function, store_codes, store_floats
from orchestrator.errors import UnbuildableError

_MOST_BIAS = 2**30


def write_integers(proto: Any, grids: Grids, layout: Layout) -> None:
    """Replace marks by quantizer pairs and float weights by codes, in place.

    Codes of tensors are stored as UINT8 whatever their bits, since that is what a runtime's kernels read; those below 8 bits
    are clipped as whole numbers. Codes of weights are INT8 when unpacked. Biases are INT32 at the step of the sums that they
    are added to.

    Raises:
        UnbuildableError: the exporter renamed a weight, or took a mark out.
    """
    from onnx import numpy_helper

    floats = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    readers = {name for node in proto.graph.node for name in node.input}
    if renamed := [name for name in grids.weights if not {f"{name}.weight"} & readers & set(floats)]:
        raise UnbuildableError(f"the exporter renamed the weights of {', '.join(renamed)}")
    graph = Stored()
    for name, tensor in grids.tensors.items():
        graph.constants |= {
            f"{name}.scale": np.array(tensor.scale, np.float32),
            f"{name}.zero_point": np.array(tensor.zero_point, np.uint8),
        }
    for name, grid in grids.weights.items():
        step = grids.tensors[grid.reads].scale
        _add(graph, _coded(name, grid, step, floats.pop(f"{name}.weight"), floats.pop(f"{name}.bias", None), layout))
    marks = {f"{name}.mark": name for name in grids.tensors}
    for node in proto.graph.node:
        mark = next((name for name in node.input if name in marks), None)
        if mark is None:
            graph.nodes.append(node)
            continue
        floats.pop(mark)
        source, name = next(one for one in node.input if one != mark), marks[mark]
        _add(graph, _pair(source, node.output[0], name, grids.tensors[name]))
    if lost := [name for mark, name in marks.items() if mark in floats or f"{name}.codes" not in _made(graph)]:
        raise UnbuildableError(f"the exporter took out the quantizers {', '.join(lost)}")
    graph.constants |= floats
    _write(proto, graph)


def write_floats(proto: Any, layout: Layout) -> None:
    """Store float weights in another layout, in place."""
    from onnx import numpy_helper

    graph = Stored()
    for one in proto.graph.initializer:
        values = numpy_helper.to_array(one)
        stored = store_floats(one.name, values, layout) if values.dtype == np.float32 else Stored({one.name: values})
        _add(graph, stored)
    graph.nodes += proto.graph.node
    _write(proto, graph)


def _coded(
    name: str,
    grid: WeightGrid,
    input_step: float,
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32] | None,
    layout: Layout,
) -> Stored:
    """A layer's weight and bias as codes, each behind a DequantizeLinear. The bias's step is the weight's times the input's."""
    from onnx import helper

    step = grid.step.numpy().astype(np.float32)
    if bias is not None:  # a channel of almost nothing may have a bias beyond its grid
        step = np.maximum(step, np.abs(bias) / np.float32(input_step * _MOST_BIAS)).astype(np.float32)
    limit = 2 ** (grid.bits - 1) - 1
    codes = np.clip(np.rint(weight / step.reshape(-1, *[1] * (weight.ndim - 1))), -limit, limit).astype(np.int8)
    stored = store_codes(f"{name}.weight_codes", codes, grid.bits, layout)
    stored.constants[f"{name}.step"] = step
    stored.nodes.append(
        helper.make_node("DequantizeLinear", [f"{name}.weight_codes", f"{name}.step"], [f"{name}.weight"], axis=0)
    )
    if bias is not None:
        scale = step * np.float32(input_step)
        stored.constants[f"{name}.bias_codes"] = np.rint(bias.astype(np.float64) / scale).astype(np.int32)
        stored.nodes += [
            helper.make_node("Mul", [f"{name}.step", f"{grid.reads}.scale"], [f"{name}.bias_step"]),
            helper.make_node("DequantizeLinear", [f"{name}.bias_codes", f"{name}.bias_step"], [f"{name}.bias"], axis=0),
        ]
    return stored


def _pair(source: str, target: str, name: str, grid: TensorGrid) -> Stored:
    """The nodes that take a tensor to its codes and back."""
    from onnx import helper

    scale, zero, codes = f"{name}.scale", f"{name}.zero_point", f"{name}.codes"
    pair = Stored({}, [helper.make_node("QuantizeLinear", [source, scale, zero], [codes])])
    if grid.bits < 8:
        pair.constants[f"{name}.limit"] = np.array(2**grid.bits - 1, np.uint8)
        pair.nodes.append(helper.make_node("Clip", [codes, "", f"{name}.limit"], [f"{name}.clipped"]))
        codes = f"{name}.clipped"
    pair.nodes.append(helper.make_node("DequantizeLinear", [codes, scale, zero], [target]))
    return pair


def _made(graph: Stored) -> set[str]:
    return {name for node in graph.nodes for name in node.output}


def _add(graph: Stored, more: Stored) -> None:
    graph.constants |= more.constants
    graph.nodes += more.nodes
    graph.functions |= more.functions


def _write(proto: Any, graph: Stored) -> None:
    """Make a graph's constants, nodes and functions those of a file."""
    from onnx import NodeProto, helper, numpy_helper

    nodes = []
    for node in graph.nodes:  # copies: some belong to the list that is about to be emptied
        nodes.append(NodeProto())
        nodes[-1].CopyFrom(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in graph.constants.items())
    proto.functions.extend(function(name) for name in sorted(graph.functions))
    if graph.functions:
        proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
