"""A training that goes on from a checkpoint ends where it would have ended anyway, whatever was done to it in between."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from orchestrator.errors import DivergedError, TrialAbandoned, TrialError
from orchestrator.results.files import replace
from orchestrator.training.checkpoint import Checkpoint, Keeper, check_tensors, packed, unpacked
from orchestrator.training.loop import Fit, accuracy, check_start, fit
from orchestrator.training.process import Process

STEPS, EPOCHS = 3, 4
CASES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "schedule": "one_cycle", "gradient_clip": 0.5},
    "sgd without momentum": {"optimizer": "sgd", "momentum": 0.0, "schedule": "step"},
    "adamw": {"optimizer": "adamw", "warmup_fraction": 0.3},
    "adafactor": {"optimizer": "adafactor"},
    "muon": {"optimizer": "muon"},
    "plateau": {"schedule": "plateau", "epochs": 6},
    "channels last": {"optimizer": "adamw", "channels_last": True, "accumulation": 2},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16", "optimizer": "muon"},
}


class Small(nn.Module):
    """Norms with statistics, dropout, a kernel of one value and one of nine."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.norm = nn.Conv2d(2, width, 3, padding=1), nn.BatchNorm2d(width)
        self.two, self.drop, self.fc = nn.Conv2d(width, width, 1), nn.Dropout(0.3), nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.two(torch.relu(self.norm(self.one(images)))))
        logits: Tensor = self.fc(self.drop(hidden.mean((2, 3))))
        return logits


def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
    """Which seed what is dropped as well."""
    torch.manual_seed(epoch)
    return [(torch.randn(8, 2, 4, 4), torch.randint(0, 3, (8,))) for _ in range(STEPS)]


def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels)


def how_of(case: str) -> Fit:
    return Fit(**{"epochs": EPOCHS, "learning_rate": 0.05, "weight_decay": 0.01, **CASES[case]})


def trained(how: Fit, start: bytes | None = None, loss: Any = loss, after_epoch: Any = None) -> tuple[nn.Module, list[bytes]]:
    """The network, and a checkpoint of every epoch that was run. Scores never get better, so that the rate falls."""
    model, kept = Small(), []
    begun = None if start is None else unpacked(start)
    if begun is not None:
        check_start(begun, model, how, how.epochs * STEPS)

    def keep(epoch: int, checkpoint: Any) -> None:
        kept.append(packed(checkpoint()))
        if after_epoch is not None:
            after_epoch(epoch, checkpoint)

    def judged(epoch: int, mean: float) -> float:
        return min(0.5, accuracy(model, batches(99), "fp32", Process()) + 1)

    fit(model, batches, STEPS, loss, how, Process(), judged, after_epoch=keep, start=begun)
    return model, kept


