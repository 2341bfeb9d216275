"""Training one process alone: learning, repeating itself, failing in the open, and counting right answers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.errors import DivergedError
from orchestrator.models.cifar_resnet import CifarResNet
from orchestrator.training.loop import Fit, accuracy, fit
from orchestrator.training.precision import arithmetic, loss_scaler
from orchestrator.training.process import Process, seeded

CPU = torch.device("cpu")
Pairs = list[tuple[Tensor, Tensor]]


def cross_entropy(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)


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
    weight = next(model.parameters())
    data = [(images.to(weight.dtype), labels) for images, labels in two_clouds()]
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: losses.append(loss)  # noqa: E731
    fit(model, lambda epoch: data, len(data), cross_entropy, how, process or Process(), on_epoch)
    return model, losses


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adafactor", "muon"])
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
    message = r"^loss must stay finite; it was (nan|inf) in epoch \d+, step \d+: lower the learning rate$"
    with pytest.raises(DivergedError, match=message):
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


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adafactor", "muon"])
def test_decay_alone_shrinks_matrices_and_leaves_vectors(optimizer: str) -> None:
    model = network()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    how = Fit(1, 0.1, optimizer=optimizer, weight_decay=0.5, schedule="constant", momentum=0.0)
    nothing: Any = lambda images, logits, labels: 0.0 * logits.sum()  # noqa: E731
    fit(model, lambda epoch: two_clouds(64), 1, nothing, how, Process(), lambda epoch, loss: None)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name] * (0.95 if parameter.ndim > 1 else 1.0))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adafactor", "muon"])
@pytest.mark.parametrize("accumulation", [2, 5, 1000])
def test_parts_of_a_batch_add_up_to_its_step(optimizer: str, accumulation: int) -> None:
    """16 examples in 5 parts are 4, 3, 3, 3 and 3: a plain mean over parts would be another step."""
    how = {"epochs": 3, "learning_rate": 0.05, "optimizer": optimizer, "gradient_clip": 0.5, "weight_decay": 0.01}
    whole, losses = trained(Fit(**how), network().double())  # type: ignore[arg-type]
    parts, again = trained(Fit(**how, accumulation=accumulation), network().double())  # type: ignore[arg-type]
    assert again == pytest.approx(losses, rel=1e-6)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_a_loss_sees_its_part_of_whatever_a_batch_brings() -> None:
    seen: list[tuple[int, ...]] = []

    def loss(images: Tensor, logits: Tensor, labels: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
        assert torch.equal(images.flatten(1), rows)
        assert torch.equal(labels, weights.long())
        seen.append((len(logits), *rows.shape))
        return F.cross_entropy(logits, labels)

    data = [(images, labels, labels.double(), images.flatten(1)) for images, labels in two_clouds(32)]
    fit(network(), lambda epoch: data, 2, loss, Fit(1, 0.1, accumulation=3), Process(), lambda epoch, value: None)
    assert seen == [(11, 11, 2), (11, 11, 2), (10, 10, 2)] * 2


def test_a_batch_norm_sees_the_parts() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(2, 2))
    fit(model, lambda epoch: two_clouds(), 4, cross_entropy, Fit(1, 0.1, accumulation=2), Process(), lambda epoch, loss: None)
    assert int(model[0].num_batches_tracked) == 8


def test_the_rate_falls_when_the_score_does_not_rise() -> None:
    """The gradient is 1, so a step's length is its rate; patience is two epochs, counted from the end of the warm-up."""
    model = nn.Linear(1, 1, bias=False)
    places = [model.weight.item()]
    scores = iter([0.9, 0.9, 0.5, 0.5, 0.5, 0.5, 0.6, 0.5, 0.5, 0.5])

    def on_epoch(epoch: int, mean: float) -> float:
        places.append(model.weight.item())
        return next(scores)

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return model.weight.sum()

    how = Fit(10, 0.5, momentum=0.0, schedule="plateau", warmup_fraction=0.3)
    fit(model, lambda epoch: [(torch.ones(1, 1), torch.zeros(1))], 1, loss, how, Process(), on_epoch)
    steps = [before - after for before, after in pairwise(places)]
    # The scores of the first two epochs are the warm-up's; 0.5 thrice over is a plateau, and 0.6 is a new best.
    assert steps == pytest.approx([0.0005, 0.5 / 3, 1.0 / 3, 0.5, 0.5, 0.5, 0.05, 0.05, 0.05, 0.05], rel=1e-3)


