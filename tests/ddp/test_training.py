"""Two processes that train together end where one ends, over the same batches; and they end together when one of them fails.

Everything runs once, in one pair of processes, and the tests look at what it left. In double precision, so that the order of
a sum is no excuse: Muon rounds to bfloat16, where a difference of one part in 10^8 may become one in 10^2.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.errors import DivergedError
from orchestrator.training.loop import Fit, accuracy, fit
from orchestrator.training.process import Process

pytestmark = pytest.mark.ddp

BATCH = 12
NUM_STEPS = 3

CASES: dict[str, dict[str, Any]] = {
    **{
        f"{optimizer}, {accumulation} parts": {"optimizer": optimizer, "accumulation": accumulation, "weight_decay": 0.01}
        for optimizer in ("sgd", "adamw", "adafactor", "muon")
        for accumulation in (1, 2, 4)
    },
    "channels last": {"optimizer": "muon", "channels_last": True},
    "plateau": {"schedule": "plateau"},
    "compiled": {"compile": True, "accumulation": 2},
    "attacked": {"accumulation": 2},
    "repeated": {},
}


class NoNorm(nn.Module):
    """Convolutions, and a norm whose statistics are frozen: a batch norm would see half a batch on each of two processes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.two, self.fc = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 2), nn.Linear(6, 3)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.uniform_(-0.1, 0.1)
        self.double()

    def train(self, mode: bool = True) -> NoNorm:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.one(images)))
        logits: Tensor = self.fc(torch.tanh(self.two(hidden)).mean((2, 3)))
        return logits


def batches(process: Process) -> list[tuple[Tensor, Tensor, Tensor]]:
    """This rank's half of each batch: images, labels and a teacher's logits."""
    draw = torch.Generator().manual_seed(0)
    share = BATCH // process.world_size
    mine = slice(process.rank * share, (process.rank + 1) * share)
    found = []
    for _ in range(NUM_STEPS):
        images = torch.randn(BATCH, 2, 5, 5, generator=draw, dtype=torch.float64)
        labels = torch.randint(0, 3, (BATCH,), generator=draw)
        lessons = torch.randn(BATCH, 3, generator=draw, dtype=torch.float64)
        found.append((images[mine], labels[mine], lessons[mine]))
    return found


def loss(images: Tensor, logits: Tensor, labels: Tensor, lessons: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels) + F.mse_loss(logits, lessons) + 0.01 * images.square().mean()


def ascend(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    leaf = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(leaf), labels, reduction="sum"), leaf)
    return images + 0.1 * gradient.sign()


def trained(case: str, process: Process) -> tuple[list[Tensor], list[float]]:
    """Parameters after three steps (twice three where batches are repeated), and the loss of each epoch."""
    model = NoNorm()
    epochs = NUM_STEPS if case == "plateau" else 1
    fields = {"optimizer": "sgd", "gradient_clip": 0.3, "schedule": "constant", **CASES[case]}
    told: list[float] = []

    def on_epoch(epoch: int, mean: float) -> float:
        told.append(mean)
        return 0.5

    hooks: dict[str, Any] = {"perturb": ascend} if case == "attacked" else {"repeats": 2} if case == "repeated" else {}
    data = batches(process)
    with pytest.MonkeyPatch.context() as patch:
        # Captured and differentiated as ever, but left to torch's own kernels: to build others takes long.
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
        fit(model, lambda epoch: data, NUM_STEPS, loss, Fit(epochs, 0.02, **fields), process, on_epoch, **hooks)
    return [parameter.detach().contiguous() for parameter in model.parameters()], told


def quiet_backwards(process: Process) -> int:
    """How often a step of four parts kept its gradients to itself."""
    entered = 0
    original = nn.parallel.DistributedDataParallel.no_sync

    @contextlib.contextmanager
    def counted(self: nn.parallel.DistributedDataParallel) -> Iterator[None]:
        nonlocal entered
        entered += 1
        with original(self):
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.parallel.DistributedDataParallel, "no_sync", counted)
        trained("sgd, 4 parts", process)
    return entered


def sign_accuracy(process: Process, precision: str = "fp32") -> float:
    """Of seven examples, in shares of four and three and batches of two, five are right."""
    sides = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, 1.0, 1.0])
    labels = torch.tensor([1, 0, 0, 0, 0, 1, 1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    model[1].weight.data = torch.tensor([[-1.0], [1.0]])
    mine = slice(process.rank, None, process.world_size)
    parts = zip(sides.view(-1, 1, 1, 1)[mine].split(2), labels[mine].split(2), strict=True)
    return accuracy(model, parts, precision, process)


def divergence(process: Process, bad: int, precision: str) -> tuple[str, int]:
    """What ends the training when rank 1's loss is not a number at one step, and after how many steps."""
    model = NoNorm().float()
    data = [tuple(tensor.float() if tensor.is_floating_point() else tensor for tensor in batch) for batch in batches(process)]
    asked = 0

    def failing(images: Tensor, logits: Tensor, labels: Tensor, lessons: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return loss(images, logits.float(), labels, lessons) * (torch.nan if process.rank == 1 and asked > bad else 1.0)

    how = Fit(5, 0.02, precision=precision)
    try:
        fit(model, lambda epoch: data * 9, 27, failing, how, process, lambda epoch, mean: None)
    except DivergedError as error:
        return str(error), asked
    return "", asked


def work(rank: int, folder: Path) -> None:
    """One of two processes: run everything, and leave what came of it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    process = Process(rank, 2)
    try:
        done = {
            "trained": {case: trained(case, process) for case in CASES},
            "quiet": quiet_backwards(process),
            "accuracy": sign_accuracy(process),
            "diverged": {name: divergence(process, 30, name) for name in ("fp32", "fp16")},
        }
    finally:
        dist.destroy_process_group()
    torch.save(done, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, args=(folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(ranks: list[dict[str, Any]], case: str) -> None:
    wanted, told = trained(case, Process())
    start = [parameter.detach() for parameter in NoNorm().parameters()]
    assert all(float((a - b).abs().max()) > 3e-5 for a, b in zip(start, wanted, strict=True))
    for rank in ranks:
        parameters, losses = rank["trained"][case]
        assert losses == pytest.approx(told, rel=1e-6)
        for a, b in zip(parameters, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_ranks_hold_the_same_weights_to_the_bit(ranks: list[dict[str, Any]], case: str) -> None:
    pairs = zip(ranks[0]["trained"][case][0], ranks[1]["trained"][case][0], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_gradients_are_exchanged_once_a_step(ranks: list[dict[str, Any]]) -> None:
    assert [rank["quiet"] for rank in ranks] == [3 * NUM_STEPS] * 2


def test_accuracy_over_uneven_shares_is_exact(ranks: list[dict[str, Any]]) -> None:
    assert sign_accuracy(Process()) == 5 / 7
    assert [rank["accuracy"] for rank in ranks] == [5 / 7] * 2


def test_a_loss_that_is_no_number_on_one_rank_ends_training_on_both(ranks: list[dict[str, Any]]) -> None:
    message = "loss must stay finite; it was nan in epoch 1, step 3: lower the learning rate"
    assert [rank["diverged"]["fp32"] for rank in ranks] == [(message, 47)] * 2


def test_under_loss_scaling_it_ends_both_after_twenty_in_a_row(ranks: list[dict[str, Any]]) -> None:
    """Steps 30 to 49 are the twenty; the ranks look after step 46 and when the epoch ends, after 53."""
    message = "loss must stay finite; it was nan in epoch 1, step 22: lower the learning rate"
    assert [rank["diverged"]["fp16"] for rank in ranks] == [(message, 54)] * 2
