"""The stages that rank 0 does alone: write the file that ships, and measure it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from orchestrator.compression.fake_quantize import image_quantizers
from orchestrator.compression.folding import fold_norms
from orchestrator.compression.grids import split_off_grids
from orchestrator.compression.onnx_export import FromPixels, export_float, export_program, export_quantized
from orchestrator.measure.accuracy import classification
from orchestrator.measure.audit import agreement, explanation_similarity, flip_rate
from orchestrator.measure.latency import call_latency_ms, pinned
from orchestrator.measure.robustness import adversarial_images
from orchestrator.measure.runtime import Runtime
from orchestrator.measure.size import count_macs, count_parameters
from orchestrator.training.adversarial import make_perturbation, straight_through
from orchestrator.training.precision import drift
from orchestrator.training.process import laid_out
from orchestrator.trial.order import derived_seed
from orchestrator.trial.work import Network, Work

_EVAL_BATCH = 256
_ATTACK_BATCH = 64  # attacks hold the machine for many passes at a time
_DRIFT_BATCHES = 4  # on which the arithmetic of training is held against fp32


def export(work: Work, network: Network, folder: Path) -> dict[str, Any]:
    """Write the network as ONNX that maps pixels (N, C, H, W) in 0..255 to logits; returns what it has by counting.

    `model.onnx`, and `model.pt2` where the recipe asks for torch.export's format.
    """
    model = laid_out(network.model.cpu().eval(), channels_last=False)
    example = torch.zeros(1, *work.material.shape)
    normalizer = work.material.normalizer
    wrap = FromPixels.of(normalizer.scale.cpu(), normalizer.offset.cpu())
    with work.process.permit():
        if work.recipe.quantization.method == "none":
            folded: nn.Module = fold_norms(model)
            export_float(wrap(folded), example, folder / "model.onnx")
        else:
            assert isinstance(model, fx.GraphModule)
            folded, grids = split_off_grids(model)
            export_quantized(wrap(folded), grids.below(FromPixels.NETWORK), example, folder / "model.onnx")
        if work.recipe.export.torch_export:
            export_program(wrap(model), example, folder / "model.pt2")
        return {
            "macs": count_macs(folded, example),
            "num_parameters": count_parameters(folded),
            "sparsity": _sparsity(folded),
        }


def measure(work: Work, network: Network, dense: Network, path: Path) -> dict[str, Any]:
    """Open the file as a server would, classify the validation split with it, and time single calls.

    Args:
        network: the graph that the file was written from.
        dense: the student before it was compressed.
    """
    settings = work.recipe.measurement
    val = work.material.splits.val
    runtime = Runtime(path, settings.threads)
    logits = runtime.logits(val.images, work.process.permit)
    judged = classification(logits, val.labels) | _audit(work, network, dense, runtime, logits)
    return {
        **judged,
        **call_latency(work, runtime, settings.rounds),
        "size_bytes": path.stat().st_size,
        "executor": f"{runtime.executor} {runtime.version}",
        "device": "cpu",
        "num_eval_samples": len(val),
    }


def call_latency(work: Work, runtime: Runtime, rounds: int, seconds: float | None = None) -> dict[str, float]:
    """Latency of single calls of an open file, alone on the machine: the median with its interval, and the 95th percentile."""
    one = np.ascontiguousarray(work.material.splits.val.images[:1], dtype=np.float32)
    with work.host.measuring(), pinned(work.recipe.measurement.threads):
        latency = call_latency_ms(lambda: runtime(one), rounds, seconds)
    return {
        "latency_ms": latency.median_ms,
        "latency_ms_p95": latency.p95_ms,
        "latency_ms_low": latency.low_ms,
        "latency_ms_high": latency.high_ms,
    }


def _audit(work: Work, network: Network, dense: Network, runtime: Runtime, logits: npt.NDArray[np.float32]) -> dict[str, float]:
    """What accuracy does not tell: the file against its graph, against the dense network, and against an adversary."""
    settings, precision = work.recipe.measurement, work.recipe.training.precision
    dense_logits = _dense_logits(work, dense)
    told = {
        "agreement": agreement(logits, _logits(work, network.model)),
        "flip_rate": flip_rate(logits, dense_logits),
    }
    few = list(itertools.islice(work.material.val.ordered(_EVAL_BATCH), _DRIFT_BATCHES))  # decoded before the permit is held
    with work.process.permit():
        told["precision_drift"] = drift(network.model, few, precision, work.process.device)
    if settings.num_explained:
        images, _ = next(work.material.val.ordered(settings.num_explained))
        targets = torch.from_numpy(dense_logits[: len(images)].argmax(1)).to(images.device)
        with work.process.permit(), straight_through(image_quantizers(network.model)):
            told["explanation_similarity"] = explanation_similarity(dense.model, network.model, images, targets)
    if settings.attack is not None:
        told["robust_accuracy"] = _robust_accuracy(work, network, runtime)
    return told


def _robust_accuracy(work: Work, network: Network, runtime: Runtime) -> float:
    """Accuracy of the file on images that PGD found on its graph."""
    how, normalizer, val = work.recipe.measurement.attack, work.material.normalizer, work.material.val
    assert how is not None
    generator = torch.Generator().manual_seed(derived_seed(work.order.sweep_seed, "robust accuracy"))
    constants = normalizer.scale, normalizer.offset
    attack = make_perturbation("pgd", how.epsilon, how.steps, how.step_size, *constants, generator)
    assert attack is not None

    def permitted(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with work.process.permit():
            return attack(model, images, labels)

    pixels, labels = val.first(how.num_images)
    with straight_through(image_quantizers(network.model)):
        images = adversarial_images(
            network.model, permitted, pixels, labels, how.epsilon, *constants, how.num_images, _ATTACK_BATCH
        )
    logits = runtime.logits(images, work.process.permit)
    return classification(logits, labels.cpu().numpy())["accuracy"]


def _dense_logits(work: Work, dense: Network) -> npt.NDArray[np.float32]:
    """The dense network's logits, kept for the next trial that was cut from the same one."""
    if work.workshop.dense is None or work.workshop.dense[0] != dense.key:
        work.workshop.dense = dense.key, _logits(work, dense.model)
    return work.workshop.dense[1]


def _logits(work: Work, model: nn.Module) -> npt.NDArray[np.float32]:
    """Logits (N, classes) of a graph in float32 over the validation split."""
    model.to(work.process.device).eval()
    parts = []
    for images, _ in work.material.val.ordered(_EVAL_BATCH):
        with work.process.permit(), torch.inference_mode():
            parts.append(model(images).float().cpu())
    logits: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return logits


def _sparsity(model: nn.Module) -> float:
    """Fraction of the weights of layers that are zero."""
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return 1.0 - sum(int(weight.count_nonzero()) for weight in weights) / max(1, sum(weight.numel() for weight in weights))


def weights_of(network: Network) -> dict[str, Tensor]:
    """The network's weights for `model.safetensors`."""
    return {name: value.detach().cpu().contiguous() for name, value in network.model.state_dict().items()}
