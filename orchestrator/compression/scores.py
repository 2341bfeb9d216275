"""Which channels matter least, by four criteria; and how a ratio is best shared among layers. Tensors and plain numbers."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

Role = Literal["reads", "writes", "norm"]
Name = TypeVar("Name", bound=Hashable)

_LEAST = 1e-30


@dataclass(frozen=True)
class Member:
    """A layer that has the channels of a group among its own.

    Args:
        name: the layer's.
        layer: a convolution, linear layer, batch norm or layer norm.
        role: "reads": they are its inputs; "writes": its outputs; "norm": it scales them.
        places: (P,) int64, where they lie in the layer.
        channels: (P,) int64, which channel of the group lies there. Behind a flattening a channel has several places.
    """

    name: str
    layer: nn.Module
    role: Role
    places: Tensor
    channels: Tensor


def group_scores(groups: Sequence[tuple[Sequence[Member], int]], criterion: str) -> list[Tensor]:
    """Score every channel of every group; the lowest should go first.

    Summed in float64 on the CPU, where sums have one order: ranks with equal weights (and gradients) get equal bits.

    Args:
        groups: members, and the number of channels C.
        criterion: "l1" and "l2": sum of absolute or squared weights that write, scale and read the channel, over its mean in
            the group, so that groups can be compared (Li et al. 2017 for one layer; Fang et al. 2023, equation 4, for groups).
            "bn_scale": mean |gamma| of the group's batch norms (Liu et al. 2017, section 3); a group without one is scored by
            "l2", scaled to the mean of the network's |gamma|. "taylor": `gate_scores`.

    Returns:
        Per group (C,) float64.

    Raises:
        ValueError: "taylor" without gradients, or a criterion that is none of these.
    """
    match criterion:
        case "l1" | "l2":
            return [magnitude_scores(members, num, int(criterion[1])) for members, num in groups]
        case "taylor":
            return [gate_scores(members, num) for members, num in groups]
        case "bn_scale":
            scales = [norm_scales(members, num) for members, num in groups]
            known = [scale for scale in scales if scale is not None]
            level = torch.cat(known).mean() if known else torch.ones(())
            return [
                magnitude_scores(members, num, 2) * level if scale is None else scale
                for scale, (members, num) in zip(scales, groups, strict=True)
            ]
    raise ValueError(f"criterion must be l1, l2, bn_scale or taylor; given {criterion!r}")


def magnitude_scores(members: Sequence[Member], num: int, power: int) -> Tensor:
    """(num,) float64: sum of |w|^power over everything that writes, scales and reads a channel, divided by its mean."""
    total = torch.zeros(num, dtype=torch.float64)
    for member in members:
        weight = member.layer.weight
        if isinstance(weight, Tensor):  # a norm may have none
            total.index_add_(0, member.channels, _sums(rows(member, weight).abs().pow(power))[member.places])
    return total / total.mean().clamp_min(_LEAST)


def norm_scales(members: Sequence[Member], num: int) -> Tensor | None:
    """(num,) float64: mean |gamma| of a channel's batch norms; None where there is none."""
    norms = [member for member in members if isinstance(member.layer, _BatchNorm) and member.layer.affine]
    if not norms:
        return None
    total, count = torch.zeros(num, dtype=torch.float64), torch.zeros(num, dtype=torch.float64)
    for member in norms:
        total.index_add_(0, member.channels, _sums(rows(member, member.layer.weight).abs())[member.places])  # type: ignore[arg-type]
        count.index_add_(0, member.channels, torch.ones(len(member.places), dtype=torch.float64))
    return total / count.clamp_min(1)


def gate_scores(members: Sequence[Member], num: int) -> Tensor:
    """(num,) float64: squared derivative of the loss by a gate of 1 that every reader of a channel sees it through.

    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", equation 8: `(sum of w * dE/dw)^2`, with the sum
    over the weights that read the channel, as these lose it together. The weights that write it would not do: before a batch
    norm their sum is 0. Where nothing reads it, over what scales it, or else writes it.

    Raises:
        ValueError: a weight has no gradient.
    """
    total = torch.zeros(num, dtype=torch.float64)
    for member in _gated(members):
        for parameter in _parameters(member):
            if parameter.grad is None:
                raise ValueError(f"parameters must carry gradients for taylor scores; those of {member.name!r} carry none")
            product = rows(member, parameter) * rows(member, parameter.grad)
            total.index_add_(0, member.channels, _sums(product)[member.places])
    return total.square()


