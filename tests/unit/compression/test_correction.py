"""What is put right without training: means of layers, and statistics of norms."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from orchestrator.compression.correction import correct_biases, reestimate_norms
from orchestrator.compression.fake_quantize import calibrate, insert_quantizers, settle_biases, weight_quantizer
from orchestrator.compression.grids import split_off_grids
from orchestrator.data.batches import DeviceData
from orchestrator.errors import UnbuildableError

torch.set_num_threads(1)


class Mixed(nn.Module):
    """Every way to hold a bias: in a norm, in a norm's mean alone, in the layer; and a layer that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.second, self.plain = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6, affine=False)
        self.third = nn.Conv2d(6, 8, 3, padding=1)
        self.bare = nn.Conv2d(8, 8, 1, bias=False)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.plain(self.second(x)))
        x = torch.relu(self.bare(torch.relu(self.third(x))))
        return self.fc(x.mean((2, 3)))


ENDS = ["norm", "plain", "third", "fc"]


def images(num: int = 48) -> Tensor:
    return torch.randn(num, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.3


def mixed() -> nn.Module:
    torch.manual_seed(1)
    model = Mixed()
    with torch.no_grad():
        for norm in (model.norm, model.plain):
            norm.momentum = 0.5
        for _ in range(5):
            model.train()(images())
        model.norm.weight.uniform_(0.5, 2.0)
        model.norm.bias.uniform_(-0.5, 0.5)
    return model.eval()


def quantized(model: nn.Module, bits: int = 2, given: Tensor | None = None) -> fx.GraphModule:
    graph = insert_quantizers(model, bits, 4, first_last_8bit=False)
    calibrate(graph, [images() if given is None else given], "mse")
    return graph


def outputs(model: nn.Module, names: list[str], given: Tensor) -> dict[str, Tensor]:
    """(C, rest) of the modules of these names."""
    kept: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: kept.update({name: output.transpose(0, 1).flatten(1)})
        )
        for name in names
    ]
    with torch.no_grad():
        model.eval()(given)
    for hook in hooks:
        hook.remove()
    return kept


def off(graph: nn.Module, model: nn.Module, names: list[str], given: Tensor) -> float:
    """By how much of its spread the mean of a channel is away from the float network's, at worst."""
    ours, floats = outputs(graph, names, given), outputs(model, names, given)
    return max(((ours[n].mean(1) - floats[n].mean(1)).abs() / floats[n].std(1)).max().item() for n in names)


def test_means_of_two_bit_layers_come_back() -> None:
    model = mixed()
    graph = quantized(model)
    assert off(graph, model, ENDS, images()) > 0.1
    correct_biases(graph, model, [images()])
    assert off(graph, model, ENDS, images()) < 1e-3


def test_batches_count_by_their_images() -> None:
    model, (one, many) = mixed(), (quantized(mixed()), quantized(mixed()))
    correct_biases(one, model, [images()])
    correct_biases(many, model, images().split([20, 20, 8]))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(many.state_dict()[name], value)


def test_a_linear_layer_gets_what_its_mean_lacks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 4))
    given = torch.rand(30, 12) + 1
    graph = quantized(model, given=given)
    layer = graph.get_submodule("0")
    before, weight = layer.bias.detach().clone(), model[0].weight.detach()
    read = graph.get_submodule("quantize_0")(given).detach()
    wanted = before + (given @ weight.T).mean(0) - (read @ layer.weight.detach().T).mean(0)
    correct_biases(graph, model, [given])
    torch.testing.assert_close(layer.bias.detach(), wanted)


def test_tokens_have_their_channels_last() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 4))
    given = torch.rand(10, 7, 12) + 1
    graph = quantized(model, given=given)
    correct_biases(graph, model, [given])
    with torch.no_grad():
        torch.testing.assert_close(graph(given).mean((0, 1)), model(given).mean((0, 1)))


