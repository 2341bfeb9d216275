"""Channel pruning: how much goes, what stays, and that what is left runs."""

from __future__ import annotations

import copy
import gc
import math
import random
import weakref
from collections.abc import Callable
from functools import cache
from itertools import accumulate, product
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.maxvit import MaxVit
from torchvision.models.shufflenetv2 import ShuffleNetV2
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vgg import make_layers
from torchvision.models.vision_transformer import VisionTransformer

from orchestrator.compression.channel_groups import ChannelGraph
from orchestrator.compression.channels import (
    channel_sensitivity,
    channel_widths,
    prunable,
    prune_channels,
    step_ratios,
    total_ratios,
)
from orchestrator.compression.scores import group_scores, layer_ratios
from orchestrator.errors import UnbuildableError
from orchestrator.models.build import build

NETWORKS = {"cifar_resnet8": (1, 8, 8), "resnet18": (3, 32, 32), "mobilenet_v2": (3, 32, 32), "narrow_vgg11_bn": (3, 32, 32)}


def narrow_vgg() -> nn.Module:
    """VGG-11 with batch norms and an eighth of its channels: flattened at 7 x 7 places per channel, three linear layers."""
    features = make_layers([8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"], batch_norm=True)
    classifier = nn.Linear(64 * 49, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *classifier)


@cache
def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return narrow_vgg() if name == "narrow_vgg11_bn" else build(name, 16, 10, NETWORKS[name])


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
        ("narrow_vgg11_bn", 0.5, 8),
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


TINY: dict[str, Callable[[], nn.Module]] = {
    "cifar_resnet": lambda: build("cifar_resnet8", 8, 10, (3, 32, 32)),
    "vit": lambda: VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10),
    "convnext": lambda: ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 2)], num_classes=10),
    "densenet": lambda: DenseNet(8, (2, 2), 16, num_classes=10),
    "mobilenet_v3": lambda: mobilenet_v3_small(num_classes=10),
    "vgg": narrow_vgg,
    "squeezenet": lambda: build("squeezenet1_1", 16, 10, (3, 32, 32)),
}
IMAGE = torch.zeros(1, 3, 32, 32)


