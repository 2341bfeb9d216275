"""Training within a trial: the recipe's loss, batches and attack joined to the kit's loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.compression.distillation import attention_transfer, make_loss
from orchestrator.compression.fake_quantize import image_quantizers
from orchestrator.spec.recipe import TrainingSettings
from orchestrator.training.adversarial import make_perturbation, straight_through
from orchestrator.training.checkpoint import Checkpoint, Keeper, unpacked
from orchestrator.training.loop import Batches, Fit, Perturb, accuracy, check_start, fit
from orchestrator.training.process import seeded
from orchestrator.trial.lessons import lessons
from orchestrator.trial.order import derived_seed
from orchestrator.trial.shelf import keep_checkpoint
from orchestrator.trial.work import Network, Work

_EVAL_BATCH = 512
_CHECKPOINT = "checkpoint.safetensors"
# Between two checkpoints on disk: little to lose, and a ResNet-20 whose epochs take half a second does not wait for the disk.
_SECONDS_BETWEEN = 10.0


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
    """Train `model` in place with the recipe's loss, and note its curve; go on where the same training was cut short.

    A stage that trains several times has checkpoints of its first training alone: what the others began with hangs on it.

    Args:
        name: of the stage; the teacher alone is trained on clean images whatever the recipe says of adversaries.
        seed: of the stage, from which all draws follow.
        first_epoch: from which epochs are counted, where a stage trains several times.
        after_step: called after each step of the optimizer.
    """
    work.check(model, name)
    if teacher is not None:
        work.check(teacher.model, "teacher")
    how, draws = _how(settings, epochs, rate), _Draws(work, settings, seed, first_epoch)
    process, adversarial = work.process, work.recipe.adversarial
    batch_size = min(settings.batch_size, len(work.material.train) // process.world_size * process.world_size)
    attacked = adversarial.method != "none" and name != "teacher"
    repeats = adversarial.steps if attacked and adversarial.method == "free" else 1
    steps = len(work.material.train) // batch_size
    keeper = _keeper(work) if epochs and not first_epoch else None
    told = _Told(work, name, model, settings.precision, first_epoch, epochs, steps * repeats, keeper)
    with seeded(seed), _loss(work, model, settings, teacher) as loss, keeper or nullcontext():
        fit(
            model,
            draws.at_each(batches(work, settings, batch_size, teacher, first_epoch)),
            steps,
            loss,
            how,
            process,
            told.on_epoch,
            told.on_step,
            after_step=after_step,
            perturb=draws.perturb if attacked else None,
            repeats=repeats,
            after_epoch=told.after_epoch,
            start=told.resumed(how),
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
    keeper: Keeper | None

    def resumed(self, how: Fit) -> Checkpoint | None:
        """Where to go on, with the curve up to there. What is damaged or another training's is left aside, with a note."""
        content = None if self.keeper is None else self.keeper.found()
        if content is None:
            return None
        try:
            start = unpacked(content)
            check_start(start, self.model, how, self.epochs * self.steps)
        except ValueError as error:
            self.work.host.progress({"stage": self.name, "note": f"begins anew, as its checkpoint is of no use: {error}"})
            return None
        self.work.curve += [{**point, "stage": self.name} for point in start.facts["curve"]]
        return start

    def on_epoch(self, epoch: int, mean_loss: float) -> float:
        score = val_accuracy(self.work, self.model, self.precision)
        point = {"stage": self.name, "epoch": self.first_epoch + epoch, "loss": mean_loss, "val_accuracy": score}
        self.work.curve.append(point)
        return score

    def after_epoch(self, epoch: int, checkpoint: Callable[[], Checkpoint]) -> None:
        """Keep the epoch before the host is asked: it may say that this was the last."""

        def with_curve() -> Checkpoint:
            plain = checkpoint()
            return Checkpoint(plain.tensors, {**plain.facts, "curve": self.work.curve[-(epoch + 1) :]})

        if self.keeper is not None:
            with self.work.process.permit():
                self.keeper.offer(with_curve)
        self.work.host.progress({**self.work.curve[-1], "epochs": self.first_epoch + self.epochs})

    def on_step(self, step: int) -> None:
        epoch, place = divmod(step, self.steps)
        told = {"epoch": self.first_epoch + epoch, "epochs": self.first_epoch + self.epochs}
        self.work.host.step({"stage": self.name, **told, "step": place, "steps": self.steps})


class _Draws:
    """All that a training draws, seeded anew for each epoch: nothing depends on the epochs before but through the weights.

    So the perturbation that "free" carries from batch to batch starts at zero in each epoch.
    """

    def __init__(self, work: Work, settings: TrainingSettings, seed: int, first_epoch: int) -> None:
        self._work, self._settings, self._seed, self._first_epoch = work, settings, seed, first_epoch
        self._attack: Perturb | None = None

    def at_each(self, of_epoch: Batches) -> Batches:
        """The same batches, for which an epoch has to ask first."""

        def asked(epoch: int) -> Iterable[tuple[Tensor, ...]]:
            seed = derived_seed(self._seed, self._first_epoch + epoch)
            torch.manual_seed(seed)
            self._attack = _attack(self._work, self._settings, seed)
            return of_epoch(epoch)

        return asked

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        assert self._attack is not None
        return self._attack(model, images, labels)


def _keeper(work: Work) -> Keeper | None:
    """What keeps the checkpoints of the stage that is being made."""
    if work.under_way is None:
        return None
    return Keeper(work.under_way / _CHECKPOINT, work.process, keep_checkpoint, _SECONDS_BETWEEN)


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
