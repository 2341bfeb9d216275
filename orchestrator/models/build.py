"""Build a network by name, or rebuild a pruned one from the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from orchestrator.errors import UnbuildableError
from orchestrator.models.cifar_resnet import CifarResNet

_CIFAR_PREFIX = "cifar_resnet"


def build(name: str, width: int, num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A freshly initialised network that maps (B, *shape) to (B, num_classes).

    Args:
        name: "cifar_resnet20" and its kin, or a classification model of torchvision.
        width: channels of the first stage; only the CIFAR ResNets have it.
        shape: (channels, height, width) of an image.

    Raises:
        UnbuildableError: the network does not take images of that shape.
    """
    channels = shape[0]
    if name.startswith(_CIFAR_PREFIX):
        return CifarResNet(int(name.removeprefix(_CIFAR_PREFIX)), width, num_classes, channels)
    from torchvision import models

    if channels != 3:
        raise UnbuildableError(f"{name} takes images with 3 channels; the data has {channels}")
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *shape))
    except torch.OutOfMemoryError:
        raise  # says nothing about the network
    except (RuntimeError, AssertionError) as error:  # the transformers check their input by torch._assert
        raise UnbuildableError(f"{name} does not take images of shape {shape}: {error}") from None
    return model.train()


def reshape_to(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Give every parameter of a freshly built network the shape that it has in `state`, and load them.

    This is how a pruned network comes back without pickle: its architecture is its name and the shapes of its weights.
    """
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if (weight := state.get(f"{prefix}weight")) is not None:
            _set_widths(module, weight)
        for key, old in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            new = state.get(f"{prefix}{key}")
            if new is not None and new.shape != old.shape:
                fresh = torch.empty_like(new)
                setattr(module, key, nn.Parameter(fresh) if isinstance(old, nn.Parameter) else fresh)
    versioned = model.state_dict()  # beside the tensors, torch keeps versions of the modules, which a plain mapping has lost
    versioned.clear()
    versioned.update(state)
    model.load_state_dict(versioned)
    return model


def _set_widths(module: nn.Module, weight: Tensor) -> None:
    """A layer also says its widths in plain numbers, which follow from its weight."""
    if isinstance(module, _ConvNd):
        _shrink_groups(module, weight)
        own, other = weight.shape[0], weight.shape[1] * module.groups
        module.out_channels, module.in_channels = (other, own) if module.transposed else (own, other)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, _NormBase):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]


def _shrink_groups(module: _ConvNd, weight: Tensor) -> None:
    """A depthwise convolution that lost channels has as many groups as it has channels left."""
    if module.groups == module.out_channels == module.in_channels and module.groups > 1:
        module.groups = weight.shape[0]
