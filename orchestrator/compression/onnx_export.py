"""From a network to the file that ships: ONNX, of floats or of whole numbers."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from orchestrator.compression.grids import Grids
from orchestrator.compression.integers import write_floats, write_integers
from orchestrator.compression.packing import INNER, LAYOUTS, Layout
from orchestrator.errors import UnbuildableError

INPUT, OUTPUT = "image", "logits"

# The first operator set whose QuantizeLinear knows 4-bit integers.
_OPSET = 21

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

    The file holds no names, paths or stack traces of this machine: its size depends on the network alone. Weights that are
    mostly zero are stored without their zeros.
    """
    path.write_bytes(_smallest(float_graph(model, example), write_floats))


def export_quantized(model: nn.Module, grids: Grids, example: Tensor, path: Path) -> None:
    """Write a network whose weights lie on their grids, with marks for its quantizers, as a QDQ file of those very integers.

    Args:
        grids: by names of `model`'s modules.

    Raises:
        UnbuildableError: the exporter renamed a weight, or took a quantizer out.
    """
    path.write_bytes(_smallest(float_graph(model, example), lambda proto, layout: write_integers(proto, grids, layout)))


def export_program(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write `model` as torch.export's program: it needs torch to run and keeps quantizers as they were trained, simulated."""
    images = example.cpu().float().repeat(2, 1, 1, 1).contiguous()
    with _quiet():
        program = torch.export.export(model.eval(), (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, path)


def _smallest(graph: Any, write: Callable[[Any, Layout], None]) -> bytes:
    """The smallest of the files that the layouts make of a graph: packing has its own cost, which small networks feel."""
    from onnx import ModelProto

    files = []
    for layout in LAYOUTS:
        proto = ModelProto()
        proto.CopyFrom(graph)
        write(proto, layout)
        _shorten(proto)
        files.append(bytes(proto.SerializeToString(deterministic=True)))
    return min(files, key=len)


def float_graph(model: nn.Module, example: Tensor) -> Any:
    """The network as an ONNX ModelProto.

    Tracing and translating takes seconds, and the trials of a sweep differ in widths and weights, seldom in wiring. So the
    graph of a wiring is kept and its weights are replaced. The outcome is compared with the network, and translated anew if
    it differs; nothing leaves here that does not compute what the network computes.

    Raises:
        UnbuildableError: the network cannot be exported, or only to something else.
    """
    model = model.eval().cpu().float()
    images = example.cpu().float().repeat(2, 1, 1, 1).contiguous()
    wiring = _wiring(model, tuple(images.shape))
    graph: Any
    for graph in (_graphs.get(wiring), None):
        if graph is None:
            graph = _translated(_with_noise(model), images)
        proto = _rewired(graph, model)
        if _agrees(proto, model, images):
            _graphs[wiring] = graph
            return proto
    # The exporter computed with some weights (scaled or gathered them): what came of them has to come of the real ones.
    absorbed = set(model.state_dict()) - {one.name for one in graph.graph.initializer}
    proto = _rewired(_translated(_with_noise(model, absorbed), images), model)
    if not _agrees(proto, model, images):
        raise UnbuildableError("the exported graph must compute what the network computes; on noise it does not")
    return proto


_graphs: dict[str, Any] = {}


def _with_noise(model: nn.Module, real: Collection[str] = ()) -> nn.Module:
    """The network with weights of no meaning: the exporter makes one of weights that happen to be equal (biases of zero).

    Args:
        real: names of those that stay.
    """
    noise, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for name, tensor in (*noise.named_parameters(), *noise.named_buffers()):
        if tensor.is_floating_point() and name not in real:
            tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
    return noise


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
    _name_again(proto, model)
    return proto


def _name_again(proto: Any, model: nn.Module) -> None:
    """Give the weights of linear layers of tokens their names back, in place.

    The exporter makes them a product with a transposed weight that it named itself. A transpose of the weight as it is costs
    nothing: a runtime computes it when it opens the file, of floats and of codes alike.
    """
    from onnx import helper, numpy_helper

    graph = proto.graph
    read = {name for node in graph.node for name in node.input}
    nameless = {one.name: numpy_helper.to_array(one) for one in graph.initializer if one.name not in model.state_dict()}
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or f"{name}.weight" in read:
            continue
        weight = layer.weight.detach().numpy()
        found = [key for key, values in nameless.items() if values.shape == weight.T.shape and np.array_equal(values, weight.T)]
        if len(found) != 1:
            continue
        own = next(one for one in graph.initializer if one.name == found[0])
        own.CopyFrom(numpy_helper.from_array(weight, f"{name}.weight"))
        graph.node.insert(0, helper.make_node("Transpose", [f"{name}.weight"], [found[0]], perm=[1, 0]))


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


def _shorten(proto: Any) -> None:
    """Give what only nodes read the shortest names: a name costs its bytes wherever it stands. Weights keep theirs."""
    known = {one.name for one in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer)} | {""}
    known = {name for name in known if not name.startswith(INNER)}
    short = {name: name for name in known}
    numbers = (f"{number:x}" for number in itertools.count() if f"{number:x}" not in known)
    for node in proto.graph.node:
        node.name = ""
        for names in (node.input, node.output):
            names[:] = [short[old] if old in short else short.setdefault(old, next(numbers)) for old in names]
    for constant in proto.graph.initializer:
        constant.name = short[constant.name]


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
