"""Training within a trial: the recipe's loss, batches and attack joined to the kit's loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.compression.distillation import attention_transfer, make_loss
from orchestrator.compression.fake_quantize import image_quantizers
from orchestrator.spec.recipe import TrainingSettings
from orchestrator.training.adversarial import make_perturbation, straight_through
from orchestrator.training.loop import Batches, Fit, Perturb, accuracy, fit
from orchestrator.trial.lessons import lessons
from orchestrator.trial.order import derived_seed
from orchestrator.trial.work import Network, Work

_EVAL_BATCH = 512
# How often a trial asks whether to go on: seldom enough to cost nothing, often enough for Ctrl-C.
_STEPS_PER_REPORT = 20


def train(
    work: Work,
    name: str,
    model: nn.Module,
    settings: TrainingSettings,
    teacher: Network | None,
    seed: int,
    *,
    epochs: int,
    rate: float,
    first_epoch: int = 0,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train `model` in place with the recipe's loss, and note its curve.

    Args:
        name: of the stage; the teacher alone is trained on clean images whatever the recipe says of adversaries.
        seed: of the stage, from which the attack's draws follow.
        first_epoch: from which epochs are counted, where a stage trains several times.
        after_step: called after each step of the optimizer.
    """
    work.check(model, name)
    if teacher is not None:
        work.check(teacher.model, "teacher")
    process, adversarial = work.process, work.recipe.adversarial
    batch_size = min(settings.batch_size, len(work.material.train) // process.world_size * process.world_size)
    attacked = adversarial.method != "none" and name != "teacher"
    repeats = adversarial.steps if attacked and adversarial.method == "free" else 1
    steps = len(work.material.train) // batch_size
    told = _Told(work, name, model, settings.precision, first_epoch, epochs, steps * repeats)
    with _loss(work, model, settings, teacher) as loss:
        fit(
            model,
            batches(work, settings, batch_size, teacher, first_epoch),
            steps,
            loss,
            _how(settings, epochs, rate),
            process,
            told.on_epoch,
            told.on_step,
            after_step=after_step,
            perturb=_attack(work, settings, seed) if attacked else None,
            repeats=repeats,
        )


@dataclass(frozen=True)
class _Told:
    """What the host and the curve are told of a training; `steps` are those of an epoch."""

    work: Work
    name: str
    model: nn.Module
    precision: str
    first_epoch: int
    epochs: int
    steps: int

    def on_epoch(self, epoch: int, mean_loss: float) -> float:
        score = val_accuracy(self.work, self.model, self.precision)
        point = {"stage": self.name, "epoch": self.first_epoch + epoch, "loss": mean_loss, "val_accuracy": score}
        self.work.curve.append(point)
        self.work.host.progress({**point, "epochs": self.first_epoch + self.epochs})
        return score

    def on_step(self, step: int) -> None:
        if step % _STEPS_PER_REPORT == 0:
            epoch, place = divmod(step, self.steps)
            told = {"epoch": self.first_epoch + epoch, "epochs": self.first_epoch + self.epochs}
            self.work.host.progress({"stage": self.name, **told, "step": place, "steps": self.steps})


def val_accuracy(work: Work, model: nn.Module, precision: str) -> float:
    """Accuracy of a training graph on the validation split."""
    shares = work.material.val.ordered(_EVAL_BATCH, work.process.rank, work.process.world_size)
    return accuracy(model, shares, precision, work.process)


def _how(settings: TrainingSettings, epochs: int, rate: float) -> Fit:
    fields = settings.model_dump(exclude={"epochs", "learning_rate", "batch_size", "label_smoothing", "augmentation"})
    return Fit(epochs=epochs, learning_rate=rate, **fields)


def batches(work: Work, settings: TrainingSettings, batch_size: int, teacher: Network | None, first_epoch: int = 0) -> Batches:
    """This rank's batches of an epoch, with the teacher's logits where a loss reads them and they can be kept."""
    process, distillation = work.process, work.recipe.distillation
    fields = {"augmentation", "precision", "channels_last", "accumulation"}
    view_settings = {"batch_size": batch_size, **settings.model_dump(include=fields)}

    def of_epoch(epoch: int) -> Any:
        seed = derived_seed(work.order.sweep_seed, first_epoch + epoch)

        def view() -> Any:
            return work.material.train.epoch(batch_size, seed, process.rank, process.world_size, settings.augmentation)

        if teacher is None or distillation.feature_weight > 0.0:
            return view()
        key = work.key("lessons", {**view_settings, "seed": seed}, [teacher.key])

        def ask(number: int) -> None:
            work.host.progress({"stage": "lessons", "epoch": first_epoch + epoch, "step": number})

        how = settings.precision, settings.accumulation
        return lessons(work.workshop.store, key, process, teacher.model, view, *how, ask)

    return of_epoch


def _loss(
    work: Work, model: nn.Module, settings: TrainingSettings, teacher: Network | None
) -> AbstractContextManager[Callable[..., Tensor]]:
    """The recipe's loss for training `model`, while the context lasts."""
    how = work.recipe.distillation
    weight = 0.0 if teacher is None else how.weight
    loss = make_loss(how.method, weight, how.temperature, how.beta, settings.label_smoothing)
    if teacher is None or how.feature_weight == 0.0:
        return nullcontext(loss)
    return attention_transfer(model, teacher.model, work.example(), how.feature_weight, loss)


def _attack(work: Work, settings: TrainingSettings, seed: int) -> Perturb | None:
    """The recipe's adversary. Ranks draw from generators of their own, as they hold images of their own."""
    how, normalizer = work.recipe.adversarial, work.material.normalizer
    generator = torch.Generator().manual_seed(derived_seed(seed, "attack", work.process.rank))
    constants = normalizer.scale, normalizer.offset
    attack = make_perturbation(how.method, how.epsilon, how.steps, how.step_size, *constants, generator, settings.precision)
    if attack is None or how.method == "free":  # whose gradient is the step's own, by which quantizers learn
        return attack

    def attack_through(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with straight_through(image_quantizers(model)):
            return attack(model, images, labels)

    return attack_through
