"""Bits for each layer's weight: score every layer once, then solve for any budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from orchestrator.compression.folding import layer_of, traced
from orchestrator.compression.quantizers import WeightQuantizer
from orchestrator.errors import UnbuildableError

BITS = (2, 3, 4, 6, 8)

Scores = dict[str, dict[int, float]]


def bit_sensitivity(
    model: nn.Module, batches: Iterable[Tensor], bits: Sequence[int] = BITS, granularity: str = "channel"
) -> Scores:
    """What it costs to round one layer's weight alone: layer to bits to the mean KL divergence from the float outputs.

    Cai et al. 2020, "ZeroQ: A Novel Zero Shot Quantization Framework", on calibration images. Costs of layers may be added up
    as long as they are small: the divergence has its minimum, nothing, at the float network, so it is close to a quadratic form
    in the layers' rounding errors, whose mixed terms cancel where errors are independent with mean zero (Dong et al. 2020,
    "HAWQ-V2", adds up traces of Hessians on the same ground). At 2 bits that is a coarse approximation.

    Nothing is trained and the network is not changed. What comes before a layer is computed once for all of its bits.

    Args:
        model: the float network, whose outputs are logits (B, C).
        batches: images (B, ...).
        bits: those to try, 2 to 8.
        granularity: as the weights will be quantized.

    Returns:
        Layers by their names in the traced graph, in the order of computing; scores are >= 0.

    Raises:
        UnbuildableError: the network cannot be traced by torch.fx.
    """
    graph = traced(model, "bit sensitivity").eval()
    quantizers = {
        name: {number: WeightQuantizer(layer.weight, number, granularity) for number in bits}
        for name, layer in _layers(graph).items()
    }
    scores: Scores = {name: dict.fromkeys(bits, 0.0) for name in quantizers}
    num_images = 0
    with torch.no_grad():
        for images in batches:
            _add_divergences(graph, images, quantizers, scores)
            num_images += len(images)
    return {name: {number: max(total / num_images, 0.0) for number, total in of.items()} for name, of in scores.items()}


def weight_sizes(model: nn.Module) -> dict[str, int]:
    """The number of weights of each layer, by its name in the traced graph, in the order of computing."""
    return {name: layer.weight.numel() for name, layer in _layers(traced(model, "bit sensitivity")).items()}


def allocate_bits(
    scores: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], mean_bits: float, first_last_8bit: bool = True
) -> dict[str, int]:
    """Bits for every layer with the least sum of scores among all that take no more than `mean_bits` a weight.

    Args:
        scores: layer to bits to cost, in the order of computing.
        sizes: layer to its number of weights.
        mean_bits: of the layers that may vary, so that the outcome takes no more than these bits for each of them would.
        first_last_8bit: the first and the last layer have 8 bits and stay out of the mean.

    Raises:
        UnbuildableError: even the fewest bits are more than `mean_bits`.
    """
    names = list(scores)
    fixed = {names[0], names[-1]} if first_last_8bit else set()
    free = [name for name in names if name not in fixed]
    options = [sorted(scores[name]) for name in free]
    costs = [np.array([sizes[name] * bits for bits in tried], np.int64) for name, tried in zip(free, options, strict=True)]
    losses = [np.array([scores[name][bits] for bits in tried]) for name, tried in zip(free, options, strict=True)]
    total = sum(sizes[name] for name in free)
    budget = int(mean_bits * total + 1e-6)
    if sum(int(cost.min()) for cost in costs) > budget:
        least = sum(int(cost.min()) for cost in costs) / total
        raise UnbuildableError(f"weights need {least:g} bits on average or more; {mean_bits:g} are given")
    chosen = dict(zip(free, _least_loss(costs, losses, budget), strict=True))
    return {name: 8 if name in fixed else sorted(scores[name])[chosen[name]] for name in names}


def _layers(graph: fx.GraphModule) -> dict[str, nn.Conv2d | nn.Linear]:
    return {str(node.target): layer for node in graph.graph.nodes if (layer := layer_of(graph, node)) is not None}


def _add_divergences(
    graph: fx.GraphModule, images: Tensor, quantizers: dict[str, dict[int, WeightQuantizer]], scores: Scores
) -> None:
    """Walk through the float network; before each layer, try what comes of its weights in fewer bits."""
    wanted = F.log_softmax(graph(images).float(), 1)
    walk = fx.Interpreter(graph)
    walk.args_iter = iter([images])
    nodes, values = list(graph.graph.nodes), walk.env
    done: set[str] = set()
    for position, node in enumerate(nodes):
        layer, name = layer_of(graph, node), str(node.target)
        if layer is not None and name not in done:
            done.add(name)
            weight = layer.weight.data
            for number, quantizer in quantizers[name].items():
                layer.weight.data = quantizer(weight)
                got = F.log_softmax(_rest(walk, nodes[position:], values).float(), 1)
                scores[name][number] += float(F.kl_div(got, wanted, reduction="sum", log_target=True))
            layer.weight.data = weight
        _compute(walk, node, values)


def _rest(walk: fx.Interpreter, nodes: list[fx.Node], values: dict[fx.Node, Any]) -> Tensor:
    """The network's output from a node on, where all values that are needed before it are there."""
    values = dict(values)
    for node in nodes:
        _compute(walk, node, values)
    output: Tensor = values[nodes[-1]]
    return output


