"""Remove whole channels along the dependency graph: the network that is left is smaller and faster in any runtime."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.errors import UnbuildableError

_NORMS = {"l1": 1, "l2": 2}


def prune_channels(model: nn.Module, example: Tensor, ratio: float, criterion: str, scope: str, round_to: int) -> None:
    """Remove a fraction of the channels of `model`, in place; the classifier's outputs stay.

    Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", section 3: channels that depend on each other are scored
    and removed as a group.

    Args:
        example: one input (1, C, H, W), to trace the graph with.
        ratio: fraction of channels to remove, per layer ("uniform") or over the network ("global").
        criterion: "l1" or "l2", the norm of a group's weights by which it is scored.
        round_to: channel counts stay multiples of this.

    Raises:
        UnbuildableError: the graph cannot be traced, or the pruned network does not run.
    """
    import torch_pruning as tp

    classifiers = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    was_training = model.training
    model.eval()
    try:
        pruner = tp.pruner.BasePruner(
            model,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=_NORMS[criterion]),
            global_pruning=scope == "global",
            pruning_ratio=ratio,
            max_pruning_ratio=0.95,
            ignored_layers=classifiers,
            round_to=round_to,
        )
        pruner.step()
        with torch.no_grad():
            model(example)
    except (RuntimeError, ValueError, IndexError, AttributeError, KeyError, ZeroDivisionError) as error:
        raise UnbuildableError(f"a ratio of {ratio} ({scope}, {criterion}) cannot be pruned: {error}") from error
    for parameter in model.parameters():
        parameter.grad = None
    model.train(was_training)