def states(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


@pytest.mark.parametrize("case", CASES)
def test_from_every_epoch_it_ends_where_it_would_have_ended(case: str) -> None:
    """Weights, statistics, what the optimizer remembers, steps, scores and scale: a later checkpoint is the same file."""
    how = how_of(case)
    wanted, kept = trained(how)
    assert len(set(kept)) == how.epochs
    for epoch, start in enumerate(kept):
        model, later = trained(how, start)
        assert later == kept[epoch + 1 :]
        assert all(map(torch.equal, states(model), states(wanted)))
        assert model.training == wanted.training


def test_the_rate_has_fallen_on_a_plateau() -> None:
    """Or the case above would show nothing: four epochs without a new best are more than two."""
    _, kept = trained(how_of("plateau"))
    assert unpacked(kept[-1]).facts["scores"] == [0.5] * 6
    moved = []
    for before, after in pairwise(kept):
        one, two = unpacked(before).tensors, unpacked(after).tensors
        moved.append(float((one["model.one.weight"] - two["model.one.weight"]).abs().max()))
    assert moved[-1] < 0.3 * moved[0]


def overflowing(at: range) -> Any:
    """A loss that is not finite in those of its calls."""
    calls = iter(range(1000))

    def failing(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return loss(images, logits, labels) * (torch.inf if next(calls) in at else 1.0)

    return failing


def test_the_scale_of_losses_goes_on() -> None:
    how = Fit(EPOCHS, 0.05, precision="fp16")
    wanted, kept = trained(how, loss=overflowing(range(4, 6)))
    assert unpacked(kept[1]).facts["scaler"]["scale"] == 2.0**16 / 4
    assert unpacked(kept[1]).facts["bad_in_a_row"] == 2
    model, later = trained(how, kept[1])
    assert later == kept[2:]
    assert all(map(torch.equal, states(model), states(wanted)))


def test_bad_losses_are_counted_across_the_cut() -> None:
    """From the third step on all are bad, and each epoch but the first is as well: which ends it at the second's end."""
    how = Fit(EPOCHS, 0.05, precision="fp16")
    kept: list[bytes] = []
    with pytest.raises(DivergedError) as whole:
        trained(how, loss=overflowing(range(2, 99)), after_epoch=lambda epoch, checkpoint: kept.append(packed(checkpoint())))
    with pytest.raises(DivergedError) as cut:
        trained(how, kept[0], loss=overflowing(range(99)))
    assert str(cut.value) == str(whole.value)
    assert unpacked(kept[0]).facts["bad_in_a_row"] == 1


KINDS: dict[str, Tensor] = {
    "model.matrix": torch.arange(6.0).view(2, 3),
    "model.turned": torch.arange(6.0).view(2, 3).t(),
    "model.last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "model.thin": torch.randn(2, 3, 1, 1).to(memory_format=torch.channels_last),
    "model.number": torch.tensor(7),
    "model.half": torch.tensor([1.5, float("inf"), float("nan")], dtype=torch.bfloat16),
    "model.mask": torch.tensor([True, False]),
    "model.none": torch.zeros(0, 3),
}
FACTS = {"rate": 0.1 + 0.2, "seen": [1, None, "ä"], "tiny": 5e-324}


def test_what_is_packed_comes_back_with_its_layout() -> None:
    found = unpacked(packed(Checkpoint(KINDS, FACTS)))
    assert found.facts == FACTS
    assert found.tensors.keys() == KINDS.keys()
    for name, value in found.tensors.items():
        assert value.dtype == KINDS[name].dtype
        assert value.stride() == KINDS[name].stride()
        assert value.shape == KINDS[name].shape
        assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(KINDS[name]))
    assert packed(found) == packed(Checkpoint(dict(reversed(KINDS.items())), FACTS))
    assert len({value.untyped_storage().data_ptr() for value in found.tensors.values() if value.numel()}) == len(KINDS) - 1


CONTENT = packed(Checkpoint(KINDS, FACTS))


@given(st.integers(0, len(CONTENT) - 1))
def test_a_part_of_a_file_is_no_checkpoint(length: int) -> None:
    with pytest.raises(ValueError, match="it must"):
        unpacked(CONTENT[:length])


@given(st.integers(0, 8 * len(CONTENT) - 1))
@settings(max_examples=300)
def test_a_file_with_a_wrong_bit_is_no_other_checkpoint(place: int) -> None:
    """What JSON reads alike (a space at the header's end) may differ; nothing else may."""
    damaged = bytearray(CONTENT)
    damaged[place // 8] ^= 1 << place % 8
    found = None
    with contextlib.suppress(ValueError):
        found = unpacked(bytes(damaged))
    assert found is None or packed(found) == CONTENT


@given(st.binary(max_size=200))
def test_any_other_file_is_no_checkpoint(content: bytes) -> None:
    with pytest.raises(ValueError, match="it must be a whole checkpoint"):
        unpacked(content)


def test_another_network_or_training_is_refused_before_anything_is_touched() -> None:
    how = how_of("sgd")
    start = unpacked(trained(how)[1][0])
    model = Small(width=8)
    before = [value.clone() for value in states(model)]
    with pytest.raises(ValueError, match=r"model.fc.weight must be torch.float32 of shape \(3, 8\); .* of shape \(3, 6\)"):
        check_start(start, model, how, EPOCHS * STEPS)
    assert all(map(torch.equal, before, states(model)))
    with pytest.raises(ValueError, match=r"model.two.bias must be torch.float32 of shape \(6,\); the checkpoint's is absent"):
        check_tensors({name: value for name, value in start.tensors.items() if name != "model.two.bias"}, Small())
    with pytest.raises(ValueError, match="must have 13 steps; the checkpoint's has 12"):
        check_start(start, Small(), how, 13)
    with pytest.raises(ValueError, match="the training must be"):
        check_start(start, Small(), how_of("adamw"), EPOCHS * STEPS)
    check_start(start, Small(), how, EPOCHS * STEPS)


def checkpoint(number: int) -> Checkpoint:
    return Checkpoint({"model.weight": torch.full((3,), float(number))}, {"epochs": number})


def cut_short(keeper: Keeper, epochs: int, error: BaseException) -> None:
    with keeper:
        for number in range(epochs):
            keeper.offer(lambda number=number: checkpoint(number))  # type: ignore[misc]
        raise error


@pytest.mark.parametrize("error", [TrialAbandoned("given up"), KeyboardInterrupt(), RuntimeError("a rank is gone")])
def test_what_is_cut_short_leaves_its_last_epoch(tmp_path: Path, error: BaseException) -> None:
    keeper = Keeper(tmp_path / "c", Process(), replace, least_s=1000.0)
    with pytest.raises(type(error)):
        cut_short(keeper, 3, error)
    assert keeper.found() == packed(checkpoint(2))
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_tiny_epochs_do_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Keeper(tmp_path / "c", Process(), lambda path, content: written.append((now[0], content)), least_s=10.0) as keeper:
        for number in range(8):
            now[0] += 4.0
            keeper.offer(lambda number=number: checkpoint(number))
    assert written == [(112.0, packed(checkpoint(2))), (124.0, packed(checkpoint(5)))]


def test_nothing_is_found_where_nothing_was_left_and_other_ranks_write_nothing(tmp_path: Path) -> None:
    second = type("Second", (Process,), {"agreed": lambda self, value: (value, b"of the first")[1]})(1, 2)
    keeper = Keeper(tmp_path / "c", second, replace, least_s=0.0)
    with pytest.raises(TrialError):
        cut_short(keeper, 3, TrialError("diverged"))
    assert list(tmp_path.iterdir()) == []
    assert keeper.found() == b"of the first"
    assert Keeper(tmp_path / "c", Process(), replace, 0.0).found() is None


def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """Processes train and write after every epoch, and are killed: the next goes on, and the end is the same."""
    how = Fit(16, 0.05, optimizer="adamw")
    wanted, kept = trained(how)
    path, moments, begun = tmp_path / "c", random.Random(0), [0]
    while begun[-1] < how.epochs:
        start = path.read_bytes() if path.exists() else None
        child = os.fork()
        if child == 0:
            try:
                with Keeper(path, Process(), replace, least_s=0.0) as keeper:
                    trained(how, start, after_epoch=lambda epoch, checkpoint: keeper.offer(checkpoint))
            finally:
                os._exit(0)
        patience = time.monotonic() + 60
        while (not path.exists() or path.read_bytes() == start) and time.monotonic() < patience:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        begun.append(unpacked(path.read_bytes()).facts["epochs"])
        assert path.read_bytes() == kept[begun[-1] - 1]
    assert all(before < after for before, after in pairwise(begun))
    model, later = trained(how, path.read_bytes())
    assert later == []
    assert all(map(torch.equal, states(model), states(wanted)))
