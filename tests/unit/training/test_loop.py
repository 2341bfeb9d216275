"""Training one process alone: learning, repeating itself, failing in the open, and counting right answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.compression.quantizers import WeightQuantizer
from orchestrator.errors import DivergedError
from orchestrator.models.cifar_resnet import CifarResNet
from orchestrator.training.loop import Fit, accuracy, fit, make_optimizer
from orchestrator.training.precision import arithmetic, loss_scaler
from orchestrator.training.process import Process, seeded

CPU = torch.device("cpu")
Pairs = list[tuple[Tensor, Tensor]]


def cross_entropy(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels)


def two_clouds(batch_size: int = 16) -> Pairs:
    """Two clouds of points that a line separates, as images (B, 1, 1, 2)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    points = torch.randn(64, 2, generator=generator) * 0.3 + (labels[:, None] * 2.0 - 1.0) * torch.tensor([1.0, -1.0])
    return list(zip(points.view(-1, 1, 1, 2).split(batch_size), labels.split(batch_size), strict=True))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))


def trained(how: Fit, model: nn.Module | None = None, process: Process | None = None) -> tuple[nn.Module, list[float]]:
    model = network() if model is None else model
    losses: list[float] = []
    data = two_clouds()
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: losses.append(loss)  # noqa: E731
    fit(model, lambda epoch: data, len(data), cross_entropy, how, process or Process(), on_epoch)
    return model, losses


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one_cycle"])
def test_a_separable_problem_is_learnt(optimizer: str, schedule: str) -> None:
    how = Fit(8, 0.1, optimizer=optimizer, schedule=schedule)
    assert accuracy(network(), two_clouds(), "fp32", Process()) < 0.9
    model, losses = trained(how)
    assert accuracy(model, two_clouds(), "fp32", Process()) == 1.0
    assert len(losses) == 8
    assert losses[-1] < 0.3 * losses[0]


def test_equal_seeds_train_equal_networks() -> None:
    how = Fit(3, 0.1, gradient_clip=1.0, warmup_fraction=0.2)
    (one, losses), (two, again) = trained(how), trained(how)
    assert losses == again
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    other, _ = trained(how, network(seed=1))
    assert not torch.equal(one[1].weight, other[1].weight)


def test_no_epochs_change_nothing() -> None:
    model, losses = trained(Fit(0, 0.1))
    assert losses == []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network().parameters(), strict=True))


def test_the_mean_loss_of_an_epoch_is_reported_in_order() -> None:
    seen: list[tuple[int, float]] = []
    data = two_clouds()
    model = network()
    with torch.no_grad():
        first = sum(float(cross_entropy(images, model(images), labels)) for images, labels in data) / len(data)
    still = Fit(2, 1e-12, schedule="constant")
    fit(model, lambda epoch: data, len(data), cross_entropy, still, Process(), lambda epoch, loss: seen.append((epoch, loss)))
    assert seen == [(0, pytest.approx(first, rel=1e-6)), (1, pytest.approx(first, rel=1e-6))]


def test_every_epoch_asks_for_its_own_batches() -> None:
    asked: list[int] = []

    def batches(epoch: int) -> Pairs:
        asked.append(epoch)
        return two_clouds()

    fit(network(), batches, 4, cross_entropy, Fit(3, 0.1), Process(), lambda epoch, loss: None)
    assert asked == [0, 1, 2]


def test_the_network_trains_again_after_it_was_judged() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(2, 2))
    data = two_clouds()
    fit(model, lambda epoch: data, 4, cross_entropy, Fit(3, 0.1), Process(), lambda epoch, loss: model.eval() and None)
    assert int(model[0].num_batches_tracked) == 3 * len(data)


def test_an_exception_after_an_epoch_ends_training() -> None:
    class Enough(Exception):  # noqa: N818
        pass

    seen: list[int] = []

    def on_epoch(epoch: int, loss: float) -> None:
        seen.append(epoch)
        if epoch == 1:
            raise Enough

    with pytest.raises(Enough):
        fit(network(), lambda epoch: two_clouds(), 4, cross_entropy, Fit(9, 0.1), Process(), on_epoch)
    assert seen == [0, 1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_huge_rate_is_reported_as_divergence(precision: str) -> None:
    with pytest.raises(DivergedError, match=r"loss must stay finite; it was (nan|inf) in epoch \d+: lower the learning rate"):
        trained(Fit(40, 1e12, schedule="constant", precision=precision))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_stays_close_to_full_precision(precision: str) -> None:
    how = {"epochs": 5, "learning_rate": 0.05, "schedule": "cosine"}
    full, full_losses = trained(Fit(**how))  # type: ignore[arg-type]
    mixed, mixed_losses = trained(Fit(**how, precision=precision))  # type: ignore[arg-type]
    assert all(parameter.dtype == torch.float32 for parameter in mixed.parameters())
    assert mixed_losses == pytest.approx(full_losses, rel=0.02)
    assert mixed_losses != full_losses
    for a, b in zip(full.parameters(), mixed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_arithmetic_decides_the_type_of_matrix_products(precision: str) -> None:
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with arithmetic(precision, CPU):
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == wanted
    assert loss_scaler(precision, CPU).is_enabled() == (precision == "fp16")


@pytest.mark.parametrize("limit", [0.01, 0.1])
def test_a_step_is_no_longer_than_the_clip_allows(limit: float) -> None:
    data = two_clouds(64)
    lengths = {}
    for clip in (None, limit):
        model = network()
        start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        how = Fit(1, 1.0, momentum=0.0, schedule="constant", gradient_clip=clip)
        fit(model, lambda epoch: data, 1, cross_entropy, how, Process(), lambda epoch, loss: None)
        lengths[clip] = float((nn.utils.parameters_to_vector(model.parameters()).detach() - start).norm())
    assert lengths[None] > 2 * limit
    assert lengths[limit] == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_rate_of_each_step_is_that_of_the_schedule(schedule: str) -> None:
    """The gradient is 1, so a step's length is its rate."""
    model = nn.Linear(1, 1, bias=False)
    places = [model.weight.item()]

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return model.weight.sum()

    def on_epoch(epoch: int, mean: float) -> None:
        places.append(model.weight.item())

    how = Fit(8, 0.5, momentum=0.0, schedule=schedule, warmup_fraction=0.25)
    fit(model, lambda epoch: [(torch.ones(1, 1), torch.zeros(1))], 1, loss, how, Process(), on_epoch)
    steps = [before - after for before, after in pairwise(places)]
    assert steps[:2] == pytest.approx([0.0005, 0.25], rel=1e-3)
    cosine = [0.5 * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * k / 6)))) for k in range(6)]
    assert steps[2:] == pytest.approx(cosine if schedule == "cosine" else [0.5] * 6, rel=1e-3)