def drawn(make: Callable[[], nn.Module]) -> nn.Module:
    """A network in which everything matters: block scales near 0 and classifiers of 0 would hide a wrong cut."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else parameter[0].numel() ** -0.5))
    return model


def logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.eval()(images)
    return out


@pytest.mark.parametrize("name", TINY)
def test_channels_that_nothing_reads_go_without_a_trace(name: str) -> None:
    """Half of the channels of every group are made the weakest, with readers of weight 0; cutting them must change nothing."""
    model = drawn(TINY[name])
    assert prunable(model, IMAGE) is None
    groups = [group for group in ChannelGraph(model, IMAGE).groups if not group.mixed]
    with torch.no_grad():
        for group in groups:
            dead = torch.randperm(group.width)[: group.width // 2]
            for member in group.members:
                places = member.places[torch.isin(member.channels, dead)]
                if member.role == "reads":
                    member.layer.weight[:, places] = 0
                else:
                    member.layer.weight[places] *= 1e-2
    images = torch.randn(2, 3, 32, 32)
    before, old = logits(model, images), channel_widths(model, IMAGE)
    halves = {group.name: 0.5 for group in groups}
    prune_channels(model, IMAGE, 0.5, "l2", "sensitivity", 1, ratios=halves)
    assert channel_widths(model, IMAGE) == {name: width // 2 if name in halves else width for name, width in old.items()}
    assert len(groups) > 1
    torch.testing.assert_close(logits(model, images), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_every_family_is_pruned_and_keeps_its_classes(name: str, scope: str) -> None:
    model = drawn(TINY[name])
    before = channel_widths(model, IMAGE)
    prune_channels(model, IMAGE, 0.5, "l2", scope, 2)
    after = channel_widths(model, IMAGE)
    assert sum(after.values()) == pytest.approx(0.5 * sum(before.values()), rel=0.1)
    assert all(width % 2 == 0 for width in after.values())
    assert logits(model, torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_vision_transformer_loses_its_hidden_units_and_keeps_heads_and_embedding() -> None:
    model = drawn(TINY["vit"])
    hidden = [f"encoder.layers.encoder_layer_{layer}.mlp.0" for layer in (0, 1)]
    assert channel_widths(model, IMAGE) == dict.fromkeys(hidden[::-1], 64)
    prune_channels(model, IMAGE, 0.25, "l2", "uniform", 1)
    assert [tuple(model.get_submodule(name).weight.shape) for name in hidden] == [(48, 32)] * 2
    assert model.encoder.layers[0].self_attention.in_proj_weight.shape == (96, 32)


class Shuffled(nn.Module):
    """Channels that are dealt like cards between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x.view(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        out: Tensor = self.fc(torch.relu(self.second(x)).mean((2, 3)))
        return out


class Unrolled(nn.Sequential):
    """Four channels become one of twice the size."""

    def __init__(self) -> None:
        pool = nn.AdaptiveAvgPool2d(1)
        super().__init__(nn.Conv2d(3, 16, 1), nn.PixelShuffle(2), nn.Conv2d(4, 8, 1), pool, nn.Flatten(), nn.Linear(8, 10))


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "swin": lambda: SwinTransformer([2, 2], 8, [1, 2], [2, 2], [4, 4], num_classes=10),
    "maxvit": lambda: MaxVit((32, 32), 8, 2, [8, 16], [1, 1], 4, 0.0, num_classes=10),
    "shufflenet": lambda: ShuffleNetV2([1, 2, 1], [8, 16, 32, 64, 64], num_classes=10),
    "shuffled": Shuffled,
    "unrolled": Unrolled,
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_pruned_is_refused_before_anything_is_done(name: str) -> None:
    torch.manual_seed(0)
    model = REFUSED[name]()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    reason = prunable(model, IMAGE)
    assert reason is not None
    expected = {"shuffled": "misreads", "linear": "none of its layers"}.get(name, "its channels cannot be")
    assert expected in reason
    for ratio in (0.1, 0.5):
        with pytest.raises(UnbuildableError) as caught:
            prune_channels(model, IMAGE, ratio, "l2", "uniform", 1)
        assert str(caught.value) == f"a ratio of {ratio} (uniform, l2) cannot be pruned: {reason}"
    with pytest.raises(UnbuildableError):
        channel_sensitivity(model, IMAGE, lambda network: 0.0, [0.5], "l2", 1)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_trial_cut_leaves_no_trace() -> None:
    model = network("cifar_resnet8")
    model.blocks.eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    drawn_before = torch.random.get_rng_state()
    assert prunable(model, example("cifar_resnet8")) is None
    assert torch.equal(torch.random.get_rng_state(), drawn_before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.training
    assert not model.blocks.training


def test_every_layer_gets_its_own_mode_back() -> None:
    model = network("cifar_resnet8")
    model.bn.eval()
    prune_channels(model, example("cifar_resnet8"), 0.5, "l2", "uniform", 4)
    assert [name for name, module in model.named_modules() if not module.training] == ["bn"]


def test_a_caller_without_gradients_may_prune() -> None:
    one, other = network("cifar_resnet8"), network("cifar_resnet8")
    with torch.no_grad():
        prune_channels(one, example("cifar_resnet8"), 0.5, "l2", "global", 4)
    prune_channels(other, example("cifar_resnet8"), 0.5, "l2", "global", 4)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert all(parameter.requires_grad for parameter in one.parameters())


def test_a_pruned_network_is_not_kept_alive() -> None:
    model = network("cifar_resnet8")
    prune_channels(model, example("cifar_resnet8"), 0.5, "l2", "uniform", 4)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("name", ["cifar_resnet", "densenet", "mobilenet_v3", "convnext", "vit"])
@pytest.mark.parametrize("power", [1, 2])
def test_magnitudes_are_those_of_the_library(name: str, power: int) -> None:
    model = drawn(TINY[name])
    groups = ChannelGraph(model, IMAGE).groups
    scores = group_scores([(group.members, group.width) for group in groups], f"l{power}")
    graph = tp.DependencyGraph().build_dependency(model, IMAGE, verbose=False)
    reference = tp.importance.GroupMagnitudeImportance(p=power)
    for group, score in zip(groups, scores, strict=True):
        writer = graph.get_pruner_of_module(group.root).prune_out_channels
        wanted = reference(graph.get_pruning_group(group.root, writer, list(range(group.width))))
        torch.testing.assert_close(score, wanted.double(), rtol=1e-4, atol=0.0)


def test_batch_norm_scales_decide_and_are_compared_over_layers() -> None:
    """Two norms with scales of different size: over the network the small layer's go first, whatever its weights are."""
    layers = [nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(64, 2))
    model[1].weight.data = torch.tensor([0.4, -0.1, 0.3, -0.2])
    model[4].weight.data = torch.tensor([1.0, -0.05, 3.0, -2.0])
    model[0].weight.data[1], model[3].weight.data[1] = 100.0, 100.0
    uniform, over_all = copy.deepcopy(model), copy.deepcopy(model)
    prune_channels(uniform, torch.zeros(1, 1, 4, 4), 0.5, "bn_scale", "uniform", 1)
    assert uniform[1].weight.tolist() == pytest.approx([0.4, 0.3])
    assert uniform[4].weight.tolist() == pytest.approx([3.0, -2.0])
    prune_channels(over_all, torch.zeros(1, 1, 4, 4), 0.5, "bn_scale", "global", 1)
    assert over_all[1].weight.tolist() == pytest.approx([0.4])
    assert over_all[4].weight.tolist() == pytest.approx([1.0, 3.0, -2.0])


def test_a_group_without_a_batch_norm_is_scored_by_its_weights_at_the_norms_level() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    model[1].weight.data = torch.tensor([0.1, -0.5])
    model[3].weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    model[5].weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 1.0]])
    groups = {group.name: group for group in ChannelGraph(model, torch.zeros(1, 1, 1, 1)).groups}
    scores = group_scores([(groups[name].members, groups[name].width) for name in ("0", "3")], "bn_scale")
    assert scores[0].tolist() == pytest.approx([0.1, 0.5])
    # Squares that write and read: 1 + 1, 4 + 4, 0 + 1; over their mean, times the mean of 0.1 and 0.5.
    assert scores[1].tolist() == pytest.approx([0.3 * value / (11 / 3) for value in (2, 8, 1)])


