"""Quantization within a trial: how many bits each layer gets, and how that is remembered with its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from orchestrator.compression.fake_quantize import insert_quantizers
from orchestrator.compression.sensitivity import allocate_bits, bit_sensitivity, weight_sizes
from orchestrator.spec.recipe import QuantizationSettings
from orchestrator.trial.calibration import calibration_images
from orchestrator.trial.work import Work

_BITS = "weight_bits"


def layer_bits(work: Work, model: nn.Module) -> int | dict[str, int]:
    """Bits of the weights: one number, or by layer where the mean is to be shared by sensitivity."""
    settings = work.recipe.quantization
    if settings.allocation == "uniform":
        return settings.weight_bits
    scores: dict[str, dict[int, float]] = {}
    for images in calibration_images(work):
        with work.process.permit():
            more = bit_sensitivity(model, [images], granularity=settings.granularity)
        for name, by_bits in more.items():
            known = scores.setdefault(name, dict.fromkeys(by_bits, 0.0))
            scores[name] = {bits: known[bits] + len(images) * score for bits, score in by_bits.items()}
    found = allocate_bits(scores, weight_sizes(model), settings.weight_bits, settings.first_last_8bit)
    agreed: dict[str, int] = work.process.agreed(found)
    return agreed


def with_quantizers(model: nn.Module, settings: QuantizationSettings, bits: int | Mapping[str, int]) -> fx.GraphModule:
    """A copy of `model` with quantizers; bits by layer become part of its state."""
    quantized = insert_quantizers(model, bits, settings.activation_bits, settings.first_last_8bit, settings.granularity)
    if not isinstance(bits, int):
        quantized.register_buffer(_BITS, torch.tensor([bits[name] for name in weight_sizes(model)]))
    return quantized


def remembered_bits(model: nn.Module, state: Mapping[str, Tensor], uniform: int) -> int | dict[str, int]:
    """The bits that a stored network was made with."""
    if _BITS not in state:
        return uniform
    return dict(zip(weight_sizes(model), (int(number) for number in state[_BITS]), strict=True))
