"""Remove whole channels along the dependency graph: the network that is left is smaller and faster in any runtime."""

from __future__ import annotations

from math import gcd
from typing import Any

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
        round_to: channel counts stay multiples of this. Where the ratio would leave a layer less than that, or nothing of a
            layer that depends on it, the smallest multiple that does is left: a larger ratio never leaves more.

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
            ignored_layers=classifiers,
            in_channel_groups={},  # the defaults are shared by all pruners, and would keep every network alive
            out_channel_groups={},
        )
        with torch.no_grad():
            _prune(pruner, ratio, scope, round_to)
            model(example)
    except (RuntimeError, ValueError, IndexError, AttributeError, KeyError, ZeroDivisionError, AssertionError) as error:
        raise UnbuildableError(f"a ratio of {ratio} ({scope}, {criterion}) cannot be pruned: {error}") from error
    for parameter in model.parameters():
        parameter.grad = None
    model.train(was_training)


def _prune(pruner: Any, ratio: float, scope: str, round_to: int) -> None:
    """Rank the channels within each group, or over all of them, and take the weakest from each group.

    The library's graph, groups and scores, and its way to count, but for its `step`: that leaves a group as it is when the
    ratio or the rounding would take all of it.
    """
    groups, scores = [], []
    for group in pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types):
        score = pruner.estimate_importance(group)
        if score is not None:
            # The parts of a grouped convolution stay equal: the same channels go from each, by their mean score.
            groups.append((group, pruner._get_channel_groups(group)))
            scores.append(score.view(groups[-1][1], -1).mean(0).cpu())
    if scope == "global":
        owner = torch.cat([torch.full((len(score),), index) for index, score in enumerate(scores)])
        weakest = torch.cat(scores).argsort(stable=True)[: _num_removed(len(owner), ratio)]
        removed = owner[weakest].bincount(minlength=len(scores)).tolist()
    else:
        removed = [_num_removed(len(score), ratio) for score in scores]
    for (group, parts), score, num in zip(groups, scores, removed, strict=True):
        if num > 0:
            _shrink(pruner.DG, group, parts, score.argsort(stable=True), len(score) - num, round_to)


def _num_removed(num_channels: int, ratio: float) -> int:
    return num_channels - int(num_channels * (1 - ratio))


def _shrink(graph: Any, group: Any, parts: int, order: Tensor, left: int, round_to: int) -> None:
    """Leave `left` channels in each part of a group, fewer to come to a multiple, or else as few as every layer can bear.

    Args:
        graph: torch-pruning's DependencyGraph.
        group: its group of all channels that depend on each other.
        parts: equal parts of the group, one behind the other.
        order: the channels of a part (C,), the weakest first.
    """
    root = group[0].dep
    starts = len(order) * torch.arange(parts)[:, None]
    step = round_to // gcd(round_to, parts)
    for rounded in range(left - left % step, len(order), step):
        weakest = (starts + order[: len(order) - rounded]).flatten().tolist()
        smaller = graph.get_pruning_group(root.target.module, root.handler, sorted(weakest))
        if graph.check_pruning_group(smaller):
            smaller.prune()
            return
