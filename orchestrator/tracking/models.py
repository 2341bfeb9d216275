"""A trial's file as a model in MLflow: a LoggedModel with signature and input example, of the trial's run.

It holds the very bytes that were measured. A model is finished last: one that was never finished was cut off, and is made whole
under the id that it has.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.pareto.front import Front
from orchestrator.results.trial_result import TrialResult
from orchestrator.tracking.projection import STANDING, TAG, standing_of

_PAGE = 100


class Models:
    """The LoggedModels of a sweep.

    Args:
        client: an MlflowClient.
        experiment: its id.
        mine: the condition that the sweep's models satisfy.
    """

    def __init__(self, client: Any, experiment: str, mine: str) -> None:
        self._client, self._experiment, self._mine = client, experiment, mine
        self._found: dict[int, Any] | None = None

    def missing(self, points: Sequence[TrialResult]) -> list[TrialResult]:
        """Those trials that have no model yet, or one that was cut off."""
        found = self._by_trial()
        return [point for point in points if not (point.number in found and _is_whole(found[point.number]))]

    def log(self, run_id: str, file: Path, standing: Mapping[str, str], metrics: Collection[str]) -> str:
        """Make an ONNX file a model of its trial's run, which has ended, and return the model's id; the one that it has already
        where it was made before.

        Args:
            file: images (N, C, H, W), pixels float32 in 0..255, to logits (N, classes) float32.
            standing: tags that say where the trial stands.
            metrics: names of those points of the run by which models are compared.
        """
        run = self._client.get_run(run_id)
        number, found = int(run.data.tags[f"{TAG}.trial"][1:]), self._by_trial()
        if number in found and _is_whole(found[number]):
            return str(found[number].model_id)
        if number not in found:
            kept = {key: run.data.tags[key] for key in (f"{TAG}.sweep", f"{TAG}.identity", f"{TAG}.trial")}
            found[number] = self._client.create_logged_model(
                self._experiment,
                name=f"{kept[f'{TAG}.sweep']}-{kept[f'{TAG}.trial']}".replace(".", "-"),  # MLflow takes no points there
                source_run_id=run_id,
                tags={**kept, **standing},
                params=dict(run.data.params),
                model_type="onnx",
            )
        found[number] = self._fill(run, found[number], file, [name for name in metrics if name in run.data.metrics])
        return str(found[number].model_id)

    def show_standing(self, front: Front) -> None:
        """Have every model say where its trial stands. One that has left the front stays, and says so."""
        for number, model in self._by_trial().items():
            standing = {key: "" for key in STANDING if key in model.tags} | standing_of(front, number)
            if any(model.tags.get(key) != value for key, value in standing.items()):
                self._client.set_logged_model_tags(model.model_id, standing)

    def _fill(self, run: Any, model: Any, file: Path, metrics: Sequence[str]) -> Any:
        """Write what belongs to a model: its files, what the run says of it, its metrics; and finish it."""
        from mlflow.entities import LoggedModelOutput, Metric

        run_id, model_id = run.info.run_id, str(model.model_id)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            _package(file, folder, run_id, model_id, model.artifact_location)
            self._client.log_model_artifacts(model_id, str(folder))
        if model_id not in [output.model_id for output in (run.outputs.model_outputs if run.outputs else [])]:
            self._client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
        points = [self._client.get_metric_history(run_id, name)[-1] for name in metrics]
        shared = [Metric(p.key, p.value, p.timestamp, p.step, model_id=model_id) for p in points]
        self._client.log_batch(run_id, metrics=shared)
        return self._client.finalize_logged_model(model_id, "READY")

    def _by_trial(self) -> dict[int, Any]:
        if self._found is None:
            self._found, token = {}, None
            while True:
                page = self._client.search_logged_models([self._experiment], self._mine, max_results=_PAGE, page_token=token)
                self._found |= {int(model.tags[f"{TAG}.trial"][1:]): model for model in page}
                token = page.token
                if not token:
                    break
        return self._found


def _is_whole(model: Any) -> bool:
    return str(model.status) == "READY"


def _package(file: Path, folder: Path, run_id: str, model_id: str, location: str) -> None:
    """Write the folder that MLflow reads a model from: description, environment, example, and a copy of the file."""
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.onnx
        from mlflow.models import Model
        from mlflow.models.signature import ModelSignature
        from mlflow.types import Schema, TensorSpec

        proto = onnx.load(str(file))
        (image, shape), (logits, classes) = (_first(values) for values in (proto.graph.input, proto.graph.output))
        mlflow.onnx.save_model(
            proto,
            str(folder),
            mlflow_model=Model(artifact_path=location, run_id=run_id, model_id=model_id, model_uuid=model_id),
            signature=ModelSignature(
                inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *shape), image)]),
                outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *classes), logits)]),
            ),
            input_example={image: _example(shape)},
            onnx_execution_providers=["CPUExecutionProvider"],
            pip_requirements=_requirements(),
            save_as_external_data=False,
        )
    shutil.copyfile(file, folder / "model.onnx")  # MLflow has written it anew: equal in sense, not in bytes


def _first(values: Any) -> tuple[str, tuple[int, ...]]:
    """Name and shape, without the batch, of the first input or output of a graph."""
    dims = values[0].type.tensor_type.shape.dim
    return values[0].name, tuple(dim.dim_value for dim in list(dims)[1:])


def _example(shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Two images: a ramp over all levels of a pixel, and the same from bright to dark."""
    ramp = np.linspace(0.0, 255.0, int(np.prod(shape)), dtype=np.float32).round().reshape(shape)
    return np.stack([ramp, 255.0 - ramp])


def _requirements() -> list[str]:
    return [f"{package}=={metadata.version(package)}" for package in ("onnx", "onnxruntime", "numpy", "mlflow")]
