"""Weights in as few bytes as they need, in a file that any ONNX runtime opens.

The file holds packed bytes and, in standard operators, how to unpack them. A runtime that folds constants (ONNX Runtime does)
unpacks once, when it opens the file, and from then on has the plain tensor: the small file runs at the plain file's speed, and
needs no loader. Codes of b bits are cut into fields of 4, 2 and 1 bits, so that every width from 1 to 7 packs without waste:
3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1. Where there are enough zeros only the others are stored, with one bit a place
that says where they stand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

DOMAIN = "orchestrator.packing"
INNER = "~"
"""What names of constants begin with that are packing's own business and may be shortened."""

_OPSET = 21
_FIELDS = (4, 2, 1)
_LEAST_WEIGHTS = 256  # below this the unpacking's own bytes weigh more than what it saves

Bytes = npt.NDArray[np.uint8]

Layout = Literal["plain", "packed", "sparse"]
"""What may be done to a tensor: nothing, packing its bits, or also storing its nonzero values alone, where that is smaller."""

LAYOUTS: tuple[Layout, ...] = ("plain", "packed", "sparse")


@dataclass
class Stored:
    """What a graph needs to hold a tensor: constants, nodes that make it from them, and the functions that they call."""

    constants: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    nodes: list[Any] = field(default_factory=list)
    functions: set[str] = field(default_factory=set)

    @property
    def num_bytes(self) -> int:
        return sum(values.nbytes for values in self.constants.values())


def fields_of(bits: int) -> list[int]:
    """The widths, widest first, into which codes of `bits` (1 to 7) are cut."""
    return [width for width in _FIELDS if bits & width]