def test_every_step_asks_for_permission() -> None:
    entered: list[str] = []

    @contextlib.contextmanager
    def permit() -> Iterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    trained(Fit(2, 0.1), process=Process(permit=permit))
    assert entered == ["in", "out"] * 8


def test_channels_last_changes_the_layout_and_little_else() -> None:
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 2
    weights = []
    for channels_last in (False, True):
        torch.manual_seed(0)
        model = CifarResNet(8, 4, 2, 1)
        how = Fit(2, 0.01, channels_last=channels_last)
        fit(model, lambda epoch: [(images, labels)], 1, cross_entropy, how, Process(), lambda epoch, loss: None)
        kernel = model.blocks[1].conv2.weight
        assert kernel.is_contiguous(memory_format=torch.channels_last) == channels_last
        weights.append(kernel.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_vectors_are_not_decayed(optimizer: str) -> None:
    model = CifarResNet(8, 4, 10, 1)
    nn.utils.parametrize.register_parametrization(model.fc, "weight", WeightQuantizer(model.fc.weight, 4))
    groups = make_optimizer(model, Fit(1, 0.1, optimizer=optimizer, weight_decay=0.3)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    decayed, spared = ({id(parameter) for parameter in group["params"]} for group in groups)
    assert decayed | spared == {id(parameter) for parameter in model.parameters()}
    assert not decayed & spared
    assert decayed == {
        id(module.parametrizations.weight.original if module is model.fc else module.weight)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_decay_alone_shrinks_matrices_and_leaves_vectors(optimizer: str) -> None:
    model = network()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    how = Fit(1, 0.1, optimizer=optimizer, weight_decay=0.5, schedule="constant", momentum=0.0)
    nothing: Any = lambda images, logits, labels: 0.0 * logits.sum()  # noqa: E731
    fit(model, lambda epoch: two_clouds(64), 1, nothing, how, Process(), lambda epoch, loss: None)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name] * (0.95 if parameter.ndim > 1 else 1.0))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, True)])
def test_momentum_is_nesterovs(momentum: float, nesterov: bool) -> None:
    (group, _) = make_optimizer(network(), Fit(1, 0.1, momentum=momentum)).param_groups
    assert (group["momentum"], group["nesterov"]) == (momentum, nesterov)


def test_accuracy_counts_examples_and_not_batches() -> None:
    """Three batches of unequal size: 1 of 1, 0 of 2 and 4 of 4 right. A mean over batches would be 2/3."""
    sides = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, 1.0, 1.0])
    labels = torch.tensor([1, 0, 0, 0, 0, 1, 1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    model[1].weight.data = torch.tensor([[-1.0], [1.0]])
    parts = list(zip(sides.view(-1, 1, 1, 1).split([1, 2, 4]), labels.split([1, 2, 4]), strict=True))
    assert accuracy(model, parts, "fp32", Process()) == 5 / 7


def test_accuracy_judges_in_evaluation_mode_and_learns_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(2, 2)).train()
    accuracy(model, two_clouds(), "fp32", Process())
    assert int(model[0].num_batches_tracked) == 0


def test_accuracy_of_nothing_is_nothing() -> None:
    assert accuracy(network(), [], "fp32", Process()) == 0.0


def test_a_process_alone_agrees_with_itself() -> None:
    process, model = Process(), network()
    assert process.first
    assert process.together(model) is model
    assert process.agreed("x") == "x"
    assert process.summed(torch.ones(2)).tolist() == [1.0, 1.0]


def test_seeded_draws_repeat_and_leave_the_generator_as_it_was() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    with seeded(11):
        one = torch.rand(3)
    assert torch.equal(torch.rand(3), wanted)
    with seeded(11):
        assert torch.equal(torch.rand(3), one)
    with seeded(12):
        assert not torch.equal(torch.rand(3), one)