def _gated(members: Sequence[Member]) -> list[Member]:
    for role in ("reads", "norm", "writes"):
        chosen = [member for member in members if member.role == role and isinstance(member.layer.weight, Tensor)]
        if chosen:
            return chosen
    return []


def _parameters(member: Member) -> Iterator[Tensor]:
    yield member.layer.weight  # type: ignore[misc]
    if member.role != "reads" and isinstance(member.layer.bias, Tensor):
        yield member.layer.bias


def rows(member: Member, values: Tensor) -> Tensor:
    """A layer's weight (or its gradient, or its bias) as a table on the CPU with a row for each channel of its role."""
    table = values.detach().cpu().float()
    if table.dim() < 2:
        return table[:, None]
    return table.flatten(1) if _leads(member) else _split(member, table).flatten(0, 1).flatten(1)


def silence(member: Member, gone: Tensor) -> None:
    """Let a reader no longer see the channels (K,) of its group: the weights that read them become 0, in place."""
    places = member.places[torch.isin(member.channels, gone)]
    weight = member.layer.weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        if _leads(member):
            weight[places] = 0
        else:
            table = _split(member, weight)
            table[places // table.shape[1], places % table.shape[1]] = 0


def _leads(member: Member) -> bool:
    """Whether the channels are the weight's first dimension."""
    transposed = isinstance(member.layer, _ConvNd) and member.layer.transposed
    return (member.role == "reads") == transposed


def _split(member: Member, weight: Tensor) -> Tensor:
    """A view (groups, channels / groups, of the other side / groups, ...) where the channels are the second dimension."""
    groups = member.layer.groups if isinstance(member.layer, _ConvNd) else 1
    return weight.view(groups, -1, *weight.shape[1:]).transpose(1, 2)


def _sums(table: Tensor) -> Tensor:
    return table.sum(1, dtype=torch.float64)


def layer_ratios(
    scores: Mapping[Name, Mapping[float, float]], sizes: Mapping[Name, int], target_ratio: float
) -> dict[Name, float]:
    """Share a ratio among groups so that the summed loss increases least; increases are taken to add up.

    Each group's losses are replaced by their lower convex hull, with straight lines between ratios. The segments of all hulls
    are then taken in order of loss per channel, the last in part: greedy, and exact for these hulls.

    Args:
        scores: per group, loss by the ratio at which it alone was pruned; 0 among them. Losses that are not finite are not
            looked at.
        sizes: channels of each group.
        target_ratio: of all channels to remove, in [0, 1].

    Returns:
        Ratios whose sum over channels is `target_ratio` of them; each group's largest where all those remove less.

    Raises:
        ValueError: a group without a finite loss at ratio 0.
    """
    segments = []
    for position, (name, losses) in enumerate(scores.items()):
        for start, end, slope in _hull(losses, str(name)):
            segments.append((slope / sizes[name], position, start, name, end - start))
    ratios = dict.fromkeys(scores, 0.0)
    wanted = target_ratio * sum(sizes[name] for name in scores)
    for _, _, _, name, length in sorted(segments, key=lambda segment: segment[:3]):
        taken = min(length, max(0.0, wanted) / sizes[name])
        ratios[name] += taken
        wanted -= taken * sizes[name]
    return ratios


def _hull(losses: Mapping[float, float], name: str) -> list[tuple[float, float, float]]:
    """Segments (start, end, slope) of the lower convex hull, from ratio 0; slopes rise."""
    points = sorted((ratio, loss) for ratio, loss in losses.items() if abs(loss) < float("inf"))
    if not points or points[0][0] != 0.0:
        raise ValueError(f"a loss at ratio 0 must be given for every group; {name!r} has them at {sorted(losses)}")
    hull: list[tuple[float, float]] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return [(start[0], end[0], _slope(start, end)) for start, end in pairwise(hull)]


def _slope(start: tuple[float, float], end: tuple[float, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])
