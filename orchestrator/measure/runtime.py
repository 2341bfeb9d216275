"""ONNX Runtime, on the processor, with a fixed number of threads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FloatImages = npt.NDArray[np.float32]
_BATCH = 256


class Runtime:
    """A model file, opened as a server would open it.

    Args:
        path: an ONNX file with one input (N, C, H, W) and one output (N, classes).
        threads: of the session; 1 makes results and timings repeatable.
    """

    executor = "onnxruntime"

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.version: str = onnxruntime.__version__
        self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input: str = self._session.get_inputs()[0].name

    def logits(
        self,
        images: npt.NDArray[Any],
        permit: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> npt.NDArray[np.float32]:
        """Logits (N, classes) of images (N, C, H, W), bytes or floats, a batch at a time, each inside `permit()`."""
        parts = []
        for start in range(0, len(images), _BATCH):
            with permit():
                parts.append(self(images[start : start + _BATCH].astype(np.float32)))
        return np.concatenate(parts)

    def __call__(self, images: FloatImages) -> npt.NDArray[np.float32]:
        output: npt.NDArray[np.float32] = self._session.run(None, {self._input: images})[0]
        return output
