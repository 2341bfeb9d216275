"""Remove single weights, and keep them away while the rest is trained on. What is pruned is where a weight is 0."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from orchestrator.errors import UnbuildableError

_KEPT, _OF = 2, 4
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def prune_weights(model: nn.Module, ratio: float, scope: str, exempt: Collection[str] = ()) -> None:
    """Set the weights of least magnitude to 0, in place. Norms and biases stay.

    Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", section 3. Of equal weights the
    first goes, so ranks with equal weights cut the same ones. Weights that are 0 already count: pruning in steps calls this
    with the ratio reached in all, see `channels.total_ratios`.

    Args:
        ratio: fraction of the weights to remove, in [0, 1), exact to one weight: of each layer ("uniform"; one weight of a
            layer always stays), or of all layers together ("global").
        exempt: names of layers that keep all weights; they are not counted.

    Raises:
        UnbuildableError: "global" would leave a layer nothing. The model is as it was.
        ValueError: the scope is neither, or `exempt` names what is no layer.
    """
    weights = _chosen(model, exempt)
    match scope:
        case "uniform":
            removed = {
                name: _weakest(weight, min(round(ratio * weight.numel()), weight.numel() - 1))
                for name, weight in weights.items()
            }
        case "global":
            removed = _weakest_of_all(weights, ratio)
        case _:
            raise ValueError(f"scope must be uniform or global; given {scope!r}")
    for name, mask in removed.items():
        if mask.all():
            raise UnbuildableError(f"a ratio of {ratio} (global) would leave {name!r} no weight")
    with torch.no_grad():
        for name, mask in removed.items():
            weights[name].masked_fill_(mask, 0.0)


def prune_two_of_four(model: nn.Module, exempt: Collection[str] = ()) -> list[str]:
    """Keep the two largest of each four consecutive weights of an output along its input channels, in place.

    Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", section 4: the pattern of NVIDIA's sparse tensor cores. For
    a convolution the four are of neighbouring input channels at one place of the kernel. Of equal weights the first stays.

    Args:
        exempt: names of layers that keep all weights; `ends` gives those that usually do.

    Returns:
        Names of the weights that were left whole: their inputs (of one group) are not a multiple of 4, or do not lie there (of
        a transposed convolution).

    Raises:
        UnbuildableError: no layer's inputs are.
        ValueError: `exempt` names what is no layer.
    """
    weights = _chosen(model, exempt)
    layers = {name: model.get_submodule(name.rpartition(".")[0]) for name in weights}
    transposed = {name for name, layer in layers.items() if isinstance(layer, _ConvNd) and layer.transposed}
    whole = [name for name, weight in weights.items() if weight.shape[1] % _OF or name in transposed]
    if len(whole) == len(weights):
        raise UnbuildableError(f"2:4 needs a layer whose inputs are a multiple of {_OF}; there is none")
    with torch.no_grad():
        for name, weight in weights.items():
            if name not in whole:
                weight.masked_fill_(two_of_four(weight), 0.0)
    return whole


def two_of_four(weight: Tensor) -> Tensor:
    """Where the two smallest of each four along dimension 1 are: bool, of the weight's shape (O, I, ...), I % 4 == 0."""
    last = weight.detach().movedim(1, -1).abs()
    fours = last.reshape(*last.shape[:-1], -1, _OF)
    smallest = fours.argsort(dim=-1, descending=True, stable=True)[..., _KEPT:]
    gone = torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, smallest, True)
    return gone.view(last.shape).movedim(-1, 1)


def ends(model: nn.Module) -> list[str]:
    """The first convolution (or linear layer) and the last linear layer (or convolution), in the order they are defined."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, _ConvNd | nn.Linear)}
    first = [name for name, layer in layers.items() if isinstance(layer, _ConvNd)] or list(layers)
    last = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)] or list(layers)
    return sorted({*first[:1], *last[-1:]})


def zero_mask(model: nn.Module) -> dict[str, Tensor]:
    """Where pruned weights are, by their names in the plain network: bool, True where the weight is 0.

    A weight that is 0 throughout is left out: pruning never does that, but some layers start so.
    """
    masks = {name: weight.detach() == 0 for name, weight in layer_weights(model)}
    return {name: mask for name, mask in masks.items() if mask.any() and not mask.all()}


def keep_zeros(model: nn.Module) -> Callable[[], None]:
    """A hook that puts today's zeros back after every step of an optimizer, on each rank; momentum and decay move them.

    Where a quantizer computes the weight, the tensor that is trained is held. A quantizer of 0 gives 0, so the quantized
    weight is 0 there too.
    """
    weights = dict(layer_weights(model))
    held = [(weights[name], mask) for name, mask in zero_mask(model).items()]

    def put_back() -> None:
        with torch.no_grad():
            for weight, mask in held:
                weight.masked_fill_(mask, 0.0)

    return put_back


def layer_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The trained weights of convolutions, linear layers and attention, by their names in the plain network."""
    for layer_name, layer in model.named_modules():
        names = ("weight",) if isinstance(layer, _ConvNd | nn.Linear) else ()
        for name in _PROJECTIONS if isinstance(layer, nn.MultiheadAttention) else names:
            weight = layer.get_parameter(_trained(layer, name)) if getattr(layer, name) is not None else None
            if weight is not None:
                yield f"{layer_name}.{name}" if layer_name else name, weight


def _trained(layer: nn.Module, name: str) -> str:
    return f"parametrizations.{name}.original" if parametrize.is_parametrized(layer, name) else name


def _chosen(model: nn.Module, exempt: Collection[str]) -> dict[str, nn.Parameter]:
    weights = dict(layer_weights(model))
    owners = {name: name.rpartition(".")[0] for name in weights}
    if unknown := sorted(set(exempt) - set(owners.values())):
        raise ValueError(f"exempt must name layers with weights, which are {sorted(set(owners.values()))}; given {unknown}")
    return {name: weight for name, weight in weights.items() if owners[name] not in exempt}


def _weakest(weight: Tensor, num: int) -> Tensor:
    """Where the `num` weights of least magnitude are: bool, of the weight's shape."""
    flat = weight.detach().flatten().abs()
    gone = torch.zeros_like(flat, dtype=torch.bool)
    gone[flat.argsort(stable=True)[:num]] = True
    return gone.view(weight.shape)


def _weakest_of_all(weights: dict[str, nn.Parameter], ratio: float) -> dict[str, Tensor]:
    """The same over all layers together."""
    flat = torch.cat([weight.detach().flatten() for weight in weights.values()])
    gone = torch.split(_weakest(flat, round(ratio * len(flat))), [weight.numel() for weight in weights.values()])
    return {name: mask.view(weight.shape) for mask, (name, weight) in zip(gone, weights.items(), strict=True)}
