"""One thread, torch's own deprecated code out of the way of `-W error`, and a bench on which recipes run end to end."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestrator.measure import latency
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.recipe import Recipe
from orchestrator.training.process import Process, laid_out
from orchestrator.trial.order import Order
from orchestrator.trial.pipeline import run_trial
from orchestrator.trial.stages import StageStore
from orchestrator.trial.work import Network, Work
from orchestrator.trial.workshop import Material, Workshop

torch.set_num_threads(1)

with warnings.catch_warnings():
    # torch.fx.experimental.optimization imports it, and it uses what torch has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch.utils.mkldnn

# Few steps, but enough that a network tells several digits apart: one that names the same for all agrees with any other.
TRAINING = {"epochs": 1, "batch_size": 16, "learning_rate": 0.1}
TINY: dict[str, Any] = {
    "data": {"source": "digits", "max_train": 256, "max_val": 64},
    "model": {"name": "cifar_resnet8", "width": 8},
    "training": TRAINING,
    "teacher": {"model": {"name": "cifar_resnet8", "width": 12}, "training": TRAINING},
    "pruning": {"epochs": 1},
    "quantization": {"epochs": 1, "num_calibration": 64},
    "measurement": {"rounds": 5},
}


class Alone:
    """A trial's host that only listens, and holds no lock of the machine's."""

    gang = "alone"

    def __init__(self) -> None:
        self.process = Process()
        self.heard: list[dict[str, Any]] = []

    def progress(self, event: dict[str, Any]) -> None:
        self.heard.append(event)

    progress_alone = step = progress

    def measuring(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@dataclass
class Bench:
    """Trials of one process over one stage store, with a workshop that stays warm.

    Args:
        made: by a stage's key, the logits (N, classes) on the validation split of the network that was trained, and of the one
            that came back from the stage's file.
    """

    root: Path
    made: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    num_trials: int = 0

    def __post_init__(self) -> None:
        self.host = Alone()
        self.workshop = self.cold()

    @property
    def stages(self) -> Path:
        return self.root / "stages"

    def cold(self) -> Workshop:
        """A workshop over the same store that remembers nothing: what a new process starts with."""
        return Workshop(StageStore(self.stages), self.host.process)

    def run(
        self,
        changed: dict[str, Any],
        *,
        seed: int = 0,
        workshop: Workshop | None = None,
        constraints: dict[str, Any] | None = None,
        objectives: list[str] | None = None,
    ) -> tuple[TrialResult, Path]:
        """How the tiny recipe with these changes ends, and the folder that it leaves."""
        self.num_trials += 1
        folder, bounds, early = self.root / f"t{self.num_trials:04d}", constraints or {}, objectives or []
        tree = recipe_tree(changed)
        order = Order(self.num_trials, {}, tree, bounds, seed, str(folder), str(self.stages), objectives=early)
        return run_trial(order, self.host, workshop or self.workshop), folder

    def material(self) -> Material:
        recipe = Recipe.model_validate(recipe_tree({}))
        return self.workshop.material(recipe.data, recipe.training.channels_last)

    def val_pixels(self) -> np.ndarray:
        """The validation split as a file takes it, float32 in 0..255."""
        return self.material().splits.val.images.astype(np.float32)

    def watch(self, original: Callable[..., Network]) -> Callable[..., Network]:
        """`Work.network_stage`, noting what was made and what was rebuilt."""

        def network_stage(work: Work, name: str, settings: Any, parents: Any, make: Any, rebuild: Any, **named: Any) -> Network:
            made: list[nn.Module] = []

            def noting(seed: int) -> nn.Module:
                made.append(make(seed))
                return made[0]

            network = original(work, name, settings, parents, noting, rebuild, **named)
            if made:
                self.made[network.key] = val_logits(work, made[0]), val_logits(work, network.model)
            return network

        return network_stage


def recipe_tree(changed: dict[str, Any]) -> dict[str, Any]:
    """The tiny recipe with these changes, section by section, as an order carries it."""
    tree = {**TINY, **{key: {**TINY.get(key, {}), **value} for key, value in changed.items()}}
    return Recipe.model_validate(tree).model_dump(mode="json")


def val_logits(work: Work, model: nn.Module) -> Tensor:
    """Logits of a copy, all in one memory format: kernels may differ in the last bit between two."""
    same = laid_out(copy.deepcopy(model), channels_last=False).eval()
    with torch.inference_mode():
        return torch.cat([same(images.contiguous()) for images, _ in work.material.val.ordered(64)])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    with pytest.MonkeyPatch.context() as patch:
        # How steady a latency is does not matter here, and half a second for each of some hundred files does.
        patch.setattr(latency, "_LEAST_S", 0.0)
        patch.setattr(latency, "_WARM_UP_S", 0.0)
        patch.setattr(Work, "network_stage", bench.watch(Work.network_stage))
        yield bench
