"""Networks by name, and pruned networks from the shapes of their weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.vgg import make_layers
from torchvision.models.vision_transformer import VisionTransformer

from orchestrator.compression.channels import prune_channels
from orchestrator.errors import UnbuildableError
from orchestrator.models.build import build, reshape_to
from orchestrator.models.cifar_resnet import CifarResNet


def logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.eval()(images)
    return out


@pytest.mark.parametrize(("name", "convolutions"), [("cifar_resnet8", 7), ("cifar_resnet20", 19)])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 17, 11)])
def test_cifar_resnet_has_its_depth_and_takes_any_image(name: str, convolutions: int, shape: tuple[int, int, int]) -> None:
    model = build(name, 4, 7, shape)
    wide = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
    assert len(wide) == convolutions
    assert {module.out_channels for module in wide} == {4, 8, 16}
    assert logits(model, torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_torchvision_network_has_the_classes_and_is_ready_to_train(name: str) -> None:
    model = build(name, 16, 7, (3, 32, 32))
    assert model.training
    assert logits(model, torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_initial_weights_follow_the_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build("cifar_resnet8", 4, 10, (1, 8, 8)).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["conv.weight"], states[2]["conv.weight"])


@pytest.mark.parametrize("channels", [1, 4])
def test_torchvision_networks_need_three_channels(channels: int) -> None:
    with pytest.raises(UnbuildableError, match=f"resnet18 takes images with 3 channels; the data has {channels}"):
        build("resnet18", 16, 10, (channels, 32, 32))


def test_an_image_too_small_for_a_network_is_unbuildable() -> None:
    with pytest.raises(UnbuildableError, match=r"squeezenet1_1 does not take images of shape \(3, 8, 8\)"):
        build("squeezenet1_1", 16, 10, (3, 8, 8))


def test_an_image_of_the_wrong_size_for_a_transformer_is_unbuildable() -> None:
    with pytest.raises(UnbuildableError):
        build("vit_b_32", 16, 10, (3, 32, 32))


def test_reshape_to_brings_back_a_network_of_the_same_widths() -> None:
    model = build("cifar_resnet8", 4, 10, (1, 8, 8))
    again = reshape_to(build("cifar_resnet8", 4, 10, (1, 8, 8)), model.state_dict())
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(logits(again, images), logits(model, images))


def narrow_vgg() -> nn.Module:
    features = make_layers([8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"], batch_norm=True)
    classifier = nn.Linear(64 * 49, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *classifier)


class Ancient(nn.Sequential):
    """Layers that say their widths in other words: a transposed and a one-dimensional convolution, group norm, PReLU."""

    def __init__(self) -> None:
        super().__init__(
            nn.ConvTranspose2d(3, 8, 2, 2),
            nn.GroupNorm(2, 8),
            nn.PReLU(8),
            nn.Conv2d(8, 12, 1),
            nn.InstanceNorm2d(12, affine=True),
            nn.Conv2d(12, 16, 4, 4),
            nn.Flatten(2),
            nn.Conv1d(16, 12, 3),
            nn.BatchNorm1d(12),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(12, 10),
        )


PRUNABLE: list[tuple[str, Callable[[], nn.Module], tuple[int, int, int]]] = [
    ("cifar_resnet8", lambda: build("cifar_resnet8", 16, 10, (1, 8, 8)), (1, 8, 8)),
    ("resnet18", lambda: build("resnet18", 16, 10, (3, 32, 32)), (3, 32, 32)),
    ("mobilenet_v2", lambda: build("mobilenet_v2", 16, 10, (3, 32, 32)), (3, 32, 32)),
    ("squeezenet1_1", lambda: build("squeezenet1_1", 16, 10, (3, 32, 32)), (3, 32, 32)),
    ("mobilenet_v3_small", lambda: build("mobilenet_v3_small", 16, 10, (3, 32, 32)), (3, 32, 32)),
    ("vgg11_bn", narrow_vgg, (3, 32, 32)),
    ("densenet", lambda: DenseNet(8, (2, 2), 16, num_classes=10), (3, 32, 32)),
    ("convnext", lambda: ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 2)], num_classes=10), (3, 32, 32)),
    ("regnet", lambda: build("regnet_y_400mf", 16, 10, (3, 32, 32)), (3, 32, 32)),
    ("ancient", Ancient, (3, 16, 16)),
]


def test_a_pruned_vision_transformer_is_rebuilt_from_its_weights() -> None:
    def make() -> nn.Module:
        return VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10)

    pruned = make()
    nn.init.normal_(pruned.heads.head.weight)  # starts at 0, and would hide everything before it
    prune_channels(pruned, torch.zeros(1, 3, 32, 32), 0.5, "l2", "uniform", 2)
    state = {name: value.clone() for name, value in pruned.state_dict().items()}
    rebuilt, images = reshape_to(make(), state), torch.randn(2, 3, 32, 32)
    assert logits(pruned, images).std() > 0.1
    assert torch.equal(logits(rebuilt, images), logits(pruned, images))
    assert [(block.mlp[0].out_features, block.mlp[3].in_features) for block in rebuilt.encoder.layers] == [(32, 32)] * 2


@pytest.mark.parametrize(("make", "shape"), [row[1:] for row in PRUNABLE], ids=[row[0] for row in PRUNABLE])
def test_reshape_to_rebuilds_a_pruned_network_from_its_weights(
    make: Callable[[], nn.Module], shape: tuple[int, int, int]
) -> None:
    pruned = make()
    before = sum(parameter.numel() for parameter in pruned.parameters())
    prune_channels(pruned, torch.zeros(1, *shape), 0.4, "l2", "uniform", 2)
    state = {name: value.clone() for name, value in pruned.state_dict().items()}
    assert sum(value.numel() for value in state.values()) < 0.7 * before
    rebuilt = reshape_to(make(), state)
    images = torch.randn(2, *shape)
    assert torch.equal(logits(rebuilt, images), logits(pruned, images))
    assert {name: tuple(value.shape) for name, value in rebuilt.state_dict().items()} == {
        name: tuple(value.shape) for name, value in state.items()
    }


def test_a_rebuilt_network_says_its_own_widths_and_trains() -> None:
    pruned = build("mobilenet_v2", 16, 10, (3, 32, 32))
    prune_channels(pruned, torch.zeros(1, 3, 32, 32), 0.5, "l1", "uniform", 1)
    rebuilt = reshape_to(build("mobilenet_v2", 16, 10, (3, 32, 32)), pruned.state_dict())
    for module in rebuilt.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight
            assert (module.out_channels, module.in_channels // module.groups) == weight.shape[:2]
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.running_mean)
    rebuilt.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in rebuilt.parameters())


def test_reshape_to_refuses_weights_of_another_network() -> None:
    state = CifarResNet(14, 4, 10, 1).state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        reshape_to(CifarResNet(8, 4, 10, 1), state)


def test_reshape_to_rebuilds_a_network_with_versioned_weights() -> None:
    model = build("mnasnet0_5", 16, 10, (3, 32, 32))
    reshape_to(build("mnasnet0_5", 16, 10, (3, 32, 32)), model.state_dict())


class Scaled(nn.Module):
    """As in ConvNeXt: a parameter that belongs to a block and not to one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.layer_scale = nn.Parameter(torch.ones(8, 1, 1))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.layer_scale * self.block(x)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:Unwrapped parameters:UserWarning")
def test_reshape_to_reshapes_parameters_outside_of_layers() -> None:
    pruned = Scaled()
    prune_channels(pruned, torch.zeros(1, 3, 8, 8), 0.5, "l2", "uniform", 1)
    assert pruned.layer_scale.shape == (4, 1, 1)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(logits(reshape_to(Scaled(), pruned.state_dict()), images), logits(pruned, images))
