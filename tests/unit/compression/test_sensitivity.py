"""Bits for each layer: what every layer costs alone, and the best choice for a budget."""

from __future__ import annotations

import copy
import itertools
import math
import random
import time

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from orchestrator.compression.fake_quantize import calibrate, insert_quantizers, weight_quantizer
from orchestrator.compression.quantizers import WeightQuantizer
from orchestrator.compression.sensitivity import Scores, allocate_bits, bit_sensitivity, weight_sizes
from orchestrator.data.batches import DeviceData
from orchestrator.errors import UnbuildableError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def images(digits: DeviceData) -> Tensor:
    return digits.normalizer(digits.images[:64])


@pytest.fixture(scope="module")
def scores(dense: nn.Module, images: Tensor) -> Scores:
    return bit_sensitivity(dense, images.split(32))


def divergence(model: nn.Module, other: nn.Module, images: Tensor) -> float:
    """Mean over images of sum p log(p / q), from probabilities, in double precision."""
    with torch.no_grad():
        p, q = (F.softmax(one.eval()(images).double(), 1) for one in (model, other))
    return (p * (p / q).log()).sum(1).mean().item()


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_a_score_is_the_divergence_of_the_network_with_one_layer_rounded(
    dense: nn.Module, images: Tensor, granularity: str
) -> None:
    """As a plain loop has it that rounds one layer of a copy and runs all of it."""
    scores = bit_sensitivity(dense, images.split(32), (2, 5), granularity)
    layers = [name for name, module in dense.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert set(scores) == set(layers)
    for name, by_bits in scores.items():
        assert list(by_bits) == [2, 5]
        for bits, score in by_bits.items():
            other = copy.deepcopy(dense)
            layer = other.get_submodule(name)
            layer.weight.data = WeightQuantizer(layer.weight, bits, granularity)(layer.weight).detach()
            assert score == pytest.approx(divergence(dense, other, images), rel=1e-3, abs=1e-6)


class Twice(nn.Module):
    """A layer that is called twice, and tensors that are read late."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.fc = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        early = torch.relu(self.first(x))
        late = self.layer(torch.relu(self.layer(early)))
        return self.fc(torch.cat([early, late + x], 1))


def test_a_layer_that_is_called_twice_is_rounded_in_both_places() -> None:
    torch.manual_seed(0)
    model, images = Twice(), torch.randn(40, 6)
    scores = bit_sensitivity(model, [images], (2, 3))
    assert list(scores) == ["first", "layer", "fc"]
    for name, bits in itertools.product(scores, (2, 3)):
        other = copy.deepcopy(model)
        layer = other.get_submodule(name)
        layer.weight.data = WeightQuantizer(layer.weight, bits)(layer.weight).detach()
        assert scores[name][bits] == pytest.approx(divergence(model, other, images), rel=1e-3, abs=1e-6)


def test_scoring_repeats_itself_and_changes_nothing(dense: nn.Module, images: Tensor, scores: Scores) -> None:
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    assert bit_sensitivity(dense, images.split(32)) == scores
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    whole = bit_sensitivity(dense, [images])
    for name, by_bits in scores.items():
        assert by_bits == pytest.approx(whole[name], rel=1e-3, abs=1e-6)


def test_fewer_bits_cost_more(scores: Scores) -> None:
    assert all(list(by_bits) == [2, 3, 4, 6, 8] for by_bits in scores.values())
    assert all(0 <= by_bits[8] < by_bits[4] < by_bits[2] for by_bits in scores.values())
    assert sum(by_bits[2] for by_bits in scores.values()) > 100 * sum(by_bits[8] for by_bits in scores.values())


def test_names_and_sizes_are_those_of_the_quantized_graph(dense: nn.Module, images: Tensor, scores: Scores) -> None:
    sizes = weight_sizes(dense)
    assert list(sizes) == list(scores)
    bits = allocate_bits(scores, sizes, 3.5)
    graph = insert_quantizers(dense, bits, 8, first_last_8bit=True)
    calibrate(graph, [images], "mse")
    for name, size in sizes.items():
        layer = graph.get_submodule(name)
        assert layer.weight.numel() == size
        assert weight_quantizer(layer).bits == bits[name]


def test_scored_bits_are_better_than_the_same_for_all(dense: nn.Module, images: Tensor, scores: Scores) -> None:
    sizes = weight_sizes(dense)
    lost = []
    for bits in (4, allocate_bits(scores, sizes, 4.0)):
        graph = insert_quantizers(dense, bits, 8, first_last_8bit=True)
        calibrate(graph, [images], "minmax")
        lost.append(divergence(dense, graph, images))
    assert lost[1] < 0.8 * lost[0]


# --- allocation ----------------------------------------------------------------------------------------------------------


def cost_of(bits: dict[str, int], sizes: dict[str, int], names: list[str]) -> int:
    return sum(sizes[name] * bits[name] for name in names)


def loss_of(bits: dict[str, int], scores: Scores, names: list[str]) -> float:
    return sum(scores[name][bits[name]] for name in names)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Scores, dict[str, int], float, bool]:
    """A few layers, with scores that need not fall with bits; a budget anywhere from too small to plenty."""
    num = draw(st.integers(1, 5))
    tried = draw(st.lists(st.sampled_from(range(2, 9)), min_size=1, max_size=4, unique=True))
    score = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1e-9]))
    scores = {f"layer{i}": {bits: draw(score) for bits in tried} for i in range(num)}
    sizes = {name: draw(st.integers(1, 60)) for name in scores}
    return scores, sizes, draw(st.floats(1.5, 8.5)), draw(st.booleans())


@settings(deadline=None, max_examples=400)
@given(problem=problems())
def test_no_other_choice_within_the_budget_is_better(problem: tuple[Scores, dict[str, int], float, bool]) -> None:
    scores, sizes, mean_bits, first_last_8bit = problem
    names = list(scores)
    free = [name for name in names if not (first_last_8bit and name in (names[0], names[-1]))]
    budget = mean_bits * sum(sizes[name] for name in free) + 1e-6
    choices = [dict(zip(free, bits, strict=True)) for bits in itertools.product(*(scores[name] for name in free))]
    losses = [loss_of(bits, scores, free) for bits in choices if cost_of(bits, sizes, free) <= budget]
    if not losses:
        with pytest.raises(UnbuildableError, match="bits on average or more"):
            allocate_bits(scores, sizes, mean_bits, first_last_8bit)
        return
    ours = allocate_bits(scores, sizes, mean_bits, first_last_8bit)
    assert list(ours) == names
    assert all(ours[name] == 8 for name in names if name not in free)
    assert cost_of(ours, sizes, free) <= budget
    assert loss_of(ours, scores, free) == pytest.approx(min(losses), rel=1e-9, abs=1e-15)
    assert allocate_bits(scores, sizes, mean_bits, first_last_8bit) == ours


def made_up(num: int, seed: int, unit: int) -> tuple[Scores, dict[str, int]]:
    """Scores as rounding gives them, about 4^-bits, of layers whose sizes are multiples of a unit."""
    numbers = random.Random(seed)
    sizes = {f"layer{i}": unit * numbers.randint(1, 40) for i in range(num)}
    scores = {}
    for name in sizes:
        height = math.exp(numbers.gauss(0, 2))
        scores[name] = {bits: height * 4.0**-bits * numbers.uniform(0.5, 1.5) for bits in (2, 3, 4, 6, 8)}
    return scores, sizes


def least_loss_by_table(scores: Scores, sizes: dict[str, int], budget: int) -> float:
    """The textbook's table over every cost."""
    best = [0.0] * (budget + 1)
    for name, by_bits in scores.items():
        best = [
            min(
                (best[at - sizes[name] * bits] + loss for bits, loss in by_bits.items() if at >= sizes[name] * bits),
                default=math.inf,
            )
            for at in range(budget + 1)
        ]
    return best[-1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mean_bits", [2.25, 4.0])
def test_it_finds_what_a_table_over_all_costs_finds(seed: int, mean_bits: float) -> None:
    scores, sizes = made_up(16, seed, 1)
    names = list(scores)
    ours = allocate_bits(scores, sizes, mean_bits, first_last_8bit=False)
    budget = int(mean_bits * sum(sizes.values()))
    assert loss_of(ours, scores, names) == pytest.approx(least_loss_by_table(scores, sizes, budget), rel=1e-9)
    big = allocate_bits(scores, {name: 4099 * size for name, size in sizes.items()}, mean_bits, first_last_8bit=False)
    assert loss_of(big, scores, names) == pytest.approx(loss_of(ours, scores, names), rel=1e-9)


def test_a_hundred_layers_are_solved_at_once() -> None:
    scores, sizes = made_up(100, 0, 1)
    sizes = {name: size * 36_871 + position for position, (name, size) in enumerate(sizes.items())}
    started = time.perf_counter()
    losses = []
    for mean_bits in (2.5, 3.0, 4.0, 5.5):
        bits = allocate_bits(scores, sizes, mean_bits)
        free = list(bits)[1:-1]
        used = cost_of(bits, sizes, free) / sum(sizes[name] for name in free)
        assert mean_bits - 0.05 < used <= mean_bits
        losses.append(loss_of(bits, scores, free))
    assert losses == sorted(losses, reverse=True)
    assert time.perf_counter() - started < 5


def test_the_same_scores_solve_every_budget(scores: Scores, dense: nn.Module) -> None:
    sizes = weight_sizes(dense)
    free = list(sizes)[1:-1]
    losses = []
    for mean_bits in (2, 3, 4, 6, 8):
        bits = allocate_bits(scores, sizes, mean_bits)
        assert cost_of(bits, sizes, free) <= mean_bits * sum(sizes[name] for name in free)
        losses.append(loss_of(bits, scores, free))
        assert losses[-1] <= loss_of(dict.fromkeys(free, mean_bits), scores, free)
    assert losses == sorted(losses, reverse=True)
    assert set(allocate_bits(scores, sizes, 2).values()) == {2, 8}


def test_two_layers_are_both_at_the_ends() -> None:
    assert allocate_bits({"a": {2: 1.0}, "b": {2: 1.0}}, {"a": 5, "b": 7}, 2.0) == {"a": 8, "b": 8}


def test_a_mean_below_the_fewest_bits_cannot_be_had() -> None:
    scores, sizes = made_up(4, 0, 1)
    with pytest.raises(UnbuildableError, match=r"weights need 2 bits on average or more; 1\.5 are given"):
        allocate_bits(scores, sizes, 1.5)