def test_the_mean_over_norms_is_taken_where_a_group_has_several() -> None:
    model = build("cifar_resnet8", 4, 10, (3, 32, 32))
    stream = [model.bn, model.blocks[0].bn2]
    for norm, scale in zip(stream, ([1.0, 2.0, 3.0, 4.0], [3.0, -2.0, 0.5, 4.0]), strict=True):
        norm.weight.data = torch.tensor(scale)
    groups = {group.name: group for group in ChannelGraph(model, IMAGE).groups}
    group = next(group for group in groups.values() if {m.name for m in group.members} >= {"bn", "blocks.0.bn2"})
    (score,) = group_scores([(group.members, group.width)], "bn_scale")
    assert score.tolist() == pytest.approx([2.0, 2.0, 1.75, 4.0])


def with_gradients(model: nn.Module, image: Tensor = IMAGE) -> nn.Module:
    torch.manual_seed(1)
    nn.functional.cross_entropy(model.eval()(torch.randn(4, *image.shape[1:])), torch.arange(4)).backward()
    return model


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "grouped": lambda: nn.Sequential(nn.Conv2d(3, 8, 5, 5), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2), *ending(8)),
    "transposed": lambda: nn.Sequential(nn.Conv2d(3, 8, 5, 5), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, groups=2), *ending(6)),
}


def ending(channels: int) -> list[nn.Module]:
    return [nn.ReLU(), nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Linear(9 * channels, 10)]


