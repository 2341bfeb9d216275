"""Flips, classes and explanations: counted by hand, and against SciPy's ranks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from orchestrator.compression.fake_quantize import calibrate, insert_quantizers
from orchestrator.data.batches import DeviceData
from orchestrator.measure.audit import agreement, explanation_similarity, flip_rate, flips_by_class, per_class_accuracy
from orchestrator.training.adversarial import straight_through


def one_hot(predictions: list[int], num_classes: int = 3) -> np.ndarray:
    return np.eye(num_classes, dtype=np.float32)[predictions]


DENSE = one_hot([0, 0, 1, 1, 2, 2, 2, 0])
COMPRESSED = one_hot([0, 1, 1, 1, 0, 2, 0, 1])
LABELS = np.array([0, 0, 0, 1, 2, 2, 2, 2])


def test_flips_and_agreement_by_hand() -> None:
    """Images 1, 4, 6 and 7 change; the last from one wrong class to another."""
    assert flip_rate(COMPRESSED, DENSE) == 4 / 8
    assert agreement(COMPRESSED, DENSE) == 4 / 8
    assert flips_by_class(COMPRESSED, DENSE, LABELS) == {0: pytest.approx(1 / 3), 1: 0.0, 2: 3 / 4}


def test_accuracy_by_class_by_hand() -> None:
    assert per_class_accuracy(DENSE, LABELS) == {0: pytest.approx(2 / 3), 1: 1.0, 2: 3 / 4}
    assert per_class_accuracy(COMPRESSED, LABELS) == {0: pytest.approx(1 / 3), 1: 1.0, 2: 1 / 4}


def test_a_network_agrees_with_itself_whatever_its_logits_size() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert flip_rate(logits, logits) == 0.0
    assert agreement(logits, 3 * logits + 1) == 1.0


def test_absent_classes_are_left_out() -> None:
    assert per_class_accuracy(one_hot([2, 2]), np.array([2, 0])) == {0: 0.0, 2: 1.0}
    assert flips_by_class(one_hot([2, 2]), one_hot([2, 1]), np.array([2, 2])) == {2: 0.5}


def test_classes_add_up_to_the_whole() -> None:
    generator = np.random.default_rng(1)
    one, other = (generator.normal(size=(200, 5)).astype(np.float32) for _ in range(2))
    labels = generator.integers(0, 5, 200)
    shares = {label: float((labels == label).mean()) for label in range(5)}
    flips = flips_by_class(one, other, labels)
    assert sum(shares[label] * flips[label] for label in shares) == pytest.approx(flip_rate(one, other))
    right = per_class_accuracy(one, labels)
    assert sum(shares[label] * right[label] for label in shares) == pytest.approx((one.argmax(1) == labels).mean())


@pytest.mark.parametrize("measure", [flip_rate, agreement, lambda one, other: flips_by_class(one, other, LABELS)])
def test_logits_of_other_images_are_refused(measure: object) -> None:
    with pytest.raises(ValueError, match=r"of the same images and classes; given \(8, 3\) and \(7, 3\)"):
        measure(DENSE, DENSE[1:])  # type: ignore[operator]


def linear(weight: Tensor, shape: tuple[int, int, int]) -> nn.Module:
    """Logits from images (B, *shape); its gradient for a class is that class's row of weights, for every image."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), len(weight), bias=False))
    model[1].weight.data = weight.flatten(1)
    return model


def test_maps_are_the_largest_absolute_gradient_over_channels_and_compared_by_rank() -> None:
    """Two channels of 2 x 2 pixels. Maps [4, 3, 2, 1] and [1, 3, 2, 4]: rank correlation 1 - 6 * 18 / (4 * 15) = -0.8."""
    one = torch.tensor([[[[-4.0, 1.0], [2.0, 0.5]], [[0.0, 3.0], [-1.0, 1.0]]]]).repeat(2, 1, 1, 1)
    other = torch.tensor([[[[1.0, 0.0], [0.0, -4.0]], [[0.5, -3.0], [2.0, 0.0]]]]).repeat(2, 1, 1, 1)
    shape = (2, 2, 2)
    similarity = explanation_similarity(
        linear(one, shape), linear(other, shape), torch.randn(5, *shape), torch.tensor([0, 1, 0, 1, 1])
    )
    assert similarity == pytest.approx(-0.8)


def test_each_image_is_explained_for_its_target() -> None:
    """The networks agree on class 0 and see class 1 the other way round."""
    row = torch.arange(1.0, 5.0).view(1, 1, 2, 2)
    dense, compressed = (linear(torch.stack([row, second]), (1, 2, 2)) for second in (row, row.flip(2, 3)))
    images = torch.randn(4, 1, 2, 2)
    for targets, wanted in (([0, 0, 0, 0], 1.0), ([1, 1, 1, 1], -1.0), ([0, 1, 0, 0], 0.5)):
        assert explanation_similarity(dense, compressed, images, torch.tensor(targets)) == pytest.approx(wanted)


