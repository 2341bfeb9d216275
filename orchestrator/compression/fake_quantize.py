"""Put quantizers into a network, calibrate them, and take out what a runtime needs."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrize

from orchestrator.compression.quantizers import ActivationQuantizer, WeightQuantizer
from orchestrator.errors import UnbuildableError

_PREFIX = "quantize_"


@dataclass(frozen=True)
class LayerCodes:
    """How one layer is quantized: its weight's step per output channel, and scale, zero point and bits of its input."""

    weight_scale: Tensor
    weight_bits: int
    input_scale: float
    input_zero_point: int
    input_bits: int


def insert_quantizers(model: nn.Module, weight_bits: int, activation_bits: int, first_last_8bit: bool) -> fx.GraphModule:
    """A traced copy of `model` with a quantizer on the weight and on the input of every convolution and linear layer.

    Layers that read the same tensor share its quantizer, and so does everything else that reads it.

    Raises:
        UnbuildableError: the network cannot be traced by torch.fx.
    """
    try:
        traced = fx.symbolic_trace(copy.deepcopy(model))
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise UnbuildableError(f"the network cannot be traced for quantization: {error}") from error
    layers = [node for node in traced.graph.nodes if _is_layer(traced, node)]
    quantizer_of: dict[fx.Node, fx.Node] = {}
    for position, node in enumerate(layers):
        edge = first_last_8bit and position in (0, len(layers) - 1)
        layer = _layer(traced, node)
        parametrize.register_parametrization(layer, "weight", WeightQuantizer(layer.weight, 8 if edge else weight_bits))
        source = node.args[0]
        if source not in quantizer_of:
            name = f"{_PREFIX}{len(quantizer_of)}"
            traced.add_submodule(name, ActivationQuantizer(8 if edge else activation_bits))
            with traced.graph.inserting_after(source):
                quantizer = traced.graph.call_module(name, (source,))
            source.replace_all_uses_with(quantizer, delete_user_cb=lambda user, own=quantizer: user is not own)
            quantizer_of[source] = quantizer_of[quantizer] = quantizer
    traced.recompile()
    return traced


def calibrate(model: fx.GraphModule, batches: Iterable[Tensor], method: str) -> None:
    """Show images to every activation quantizer, then fix the ranges."""
    model.eval()
    with torch.no_grad():
        for images in batches:
            model(images)
    for quantizer in model.modules():
        if isinstance(quantizer, ActivationQuantizer):
            quantizer.calibrate(method)


def set_calibrated(model: fx.GraphModule) -> None:
    """Make the quantizers of a rebuilt network quantize: their ranges come with its weights."""
    for quantizer in model.modules():
        if isinstance(quantizer, ActivationQuantizer):
            quantizer.watching = False


def fold_norms(model: nn.Module) -> nn.Module:
    """The network for inference: every batch norm that follows a convolution is folded into it."""
    try:
        folded: nn.Module = fuse(copy.deepcopy(model).eval())
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise UnbuildableError(f"the network cannot be traced for export: {error}") from error
    return folded


def split_off_codes(model: fx.GraphModule) -> tuple[nn.Module, dict[str, LayerCodes]]:
    """Take a fake-quantized network apart: a float network whose weights lie on their grids, and the grids by layer name.

    A batch norm after a convolution scales each output channel by a constant, so folding it moves the grid and no weight
    off it: the folded step is the learned one times the growth of the channel's norm.
    """
    plain = copy.deepcopy(model).eval()
    codes: dict[str, LayerCodes] = {}
    for node in list(plain.graph.nodes):
        if not _is_layer(plain, node):
            continue
        layer = _layer(plain, node)
        quantizer = plain.get_submodule(str(node.args[0].target))
        weights = layer.get_submodule("parametrizations.weight.0")
        assert isinstance(quantizer, ActivationQuantizer)
        assert isinstance(weights, WeightQuantizer)
        scale, zero_point = quantizer.codes()
        step = weights.scale.detach().abs().clamp_min(1e-8)
        codes[str(node.target)] = LayerCodes(step, weights.bits, scale, zero_point, quantizer.bits)
        plain.set_submodule(str(node.target), _without_quantizer(layer))
    for node in list(plain.graph.nodes):
        if node.op == "call_module" and str(node.target).startswith(_PREFIX):
            node.replace_all_uses_with(node.args[0])
            plain.graph.erase_node(node)
    plain.delete_all_unused_submodules()
    plain.recompile()
    folded = fold_norms(plain)
    return folded, {name: _after_folding(code, plain, folded, name) for name, code in codes.items()}


def _without_quantizer(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """A plain layer with the quantized weight.

    Not `parametrize.remove_parametrizations`: it takes the property off the class, which a copy shares with its original.
    """
    bias = layer.bias is not None
    plain: nn.Module
    if isinstance(layer, nn.Linear):
        plain = nn.Linear(layer.in_features, layer.out_features, bias)
    else:
        plain = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            bias,
            layer.padding_mode,
        )
    state = {"weight": layer.weight.detach()}
    if layer.bias is not None:
        state["bias"] = layer.bias.detach()
    plain.load_state_dict(state)
    return plain.eval()


def _after_folding(code: LayerCodes, before: nn.Module, after: nn.Module, name: str) -> LayerCodes:
    old = torch.linalg.vector_norm(before.get_parameter(f"{name}.weight").detach().flatten(1), dim=1)
    new = torch.linalg.vector_norm(after.get_parameter(f"{name}.weight").detach().flatten(1), dim=1)
    growth = torch.where(old > 0, new / old.clamp_min(1e-12), torch.ones_like(old))
    step = (code.weight_scale * growth).clamp_min(1e-12)
    return LayerCodes(step, code.weight_bits, code.input_scale, code.input_zero_point, code.input_bits)


def _layer(model: nn.Module, node: fx.Node) -> nn.Conv2d | nn.Linear:
    layer = model.get_submodule(str(node.target))
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer


def _is_layer(model: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.Conv2d | nn.Linear)
