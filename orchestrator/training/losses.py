"""The losses of a training: their mean over an epoch, and the end of it all when something is no longer finite."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from orchestrator.errors import DivergedError
from orchestrator.training.process import Process

# Steps between two looks: a look waits for the device and for the other ranks.
LOOK_EVERY = 20


class Losses:
    """Losses stay on the device; every 20 steps, and when an epoch ends, all ranks look at them together and decide alike.

    Args:
        model: what trains; its weights and statistics are looked at when an epoch ends.
        scaled: whether losses are scaled. A step whose gradients overflowed was then skipped, and a loss that was not finite
            is left out of the mean, unless the network was harmed, or 20 losses in a row or all of an epoch were like that.

    `bad_in_a_row` is how many losses up to now were like that; it alone goes on from epoch to epoch.
    """

    def __init__(self, process: Process, model: nn.Module, *, scaled: bool) -> None:
        self._process, self._scaled = process, scaled
        tensors = [tensor.detach() for tensor in itertools.chain(model.parameters(), model.buffers())]
        # A mask may be infinite by design.
        self._finite = [tensor for tensor in tensors if tensor.is_floating_point() and bool(tensor.isfinite().all())]
        self._recent = torch.zeros(LOOK_EVERY, device=process.device)
        self.bad_in_a_row = 0
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Start an epoch."""
        self._epoch, self._steps, self._looked_at = epoch, 0, 0
        self._total, self._num_finite = 0.0, 0

    def note(self, loss: Tensor) -> None:
        """Keep a step's loss (a scalar on the device).

        Raises:
            DivergedError: on every rank, when this is a step to look after and one of the losses was not finite.
        """
        self._recent[self._steps - self._looked_at] = loss
        self._steps += 1
        if self._steps - self._looked_at == LOOK_EVERY:
            self._look()

    def mean(self) -> float:
        """Mean over the epoch's steps and all ranks, 0 of none.

        Raises:
            DivergedError: on every rank.
        """
        self._look()
        if self._steps and not self._num_finite:
            raise self._diverged(math.nan, self._steps - 1)
        if not self._network_is_finite():
            raise DivergedError(f"weights must stay finite; they were not after epoch {self._epoch}: lower the learning rate")
        return self._total / max(1, self._num_finite)

    def _look(self) -> None:
        recent = self._recent[: self._steps - self._looked_at]
        values = (self._process.summed(recent) / self._process.world_size).tolist() if len(recent) else []
        first_bad = None
        for step, value in enumerate(values, start=self._looked_at):
            if math.isfinite(value):
                self._total, self._num_finite, self.bad_in_a_row = self._total + value, self._num_finite + 1, 0
                continue
            self.bad_in_a_row += 1
            first_bad = first_bad or (value, step)
            if not self._scaled or self.bad_in_a_row >= LOOK_EVERY:
                raise self._diverged(value, step)
        if first_bad and not self._network_is_finite():
            raise self._diverged(*first_bad)
        self._looked_at = self._steps

    def _network_is_finite(self) -> bool:
        """Asked of all ranks: statistics of batch norms are each rank's own."""
        num_bad = sum((~tensor.isfinite().all() for tensor in self._finite), torch.zeros((), device=self._process.device))
        return float(self._process.summed(num_bad)) == 0.0

    def _diverged(self, value: float, step: int) -> DivergedError:
        where = f"epoch {self._epoch}, step {step}"
        return DivergedError(f"loss must stay finite; it was {value} in {where}: lower the learning rate")
