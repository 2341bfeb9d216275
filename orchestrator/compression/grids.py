"""Take a fake-quantized network apart: a float network whose weights lie on grids, and the grids."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from orchestrator.compression.fake_quantize import PREFIX, input_quantizer_name, weight_quantizer
from orchestrator.compression.folding import fold_norms, following_norm, layer_of, norm_growth, traced
from orchestrator.compression.quantizers import ActivationQuantizer

_LEAST_STEP = 1e-12


@dataclass(frozen=True)
class TensorGrid:
    """Codes of a tensor: 0 to 2^bits - 1, and value = scale * (code - zero_point)."""

    scale: float
    zero_point: int
    bits: int


@dataclass(frozen=True)
class WeightGrid:
    """Codes of a layer's weight: within 2^(bits-1) - 1 of zero; `step` (O,) float32 per output channel.

    `reads` names the grid of the layer's input.
    """

    step: Tensor
    bits: int
    reads: str


@dataclass(frozen=True)
class Grids:
    """Everything that a file needs to hold a network as whole numbers, by module names."""

    tensors: dict[str, TensorGrid]
    weights: dict[str, WeightGrid]

    def below(self, name: str) -> Grids:
        """The same for a network that is the submodule `name` of another."""
        tensors = {f"{name}.{key}": grid for key, grid in self.tensors.items()}
        weights = {
            f"{name}.{key}": WeightGrid(grid.step, grid.bits, f"{name}.{grid.reads}") for key, grid in self.weights.items()
        }
        return Grids(tensors, weights)


class Mark(nn.Module):
    """Where a quantizer stood: a product with a constant of its own name, by which an exported graph is known to hold it.

    The constant is not 1, or an exporter might leave the product out.
    """

    mark: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mark", torch.tensor(0.9375))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mark


def split_off_grids(model: fx.GraphModule) -> tuple[fx.GraphModule, Grids]:
    """A plain network with marks for quantizers, its weights on their grids and its norms folded; and the grids by name.

    A batch norm after a layer scales each output channel by a constant, so folding it moves the grid and no weight off it.
    """
    plain = traced(model, "export").eval()
    tensors: dict[str, TensorGrid] = {}
    weights: dict[str, WeightGrid] = {}
    for node in plain.graph.nodes:
        layer = layer_of(plain, node)
        if layer is not None:
            quantizer = weight_quantizer(layer)
            step, norm = quantizer.step(), following_norm(plain, node)
            if norm is not None:
                batch_norm = plain.get_submodule(str(norm.target))
                assert isinstance(batch_norm, nn.BatchNorm1d | nn.BatchNorm2d)
                step = step * norm_growth(batch_norm)[0].abs()
            reads = input_quantizer_name(plain, node)
            weights[str(node.target)] = WeightGrid(step.clamp_min(_LEAST_STEP), quantizer.bits, reads)
    for name, module in list(plain.named_modules()):
        if isinstance(module, ActivationQuantizer):
            tensors[name] = TensorGrid(*module.codes(), module.bits)
            plain.set_submodule(name, Mark())
        elif name in weights:
            plain.set_submodule(name, _without_quantizer(module))
    assert all(name.startswith(PREFIX) for name in tensors)
    return fold_norms(plain), Grids(tensors, weights)


def _without_quantizer(layer: nn.Module) -> nn.Module:
    """A plain layer with the quantized weight.

    Not `parametrize.remove_parametrizations`: it takes the property off the class, which a copy shares with its original.
    """
    assert isinstance(layer, nn.Conv2d | nn.Linear)
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