def test_equal_values_share_their_rank_as_in_scipy() -> None:
    """Small whole weights: many ties."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randint(-3, 4, (1, 1, 6, 6), generator=generator).float() for _ in range(2))
    other += one.round() * 0.5
    wanted = spearmanr(one.abs().flatten().numpy(), other.abs().flatten().numpy()).statistic
    networks = linear(one, (1, 6, 6)), linear(other, (1, 6, 6))
    assert explanation_similarity(*networks, torch.randn(2, 1, 6, 6), torch.zeros(2, dtype=torch.int64)) == pytest.approx(
        wanted
    )


def test_maps_without_contrast_equal_each_other_and_nothing_else() -> None:
    flat, other = linear(torch.ones(1, 1, 2, 2), (1, 2, 2)), linear(torch.arange(4.0).view(1, 1, 2, 2), (1, 2, 2))
    images, targets = torch.randn(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)
    assert explanation_similarity(flat, copy.deepcopy(flat), images, targets) == 1.0
    assert explanation_similarity(flat, other, images, targets) == 0.0


def test_no_images_are_an_error() -> None:
    model = linear(torch.ones(1, 1, 2, 2), (1, 2, 2))
    with pytest.raises(ValueError, match="there must be images to explain; given none"):
        explanation_similarity(model, model, torch.zeros(0, 1, 2, 2), torch.zeros(0, dtype=torch.int64))


@pytest.fixture
def seen(dense: nn.Module, digits: DeviceData) -> tuple[Tensor, Tensor]:
    """More images than one batch holds, and what the dense network says of them."""
    images = digits.normalizer(digits.images[:80])
    with torch.no_grad():
        return images, dense(images).argmax(1)


def test_a_network_explains_itself_as_itself(dense: nn.Module, seen: tuple[Tensor, Tensor]) -> None:
    assert explanation_similarity(dense, copy.deepcopy(dense), *seen) == pytest.approx(1.0)


def test_more_compression_is_less_similar_and_another_network_least(
    dense: nn.Module, digits: DeviceData, seen: tuple[Tensor, Tensor]
) -> None:
    """Through fake quantizers: of 8 bits almost the same, of 3 less so; chance weights share nothing but the images."""
    similarity = {}
    for bits in (8, 3):
        graph = insert_quantizers(dense, bits, bits, True)
        calibrate(graph, [digits.normalizer(digits.images[:128])], "minmax")
        with straight_through([graph.quantize_0]):
            similarity[bits] = explanation_similarity(dense, graph, *seen)
    stranger = copy.deepcopy(dense)
    torch.manual_seed(1)
    for parameter in stranger.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.flatten()[torch.randperm(parameter.numel())].view_as(parameter)
    assert similarity[8] > 0.9
    assert similarity[8] > similarity[3] + 0.05
    assert similarity[3] > explanation_similarity(dense, stranger, *seen) + 0.05


def test_networks_are_left_as_they_were(dense: nn.Module, seen: tuple[Tensor, Tensor]) -> None:
    one, other = copy.deepcopy(dense).train(), copy.deepcopy(dense).train()
    other.bn.eval()
    images, targets = seen
    before = images.clone()
    state, modes = copy.deepcopy(other.state_dict()), [module.training for module in other.modules()]
    with torch.no_grad():
        explanation_similarity(one, other, images, targets)
    assert [module.training for module in other.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    assert all(parameter.grad is None for parameter in other.parameters())
    assert torch.equal(images, before)
    assert not images.requires_grad


def test_maps_are_those_of_autograd(dense: nn.Module, seen: tuple[Tensor, Tensor]) -> None:
    """Against a network of half its logits, and the gradients taken by hand for a network of other weights."""
    other = copy.deepcopy(dense)
    other.conv.weight.data += 0.2 * torch.randn(other.conv.weight.shape, generator=torch.Generator().manual_seed(2))
    images, targets = (values[:10] for values in seen)
    maps = []
    for model in (dense, other):
        leaf = images.clone().requires_grad_()
        picked = (model(leaf) * F.one_hot(targets, 10)).sum()
        maps.append(torch.autograd.grad(picked, leaf)[0].abs().flatten(1).numpy())
    wanted = np.mean([spearmanr(a, b).statistic for a, b in zip(*maps, strict=True)])
    assert explanation_similarity(dense, other, images, targets) == pytest.approx(wanted, abs=1e-3)
    other.fc.weight.data *= 0.5
    assert explanation_similarity(dense, other, images, targets) == pytest.approx(wanted, abs=1e-3)
