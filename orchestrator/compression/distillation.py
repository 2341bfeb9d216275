"""Distillation is a loss, not a step of its own kind: recovery after pruning and quantization-aware training use it too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.errors import UnbuildableError

Loss = Callable[..., Tensor]
"""(images, logits, labels, *given) to a scalar; `given` is what the batches bring beside labels."""

Size = tuple[int, int]


def make_loss(method: str, weight: float, temperature: float, beta: float, label_smoothing: float = 0.0) -> Loss:
    """The loss of a training stage: labels alone, or labels and the logits that a teacher gives for the same images.

    Args:
        method: "hinton" or "decoupled"; nothing below but `label_smoothing` is read where `weight` is 0.
        weight: of the teacher, in [0, 1].
        temperature: at least 1.
        beta: "decoupled": weight of the classes that are not the label's.

    Returns:
        A loss whose first `given` is the teacher's logits (B, C), float32, where `weight` is above 0.
    """
    if weight == 0.0:
        return lambda images, logits, labels, *given: label_loss(logits, labels, label_smoothing)
    match method:
        case "hinton":
            return lambda images, logits, labels, teacher, *given: distillation_loss(
                logits, labels, teacher, weight, temperature, label_smoothing
            )
        case "decoupled":
            return lambda images, logits, labels, teacher, *given: decoupled_loss(
                logits, labels, teacher, weight, temperature, beta, label_smoothing
            )
    raise ValueError(f"method must be hinton or decoupled; given {method!r}")


def label_loss(logits_BC: Tensor, labels_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in float32."""
    return F.cross_entropy(logits_BC.float(), labels_B, label_smoothing=label_smoothing)