def test_a_plateau_needs_a_score() -> None:
    with pytest.raises(ValueError, match="on_epoch must return the validation score when schedule is plateau"):
        trained(Fit(2, 0.1, schedule="plateau"))


def test_what_comes_after_a_step_sees_its_weights_and_has_the_last_word() -> None:
    model = network()
    mask = torch.arange(16).view(8, 2) % 3 != 0
    moved: list[bool] = []

    def after_step() -> None:
        moved.append(bool((model[1].weight[~mask] != 0).any()))
        model[1].weight.data *= mask

    data = two_clouds()
    how = Fit(2, 0.1, momentum=0.9)
    fit(model, lambda epoch: data, 4, cross_entropy, how, Process(), lambda epoch, loss: None, after_step=after_step)
    assert moved == [True] * 8
    assert not model[1].weight[~mask].any()
    assert model[1].weight[mask].all()


@pytest.mark.parametrize("accumulation", [1, 3])
def test_what_is_trained_on_is_what_the_attack_returns(accumulation: int) -> None:
    """An attack that takes gradients leaves no trace but its images."""
    model = network()
    called: list[tuple[nn.Module, bool, int]] = []

    def perturb(given: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        called.append((given, given.training, len(images)))
        leaf = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(given(leaf), labels), leaf)
        return images + 0.0 * gradient - 1.0

    data = two_clouds()
    moved = [(images - 1.0, labels) for images, labels in data]
    how = Fit(2, 0.1, accumulation=accumulation)
    fit(model, lambda epoch: data, 4, cross_entropy, how, Process(), lambda epoch, loss: None, perturb=perturb)
    plain = network()
    fit(plain, lambda epoch: moved, 4, cross_entropy, how, Process(), lambda epoch, loss: None)
    assert called == [(model, True, 16)] * 8
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_step_leaves_its_gradient_in_images_that_want_one(accumulation: int) -> None:
    data, model = two_clouds(64), network().double()
    images, labels = data[0][0].double(), data[0][1]
    wanted = images.clone().requires_grad_()
    F.cross_entropy(model(wanted), labels).backward()  # type: ignore[no-untyped-call]
    leaf = images.clone().requires_grad_()
    how = Fit(1, 0.1, accumulation=accumulation)
    hooks = {"perturb": lambda given, images, labels: leaf}
    fit(model, lambda epoch: [(images, labels)], 1, cross_entropy, how, Process(), lambda epoch, loss: None, **hooks)
    assert leaf.grad is not None
    assert wanted.grad is not None
    torch.testing.assert_close(leaf.grad, wanted.grad)


def test_repeats_are_steps_of_the_schedule() -> None:
    """Two epochs of two batches, three steps each: the last of 12 has the cosine of 11/12."""
    model = nn.Linear(1, 1, bias=False)
    places: list[float] = []
    steps: list[int] = []
    drawn: list[int] = []

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(2):
            drawn.append(number)
            yield torch.ones(1, 1), torch.zeros(1)

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        places.append(model.weight.item())
        return model.weight.sum()

    how = Fit(2, 0.5, momentum=0.0)
    fit(model, batches, 2, loss, how, Process(), lambda epoch, value: None, steps.append, repeats=3)
    assert steps == list(range(12))
    assert drawn == [0, 1, 0, 1]
    places.append(model.weight.item())
    rates = [before - after for before, after in pairwise(places)]
    cosine = [0.25 * (1 + float(torch.cos(torch.tensor(torch.pi * step / 12)))) for step in range(12)]
    assert rates == pytest.approx(cosine, abs=1e-6)


