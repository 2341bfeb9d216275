"""Weights in few bytes: every width and sparsity comes back whole, from our own hands and from the runtime's."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from orchestrator.compression.packing import DOMAIN, Stored, fields_of, function, pack, store_codes, store_floats, unpack


def opened(stored: Stored, name: str, kind: int) -> Any:
    """What a runtime that knows nothing of us makes of a stored tensor."""
    graph = helper.make_graph(
        [*stored.nodes, helper.make_node("Identity", [name], ["out"])],
        "g",
        [],
        [helper.make_tensor_value_info("out", kind, None)],
        [numpy_helper.from_array(values, key) for key, values in stored.constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    functions = [function(one) for one in sorted(stored.functions)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {})[0]


def codes_of(bits: int, shape: tuple[int, ...], zeros: float, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    limit = 2 ** (bits - 1) - 1
    codes = rng.integers(-limit, limit + 1, shape).astype(np.int8)
    codes[rng.random(shape) < zeros] = 0
    return codes


@pytest.mark.parametrize(
    ("bits", "fields"), [(1, [1]), (2, [2]), (3, [2, 1]), (4, [4]), (5, [4, 1]), (6, [4, 2]), (7, [4, 2, 1])]
)
def test_fields_add_up_to_the_bits(bits: int, fields: list[int]) -> None:
    assert fields_of(bits) == fields


def test_four_bits_are_two_to_a_byte_the_first_one_low() -> None:
    (packed,) = pack(np.array([1, 2, 15], np.uint8), 4)
    assert packed.tolist() == [0x21, 0x0F]


def test_three_bits_are_two_and_one() -> None:
    two, one = pack(np.array([0b110, 0b011, 0b101, 0b000, 0b111], np.uint8), 3)
    assert two.tolist() == [0b00_10_01_11, 0b11]
    assert one.tolist() == [0b10110]


@settings(deadline=None)
@given(st.integers(1, 7).flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(0, 2**b - 1), min_size=1, max_size=70))))
def test_what_is_packed_comes_back(case: tuple[int, list[int]]) -> None:
    bits, values = case
    codes = np.array(values, np.uint8)
    packed = pack(codes, bits)
    assert unpack(packed, bits, len(codes)).tolist() == values
    assert sum(part.size for part in packed) <= len(codes) * bits / 8 + len(fields_of(bits))


@pytest.mark.parametrize(
    ("bits", "layout", "zeros"), list(itertools.product(range(2, 9), ["plain", "packed", "sparse"], [0.0, 0.6, 1.0]))
)
def test_a_runtime_unpacks_integers(bits: int, layout: Any, zeros: float) -> None:
    codes = codes_of(bits, (17, 5, 3, 3), zeros)
    stored = store_codes("w", codes, bits, layout)
    np.testing.assert_array_equal(opened(stored, "w", TensorProto.INT8), codes)
    if layout == "packed":
        assert stored.num_bytes <= codes.size * bits / 8 + 4 * 8 + 3
    if layout == "sparse" and zeros:
        assert stored.num_bytes < 0.9 * store_codes("w", codes, bits, "packed").num_bytes


@pytest.mark.parametrize("zeros", [0.0, 0.1, 0.9, 1.0])
def test_a_runtime_spreads_floats(zeros: float) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((33, 40)).astype(np.float32)
    values[rng.random(values.shape) < zeros] = 0.0
    stored = store_floats("w", values, "sparse")
    np.testing.assert_array_equal(opened(stored, "w", TensorProto.FLOAT), values)
    nonzero = np.count_nonzero(values)
    assert stored.num_bytes <= min(values.nbytes, 4 * max(1, nonzero) + values.size / 8 + 2 * 8 + 1)


def test_small_tensors_stay_as_they_are() -> None:
    codes = codes_of(2, (4, 4), 0.5)
    assert store_codes("w", codes, 2, "sparse").nodes == []


@pytest.mark.parametrize("name", ["unpack2", "unpack3", "unpack7", "scatter"])
def test_functions_are_valid_onnx(name: str) -> None:
    made = function(name)
    assert made.domain == DOMAIN
    assert len(made.SerializeToString()) < 1600
    onnx.checker.check_function(made, _context())


def _context() -> Any:
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = 10, {"": 21}
    return context
