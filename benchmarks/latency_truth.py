"""Is a latency what a user will see? int8 against fp32 in ONNX Runtime, and a latency taken while another trial trains.

    uv run python benchmarks/latency_truth.py [--rounds 7]

Networks as torchvision makes them, at 224 pixels, one image a call, one thread. Files are written by the product's exporter
(8-bit codes calibrated on noise: what is timed does not depend on the values) and timed in turns. Then a second process trains
as a gang does, and the same file is timed with and without it. Printed: medians with 95 % intervals. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import statistics
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from machine import describe, ratio

from orchestrator.compression.fake_quantize import calibrate, insert_quantizers, settle_biases
from orchestrator.compression.folding import fold_norms
from orchestrator.compression.grids import split_off_grids
from orchestrator.compression.onnx_export import FromPixels, export_float, export_quantized
from orchestrator.measure.latency import call_latency_ms, pinned
from orchestrator.measure.quiet import Quiet
from orchestrator.measure.runtime import Runtime
from orchestrator.models.build import build
from orchestrator.training.loop import Fit, fit
from orchestrator.training.process import Process

SHAPE = (3, 224, 224)
SCALE, OFFSET = torch.full((1, 3, 1, 1), 1 / 64), torch.full((1, 3, 1, 1), -2.0)


def files(name: str, folder: Path) -> dict[str, Path]:
    """fp32, int8 and 4-bit-weight files of a network."""
    torch.manual_seed(0)
    model = build(name, 16, 1000, SHAPE).eval()
    images, wrap = torch.randn(4, *SHAPE), FromPixels.of(SCALE, OFFSET)
    made = {"fp32": folder / f"{name}.fp32.onnx"}
    export_float(wrap(fold_norms(model)), torch.zeros(1, *SHAPE), made["fp32"])
    for weight_bits in (8, 4):
        graph = insert_quantizers(model, weight_bits, 8, True)
        calibrate(graph, [images], "minmax")
        settle_biases(graph)
        plain, grids = split_off_grids(graph)
        kind = "int8" if weight_bits == 8 else "int4 weights"
        made[kind] = folder / f"{name}.w{weight_bits}.onnx"
        export_quantized(wrap(plain), grids.below(FromPixels.NETWORK), torch.zeros(1, *SHAPE), made[kind])
    return made


def timed(runtime: Runtime) -> float:
    """Median milliseconds of a call, as the product takes it."""
    image = np.zeros((1, *SHAPE), np.float32)
    with pinned(1):
        return call_latency_ms(lambda: runtime(image), 20).median_ms


def compare(name: str, folder: Path, rounds: int) -> Path:
    """Print how a network's files do against each other; returns its int8 file."""
    made = files(name, folder)
    runtimes = {kind: Runtime(path, 1) for kind, path in made.items()}
    times: dict[str, list[float]] = {kind: [] for kind in made}
    for _ in range(rounds):
        for kind, runtime in runtimes.items():
            times[kind].append(timed(runtime))
    for kind, values in times.items():
        size = made[kind].stat().st_size
        print(f"{name} {kind}: {statistics.median(values):.2f} ms (of {min(values):.2f} to {max(values):.2f}), {size:,} bytes")
    for kind in ("int8", "int4 weights"):
        low, middle, high = ratio(times["fp32"], times[kind])
        share = made[kind].stat().st_size / made["fp32"].stat().st_size
        print(f"{name} fp32 / {kind}: {middle:.2f} [{low:.2f}, {high:.2f}]; {share:.3f} of the bytes")
    low, middle, high = ratio(times["int4 weights"], times["int8"])
    print(f"{name} int4 weights / int8: {middle:.3f} [{low:.3f}, {high:.3f}]")
    return made["int8"]


def train_beside(locks: str, started: multiprocessing.synchronize.Event) -> None:
    """What a gang does: steps under the machine's lock, as fast as it may."""
    torch.set_num_threads(1)
    quiet = Quiet(Path(locks))
    images, labels = torch.randn(256, 3, 32, 32), torch.randint(10, (256,))
    loss = torch.nn.functional.cross_entropy
    how = Fit(epochs=1, learning_rate=0.01, precision="bf16", channels_last=True)

    def batches(_: int) -> itertools.repeat[tuple[torch.Tensor, torch.Tensor]]:
        started.set()
        return itertools.repeat((images, labels))

    fit(
        build("cifar_resnet20", 16, 10, (3, 32, 32)),
        batches,
        1,
        lambda images, logits, labels: loss(logits.float(), labels),
        how,
        Process(permit=quiet.working),
        lambda epoch, value: None,
    )


def beside(path: Path, rounds: int, *, locked: bool) -> None:
    """Print a file's latency with and without a neighbour on every core that trains; unlocked is what others do."""
    runtime, alone, accompanied = Runtime(path, 1), [], []
    context = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as locks:
        quiet = Quiet(Path(locks))
        for _ in range(rounds):
            alone.append(timed(runtime))
            begun = [context.Event() for _ in range(cores)]
            neighbours = [context.Process(target=train_beside, args=(locks, event), daemon=True) for event in begun]
            for neighbour in neighbours:
                neighbour.start()
            for event in begun:
                event.wait()
            with quiet.measuring() if locked else contextlib.nullcontext():
                accompanied.append(timed(runtime))
            for neighbour in neighbours:
                neighbour.kill()
                neighbour.join()
    low, middle, high = ratio(accompanied, alone)
    said = f"{'with' if locked else 'without'} the machine's lock, beside {cores} that train"
    print(f"{said}: {middle:.3f} [{low:.3f}, {high:.3f}] of idle")


def main() -> None:
    """Compare kernels, then neighbours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(describe(), f"; {args.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        int8 = compare("resnet18", Path(folder), args.rounds)
        compare("mobilenet_v3_small", Path(folder), args.rounds)
        for locked in (True, False):
            beside(int8, args.rounds, locked=locked)


if __name__ == "__main__":
    main()
