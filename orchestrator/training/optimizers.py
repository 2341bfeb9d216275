"""Optimizers by name. Norms, biases and step sizes are never decayed; some optimizers see every weight as a matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from orchestrator.training.loop import Fit

Group = dict[str, Any]
Part = tuple[Callable[[list[Group]], torch.optim.Optimizer], list[Group]]

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def make_optimizer(model: nn.Module, how: Fit) -> torch.optim.Optimizer:
    """The optimizer of `how.optimizer`, with its rate, momentum and weight decay.

    "sgd": Nesterov's momentum; the decay is L2, part of the gradient.
    "adamw": Loshchilov and Hutter 2019; here and below the decay is decoupled: weights shrink by rate * decay a step.
    "adafactor": Shazeer and Stern 2018; the rate is relative to a weight's size, a convolution is factored as one matrix.
    "muon": Jordan et al. 2024 with the rate's scale of Liu et al. 2025, section 2.2, so that it is AdamW's; AdamW takes what is
    no hidden matrix: vectors, embeddings and the classifier.

    Raises:
        ValueError: another name.
    """
    decayed, spared = split_parameters(model)
    plain: Group = {"params": spared, "weight_decay": 0.0}
    groups = [{"params": decayed, "weight_decay": how.weight_decay}, plain]
    match how.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr=how.learning_rate, momentum=how.momentum, nesterov=how.momentum > 0)
        case "adamw":
            return torch.optim.AdamW(groups, lr=how.learning_rate)
        case "adafactor":
            return OnMatrices([(torch.optim.Adafactor, groups)], how.learning_rate)
        case "muon":
            hidden = {id(matrix) for matrix in hidden_matrices(model, decayed)}
            muon = {"params": [p for p in decayed if id(p) in hidden], "weight_decay": how.weight_decay}
            others = {"params": [p for p in decayed if id(p) not in hidden], "weight_decay": how.weight_decay}

            def make_muon(groups: list[Group]) -> torch.optim.Optimizer:
                return torch.optim.Muon(groups, momentum=how.momentum, adjust_lr_fn="match_rms_adamw")

            return OnMatrices([(make_muon, [muon]), (torch.optim.AdamW, [others, plain])], how.learning_rate)
    raise ValueError(f"optimizer must be sgd, adamw, adafactor or muon; given {how.optimizer!r}")


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters to decay, and those to spare: norms, biases, and whatever else has one axis that is longer than one."""
    norms = {id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters(recurse=False)}
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        # A scale per channel may come as (C, 1, 1), and a table of biases as a matrix.
        vector = parameter.ndim < 2 or (parameter.ndim > 2 and parameter.numel() == max(parameter.shape))
        spare = vector or id(parameter) in norms or "bias" in name.rpartition(".")[2]
        (spared if spare else decayed).append(parameter)
    return decayed, spared


def hidden_matrices(model: nn.Module, decayed: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The weights that turn features into features: all but the last (the classifier), embeddings and single rows."""
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return [parameter for parameter in decayed[:-1] if id(parameter) not in embeddings and len(parameter) > 1]


def as_matrix(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor (O, ...) as (O, rest), with the rest in the order in which it lies in the memory of `like`; a vector as it is.

    A view wherever `tensor` lies in memory as `like` does, channels last or not. Which order it is does not matter to
    an optimizer: neither orthogonalization nor sums over rows and columns know one.
    """
    if like.ndim < 2:
        return tensor.detach()
    order = sorted(range(1, like.ndim), key=lambda axis: like.stride()[axis], reverse=True)
    return tensor.detach().permute(0, *order).flatten(1)


class OnMatrices(torch.optim.Optimizer):
    """Optimizers that see each weight as a matrix, one row per output channel, behind the interface of one.

    `param_groups` holds the model's own parameters: whoever scales, clips or clears gradients or sets rates deals with those.
    At each step the optimizers inside get views of them that share their storage.

    Args:
        parts: what makes an optimizer of groups, and its groups; a group has "params" and "weight_decay".
        rate: of all groups, until it is set.
    """

    def __init__(self, parts: Sequence[Part], rate: float) -> None:
        super().__init__([dict(group) for _, groups in parts for group in groups], {"lr": rate})
        self._inside = [make([_viewed(group) for group in groups]) for make, groups in parts]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every optimizer inside."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        inside = [group for optimizer in self._inside for group in optimizer.param_groups]
        pairs = list(zip(self.param_groups, inside, strict=True))
        for group, views in pairs:
            views.update({name: value for name, value in group.items() if name != "params"})
            for parameter, view in zip(group["params"], views["params"], strict=True):
                _show(parameter, view)
        for optimizer in self._inside:
            optimizer.step()
            optimizer.zero_grad()  # or the views would keep the gradients' memory
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of the optimizers inside."""
        return {"inside": [optimizer.state_dict() for optimizer in self._inside]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, rates included."""
        for optimizer, state in zip(self._inside, state_dict["inside"], strict=True):
            optimizer.load_state_dict(state)
        inside = [group for optimizer in self._inside for group in optimizer.param_groups]
        for group, views in zip(self.param_groups, inside, strict=True):
            group.update({name: views[name] for name in group if name != "params"})


def _viewed(group: Group) -> Group:
    return {**group, "params": [as_matrix(parameter, parameter) for parameter in group["params"]]}


def _show(parameter: Tensor, view: Tensor) -> None:
    """Let a view look at a parameter's storage, wherever it lies now, and at its gradient."""
    view.data = as_matrix(parameter, parameter)
    assert view.data_ptr() == parameter.data_ptr(), "a weight must be dense, or its matrix would be a copy"
    view.grad = None if parameter.grad is None else as_matrix(parameter.grad, parameter)
