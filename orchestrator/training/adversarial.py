"""Training on perturbed images: L-infinity attacks, and the hook that a training loop calls before a step.

Everything works on normalised images (B, C, H, W). A bound in pixels differs there from channel to channel, so sizes and ends
of the pixel range are tensors (1, C, 1, 1) in normalised units. While an attack looks for images the network is in evaluation
mode, so that no statistics move and nothing is dropped; its modes are put back after. Gradients come from torch.autograd.grad
on the bare network: no parameter's `.grad` is touched, and DDP's reducer sees no backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.training.loop import Perturb
from orchestrator.training.precision import arithmetic

# Wong et al. 2020: the best step size that they found; with longer steps networks overfit to the attack.
_FAST_STEP = 1.25
# Half precision holds nothing below 6e-8, where the gradients of a sure network lie. The sign does not see the factor.
_LOSS_SCALE = {"fp16": 1024.0}


def fgsm(
    model: nn.Module, images: Tensor, labels: Tensor, epsilon: Tensor, low: Tensor, high: Tensor, precision: str = "fp32"
) -> Tensor:
    """One step of size epsilon along the sign of the loss's gradient (Goodfellow et al. 2015, section 4).

    Args:
        images: normalised, float32 (B, C, H, W).
        labels: int64 (B,).
        epsilon: largest change (1, C, 1, 1), in normalised units.
        low, high: the pixel range (1, C, 1, 1), in normalised units.
        precision: of the forward pass: "fp32", "bf16" or "fp16".
    """
    return _climbed(model, images, images, labels, epsilon, epsilon, 1, low, high, precision)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: Tensor,
    step: Tensor,
    steps: int,
    low: Tensor,
    high: Tensor,
    generator: torch.Generator | None,
    precision: str = "fp32",
) -> Tensor:
    """Steps along the sign of the gradient, each projected back into the ball (Madry et al. 2018, section 2.1).

    Args:
        step: size of one step (1, C, 1, 1), in normalised units; the others are those of `fgsm`.
        generator: draws the uniform start within the ball, on its own device, so that one on the processor gives the same
            start on any; None starts from the images themselves.
    """
    start = images
    if generator is not None:
        unit = torch.rand(images.shape, generator=generator, device=generator.device).to(images)
        start = images + epsilon * (2 * unit - 1)
    return _climbed(model, images, start, labels, epsilon, step, steps, low, high, precision)


class Free:
    """Free adversarial training: one backward pass for weights and images (Shafahi et al. 2019, algorithm 1).

    The loop takes each batch `repeats` times, calls this before each of these steps with the whole batch as it was drawn, and
    steps on what it gets. That is a leaf which requires a gradient, so the step's own backward pass leaves the gradient for the
    images in it, taken at the same weights and of the same loss as the gradient for the weights. The next call reuses it: the
    perturbation moves by epsilon along its sign and is clipped to the ball. Nothing is ever recomputed, and the network is not
    called here. Batch norms see every repeat, as they see any step. The perturbation starts at zero and is carried over from
    one batch to the next, as in the paper; it starts anew when the size of the batch changes.
    """

    def __init__(self, epsilon: Tensor, low: Tensor, high: Tensor, repeats: int) -> None:
        self._epsilon, self._low, self._high, self._repeats = epsilon, low, high, repeats
        self._perturbation = torch.zeros(0)
        self._stepped_on = torch.zeros(0)
        self._batch = torch.zeros(0)
        self._calls = 0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if self._calls % self._repeats == 0:
            self._batch = images
        assert images.data_ptr() == self._batch.data_ptr(), "free training takes the whole batch `repeats` times"
        self._calls += 1
        if (gradient := self._stepped_on.grad) is not None:
            moved = self._perturbation + self._epsilon * gradient.sign()
            self._perturbation = torch.clamp(moved, -self._epsilon, self._epsilon)
        if self._perturbation.shape != images.shape:
            self._perturbation = torch.zeros_like(images)
        perturbed = torch.clamp(images.detach() + self._perturbation, self._low, self._high)
        self._stepped_on = perturbed.requires_grad_()
        return self._stepped_on


def make_perturbation(
    method: str,
    epsilon: float,
    steps: int,
    step_size: float,
    scale: Tensor,
    offset: Tensor,
    generator: torch.Generator,
    precision: str = "fp32",
) -> Perturb | None:
    """What a training loop calls, outside autocast, with the network, normalised images and labels; None for "none".

    It gives images of the same shape, type and layout.

    Args:
        method: "none"; "fgsm"; "pgd" with `steps` steps of `step_size`; "fast": one step of 1.25 epsilon from a random start
            (Wong et al. 2020, algorithm 3); "free": see `Free`, the loop repeats every batch `steps` times.
        epsilon, step_size: fractions of the pixel range; "pgd" alone reads `step_size`.
        scale, offset: (1, C, 1, 1) with `normalised = pixels * scale + offset` for pixels in 0..255, on the images' device.
        generator: draws the starts of "pgd" and "fast"; ranks of a gang need seeds of their own.
        precision: of the attack's forward passes: "fp32", "bf16" or "fp16".

    Raises:
        ValueError: there is no such method.
    """
    span = 255.0 * scale
    size, low, high = epsilon * span, offset, span + offset
    match method:
        case "none":
            return None
        case "fgsm":
            return lambda model, images, labels: fgsm(model, images, labels, size, low, high, precision)
        case "pgd":
            return lambda model, images, labels: pgd(
                model, images, labels, size, step_size * span, steps, low, high, generator, precision
            )
        case "fast":
            return lambda model, images, labels: pgd(
                model, images, labels, size, _FAST_STEP * size, 1, low, high, generator, precision
            )
        case "free":
            return Free(size, low, high, steps)
    raise ValueError(f"method must be none, fgsm, pgd, fast or free; given {method!r}")


@contextlib.contextmanager
def straight_through(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let gradients pass through `modules` as if they were not there; what comes out of them stays the same to the last bit.

    For the quantizers that images pass before any layer. Black and white pixels lie on the ends of their range, where the
    gradient that trains a quantizer is zero: an attack would leave these pixels alone, and a network would look robust because
    it is quantized (gradient masking; Athalye et al. 2018, section 4.1, whose remedy this is).
    """

    def passed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.detach() + (inputs[0] - inputs[0].detach())

    handles = [module.register_forward_hook(passed) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _climbed(
    model: nn.Module,
    images: Tensor,
    start: Tensor,
    labels: Tensor,
    epsilon: Tensor,
    step: Tensor,
    steps: int,
    low: Tensor,
    high: Tensor,
    precision: str,
) -> Tensor:
    """Images of a larger loss, inside both the ball around `images` and the pixel range."""
    images = images.detach()
    floor, ceiling = torch.maximum(images - epsilon, low), torch.minimum(images + epsilon, high)
    found = torch.clamp(start.detach(), floor, ceiling)
    bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    with _still(bare):
        for _ in range(steps):
            found = torch.clamp(found + step * _gradient(bare, found, labels, precision).sign(), floor, ceiling)
    return found


def _gradient(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> Tensor:
    """Of the cross-entropy, by the images. Summed, so that an example's gradient does not depend on its batch."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        with arithmetic(precision, images.device):
            logits = model(leaf)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum") * _LOSS_SCALE.get(precision, 1.0)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


@contextlib.contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """The network in evaluation mode, and each of its modules in the mode it had, after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
