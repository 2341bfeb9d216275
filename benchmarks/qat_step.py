"""What quantizers add to a training step: ResNet-20 with learned steps against the same network without, both in bf16.

    uv run python benchmarks/qat_step.py [--rounds 9] [--steps 8] [--threads 2]

Both train by the product's loop on the same images, a few steps at a time, in turns. Printed: medians of images per second, and
the median ratio of step times with a bootstrapped 95 % interval, against the target of 1.4. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch
from machine import describe, ratio
from torch import Tensor, nn

from orchestrator.compression.distillation import make_loss
from orchestrator.compression.fake_quantize import calibrate, insert_quantizers, lean_graph
from orchestrator.models.build import build
from orchestrator.training.loop import Fit, fit
from orchestrator.training.process import Process, keep_memory, laid_out

BATCH, TARGET = 256, 1.4


def steps_of(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[int], None]:
    """Trains `model` for some steps of the product's loop."""
    how = Fit(epochs=1, learning_rate=0.01, weight_decay=5e-4, precision="bf16", channels_last=True)
    loss = make_loss("hinton", 0.0, 1.0, 0.0)

    def steps(count: int) -> None:
        def batches(_: int) -> Iterator[tuple[Tensor, Tensor]]:
            return itertools.repeat((images, labels), count)

        fit(model, batches, count, loss, how, Process(), lambda epoch, value: None)

    return steps


def quantized(model: nn.Module, images: Tensor, weight_bits: int, activation_bits: int, open_: ExitStack) -> nn.Module:
    """The network as QAT trains it, until `open_` is closed."""
    graph = insert_quantizers(model, weight_bits, activation_bits, True)
    calibrate(graph, [images[:64]], "mse")
    open_.enter_context(lean_graph(graph))
    return graph


def main() -> None:
    """Interleave the networks and print their rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    torch.manual_seed(0)
    print(describe(), f"; {args.threads} threads, batch {BATCH}, {args.rounds} rounds of {args.steps} steps")
    images = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (BATCH,))
    dense = laid_out(build("cifar_resnet20", 16, 10, (3, 32, 32)), channels_last=True)
    open_ = ExitStack()
    loops = {
        "plain bf16": steps_of(dense, images, labels),
        "W8A8": steps_of(quantized(dense, images, 8, 8, open_), images, labels),
        "W4A8": steps_of(quantized(dense, images, 4, 8, open_), images, labels),
        "W4A4": steps_of(quantized(dense, images, 4, 4, open_), images, labels),
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    for steps in loops.values():
        steps(2)  # kernels are chosen
    for _ in range(args.rounds):
        for name, steps in loops.items():
            start = time.perf_counter()
            steps(args.steps)
            times[name].append((time.perf_counter() - start) / args.steps)
    for name, values in times.items():
        low, middle, high = ratio(values, times["plain bf16"])
        verdict = "" if name == "plain bf16" else f", target {TARGET}: {'met' if middle <= TARGET else 'MISSED'}"
        rate = BATCH / statistics.median(values)
        print(f"{name}: {rate:.0f} images/s; step / plain step {middle:.2f} [{low:.2f}, {high:.2f}]{verdict}")


if __name__ == "__main__":
    main()
