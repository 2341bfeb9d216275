"""Put right without training what rounding did to a network's statistics: the means of its layers, and those of its norms."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from orchestrator.compression.folding import following_norm, layer_of
from orchestrator.errors import UnbuildableError

_MOST_IMAGES = 256


def correct_biases(model: fx.GraphModule, reference: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give every layer's output channels the means that they have in the float network, in place.

    Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, empirically: layer
    by layer in the order of computing, so that each sees inputs that are right already, what the mean over images and positions
    lacks is added to the bias. Where a batch norm belongs to a layer its output is meant, and its bias. A layer with neither
    bias nor norm, or one that is called twice, is left as it is.

    What follows a layer sees its new bias: let carriers and biases be settled after this.

    Args:
        model: with quantizers, calibrated.
        reference: the float network that it was made from.
        batches: images (B, ...); the first 256 are looked at, all at once, so that one pass does for all layers.
    """
    ends = _ends(model)
    images = torch.cat(list(batches))[:_MOST_IMAGES]
    with torch.no_grad():
        _Correction(model.eval(), ends, _means(reference, images, ends)).run(images)


def reestimate_norms(model: nn.Module, batches: Iterable[Tensor], reference: nn.Module | None = None) -> None:
    """Give every batch norm the statistics of what it sees in this network, in place; leaves the network in evaluation.

    Each norm works with those of a batch while they are taken, as in training, and keeps their plain average over the batches
    (Sun et al. 2019, "Hybrid 8-bit Floating Point (HFP8) Training and Inference for Deep Neural Networks").

    Args:
        batches: images (B, ...), in batches of about equal size, of which all count the same. A last image on its own is
            put to the batch before it.
        reference: the float network that `model` was made from, or None. Without it, the images have to be as they were in
            training, augmentation included, or the norms are set to another kind of images. With it, images of any kind do: its
            statistics are taken as well, and the norms are moved by what quantization changed.

    Raises:
        UnbuildableError: fewer than two images, which have no variance; nothing is changed.
    """
    together = list(batches)
    if len(together) > 1 and len(together[-1]) == 1:
        together[-2:] = [torch.cat(together[-2:])]
    if sum(map(len, together)) < 2:
        raise UnbuildableError("norms need two images or more to be estimated from; raise num_calibration")
    norms, seen = _norms(model), _statistics(model.eval(), together)
    before = {} if reference is None else _statistics(copy.deepcopy(reference).eval(), together)
    for name, (mean, variance) in seen.items():
        norm = norms[name]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if reference is not None:
            mean = norm.running_mean + mean - before[name][0]
            growth = (variance + norm.eps) / (before[name][1] + norm.eps)
            variance = ((norm.running_var + norm.eps) * growth - norm.eps).clamp_min(0.0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def _norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms that keep statistics, by name."""
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, _BatchNorm) and module.running_mean is not None}


def _statistics(model: nn.Module, batches: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance (C,) of what each norm sees while it works with a batch's own, averaged over batches."""
    norms = _norms(model)
    kept = {name: (norm.momentum, copy.deepcopy(norm.state_dict())) for name, norm in norms.items()}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a plain average
        norm.train()
    with torch.no_grad():
        for images in batches:
            model(images)
    seen = {}
    for name, norm in norms.items():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        seen[name] = norm.running_mean.clone(), norm.running_var.clone()
        norm.momentum = kept[name][0]
        norm.load_state_dict(kept[name][1])
        norm.eval()
    return seen


def _ends(model: fx.GraphModule) -> set[str]:
    """Names of the modules whose output a layer's bias moves: its norm, or the layer itself."""
    calls = [str(node.target) for node in model.graph.nodes if node.op == "call_module"]
    ends = set()
    for node in model.graph.nodes:
        layer = layer_of(model, node)
        if layer is None or calls.count(str(node.target)) != 1:
            continue
        norm = following_norm(model, node)
        if norm is not None:
            ends.add(str(norm.target))
        elif layer.bias is not None:
            ends.add(str(node.target))
    return ends


def _means(reference: nn.Module, images: Tensor, ends: set[str]) -> dict[str, Tensor]:
    """The mean of each channel of the outputs of modules, by their names."""
    means: dict[str, Tensor] = {}

    def taking(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def take(module: nn.Module, inputs: Any, output: Tensor) -> None:
            means[name] = _channel_means(module, output)

        return take

    hooks = [reference.get_submodule(name).register_forward_hook(taking(name)) for name in sorted(ends)]
    was_training = reference.training
    try:
        reference.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
        reference.train(was_training)
    return means


class _Correction(fx.Interpreter):
    """Computes the network once for all images, and puts each bias right on the way.

    An added constant is an added constant in the output: there is no need to compute a layer twice.
    """

    def __init__(self, model: fx.GraphModule, ends: set[str], wanted: dict[str, Tensor]) -> None:
        super().__init__(model)
        self._ends, self._wanted = ends, wanted

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = super().call_module(target, args, kwargs)
        if target not in self._ends:
            return output
        module = self.fetch_attr(target)
        lacking = self._wanted[target] - _channel_means(module, output)
        if getattr(module, "bias", None) is not None:
            module.bias.data += lacking
        else:
            module.running_mean -= lacking * (module.running_var + module.eps).sqrt()
        return output + (lacking if isinstance(module, nn.Linear) else lacking.view(-1, *[1] * (output.ndim - 2)))


def _channel_means(module: nn.Module, output: Tensor) -> Tensor:
    """The mean (C,) over all else; a linear layer has its channels last, any other module here has them second."""
    channels = output.ndim - 1 if isinstance(module, nn.Linear) else 1
    return output.float().mean([axis for axis in range(output.ndim) if axis != channels])
