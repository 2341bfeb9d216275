"""The names written out in `spec` are those of the libraries."""

from __future__ import annotations

import pytest
import torchvision
from torchvision import datasets

from orchestrator.spec.names import CIFAR_RESNETS, MODEL_NAMES, TORCHVISION_DATASETS, TORCHVISION_MODELS

WITH_AUXILIARY_HEADS = {"googlenet", "inception_v3"}


def test_every_model_is_one_of_torchvisions():
    assert set(TORCHVISION_MODELS) <= set(torchvision.models.list_models(module=torchvision.models))


def test_every_model_of_torchvision_is_there_but_those_with_auxiliary_heads():
    assert set(torchvision.models.list_models(module=torchvision.models)) - set(TORCHVISION_MODELS) == WITH_AUXILIARY_HEADS


@pytest.mark.parametrize("name", TORCHVISION_DATASETS)
def test_every_dataset_is_one_of_torchvisions(name):
    assert issubclass(getattr(datasets, name), datasets.VisionDataset)


def test_no_name_stands_for_two_models():
    assert len(set(MODEL_NAMES)) == len(MODEL_NAMES) == len(CIFAR_RESNETS) + len(TORCHVISION_MODELS)


@pytest.mark.parametrize("name", CIFAR_RESNETS)
def test_a_cifar_resnet_has_6n_plus_2_layers(name):
    assert (int(name.removeprefix("cifar_resnet")) - 2) % 6 == 0
