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

from orchestrator.compression.distillation import check_classes
from orchestrator.models.build import build
from orchestrator.models.user import add_dropout, load_weights, source_digest, user_model
from orchestrator.results.files import as_json
from orchestrator.results.trial_result import StageRecord
from orchestrator.spec.recipe import ModelSettings, Recipe
from orchestrator.training.process import Process, seeded
from orchestrator.trial.host import TrialHost
from orchestrator.trial.order import Order, derived_seed
from orchestrator.trial.stages import file_hash, stage_key
from orchestrator.trial.workshop import Material, Workshop


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
        gate: what is known of the network before it is trained, by metric.
        amounts: how far that lies outside the order's constraints.
        alone: whether the other ranks have left the trial.
        under_way: where the stage that is being made keeps its checkpoint.
    """

    order: Order
    recipe: Recipe
    host: TrialHost
    workshop: Workshop
    material: Material
    stages: list[StageRecord] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    gate: dict[str, float] = field(default_factory=dict)
    amounts: dict[str, float] = field(default_factory=dict)
    alone: bool = False
    under_way: Path | None = None

    @property
    def process(self) -> Process:
        return self.host.process

    def fresh(self, model: ModelSettings, *, loaded: bool = False) -> nn.Module:
        """A newly initialised network for this data, or one that starts from given weights, on this rank's device.

        Args:
            loaded: the network will be used as it comes: its weights must fit, the classifier's too.
        """
        num_classes, shape = len(self.material.classes), self.material.shape
        if ":" in model.name:
            network = user_model(model.name, num_classes, shape[0])
        else:
            network = build(model.name, model.width, num_classes, shape)
        if model.weights is not None:
            load_weights(network, model.weights, classifier=loaded)
        return add_dropout(network, model.dropout).to(self.process.device)

    def origin(self, model: ModelSettings) -> dict[str, str]:
        """Hashes of what a network comes from besides its settings: a file of weights, a module of the user's own."""
        found = {} if model.weights is None else {"weights": file_hash(model.weights)}
        if ":" in model.name:
            found["source"] = source_digest(model.name)
        return found

    def check(self, model: nn.Module, role: str) -> None:
        """Hold a network to the data's classes before anything is trained."""
        with self.process.permit():
            check_classes(model, len(self.material.classes), self.example(), role)

    def network_stage(
        self,
        name: str,
        settings: dict[str, Any],
        parents: list[str],
        make: Callable[[int], nn.Module],
        rebuild: Callable[[dict[str, Tensor]], nn.Module],
        *,
        kind: str | None = None,
    ) -> Network:
        """Run a stage that makes a network, or take what it made before.

        Args:
            kind: what the stage is stored as, when that is not its name: a teacher is a network like any other.
            settings: everything in the recipe that the stage looks at.
            make: seed to network; runs on every rank.
            rebuild: weights to network. Used after computing as well, so that hit and miss give the same object.
        """
        key = self.key(kind or name, settings, parents)
        started, clock, first = time.time(), time.perf_counter(), len(self.curve)

        def fill(folder: Path) -> None:
            seed = derived_seed(self.order.sweep_seed, key)
            self.under_way = self.workshop.store.under_way(key)
            with seeded(seed):
                model = make(seed)
            if self.process.first:
                state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
                save_file(state, folder / "model.safetensors")
                (folder / "meta.json").write_bytes(as_json({"stage": name, "settings": settings, "curve": self.curve[first:]}))

        folder, cached = self.workshop.store.obtain(key, self.process, fill, stage=name)
        model = rebuild(load_file(folder / "model.safetensors", device=str(self.process.device)))
        if cached:
            curve = json.loads((folder / "meta.json").read_text())["curve"]
            self.curve += [{**point, "stage": name} for point in curve]
        seconds = time.perf_counter() - clock
        saved = max(0.0, self.workshop.store.seconds(key) - seconds) if cached else 0.0
        self.stages.append(StageRecord(name, key, seconds, cached, started, saved))
        return Network(model, key)

    def key(self, name: str, settings: dict[str, Any], parents: list[str]) -> str:
        """Where a stage's output is kept."""
        surroundings = {
            "data": [self.material.digest, self.material.shape, self.material.classes],
            "channels_last": self.recipe.training.channels_last,
            "split": self.recipe.data.model_dump(include={"val_fraction", "split_seed", "max_train", "max_val"}),
            "sweep_seed": self.order.sweep_seed,
            "threads": self.order.threads,
            "world_size": self.process.world_size,
            "device": self.process.device.type,
        }
        return stage_key(name, settings, parents, surroundings)

    def example(self) -> Tensor:
        """One image of zeros, to trace networks with."""
        return torch.zeros(1, *self.material.shape, device=self.process.device)

    def timed(self, name: str, clock: float, started: float) -> None:
        """Record a stage that is not stored."""
        self.stages.append(StageRecord(name, "", time.perf_counter() - clock, False, started))
