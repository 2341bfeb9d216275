"""Every chain of distillation, pruning and quantization to its file: what is saved comes back, and the file computes it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from orchestrator.compression import onnx_export
from orchestrator.measure.runtime import Runtime
from orchestrator.results.trial_result import TrialResult

DISTILLATION: dict[str, dict[str, Any]] = {
    "plain": {},
    "hinton": {"weight": 0.5},
    "decoupled": {"method": "decoupled", "weight": 0.5},
    "attention": {"feature_weight": 10.0},
}
PRUNING: dict[str, dict[str, Any]] = {
    "whole": {},
    "channels": {"ratio": 0.5, "criterion": "l2", "scope": "uniform"},
    "taylor": {"ratio": 0.5, "criterion": "taylor", "scope": "sensitivity", "steps": 2, "epochs": 2, "round_to": 1},
    "weights": {"kind": "weights", "ratio": 0.5},
    "2:4": {"kind": "2:4", "ratio": 0.5},
}
QUANTIZATION: dict[str, dict[str, Any]] = {
    "float": {},
    "ptq": {"method": "ptq", "bias_correction": True, "norm_reestimation": True},
    "qat": {"method": "qat", "weight_bits": 4, "activation_bits": 4},
    "allocated": {"method": "qat", "weight_bits": 4, "allocation": "sensitivity"},
}
Chain = tuple[str, str, str]
TECHNIQUES = (DISTILLATION, PRUNING, QUANTIZATION)
CHAINS: list[Chain] = list(itertools.product(*TECHNIQUES))
# Every second of all: each pair of techniques is among them, twice or more.
TWICE = [chain for chain in CHAINS if sum(list(of).index(one) for of, one in zip(TECHNIQUES, chain, strict=True)) % 2 == 0]
SINGLE_WEIGHTS = [chain for chain in CHAINS if chain[1] in ("weights", "2:4")]
FEWER_CHANNELS = [chain for chain in CHAINS if chain[1] in ("channels", "taylor")]
# The file computes its graph: no prediction may differ.
AGREED = 1.0
# Weights of a ResNet-8 that is 8 wide, 9 a kernel: all three stages, and the first and last layer, which are not pruned.
INNER, ENDS = 2 * 8 * 8 * 9 + (8 + 16) * 16 * 9 + 8 * 16 + (16 + 32) * 32 * 9 + 16 * 32, 1 * 8 * 9 + 32 * 10

chains = pytest.mark.parametrize("chain", CHAINS, ids="-".join)


class Walks:
    """Every chain's walk over one store, made when it is first asked for."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self._first: dict[tuple[Chain, int], tuple[TrialResult, Path]] = {}
        self._again: dict[Chain, tuple[TrialResult, Path]] = {}

    def first(self, chain: Chain, seed: int = 0) -> tuple[TrialResult, Path]:
        if (chain, seed) not in self._first:
            self._first[chain, seed] = self.bench.run(recipe(chain), seed=seed)
        return self._first[chain, seed]

    def again(self, chain: Chain) -> tuple[TrialResult, Path]:
        """A second walk over what the first one left, as in a new process."""
        self.first(chain)
        if chain not in self._again:
            self._again[chain] = self.bench.run(recipe(chain), workshop=self.bench.cold())
        return self._again[chain]

    def macs(self, chain: Chain) -> int:
        return int(self.first(chain)[0].measurements["macs"])


@pytest.fixture(scope="module")
def walks(bench: Any) -> Walks:
    return Walks(bench)


def recipe(chain: Chain) -> dict[str, Any]:
    one, two, three = chain
    return {"distillation": DISTILLATION[one], "pruning": PRUNING[two], "quantization": QUANTIZATION[three]}


def networks(result: TrialResult) -> list[Any]:
    return [stage for stage in result.stages if stage.key]


def layer_weights(path: Path) -> list[np.ndarray]:
    """What the layers of a file multiply with, as the runtime sees it once it is unpacked and dequantized."""
    proto = onnx.load(path)
    names = [node.input[1] for node in proto.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: np.zeros((1, 1, 8, 8), np.float32)})
    return found


@chains
def test_a_chain_ends_with_a_file_that_computes_its_graph(walks: Walks, chain: Chain) -> None:
    result, folder = walks.first(chain)
    assert result.failure is None
    assert result.state == "COMPLETE"
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.safetensors", "recipe.json"]
    stages = {"teacher": chain[0] != "plain", "student": True, "pruned": chain[1] != "whole", "quantized": chain[2] != "float"}
    assert [stage.name for stage in networks(result)] == [name for name, there in stages.items() if there]
    assert result.measurements["agreement"] >= AGREED
    logits = Runtime(folder / "model.onnx", 1).logits(walks.bench.val_pixels())
    _, rebuilt = walks.bench.made[networks(result)[-1].key]
    assert len(set(logits.argmax(1))) >= 2, "a network that names one digit for all images agrees with many"
    reach = float(rebuilt.abs().max())
    far = np.abs(logits - rebuilt.numpy()).max(1)
    # A rounding that falls the other way moves a whole step; no other difference is more than arithmetic's.
    assert np.median(far) <= (1e-5 if chain[2] == "float" else 1e-2) * reach


@chains
def test_what_is_saved_comes_back_as_it_was(walks: Walks, chain: Chain) -> None:
    result, folder = walks.first(chain)
    for stage in networks(result):
        trained, rebuilt = walks.bench.made[stage.key]
        assert torch.equal(trained, rebuilt), stage.name
        kept = sorted(path.name for path in (walks.bench.stages / stage.key).iterdir())
        assert kept == ["manifest.json", "meta.json", "model.safetensors"]
    stored, shipped = (load_file(path / "model.safetensors") for path in (walks.bench.stages / stage.key, folder))
    assert stored.keys() == shipped.keys()
    assert all(torch.equal(value, shipped[name]) for name, value in stored.items())


