"""Networks of the user's own, weights from a file, dropout."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from orchestrator.compression.folding import fold_norms
from orchestrator.errors import UnbuildableError
from orchestrator.models.cifar_resnet import CifarResNet
from orchestrator.models.user import DropoutLinear, add_dropout, classifier_name, load_weights, user_model

SOURCE = """
from torch import nn

def small(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))

def anything(**given):
    return nn.Linear(given["in_channels"], given["num_classes"])

def fixed():
    return nn.Linear(3, 2)

def number(num_classes):
    return num_classes
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "networks_of_mine.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "networks_of_mine", raising=False)


def test_a_function_is_called_with_what_it_takes() -> None:
    assert user_model("networks_of_mine:small", 5, 2)[1].weight.shape == (5, 128)
    assert user_model("networks_of_mine:anything", 5, 2).weight.shape == (5, 2)
    assert user_model("networks_of_mine:fixed", 5, 2).weight.shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("networks_of_mine:none", "no attribute 'none'"),
        ("networks_of_mine:number", "must return a torch.nn.Module; it returned int"),
        ("networks_of_mine:SMALL", "no attribute"),
    ],
)
def test_what_makes_no_network_is_said(name: str, said: str) -> None:
    with pytest.raises(UnbuildableError, match=said):
        user_model(name, 5, 2)


def test_weights_are_loaded_and_a_head_for_other_classes_is_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = CifarResNet(8, 4, 7, 1)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    same = load_weights(CifarResNet(8, 4, 7, 1), str(tmp_path / "w.safetensors"))
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in same.state_dict().items())
    other = CifarResNet(8, 4, 10, 1)
    head = other.fc.weight.detach().clone()
    load_weights(other, str(tmp_path / "w.safetensors"))
    assert torch.equal(other.fc.weight, head)
    assert torch.equal(other.conv.weight, source.conv.weight)


def test_a_network_that_is_used_as_it_comes_needs_its_classifier(tmp_path: Path) -> None:
    save_file(CifarResNet(8, 4, 7, 1).state_dict(), tmp_path / "w.safetensors")
    load_weights(CifarResNet(8, 4, 7, 1), str(tmp_path / "w.safetensors"), classifier=True)
    with pytest.raises(UnbuildableError, match=r"these do not: fc\.bias, fc\.weight"):
        load_weights(CifarResNet(8, 4, 10, 1), str(tmp_path / "w.safetensors"), classifier=True)


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    save_file(CifarResNet(8, 8, 10, 1).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UnbuildableError, match=r"these do not: blocks\.0\.bn1\.bias, .* and \d+ more"):
        load_weights(CifarResNet(8, 4, 10, 1), str(tmp_path / "w.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for name in ("broken.safetensors", "missing.safetensors"):
        with pytest.raises(UnbuildableError, match="must be a safetensors file"):
            load_weights(CifarResNet(8, 4, 10, 1), str(tmp_path / name))


def test_dropout_drops_in_training_alone_and_keeps_names_and_weights() -> None:
    torch.manual_seed(0)
    plain = CifarResNet(8, 4, 10, 1).eval()
    dropped = add_dropout(CifarResNet(8, 4, 10, 1), 0.5)
    assert list(dropped.state_dict()) == list(plain.state_dict())
    dropped.load_state_dict(plain.state_dict())
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(dropped.eval()(images), plain(images))
    assert isinstance(dropped.get_submodule(classifier_name(dropped)), DropoutLinear)
    layer = DropoutLinear(1000, 1, bias=False)
    layer.dropout = 0.25
    torch.nn.init.ones_(layer.weight)
    kept = layer.train()(torch.ones(1, 1000)).item() * 0.75 / 1000
    assert kept == pytest.approx(0.75, abs=0.06)


def test_dropout_rests_in_a_traced_network() -> None:
    model = add_dropout(CifarResNet(8, 4, 10, 1), 0.5)
    traced = fold_norms(model.train())
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(traced.eval()(images), traced(images))


def test_no_dropout_changes_nothing_and_a_network_without_classifier_is_refused() -> None:
    model = nn.Conv2d(1, 2, 3)
    assert add_dropout(model, 0.0) is model
    with pytest.raises(UnbuildableError, match="the network has none"):
        add_dropout(model, 0.1)
