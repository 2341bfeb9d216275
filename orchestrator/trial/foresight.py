"""What a recipe's settings fix of its file before the weights are good: functions of a recipe alone, in metric names."""

from __future__ import annotations

from orchestrator.spec.recipe import PruningSettings, Recipe

LATENCIES = frozenset({"latency_ms", "latency_ms_p95", "latency_ms_low", "latency_ms_high"})
_OF_STRUCTURE = LATENCIES | {"macs", "num_parameters"}
_OF_ZEROS = frozenset({"size_bytes", "sparsity"})

# With so many bits a layer is always stored packed: see `known_once_cut`.
_LEAST_DENSE_BITS = 6


def known_before_training(recipe: Recipe) -> frozenset[str]:
    """Which measurements an untrained network, cut and quantized by this recipe, shares with the file that will ship.

    Where the plan does not look at values, that is all of `known_once_cut`: nothing is cut, or channels at one ratio for all
    layers (counts follow from widths and ratio, whatever the criterion picks), or two of every four weights, or single weights
    at one ratio for all layers (how many go is exact to one weight). Single weights at a ratio over the whole network: which
    layer loses how many depends on values, and with it the size, but the layers stay as they are. Channels that are cut by
    "global" or "sensitivity": nothing is known. A network that starts from given weights and is not trained may come with
    zeros of its own, which would be stored as such: its size is not known either.
    """
    if cut_by_plan(recipe.pruning):
        as_given = recipe.model.weights is not None and recipe.training.epochs == 0
        return known_once_cut(recipe) - (_OF_ZEROS if as_given else frozenset())
    return _OF_STRUCTURE if recipe.pruning.kind == "weights" else frozenset()


def known_once_cut(recipe: Recipe) -> frozenset[str]:
    """Which measurements of a network that was just cut for the last time are final, whatever it learns afterwards.

    Multiply-accumulates, parameters and latency follow from the layers: dense kernels take their time for zeros as well, and
    packed weights are unpacked when the file is opened.

    Size and sparsity depend on zeros, as `compression.packing` leaves them out where that is smaller. Floats become 0 by being
    pruned and in no other way, and pruned weights stay 0, so they are known. A quantized weight of b bits is stored without
    zeros where more than 1/b of a layer's codes are 0. From 6 bits on, with a step for each channel, less than that are: of
    Laplacian weights, which have more near 0 than trained ones, 11 % at 6 bits, 7 % at 7, 4 % at 8. With fewer bits, with one
    step for all channels (a channel that died is all zeros), with bits by layer, and where single weights were pruned as well
    (what is left may round to 0), it is only estimated: see `estimated_once_cut`.
    """
    pruning, quantization = recipe.pruning, recipe.quantization
    if quantization.method == "none":
        return _OF_STRUCTURE | _OF_ZEROS
    whole = pruning.ratio == 0.0 or pruning.kind == "channels"
    even = quantization.allocation == "uniform" and quantization.granularity == "channel"
    dense = whole and even and quantization.weight_bits >= _LEAST_DENSE_BITS
    return _OF_STRUCTURE | ({"size_bytes"} if dense else frozenset())


def estimated_before_training(recipe: Recipe) -> frozenset[str]:
    """Which measurements of an untrained network are not final, but close to what the file will have.

    That is the size of quantized networks where `known_once_cut` leaves it out. With one number of bits it is the most that the
    file takes; bits by layer take no more than their mean does, but a function to unpack each width. The gate does not judge
    an estimate; a stopping rule may use it.
    """
    return estimated_once_cut(recipe) if cut_by_plan(recipe.pruning) else frozenset()


def estimated_once_cut(recipe: Recipe) -> frozenset[str]:
    """The same of a network that was just cut for the last time."""
    return frozenset({"size_bytes"}) - known_once_cut(recipe)


def cut_by_plan(pruning: PruningSettings) -> bool:
    """Whether the numbers of channels and of zeros that pruning leaves do not depend on values."""
    return pruning.ratio == 0.0 or pruning.kind == "2:4" or pruning.scope == "uniform"