@pytest.mark.parametrize("name", ["cifar_resnet", "vit", "densenet", "mobilenet_v3", *CHAINS])
def test_taylor_is_the_squared_gradient_of_a_gate_on_each_channel(name: str) -> None:
    model = with_gradients(drawn({**TINY, **CHAINS}[name]))
    groups = [group for group in ChannelGraph(model, IMAGE).groups if not group.mixed]
    scores = group_scores([(group.members, group.width) for group in groups], "taylor")
    for group, score in list(zip(groups, scores, strict=True))[:6]:
        gate = torch.ones(group.width, requires_grad=True)
        hooks = []
        for member in group.members:
            if member.role == "reads":

                def shut(layer: nn.Module, inputs: tuple[Tensor], member: Any = member, gate: Tensor = gate) -> tuple[Tensor]:
                    (x,) = inputs
                    width = x.shape[-1] if isinstance(layer, nn.Linear) else x.shape[1]
                    seen = torch.ones(width).index_put((member.places,), gate[member.channels])
                    return (x * (seen if isinstance(layer, nn.Linear) else seen[:, None, None]),)

                hooks.append(member.layer.register_forward_pre_hook(shut))
        torch.manual_seed(1)
        loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4))
        (slope,) = torch.autograd.grad(loss, gate)
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(score, slope.double().square(), rtol=1e-3, atol=1e-9)


def test_parts_lose_the_same_channels_by_their_mean_score() -> None:
    model = with_gradients(drawn(CHAINS["grouped"]))
    group = next(group for group in ChannelGraph(model, IMAGE).groups if group.name == "0")
    (score,) = group_scores([(group.members, group.width)], "taylor")
    weakest = int(score.view(2, 4).mean(0).argmin())
    kept = model[0].weight.detach()[[place for place in range(8) if place % 4 != weakest]]
    prune_channels(model, IMAGE, 0.25, "taylor", "uniform", 1)
    assert torch.equal(model[0].weight, kept)


def test_taylor_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
    model[0].weight.data, model[1].weight.data = torch.ones(3, 2), torch.tensor([[1.0, 2.0, 3.0]])
    model[0].weight.grad = torch.zeros(3, 2)
    model[1].weight.grad = torch.tensor([[0.5, -1.0, 0.1]])
    (group,) = ChannelGraph(model, torch.zeros(1, 2)).groups
    (score,) = group_scores([(group.members, group.width)], "taylor")
    assert score.tolist() == pytest.approx([0.25, 4.0, 0.09])
    prune_channels(model, torch.zeros(1, 2), 0.4, "taylor", "uniform", 1)
    assert model[1].weight.tolist() == [[2.0]]
    assert model[1].weight.grad is None


@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_taylor_without_gradients_is_refused(scope: str) -> None:
    model = network("cifar_resnet8")
    with pytest.raises(ValueError, match=r"parameters must carry gradients for taylor scores; those of .* carry none"):
        prune_channels(model, example("cifar_resnet8"), 0.5, "taylor", scope, 1)
    assert widths(model) == widths(network("cifar_resnet8"))


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn_scale", "taylor"])
def test_of_equal_channels_the_first_go(criterion: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.ones_like(parameter)
    model[0].bias.data = torch.arange(4.0)
    prune_channels(model, torch.zeros(1, 1, 1, 1), 0.5, criterion, "uniform", 1)
    assert model[0].bias.tolist() == [2.0, 3.0]


@pytest.mark.parametrize(("criterion", "scope"), [("l3", "uniform"), ("l2", "local"), ("l2", "sensitivity")])
def test_unknown_choices_are_refused(criterion: str, scope: str) -> None:
    with pytest.raises(ValueError, match=r"(criterion|scope) must be"):
        prune_channels(network("cifar_resnet8"), example("cifar_resnet8"), 0.5, criterion, scope, 1)


def test_ratios_and_widths_must_fit_the_network() -> None:
    model, image = network("cifar_resnet8"), example("cifar_resnet8")
    with pytest.raises(ValueError, match=r"ratios must name groups, which are .*; given \['nowhere'\]"):
        prune_channels(model, image, 0.5, "l2", "sensitivity", 1, ratios={"nowhere": 0.5})
    with pytest.raises(ValueError, match="original_widths must hold every group; it lacks"):
        prune_channels(model, image, 0.5, "l2", "uniform", 1, original_widths={"blocks.0.conv1": 16})


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.95])
def test_steps_leave_what_one_step_would(ratio: float, steps: int) -> None:
    fractions, totals = step_ratios(ratio, steps), total_ratios(ratio, steps)
    assert len(fractions) == len(totals) == steps
    assert math.prod(1 - fraction for fraction in fractions) == pytest.approx(1 - ratio)
    left = list(accumulate((1 - fraction for fraction in fractions), lambda one, other: one * other))
    assert [1 - total for total in totals] == pytest.approx(left)
    assert totals[-1] == ratio


