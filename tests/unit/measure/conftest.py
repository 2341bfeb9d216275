"""A small network that knows the digits; one thread; and torch's own deprecated code out of the way of `-W error`."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from orchestrator.data.batches import DeviceData, Normalizer
from orchestrator.data.decode import Examples
from orchestrator.data.sources import Source, read_split
from orchestrator.models.cifar_resnet import CifarResNet
from orchestrator.training.loop import Fit, fit
from orchestrator.training.process import Process

torch.set_num_threads(1)

with warnings.catch_warnings():
    # torch.fx.experimental.optimization imports it, and it uses what torch has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch.utils.mkldnn


@pytest.fixture(scope="session")
def digits() -> DeviceData:
    """A third of the training digits: fifteen batches of 32."""
    rows = list(read_split(Source("digits"), "train"))[::3]
    images, labels = np.stack([image for image, _ in rows]), np.array([label for _, label in rows])
    mean, std = (np.array([value], np.float32) / 255 for value in (images.mean(), images.std()))
    cpu = torch.device("cpu")
    return DeviceData(Examples(images, labels), Normalizer(mean, std, cpu), cpu, channels_last=False)


@pytest.fixture(scope="session")
def dense(digits: DeviceData) -> nn.Module:
    """A network that knows the digits. Not to be changed."""
    torch.manual_seed(0)
    model = CifarResNet(8, 8, 10, 1)
    fit(
        model,
        lambda epoch: digits.epoch(32, epoch, 0, 1, "none"),
        len(digits) // 32,
        lambda images, logits, labels: F.cross_entropy(logits, labels),
        Fit(6, 0.1, warmup_fraction=0.1),
        Process(),
        lambda epoch, mean: None,
    )
    return model.eval()