def distillation_loss(
    logits_BC: Tensor,
    labels_B: Tensor,
    teacher_logits_BC: Tensor,
    weight: float,
    temperature: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Hinton, Vinyals, Dean 2015, section 2.

    `(1 - weight) * CE(labels) + weight * T^2 * KL(teacher_T || student_T)`; T^2 keeps the gradients' size over temperatures.
    Computed in float32 whatever the logits' precision.
    """
    logits, teacher = logits_BC.float() / temperature, teacher_logits_BC.float() / temperature
    soft = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(teacher, 1), reduction="batchmean", log_target=True)
    return (1 - weight) * label_loss(logits_BC, labels_B, label_smoothing) + weight * temperature**2 * soft


def decoupled_loss(
    logits_BC: Tensor,
    labels_B: Tensor,
    teacher_logits_BC: Tensor,
    weight: float,
    temperature: float,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Zhao et al. 2022, "Decoupled Knowledge Distillation", equation 7 with alpha 1.

    `(1 - weight) * CE(labels) + weight * T^2 * (TCKD + beta * NCKD)`, averaged over examples. Computed in float32.
    """
    target, others = decoupled_parts(logits_BC, labels_B, teacher_logits_BC, temperature)
    soft = (target + beta * others).mean()
    return (1 - weight) * label_loss(logits_BC, labels_B, label_smoothing) + weight * temperature**2 * soft


def decoupled_parts(
    logits_BC: Tensor, labels_B: Tensor, teacher_logits_BC: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The two divergences that Hinton's is made of (section 3.1), each float32 (B,) and without T^2.

    TCKD is that of (label, not label), NCKD that of the other classes among themselves. With p_t the teacher's probability of
    the label, Hinton's is `TCKD + (1 - p_t) * NCKD` (equation 6): a sure teacher silences what it knows of the others.
    """
    mine, my_others = _split_at_label(logits_BC.float() / temperature, labels_B)
    theirs, their_others = _split_at_label(teacher_logits_BC.float() / temperature, labels_B)
    return _divergence(theirs, mine), _divergence(their_others, my_others)


def _split_at_label(logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the probabilities of (label, not label), (B, 2), and of the others among themselves, (B, C - 1)."""
    label_B1 = labels_B[:, None]
    places = torch.arange(logits_BC.shape[1] - 1, device=logits_BC.device)[None]
    # Gathered rather than masked: a masked class is minus infinity in both networks, and their difference not a number.
    others = F.log_softmax(logits_BC, 1).gather(1, places + (places >= label_B1))
    rest = others.logsumexp(1, keepdim=True)
    label = F.log_softmax(logits_BC, 1).gather(1, label_B1)
    return torch.cat([label, rest], 1), others - rest


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of each row of log-probabilities."""
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def teacher_inside(teacher: nn.Module, loss: Loss) -> Loss:
    """`loss` with a frozen teacher that runs in every step on the step's own images, for when its logits are not given."""
    teacher.eval().requires_grad_(False)

    def taught(images: Tensor, logits: Tensor, labels: Tensor, *given: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher(images).float()
        return loss(images, logits, labels, teacher_logits)

    return taught


@contextlib.contextmanager
def attention_transfer(
    student: nn.Module, teacher: nn.Module, example_BCHW: Tensor, feature_weight: float, loss: Loss
) -> Iterator[Loss]:
    """`loss` plus attention transfer at the ends of stages (Zagoruyko and Komodakis 2017, section 3.1, equation 2).

    While the context lasts, both networks are watched where they last have each spatial size; sizes that only one of them has
    are left out. Nothing of it can be kept: the teacher runs in every step, and its logits are given to `loss` as well.
    Each call of the loss must follow the student's forward pass on the same images.

    Args:
        feature_weight: of the distances' sum. The authors take 1000.

    Raises:
        UnbuildableError: no spatial size larger than 1 x 1 is common to both.
    """
    ends, teacher_ends = stage_ends(student, example_BCHW), stage_ends(teacher, example_BCHW)
    sizes = [size for size in ends if size in teacher_ends]
    if not sizes:
        given = f"{_listed(ends)} in the student and {_listed(teacher_ends)} in the teacher"
        raise UnbuildableError(f"feature matching needs feature maps of one size in both networks; there are {given}")
    taught = teacher_inside(teacher, loss)
    with _watched(ends) as mine, _watched(teacher_ends) as theirs:

        def transferring(images: Tensor, logits: Tensor, labels: Tensor, *given: Tensor) -> Tensor:
            total = taught(images, logits, labels)
            for size in sizes:
                total = total + feature_weight * attention_distance(mine.pop(size), theirs.pop(size))
            return total

        yield transferring


def attention_distance(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Squared difference of two attention maps, averaged over examples and positions as the authors' program does."""
    return F.mse_loss(attention_map(student_BCHW), attention_map(teacher_BCHW))


def attention_map(features_BCHW: Tensor) -> Tensor:
    """Where a layer looks: squares summed over channels, as float32 rows (B, H * W) of length 1."""
    return F.normalize(features_BCHW.float().square().sum(1).flatten(1), dim=1)


def stage_ends(model: nn.Module, example_BCHW: Tensor) -> dict[Size, nn.Module]:
    """The module that last puts out a feature map of each spatial size larger than 1 x 1, in order of first appearance."""
    ends: dict[Size, nn.Module] = {}

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if (size := _map_size(output)) is not None:
            ends[size] = module

    # What computes a weight (a parametrization) puts out kernels, which look like feature maps.
    watched = [module for name, module in model.named_modules() if "parametrizations" not in name.split(".")]
    with contextlib.ExitStack() as stack:
        for module in watched:
            stack.callback(module.register_forward_hook(note).remove)
        _evaluated(model, example_BCHW)
    return ends


@contextlib.contextmanager
def _watched(ends: Mapping[Size, nn.Module]) -> Iterator[dict[Size, Tensor]]:
    """Feature maps of the latest forward pass, by size."""
    maps: dict[Size, Tensor] = {}

    def note(module: nn.Module, inputs: object, output: object) -> None:
        size = _map_size(output)
        if size is not None and ends.get(size) is module:
            assert isinstance(output, Tensor)
            maps[size] = output

    with contextlib.ExitStack() as stack:
        for module in set(ends.values()):
            stack.callback(module.register_forward_hook(note).remove)
        yield maps


def check_classes(model: nn.Module, num_classes: int, example_BCHW: Tensor, role: str) -> None:
    """Hold a network to the data's classes: student and teacher must agree on them, and a loss would not always notice.

    Raises:
        UnbuildableError: `model` does not map the example to logits (B, num_classes), or to anything.
    """
    try:
        shape = tuple(_evaluated(model, example_BCHW).shape)
    except torch.OutOfMemoryError:
        raise  # says nothing about the network
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, AssertionError) as error:
        what = f"the {role} must take images of shape {tuple(example_BCHW.shape[1:])} and give one tensor"
        raise UnbuildableError(f"{what}: {type(error).__name__}: {error}") from error
    if shape != (len(example_BCHW), num_classes):
        wanted = (len(example_BCHW), num_classes)
        raise UnbuildableError(f"the {role} must give logits of shape {wanted}, one for each class; it gives {shape}")


def _evaluated(model: nn.Module, example_BCHW: Tensor) -> Tensor:
    """The model's output in evaluation mode, without a trace of it: norms learn nothing, and every mode is put back."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            output: Tensor = model.eval()(example_BCHW)
        return output
    finally:
        for module, training in modes.items():
            module.training = training


def _map_size(output: object) -> Size | None:
    """Height and width of a feature map (B, C, H, W); None for anything else, and for 1 x 1, where one looks nowhere."""
    if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[2:].numel() == 1:
        return None
    return output.shape[2], output.shape[3]


def _listed(ends: Mapping[Size, nn.Module]) -> str:
    return ", ".join(f"{height} x {width}" for height, width in ends) or "none"
