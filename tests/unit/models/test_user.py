"""Networks of the user's own, weights from a file, dropout."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from orchestrator.compression.folding import fold_norms
from orchestrator.errors import UnbuildableError
from orchestrator.models.cifar_resnet import CifarResNet
from orchestrator.models.user import DropoutLinear, add_dropout, classifier_name, load_weights, source_digest, user_model

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

def failing(num_classes):
    return {}[num_classes]

def short(num_classes, in_channels, depth):
    return nn.Linear(in_channels, num_classes)
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "networks_of_mine.py").write_text(SOURCE)
    (tmp_path / "does_not_compile.py").write_text("def f(:\n")
    (tmp_path / "raises.py").write_text("raise RuntimeError('no GPU today')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "networks_of_mine", raising=False)
    source_digest.cache_clear()


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
        ("networks_of_mine:failing", "must be a function that makes a network: KeyError: 5"),
        ("networks_of_mine:short", "TypeError: .* 'depth'"),
        ("does_not_compile:f", "SyntaxError: "),
        ("raises:f", "must be a function that makes a network: RuntimeError: no GPU today"),
    ],
)
def test_what_makes_no_network_is_said(name: str, said: str) -> None:
    with pytest.raises(UnbuildableError, match=said):
        user_model(name, 5, 2)


def digest_of(name: str) -> str:
    """As another process would find it."""
    source_digest.cache_clear()
    importlib.invalidate_caches()
    return source_digest(name)


def test_a_packages_digest_is_of_every_python_file_below_it_and_of_no_other(tmp_path: Path) -> None:
    package = tmp_path / "own_package"
    (package / "blocks").mkdir(parents=True)
    for name in ("__init__.py", "net.py", "blocks/__init__.py", "blocks/wide.py"):
        (package / name).write_text(f"# {name}\n")
    name = "own_package.net:make"
    before = digest_of(name)
    assert digest_of("own_package.blocks.wide:make") == before
    (package / "notes.txt").write_text("no code")
    (tmp_path / "beside.py").write_text("# not of the package\n")
    assert digest_of(name) == before
    seen = {before}
    (package / "blocks" / "wide.py").write_text("# wider\n")
    seen.add(digest_of(name))
    (package / "blocks" / "wide.py").rename(package / "blocks" / "wider.py")
    seen.add(digest_of(name))
    (package / "new.py").touch()
    seen.add(digest_of(name))
    assert len(seen) == 4
    assert "own_package" not in sys.modules


def test_a_packages_digest_is_the_same_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for place in ("here", "there"):
        (tmp_path / place / "moved_package" / "part").mkdir(parents=True)  # without __init__.py: a namespace
        (tmp_path / place / "moved_package" / "part" / "net.py").write_text("# net\n")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(tmp_path / place))
            digests.append(digest_of("moved_package.part.net:make"))
    assert digests[0] == digests[1]


def test_a_single_modules_digest_is_of_its_file_and_kept_for_the_process(tmp_path: Path) -> None:
    before = source_digest("networks_of_mine:small")
    assert source_digest("raises:f") != before, "nothing is imported"
    (tmp_path / "networks_of_mine.py").write_text(SOURCE + "# more\n")
    assert source_digest("networks_of_mine:small") == before, "what was imported has not changed either"
    assert digest_of("networks_of_mine:small") != before


def test_a_module_that_was_made_by_hand_has_a_digest_if_it_has_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("made_by_hand")
    monkeypatch.setitem(sys.modules, "made_by_hand", module)
    with pytest.raises(UnbuildableError, match="there is no made_by_hand"):
        digest_of("made_by_hand:f")
    module.__file__ = str(tmp_path / "raises.py")
    assert digest_of("made_by_hand:f") == digest_of("raises:f")


@pytest.mark.parametrize("name", ["no_such_package.net:f", "sys:f"])
def test_what_has_no_python_files_has_no_digest(name: str) -> None:
    with pytest.raises(UnbuildableError, match="must be a function in a package with Python files"):
        source_digest(name)


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
