"""Networks of the user's own: `package.module:function`, and weights from a local file."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
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
        UnbuildableError: there is no such module or function, it returns no network, or it raises whatever it may.
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        known = inspect.signature(function).parameters
        offered = {"num_classes": num_classes, "in_channels": in_channels}
        every = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values())
        model = function(**{key: value for key, value in offered.items() if every or key in known})
    except Exception as error:  # the user's code may raise anything, and in all cases there is no network
        raise UnbuildableError(f"{name} must be a function that makes a network: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UnbuildableError(f"{name} must return a torch.nn.Module; it returned {type(model).__name__}")
    return model


@functools.cache
def source_digest(name: str) -> str:
    """SHA-256 of all Python files below the top-level package of `package.module:function`, or of its one file.

    Kept for the life of the process, as the imported module is. A package's other files are not looked at.

    Raises:
        UnbuildableError: there is no such package.
    """
    module_name = name.partition(":")[0]
    roots = _source_roots(module_name)
    if not roots:
        raise UnbuildableError(f"{name} must be a function in a package with Python files; there is no {module_name}")
    digest = hashlib.sha256()
    for root in roots:
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            place = path.relative_to(root).as_posix().encode()  # where the package lies does not matter
            content = path.read_bytes()
            digest.update(b"%d %d " % (len(place), len(content)) + place + content)
    return digest.hexdigest()


def _source_roots(module_name: str) -> list[Path]:
    """The folders of a module's top-level package, or its one file; nothing is imported."""
    try:
        spec = importlib.util.find_spec(module_name.partition(".")[0])
    except (ImportError, ValueError):
        spec = None  # ValueError: a module that was not imported the usual way, as `__main__`
    if spec is not None and spec.submodule_search_locations:
        return [Path(place) for place in spec.submodule_search_locations]
    found = spec.origin if spec is not None and spec.has_location else getattr(sys.modules.get(module_name), "__file__", None)
    return [Path(found)] if found else []


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