def pack(codes: Bytes, bits: int) -> list[Bytes]:
    """Cut codes (N,), each below 2^bits, into fields; one array of bytes (ceil(N * width / 8),) a field."""
    packed, left = [], bits
    for width in fields_of(bits):
        left -= width
        values = codes >> left & (1 << width) - 1
        per_byte = 8 // width
        padded = np.zeros(-(-len(values) // per_byte) * per_byte, np.uint8)
        padded[: len(values)] = values
        shifts = np.arange(per_byte, dtype=np.uint8) * width
        packed.append(np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1).astype(np.uint8))
    return packed


def unpack(packed: list[Bytes], bits: int, count: int) -> Bytes:
    """What `pack` took apart: codes (count,)."""
    codes, left = np.zeros(count, np.uint8), bits
    for width, values in zip(fields_of(bits), packed, strict=True):
        left -= width
        shifts = np.arange(8 // width, dtype=np.uint8) * width
        codes |= (values[:, None] >> shifts & (1 << width) - 1).reshape(-1)[:count].astype(np.uint8) << left
    return codes


def store_codes(name: str, codes: npt.NDArray[np.int8], bits: int, layout: Layout) -> Stored:
    """Integer weights (any shape), symmetric, within 2^(bits-1) - 1 of zero, as `name` (int8) of a graph."""
    ways = [Stored({name: codes})]
    if codes.size >= _LEAST_WEIGHTS and layout != "plain":
        if bits < 8:
            ways.append(_packed(name, codes, bits, name, np.array(codes.shape, np.int64)))
        if layout == "sparse":
            ways.append(_sparse(name, codes, bits))
    return min(ways, key=lambda way: way.num_bytes)


def store_floats(name: str, values: npt.NDArray[np.float32], layout: Layout) -> Stored:
    """Float weights (any shape) as `name` of a graph."""
    ways = [Stored({name: values})]
    if values.size >= _LEAST_WEIGHTS and layout == "sparse":
        ways.append(_sparse(name, values, 8))
    return min(ways, key=lambda way: way.num_bytes)


def _packed(name: str, codes: npt.NDArray[np.int8], bits: int, target: str, shape: npt.NDArray[np.int64]) -> Stored:
    """Constants and one call that make `target` (int8) from packed codes."""
    from onnx import helper

    offset = 1 << (bits - 1)
    parts = pack((codes.ravel().astype(np.int16) + offset).astype(np.uint8), bits)
    constants: dict[str, npt.NDArray[Any]] = {
        f"{INNER}{name}_bits{width}": part for width, part in zip(fields_of(bits), parts, strict=True)
    }
    function = f"unpack{bits}"
    nodes = [helper.make_node(function, [*constants, f"{INNER}{name}_shape"], [target], domain=DOMAIN)]
    return Stored({**constants, f"{INNER}{name}_shape": shape}, nodes, {function})


def _sparse(name: str, values: npt.NDArray[Any], bits: int) -> Stored:
    """Constants and calls that make `name` from its nonzero values and a bit for every place."""
    from onnx import helper

    flat = values.ravel()
    there = flat != 0
    (places,) = pack(there.astype(np.uint8), 1)
    kept, inner = flat[there], f"{INNER}{name}_nonzero"
    if not len(kept):
        kept = np.zeros(1, values.dtype)
    if kept.dtype == np.int8 and bits < 8:
        stored = _packed(inner, kept, bits, inner, np.array(kept.shape, np.int64))
    else:
        stored = Stored({inner: kept})
    stored.constants |= {f"{INNER}{name}_places": places, f"{INNER}{name}_shape": np.array(values.shape, np.int64)}
    stored.nodes.append(
        helper.make_node("scatter", [inner, f"{INNER}{name}_places", f"{INNER}{name}_shape"], [name], domain=DOMAIN)
    )
    stored.functions.add("scatter")
    return stored


def function(name: str) -> Any:
    """The ONNX function of a call: `unpack2` to `unpack7` (fields, shape to int8), or `scatter` (values, places, shape)."""
    from onnx import helper

    inputs, body = _scatter() if name == "scatter" else _unpack(int(name.removeprefix("unpack")))
    short: dict[str, str] = {"": "", "out": "out"}
    for node in body:  # a name costs its bytes wherever it stands
        for names in (node.input, node.output):
            names[:] = [short.setdefault(old, old if old in inputs else f"{len(short):x}") for old in names]
    return helper.make_function(DOMAIN, name, inputs, ["out"], body, [helper.make_opsetid("", _OPSET)])


def _unpack(bits: int) -> tuple[list[str], list[Any]]:
    from onnx import TensorProto, helper

    widths, left, nodes = fields_of(bits), bits, _count("shape")
    for position, width in enumerate(widths):
        left -= width
        nodes += _field(f"p{position}", width, f"f{position}")
        nodes += [
            _constant(f"left{position}", np.array(left, np.uint8)),
            helper.make_node("BitShift", [f"f{position}", f"left{position}"], [f"g{position}"], direction="LEFT"),
        ]
        if position:
            before = "g0" if position == 1 else f"s{position - 1}"
            nodes.append(helper.make_node("BitwiseOr", [before, f"g{position}"], [f"s{position}"]))
    nodes += [
        helper.make_node("Cast", ["g0" if len(widths) == 1 else f"s{len(widths) - 1}"], ["whole"], to=TensorProto.INT32),
        _constant("offset", np.array(1 << (bits - 1), np.int32)),
        helper.make_node("Sub", ["whole", "offset"], ["signed"]),
        helper.make_node("Cast", ["signed"], ["small"], to=TensorProto.INT8),
        helper.make_node("Reshape", ["small", "shape"], ["out"]),
    ]
    return [*(f"p{position}" for position in range(len(widths))), "shape"], nodes


def _scatter() -> tuple[list[str], list[Any]]:
    from onnx import TensorProto, helper

    nodes = [
        *_count("shape"),
        *_field("places", 1, "ones"),
        helper.make_node("Cast", ["ones"], ["there"], to=TensorProto.BOOL),
        helper.make_node("Cast", ["ones"], ["steps"], to=TensorProto.INT32),
        _constant("axis", np.array(0, np.int64)),
        _constant("one", np.array(1, np.int32)),
        _constant("none", np.array(0, np.int32)),
        helper.make_node("CumSum", ["steps", "axis"], ["rank"]),
        helper.make_node("Sub", ["rank", "one"], ["before"]),
        helper.make_node("Max", ["before", "none"], ["index"]),
        helper.make_node("Gather", ["values", "index"], ["spread"]),
        helper.make_node("CastLike", ["none", "values"], ["zero"]),
        helper.make_node("Where", ["there", "spread", "zero"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["out"]),
    ]
    return ["values", "places", "shape"], nodes


def _count(shape: str) -> list[Any]:
    """`count` (1,): how many values a shape holds."""
    from onnx import helper

    return [
        helper.make_node("ReduceProd", [shape], ["count"], keepdims=1),
        _constant("start", np.array([0], np.int64)),
    ]


def _field(source: str, width: int, target: str) -> list[Any]:
    """The fields of `width` bits of packed bytes, in order, cut to `count`."""
    from onnx import helper

    shifts = np.arange(8 // width, dtype=np.uint8)[None] * np.uint8(width)
    return [
        _constant(f"{target}_column", np.array([-1, 1], np.int64)),
        helper.make_node("Reshape", [source, f"{target}_column"], [f"{target}_bytes"]),
        _constant(f"{target}_shifts", shifts),
        helper.make_node("BitShift", [f"{target}_bytes", f"{target}_shifts"], [f"{target}_moved"], direction="RIGHT"),
        _constant(f"{target}_mask", np.array((1 << width) - 1, np.uint8)),
        helper.make_node("BitwiseAnd", [f"{target}_moved", f"{target}_mask"], [f"{target}_table"]),
        _constant(f"{target}_row", np.array([-1], np.int64)),
        helper.make_node("Reshape", [f"{target}_table", f"{target}_row"], [f"{target}_all"]),
        helper.make_node("Slice", [f"{target}_all", "start", "count"], [target]),
    ]


def _constant(name: str, values: npt.NDArray[Any]) -> Any:
    from onnx import helper, numpy_helper

    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values))
