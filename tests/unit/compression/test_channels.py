"""Channel pruning: how much goes, what stays, and that what is left runs."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from orchestrator.compression.channels import prune_channels
from orchestrator.errors import UnbuildableError
from orchestrator.models.build import build

NETWORKS = {"cifar_resnet8": (1, 8, 8), "resnet18": (3, 32, 32), "mobilenet_v2": (3, 32, 32), "vgg11_bn": (3, 32, 32)}


@cache
def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(name, 16, 10, NETWORKS[name])


def network(name: str) -> nn.Module:
    return copy.deepcopy(_built(name))


def example(name: str) -> Tensor:
    return torch.zeros(1, *NETWORKS[name])


def widths(model: nn.Module) -> list[int]:
    return [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]


def assert_runs(model: nn.Module, name: str) -> None:
    model.eval()
    with torch.no_grad():
        logits = model(torch.randn(2, *NETWORKS[name]))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "ratio", "round_to"),
    [
        ("cifar_resnet8", 0.25, 4),
        ("cifar_resnet8", 0.5, 8),
        ("cifar_resnet8", 0.7, 1),
        ("resnet18", 0.5, 8),
        ("mobilenet_v2", 0.5, 4),
        ("vgg11_bn", 0.5, 8),
    ],
)
def test_about_the_ratio_of_each_layers_channels_goes_and_what_is_left_runs(name: str, ratio: float, round_to: int) -> None:
    model = network(name)
    before = widths(model)
    prune_channels(model, example(name), ratio, "l2", "uniform", round_to)
    after = widths(model)
    for old, new in zip(before, after, strict=True):
        assert new % round_to == 0
        assert new == pytest.approx(old * (1 - ratio), abs=round_to)
    assert sum(after) == pytest.approx(sum(before) * (1 - ratio), rel=0.1)
    assert_runs(model, name)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
@pytest.mark.parametrize("name", ["cifar_resnet8", "resnet18"])
def test_a_global_ratio_is_one_over_the_whole_network(name: str, criterion: str) -> None:
    model = network(name)
    before = widths(model)
    # Channels of one layer are made small: they go first.
    victim = [module for module in model.modules() if isinstance(module, nn.Conv2d)][2]
    victim.weight.data[: victim.out_channels // 2] *= 1e-3
    prune_channels(model, example(name), 0.4, criterion, "global", 4)
    after = widths(model)
    assert all(width % 4 == 0 and width > 0 for width in after)
    assert 0.3 < 1 - sum(after) / sum(before) < 0.5
    shares = {new / old for old, new in zip(before, after, strict=True)}
    assert len(shares) > 1
    assert_runs(model, name)


@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_the_largest_ratio_leaves_a_network_that_runs(scope: str) -> None:
    model = network("cifar_resnet8")
    prune_channels(model, example("cifar_resnet8"), 0.95, "l2", scope, 1)
    assert min(widths(model)) >= 1
    assert_runs(model, "cifar_resnet8")


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize(("small", "large", "round_to"), [(0.7, 0.8, 4), (0.9, 0.95, 4), (0.9, 0.95, 1)])
def test_a_larger_ratio_never_leaves_more_channels(small: float, large: float, round_to: int, scope: str) -> None:
    left = []
    for ratio in (small, large):
        model = network("cifar_resnet8")
        prune_channels(model, example("cifar_resnet8"), ratio, "l2", scope, round_to)
        assert all(width >= round_to and width % round_to == 0 for width in widths(model))
        left.append(widths(model))
    assert all(more <= less for less, more in zip(*left, strict=True)), left


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("round_to", [1, 4, 16])
def test_the_parts_of_a_grouped_convolution_stay_equal_and_are_pruned_like_the_rest(round_to: int, scope: str) -> None:
    layers = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 1, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)]
    left = []
    for ratio in (0.0, 0.3, 0.5, 0.8, 0.95):
        model = copy.deepcopy(nn.Sequential(*layers))
        prune_channels(model, torch.zeros(1, 1, 3, 3), ratio, "l2", scope, round_to)
        left.append(sum(widths(model)))
        assert all(width % round_to == 0 and width % 8 == 0 for width in widths(model))
        assert model(torch.randn(2, 1, 3, 3)).shape == (2, 3)
    assert left == sorted(left, reverse=True)
    assert (left[0], left[-1]) == (64, 2 * max(8, round_to))


def test_the_weakest_channels_go_with_everything_that_depends_on_them() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(64, 3)
    )
    weak = [1, 2, 6, 7]
    strong = [0, 3, 4, 5]
    model[0].weight.data[weak] *= 1e-3
    model[3].weight.data[:, weak] *= 1e-3
    model[1].weight.data[weak] = 1e-3
    norm = model[1].weight.detach().clone() + torch.arange(8)
    model[1].bias.data = norm.clone()
    kernel = model[0].weight.detach().clone()
    prune_channels(model, torch.zeros(1, 1, 4, 4), 0.5, "l2", "uniform", 1)
    assert torch.equal(model[0].weight, kernel[strong])
    assert torch.equal(model[1].bias, norm[strong])
    assert model[3].weight.shape == (2, 4, 1, 1)
    assert model[5].weight.shape == (3, 32)


def test_nothing_goes_at_ratio_nothing() -> None:
    model = network("cifar_resnet8")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prune_channels(model, example("cifar_resnet8"), 0.0, "l2", "uniform", 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_pruning_repeats_itself() -> None:
    one, two = network("cifar_resnet8"), network("cifar_resnet8")
    for model in (one, two):
        prune_channels(model, example("cifar_resnet8"), 0.5, "l1", "global", 2)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_gradients_are_left_clean(training: bool) -> None:
    model = network("cifar_resnet8").train(training)
    statistics = model.bn.running_mean.clone()
    prune_channels(model, example("cifar_resnet8"), 0.5, "l2", "uniform", 4)
    assert model.training == training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert set(model.bn.running_mean.tolist()) <= set(statistics.tolist())


def test_a_pruned_network_trains() -> None:
    model = network("cifar_resnet8")
    prune_channels(model, example("cifar_resnet8"), 0.5, "l2", "uniform", 4)
    model.train()(torch.randn(4, 1, 8, 8)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_network_whose_forward_knows_its_widths_cannot_be_pruned() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).view(x.shape[0], 8, -1).mean(2))

    with pytest.raises(UnbuildableError, match=r"a ratio of 0\.5 \(uniform, l2\) cannot be pruned"):
        prune_channels(Stubborn(), torch.zeros(1, 1, 4, 4), 0.5, "l2", "uniform", 1)
