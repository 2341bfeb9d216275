"""Train a network, and judge it. The same code alone and under DDP, dense, pruned or fake-quantized."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from orchestrator.training.checkpoint import Checkpoint, check_tensors, load_tensors, tensors_of
from orchestrator.training.losses import Losses
from orchestrator.training.optimizers import make_optimizer
from orchestrator.training.precision import arithmetic, loss_scaler
from orchestrator.training.process import Process, laid_out
from orchestrator.training.schedule import plateau_factor, plateau_patience, rate_factor

Loss = Callable[..., Tensor]
"""(images, logits, labels, *given) to a scalar, a mean over examples: a loss may look at the images again, as distillation may,
and at whatever else its batches bring (a teacher's logits, say)."""

Batches = Callable[[int], Iterable[tuple[Tensor, ...]]]
"""Epoch to this rank's batches of (images, labels, *given); all tensors have the batch in front."""

Perturb = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(network, images, labels) to the images to train on."""


@dataclass(frozen=True)
class Fit:
    """How to train; the fields are those of the recipe's training settings.

    Args:
        accumulation: a batch is taken in so many parts, as equal as can be, one after the other, and stepped once. The gradient
            is that of the whole batch; a batch norm sees the parts, and its statistics are theirs.
        compile: train through torch.compile. The parameters stay those of the plain model, which is what is judged.
    """

    epochs: int
    learning_rate: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_fraction: float = 0.0
    gradient_clip: float | None = None
    precision: str = "fp32"
    channels_last: bool = False
    accumulation: int = 1
    compile: bool = False


def fit(
    model: nn.Module,
    batches: Batches,
    steps_per_epoch: int,
    loss: Loss,
    how: Fit,
    process: Process,
    on_epoch: Callable[[int, float], float | None],
    on_step: Callable[[int], None] = lambda step: None,
    *,
    after_step: Callable[[], None] = lambda: None,
    perturb: Perturb | None = None,
    repeats: int = 1,
    after_epoch: Callable[[int, Callable[[], Checkpoint]], None] = lambda epoch, checkpoint: None,
    start: Checkpoint | None = None,
) -> None:
    """Train `model` in place.

    From a checkpoint it ends where it would have ended anyway, bit for bit, if `perturb` and `loss` carry nothing from epoch to
    epoch, draws are seeded where `batches` is called, and `on_epoch` shares the statistics, as `accuracy` does.

    Args:
        batches: called with each epoch's number, from 0, when it begins.
        steps_per_epoch: how many batches an epoch has.
        on_epoch: called on every rank with the epoch's number and its mean loss over all ranks; may raise to end training.
            Returns the validation score, the higher the better and the same on every rank, for "plateau".
        on_step: called on every rank before each step with its number, counted over all epochs; may raise as well.
        after_step: called after each step of the optimizer, on every rank.
        perturb: called once a step with the plain network (not DDP's), in training mode and outside autocast, and the whole
            batch. It must leave the weights' gradients alone (torch.autograd.grad). What it returns may require a gradient,
            and the step's own backward pass then leaves one there.
        repeats: how many steps each batch is used for; the schedule and `on_step` count them all.
        after_epoch: called last, on every rank, with what gives the checkpoint to go on from; may raise as well.
        start: a checkpoint that `check_start` takes, the same on every rank; epochs before it are not run again.

    Raises:
        DivergedError: on every rank, at most 20 steps after a loss that is not finite; `Losses` says when fp16 bears one.
        ValueError: "plateau" without a score.
    """
    training = _Training(model, loss, how, process, how.epochs * steps_per_epoch * repeats)
    for epoch in range(training.resume(start), how.epochs):
        training.begin(epoch)
        for batch in batches(epoch):
            for _ in range(repeats):
                on_step(training.num_steps)
                with process.permit():
                    training.step(batch, perturb)
                    after_step()
        training.judged(on_epoch(epoch, training.losses.mean()))
        after_epoch(epoch, functools.partial(training.checkpoint, epoch + 1))


def check_start(start: Checkpoint, model: nn.Module, how: Fit, num_steps: int) -> None:
    """Hold a checkpoint to the training that is to go on from it.

    Args:
        num_steps: of all epochs, repeats included.

    Raises:
        ValueError: it is of another network, of other settings, or of another number of steps.
    """
    if (given := start.facts.get("fit")) != asdict(how):
        raise ValueError(f"the training must be {asdict(how)}; the checkpoint's is {given}")
    if (total := start.facts.get("total")) != max(1, num_steps):
        raise ValueError(f"the training must have {num_steps} steps; the checkpoint's has {total}")
    check_tensors(start.tensors, model)


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str, process: Process) -> float:
    """Fraction of all ranks' examples that the training graph classifies rightly. Shares may differ in size.

    Every rank judges the network of rank 0, whose statistics of batch norms it takes over.
    """
    process.share_statistics(model)
    model.eval()
    counts = torch.zeros(2, dtype=torch.int64, device=process.device)
    for images, labels in batches:
        with process.permit(), torch.inference_mode(), arithmetic(precision, process.device):
            counts[0] += (model(images).argmax(1) == labels).sum()
            counts[1] += len(labels)
    right, total = process.summed(counts).tolist()
    return float(right / max(1, total))


class _Training:
    """A fit under way: the graph that trains, what changes its weights, and how far it is."""

    def __init__(self, model: nn.Module, loss: Loss, how: Fit, process: Process, total: int) -> None:
        self.model, self.loss, self.how, self.process = model, loss, how, process
        network = laid_out(model, channels_last=how.channels_last)
        self.graph = process.together(compiled(network) if how.compile else network)
        self.optimizer = make_optimizer(model, how)
        self.scaler = loss_scaler(how.precision, process.device)
        self.losses = Losses(process, model, scaled=self.scaler.is_enabled())
        self.num_steps, self.total = 0, max(1, total)
        self.scores: list[float] = []

    @property
    def progress(self) -> float:
        return min(self.num_steps / self.total, 1.0)

    def checkpoint(self, epochs: int) -> Checkpoint:
        """What is needed to go on after so many epochs."""
        facts = {
            "fit": asdict(self.how),
            "total": self.total,
            "epochs": epochs,
            "num_steps": self.num_steps,
            "scores": list(self.scores),
            "scaler": self.scaler.state_dict(),
            "bad_in_a_row": self.losses.bad_in_a_row,
            "training": self.model.training,
        }
        return Checkpoint(tensors_of(self.model, self.optimizer), facts)

    def resume(self, start: Checkpoint | None) -> int:
        """Be as the training was; returns how many epochs it had done."""
        if start is None:
            return 0
        load_tensors(self.model, self.optimizer, start.tensors)
        facts = start.facts
        if facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])
        self.num_steps, self.scores = facts["num_steps"], list(facts["scores"])
        self.losses.bad_in_a_row = facts["bad_in_a_row"]
        self.model.train(facts["training"])
        return int(facts["epochs"])

    def begin(self, epoch: int) -> None:
        self.graph.train()
        self.losses.begin(epoch)

    def step(self, batch: tuple[Tensor, ...], perturb: Perturb | None) -> None:
        """One step on a batch, part by part."""
        images, labels, *given = batch
        if perturb is not None:
            images = perturb(self.model, images, labels)
        self.set_rate()
        self.optimizer.zero_grad(set_to_none=True)
        parts = list(in_parts((images, labels, *given), self.how.accumulation))
        mean = torch.zeros((), device=self.process.device)
        for number, part in enumerate(parts, start=1):
            with self.synchronized(number == len(parts)):
                mean += self.backward(part, len(part[0]) / max(1, len(images)))
        if self.how.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.how.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.num_steps += 1
        self.losses.note(mean)

    def backward(self, part: tuple[Tensor, ...], share: float) -> Tensor:
        """Add the gradients of a part of a batch, and return its share of the batch's loss."""
        images, labels, *given = part
        with arithmetic(self.how.precision, self.process.device):
            value = self.loss(images, self.graph(images), labels, *given) * share
        self.scaler.scale(value).backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def synchronized(self, last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients once a step: with the last part, when they are all there."""
        if last or not isinstance(self.graph, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.graph.no_sync()

    def set_rate(self) -> None:
        how = self.how
        factor = rate_factor(how.schedule, self.progress, how.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = how.learning_rate * factor * plateau_factor(self.scores, plateau_patience(how.epochs))

    def judged(self, score: float | None) -> None:
        """Note an epoch's validation score, once the rate has reached its peak: nothing is a plateau while it rises."""
        if self.how.schedule != "plateau":
            return
        if score is None:
            raise ValueError("on_epoch must return the validation score when schedule is plateau; it returned None")
        if self.progress >= self.how.warmup_fraction:
            self.scores.append(score)


def compiled(model: nn.Module) -> nn.Module:
    """The same network through torch.compile, for fixed shapes; the parameters are shared."""
    torch.compiler.reset()  # or graphs of earlier trainings count against the limit, past which torch no longer compiles
    graph: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    return graph


def in_parts(batch: tuple[Tensor, ...], num: int) -> Iterator[tuple[Tensor, ...]]:
    """Cut all tensors of a batch into `num` parts that differ by at most one example; fewer where examples are fewer."""
    num = max(1, min(num, len(batch[0])))
    return zip(*(tensor.tensor_split(num) for tensor in batch), strict=True)