@pytest.mark.parametrize(("name", "ratio", "round_to"), [("cifar_resnet", 0.7, 4), ("densenet", 0.45, 2), ("vit", 0.8, 8)])
def test_widths_after_several_steps_are_those_of_one(name: str, ratio: float, round_to: int) -> None:
    once, stepwise = drawn(TINY[name]), drawn(TINY[name])
    prune_channels(once, IMAGE, ratio, "l2", "uniform", round_to)
    original, seen = channel_widths(stepwise, IMAGE), []
    for total in total_ratios(ratio, 3):
        prune_channels(stepwise, IMAGE, total, "l2", "uniform", round_to, original_widths=original)
        seen.append(sum(channel_widths(stepwise, IMAGE).values()))
    assert channel_widths(stepwise, IMAGE) == channel_widths(once, IMAGE)
    assert sum(original.values()) > seen[0] > seen[1] > seen[2]


def test_global_steps_reach_the_ratio_of_the_original_widths() -> None:
    model = drawn(TINY["cifar_resnet"])
    original = channel_widths(model, IMAGE)
    for total in total_ratios(0.6, 4):
        prune_channels(model, IMAGE, total, "l1", "global", 1, original_widths=original)
        assert sum(channel_widths(model, IMAGE).values()) == math.floor(sum(original.values()) * (1 - total) + 1e-9)


def test_a_tenth_of_ten_channels_is_one() -> None:
    model = nn.Sequential(nn.Conv2d(1, 10, 1), nn.ReLU(), nn.Flatten(), nn.Linear(10, 2))
    prune_channels(model, torch.zeros(1, 1, 1, 1), 0.9, "l2", "uniform", 1)
    assert widths(model) == [1]


def test_the_layer_that_bears_it_takes_the_ratio() -> None:
    curves = {"tough": {0.0: 1.0, 0.5: 1.1, 0.9: 1.5}, "tender": {0.0: 1.0, 0.5: 2.0, 0.9: 4.0}}
    sizes = {"tough": 100, "tender": 100}
    # A channel costs 0.002 in the first half of "tough", 0.01 in the rest, 0.02 in the first half of "tender".
    assert layer_ratios(curves, sizes, 0.2) == pytest.approx({"tough": 0.4, "tender": 0.0})
    assert layer_ratios(curves, sizes, 0.4) == pytest.approx({"tough": 0.8, "tender": 0.0})
    assert layer_ratios(curves, sizes, 0.6) == pytest.approx({"tough": 0.9, "tender": 0.3})
    assert layer_ratios(curves, sizes, 0.99) == {"tough": 0.9, "tender": 0.9}
    # With ten times the channels for the same loss, each of "tender" costs 0.002 and then 0.005; one of "tough" 0.02.
    assert layer_ratios(curves, {"tough": 10, "tender": 1000}, 0.5) == pytest.approx({"tough": 0.0, "tender": 0.505})


def test_bumps_and_losses_that_are_not_finite_are_passed_over() -> None:
    curve = {0.0: 1.0, 0.3: 5.0, 0.6: 2.0, 0.7: float("nan"), 0.8: float("inf")}
    assert layer_ratios({"a": curve, "b": {0.0: 1.0, 0.6: 2.5}}, {"a": 10, "b": 10}, 0.3) == pytest.approx({"a": 0.6, "b": 0.0})
    with pytest.raises(ValueError, match=r"a loss at ratio 0 must be given for every group; 'a' has them at \[0.5\]"):
        layer_ratios({"a": {0.5: 1.0}}, {"a": 10}, 0.3)


