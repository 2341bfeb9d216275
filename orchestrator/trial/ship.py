"""The stages that rank 0 does alone: write the file that ships, and measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from orchestrator.compression.folding import fold_norms
from orchestrator.compression.grids import split_off_grids
from orchestrator.compression.onnx_export import FromPixels, export_float, export_quantized
from orchestrator.measure.accuracy import classification
from orchestrator.measure.latency import call_latency_ms, pinned
from orchestrator.measure.runtime import Runtime
from orchestrator.measure.size import count_macs, count_parameters
from orchestrator.training.process import laid_out
from orchestrator.trial.work import Network, Work


def export(work: Work, network: Network, path: Path) -> dict[str, Any]:
    """Write the network as ONNX that maps pixels (N, C, H, W) in 0..255 to logits; returns what it has by counting."""
    model = laid_out(network.model.cpu().eval(), channels_last=False)
    example = torch.zeros(1, *work.material.shape)
    normalizer = work.material.normalizer
    wrap = FromPixels.of(normalizer.scale.cpu(), normalizer.offset.cpu())
    with work.process.permit():
        if work.recipe.quantization.method == "none":
            folded: nn.Module = fold_norms(model)
            export_float(wrap(folded), example, path)
        else:
            assert isinstance(model, fx.GraphModule)
            folded, grids = split_off_grids(model)
            export_quantized(wrap(folded), grids.below(FromPixels.NETWORK), example, path)
        return {"macs": count_macs(folded, example), "num_parameters": count_parameters(folded)}


def measure(work: Work, path: Path) -> dict[str, Any]:
    """Open the file as a server would, classify the validation split with it, and time single calls."""
    settings = work.recipe.measurement
    val = work.material.splits.val
    with work.process.permit():
        runtime = Runtime(path, settings.threads)
        images = val.images.astype(np.float32)
        quality = classification(runtime.logits(images), val.labels)
    one = np.ascontiguousarray(images[:1])
    with work.host.measuring(), pinned(settings.threads):
        median, tail = call_latency_ms(lambda: runtime(one), settings.rounds)
    return {
        **quality,
        "latency_ms": median,
        "latency_ms_p95": tail,
        "size_bytes": path.stat().st_size,
        "executor": f"{runtime.executor} {runtime.version}",
        "device": "cpu",
        "num_eval_samples": len(val),
    }


def weights_of(network: Network) -> dict[str, Tensor]:
    """The network's weights for `model.safetensors`."""
    return {name: value.detach().cpu().contiguous() for name, value in network.model.state_dict().items()}