def test_nothing_but_biases_is_corrected() -> None:
    model = mixed()
    graph, floats = quantized(model), {name: value.clone() for name, value in model.state_dict().items()}
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    model.train()
    correct_biases(graph, model, [images()])
    changed = {name for name, value in graph.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"norm.bias", "plain.running_mean", "third.bias", "fc.bias"}
    assert model.training
    assert all(torch.equal(value, floats[name]) for name, value in model.state_dict().items())


def test_a_layer_that_is_called_twice_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.fc = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.layer(torch.relu(self.layer(x))))

    torch.manual_seed(0)
    model, given = Twice(), torch.rand(20, 6)
    graph = quantized(model, given=given)
    before = graph.get_submodule("layer").bias.detach().clone()
    correct_biases(graph, model, [given])
    assert torch.equal(graph.get_submodule("layer").bias.detach(), before)
    with torch.no_grad():
        torch.testing.assert_close(graph(given).mean(0), model(given).mean(0))


def test_corrected_biases_help_the_digits_and_can_be_settled(dense: nn.Module, digits: DeviceData) -> None:
    given, unseen = digits.normalizer(digits.images[:128]), digits.normalizer(digits.images[128:])
    graph = insert_quantizers(dense, 3, 8, first_last_8bit=True)
    calibrate(graph, [given], "mse")

    def distance() -> float:
        with torch.no_grad():
            return (graph.eval()(unseen) - dense(unseen)).norm().item()

    before = distance()
    correct_biases(graph, dense, [given])
    calibrate(graph, [given], "mse", carriers_only=True)
    settle_biases(graph)
    assert distance() < 0.9 * before
    folded, grids = split_off_grids(graph)
    for name, grid in grids.weights.items():
        ratio = folded.get_submodule(name).bias.detach() / (grid.step * grids.tensors[grid.reads].scale)
        torch.testing.assert_close(ratio, ratio.round(), rtol=0, atol=2e-2)


# --- norms ---------------------------------------------------------------------------------------------------------------


def by_hand(graph: fx.GraphModule, batches: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance that each of `Mixed`'s norms sees, averaged over batches, written out."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {"norm": [], "plain": []}
    first, second = (graph.get_submodule(name) for name in ("first", "second"))
    reads = [graph.get_submodule(str(node.args[0].target)) for node in graph.graph.nodes if node.target in ("first", "second")]
    norm = graph.get_submodule("norm")
    for given in batches:
        out = F.conv2d(reads[0](given), first.weight)
        flat = out.transpose(0, 1).flatten(1)
        seen["norm"].append((flat.mean(1), flat.var(1, unbiased=True)))
        out = (out - flat.mean(1).view(-1, 1, 1)) / (flat.var(1, unbiased=False).view(-1, 1, 1) + norm.eps).sqrt()
        out = torch.relu(out * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1))
        flat = F.conv2d(reads[1](out), second.weight, second.bias, padding=1).transpose(0, 1).flatten(1)
        seen["plain"].append((flat.mean(1), flat.var(1, unbiased=True)))
    return {
        name: (torch.stack([m for m, _ in pairs]).mean(0), torch.stack([v for _, v in pairs]).mean(0))
        for name, pairs in seen.items()
    }


