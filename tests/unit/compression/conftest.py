"""A small network that knows the digits, dense, narrow and quantized; one thread."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from orchestrator.compression import onnx_export
from orchestrator.compression.channels import prune_channels
from orchestrator.compression.distillation import make_loss
from orchestrator.compression.fake_quantize import calibrate, insert_quantizers, settle_biases
from orchestrator.data.batches import DeviceData, Normalizer
from orchestrator.data.decode import Examples
from orchestrator.data.sources import Source, read_split
from orchestrator.models.cifar_resnet import CifarResNet
from orchestrator.training.loop import Fit, fit
from orchestrator.training.process import Process

torch.set_num_threads(1)

Train = Callable[..., nn.Module]
Quantize = Callable[..., fx.GraphModule]


@pytest.fixture(scope="session")
def digits() -> DeviceData:
    """A third of the training digits: fifteen batches of 32."""
    rows = list(read_split(Source("digits"), "train"))[::3]
    images, labels = np.stack([image for image, _ in rows]), np.array([label for _, label in rows])
    mean, std = (np.array([value], np.float32) / 255 for value in (images.mean(), images.std()))
    cpu = torch.device("cpu")
    return DeviceData(Examples(images, labels), Normalizer(mean, std, cpu), cpu, channels_last=False)


@pytest.fixture(scope="session")
def pixels(digits: DeviceData) -> Tensor:
    """All images as a served model gets them: float32 (N, 1, 8, 8) in 0..255."""
    return digits.images.float()


@pytest.fixture(scope="session")
def train(digits: DeviceData) -> Train:
    """Train a network on the digits, in place."""

    def run(model: nn.Module, epochs: int, rate: float) -> nn.Module:
        how = Fit(epochs, rate, warmup_fraction=0.1)
        loss = make_loss(None, 0.0, 1.0, 0.0)
        fit(
            model,
            lambda epoch: digits.epoch(32, epoch, 0, 1, "none"),
            len(digits) // 32,
            loss,
            how,
            Process(),
            lambda epoch, mean: None,
        )
        return model.eval()

    return run


@pytest.fixture(scope="session")
def dense(train: Train) -> nn.Module:
    """A network that knows the digits. Not to be changed."""
    torch.manual_seed(0)
    return train(CifarResNet(8, 8, 10, 1), 6, 0.1)


@pytest.fixture(scope="session")
def narrow(dense: nn.Module, train: Train) -> nn.Module:
    """The same without half of its channels: other widths, same wiring. Not to be changed."""
    model = copy.deepcopy(dense)
    prune_channels(model, torch.zeros(1, 1, 8, 8), 0.5, "l2", "uniform", 1)
    return train(model, 1, 0.02)


@pytest.fixture(scope="session")
def quantized(dense: nn.Module, digits: DeviceData, train: Train) -> Quantize:
    """The dense network, or another, with quantizers, calibrated and trained on for an epoch."""
    made: dict[tuple[object, ...], fx.GraphModule] = {}

    def make(
        weight_bits: int,
        activation_bits: int = 8,
        *,
        first_last_8bit: bool = True,
        epochs: int = 1,
        model: nn.Module | None = None,
    ) -> fx.GraphModule:
        key = (weight_bits, activation_bits, first_last_8bit, epochs, id(model))
        if key not in made:
            graph = insert_quantizers(model or dense, weight_bits, activation_bits, first_last_8bit)
            images = [digits.normalizer(digits.images[:128])]
            calibrate(graph, images, "mse")
            train(graph, epochs, 0.01)
            calibrate(graph, images, "mse", carriers_only=True)
            settle_biases(graph)
            made[key] = graph
        return copy.deepcopy(made[key]).eval()

    return make


@pytest.fixture
def fresh_graphs() -> Iterator[dict[str, object]]:
    """The exporter's kept graphs, empty; and as they were, after."""
    kept = dict(onnx_export._graphs)
    onnx_export._graphs.clear()
    yield onnx_export._graphs
    onnx_export._graphs.clear()
    onnx_export._graphs.update(kept)
