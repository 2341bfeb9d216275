"""What is counted, judged and timed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.compression.onnx_export import export_float
from orchestrator.measure.accuracy import classification
from orchestrator.measure.latency import call_latency_ms, pinned
from orchestrator.measure.runtime import Runtime
from orchestrator.measure.size import count_macs, count_parameters


def logits_for(predictions: list[int], confidence: float, num_classes: int = 3) -> np.ndarray:
    """Logits whose softmax gives `confidence` to each prediction and shares the rest."""
    rest = (1 - confidence) / (num_classes - 1)
    probabilities = np.full((len(predictions), num_classes), rest)
    probabilities[np.arange(len(predictions)), predictions] = confidence
    return np.log(probabilities).astype(np.float32)


def test_classification_of_hand_made_logits() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    quality = classification(logits_for([0, 0, 0, 1, 1, 2, 2], 0.9), labels)
    assert quality["accuracy"] == pytest.approx(5 / 7)
    assert quality["worst_class_accuracy"] == 0.5
    assert quality["calibration_error"] == pytest.approx(0.9 - 5 / 7, abs=1e-6)


def test_calibration_error_weighs_bins_by_their_examples() -> None:
    logits = np.concatenate([logits_for([0] * 6, 0.95), logits_for([0] * 2, 0.5)])
    labels = np.array([0, 0, 0, 0, 0, 1, 0, 1])
    wanted = 6 / 8 * abs(0.95 - 5 / 6) + 2 / 8 * abs(0.5 - 1 / 2)
    assert classification(logits, labels)["calibration_error"] == pytest.approx(wanted, abs=1e-6)


def test_perfect_and_hopeless_predictions() -> None:
    labels = np.array([0, 1, 2])
    perfect = classification(logits_for([0, 1, 2], 1 - 1e-7), labels)
    assert perfect == {"accuracy": 1, "worst_class_accuracy": 1, "calibration_error": pytest.approx(0, abs=1e-6)}
    hopeless = classification(logits_for([1, 2, 0], 1 - 1e-7), labels)
    assert hopeless == {"accuracy": 0, "worst_class_accuracy": 0, "calibration_error": pytest.approx(1, abs=1e-6)}


def test_huge_logits_stay_finite_and_absent_classes_count_for_nothing() -> None:
    quality = classification(np.array([[1e4, -1e4, 0.0]], np.float32), np.array([0]))
    assert quality == {"accuracy": 1.0, "worst_class_accuracy": 1.0, "calibration_error": 0.0}


@pytest.mark.parametrize(
    ("layer", "shape", "macs", "parameters"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12), 8 * 3 * 9 * 10 * 12, 8 * 3 * 9 + 8),
        (nn.Conv2d(4, 8, 3, stride=2, bias=False), (4, 9, 9), 8 * 4 * 9 * 4 * 4, 8 * 4 * 9),
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 5, 5), 6 * 9 * 25, 6 * 9 + 6),
        (nn.Sequential(nn.Flatten(), nn.Linear(18, 7)), (2, 3, 3), 18 * 7, 18 * 7 + 7),
        (nn.BatchNorm2d(5), (5, 4, 4), 0, 10),
    ],
)
def test_counts_of_known_layers(layer: nn.Module, shape: tuple[int, ...], macs: int, parameters: int) -> None:
    assert count_macs(layer, torch.zeros(1, *shape)) == macs
    assert count_parameters(layer) == parameters


def test_macs_are_those_of_one_image_and_the_mode_stays() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    assert count_macs(model, torch.zeros(5, 1, 8, 8)) == count_macs(model, torch.zeros(1, 1, 8, 8)) == 2 * 9 * 36
    assert model.training
    assert int(model[1].num_batches_tracked) == 0


def test_latency_of_a_sleep_is_its_length() -> None:
    latency = call_latency_ms(lambda: time.sleep(0.01), 8)
    assert 10 <= latency.median_ms < 50
    assert latency.low_ms <= latency.median_ms <= latency.high_ms
    assert latency.median_ms <= latency.p95_ms


def test_latency_is_a_median_with_a_tail() -> None:
    """One call in eight is slow: the median does not see it, the 95th percentile does."""
    count = iter(range(10**9))
    latency = call_latency_ms(lambda: time.sleep(0.03 if next(count) % 8 == 0 else 0.001), 32)
    assert 1 <= latency.median_ms < 15
    assert latency.p95_ms >= 30


@pytest.mark.parametrize("rounds", [5, 40])
def test_at_least_the_rounds_asked_for_are_timed(rounds: int) -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        time.sleep(0.02)

    call_latency_ms(call, rounds)
    assert len(calls) >= rounds


@pytest.fixture
def other_thread() -> object:
    """A second thread of this process, alive and idle."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield thread.native_id
    done.set()
    thread.join()


needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")


@needs_affinity
def test_every_thread_is_pinned_to_the_last_core_and_put_back(other_thread: int) -> None:
    before = {int(task.name): os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir()}
    last = max(os.sched_getaffinity(0))
    with pinned(1):
        assert os.sched_getaffinity(0) == {last}
        assert os.sched_getaffinity(other_thread) == {last}
    after = {int(task.name): os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir()}
    assert after == before


@needs_affinity
def test_affinity_is_put_back_after_an_error() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(KeyError), pinned(1):
        raise KeyError
    assert os.sched_getaffinity(0) == before


@needs_affinity
def test_pinning_to_more_cores_than_there_are_takes_all_that_are_allowed() -> None:
    before = os.sched_getaffinity(0)
    with pinned(512):
        assert os.sched_getaffinity(0) == before


@needs_affinity
def test_pinning_stays_within_the_cores_that_are_allowed() -> None:
    before = os.sched_getaffinity(0)
    first = min(before)
    os.sched_setaffinity(0, {first})
    try:
        with pinned(1):
            assert os.sched_getaffinity(0) == {first}
        assert os.sched_getaffinity(0) == {first}
    finally:
        os.sched_setaffinity(0, before)


def test_the_runtime_gives_the_logits_of_every_image_in_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    export_float(model, torch.zeros(1, 1, 4, 4), tmp_path / "model.onnx")
    runtime = Runtime(tmp_path / "model.onnx", threads=1)
    images = torch.randn(600, 1, 4, 4)
    logits = runtime.logits(images.numpy())
    assert (logits.shape, logits.dtype) == ((600, 3), np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(images).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(runtime(images[:1].numpy()), logits[:1], rtol=1e-4, atol=1e-5)
    assert runtime.executor == "onnxruntime"
