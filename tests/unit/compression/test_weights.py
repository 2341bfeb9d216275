"""Single weights: which go, how many, and that they stay away."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from orchestrator.compression.fake_quantize import calibrate, insert_quantizers
from orchestrator.compression.weights import (
    ends,
    keep_zeros,
    layer_weights,
    prune_two_of_four,
    prune_weights,
    two_of_four,
    zero_mask,
)
from orchestrator.errors import UnbuildableError
from orchestrator.models.cifar_resnet import CifarResNet


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(8, 4, 10, 1)


def vit() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(16, 8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=10)


def zeros(model: nn.Module) -> dict[str, int]:
    return {name: int((weight == 0).sum()) for name, weight in layer_weights(model)}


def sizes(model: nn.Module) -> dict[str, int]:
    return {name: weight.numel() for name, weight in layer_weights(model)}


def pair(first: list[list[float]], second: list[list[float]]) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(len(first[0]), len(first)), nn.Linear(len(second[0]), len(second)))
    model[0].weight.data, model[1].weight.data = torch.tensor(first), torch.tensor(second)
    return model


def test_each_layer_loses_its_least_weights() -> None:
    model = pair([[0.1, -5.0], [0.3, -0.2]], [[10.0, -40.0], [-20.0, 30.0]])
    biases = [layer.bias.detach().clone() for layer in model]
    prune_weights(model, 0.5, "uniform")
    assert torch.equal(model[0].weight, torch.tensor([[0.0, -5.0], [0.3, 0.0]]))
    assert model[1].weight.tolist() == [[0.0, -40.0], [0.0, 30.0]]
    assert all(torch.equal(layer.bias, bias) for layer, bias in zip(model, biases, strict=True))


def test_over_the_network_the_least_of_all_go() -> None:
    model = pair([[0.1, -5.0], [0.3, -0.2]], [[10.0, -0.15], [-20.0, 30.0]])
    prune_weights(model, 0.5, "global")
    assert model[0].weight.tolist() == [[0.0, -5.0], [0.0, 0.0]]
    assert model[1].weight.tolist() == [[10.0, 0.0], [-20.0, 30.0]]


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.777, 0.95])
@pytest.mark.parametrize("make", [resnet, vit])
def test_sparsity_is_exact_to_one_weight(make: Callable[[], nn.Module], ratio: float) -> None:
    model = make()
    model.get_submodule("fc" if make is resnet else "heads.head").weight.data.normal_()
    total = sizes(model)
    uniform, over_all = copy.deepcopy(model), copy.deepcopy(model)
    prune_weights(uniform, ratio, "uniform")
    assert zeros(uniform) == {name: round(ratio * num) for name, num in total.items()}
    if ratio < 0.9:
        prune_weights(over_all, ratio, "global")
        assert sum(zeros(over_all).values()) == round(ratio * sum(total.values()))


def test_norms_biases_and_positions_stay_and_projections_of_attention_go() -> None:
    model = vit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prune_weights(model, 0.5, "uniform")
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {
        "conv_proj.weight",
        "encoder.layers.encoder_layer_0.self_attention.in_proj_weight",
        "encoder.layers.encoder_layer_0.self_attention.out_proj.weight",
        "encoder.layers.encoder_layer_0.mlp.0.weight",
        "encoder.layers.encoder_layer_0.mlp.3.weight",
    }  # the head is 0 to begin with


def test_the_same_weights_stay_where_steps_are_taken() -> None:
    once, stepwise = resnet(), resnet()
    prune_weights(once, 0.8, "global")
    for ratio in (0.3, 0.6, 0.8):
        prune_weights(stepwise, ratio, "global")
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), stepwise.state_dict().values(), strict=True))


def test_of_equal_weights_the_first_go() -> None:
    model = pair([[1.0, -1.0, 1.0, -1.0, 1.0]], [[1.0], [-1.0]])
    prune_weights(model, 0.4, "uniform")
    assert model[0].weight.tolist() == [[0.0, 0.0, 1.0, -1.0, 1.0]]
    assert zeros(model) == {"0.weight": 2, "1.weight": 1}


def test_a_layer_of_few_weights_keeps_one() -> None:
    model = pair([[1.0, 2.0]], [[3.0]])
    prune_weights(model, 0.95, "uniform")
    assert zeros(model) == {"0.weight": 1, "1.weight": 0}


def test_a_global_ratio_that_would_empty_a_layer_is_refused_and_changes_nothing() -> None:
    model = pair([[0.1, 0.2]], [[5.0], [6.0], [7.0]])
    with pytest.raises(UnbuildableError, match=r"a ratio of 0\.4 \(global\) would leave '0\.weight' no weight"):
        prune_weights(model, 0.4, "global")
    assert sum(zeros(model).values()) == 0


def test_exempt_layers_keep_all_weights_and_are_not_counted() -> None:
    model = resnet()
    assert ends(model) == ["conv", "fc"]
    prune_weights(model, 0.5, "global", ends(model))
    left = {name: num for name, num in sizes(model).items() if name not in ("conv.weight", "fc.weight")}
    assert zeros(model)["conv.weight"] == zeros(model)["fc.weight"] == 0
    assert sum(zeros(model).values()) == round(0.5 * sum(left.values()))


def test_ends_of_a_network_of_one_kind_of_layer() -> None:
    assert ends(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 1))) == ["0", "2"]
    assert ends(nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 2), nn.Linear(2, 3))) == ["0", "2"]


@pytest.mark.parametrize("prune", [lambda model, exempt: prune_weights(model, 0.5, "uniform", exempt), prune_two_of_four])
def test_exempt_must_name_layers(prune: Callable[[nn.Module, list[str]], object]) -> None:
    with pytest.raises(ValueError, match=r"exempt must name layers with weights, which are \['0', '1'\]; given \['2'\]"):
        prune(pair([[1.0]], [[1.0]]), ["0", "2"])


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(ValueError, match="scope must be uniform or global; given 'layer'"):
        prune_weights(resnet(), 0.5, "layer")


def test_two_of_four_by_hand() -> None:
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.0, 0.0, 5.0, 0.0], [7.0, 7.0, -7.0, 7.0, 4.0, 3.0, 2.0, 1.0]])
    gone = [[True, False, False, True, False, True, False, True], [False, False, True, True, False, False, True, True]]
    assert two_of_four(weight).tolist() == gone


def test_the_four_of_a_convolution_are_neighbouring_inputs_at_one_place_of_the_kernel() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 8, 2, 3)
    gone = two_of_four(weight)
    for output in range(3):
        for row in range(2):
            for column in range(3):
                for start in (0, 4):
                    four = weight[output, start : start + 4, row, column].abs()
                    assert gone[output, start : start + 4, row, column].tolist() == (four < four.sort().values[2]).tolist()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_of_every_layer_goes_where_inputs_come_in_fours(layout: torch.memory_format) -> None:
    model = resnet().to(memory_format=layout)
    whole = prune_two_of_four(model, exempt=["fc"])
    assert whole == ["conv.weight"]
    total = sizes(model)
    assert zeros(model) == {name: 0 if name in ("conv.weight", "fc.weight") else num // 2 for name, num in total.items()}


def test_what_cannot_be_two_of_four_stays_whole() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=8), nn.ConvTranspose2d(8, 8, 1), nn.Conv2d(8, 8, 1, groups=2)
    )
    assert prune_two_of_four(model) == ["0.weight", "1.weight", "2.weight"]
    assert zeros(model) == {"0.weight": 0, "1.weight": 0, "2.weight": 0, "3.weight": 16}
    with pytest.raises(UnbuildableError, match="2:4 needs a layer whose inputs are a multiple of 4; there is none"):
        prune_two_of_four(model, exempt=["3"])


def test_the_mask_is_where_weights_are_zero() -> None:
    model = pair([[0.0, 2.0], [-0.0, 3.0]], [[1.0, 2.0]])
    assert {name: mask.tolist() for name, mask in zero_mask(model).items()} == {"0.weight": [[True, False], [True, False]]}


def test_a_layer_that_starts_at_zero_is_not_taken_for_pruned() -> None:
    model = vit()
    assert not any(zeros(model)[name] for name in sizes(model) if name != "heads.head.weight")
    assert zero_mask(model) == {}
    put_back = keep_zeros(model)
    model.heads.head.weight.data.fill_(1.0)
    put_back()
    assert model.heads.head.weight.min() == 1.0


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.01),
}


def steps(model: nn.Module, after_step: Callable[[], None], optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    model.train()
    for number in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.arange(len(images)) % (number + 2)).backward()
        optimizer.step()
        after_step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("make", [resnet, vit])
@pytest.mark.parametrize("kind", ["weights", "2:4"])
def test_zeros_stay_while_the_rest_is_trained(make: Callable[[], nn.Module], kind: str, name: str) -> None:
    model = make()
    if kind == "weights":
        prune_weights(model, 0.6, "uniform")
    else:
        prune_two_of_four(model)
    masks, before = zero_mask(model), {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    images = torch.randn(8, 1 if make is resnet else 3, *((8, 8) if make is resnet else (16, 16)))
    steps(model, keep_zeros(model), optimizer, images)
    after = zero_mask(model)
    assert len(masks) > 3
    for key, mask in masks.items():
        assert torch.equal(after[key], mask)
        assert (model.state_dict()[key] != before[key])[~mask].any()


def test_without_the_hook_zeros_would_be_lost() -> None:
    model = resnet()
    prune_weights(model, 0.6, "uniform")
    steps(model, lambda: None, OPTIMIZERS["sgd"](list(model.parameters())), torch.randn(8, 1, 8, 8))
    assert sum(zeros(model).values()) < 0.1 * sum(sizes(model).values())


@pytest.mark.parametrize("weight_bits", [8, 4, 2])
def test_quantized_weights_are_zero_at_the_same_places_and_stay_so(weight_bits: int) -> None:
    model = resnet()
    prune_weights(model, 0.6, "global", ["fc"])
    masks = zero_mask(model)
    graph = insert_quantizers(model, weight_bits, 8, True)
    images = torch.randn(8, 1, 8, 8)
    calibrate(graph, [images], "minmax")
    held = zero_mask(graph)
    assert held.keys() == masks.keys()
    assert all(torch.equal(held[name], mask) for name, mask in masks.items())
    steps(graph, keep_zeros(graph), OPTIMIZERS["sgd"](list(graph.parameters())), images)
    for name, mask in masks.items():
        layer = graph.get_submodule(name.rpartition(".")[0])
        assert (layer.weight[mask] == 0).all()
        assert (layer.parametrizations.weight.original[mask] == 0).all()
        assert (layer.parametrizations.weight.original[~mask] != 0).any()


def test_a_quantized_layer_is_pruned_by_the_tensor_that_is_trained() -> None:
    graph = insert_quantizers(resnet(), 8, 8, True)
    prune_weights(graph, 0.5, "uniform")
    assert sizes(graph) == sizes(resnet())
    assert zeros(graph) == {name: num // 2 for name, num in sizes(graph).items()}
