"""Optimizers against torch's own and against steps by hand; whose weights are decayed, and whose are orthogonalized."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from orchestrator.compression.quantizers import ActivationQuantizer, WeightQuantizer
from orchestrator.models.cifar_resnet import CifarResNet
from orchestrator.training.loop import Fit
from orchestrator.training.optimizers import as_matrix, hidden_matrices, make_optimizer, split_parameters

NAMES = ["sgd", "adamw", "adafactor", "muon"]


class Matrices(nn.Module):
    """Two plain matrices, a classifier and a vector."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(7, 5, generator=draw))
        self.second = nn.Parameter(torch.randn(3, 7, generator=draw))
        self.bias = nn.Parameter(torch.randn(3, generator=draw))
        self.classifier = nn.Parameter(torch.randn(4, 3, generator=draw))


class Small(nn.Module):
    """Two convolutions and a classifier, without norms."""

    def __init__(self, channels_last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.one, self.two, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 2), nn.Linear(4, 2)
        self.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)  # type: ignore[call-overload]


def give_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=draw))


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, num: int, first: int = 0) -> list[Tensor]:
    for step in range(first, first + num):
        give_gradients(list(model.parameters()), step)
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def torchs(name: str, model: Matrices) -> list[torch.optim.Optimizer]:
    matrices = [model.first, model.second, model.classifier]
    plain = {"params": [model.bias], "weight_decay": 0.0}
    groups = [{"params": matrices, "weight_decay": 0.02}, plain]
    match name:
        case "sgd":
            return [torch.optim.SGD(groups, lr=0.03, momentum=0.8, nesterov=True)]
        case "adamw":
            return [torch.optim.AdamW(groups, lr=0.03)]
        case "adafactor":
            return [torch.optim.Adafactor(groups, lr=0.03)]
    muon = torch.optim.Muon(matrices[:2], lr=0.03, weight_decay=0.02, momentum=0.8, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW([{"params": matrices[2:], "weight_decay": 0.02}, plain], lr=0.03)]


@pytest.mark.parametrize("name", NAMES)
def test_plain_matrices_step_as_torch_steps_them(name: str) -> None:
    ours, theirs = Matrices(), Matrices()
    how = Fit(1, 0.03, optimizer=name, momentum=0.8, weight_decay=0.02)
    after = stepped(ours, make_optimizer(ours, how), 4)
    references = torchs(name, theirs)
    for step in range(4):
        give_gradients(list(theirs.parameters()), step)
        for reference in references:
            reference.step()
    assert all(torch.equal(a, b) for a, b in zip(after, theirs.parameters(), strict=True))


def one_step(name: str, weight: Tensor, gradient: Tensor, how: Fit) -> Tensor:
    """The first of two matrices after one step: the second is the classifier."""
    model = nn.ParameterDict({"a": nn.Parameter(weight.clone()), "b": nn.Parameter(torch.ones(1, 1))})
    model["a"].grad = gradient
    make_optimizer(model, how).step()
    stepped_weight: Tensor = model["a"].detach()
    return stepped_weight


def test_a_step_of_sgd_by_hand() -> None:
    """Gradient 1 + 0.1 * 2 = 1.2; Nesterov 1.2 + 0.9 * 1.2 = 2.28; 2 - 0.1 * 2.28."""
    how = Fit(1, 0.1, momentum=0.9, weight_decay=0.1)
    stepped_weight = one_step("sgd", torch.full((2, 2), 2.0), torch.ones(2, 2), how)
    torch.testing.assert_close(stepped_weight, torch.full((2, 2), 1.772))


def test_a_step_of_adamw_by_hand() -> None:
    """The first step has length one whatever the gradient: 2 * (1 - 0.1 * 0.1) - 0.1 * sign."""
    how = Fit(1, 0.1, optimizer="adamw", weight_decay=0.1)
    gradient = torch.tensor([[3.0, -0.5], [0.01, -7.0]])
    stepped_weight = one_step("adamw", torch.full((2, 2), 2.0), gradient, how)
    torch.testing.assert_close(stepped_weight, 1.98 - 0.1 * gradient.sign(), rtol=0, atol=1e-6)


def test_a_step_of_adafactor_by_hand() -> None:
    """A gradient of rank one is factored exactly, so its update is its sign; the rate is relative to the weight's size, 2."""
    how = Fit(1, 0.1, optimizer="adafactor", weight_decay=0.1)
    gradient = torch.outer(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, -0.25]))
    stepped_weight = one_step("adafactor", torch.full((3, 2), 2.0), gradient, how)
    torch.testing.assert_close(stepped_weight, 1.98 - 0.2 * gradient.sign(), rtol=0, atol=1e-5)


