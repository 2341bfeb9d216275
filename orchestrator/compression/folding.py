"""Networks as graphs for deployment: traced, and without the norms that a convolution can take over."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from orchestrator.errors import UnbuildableError

Layer = nn.Conv2d | nn.Linear


class _Tracer(fx.Tracer):
    """Takes modules without children whole: what they do in training (drop paths) must not be frozen into the graph."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return super().is_leaf_module(module, qualified_name) or not any(True for _ in module.children())


def traced(model: nn.Module, purpose: str) -> fx.GraphModule:
    """A copy of `model` as a graph of its modules and functions.

    Args:
        purpose: what it is wanted for, for the error.

    Raises:
        UnbuildableError: the network's way depends on its input.
    """
    model = copy.deepcopy(model)
    if isinstance(model, fx.GraphModule):
        return model
    try:
        graph = _Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise UnbuildableError(f"the network cannot be traced for {purpose}: {error}") from error
    return fx.GraphModule(model, graph)


def fold_norms(model: nn.Module) -> fx.GraphModule:
    """The network for inference: every batch norm that alone follows a convolution or linear layer becomes part of it."""
    folded = traced(model.eval(), "export")
    for node in list(folded.graph.nodes):
        norm = following_norm(folded, node)
        if norm is None:
            continue
        layer, batch_norm = layer_of(folded, node), folded.get_submodule(str(norm.target))
        assert isinstance(batch_norm, nn.BatchNorm1d | nn.BatchNorm2d)
        if isinstance(layer, nn.Conv2d):
            folded.set_submodule(str(node.target), fuse_conv_bn_eval(layer, batch_norm))
        elif isinstance(layer, nn.Linear):
            folded.set_submodule(str(node.target), fuse_linear_bn_eval(layer, batch_norm))
        norm.replace_all_uses_with(node)
        folded.graph.erase_node(norm)
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded


def layer_of(graph: fx.GraphModule, node: fx.Node) -> Layer | None:
    """The convolution or linear layer that a node calls, if it calls one."""
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, Layer) else None


def following_norm(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The batch norm that can be folded into a layer: it alone reads it, and neither is called from elsewhere."""
    layer = layer_of(graph, node)
    if layer is None or len(node.users) != 1:
        return None
    (user,) = node.users
    norm = graph.get_submodule(str(user.target)) if user.op == "call_module" else None
    wanted = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
    if not isinstance(norm, wanted) or norm.running_var is None:
        return None
    if isinstance(layer, nn.Linear) and not norm.affine:
        return None
    calls = Counter(str(other.target) for other in graph.graph.nodes if other.op == "call_module")
    return user if calls[str(node.target)] == calls[str(user.target)] == 1 else None


def norm_growth(norm: nn.BatchNorm2d | nn.BatchNorm1d) -> tuple[torch.Tensor, torch.Tensor]:
    """What folding multiplies a layer's output channels (O,) by, and what it adds to them when the layer has no bias."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = torch.rsqrt(norm.running_var + norm.eps)
    if norm.affine:
        factor = factor * norm.weight.detach()
    shift = -norm.running_mean * factor
    return factor, shift + norm.bias.detach() if norm.affine else shift
