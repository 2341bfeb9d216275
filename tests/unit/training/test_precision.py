"""How far mixed precision is from full precision, against distances by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from orchestrator.training.precision import drift

CPU = torch.device("cpu")
# bfloat16 has 8 bits of significand: next to one, it knows nothing between 1 and 1 + 2^-7.
LOST = 2.0**-9


def linear(*weights: float) -> nn.Module:
    model = nn.Linear(1, len(weights), bias=False)
    model.weight.data = torch.tensor(weights)[:, None]
    return model


def ones(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.ones(size, 1), torch.zeros(size)) for size in sizes]


def test_drift_is_the_relative_distance_over_all_batches() -> None:
    """Logits (1 + LOST, 2) become (1, 2), in each of the five rows of two batches."""
    wanted = LOST / math.hypot(1 + LOST, 2)
    assert drift(linear(1 + LOST, 2.0), ones(2, 3), "bf16", CPU) == pytest.approx(wanted, rel=1e-6)


def test_batches_count_by_the_size_of_their_logits() -> None:
    """Images of 1 and of 3: squares of differences and of logits are summed before they are divided."""
    batches = [(torch.ones(1, 1),), (torch.full((1, 1), 3.0),)]
    # 3 + 3 * LOST lies nearer to 3 than to the next value, 3 + 2^-6.
    wanted = math.hypot(LOST, 3 * LOST) / math.hypot(1 + LOST, 3 + 3 * LOST)
    assert drift(linear(1 + LOST), batches, "bf16", CPU) == pytest.approx(wanted, rel=1e-6)


def test_full_precision_does_not_drift() -> None:
    assert drift(linear(1 + LOST, 0.1), ones(3), "fp32", CPU) == 0.0


def test_what_overflows_is_infinitely_far() -> None:
    assert drift(linear(1e6, 1.0), ones(3), "fp16", CPU) == math.inf


def test_nothing_drifts_from_nothing() -> None:
    assert drift(linear(0.0), ones(3), "bf16", CPU) == 0.0
    assert drift(linear(1.0), [], "bf16", CPU) == 0.0


@pytest.mark.parametrize("training", [True, False])
def test_drift_is_taken_in_evaluation_mode_and_the_mode_put_back(training: bool) -> None:
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5), linear(1 + LOST)).train(training)
    value = drift(model, ones(4), "bf16", CPU)
    assert value == drift(model, ones(4), "bf16", CPU)
    assert model.training == training
    assert int(model[0].num_batches_tracked) == 0
