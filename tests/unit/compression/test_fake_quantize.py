"""Quantizers in a network: where they sit, what they cost, and how they are taken out again."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from orchestrator.compression.distillation import make_loss
from orchestrator.compression.fake_quantize import (
    calibrate,
    input_quantizer,
    insert_quantizers,
    lean_graph,
    set_calibrated,
    settle_biases,
)
from orchestrator.compression.folding import fold_norms
from orchestrator.compression.grids import Mark, split_off_grids
from orchestrator.compression.quantizers import ActivationQuantizer, WeightQuantizer
from orchestrator.data.batches import DeviceData
from orchestrator.errors import UnbuildableError
from orchestrator.models.build import build
from orchestrator.models.cifar_resnet import CifarResNet
from orchestrator.training.loop import Fit, fit
from orchestrator.training.process import Process

Quantize = Callable[..., fx.GraphModule]


def out(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(images)
    return logits


def weight_quantizers(graph: fx.GraphModule) -> list[WeightQuantizer]:
    return [module for module in graph.modules() if isinstance(module, WeightQuantizer)]


def layer_calls(graph: fx.GraphModule) -> list[fx.Node]:
    return [
        node
        for node in graph.graph.nodes
        if node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), nn.Conv2d | nn.Linear)
    ]


def with_statistics(model: nn.Module) -> nn.Module:
    """The network with norms that have seen images: a fresh one lets no signal through in evaluation."""
    with torch.no_grad():
        for _ in range(4):
            model.train()(torch.randn(8, 3, 32, 32))
    return model


def without_marks(folded: nn.Module) -> None:
    """Let marks change nothing, so that what is left is the network."""
    for module in folded.modules():
        if isinstance(module, Mark):
            module.mark.fill_(1.0)


@pytest.fixture
def images(digits: DeviceData) -> Tensor:
    return digits.normalizer(digits.images[:64])


def test_every_layer_has_a_quantizer_on_its_weight_and_on_its_input(dense: nn.Module) -> None:
    graph = insert_quantizers(dense, 4, 4, first_last_8bit=True)
    calls = layer_calls(graph)
    assert len(calls) == len(weight_quantizers(graph)) == 10
    for node in calls:
        assert isinstance(graph.get_submodule(str(node.args[0].target)), ActivationQuantizer)


def quantizers(graph: fx.GraphModule) -> list[ActivationQuantizer]:
    return [module for module in graph.modules() if isinstance(module, ActivationQuantizer)]


def test_layers_that_read_one_tensor_share_its_quantizer_and_so_does_the_shortcut(dense: nn.Module) -> None:
    """Three blocks: input, then per block one for the sum before it and one inside; then the pooled features.

    Carriers: what goes into the three sums from a convolution, twice from the shortcut's as well.
    """
    graph = insert_quantizers(dense, 8, 8, first_last_8bit=False)
    assert [quantizer.carrier for quantizer in quantizers(graph)].count(False) == 1 + 3 * 2 + 1
    assert [quantizer.carrier for quantizer in quantizers(graph)].count(True) == 3 + 2
    reads = {str(node.target): node.args[0] for node in layer_calls(graph)}
    for block in (1, 2):
        assert reads[f"blocks.{block}.conv1"] is reads[f"blocks.{block}.shortcut.0"]
    # The identity shortcut of the first block adds what its first convolution reads.
    first = reads["blocks.0.conv1"]
    assert any("shortcut" in str(user.target) or user.target is torch.add or "add" in user.name for user in first.users)
    for node in graph.graph.nodes:
        if node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), ActivationQuantizer):
            assert set(node.args[0].users) == {node}


def test_a_shortcut_keeps_eight_bits_beside_narrow_layers(dense: nn.Module) -> None:
    graph = insert_quantizers(dense, 4, 3, first_last_8bit=False)
    reads = {str(node.target): node.args[0] for node in layer_calls(graph)}
    narrow = reads["blocks.0.conv1"]
    assert graph.get_submodule(str(narrow.target)).bits == 3
    carrier = graph.get_submodule(str(narrow.args[0].target))
    assert (carrier.bits, carrier.carrier) == (8, True)
    assert any("add" in user.name or "shortcut" in user.name for user in narrow.args[0].users)
    assert all(quantizer.bits == (8 if quantizer.carrier else 3) for quantizer in quantizers(graph))


def test_carriers_rest_in_training_and_learn_nothing(dense: nn.Module, images: Tensor) -> None:
    graph = insert_quantizers(dense, 8, 4, first_last_8bit=True)
    calibrate(graph, [images], "mse")
    values = torch.randn(4, 3)
    for quantizer in quantizers(graph):
        if quantizer.carrier:
            assert quantizer.train()(values) is values
            assert not torch.equal(quantizer.eval()(values), values)
            assert not any(parameter.requires_grad for parameter in quantizer.parameters())


def test_carriers_are_ranged_again_and_nothing_else_is(dense: nn.Module, images: Tensor) -> None:
    graph = insert_quantizers(dense, 8, 4, first_last_8bit=True)
    calibrate(graph, [images], "minmax")
    before = [float(quantizer.scale.detach()) for quantizer in quantizers(graph)]
    calibrate(graph, [3 * images], "minmax", carriers_only=True)
    moved = [float(quantizer.scale.detach()) != old for quantizer, old in zip(quantizers(graph), before, strict=True)]
    assert moved == [quantizer.carrier for quantizer in quantizers(graph)]


def test_settled_biases_are_whole_multiples_and_moved_by_half_a_step_at_most(dense: nn.Module, images: Tensor) -> None:
    graph = insert_quantizers(dense, 3, 3, first_last_8bit=False)
    calibrate(graph, [images], "mse")
    before, _ = split_off_grids(graph)
    settle_biases(graph)
    after, grids = split_off_grids(graph)
    for name, grid in grids.weights.items():
        step = grid.step * grids.tensors[grid.reads].scale
        bias = after.get_submodule(name).bias.detach()
        torch.testing.assert_close(bias / step, (bias / step).round(), rtol=0, atol=2e-3)
        assert ((bias - before.get_submodule(name).bias.detach()).abs() <= 0.501 * step).all()


@pytest.mark.parametrize("first_last_8bit", [True, False])
def test_the_first_and_the_last_layer_keep_eight_bits_when_asked(dense: nn.Module, first_last_8bit: bool) -> None:
    graph = insert_quantizers(dense, 3, 5, first_last_8bit)
    calls = layer_calls(graph)
    weights = [graph.get_submodule(f"{node.target}.parametrizations.weight.0").bits for node in calls]
    inputs = [graph.get_submodule(str(node.args[0].target)).bits for node in calls]
    edge_weight, edge_input = (8, 8) if first_last_8bit else (3, 5)
    assert weights == [edge_weight, *[3] * 8, edge_weight]
    assert inputs == [edge_input, *[5] * 8, edge_input]


@pytest.mark.parametrize("first_last_8bit", [True, False])
def test_bits_by_name_have_the_last_word_on_weights(dense: nn.Module, images: Tensor, first_last_8bit: bool) -> None:
    names = [str(node.target) for node in layer_calls(insert_quantizers(dense, 8, 8, first_last_8bit))]
    bits = {name: 2 + position % 7 for position, name in enumerate(names)}
    graph = insert_quantizers(dense, bits, 5, first_last_8bit)
    for name, wanted in bits.items():
        quantizer = graph.get_submodule(f"{name}.parametrizations.weight.0")
        assert quantizer.bits == wanted
        weight = graph.get_submodule(name).weight.detach().flatten(1)
        assert max(len(row.unique()) for row in weight) <= 2**wanted - 1
    edges = [graph.get_submodule(str(node.args[0].target)).bits for node in layer_calls(graph)]
    assert (edges[0], edges[1], edges[-1]) == ((8, 5, 8) if first_last_8bit else (5, 5, 5))
    calibrate(graph, [images], "mse")
    _, grids = split_off_grids(graph)
    assert {name: grid.bits for name, grid in grids.weights.items()} == bits


def test_a_layer_without_bits_is_named(dense: nn.Module) -> None:
    with pytest.raises(UnbuildableError, match=r"there are none for .*blocks.0.conv1, .*fc"):
        insert_quantizers(dense, {"conv": 8}, 8, first_last_8bit=True)


@pytest.mark.parametrize("weight_bits", [2, 4, 8])
def test_one_step_for_a_weight_becomes_a_step_for_each_channel_when_norms_are_folded(
    dense: nn.Module, images: Tensor, train: Callable[..., nn.Module], weight_bits: int
) -> None:
    graph = insert_quantizers(dense, weight_bits, 8, first_last_8bit=False, granularity="tensor")
    calibrate(graph, [images], "mse")
    train(graph, 1, 0.005)
    calibrate(graph, [images], "mse", carriers_only=True)
    settle_biases(graph)
    assert all(len(quantizer.relative_step) == 1 for quantizer in weight_quantizers(graph))
    folded, grids = split_off_grids(graph)
    for name, grid in grids.weights.items():
        weight = folded.get_submodule(name).weight.detach().flatten(1)
        assert grid.step.shape == (len(weight),)
        assert len(grid.step.unique()) == (1 if name == "fc" else len(weight))
        ratio = weight / grid.step[:, None]
        assert (ratio - ratio.round()).abs().max().item() < 1e-2
        assert ratio.round().abs().max().item() <= 2 ** (weight_bits - 1) - 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adafactor", "muon"])
def test_no_optimizer_runs_away_with_the_steps_of_eight_bits(dense: nn.Module, digits: DeviceData, optimizer: str) -> None:
    """A step of 0.001 that an optimizer moves by its rate of 0.002 would be gone at once."""
    graph = insert_quantizers(dense, 8, 8, first_last_8bit=True)
    calibrate(graph, [digits.normalizer(digits.images[:64])], "mse")
    before = [quantizer.step() for quantizer in weight_quantizers(graph)]
    how, batches = Fit(1, 0.002, optimizer=optimizer), lambda epoch: digits.epoch(32, epoch, 0, 1, "none")
    fit(graph, batches, len(digits) // 32, make_loss(None, 0.0, 1.0, 0.0), how, Process(), lambda epoch, mean: None)
    for quantizer, old in zip(weight_quantizers(graph), before, strict=True):
        assert (quantizer.step() / old - 1).abs().max().item() < 0.2


def test_the_original_is_not_touched(dense: nn.Module) -> None:
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    graph = insert_quantizers(dense, 2, 2, first_last_8bit=False)
    calibrate(graph, [torch.randn(4, 1, 8, 8)], "minmax")
    assert list(dense.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


def test_until_calibrated_only_weights_are_quantized(dense: nn.Module, images: Tensor) -> None:
    graph = insert_quantizers(dense, 8, 2, first_last_8bit=False)
    watched, wanted = out(graph, images), out(dense, images)
    assert ((watched - wanted).norm() / wanted.norm()).item() < 0.03
    calibrate(graph, [images], "minmax")
    assert ((out(graph, images) - wanted).norm() / wanted.norm()).item() > 0.1


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_eight_bits_stay_close_to_the_dense_network(dense: nn.Module, images: Tensor, method: str) -> None:
    graph = insert_quantizers(dense, 8, 8, first_last_8bit=True)
    calibrate(graph, [images[:32], images[32:]], method)
    quantized, wanted = out(graph, images), out(dense, images)
    assert ((quantized - wanted).norm() / wanted.norm()).item() < 0.1
    assert (quantized.argmax(1) == wanted.argmax(1)).float().mean().item() > 0.95


def test_quantized_activations_have_few_levels(dense: nn.Module, images: Tensor) -> None:
    graph = insert_quantizers(dense, 8, 2, first_last_8bit=False)
    calibrate(graph, [images], "mse")
    levels: list[int] = []
    for module in graph.modules():
        if isinstance(module, ActivationQuantizer):
            module.register_forward_hook(lambda module, inputs, output: levels.append(len(output.unique())))
    out(graph, images)
    assert sum(count <= 4 for count in levels) == 8  # the others are carriers


def test_training_reaches_weights_steps_and_ranges(dense: nn.Module, images: Tensor) -> None:
    graph = insert_quantizers(dense, 4, 4, first_last_8bit=True)
    calibrate(graph, [images], "mse")
    graph.train()(images).square().mean().backward()
    for name, parameter in graph.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    assert all(quantizer.relative_step.grad.abs().max() > 0 for quantizer in weight_quantizers(graph))


def test_a_graph_without_idle_rectifiers_learns_the_same(dense: nn.Module, images: Tensor) -> None:
    graph = insert_quantizers(dense, 4, 4, first_last_8bit=True)
    calibrate(graph, [images], "mse")

    def learned() -> list[Tensor]:
        graph.zero_grad()
        result = graph.train()(images)
        result.square().mean().backward()
        return [result.detach(), *(p.grad.clone() for p in graph.parameters() if p.grad is not None)]

    before, statistics = graph.code, copy.deepcopy(dict(graph.named_buffers()))
    wanted = learned()
    for name, buffer in graph.named_buffers():
        buffer.copy_(statistics[name])
    with lean_graph(graph):
        assert graph.code.count("relu") < before.count("relu")
        found = learned()
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert graph.code == before


def test_a_network_comes_back_from_its_weights_with_its_ranges(quantized: Quantize, dense: nn.Module, images: Tensor) -> None:
    graph = quantized(4, 4)
    again = insert_quantizers(dense, 4, 4, first_last_8bit=True)
    again.load_state_dict(graph.state_dict())
    assert not torch.equal(out(again, images), out(graph, images))
    set_calibrated(again)
    assert torch.equal(out(again, images), out(graph, images))


def test_a_network_that_branches_on_its_input_cannot_be_quantized() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if x.sum() > 0 else self.fc(-x)

    with pytest.raises(UnbuildableError, match="cannot be traced for quantization"):
        insert_quantizers(Branching(), 8, 8, first_last_8bit=True)
    with pytest.raises(UnbuildableError, match="cannot be traced for export"):
        fold_norms(Branching())


def test_folding_removes_every_norm_and_keeps_the_function(dense: nn.Module, images: Tensor) -> None:
    folded = fold_norms(dense)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    torch.testing.assert_close(out(folded, images), out(dense, images), rtol=1e-3, atol=1e-4)
    assert [module for module in dense.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize(("weight_bits", "first_last_8bit"), [*((bits, True) for bits in range(2, 9)), (2, False), (5, False)])
def test_folded_weights_lie_on_their_grids(quantized: Quantize, weight_bits: int, first_last_8bit: bool) -> None:
    graph = quantized(weight_bits, first_last_8bit=first_last_8bit)
    folded, grids = split_off_grids(graph)
    assert len(grids.weights) == 10
    for position, (name, grid) in enumerate(grids.weights.items()):
        edge = first_last_8bit and position in (0, 9)
        assert grid.bits == (8 if edge else weight_bits)
        weight = folded.get_submodule(name).weight.detach().flatten(1)
        assert grid.step.shape == (len(weight),)
        ratio = weight / grid.step[:, None]
        assert (ratio - ratio.round()).abs().max().item() < 1e-2
        assert ratio.round().abs().max().item() <= 2 ** (grid.bits - 1) - 1


def test_what_is_split_off_is_a_plain_float_network(quantized: Quantize, images: Tensor) -> None:
    graph = quantized(8)
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    folded, grids = split_off_grids(graph)
    kinds = {type(module) for module in folded.modules()}
    assert not kinds & {ActivationQuantizer, WeightQuantizer, nn.BatchNorm2d}
    assert {name for name, module in folded.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)} == set(grids.weights)
    assert {name for name, module in folded.named_modules() if isinstance(module, Mark)} == set(grids.tensors)
    without_marks(folded)
    # Without the activations' quantizers it computes almost the same; the graph that was taken apart still does exactly.
    quantized_logits, plain_logits = out(graph, images), out(folded, images)
    assert ((quantized_logits - plain_logits).norm() / quantized_logits.norm()).item() < 0.1
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())
    assert len(weight_quantizers(graph)) == 10


def test_grids_of_inputs_are_those_of_the_quantizers(quantized: Quantize) -> None:
    graph = quantized(4, 5)
    _, grids = split_off_grids(graph)
    for node in layer_calls(graph):
        quantizer = input_quantizer(graph, node)
        grid = grids.tensors[grids.weights[str(node.target)].reads]
        assert (grid.scale, grid.zero_point) == quantizer.codes()
        assert grid.bits == quantizer.bits
        assert 0 <= grid.zero_point <= 2**grid.bits - 1


def test_two_networks_can_be_taken_apart_one_after_the_other(dense: nn.Module, images: Tensor) -> None:
    """torch keeps parametrizations on a class that copies share: taking one apart must not spoil another."""
    graph = insert_quantizers(dense, 4, 8, first_last_8bit=True)
    calibrate(graph, [images], "mse")
    other = copy.deepcopy(graph)
    wanted = out(graph, images)
    first, second = (split_off_grids(one)[0] for one in (graph, other))
    assert torch.equal(out(first, images), out(second, images))
    assert torch.equal(out(other, images), wanted)


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1"])
def test_torchvision_networks_are_quantized_and_taken_apart(name: str) -> None:
    torch.manual_seed(0)
    model = with_statistics(build(name, 16, 10, (3, 32, 32)))
    images = torch.randn(8, 3, 32, 32)
    graph = insert_quantizers(model, 8, 8, first_last_8bit=True)
    calibrate(graph, [images], "minmax")
    logits, (folded, grids) = out(graph, images), split_off_grids(graph)
    assert torch.equal(out(graph, images), logits)
    without_marks(folded)
    assert ((out(folded, images) - logits).norm() / logits.norm()).item() < 0.2
    assert len(grids.weights) == len(layer_calls(graph))


def test_a_pruned_network_is_quantized(narrow: nn.Module, images: Tensor) -> None:
    assert isinstance(narrow, CifarResNet)
    graph = insert_quantizers(narrow, 8, 8, first_last_8bit=True)
    calibrate(graph, [images], "mse")
    assert (out(graph, images).argmax(1) == out(narrow, images).argmax(1)).float().mean().item() > 0.95


def test_stochastic_depth_rests_in_evaluation() -> None:
    torch.manual_seed(0)
    model = with_statistics(build("efficientnet_b0", 16, 10, (3, 32, 32)))
    images = torch.randn(16, 3, 32, 32)
    graph = insert_quantizers(model, 8, 8, first_last_8bit=True)
    calibrate(graph, [images], "minmax")
    assert torch.equal(out(graph, images), out(graph, images))
