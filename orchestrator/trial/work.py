"""A trial under way: its settings, its host, and the record it leaves. Every stage is a function of this and its input."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from orchestrator.compression.distillation import make_loss
from orchestrator.models.build import build
from orchestrator.results.files import as_json
from orchestrator.results.trial_result import StageRecord
from orchestrator.spec.recipe import ModelSettings, Recipe, TrainingSettings
from orchestrator.training.loop import Fit, accuracy, fit
from orchestrator.training.process import Process, seeded
from orchestrator.trial.host import TrialHost
from orchestrator.trial.order import Order, derived_seed
from orchestrator.trial.stages import stage_key
from orchestrator.trial.workshop import Material, Workshop

_EVAL_BATCH = 512
# How often a trial asks whether to go on: seldom enough to cost nothing, often enough for Ctrl-C.
_STEPS_PER_REPORT = 20


@dataclass(frozen=True)
class Network:
    """What a stage hands to the next: a network, and the key under which it is stored."""

    model: nn.Module
    key: str


@dataclass
class Work:
    """One trial on one rank.

    Args:
        stages: what was done, in order.
        curve: one mapping per epoch: stage, epoch, loss, val_accuracy.
        alone: whether the other ranks have left the trial.
    """

    order: Order
    recipe: Recipe
    host: TrialHost
    workshop: Workshop
    material: Material
    stages: list[StageRecord] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    alone: bool = False

    @property
    def process(self) -> Process:
        return self.host.process

    def fresh(self, model: ModelSettings) -> nn.Module:
        """A newly initialised network for this data, on this rank's device."""
        network = build(model.name, model.width, len(self.material.classes), self.material.shape)
        return network.to(self.process.device)

    def network_stage(
        self,
        name: str,
        settings: dict[str, Any],
        parents: list[str],
        make: Callable[[int], nn.Module],
        rebuild: Callable[[dict[str, Tensor]], nn.Module],
    ) -> Network:
        """Run a stage that makes a network, or take what it made before.

        Args:
            settings: everything in the recipe that the stage looks at.
            make: seed to network; runs on every rank.
            rebuild: weights to network. Used after computing as well, so that hit and miss give the same object.
        """
        key = self.key(name, settings, parents)
        started, clock, first = time.time(), time.perf_counter(), len(self.curve)

        def fill(folder: Path) -> None:
            seed = derived_seed(self.order.sweep_seed, key)
            with seeded(seed):
                model = make(seed)
            if self.process.first:
                state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
                save_file(state, folder / "model.safetensors")
                (folder / "meta.json").write_bytes(as_json({"stage": name, "settings": settings, "curve": self.curve[first:]}))

        folder, cached = self.workshop.store.obtain(key, self.process, fill)
        model = rebuild(load_file(folder / "model.safetensors", device=str(self.process.device)))
        if cached:
            self.curve += json.loads((folder / "meta.json").read_text())["curve"]
        self.stages.append(StageRecord(name, key, time.perf_counter() - clock, cached, started))
        return Network(model, key)

    def key(self, name: str, settings: dict[str, Any], parents: list[str]) -> str:
        """Where a stage's output is kept."""
        surroundings = {
            "data": self.material.digest,
            "split": self.recipe.data.model_dump(include={"val_fraction", "split_seed", "max_train", "max_val"}),
            "sweep_seed": self.order.sweep_seed,
            "threads": self.order.threads,
            "world_size": self.process.world_size,
            "device": self.process.device.type,
        }
        return stage_key(name, settings, parents, surroundings)

    def train(
        self,
        name: str,
        model: nn.Module,
        settings: TrainingSettings,
        teacher: nn.Module | None,
        *,
        epochs: int,
        rate: float,
    ) -> None:
        """Train `model` in place with the recipe's loss, and note its curve."""
        batch_size = min(settings.batch_size, len(self.material.train) // self.process.world_size * self.process.world_size)
        how = Fit(
            epochs,
            rate,
            settings.optimizer,
            settings.momentum,
            settings.weight_decay,
            settings.schedule,
            settings.warmup_fraction,
            settings.gradient_clip,
            settings.precision,
            settings.channels_last,
        )
        distillation = self.recipe.distillation
        loss = make_loss(teacher, distillation.weight, distillation.temperature, settings.label_smoothing)

        def batches(epoch: int) -> Any:
            seed = derived_seed(self.order.sweep_seed, epoch)
            process = self.process
            return self.material.train.epoch(batch_size, seed, process.rank, process.world_size, settings.augmentation)

        def on_epoch(epoch: int, mean_loss: float) -> None:
            score = self.val_accuracy(model, settings.precision)
            point = {"stage": name, "epoch": epoch, "loss": mean_loss, "val_accuracy": score}
            self.curve.append(point)
            self.host.progress({**point, "epochs": epochs})

        steps = len(self.material.train) // batch_size

        def on_step(step: int) -> None:
            if step % _STEPS_PER_REPORT == 0:
                epoch, place = divmod(step, steps)
                self.host.progress({"stage": name, "epoch": epoch, "epochs": epochs, "step": place, "steps": steps})

        fit(model, batches, steps, loss, how, self.process, on_epoch, on_step)

    def val_accuracy(self, model: nn.Module, precision: str) -> float:
        """Accuracy of a training graph on the validation split."""
        shares = self.material.val.ordered(_EVAL_BATCH, self.process.rank, self.process.world_size)
        return accuracy(model, shares, precision, self.process)

    def example(self) -> Tensor:
        """One image of zeros, to trace networks with."""
        return torch.zeros(1, *self.material.shape, device=self.process.device)

    def timed(self, name: str, clock: float, started: float) -> None:
        """Record a stage that is not stored."""
        self.stages.append(StageRecord(name, "", time.perf_counter() - clock, False, started))