@pytest.mark.parametrize("sizes", [[48], [24, 24], [20, 20, 8]])
def test_norms_get_the_statistics_of_the_quantized_network(sizes: list[int]) -> None:
    graph = quantized(mixed())
    before = copy.deepcopy(graph.state_dict())
    with torch.no_grad():
        wanted = by_hand(graph.eval(), list(images().split(sizes)))
    reestimate_norms(graph, images().split(sizes))
    for name, (mean, variance) in wanted.items():
        norm = graph.get_submodule(name)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-5)
        assert not norm.training
        assert norm.momentum == 0.5
    changed = {name for name, value in graph.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.{what}" for name in wanted for what in ("running_mean", "running_var")}


def test_beside_the_float_network_norms_move_by_what_quantization_changed() -> None:
    model = mixed()
    graph, floats = quantized(model), insert_quantizers(model, 8, 8, first_last_8bit=False)
    before = copy.deepcopy(graph.state_dict())
    other = 2 * images() - 1  # of another kind than those that the norms have learnt
    for name in ("first", "second"):  # rounding that changes nothing: the float network, with quantizers that pass
        parametrize.remove_parametrizations(floats.get_submodule(name), "weight", leave_parametrized=False)
    with torch.no_grad():
        ours, theirs = by_hand(graph.eval(), [other]), by_hand(floats, [other])
    reestimate_norms(graph, [other], model)
    for name, (mean, variance) in ours.items():
        norm = graph.get_submodule(name)
        moved = before[f"{name}.running_mean"] + mean - theirs[name][0]
        grown = (before[f"{name}.running_var"] + norm.eps) * (variance + norm.eps) / (theirs[name][1] + norm.eps) - norm.eps
        torch.testing.assert_close(norm.running_mean, moved, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, grown, rtol=1e-4, atol=1e-5)


def test_where_nothing_was_rounded_norms_stay_whatever_the_images() -> None:
    model = mixed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reestimate_norms(model, (3 * images()).split(16), copy.deepcopy(model).train())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_a_channel_of_nothing_keeps_its_variance() -> None:
    model = mixed()
    model.first.weight.data[2] = 0
    model.norm.running_var[2] = 0
    graph = quantized(model)
    reestimate_norms(graph, [images()], model)
    assert graph.get_submodule("norm").running_var[2].item() == pytest.approx(0, abs=1e-6)
    assert all(value.isfinite().all() for value in graph.state_dict().values())


def test_a_last_image_on_its_own_joins_the_batch_before_it() -> None:
    """Where a norm sees 1 x 1 pixels, one image has no variance."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).eval()
    given = images(9)
    reestimate_norms(model, given.split(4))
    flat = [F.conv2d(part, model[0].weight, model[0].bias).flatten(1).detach() for part in (given[:4], given[4:])]
    torch.testing.assert_close(model[1].running_mean, torch.stack([part.mean(0) for part in flat]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([part.var(0) for part in flat]).mean(0))


def test_one_image_is_too_few_and_changes_nothing() -> None:
    graph = quantized(mixed())
    before = copy.deepcopy(graph.state_dict())
    with pytest.raises(UnbuildableError, match="two images or more"):
        reestimate_norms(graph, [images(1)])
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())


def test_estimating_again_gives_the_same(dense: nn.Module, digits: DeviceData) -> None:
    given = list(digits.normalizer(digits.images[:128]).split(64))
    graph = insert_quantizers(dense, 2, 8, first_last_8bit=True)
    calibrate(graph, given, "mse")
    reestimate_norms(graph, given)
    once = copy.deepcopy(graph.state_dict())
    reestimate_norms(graph, given)
    assert all(torch.equal(value, once[name]) for name, value in graph.state_dict().items())


def test_both_help_the_digits_at_two_bits(dense: nn.Module, digits: DeviceData) -> None:
    given, unseen = digits.normalizer(digits.images[:256]), digits.normalizer(digits.images[256:])
    labels = digits.labels[256:]
    graph = insert_quantizers(dense, 2, 8, first_last_8bit=True)
    calibrate(graph, [given], "mse")

    def score() -> float:
        with torch.no_grad():
            return (graph.eval()(unseen).argmax(1) == labels).float().mean().item()

    plain = score()
    reestimate_norms(graph, given.split(64))
    estimated = score()
    correct_biases(graph, dense, [given])
    calibrate(graph, [given], "mse", carriers_only=True)
    settle_biases(graph)
    assert estimated > plain + 0.02
    assert score() > plain + 0.02
    assert all(weight_quantizer(module).bits in (2, 8) for module in graph.modules() if isinstance(module, nn.Conv2d))
