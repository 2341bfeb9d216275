"""Networks of the user's own: `package.module:function`, and weights from a local file."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from orchestrator.errors import UnbuildableError


def user_model(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """What `package.module:function` returns, called with `num_classes` and `in_channels`, those of the two that it takes.

    Raises:
        UnbuildableError: there is no such module or function, or it returns no network.
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        known = inspect.signature(function).parameters
        offered = {"num_classes": num_classes, "in_channels": in_channels}
        every = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values())
        model = function(**{key: value for key, value in offered.items() if every or key in known})
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UnbuildableError(f"{name} must be a function that makes a network: {error}") from error
    if not isinstance(model, nn.Module):
        raise UnbuildableError(f"{name} must return a torch.nn.Module; it returned {type(model).__name__}")
    return model


def load_weights(model: nn.Module, path: str, *, classifier: bool = False) -> nn.Module:
    """Start a network from a safetensors file. Its classifier may be for other classes: then that alone stays as it was made.

    Args:
        classifier: it has to fit as well, as of a network that is used as it comes.

    Raises:
        UnbuildableError: the file cannot be read, or weights other than the classifier's are missing, left over or misshapen.
    """
    try:
        state = load_file(Path(path))
    except (OSError, SafetensorError) as error:
        raise UnbuildableError(f"weights must be a safetensors file; {path}: {error}") from error
    own = model.state_dict()
    exempt = None if classifier else classifier_name(model)
    kept = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    wrong = sorted(
        key
        for key in set(own) | set(state)
        if key not in kept and key.rpartition(".")[0] != exempt and not key.endswith("num_batches_tracked")
    )
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UnbuildableError(f"weights in {path} must fit the network; these do not: {', '.join(wrong[:3])}{more}")
    model.load_state_dict(own | kept)
    return model


def classifier_name(model: nn.Module) -> str:
    """The last linear layer's name, or "" where there is none."""
    return next(reversed([name for name, module in model.named_modules() if isinstance(module, nn.Linear)]), "")


class DropoutLinear(nn.Linear):
    """A linear layer whose input is dropped out in training."""

    dropout: float = 0.0

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        return F.linear(F.dropout(input, self.dropout, self.training), self.weight, self.bias)


def add_dropout(model: nn.Module, rate: float) -> nn.Module:
    """Drop the classifier's input out. Names and weights stay, so a network with dropout loads one without."""
    name = classifier_name(model)
    if not rate:
        return model
    if not name:
        raise UnbuildableError("dropout stands before a linear classifier; the network has none")
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear)
    with torch.device(old.weight.device):
        fresh = DropoutLinear(old.in_features, old.out_features, old.bias is not None)
    fresh.dropout = rate
    fresh.load_state_dict(old.state_dict())
    model.set_submodule(name, fresh)
    return model
