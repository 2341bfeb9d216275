"""Adversarial images as an image file can hold them, and what they do to a network that knows the digits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from orchestrator.compression.fake_quantize import calibrate, insert_quantizers, settle_biases
from orchestrator.compression.grids import split_off_grids
from orchestrator.compression.onnx_export import FromPixels, export_quantized
from orchestrator.data.batches import DeviceData
from orchestrator.measure.accuracy import classification
from orchestrator.measure.robustness import adversarial_images
from orchestrator.measure.runtime import Runtime
from orchestrator.training.adversarial import make_perturbation, straight_through

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def pgd(digits: DeviceData, epsilon: float, seed: int = 0) -> Attack:
    normalizer, generator = digits.normalizer, torch.Generator().manual_seed(seed)
    attack = make_perturbation("pgd", epsilon, 7, epsilon / 3, normalizer.scale, normalizer.offset, generator)
    assert attack is not None
    return attack


def found(
    model: nn.Module, digits: DeviceData, epsilon: float, num_images: int = 200, attack: Attack | None = None, size: int = 64
) -> np.ndarray:
    normalizer = digits.normalizer
    attack = attack or pgd(digits, epsilon)
    pixels, labels = digits.images, digits.labels
    return adversarial_images(
        model, attack, pixels, labels, epsilon, normalizer.scale, normalizer.offset, num_images, batch_size=size
    )


def accuracy(model: nn.Module, digits: DeviceData, pixels: np.ndarray) -> float:
    with torch.no_grad():
        logits = model(digits.normalizer(torch.from_numpy(pixels)))
    return float((logits.argmax(1) == digits.labels[: len(pixels)]).float().mean())


@pytest.mark.parametrize(("epsilon", "reach"), [(8 / 255, 8), (30 / 255, 30), (0.05, 12), (0.0627, 16), (0.3 / 255, 0)])
def test_pixels_are_whole_and_within_bound_and_range(dense: nn.Module, digits: DeviceData, epsilon: float, reach: int) -> None:
    pixels = found(dense, digits, epsilon, 70)
    clean = digits.images[:70].numpy().astype(np.float32)
    assert (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) == (np.float32, (70, 1, 8, 8), True)
    assert np.array_equal(pixels, np.round(pixels))
    assert pixels.min() >= 0
    assert pixels.max() <= 255
    assert np.abs(pixels - clean).max() == reach


def test_accuracy_falls_far_below_that_under_noise_of_the_same_size(dense: nn.Module, digits: DeviceData) -> None:
    epsilon = 40 / 255
    clean = digits.images[:200].numpy().astype(np.float32)
    noise = np.random.default_rng(0).choice([-40.0, 40.0], clean.shape)
    noisy = np.clip(clean + noise, 0, 255).astype(np.float32)
    assert accuracy(dense, digits, clean) > 0.95
    assert accuracy(dense, digits, found(dense, digits, epsilon)) < accuracy(dense, digits, noisy) - 0.3


def test_equal_seeds_give_equal_images_whatever_follows_them(dense: nn.Module, digits: DeviceData) -> None:
    epsilon = 20 / 255
    few = found(dense, digits, epsilon, 64)
    assert np.array_equal(few, found(dense, digits, epsilon, 100)[:64])
    assert not np.array_equal(few, found(dense, digits, epsilon, 64, pgd(digits, epsilon, seed=1)))


def test_fewer_images_than_asked_for_are_all_attacked(dense: nn.Module, digits: DeviceData) -> None:
    assert len(found(dense, digits, 8 / 255, 10**6, size=256)) == len(digits)


def test_an_attack_that_leaves_its_bound_is_brought_back(dense: nn.Module, digits: DeviceData) -> None:
    far: Attack = lambda model, images, labels: images + 1e3  # noqa: E731
    clean = digits.images[:40].numpy().astype(np.float32)
    assert np.array_equal(found(dense, digits, 5 / 255, 40, far), np.minimum(clean + 5, 255))


def test_the_network_is_left_as_it_was(dense: nn.Module, digits: DeviceData) -> None:
    model = copy.deepcopy(dense).train()
    state = copy.deepcopy(model.state_dict())
    found(model, digits, 8 / 255, 32)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_quantized_file_falls_for_images_found_on_its_training_graph(
    dense: nn.Module, digits: DeviceData, tmp_path: Path
) -> None:
    """The straight-through estimator leads to images that the file itself, without any gradient, misjudges."""
    graph: fx.GraphModule = insert_quantizers(dense, 8, 8, True)
    calibrate(graph, [digits.normalizer(digits.images[:128])], "mse")
    settle_biases(graph)
    normalizer, labels = digits.normalizer, digits.labels[:200].numpy()
    plain, grids = split_off_grids(graph.eval())
    wrap = FromPixels.of(normalizer.scale, normalizer.offset)
    export_quantized(wrap(plain), grids.below(FromPixels.NETWORK), torch.zeros(1, 1, 8, 8), tmp_path / "model.onnx")
    runtime = Runtime(tmp_path / "model.onnx", threads=1)
    clean = classification(runtime.logits(digits.images[:200].numpy().astype(np.float32)), labels)["accuracy"]
    with straight_through([graph.quantize_0]):
        pixels = found(graph, digits, 40 / 255)
    robust = classification(runtime.logits(pixels), labels)["accuracy"]
    assert clean > 0.95
    assert robust < 0.2
    assert robust == pytest.approx(accuracy(graph, digits, pixels), abs=0.011)
    assert robust <= accuracy(dense, digits, found(dense, digits, 40 / 255)) + 0.05  # quantizing is no defence
