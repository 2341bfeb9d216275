"""One trial of the headline's peers, as a user of PyTorch writes it: one recipe, from the images to a measured file.

The networks, the decoded images and their splits, the loss, the cutting of channels (torch-pruning), the quantizers, the ONNX
file and what measures it are the product's own functions: what is compared is orchestration and search, not the kit. The
training loop is the usual one, with a DataLoader over tensors, and the teacher's forward pass in each step.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from orchestrator.compression.channels import prune_channels
from orchestrator.compression.distillation import make_loss
from orchestrator.compression.fake_quantize import calibrate, insert_quantizers, lean_graph, settle_biases
from orchestrator.compression.folding import fold_norms
from orchestrator.compression.grids import split_off_grids
from orchestrator.compression.onnx_export import FromPixels, export_float, export_quantized
from orchestrator.data.batches import Normalizer, augmented
from orchestrator.data.decode import decode_split
from orchestrator.data.sources import Source
from orchestrator.data.splits import Splits, split_train
from orchestrator.measure.accuracy import classification
from orchestrator.measure.runtime import Runtime
from orchestrator.measure.size import count_macs
from orchestrator.models.build import build
from orchestrator.spec.job import Job
from orchestrator.spec.recipe import ModelSettings, Recipe, TrainingSettings
from orchestrator.spec.space import fill
from orchestrator.training.schedule import rate_factor

Kept = Callable[[str, Callable[[], nn.Module]], nn.Module]
"""(name, how to train it) to a dense network: trained now, or loaded where a script keeps what it trained."""


def dense_name(recipe: Recipe) -> str:
    """What a dense network is kept under: everything that it is trained with."""
    text = recipe.model_dump_json(include={"model", "training", "distillation", "teacher"})
    return f"dense-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def trained_now(_: str, make: Callable[[], nn.Module]) -> nn.Module:
    """What the default script does: every trial trains its own."""
    return make()


def decode(job: Job, folder: Path) -> Path:
    """Decode the training images once, for all trials; returns the file."""
    data, path = job.recipe.data, folder / "train.arrow"
    source = Source(data.source, data.path, data.name, data.download, data.image_column, data.label_column, data.image_size)
    meta = decode_split(source, "train", path)
    path.with_suffix(".json").write_text(json.dumps(meta))
    return path


@dataclass(frozen=True)
class Script:
    """What a trial's process holds.

    Args:
        tuned: batches by one index, channels_last and the recipe's precision, instead of a DataLoader of float32 in NCHW.
        kept: where dense networks come from.
    """

    job: Job
    splits: Splits
    normalizer: Normalizer
    shape: tuple[int, int, int]
    tuned: bool
    kept: Kept

    @classmethod
    def load(cls, job: Job, decoded: Path, *, tuned: bool = False, kept: Kept = trained_now) -> Script:
        data, meta = job.recipe.data, json.loads(decoded.with_suffix(".json").read_text())
        how = data.val_fraction, data.split_seed, data.max_train, data.max_val
        splits = split_train(decoded, len(meta["classes"]), *how)
        normalizer = Normalizer(splits.mean, splits.std, torch.device("cpu"))
        return cls(job, splits, normalizer, tuple(meta["shape"]), tuned, kept)

    def trial(self, choice: Mapping[str, Any], folder: Path) -> dict[str, float]:
        """Train, compress, write `model.onnx` and measure it: the objectives of one point."""
        torch.manual_seed(self.job.seed)
        recipe = fill(self.job.recipe, choice)
        teacher = self.kept("teacher", lambda: self.dense(recipe, recipe.teacher.model, recipe.teacher.training, None))
        model = self.kept(dense_name(recipe), lambda: self.dense(recipe, recipe.model, recipe.training, teacher))
        if recipe.pruning.ratio > 0.0:
            how = recipe.pruning
            prune_channels(model, self.example, how.ratio, how.criterion, how.scope, how.round_to)
            self.train(model, recipe, recipe.training, how.epochs, how.learning_rate, teacher)
        if recipe.quantization.method != "none":
            model = self.quantized(model, recipe, teacher)
        folder.mkdir(parents=True, exist_ok=True)
        return self.shipped(model, recipe, folder / "model.onnx")

    @property
    def example(self) -> Tensor:
        return torch.zeros(1, *self.shape)

    def fresh(self, model: ModelSettings) -> nn.Module:
        return build(model.name, model.width, self.splits.num_classes, self.shape)

    def dense(self, recipe: Recipe, model: ModelSettings, training: TrainingSettings, teacher: nn.Module | None) -> nn.Module:
        network = self.fresh(model)
        self.train(network, recipe, training, training.epochs, training.learning_rate, teacher)
        return network

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch: bytes (B, C, H, W) and labels (B,)."""
        images, labels = torch.from_numpy(self.splits.train.images), torch.from_numpy(self.splits.train.labels)
        if not self.tuned:
            yield from DataLoader(TensorDataset(images, labels), batch_size, shuffle=True, drop_last=True)
            return
        for rows in torch.randperm(len(labels)).split(batch_size):
            if len(rows) == batch_size:
                yield images[rows], labels[rows]

    def train(
        self,
        model: nn.Module,
        recipe: Recipe,
        training: TrainingSettings,
        epochs: int,
        rate: float,
        teacher: nn.Module | None,
    ) -> None:
        """SGD with the job's schedule; a teacher sees the very images that the student sees."""
        how, total = recipe.distillation, max(1, epochs * (len(self.splits.train) // training.batch_size))
        loss = make_loss(how.method, how.weight if teacher else 0.0, how.temperature, how.beta, training.label_smoothing)
        layout = torch.channels_last if self.tuned else torch.contiguous_format
        model.to(memory_format=layout).train()  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(
            model.parameters(), rate, training.momentum, weight_decay=training.weight_decay, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_factor(training.schedule, min(step / total, 1.0), training.warmup_fraction)
        )
        low = self.tuned and training.precision == "bf16"
        for _ in range(epochs):
            for pixels, labels in self.batches(training.batch_size):
                draws = torch.randint(0, 1 << 30, (3, len(labels)))
                images = self.normalizer(augmented(pixels, draws, training.augmentation)).contiguous(memory_format=layout)
                with torch.autocast("cpu", torch.bfloat16, enabled=low):
                    with torch.no_grad():
                        lessons = [teacher(images)] if teacher else []
                    value = loss(images, model(images), labels, *lessons)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                schedule.step()
        model.eval()

    def quantized(self, model: nn.Module, recipe: Recipe, teacher: nn.Module | None) -> nn.Module:
        how = recipe.quantization
        graph = insert_quantizers(model, how.weight_bits, how.activation_bits, how.first_last_8bit, how.granularity)
        few = self.normalizer(torch.from_numpy(self.splits.train.images[: how.num_calibration])).split(64)
        calibrate(graph, few, how.calibration)
        if how.method == "qat":
            with lean_graph(graph):
                self.train(graph, recipe, recipe.training, how.epochs, how.learning_rate, teacher)
        calibrate(graph, few, how.calibration, carriers_only=True)
        settle_biases(graph)
        return graph

    def shipped(self, model: nn.Module, recipe: Recipe, path: Path) -> dict[str, float]:
        """Write the file, and measure what the objectives ask for."""
        plain = model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        wrap = FromPixels.of(self.normalizer.scale, self.normalizer.offset)
        if recipe.quantization.method == "none":
            folded = fold_norms(plain)
            export_float(wrap(folded), self.example, path)
        else:
            folded, grids = split_off_grids(plain)
            export_quantized(wrap(folded), grids.below(FromPixels.NETWORK), self.example, path)
        val = self.splits.val
        accuracy = classification(Runtime(path, 1).logits(val.images), val.labels)["accuracy"]
        return {"accuracy": accuracy, "size_bytes": path.stat().st_size, "macs": count_macs(folded, self.example)}


class KeptOnDisk:
    """Dense networks in a folder: trained by the first trial that wants one, loaded by all others.

    Two trials that begin together may both train it; the later file replaces an equal one.
    """

    def __init__(self, folder: Path, fresh: Callable[[str], nn.Module]) -> None:
        self.folder, self.fresh = folder, fresh

    def __call__(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        path = self.folder / f"{name}.pt"
        if path.exists():
            network = self.fresh(name)
            network.load_state_dict(torch.load(path, weights_only=True))
            return network.eval()
        network = make()
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save(network.state_dict(), partial)
        partial.replace(path)
        return network


def record(path: Path, choice: Mapping[str, Any], measurements: Mapping[str, float], started: float) -> None:
    """Note a finished trial: one line, appended whole."""
    line = {"started": started, "ended": time.time(), "choice": dict(choice), "measurements": dict(measurements)}
    with path.open("a") as handle:
        handle.write(json.dumps(line) + "\n")


_numbers = itertools.count()


def scratch(folder: Path) -> Path:
    """A folder for one trial's file."""
    return folder / f"{os.getpid()}-{next(_numbers)}"