def test_shared_ratios_are_the_best_of_all_combinations() -> None:
    """Convex curves, and targets that corners reach: then the best way is among the corners, which can be counted out."""
    dice = random.Random(0)
    grid = [0.0, 0.25, 0.5, 0.75]
    for _ in range(20):
        sizes = {name: 4 * dice.randint(1, 5) for name in "abcd"}
        steps = {name: sorted(dice.uniform(-0.2, 1.0) for _ in grid[1:]) for name in sizes}
        curves = {name: dict(zip(grid, accumulate([1.0, *steps[name]]), strict=True)) for name in sizes}
        chosen = layer_ratios(curves, sizes, 0.4)
        assert sum(chosen[name] * size for name, size in sizes.items()) == pytest.approx(0.4 * sum(sizes.values()))
        loss = sum(interpolated(curves[name], chosen[name]) for name in sizes)
        for corner in product(grid, repeat=4):
            if sum(ratio * size for ratio, size in zip(corner, sizes.values(), strict=True)) == 0.4 * sum(sizes.values()):
                assert loss <= sum(curves[name][ratio] for name, ratio in zip(sizes, corner, strict=True)) + 1e-9


def interpolated(curve: dict[float, float], ratio: float) -> float:
    low = max(point for point in curve if point <= ratio + 1e-12)
    high = min((point for point in curve if point > ratio + 1e-12), default=low)
    share = 0.0 if high == low else (ratio - low) / (high - low)
    return curve[low] + share * (curve[high] - curve[low])


def distance(model: nn.Module) -> float:
    torch.manual_seed(5)
    return float(logits(model, torch.randn(4, 3, 32, 32)).square().mean())


@pytest.mark.parametrize(("name", "criterion"), [("cifar_resnet", "taylor"), ("vit", "l2"), ("densenet", "bn_scale")])
def test_a_scan_is_pruning_each_group_alone(name: str, criterion: str) -> None:
    model = with_gradients(drawn(TINY[name]))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    scan = channel_sensitivity(model, IMAGE, distance, [0.5, 0.9], criterion, 4)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    original = channel_widths(model, IMAGE)
    assert scan.keys() == original.keys()
    for group, losses in scan.items():
        naive = {0.0: distance(copy.deepcopy(model))}
        for ratio in (0.5, 0.9):
            pruned = with_gradients(drawn(TINY[name]))
            prune_channels(pruned, IMAGE, 0.0, criterion, "sensitivity", 4, ratios={group: ratio})
            naive[1 - channel_widths(pruned, IMAGE)[group] / original[group]] = distance(pruned)
        assert losses == pytest.approx(naive)


def test_a_scan_serves_to_prune() -> None:
    model = drawn(TINY["cifar_resnet"])
    # Only the channels within the last block cost nothing.
    scan = {name: {0.0: 1.0, 0.5: 1.0 if name == "blocks.2.conv1" else 2.0} for name in channel_widths(model, IMAGE)}
    sizes = channel_widths(model, IMAGE)
    ratios = layer_ratios(scan, sizes, 16 / sum(sizes.values()))
    prune_channels(model, IMAGE, 16 / sum(sizes.values()), "l2", "sensitivity", 1, ratios=ratios)
    assert channel_widths(model, IMAGE) == {**sizes, "blocks.2.conv1": 16}


def test_the_outputs_of_every_head_stay() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.trunk(x))
            out: Tensor = self.one(x).mean((2, 3)) + self.two(x.mean((2, 3)))
            return out

    model = TwoHeads()
    assert channel_widths(model, IMAGE) == {"trunk": 8}
    prune_channels(model, IMAGE, 0.5, "l2", "uniform", 1)
    assert (model.one.out_channels, model.two.out_features, model.trunk.out_channels) == (5, 5, 4)
