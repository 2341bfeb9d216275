"""From a network to the file that ships: ONNX, and int8 or int4 QDQ for ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from orchestrator.compression.fake_quantize import LayerCodes
from orchestrator.errors import UnbuildableError

INPUT, OUTPUT = "image", "logits"

# The first operator set whose QuantizeLinear knows 4-bit integers.
_OPSET = 21
_PACKED_BITS = 4

# How torch's layers print their widths: `16, 32, kernel_size=...`, `in_features=64, out_features=10`, `32, eps=...`.
_WIDTHS = re.compile(r"^\d+(, \d+)?, |(in|out)_features=\d+, ")


class FromPixels(nn.Module):
    """A network that takes pixels in 0..255: whoever serves the file needs to know nothing about normalisation."""

    NETWORK = "network"
    scale: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)
        self.network = network

    @classmethod
    def of(cls, scale: Tensor, offset: Tensor) -> Callable[[nn.Module], FromPixels]:
        """What wraps a network with these constants (1, C, 1, 1)."""
        return lambda network: cls(network, scale, offset)

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.network(pixels_NCHW * self.scale + self.offset)
        return logits


def export_float(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write `model` (batch norms folded) as ONNX with inputs "image" (N, C, H, W) and outputs "logits" (N, classes).

    The file holds no names, paths or stack traces of this machine: its size depends on the network alone.

    Tracing and translating takes seconds, and the trials of a sweep differ in widths and weights, seldom in wiring. So the
    graph of a wiring is kept and its weights are replaced; the outcome is compared with the network, and translated anew if
    it differs.
    """
    import onnx

    model = model.eval().cpu().float()
    images = example.cpu().float().repeat(2, 1, 1, 1).contiguous()
    wiring = _wiring(model, tuple(images.shape))
    proto = _rewired(_graphs[wiring], model) if wiring in _graphs else None
    if proto is None or not _agrees(proto, model, images):
        proto = _translated(model, images)
        _graphs[wiring] = proto
    onnx.save(proto, str(path))


_graphs: dict[str, Any] = {}


def _translated(model: nn.Module, images: Tensor) -> Any:
    """The network as an ONNX ModelProto, by torch's exporter."""
    with _quiet():
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=_OPSET,
            verbose=False,
        )
    if program is None:
        raise UnbuildableError("the network cannot be exported to ONNX")
    proto = program.model_proto
    _strip(proto)
    return proto


def _wiring(model: nn.Module, shape: tuple[int, ...]) -> str:
    """What decides a network's graph apart from the sizes and values of its weights."""
    code = [module.code for module in model.modules() if isinstance(module, fx.GraphModule)]
    leaves = [
        f"{name}: {type(module).__name__}({_WIDTHS.sub('', module.extra_repr())})"
        for name, module in model.named_modules()
        if not any(True for _ in module.children())
    ]
    return "\n".join([str(shape), *code, *leaves])


def _rewired(graph: Any, model: nn.Module) -> Any:
    """A copy of a graph with this network's weights."""
    from onnx import ModelProto, numpy_helper

    proto = ModelProto()
    proto.CopyFrom(graph)
    state = model.state_dict()
    for initializer in proto.graph.initializer:
        if (weight := state.get(initializer.name)) is not None:
            initializer.CopyFrom(numpy_helper.from_array(weight.numpy(), initializer.name))
    return proto


def _agrees(proto: Any, model: nn.Module, images: Tensor) -> bool:
    """Whether a graph computes what the network computes, on noise."""
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, RuntimeException

    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) * 255.0
    with torch.no_grad():
        expected = model(noise).numpy()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        got = session.run(None, {INPUT: noise.numpy()})[0]
    except (Fail, InvalidArgument, InvalidGraph, RuntimeException):
        return False
    return got.shape == expected.shape and bool(np.abs(got - expected).max() <= 1e-3 * max(1.0, np.abs(expected).max()))


