"""A distilled step with kept logits against the same loop running the teacher: ResNet-56 teaches ResNet-20 on CIFAR-10.

    uv run python benchmarks/distillation_cost.py --data DIR [--steps 12] [--batch 128] [--threads 2] [--device cuda]

DIR holds train.parquet in the Hugging Face layout. In turns, in one process: the teacher's forward pass alone, a plain step
(labels only), a distilled step with kept logits, and a distilled step with the teacher in it; data loading is inside the
time of a step, attaching to the file as well. Every round is an epoch of its own, with a view of its own, over as many
images as its steps need. Printed: medians of milliseconds; how much faster kept logits make the step, against the limit
1 + t_teacher / t_plain of the same run, each with a bootstrapped 95 % interval over rounds; what computing the logits cost;
and whether the two distilled students have the same bits. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from machine import describe
from torch import Tensor, nn

from orchestrator.compression.distillation import Loss, make_loss, teacher_inside
from orchestrator.data.batches import DeviceData, Normalizer
from orchestrator.data.decode import Examples, attach, decode_split
from orchestrator.data.sources import Source
from orchestrator.models.build import build
from orchestrator.training.loop import Batches, Fit, fit
from orchestrator.training.precision import arithmetic
from orchestrator.training.process import Process, laid_out
from orchestrator.trial.lessons import lessons
from orchestrator.trial.stages import StageStore

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
HOW = Fit(epochs=1, learning_rate=0.05, weight_decay=5e-4, precision="bf16", channels_last=True)
PLAIN, KEPT, INSIDE, TEACHER = "plain step", "distilled, logits kept", "distilled, teacher in the step", "teacher alone"
WARM = 2


class Bench:
    """The data, the teacher and the two ways to be taught.

    Args:
        steps: batches of an epoch.
    """

    def __init__(self, examples: Examples, store: Path, batch: int, steps: int, device: torch.device) -> None:
        few = Examples(examples.images[: batch * steps], examples.labels[: batch * steps])
        self.data = DeviceData(few, Normalizer(np.float32(MEAN), np.float32(STD), device), device, channels_last=True)
        self.batch, self.steps, self.store, self.process = batch, steps, StageStore(store), Process(device=device)
        self.distilled = make_loss("hinton", 0.9, 4.0, 8.0)
        self.plain = make_loss("hinton", 0.0, 4.0, 8.0)
        self.teacher = self.network("cifar_resnet56")
        fit(self.teacher, self.view, steps, self.plain, HOW, self.process, lambda epoch, loss: None)  # norms learn the images
        laid_out(self.teacher, channels_last=True).eval().requires_grad_(False)

    def network(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        return build(name, 16, 10, (3, 32, 32)).to(self.process.device)

    def view(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self.data.epoch(self.batch, seed, 0, 1, "shift_flip")

    def taught(self, seed: int) -> Iterator[tuple[Tensor, ...]]:
        def view() -> Iterator[tuple[Tensor, Tensor]]:
            return self.view(seed)

        return lessons(self.store, f"view{seed}", self.process, self.teacher, view, "bf16", 1, lambda number: None)

    def loops(self) -> tuple[dict[str, Callable[[int], None]], dict[str, nn.Module]]:
        """Name to a function that runs one epoch with a seed, and name to the network that it trains."""
        students = {name: self.network("cifar_resnet20") for name in (PLAIN, KEPT, INSIDE)}
        images = [images for images, _ in self.view(0)]

        def forward(seed: int) -> None:
            with torch.no_grad(), arithmetic("bf16", self.process.device):
                for batch in images:
                    self.teacher(batch)

        def epoch(name: str, batches: Batches, loss: Loss) -> Callable[[int], None]:
            def run(seed: int) -> None:
                fit(students[name], lambda _: batches(seed), self.steps, loss, HOW, self.process, lambda place, mean: None)

            return run

        loops = {
            TEACHER: forward,
            PLAIN: epoch(PLAIN, self.view, self.plain),
            KEPT: epoch(KEPT, self.taught, self.distilled),
            INSIDE: epoch(INSIDE, self.view, teacher_inside(self.teacher, self.distilled)),
        }
        return loops, students


def timed(work: Callable[[], object], device: torch.device, steps: int) -> float:
    """Milliseconds a step."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start) / steps


def interval(values: np.ndarray) -> str:
    """Median over rounds with a bootstrapped 95 % interval."""
    draws = np.random.default_rng(0).choice(values, (10_000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return f"{np.median(values):.3f} [{low:.3f}, {high:.3f}]"


def report(times: dict[str, list[float]], computing: list[float], students: dict[str, nn.Module]) -> None:
    """Print what was found."""
    for name, values in times.items():
        print(f"{name}: {statistics.median(values):.2f} ms (of {min(values):.2f} to {max(values):.2f})")
    teacher, plain, kept, inside = (np.array(times[name]) for name in (TEACHER, PLAIN, KEPT, INSIDE))
    gain, limit = inside / kept, 1 + teacher / plain
    print(f"teacher in the step / logits kept: {interval(gain)}")
    print(f"limit 1 + t_teacher / t_plain:     {interval(limit)}")
    print(f"share of the limit:                {interval(gain / limit)} (wanted: 0.95)")
    print(f"logits kept / plain step:          {interval(kept / plain)}")
    print(f"computing an epoch's logits, once: {statistics.median(computing):.2f} ms a batch")
    one, other = (students[name].state_dict() for name in (KEPT, INSIDE))
    print("student weights bit-identical:", all(torch.equal(value, other[name]) for name, value in one.items()))


def main() -> None:
    """Compute every view's logits, then run the loops in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} threads"
    print(describe(), f"; {where}, batch {args.batch}, {args.rounds} rounds of {args.steps} steps", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.arrow"
        decode_split(Source("parquet", args.data), "train", path)
        bench = Bench(attach(path), Path(folder) / "stages", args.batch, args.steps, device)
        seeds = range(WARM + args.rounds)
        computing = [timed(lambda seed=seed: next(bench.taught(seed)), device, args.steps) for seed in seeds]
        loops, students = bench.loops()
        times: dict[str, list[float]] = {name: [] for name in loops}
        for seed in seeds:
            for name, loop in loops.items():
                spent = timed(lambda loop=loop, seed=seed: loop(seed), device, args.steps)
                if seed >= WARM:  # the first rounds choose kernels
                    times[name].append(spent)
    report(times, computing[WARM:], students)


if __name__ == "__main__":
    main()