def _compute(walk: fx.Interpreter, node: fx.Node, values: dict[fx.Node, Any]) -> None:
    walk.env = values
    values[node] = walk.run_node(node)
    for past in walk.user_to_last_uses.get(node, []):
        values.pop(past, None)


def _least_loss(costs: list[npt.NDArray[np.int64]], losses: list[npt.NDArray[np.float64]], budget: int) -> list[int]:
    """One option for each item with the least summed loss within a summed cost: a multiple-choice knapsack, exactly.

    Dynamic programming over (cost, loss) of the items so far. A state goes when another costs no more and loses no more, or
    when Lagrange's bound on what it can still come to is above a known solution (Sinha and Zoltners 1979): few are left.
    """
    rate, known = _by_lagrange(costs, losses, budget)
    least = _from_the_end([int(cost.min()) for cost in costs])
    bound = _from_the_end([float((loss + rate * cost).min()) for cost, loss in zip(costs, losses, strict=True)])
    above = known + 1e-9 * (abs(known) + rate * budget) + 1e-300
    cost, loss = np.zeros(1, np.int64), np.zeros(1)
    origins: list[tuple[npt.NDArray[Any], int]] = []
    for item in range(len(costs)):
        width = len(costs[item])
        cost = (cost[:, None] + costs[item]).ravel()
        loss = (loss[:, None] + losses[item]).ravel()
        kept = np.flatnonzero((cost + least[item + 1] <= budget) & (loss + bound[item + 1] - rate * (budget - cost) <= above))
        kept = kept[np.lexsort((loss[kept], cost[kept]))]
        before = np.minimum.accumulate(np.concatenate([[np.inf], loss[kept][:-1]]))
        kept = kept[loss[kept] < before]
        cost, loss = cost[kept], loss[kept]
        origins.append((kept, width))
    place, chosen = int(loss.argmin()), []
    for kept, width in reversed(origins):
        place, option = divmod(int(kept[place]), width)
        chosen.append(option)
    return chosen[::-1]


def _from_the_end(values: list[Any]) -> list[Any]:
    """Sums of the values from each place on, and nothing after the last."""
    return [*accumulate(reversed(values), initial=0)][::-1]


def _by_lagrange(costs: list[npt.NDArray[np.int64]], losses: list[npt.NDArray[np.float64]], budget: int) -> tuple[float, float]:
    """The least price of cost at which everybody's own best choice is within the budget, by bisection; and their loss."""

    def at(rate: float) -> tuple[int, float]:
        total_cost, total_loss = 0, 0.0
        for cost, loss in zip(costs, losses, strict=True):
            pick = int((loss + rate * cost).argmin())
            total_cost, total_loss = total_cost + int(cost[pick]), total_loss + float(loss[pick])
        return total_cost, total_loss

    low, high = 0.0, sum(float(np.ptp(loss)) for loss in losses) + 1e-30
    if at(low)[0] <= budget:
        return low, at(low)[1]
    while at(high)[0] > budget:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle)[0] <= budget else (middle, high)
    return high, at(high)[1]
