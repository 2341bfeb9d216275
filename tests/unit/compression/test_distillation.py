"""The distillation loss against its formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.compression.distillation import distillation_loss, label_loss, make_loss


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


class Teacher(nn.Module):
    """Has dropout, so that it shows whether it is judged or trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Dropout(0.5))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@pytest.mark.parametrize(("with_teacher", "weight"), [(False, 0.7), (True, 0.0)])
def test_without_a_teacher_or_weight_the_labels_decide(with_teacher: bool, weight: float) -> None:
    loss = make_loss(Teacher() if with_teacher else None, weight, 4.0, 0.1)
    student, labels, _ = draw()
    got = loss(torch.randn(6, 1, 2, 2), student, labels)
    torch.testing.assert_close(got, F.cross_entropy(student, labels, label_smoothing=0.1))


def test_the_teacher_sees_the_same_images_and_stays_as_it_is() -> None:
    torch.manual_seed(0)
    teacher = Teacher().train()
    loss = make_loss(teacher, 0.6, 3.0, 0.05)
    student, labels, _ = draw()
    student.requires_grad_()
    images = torch.randn(6, 1, 2, 2)
    value = loss(images, student, labels)
    assert not teacher.training
    wanted = distillation_loss(student, labels, teacher(images).detach(), 0.6, 3.0, 0.05)
    torch.testing.assert_close(value, wanted)
    value.backward()
    assert student.grad is not None
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
