"""The distillation losses against their formulas, and attention transfer between networks of all kinds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.compression.distillation import (
    attention_distance,
    attention_map,
    attention_transfer,
    check_classes,
    decoupled_loss,
    decoupled_parts,
    distillation_loss,
    label_loss,
    make_loss,
    stage_ends,
    teacher_inside,
)
from orchestrator.compression.fake_quantize import calibrate, insert_quantizers
from orchestrator.errors import UnbuildableError
from orchestrator.models.cifar_resnet import CifarResNet
from orchestrator.training.loop import Fit, fit
from orchestrator.training.process import Process


def draw(seed: int = 0, batch: int = 6, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(batch, classes, generator=generator) for _ in range(2))
    return student, torch.randint(0, classes, (batch,), generator=generator), teacher


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def by_hand(student: Tensor, labels: Tensor, teacher: Tensor, weight: float, temperature: float, smoothing: float) -> float:
    total = 0.0
    for mine, label, theirs in zip(student.tolist(), labels.tolist(), teacher.tolist(), strict=True):
        targets = [smoothing / len(mine) + (1 - smoothing) * (index == label) for index in range(len(mine))]
        hard = -sum(target * math.log(p) for target, p in zip(targets, softmax(mine, 1), strict=True))
        soft = sum(q * math.log(q / p) for q, p in zip(softmax(theirs, temperature), softmax(mine, temperature), strict=True))
        total += (1 - weight) * hard + weight * temperature**2 * soft
    return total / len(labels)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_formula(weight: float, temperature: float, smoothing: float) -> None:
    student, labels, teacher = draw()
    got = distillation_loss(student, labels, teacher, weight, temperature, smoothing)
    assert got.item() == pytest.approx(by_hand(student, labels, teacher, weight, temperature, smoothing), rel=1e-5)


def test_weight_nothing_is_cross_entropy() -> None:
    student, labels, teacher = draw()
    torch.testing.assert_close(distillation_loss(student, labels, teacher, 0.0, 4.0), F.cross_entropy(student, labels))


def test_weight_one_never_looks_at_the_labels() -> None:
    student, labels, teacher = draw()
    one, other = (distillation_loss(student, some, teacher, 1.0, 4.0) for some in (labels, (labels + 1) % 5))
    assert torch.equal(one, other)


@pytest.mark.parametrize("temperature", [1.0, 2.5, 20.0])
def test_a_student_like_its_teacher_has_no_soft_loss(temperature: float) -> None:
    student, labels, _ = draw()
    assert distillation_loss(student, labels, student + 7.0, 1.0, temperature).item() == pytest.approx(0, abs=1e-5)


def test_gradients_keep_their_size_over_temperatures() -> None:
    """At high temperature the soft gradient tends to that of logits matched in squares: (z - v) / (N C) per example."""
    student, labels, teacher = draw()
    norms = []
    for temperature in (50.0, 100.0, 200.0):
        z = student.clone().requires_grad_()
        distillation_loss(z, labels, teacher, 1.0, temperature).backward()
        assert z.grad is not None
        norms.append(z.grad.norm().item())
    gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    wanted = (gap / student.numel()).norm().item()
    assert norms == pytest.approx([wanted] * 3, rel=0.1)


def test_half_precision_logits_are_judged_in_full_precision() -> None:
    student, labels, teacher = (value.bfloat16() if value.is_floating_point() else value for value in draw())
    loss = distillation_loss(student, labels, teacher, 0.5, 4.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, distillation_loss(student.float(), labels, teacher.float(), 0.5, 4.0))
    assert label_loss(student, labels).dtype == torch.float32


def log(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


def test_the_decoupled_parts_of_one_example() -> None:
    """Student (.5, .25, .25), teacher (.6, .3, .1), label 0: (.5, .5) against (.6, .4), and (.5, .5) against (.75, .25)."""
    target, others = decoupled_parts(log(0.5, 0.25, 0.25), torch.tensor([0]), log(0.6, 0.3, 0.1), 1.0)
    assert target.item() == pytest.approx(0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.5), rel=1e-5)
    assert others.item() == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5), rel=1e-5)


def decoupled_by_hand(
    student: Tensor, labels: Tensor, teacher: Tensor, weight: float, temperature: float, beta: float, smoothing: float
) -> float:
    soft = 0.0
    for mine, label, theirs in zip(student.tolist(), labels.tolist(), teacher.tolist(), strict=True):
        p, q = softmax(mine, temperature), softmax(theirs, temperature)
        target = q[label] * math.log(q[label] / p[label])
        target += (1 - q[label]) * math.log((1 - q[label]) / (1 - p[label]))
        others = 0.0
        for index in range(len(p)):
            if index != label:
                among_p, among_q = p[index] / (1 - p[label]), q[index] / (1 - q[label])
                others += among_q * math.log(among_q / among_p)
        soft += target + beta * others
    hard = by_hand(student, labels, teacher, 0.0, 1.0, smoothing)
    return (1 - weight) * hard + weight * temperature**2 * soft / len(labels)


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("beta", "smoothing"), [(0.0, 0.0), (1.0, 0.1), (8.0, 0.0)])
def test_the_decoupled_loss_is_the_formula(weight: float, temperature: float, beta: float, smoothing: float) -> None:
    student, labels, teacher = draw()
    got = decoupled_loss(student, labels, teacher, weight, temperature, beta, smoothing)
    assert got.item() == pytest.approx(
        decoupled_by_hand(student, labels, teacher, weight, temperature, beta, smoothing), rel=1e-5
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0, 20.0])
def test_the_parts_coupled_again_are_hintons(temperature: float) -> None:
    """Equation 6: the others weigh 1 minus the teacher's probability of the label; gradients are equal as well."""
    student, labels, teacher = draw()
    doubt = 1 - (teacher / temperature).softmax(1)[torch.arange(6), labels]
    gradients = []
    for coupled in (True, False):
        z = student.clone().requires_grad_()
        if coupled:
            target, others = decoupled_parts(z, labels, teacher, temperature)
            loss = temperature**2 * (target + doubt * others).mean()
        else:
            loss = distillation_loss(z, labels, teacher, 1.0, temperature)
        loss.backward()
        gradients.append((loss.detach(), z.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_two_classes_have_no_others_to_tell_apart() -> None:
    student, labels, teacher = draw(classes=2)
    target, others = decoupled_parts(student, labels, teacher, 2.0)
    assert others.abs().max() == 0
    torch.testing.assert_close(4 * target.mean(), distillation_loss(student, labels, teacher, 1.0, 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoupled_loss_stays_finite_for_sure_networks(dtype: torch.dtype) -> None:
    student, labels, teacher = draw()
    z = (100 * student).to(dtype).requires_grad_()
    loss = decoupled_loss(z, labels, -100 * teacher.to(dtype), 0.9, 1.0, 8.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()


class Teacher(nn.Module):
    """Has dropout, so that it shows whether it is judged or trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Dropout(0.5))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@pytest.mark.parametrize("method", ["hinton", "decoupled"])
@pytest.mark.parametrize("num_given", [0, 1])
def test_without_weight_the_labels_decide(method: str, num_given: int) -> None:
    student, labels, teacher = draw()
    got = make_loss(method, 0.0, 4.0, 8.0, 0.1)(torch.randn(6, 1, 2, 2), student, labels, *[teacher] * num_given)
    torch.testing.assert_close(got, F.cross_entropy(student, labels, label_smoothing=0.1))


def test_with_weight_the_given_logits_are_the_teachers() -> None:
    student, labels, teacher = draw()
    images, more = torch.randn(6, 1, 2, 2), torch.randn(6)
    hinton = make_loss("hinton", 0.6, 3.0, 8.0, 0.05)(images, student, labels, teacher, more)
    assert torch.equal(hinton, distillation_loss(student, labels, teacher, 0.6, 3.0, 0.05))
    decoupled = make_loss("decoupled", 0.6, 3.0, 8.0, 0.05)(images, student, labels, teacher, more)
    assert torch.equal(decoupled, decoupled_loss(student, labels, teacher, 0.6, 3.0, 8.0, 0.05))


def test_a_method_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="must be hinton or decoupled; given 'crd'"):
        make_loss("crd", 0.5, 4.0, 8.0)


def test_a_teacher_inside_sees_the_same_images_and_stays_as_it_is() -> None:
    torch.manual_seed(0)
    teacher = Teacher().train()
    loss = teacher_inside(teacher, make_loss("hinton", 0.6, 3.0, 8.0, 0.05))
    student, labels, _ = draw()
    student.requires_grad_()
    images = torch.randn(6, 1, 2, 2)
    value = loss(images, student, labels)
    assert not any(module.training for module in teacher.modules())
    wanted = distillation_loss(student, labels, teacher(images).detach(), 0.6, 3.0, 0.05)
    torch.testing.assert_close(value, wanted)
    value.backward()
    assert student.grad is not None
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())


def test_an_attention_map_by_hand() -> None:
    """Two channels over two positions: squares sum to 1 + 4 and 4 + 0."""
    features = torch.tensor([[[[1.0, 2.0]], [[2.0, 0.0]]]])
    torch.testing.assert_close(attention_map(features), torch.tensor([[5.0, 4.0]]) / math.sqrt(41))
    teacher = torch.tensor([[[[3.0, 4.0]]]])
    gaps = [5 / math.sqrt(41) - 9 / math.sqrt(337), 4 / math.sqrt(41) - 16 / math.sqrt(337)]
    assert attention_distance(features, teacher).item() == pytest.approx((gaps[0] ** 2 + gaps[1] ** 2) / 2, rel=1e-4)


def test_attention_is_about_places_and_not_about_size_or_channels() -> None:
    features = torch.randn(3, 4, 5, 5)
    more = torch.cat([features, -features], 1) * 7
    assert attention_distance(features, more).item() == pytest.approx(0, abs=1e-12)
    assert attention_distance(features, features.flip(3)).item() > 1e-3
    assert attention_map(features.bfloat16()).dtype == torch.float32


def names(model: nn.Module) -> dict[tuple[int, int], str]:
    named = {module: name for name, module in model.named_modules()}
    return {size: named[module] for size, module in stage_ends(model, torch.zeros(1, 1, 8, 8)).items()}


def test_stages_end_where_a_size_is_seen_last() -> None:
    assert names(CifarResNet(14, 4, 10, 1)) == {(8, 8): "blocks.1", (4, 4): "blocks.3", (2, 2): "blocks"}
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert names(pooled) == {(8, 8): "1"}, "at 1 x 1 there is nowhere to look"


def test_a_weights_kernel_is_not_taken_for_a_feature_map() -> None:
    model = CifarResNet(8, 4, 10, 1)
    graph = insert_quantizers(model, 4, 4, True)
    assert set(stage_ends(graph, torch.zeros(1, 1, 8, 8))) == {(8, 8), (4, 4), (2, 2)}


def test_looking_for_stages_leaves_no_trace() -> None:
    model = CifarResNet(8, 4, 10, 1).train()
    model.blocks[1].eval()
    modes, state = [module.training for module in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    stage_ends(model, torch.randn(1, 1, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def maps_of(model: CifarResNet, images: Tensor) -> list[Tensor]:
    """The outputs of the three stages, layer by layer."""
    x = model.relu(model.bn(model.conv(images)))
    ends = []
    for block in model.blocks:
        after = block(x)
        if after.shape != x.shape:
            ends.append(x)
        x = after
    return [*ends, x]


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_attention_transfer_adds_the_distances_at_the_ends_of_stages(weight: float) -> None:
    torch.manual_seed(0)
    student, teacher = CifarResNet(8, 4, 10, 1).train(), CifarResNet(14, 6, 10, 1).train()
    images, labels = torch.randn(5, 1, 8, 8), torch.arange(5)
    plain = make_loss("hinton", weight, 3.0, 8.0)
    with attention_transfer(student, teacher, images[:1], 100.0, plain) as loss:
        got = loss(images, logits := student(images), labels)
        got.backward()
        with pytest.raises(KeyError):  # the maps of a forward pass are used once
            loss(images, logits.detach(), labels)
    wanted = plain(images, student(images), labels, teacher(images))
    for mine, theirs in zip(maps_of(student, images), maps_of(teacher, images), strict=True):
        maps = [F.normalize(features.pow(2).sum(1).view(5, -1)) for features in (mine, theirs)]
        wanted = wanted + 100.0 * (maps[0] - maps[1]).pow(2).mean()
    torch.testing.assert_close(got, wanted)
    inner = [parameter for name, parameter in student.named_parameters() if not name.startswith("fc")]
    torch.testing.assert_close([parameter.grad for parameter in inner], list(torch.autograd.grad(wanted, inner)))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module._forward_hooks for network in (student, teacher) for module in network.modules())


class Reused(nn.Module):
    """One rectifier that serves at two sizes, more than once at the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.third, self.relu, self.fc = nn.Conv2d(3, 3, 3, 2, 1), nn.ReLU(), nn.Linear(3, 10)

    def stages(self, images: Tensor) -> list[Tensor]:
        large = self.relu(self.second(self.relu(self.first(images))))
        return [large, self.relu(self.third(large))]

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.stages(images)[1].mean((2, 3)))


def test_a_module_that_serves_at_two_sizes_is_watched_at_both() -> None:
    torch.manual_seed(0)
    student, teacher = Reused(), Reused()
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    with attention_transfer(student, teacher, images[:1], 10.0, make_loss("hinton", 0.0, 1.0, 8.0)) as loss:
        got = loss(images, student(images), labels)
    pairs = zip(student.stages(images), teacher.stages(images), strict=True)
    wanted = F.cross_entropy(student(images), labels) + 10 * sum(attention_distance(*pair) for pair in pairs)
    torch.testing.assert_close(got, wanted)


def quantized_student() -> nn.Module:
    graph = insert_quantizers(CifarResNet(8, 4, 10, 1), 8, 8, True)
    calibrate(graph, [torch.randn(8, 1, 8, 8)], "minmax")
    return graph


@pytest.mark.parametrize("build", [lambda: CifarResNet(8, 4, 10, 1), quantized_student], ids=["float", "quantized"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_to_look_where_the_teacher_looks(build: Callable[[], nn.Module], precision: str) -> None:
    torch.manual_seed(0)
    student, teacher = build(), CifarResNet(8, 8, 10, 1)
    images, labels = torch.randn(16, 1, 8, 8), torch.zeros(16, dtype=torch.int64)
    losses: list[float] = []

    def attention(images: Tensor, logits: Tensor, labels: Tensor, *given: Tensor) -> Tensor:
        return 0.0 * logits.float().sum()

    with attention_transfer(student, teacher, images[:1], 100.0, attention) as loss:
        how = Fit(40, 0.02, schedule="constant", precision=precision, gradient_clip=1.0)
        fit(student, lambda epoch: [(images, labels)], 1, loss, how, Process(), lambda epoch, mean: losses.append(mean))
    assert losses[-1] < 0.7 * losses[0]


def test_networks_without_a_size_in_common_are_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    student, plain = CifarResNet(8, 4, 10, 1), make_loss("hinton", 0.0, 1.0, 8.0)
    must = "one size in both networks; there are 8 x 8, 4 x 4, 2 x 2 in the student and none in the teacher"
    with (
        pytest.raises(UnbuildableError, match=must),
        attention_transfer(student, flat, torch.zeros(1, 1, 8, 8), 1.0, plain),
    ):
        pass


def test_a_teacher_with_other_classes_is_refused() -> None:
    model, example = CifarResNet(8, 4, 7, 1).train(), torch.zeros(1, 1, 8, 8)
    check_classes(model, 7, example, "teacher")
    with pytest.raises(UnbuildableError, match=r"the teacher must give logits of shape \(1, 10\).* it gives \(1, 7\)"):
        check_classes(model, 10, example, "teacher")
    assert model.training
    assert int(model.bn.num_batches_tracked) == 0


class Pair(nn.Module):
    """Two outputs, where one is wanted."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(("model", "said"), [(nn.Conv2d(3, 8, 3), "RuntimeError"), (Pair(), "AttributeError")])
def test_a_network_that_does_not_take_the_images_is_unbuildable(model: nn.Module, said: str) -> None:
    with pytest.raises(UnbuildableError, match=rf"must take images of shape \(1, 8, 8\) and give one tensor: {said}"):
        check_classes(model, 10, torch.zeros(1, 1, 8, 8), "student")
