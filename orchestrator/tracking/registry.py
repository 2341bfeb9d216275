"""A picked model as a registered version: loadable by `models:/name@alias`, with what it was measured at on its tags."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.results.store import Home
from orchestrator.tracking.connection import tracking_uri


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    version: str
    alias: str
    uri: str
    tracking_uri: str


def register(
    home: Home,
    uri: str | None,
    run_id: str,
    file: Path,
    shape: tuple[int, int, int],
    name: str,
    alias: str,
    tags: dict[str, str],
) -> Version:
    """Log a trial's ONNX file as a model of its run, register it as the next version of `name`, and point `alias` at it.

    Args:
        run_id: the trial's run.
        shape: of one image (C, H, W), for the signature: pixels float32 (N, C, H, W) in, logits float32 (N, classes) out.
    """
    address = tracking_uri(home, uri)
    with _mlflow_at(address) as mlflow:
        import onnx
        from mlflow import MlflowClient
        from mlflow.models.signature import ModelSignature
        from mlflow.types import Schema, TensorSpec

        model = onnx.load(str(file))
        classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *shape), model.graph.input[0].name)]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, classes), model.graph.output[0].name)]),
        )
        with mlflow.start_run(run_id=run_id):
            info = mlflow.onnx.log_model(
                model,
                name="model",
                signature=signature,
                onnx_execution_providers=["CPUExecutionProvider"],
                pip_requirements=_requirements(),
                registered_model_name=name,
            )
        client = MlflowClient(tracking_uri=address, registry_uri=address)
        version = str(info.registered_model_version)
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)
        client.set_registered_model_alias(name, alias, version)
    return Version(name, version, alias, f"models:/{name}@{alias}", address)


def _requirements() -> list[str]:
    from importlib import metadata

    return [f"{package}=={metadata.version(package)}" for package in ("onnx", "onnxruntime", "numpy", "mlflow")]


@contextlib.contextmanager
def _mlflow_at(address: str) -> Iterator[Any]:
    """The fluent API pointed at an address, and put back after."""
    quiet = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        warnings.simplefilter("ignore")
        import mlflow
        import mlflow.onnx

        before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
        mlflow.set_tracking_uri(address)
        mlflow.set_registry_uri(address)
        try:
            yield mlflow
        finally:
            mlflow.set_tracking_uri(before[0])
            mlflow.set_registry_uri(before[1])


def serve(home: Home, uri: str | None, host: str, port: int) -> list[str]:
    """The command that shows an embedded database in MLflow's own pages, on this machine alone."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    address = tracking_uri(home, uri)
    return ["mlflow", "server", "--backend-store-uri", address, "--default-artifact-root", home.artifacts.as_uri(),
            "--host", host, "--port", str(port), "--workers", "1"]  # fmt: skip