def export_quantized(
    model: nn.Module, codes: Mapping[str, LayerCodes], example: Tensor, samples: npt.NDArray[np.float32], path: Path
) -> None:
    """Write a network whose weights lie on their grids as a QDQ file with those very integers.

    Weights of up to 4 bits are packed two to a byte, others take a byte; the codes of inputs below 8 bits are clipped as
    integers. Tensors between layers that training did not quantize (sums, pooled features) take 8 bits, ranged on `samples`.

    Args:
        codes: layer name to its grids, as `split_off_codes` returns them.
        samples: (N, C, H, W) images for the ranges of the other tensors.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    plain = path.with_suffix(".float.onnx")
    export_float(model, example, plain)
    proto = onnx.load(str(plain))
    overrides, limits = _grids(proto, codes)
    with _quiet():
        constants = {"scale", "offset"}  # of FromPixels: whole pixels need no quantizer of their own
        quantize_static(
            str(plain),
            str(path),
            _Reader(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=[node.name for node in proto.graph.node if constants & set(node.input)],
            extra_options={
                "TensorQuantOverrides": overrides,
                "QDQDisableWeightAdjustForInt32Bias": True,
                # A ReLU before an unsigned code is free; a ReLU6 is not, as its range may end below the code's.
                "QDQKeepRemovableActivations": any(node.op_type == "Clip" for node in proto.graph.node),
            },
        )
    plain.unlink()
    quantized = onnx.load(str(path))
    _clip_codes(quantized, limits)
    _strip(quantized)
    onnx.save(quantized, str(path))


def _grids(proto: Any, codes: Mapping[str, LayerCodes]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
    """What quantize_static takes for our grids: overrides by tensor, and the largest code of every narrow input."""
    from onnxruntime.quantization import QuantType

    inputs = _layer_inputs(proto, codes)
    overrides: dict[str, list[dict[str, Any]]] = {}
    limits: dict[str, int] = {}
    for name, code in codes.items():
        kind = QuantType.QInt4 if code.weight_bits <= _PACKED_BITS else QuantType.QInt8
        overrides[f"{name}.weight"] = [
            {"quant_type": kind, "axis": 0, "scale": np.float32(step), "zero_point": _zero(kind)}
            for step in code.weight_scale.tolist()
        ]
        tensor = inputs[name]
        overrides[tensor] = [
            {
                "quant_type": QuantType.QUInt8,
                "scale": np.array(code.input_scale, dtype=np.float32),
                "zero_point": np.array(code.input_zero_point, dtype=np.uint8),
            }
        ]
        if code.input_bits < 8:
            limits[tensor] = 2**code.input_bits - 1
    return overrides, limits


def _zero(kind: Any) -> Any:
    return np.array(0, dtype=np.int8)


def _layer_inputs(proto: Any, codes: Mapping[str, LayerCodes]) -> dict[str, str]:
    """Layer name to the name of the tensor that it reads."""
    readers = {node.input[1]: node.input[0] for node in proto.graph.node if len(node.input) > 1}
    missing = [name for name in codes if f"{name}.weight" not in readers]
    if missing:
        raise UnbuildableError(f"the exporter renamed the weights of {', '.join(missing)}")
    return {name: readers[f"{name}.weight"] for name in codes}


def _clip_codes(proto: Any, limits: Mapping[str, int]) -> None:
    """Clip the integers of narrow tensors between their QuantizeLinear and everything that reads it."""
    from onnx import helper, numpy_helper

    nodes = []
    renamed: dict[str, str] = {}
    for node in proto.graph.node:
        for position, name in enumerate(node.input):
            if name in renamed:
                node.input[position] = renamed[name]
        nodes.append(node)
        if node.op_type == "QuantizeLinear" and (limit := limits.get(node.input[0])) is not None:
            codes, clipped = node.output[0], f"{node.output[0]}_clipped"
            top = f"{codes}_limit"
            proto.graph.initializer.append(numpy_helper.from_array(np.array(limit, dtype=np.uint8), top))
            nodes.append(helper.make_node("Clip", [codes, "", top], [clipped], name=f"{codes}_clip"))
            renamed[codes] = clipped
    done = {name for name in limits if any(n.op_type == "QuantizeLinear" and n.input[0] == name for n in nodes)}
    if done != set(limits):
        raise UnbuildableError(f"no quantizer was written for {', '.join(sorted(set(limits) - done))}")
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _strip(proto: Any) -> None:
    """Remove what a runtime does not need: stack traces, types of inner tensors, names of nodes."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        del value.metadata_props[:]
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.graph.value_info[:]
    proto.doc_string = ""


class _Reader:
    """What quantize_static asks for its calibration images."""

    def __init__(self, samples: npt.NDArray[np.float32]) -> None:
        self._batches: Iterator[dict[str, npt.NDArray[np.float32]]] = iter([{INPUT: samples}])

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        return next(self._batches, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' advice off the user's screen."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