@pytest.mark.parametrize("chain", TWICE, ids="-".join)
def test_a_second_walk_trains_nothing_and_writes_the_same_bytes(walks: Walks, chain: Chain) -> None:
    (first, there), (again, here) = walks.first(chain), walks.again(chain)
    assert all(stage.cached for stage in networks(again))
    assert [stage.key for stage in networks(again)] == [stage.key for stage in networks(first)]
    assert again.curve == first.curve
    for name in ("model.onnx", "model.safetensors", "recipe.json"):
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
    timed = {name for name in first.measurements if name.startswith("latency")}
    assert {k: v for k, v in again.measurements.items() if k not in timed} == {
        k: v for k, v in first.measurements.items() if k not in timed
    }


@pytest.mark.parametrize("chain", SINGLE_WEIGHTS, ids="-".join)
def test_pruned_weights_are_zero_in_the_file(walks: Walks, chain: Chain) -> None:
    result, folder = walks.first(chain)
    pruned = next(stage for stage in result.stages if stage.name == "pruned")
    state = load_file(walks.bench.stages / pruned.key / "model.safetensors")
    layers = {name: value for name, value in state.items() if value.dim() > 1 and name not in ("conv.weight", "fc.weight")}
    shipped, in_file = load_file(folder / "model.safetensors"), layer_weights(folder / "model.onnx")
    assert sum(value.numel() for value in layers.values()) == INNER
    for name, value in layers.items():
        mask = (value == 0).numpy()
        assert mask.mean() == 0.5, name
        if chain[1] == "2:4":
            assert (mask.reshape(len(mask), -1, 4, *mask.shape[2:]).sum(2) == 2).all(), name
        kept = name if chain[2] == "float" else f"{name.removesuffix('weight')}parametrizations.weight.original"
        assert not shipped[kept][value == 0].any(), name
        assert any(weight.shape == mask.shape and not weight[mask].any() for weight in in_file), name
    least = 0.5 * INNER / (INNER + ENDS)
    assert result.measurements["sparsity"] >= least - 1e-9
    if chain[2] == "float":
        assert result.measurements["sparsity"] == pytest.approx(least, abs=1e-9)
    assert result.measurements["macs"] == walks.macs((chain[0], "whole", "float"))


@pytest.mark.parametrize("chain", FEWER_CHANNELS, ids="-".join)
def test_work_falls_with_channels(walks: Walks, chain: Chain) -> None:
    result, _ = walks.first(chain)
    whole, _ = walks.first((chain[0], "whole", chain[2]))
    assert result.measurements["macs"] < 0.75 * whole.measurements["macs"]
    assert result.measurements["num_parameters"] < 0.75 * whole.measurements["num_parameters"]
    assert result.measurements["size_bytes"] < whole.measurements["size_bytes"]


def test_every_network_is_made_once(walks: Walks) -> None:
    made: dict[str, list[str]] = {}
    for chain in CHAINS:
        for stage in networks(walks.first(chain)[0]):
            made.setdefault(stage.name, []).extend([] if stage.cached else [stage.key])
    assert {name: len(keys) for name, keys in made.items()} == {"student": 4, "teacher": 1, "pruned": 16, "quantized": 60}
    assert {name: len(set(keys)) for name, keys in made.items()} == {name: len(keys) for name, keys in made.items()}


@pytest.mark.parametrize("chain", [("plain", "taylor", "ptq")], ids="-".join)
def test_a_file_does_not_tell_what_was_exported_before(walks: Walks, chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    _, there = walks.first(chain)
    monkeypatch.setattr(onnx_export, "_graphs", {})
    _, here = walks.bench.run(recipe(chain))
    assert (here / "model.onnx").read_bytes() == (there / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    "chain",
    [
        ("plain", "whole", "float"),
        ("hinton", "channels", "ptq"),
        ("decoupled", "taylor", "qat"),
        ("attention", "2:4", "allocated"),
    ],
    ids="-".join,
)
def test_another_seed_is_another_network(walks: Walks, chain: Chain) -> None:
    (one, there), (other, here) = walks.first(chain), walks.first(chain, seed=1)
    assert other.state == "COMPLETE"
    assert other.measurements["agreement"] >= AGREED
    assert not {stage.key for stage in networks(one)} & {stage.key for stage in networks(other)}
    for name in ("model.onnx", "model.safetensors"):
        assert (here / name).read_bytes() != (there / name).read_bytes()


@pytest.mark.parametrize("chain", [("hinton", "channels", "float"), ("decoupled", "2:4", "qat")], ids="-".join)
def test_torch_reads_the_second_format(walks: Walks, chain: Chain) -> None:
    _, plain = walks.first(chain)
    result, folder = walks.bench.run({**recipe(chain), "export": {"torch_export": True}})
    assert result.state == "COMPLETE"
    assert (folder / "model.onnx").read_bytes() == (plain / "model.onnx").read_bytes()
    splits = walks.bench.material().splits  # all images, or one on the edge between two codes would be more than 0.01 of them
    pixels = np.concatenate([splits.val.images, splits.train.images]).astype(np.float32)
    with torch.no_grad():
        got = torch.export.load(folder / "model.pt2").module()(torch.from_numpy(pixels)).numpy()
    wanted = Runtime(folder / "model.onnx", 1).logits(pixels)
    if chain[2] == "float":
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    assert (got.argmax(1) == wanted.argmax(1)).mean() >= 0.99
