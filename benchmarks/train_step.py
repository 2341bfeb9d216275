"""Training ResNet-20 on CIFAR-10: our loop against the loop that people write, and that loop tuned.

    uv run python benchmarks/train_step.py --data DIR [--rounds 7] [--steps 12] [--threads 2]

DIR holds train.parquet in the Hugging Face layout. All train the same network on the same images in one process, a few steps
at a time, in turns; data loading is inside the time. Printed: medians of images per second, and the median ratio with a
bootstrapped 95 % interval. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from machine import describe, ratio
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from orchestrator.compression.distillation import make_loss
from orchestrator.data.batches import DeviceData, Normalizer
from orchestrator.data.decode import attach, decode_split
from orchestrator.data.sources import Source
from orchestrator.models.build import build
from orchestrator.training.loop import Fit, fit
from orchestrator.training.process import Process

BATCH = 256
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """What a tutorial does: one PIL image at a time through torchvision's transforms."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images.transpose(0, 2, 3, 1), labels
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def plain(images: np.ndarray, labels: np.ndarray, *, tuned: bool, workers: int) -> Callable[[int], None]:
    """Float32, NCHW and a DataLoader; tuned adds bf16 autocast, channels_last and workers that stay."""
    torch.manual_seed(0)
    model = build("cifar_resnet20", 16, 10, (3, 32, 32)).train()
    if tuned:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    loader = DataLoader(
        Pictures(images, labels), BATCH, shuffle=True, num_workers=workers, persistent_workers=tuned and workers > 0
    )
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]] = itertools.chain.from_iterable(itertools.repeat(loader))

    def steps(count: int) -> None:
        for inputs, targets in itertools.islice(batches, count):
            shaped = inputs.contiguous(memory_format=torch.channels_last) if tuned else inputs
            with torch.autocast("cpu", torch.bfloat16, enabled=tuned):
                loss = F.cross_entropy(model(shaped), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps


def ours(path: Path) -> Callable[[int], None]:
    """The product's loop as a recipe runs it: bf16, channels_last, batches made on the device."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    data = DeviceData(attach(path), Normalizer(np.float32(MEAN), np.float32(STD), device), device, channels_last=True)
    model = build("cifar_resnet20", 16, 10, (3, 32, 32))
    how = Fit(epochs=1, learning_rate=0.1, weight_decay=5e-4, precision="bf16", channels_last=True)
    loss, seeds = make_loss(None, 0.0, 1.0, 0.0), itertools.count()

    def steps(count: int) -> None:
        def batches(_: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            return itertools.islice(data.epoch(BATCH, next(seeds), 0, 1, "shift_flip"), count)

        fit(model, batches, count, loss, how, Process(), lambda epoch, value: None)

    return steps


def main() -> None:
    """Interleave the three and print their rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(describe(), f"; {args.threads} threads, batch {BATCH}, {args.rounds} rounds of {args.steps} steps")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.arrow"
        decode_split(Source("parquet", args.data), "train", path)
        examples = attach(path)
        images, labels = np.array(examples.images), np.array(examples.labels)
        loops = {
            "plain (fp32, NCHW, DataLoader in the process)": plain(images, labels, tuned=False, workers=0),
            "plain with 2 loader workers": plain(images, labels, tuned=False, workers=2),
            "plain, tuned (bf16, channels_last, 2 workers that stay)": plain(images, labels, tuned=True, workers=2),
            "ours": ours(path),
        }
        rates: dict[str, list[float]] = {name: [] for name in loops}
        for name, steps in loops.items():
            steps(3)  # kernels are chosen, workers started
            print(f"warm: {name}", flush=True)
        for _ in range(args.rounds):
            for name, steps in loops.items():
                start = time.perf_counter()
                steps(args.steps)
                rates[name].append(args.steps * BATCH / (time.perf_counter() - start))
    for name, values in rates.items():
        print(f"{name}: {statistics.median(values):.0f} images/s (of {min(values):.0f} to {max(values):.0f})")
    for name in list(loops)[:-1]:
        low, middle, high = ratio(rates["ours"], rates[name])
        print(f"ours / {name}: {middle:.2f} [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    main()
