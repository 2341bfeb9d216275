"""Two gloo processes and one: the same logits, the same rows in the same places, and the same student of features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from orchestrator.compression.distillation import attention_transfer, make_loss
from orchestrator.data.batches import DeviceData, Normalizer
from orchestrator.data.decode import Examples
from orchestrator.errors import TrialStopped
from orchestrator.models.cifar_resnet import CifarResNet
from orchestrator.training.loop import Fit, fit
from orchestrator.training.process import Process
from orchestrator.trial.lessons import FILE, lessons, read_lessons
from orchestrator.trial.stages import StageStore

CPU = torch.device("cpu")
BATCH, BATCHES = 16, 25

pytestmark = pytest.mark.ddp


def data() -> DeviceData:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (BATCH * BATCHES + 3, 1, 8, 8), dtype=np.uint8)
    examples = Examples(images, generator.integers(0, 10, len(images)))
    return DeviceData(examples, Normalizer(np.float32([0.5]), np.float32([0.3]), CPU), CPU, channels_last=False)


def teacher() -> nn.Module:
    """With statistics of its own, so that evaluation mode shows."""
    torch.manual_seed(0)
    model = CifarResNet(8, 4, 10, 1)
    model(torch.randn(32, 1, 8, 8))
    return model


class Silent(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise AssertionError("the teacher was asked")


def without_norms() -> nn.Module:
    """A norm would see a rank's share of a batch alone, and two processes would rightly differ from one."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10)
    )


def heard(folder: Path, process: Process, speaker: nn.Module, asked: list[int]) -> list[tuple[Tensor, ...]]:
    examples = data()

    def view() -> Iterator[tuple[Tensor, Tensor]]:
        return examples.epoch(BATCH, 5, process.rank, process.world_size, "shift")

    return list(lessons(StageStore(folder), "k", process, speaker, view, "fp32", 1, asked.append))


def student(process: Process) -> dict[str, Tensor]:
    torch.manual_seed(2)
    model, looked_at = without_norms(), without_norms()
    examples = data()

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return examples.epoch(BATCH, epoch, process.rank, process.world_size, "none")

    plain = make_loss("decoupled", 0.5, 2.0, 2.0)
    with attention_transfer(model, looked_at, torch.zeros(1, 1, 8, 8), 100.0, plain) as loss:
        fit(model, batches, BATCHES, loss, Fit(1, 0.02), process, lambda epoch, mean: None)
    return model.state_dict()


def on_each_rank(rank: int, folder: Path) -> None:
    """What one of two processes does; what it saw is left in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    try:
        process, asked = Process(rank, 2), []
        with pytest.raises(TrialStopped):
            heard(folder / "stopped", process, teacher(), Stopping())
        dist.barrier()
        left = [path.name for path in (folder / "stopped").iterdir()]
        first = heard(folder / "store", process, teacher(), asked)
        again = heard(folder / "store", process, Silent(), asked)
        seen = {"asked": asked, "first": first, "again": again, "left": left, "student": student(process)}
        torch.save(seen, folder / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


class Stopping(list[int]):
    """Ends the trial when it is asked for the second time."""

    def append(self, number: int) -> None:
        if number > 0:
            raise TrialStopped("enough")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, object]]]:
    """The folder of two processes' store, and what each rank saw."""
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(on_each_rank, args=(folder,), nprocs=2)
    return folder, [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_two_processes_write_the_rows_of_one(two, tmp_path):
    folder, _ = two
    heard(tmp_path, Process(), teacher(), [])
    alone, together = (list(read_lessons(root / "k" / FILE, 0, 1)) for root in (tmp_path, folder / "store"))
    assert len(alone) == len(together) == BATCHES
    # How many images a kernel sees at once may move the last bit.
    torch.testing.assert_close(torch.cat(together), torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_each_rank_reads_what_its_own_teacher_said(two):
    _, ranks = two
    speaker = teacher().eval()
    for rank, seen in enumerate(ranks):
        own = data().epoch(BATCH, 5, rank, 2, "shift")
        for (images, labels), (same_images, same_labels, logits) in zip(own, seen["first"], strict=True):
            assert torch.equal(images, same_images)
            assert torch.equal(labels, same_labels)
            with torch.no_grad():
                assert torch.equal(logits, speaker(images))


def test_both_ranks_attach_what_is_there(two):
    _, ranks = two
    for seen in ranks:
        pairs = zip(seen["first"], seen["again"], strict=True)
        assert all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))
        assert seen["asked"] == [0, 20]


def test_a_stop_ends_it_on_both_ranks_and_leaves_nothing(two):
    _, ranks = two
    assert [seen["left"] for seen in ranks] == [["k.lock"]] * 2


def test_attention_is_transferred_as_by_one_process(two):
    _, ranks = two
    alone = student(Process())
    for seen in ranks:
        torch.testing.assert_close(seen["student"], alone, rtol=1e-4, atol=1e-5)
