"""An epoch of ResNet-20 on CIFAR-10 with its input pipeline, and what a second process brings.

    uv run python benchmarks/epoch.py --data DIR [--images 10000] [--rounds 5]

DIR holds train.parquet in the Hugging Face layout. An epoch is so many of its images, in batches of 256; `--images 50000` is a
whole one. In turns, a round at a time:

- one process with two threads: the loop that people write (torchvision's transforms and a DataLoader, without and with
  loader processes), that loop tuned (bf16, channels_last, loaders that stay), and ours; the loops are those of train_step.py.
  "ours, one batch" has its batch at hand: what an input pipeline that costs nothing would give; with `--compile` also ours
  through torch.compile, timed once it has compiled, and how long that takes;
- ours in one process with one thread, in one with two, and as DDP in two processes of one thread each, which share each batch.
  "two apart" are two such processes that have nothing to do with each other: what the machine gives to two at a time.

DDP's efficiency is its images a second against twice those of one process with one thread.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.machine import describe, ratio
from benchmarks.outcome import bars, interval, keep, picture, say, shown, verdict
from orchestrator.compression.distillation import make_loss
from orchestrator.data.batches import DeviceData, Normalizer
from orchestrator.data.decode import attach, decode_split
from orchestrator.data.sources import Source
from orchestrator.models.build import build
from orchestrator.training.loop import Fit, fit
from orchestrator.training.process import Process

TARGETS = {"plain": 3.0, "efficiency": 0.9}
EPOCH, BATCH, WARM = 50_000, 256, 3
PLAIN = ("plain, loading in the process", "plain, 2 loader processes")
TUNED, OURS, ONE_BATCH, COMPILED = "plain, tuned", "ours, 2 threads", "ours, one batch", "ours, compiled"
ONE, TWO_THREADS, DDP, APART = "ours, 1 x 1 thread", "ours, 1 x 2 threads", "ours, DDP 2 x 1 thread", "ours, two apart"

Rates = dict[str, list[float]]
"""Name to images a second, by round."""

Loop = Callable[[int], float]
"""Trains for so many steps, and returns the seconds that they took."""


def efficiency(ddp: float, single: float) -> float:
    """What two processes bring together, of twice what one does alone."""
    return ddp / (2 * single)


class Ours:
    """The product's loop as a recipe runs it: bf16, channels_last, batches made on the device.

    Args:
        one_batch: the same batch in each step.
        compiled: through torch.compile. Each call compiles anew, and its first steps, in which that happens, are not timed.
    """

    def __init__(self, path: Path, process: Process, *, one_batch: bool = False, compiled: bool = False) -> None:
        mean, std = np.array((0.4914, 0.4822, 0.4465), np.float32), np.array((0.247, 0.2435, 0.2616), np.float32)
        device, self.process = torch.device("cpu"), process
        self.data = DeviceData(attach(path), Normalizer(mean, std, device), device, channels_last=True)
        torch.manual_seed(0)
        self.model = build("cifar_resnet20", 16, 10, (3, 32, 32))
        self.seeds = itertools.count()
        self.batch = next(self.view()) if one_batch else None
        self.how = Fit(epochs=1, learning_rate=0.1, weight_decay=5e-4, precision="bf16", channels_last=True, compile=compiled)

    def view(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.data.epoch(BATCH, next(self.seeds), self.process.rank, self.process.world_size, "shift_flip")

    def __call__(self, steps: int) -> float:
        """Train for so many steps; the seconds that they took."""
        untimed = WARM if self.how.compile else 0
        count, loss = untimed + steps, make_loss("hinton", 0.0, 1.0, 0.0)
        began = start = time.perf_counter()

        def batches(_: int) -> Iterator[tuple[Tensor, Tensor]]:
            return itertools.repeat(self.batch, count) if self.batch else itertools.islice(self.view(), count)

        def on_step(step: int) -> None:
            nonlocal start
            if untimed and step == untimed:
                start = time.perf_counter()
                say(f"compiled in {start - began:.1f} s")

        fit(self.model, batches, count, loss, self.how, self.process, lambda epoch, value: None, on_step)
        return time.perf_counter() - start


def timed(loop: Callable[[int], None]) -> Loop:
    """A loop that says how long it took."""

    def seconds(steps: int) -> float:
        start = time.perf_counter()
        loop(steps)
        return time.perf_counter() - start

    return seconds


def one_process(path: Path, *, compiled: bool) -> dict[str, Loop]:
    """The loops of one process, by name."""
    from benchmarks.train_step import plain  # a script, which imports as one: not when a test imports this file

    examples = attach(path)
    images, labels = np.array(examples.images), np.array(examples.labels)
    loops: dict[str, Loop] = {
        PLAIN[0]: timed(plain(images, labels, tuned=False, workers=0)),
        PLAIN[1]: timed(plain(images, labels, tuned=False, workers=2)),
        TUNED: timed(plain(images, labels, tuned=True, workers=2)),
        OURS: Ours(path, Process()),
        ONE_BATCH: Ours(path, Process(), one_batch=True),
    }
    return loops | ({COMPILED: Ours(path, Process(), compiled=True)} if compiled else {})


def serve(rank: int, folder: str, path: str, pipe: Connection) -> None:
    """One of two processes: trains as it is told, and says how many seconds it took."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    alone, together = Ours(Path(path), Process()), Ours(Path(path), Process(rank, 2))
    while (told := pipe.recv()) is not None:
        name, steps = told
        torch.set_num_threads(2 if name == TWO_THREADS else 1)
        if name in (DDP, APART):
            dist.barrier()
        pipe.send((together if name == DDP else alone)(steps))
    dist.destroy_process_group()


