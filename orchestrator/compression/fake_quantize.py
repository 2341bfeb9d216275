"""Put quantizers into a network, calibrate them, and take out what a runtime needs.

The graph holds every quantizer that the file will hold, at the same places: inputs of layers at the bits asked for, and 8-bit
carriers where a layer's output goes to something else (a sum, a pooling) that the file computes between whole numbers.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from orchestrator.compression.folding import following_norm, layer_of, norm_growth, traced
from orchestrator.compression.quantizers import ActivationQuantizer, WeightQuantizer
from orchestrator.errors import UnbuildableError

PREFIX = "quantize_"
_CARRIER_BITS = 8

# What changes no value of a tensor, or picks among them: a quantizer before it does what one after it would.
_PASSES = (nn.MaxPool2d, nn.Flatten, nn.Dropout, nn.Identity)
_PASSING_FUNCTIONS = frozenset({torch.flatten, F.max_pool2d, F.dropout})
# What a runtime computes together with the layer before it.
_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.Identity)
_RELU_FUNCTIONS = frozenset({torch.relu, F.relu})
_RECTIFYING_FUNCTIONS = _RELU_FUNCTIONS | {F.relu6}


def insert_quantizers(
    model: nn.Module,
    weight_bits: int | Mapping[str, int],
    activation_bits: int,
    first_last_8bit: bool,
    granularity: str = "channel",
) -> fx.GraphModule:
    """A traced copy of `model` with a quantizer on the weight and on the input of every convolution and linear layer.

    Layers that read the same tensor share its quantizer. Everything else that reads it (a shortcut) gets it in 8 bits, as a
    residual stream of few bits would forget what it carries.

    Args:
        weight_bits: 2 to 8, for all layers or by the name of each in the traced graph (as `allocate_bits` gives them). Names
            have the last word: `first_last_8bit` is then about activations alone.
        activation_bits: 2 to 8.
        first_last_8bit: the first and the last layer have weights and inputs of 8 bits.
        granularity: "channel": a step size for each output channel of a weight; "tensor": one for all of it.

    Raises:
        UnbuildableError: the network cannot be traced by torch.fx, or a layer is given no bits.
    """
    graph = traced(model, "quantization")
    layers = [node for node in graph.graph.nodes if layer_of(graph, node) is not None]
    if isinstance(weight_bits, Mapping) and (without := sorted({str(node.target) for node in layers} - set(weight_bits))):
        raise UnbuildableError(f"every layer must have bits for its weight; there are none for {', '.join(without)}")
    readers: dict[fx.Node, dict[int, list[fx.Node]]] = {}
    for position, node in enumerate(layers):
        edge = first_last_8bit and position in (0, len(layers) - 1)
        layer = layer_of(graph, node)
        assert layer is not None
        if not parametrize.is_parametrized(layer, "weight"):  # a layer that is called twice has one weight
            bits = weight_bits[str(node.target)] if isinstance(weight_bits, Mapping) else 8 if edge else weight_bits
            parametrize.register_parametrization(layer, "weight", WeightQuantizer(layer.weight, bits, granularity))
        source, reader = _source(graph, node)
        readers.setdefault(source, {}).setdefault(8 if edge else activation_bits, []).append(reader)
    for node in layers:
        end = _layer_end(graph, node)
        if all(user.op != "output" for user in end.users):
            readers.setdefault(end, {})
    for source, by_bits in readers.items():
        _quantize(graph, source, by_bits)
    graph.recompile()
    return graph


def _quantize(graph: fx.GraphModule, source: fx.Node, by_bits: dict[int, list[fx.Node]]) -> None:
    """Quantize one tensor for the layers that read it, by bits, and in 8 bits for everything else."""
    of_layers = {reader for readers in by_bits.values() for reader in readers}
    tensor = source
    if _CARRIER_BITS in by_bits or set(source.users) - of_layers:
        tensor = _add(graph, source, ActivationQuantizer(_CARRIER_BITS, carrier=_CARRIER_BITS not in by_bits))
        source.replace_all_uses_with(tensor, delete_user_cb=lambda user: user is not tensor)
    for bits, readers in by_bits.items():
        if bits == _CARRIER_BITS:
            continue
        narrow = _add(graph, tensor, ActivationQuantizer(bits))
        for reader in readers:
            reader.replace_input_with(tensor, narrow)


def _add(graph: fx.GraphModule, source: fx.Node, quantizer: ActivationQuantizer) -> fx.Node:
    number = sum(str(node.target).startswith(PREFIX) for node in graph.graph.nodes)
    graph.add_submodule(f"{PREFIX}{number}", quantizer)
    with graph.graph.inserting_after(source):
        return graph.graph.call_module(f"{PREFIX}{number}", (source,))


def _source(graph: fx.GraphModule, layer: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The tensor to quantize for a layer, and what reads it on its way there: quantizing commutes with a maximum."""
    reader, source = layer, layer.args[0]
    assert isinstance(source, fx.Node)
    while len(source.users) == 1 and _is(graph, source, _PASSES, _PASSING_FUNCTIONS) and isinstance(source.args[0], fx.Node):
        reader, source = source, source.args[0]
    return source, reader