def bad_from(step: int, value: float, until: int = 10**9) -> tuple[Callable[..., Tensor], list[int]]:
    """A loss that is `value` from one step to another, and the steps that it was asked for."""
    asked: list[int] = []

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        asked.append(len(asked))
        return cross_entropy(images, logits, labels) * (value if step <= asked[-1] < until else 1.0)

    return loss, asked


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("bad", "place", "ended"), [(0, "epoch 0, step 0", 20), (27, "epoch 0, step 27", 40), (48, "epoch 1, step 3", 65)]
)
def test_training_ends_within_twenty_steps_of_a_loss_that_is_not_finite(value: float, bad: int, place: str, ended: int) -> None:
    loss, asked = bad_from(bad, value)
    told: list[int] = []
    data = two_clouds(1)[:45]
    with pytest.raises(DivergedError, match=f"it was {value} in {place}: lower"):
        fit(network(), lambda epoch: data, 45, loss, Fit(3, 0.1), Process(), lambda epoch, mean: told.append(epoch))
    assert len(asked) == ended
    assert told == list(range(bad // 45))


def test_an_infinite_gradient_of_a_finite_loss_ends_training_with_the_epoch() -> None:
    model = network()

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return (0.0 * logits.sum()).sqrt()

    with pytest.raises(DivergedError, match="weights must stay finite; they were not after epoch 0: lower"):
        fit(model, lambda epoch: two_clouds(64), 1, loss, Fit(3, 0.1), Process(), lambda epoch, value: None)


def test_a_mask_that_is_infinite_by_design_is_no_divergence() -> None:
    model = network()
    model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    _, losses = trained(Fit(2, 0.1), model)
    assert len(losses) == 2


def test_an_epoch_without_batches_has_no_loss() -> None:
    losses: list[float] = []
    fit(network(), lambda epoch: [], 0, cross_entropy, Fit(2, 0.1), Process(), lambda epoch, mean: losses.append(mean))
    assert losses == [0.0, 0.0]


def test_under_loss_scaling_a_skipped_step_is_no_divergence() -> None:
    """One batch overflows. Its step is skipped and its loss left out of the mean; the others count."""
    loss, asked = bad_from(1, float("inf"), until=2)
    model, losses, places = network(), [], []
    how = Fit(1, 0.1, precision="fp16", schedule="constant")

    def after_step() -> None:
        places.append(model[1].weight.detach().clone())

    data = two_clouds()
    fit(model, lambda epoch: data, 4, loss, how, Process(), lambda epoch, mean: losses.append(mean), after_step=after_step)
    assert len(asked) == 4
    assert [torch.equal(before, after) for before, after in pairwise(places)] == [True, False, False]
    plain, wanted = network(), []
    good = [data[0], data[2], data[3]]
    fit(plain, lambda epoch: good, 3, cross_entropy, how, Process(), lambda epoch, mean: wanted.append(mean))
    assert losses == pytest.approx(wanted, rel=1e-5)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)  # half the scale: other numbers are too small for half precision


@pytest.mark.parametrize(("num", "place"), [(30, "step 22"), (3, "step 2")])
def test_under_loss_scaling_twenty_bad_losses_or_an_epoch_of_them_are(num: int, place: str) -> None:
    loss, _ = bad_from(3 if num == 30 else 0, float("nan"))
    data = two_clouds(1)[:num]
    with pytest.raises(DivergedError, match=f"it was nan in epoch 0, {place}: lower"):
        fit(network(), lambda epoch: data, num, loss, Fit(1, 0.1, precision="fp16"), Process(), lambda epoch, mean: None)


def test_under_loss_scaling_harmed_statistics_are_divergence() -> None:
    """A batch norm keeps what it saw, though the step was skipped: in evaluation the network gives no numbers any more."""
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(2, 2))
    data = two_clouds()
    data[1] = (data[1][0] * torch.inf, data[1][1])
    how = Fit(1, 0.1, precision="fp16")
    with pytest.raises(DivergedError, match="it was nan in epoch 0, step 1: lower"):
        fit(model, lambda epoch: data, 4, cross_entropy, how, Process(), lambda epoch, mean: None)


def test_a_compiled_network_trains_the_plain_ones_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured and differentiated as ever, but left to torch's own kernels: building others takes a C++ compiler 15 s."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    counters = torch._dynamo.utils.counters
    counters.clear()
    how = {"epochs": 2, "learning_rate": 0.05, "gradient_clip": 1.0}
    plain, losses = trained(Fit(**how))  # type: ignore[arg-type]
    assert not counters["stats"]
    model = network()
    names = [name for name, _ in model.named_parameters()]
    _, again = trained(Fit(**how, compile=True), model)  # type: ignore[arg-type]
    assert counters["stats"]["unique_graphs"] == 1
    assert [name for name, _ in model.named_parameters()] == names
    assert again == pytest.approx(losses, rel=1e-5)
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


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