def test_a_step_of_muon_by_hand() -> None:
    """All four singular values of a rotation are equal, 1/2 once its norm is 1: each goes through the polynomial five times."""
    rotation = torch.tensor([[0.0, -1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    value = 0.5
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    how = Fit(1, 0.1, optimizer="muon", weight_decay=0.1)
    stepped_weight = one_step("muon", torch.full((4, 4), 2.0), 0.3 * rotation, how)
    assert value == pytest.approx(0.72, abs=0.05)
    # Torch takes the polynomial in bfloat16, whose rounding it widens: a tenth of the step is allowed for.
    torch.testing.assert_close(stepped_weight, 1.98 - 0.1 * 0.2 * 4**0.5 * value * rotation, rtol=0, atol=3e-3)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_a_convolution_steps_as_its_matrix(name: str, channels_last: bool) -> None:
    model = Small(channels_last)
    kernel = model.two.weight
    matrix = nn.Parameter(kernel.detach().permute(0, 2, 3, 1).flatten(1).clone())
    optimizer = make_optimizer(model, Fit(1, 0.03, optimizer=name, momentum=0.8, weight_decay=0.02))
    reference: torch.optim.Optimizer = torch.optim.Adafactor([matrix], lr=0.03, weight_decay=0.02)
    if name == "muon":
        reference = torch.optim.Muon([matrix], lr=0.03, weight_decay=0.02, momentum=0.8, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        give_gradients(list(model.parameters()), step)
        assert kernel.grad is not None
        matrix.grad = kernel.grad.permute(0, 2, 3, 1).flatten(1).clone()
        optimizer.step()
        reference.step()
    after = kernel.detach().permute(0, 2, 3, 1).flatten(1)
    if channels_last:
        assert torch.equal(after, matrix.detach())
    # The columns come in another order, and sums round another way: bfloat16's, for Muon.
    torch.testing.assert_close(after, matrix.detach(), rtol=0, atol=2e-3 if name == "muon" else 1e-6)
    assert kernel.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_muon_orthogonalizes_a_convolution() -> None:
    """The update's singular values lie near one another, whatever the gradient's are (Jordan et al. 2024: 0.7 to 1.2)."""
    model = Small()
    before = model.one.weight.detach().clone()
    give_gradients(list(model.parameters()), 0)
    assert model.one.weight.grad is not None
    model.one.weight.grad[0] *= 100
    make_optimizer(model, Fit(1, 0.01, optimizer="muon")).step()
    update = (model.one.weight.detach() - before).flatten(1) / (0.01 * 0.2 * 27**0.5)
    values = torch.linalg.svdvals(update)
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3


def test_every_convolution_is_muons_and_the_rest_adamws() -> None:
    model = CifarResNet(8, 4, 10, 1)
    groups = make_optimizer(model, Fit(1, 0.1, optimizer="muon", weight_decay=0.3)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.3, 0.0]
    kernels = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [id(parameter) for parameter in groups[0]["params"]] == [id(kernel) for kernel in kernels]
    assert [id(parameter) for parameter in groups[1]["params"]] == [id(model.fc.weight)]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_embeddings_and_rows_are_no_hidden_matrices() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(1, 3))
    decayed, _ = split_parameters(model)
    assert [id(p) for p in decayed] == [id(module.weight) for module in model]
    assert [id(p) for p in hidden_matrices(model, decayed)] == [id(model[1].weight)]


@pytest.mark.parametrize("name", ["sgd", "adamw", "adafactor"])
def test_vectors_are_not_decayed(name: str) -> None:
    model = CifarResNet(8, 4, 10, 1)
    nn.utils.parametrize.register_parametrization(model.fc, "weight", WeightQuantizer(model.fc.weight, 4))
    model.add_module("quantizer", ActivationQuantizer(4))
    groups = make_optimizer(model, Fit(1, 0.1, optimizer=name, weight_decay=0.3)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    decayed, spared = ({id(parameter) for parameter in group["params"]} for group in groups)
    assert decayed | spared == {id(parameter) for parameter in model.parameters()}
    assert not decayed & spared
    assert decayed == {
        id(module.parametrizations.weight.original if module is model.fc else module.weight)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


class Oddities(nn.Module):
    """Parameters of torchvision's networks that are neither plain weights nor vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.ones(6, 1, 1))
        self.relative_position_bias_table = nn.Parameter(torch.ones(9, 2))
        self.class_token = nn.Parameter(torch.ones(1, 1, 8))
        self.pos_embedding = nn.Parameter(torch.ones(1, 5, 8))
        self.attention = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm([4, 4])
        self.step = nn.Parameter(torch.ones(()))


def test_scales_and_tables_of_biases_are_spared_as_well() -> None:
    model = Oddities()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = ([names[id(parameter)] for parameter in group] for group in split_parameters(model))
    assert decayed == ["pos_embedding", "attention.in_proj_weight", "attention.out_proj.weight"]
    assert sorted(spared) == sorted(set(names.values()) - set(decayed))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, True)])
def test_sgds_momentum_is_nesterovs(momentum: float, nesterov: bool) -> None:
    (group, _) = make_optimizer(Small(), Fit(1, 0.1, momentum=momentum)).param_groups
    assert (group["momentum"], group["nesterov"]) == (momentum, nesterov)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_matrix_shares_the_storage_of_its_weight(channels_last: bool) -> None:
    weight = torch.arange(24.0).view(2, 3, 2, 2)
    if channels_last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    matrix = as_matrix(weight, weight)
    assert torch.equal(matrix, weight.permute(0, 2, 3, 1).flatten(1) if channels_last else weight.flatten(1))
    assert matrix.data_ptr() == weight.data_ptr()
    matrix.zero_()
    assert not weight.any()


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_gradient_in_another_layout_gives_the_same_matrix(channels_last: bool) -> None:
    layouts = [torch.contiguous_format, torch.channels_last]
    weight = torch.randn(2, 3, 2, 2).contiguous(memory_format=layouts[channels_last])
    gradient = torch.randn(2, 3, 2, 2).contiguous(memory_format=layouts[not channels_last])
    order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
    assert torch.equal(as_matrix(gradient, weight), gradient.permute(order).flatten(1))


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_is_set_from_outside(name: str) -> None:
    model = Small()
    optimizer = make_optimizer(model, Fit(1, 0.1, optimizer=name, weight_decay=0.1))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    after = stepped(model, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    assert not any(torch.equal(a, b) for a, b in zip(before, stepped(model, optimizer, 1), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_cleared_and_a_frozen_weight_stays(name: str) -> None:
    model = Small()
    model.one.requires_grad_(False)
    optimizer = make_optimizer(model, Fit(1, 0.1, optimizer=name, weight_decay=0.1))
    frozen = model.one.weight.detach().clone()
    moving = [model.two.weight, model.two.bias, model.fc.weight, model.fc.bias]
    before = [parameter.detach().clone() for parameter in moving]
    give_gradients(moving, 0)
    optimizer.step()
    assert torch.equal(model.one.weight, frozen)
    assert not any(torch.equal(a, b) for a, b in zip(before, moving, strict=True))
    optimizer.zero_grad(set_to_none=True)
    assert all(parameter.grad is None for parameter in model.parameters())
    after = [parameter.detach().clone() for parameter in moving]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(after, moving, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_loss_scaling_scales_back_and_skips_what_overflowed(name: str) -> None:
    scaled, plain = Small(), Small()
    how = Fit(1, 0.03, optimizer=name)
    optimizer = make_optimizer(scaled, how)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))  # makes the scale
    give_gradients(list(scaled.parameters()), 0)
    for parameter in scaled.parameters():
        assert parameter.grad is not None
        parameter.grad *= 1024.0
    scaler.step(optimizer)
    scaler.update()
    wanted = stepped(plain, make_optimizer(plain, how), 1)
    assert all(torch.equal(a, b) for a, b in zip(scaled.parameters(), wanted, strict=True))
    give_gradients(list(scaled.parameters()), 1)
    assert scaled.one.weight.grad is not None
    scaled.one.weight.grad[0, 0, 0, 0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(scaled.parameters(), wanted, strict=True))
    assert scaler.get_scale() == 512.0


@pytest.mark.parametrize("name", NAMES)
def test_a_state_is_taken_up_where_it_was_left(name: str) -> None:
    how = Fit(1, 0.03, optimizer=name, weight_decay=0.02)
    model = Small()
    optimizer = make_optimizer(model, how)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    stepped(model, optimizer, 2)
    twin = Small()
    twin.load_state_dict(model.state_dict())
    again = make_optimizer(twin, how)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["lr"] for group in again.param_groups] == [0.01] * len(again.param_groups)
    pairs = zip(stepped(model, optimizer, 1, first=2), stepped(twin, again, 1, first=2), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_a_weight_may_move_to_other_memory(name: str) -> None:
    """As `module.to` and assignments to `.data` do; masks that pruning writes are of this kind."""
    stays, moves = Small(), Small()
    how = Fit(1, 0.03, optimizer=name)
    optimizers = make_optimizer(stays, how), make_optimizer(moves, how)
    stepped(stays, optimizers[0], 1)
    stepped(moves, optimizers[1], 1)
    for parameter in moves.parameters():
        parameter.data = parameter.data.clone()
    pairs = zip(stepped(stays, optimizers[0], 1, first=1), stepped(moves, optimizers[1], 1, first=1), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_a_closure_is_called_with_gradients_on(name: str) -> None:
    model = Small()

    def closure() -> float:
        assert torch.is_grad_enabled()
        give_gradients(list(model.parameters()), 0)
        return 2.5

    step: Callable[..., object] = make_optimizer(model, Fit(1, 0.1, optimizer=name)).step
    before = model.one.weight.detach().clone()
    assert step(closure) == 2.5
    assert not torch.equal(model.one.weight, before)


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(ValueError, match="optimizer must be sgd, adamw, adafactor or muon; given 'lion'"):
        make_optimizer(Small(), Fit(1, 0.1, optimizer="lion"))