class Pair:
    """Two processes that can train alone, apart or together."""

    def __init__(self, folder: str, path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Any] = []
        self.processes = []
        for rank in range(2):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(rank, folder, str(path), there), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def rate(self, name: str, steps: int) -> float:
        """Images a second, over both processes."""
        told = self.pipes if name in (DDP, APART) else self.pipes[:1]
        for pipe in told:
            pipe.send((name, steps))
        seconds = max(pipe.recv() for pipe in told)
        return float((2 if name == APART else 1) * steps * BATCH / seconds)

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()


def measured(path: Path, steps: int, rounds: int, folder: str, *, compiled: bool) -> Rates:
    """Everything in turns."""
    loops, pair = one_process(path, compiled=compiled), Pair(folder, path)
    names = (ONE, TWO_THREADS, DDP, APART)
    for name, loop in loops.items():
        loop(WARM)  # kernels are chosen, loaders started
        say(f"warm: {name}")
    for name in names:
        pair.rate(name, WARM)
    rates: Rates = {name: [] for name in (*loops, *names)}
    for number in range(rounds):
        for name, loop in loops.items():
            rates[name].append(steps * BATCH / loop(steps))
        for name in names:
            rates[name].append(pair.rate(name, steps))
        say(f"round {number + 1}: " + ", ".join(f"{name} {values[-1]:.0f}" for name, values in rates.items()))
    pair.close()
    return rates


def judge(rates: Rates) -> list[dict[str, Any]]:
    """Print rates, ratios and verdicts."""
    for name, values in rates.items():
        epoch = interval([EPOCH / value for value in values])[1]
        print(f"{name}: {shown(values, 0)} images/s, an epoch in {epoch:.1f} s")
    times = {name: ratio(rates[OURS], rates[name]) for name in (*PLAIN, TUNED, ONE_BATCH)}
    if COMPILED in rates:
        print(f"{COMPILED} / {PLAIN[0]}: {shown([a / b for a, b in zip(rates[COMPILED], rates[PLAIN[0]], strict=True)])}")
    for name, (low, middle, high) in times.items():
        print(f"{OURS} / {name}: {middle:.2f} [{low:.2f}, {high:.2f}]")
    shares = {
        name: [efficiency(two, one) for two, one in zip(rates[name], rates[ONE], strict=True)]
        for name in (DDP, APART, TWO_THREADS)
    }
    for name, values in shares.items():
        print(f"{name} / twice {ONE}: {shown(values)}")
    slowest = min(times[name][1] for name in PLAIN)
    return [
        verdict("times the plain loop", slowest, TARGETS["plain"]),
        verdict("efficiency of DDP", interval(shares[DDP])[1], TARGETS["efficiency"]),
    ]


def main() -> None:
    """Decode, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=10_000, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", default="docs/benchmarks")
    args = parser.parse_args()
    torch.set_num_threads(2)
    machine, steps = describe(), max(1, args.images // BATCH)
    print(machine, f"; batch {BATCH}, {args.rounds} rounds of {steps} steps", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.arrow"
        decode_split(Source("parquet", args.data), "train", path)
        rates = measured(path, steps, args.rounds, folder, compiled=args.compile)
    verdicts = judge(rates)
    keep("epoch", {"machine": machine, "arguments": vars(args), "rates": rates, "verdicts": verdicts}, Path(args.out))
    title = "ResNet-20 on CIFAR-10 with its input pipeline, two cores"
    picture("epoch", title, [lambda axes: bars(axes, rates, "images a second")], Path(args.out))


if __name__ == "__main__":
    main()
