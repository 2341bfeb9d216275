"""Remove whole channels along the dependency graph: the network that is left is smaller and faster in any runtime."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from orchestrator.compression.channel_groups import ChannelGraph, ChannelGroup, unbuildable
from orchestrator.compression.scores import group_scores, silence
from orchestrator.errors import UnbuildableError

# A sound trial cut differs by rounding, that of half-precision products at worst; one through a misread operation by more.
_SAME = 1e-2


def prune_channels(
    model: nn.Module,
    example: Tensor,
    ratio: float,
    criterion: str,
    scope: str,
    round_to: int,
    *,
    ratios: Mapping[str, float] | None = None,
    original_widths: Mapping[str, int] | None = None,
) -> None:
    """Remove a fraction of the channels of `model`, in place; its outputs stay. Gradients are dropped.

    Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", section 3: channels that depend on each other are scored
    and removed as a group. Ranks whose weights (for "taylor" also gradients) are equal cut the same channels: nothing is
    drawn, scores are summed in one order, and of equal ones the first goes.

    Args:
        example: one input (1, C, H, W), to trace the graph with.
        ratio: fraction of channels to remove, in [0, 1): per layer ("uniform") or over the network ("global").
        criterion: "l1", "l2", "bn_scale" or "taylor", see `scores.group_scores`. For "taylor" the parameters must carry
            gradients of the loss, summed over some batches and reduced over ranks. Where a group has no batch norm, "bn_scale"
            falls back to "l2".
        scope: "uniform", "global", or "sensitivity": by `ratios`, and `ratio` is not read.
        round_to: channel counts stay multiples of this. Where the ratio would leave a layer less than that, or nothing of a
            layer that depends on it, the smallest multiple that does is left: a larger ratio never leaves more.
        ratios: by the name of a group's root (see `channel_widths`); a group that is not named keeps its channels.
        original_widths: `channel_widths` of the network before the first step, when pruning goes in steps. Ratios then count
            from these, as `total_ratios` gives them, and the last step leaves the widths that one step would.

    Raises:
        UnbuildableError: see `prunable`; or the pruned network does not run.
        ValueError: gradients or ratios are missing, or name groups that are not there.
    """
    what = f"a ratio of {ratio} ({scope}, {criterion}) cannot be pruned"
    if (reason := prunable(model, example)) is not None:
        raise UnbuildableError(f"{what}: {reason}")
    with _evaluating(model):
        graph = ChannelGraph(model, example)
        scores = _scores(graph.groups, criterion)
        left = _left(graph.groups, scores, ratio, scope, ratios, original_widths)
        for group, score, num in zip(graph.groups, scores, left, strict=True):
            if num < group.size:
                graph.cut(group, score.argsort(stable=True), num, round_to)
        _run(model, example, what)
    for parameter in model.parameters():
        parameter.grad = None


def _left(
    groups: Sequence[ChannelGroup],
    scores: Sequence[Tensor],
    ratio: float,
    scope: str,
    ratios: Mapping[str, float] | None,
    original_widths: Mapping[str, int] | None,
) -> list[int]:
    """How many channels each part of each group keeps."""
    names = {group.name for group in groups}
    if original_widths is not None and (lacking := sorted(names - original_widths.keys())):
        raise ValueError(f"original_widths must hold every group; it lacks {lacking}")
    if ratios is not None and (unknown := sorted(ratios.keys() - names)):
        raise ValueError(f"ratios must name groups, which are {sorted(names)}; given {unknown}")
    widths = [(original_widths or {}).get(group.name, group.width) // group.parts for group in groups]
    match scope:
        case "uniform":
            return [_remaining(width, ratio) for width in widths]
        case "global":
            return _strongest(scores, _remaining(sum(widths), ratio))
        case "sensitivity" if ratios is not None:
            return [_remaining(width, ratios.get(group.name, 0.0)) for width, group in zip(widths, groups, strict=True)]
    raise ValueError(f"scope must be uniform, global, or sensitivity with ratios; given {scope!r}")


def _remaining(width: int, ratio: float) -> int:
    """Rounded down, but not for the rounding of the product: 10 channels less 0.9 of them are 1, not 0.99..."""
    return int(width * (1 - ratio) + 1e-9)


def _strongest(scores: Sequence[Tensor], num: int) -> list[int]:
    """How many channels of each group are among the `num` with the highest scores of all."""
    owner = torch.cat([torch.full((len(score),), index) for index, score in enumerate(scores)])
    weakest_first = torch.cat(list(scores)).argsort(stable=True)
    kept = owner[weakest_first[max(0, len(owner) - num) :]]
    return [int(count) for count in kept.bincount(minlength=len(scores))]


def channel_widths(model: nn.Module, example: Tensor) -> dict[str, int]:
    """How many channels each group that can be cut has, by the name of the layer that writes them (the group's root).

    Raises:
        UnbuildableError: the network cannot be traced.
    """
    with _evaluating(model):
        return {group.name: group.width for group in ChannelGraph(model, example).groups}


def step_ratios(ratio: float, steps: int) -> list[float]:
    """Fractions to remove of what is left, in `steps` equal steps; what is left after all of them is `1 - ratio`."""
    return [1 - (1 - ratio) ** (1 / steps)] * steps


def total_ratios(ratio: float, steps: int) -> list[float]:
    """Fractions removed in all after each of `step_ratios`; the last is `ratio` itself."""
    return [1 - (1 - ratio) ** (step / steps) for step in range(1, steps)] + [ratio]


def channel_sensitivity(
    model: nn.Module,
    example: Tensor,
    evaluate: Callable[[nn.Module], float],
    ratios: Iterable[float],
    criterion: str,
    round_to: int,
) -> dict[str, dict[float, float]]:
    """The loss when each group alone is pruned, each time on a copy; `model` keeps its weights, and its gradients.

    Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.2. `scores.layer_ratios` makes ratios of it.

    Args:
        evaluate: a loss, the lower the better, over a few batches; may change the network that it is given. Over several ranks
            it must return the same everywhere.
        ratios: to prune each group at.

    Returns:
        By root, loss by the fraction that really went, after rounding; at 0 the loss of the whole network.

    Raises:
        UnbuildableError, ValueError: as `prune_channels`.
    """
    if (reason := prunable(model, example)) is not None:
        raise UnbuildableError(f"the network cannot be pruned: {reason}")
    with _evaluating(model):
        groups = ChannelGraph(model, example).groups
        orders = [score.argsort(stable=True) for score in _scores(groups, criterion)]
    whole = evaluate(copy.deepcopy(model))
    losses = {group.name: {0.0: whole} for group in groups}
    for group, order in zip(groups, orders, strict=True):
        for ratio in sorted(ratios):
            pruned = copy.deepcopy(model)
            with _evaluating(pruned):
                graph = ChannelGraph(pruned, example)
                twin = next(twin for twin in graph.groups if twin.name == group.name)
                graph.cut(twin, order, _remaining(group.size, ratio), round_to)
            gone = 1 - graph.width(twin) / group.width
            if gone not in losses[group.name]:
                losses[group.name][gone] = evaluate(pruned)
    return losses


def prunable(model: nn.Module, example: Tensor) -> str | None:
    """Why the channels of a network cannot be removed, or None where they can; known before anything is trained.

    Decided by doing it, on a copy with drawn weights, as what operations do to channels shows only there: half of the channels
    of every group go, and what is left must compute what it did while the layers that read those channels had zeros for them.
    That refuses networks that cannot be traced, that have widths written into their program, and whose channels take ways that
    the graph misreads: it ends at once on shifted windows (Swin) and windowed attention (MaxViT), and a channel shuffle
    (ShuffleNet) gives something else. Groups with a layer norm must only run, since the norm rightly notices the loss.
    """
    trial = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    try:
        _draw_weights(trial, generator)
        graph = ChannelGraph(trial, example)
        groups = [(group, torch.randperm(group.size, generator=generator)) for group in graph.groups]
        if not groups:
            return "none of its layers can lose channels: they all reach the outputs or attention"
        images = torch.randn(example.shape, generator=generator).to(example) if example.is_floating_point() else example
        for group, order in groups:
            if not group.mixed:
                gone = group.places(order[: group.size // 2])
                for member in group.members:
                    if member.role == "reads":
                        silence(member, gone)
        silent = _run(trial, images, "it does not run")
        for mixed in (False, True):
            for group, order in groups:
                if group.mixed == mixed:
                    graph.cut(group, order, group.size - group.size // 2, 1)
            cut = _run(trial, images, "half of it does not run")
            if not mixed and not _same(cut, silent):
                return "its channels take a way that the dependency graph misreads, a channel shuffle perhaps"
    except UnbuildableError as error:
        return str(error)
    return None


def _scores(groups: Sequence[ChannelGroup], criterion: str) -> list[Tensor]:
    """Scores (size,) of each group. Parts lose the same channels, so theirs are averaged."""
    scores = group_scores([(group.members, group.width) for group in groups], criterion)
    return [score.view(group.parts, -1).mean(0) for group, score in zip(groups, scores, strict=True)]


def _draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Weights that let every channel matter, as fresh or trained ones may not: classifiers start at 0, block scales near it."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                drawn = torch.randn(parameter.shape, generator=generator) * (2 / parameter[0].numel()) ** 0.5
            else:
                drawn = torch.rand(parameter.shape, generator=generator) + 0.5
            parameter.copy_(drawn)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.reset_running_stats()


def _run(model: nn.Module, example: Tensor, what: str) -> Tensor:
    with unbuildable(what), torch.no_grad():
        output: Tensor = model(example)
        return output


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding. What has overflowed tells nothing."""
    if one.shape != other.shape:
        return False
    return not other.isfinite().all() or bool((one - other).abs().max() <= _SAME * other.abs().max())


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, so that norms learn nothing; afterwards every layer's own mode again."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