def _layer_end(graph: fx.GraphModule, layer: fx.Node) -> fx.Node:
    """The last node that a runtime computes together with a layer: its norm, and a rectifier."""
    end = following_norm(graph, layer) or layer
    while len(end.users) == 1 and _is(graph, user := next(iter(end.users)), _RECTIFIERS, _RECTIFYING_FUNCTIONS):
        end = user
    return end


def _is(graph: fx.GraphModule, node: fx.Node, modules: tuple[type[nn.Module], ...], functions: frozenset[object]) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), modules)
    return node.op == "call_function" and node.target in functions


def calibrate(model: fx.GraphModule, batches: Iterable[Tensor], method: str, *, carriers_only: bool = False) -> None:
    """Show images to activation quantizers, then fix their ranges.

    Args:
        carriers_only: after training, which moves what the carriers see and does not teach them.
    """
    chosen = [quantizer for quantizer in _quantizers(model) if quantizer.carrier or not carriers_only]
    for quantizer in chosen:
        quantizer.watch()
    model.eval()
    with torch.no_grad():
        for images in batches:
            model(images)
    for quantizer in chosen:
        quantizer.calibrate(method)


@contextlib.contextmanager
def lean_graph(model: fx.GraphModule) -> Iterator[None]:
    """To train in: without the ReLUs that only a quantizer reads which rectifies by itself; values and gradients are the same.

    On a processor the ReLUs of a small network cost as much as a third of its quantizers. Afterwards the graph is as it was.
    """
    whole = model.graph
    model.graph = lean = copy.deepcopy(whole)
    for node in list(lean.nodes):
        relu = node.args[0] if node.op == "call_module" and str(node.target).startswith(PREFIX) else None
        if not isinstance(relu, fx.Node) or len(relu.users) != 1 or not _is(model, relu, (nn.ReLU,), _RELU_FUNCTIONS):
            continue
        quantizer = model.get_submodule(str(node.target))
        if isinstance(quantizer, ActivationQuantizer) and quantizer.rectifies:
            node.replace_input_with(relu, relu.args[0])
            lean.erase_node(relu)
    model.recompile()
    try:
        yield
    finally:
        model.graph = whole


def set_calibrated(model: fx.GraphModule) -> None:
    """Make the quantizers of a rebuilt network quantize: their ranges come with its weights."""
    for quantizer in _quantizers(model):
        quantizer.resume()


def settle_biases(model: fx.GraphModule) -> None:
    """Move every bias to where the file can hold it, in place: a whole multiple of the input's step times the weight's.

    A runtime adds the bias to sums of products of codes. What a norm adds is part of that bias, so its shift is moved. With
    wide codes the move is lost in rounding; with codes of two or three bits it is not, and evaluation should see it.
    """
    for node in model.graph.nodes:
        layer = layer_of(model, node)
        if layer is None:
            continue
        step = weight_quantizer(layer).step() * input_quantizer(model, node).codes()[0]
        norm_node = following_norm(model, node)
        norm = None if norm_node is None else model.get_submodule(str(norm_node.target))
        bias = None if layer.bias is None else layer.bias.detach()
        movable = layer.bias
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
            factor, shift = norm_growth(norm)
            bias, step = shift if bias is None else shift + bias * factor, step * factor.abs()
            movable = norm.bias if norm.affine else None
        if bias is not None and movable is not None:
            movable.data += torch.where(step > 0, (bias / step.clamp_min(1e-30)).round() * step - bias, 0.0)


def weight_quantizer(layer: nn.Module) -> WeightQuantizer:
    """What quantizes a layer's weight."""
    quantizer = layer.get_submodule("parametrizations.weight.0")
    assert isinstance(quantizer, WeightQuantizer)
    return quantizer


def input_quantizer(model: fx.GraphModule, layer: fx.Node) -> ActivationQuantizer:
    """What quantizes the tensor that a layer reads, perhaps through a pooling."""
    quantizer = model.get_submodule(input_quantizer_name(model, layer))
    assert isinstance(quantizer, ActivationQuantizer)
    return quantizer


def input_quantizer_name(model: fx.GraphModule, layer: fx.Node) -> str:
    """Its name in the graph."""
    node = layer.args[0]
    while isinstance(node, fx.Node) and not str(node.target).startswith(PREFIX):
        node = node.args[0]
    assert isinstance(node, fx.Node)
    return str(node.target)


def image_quantizers(model: nn.Module) -> list[nn.Module]:
    """The quantizers that images pass before any layer; none in a network without quantizers."""
    found: list[nn.Module] = []
    nodes = [node for node in model.graph.nodes if node.op == "placeholder"] if isinstance(model, fx.GraphModule) else []
    while nodes:
        for user in nodes.pop().users:
            module = model.get_submodule(str(user.target)) if user.op == "call_module" else None
            if isinstance(module, ActivationQuantizer):
                found.append(module)
                nodes.append(user)
    return found


def _quantizers(model: fx.GraphModule) -> list[ActivationQuantizer]:
    return [module for module in model.modules() if isinstance(module, ActivationQuantizer)]
