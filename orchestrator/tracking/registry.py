"""A picked model as a registered version: loadable by `models:/name@alias`, with what it was measured at on its tags."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UnreachableError, UsageError
from orchestrator.results.store import Home
from orchestrator.spec.job import without_password
from orchestrator.tracking import limits
from orchestrator.tracking.connection import answering, connect, tracking_uri
from orchestrator.tracking.models import Models
from orchestrator.tracking.projection import STANDING, TAG

_LONGEST_DESCRIPTION = 5000  # characters: what MLflow's databases hold
_LONGEST_NAME = 256


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
    name: str,
    alias: str,
    tags: dict[str, str],
) -> Version:
    """Register a trial's model as the next version of `name`, and point `alias` at it.

    It is the model that the trial's run has already, where the trial is on the front; else its file becomes one first.

    Args:
        run_id: the trial's run.

    Raises:
        UsageError: MLflow takes no such name or alias.
        UnreachableError: the server does not answer.
    """
    check_names(name, alias)
    address = tracking_uri(home, uri)
    client = connect(home, uri)
    with answering(address):
        from mlflow.exceptions import MlflowException

        run = client.get_run(run_id)
        mine = " AND ".join(f"tags.`{key}` = '{run.data.tags[key]}'" for key in (f"{TAG}.sweep", f"{TAG}.identity"))
        standing = {key: run.data.tags[key] for key in STANDING if key in run.data.tags}
        measured = [metric for metric in run.data.metrics if "/" not in metric]
        model_id = Models(client, run.info.experiment_id, mine).log(run_id, file, standing, measured)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        plain = {key: limits.text(value) for key, value in tags.items()}
        with _default(address):
            source = f"models:/{model_id}"
            found = client.create_model_version(name, source, run_id, plain, model_id=model_id, await_creation_for=0)
        version = str(found.version)
        client.set_registered_model_alias(name, alias, version)
    return Version(name, version, alias, f"models:/{name}@{alias}", without_password(address))


@contextlib.contextmanager
def _default(address: str) -> Iterator[None]:
    """The address as MLflow's default, and then again what it was. A database that is opened here asks for the model that
    a version is made of by a client of its own, which knows no other address."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(address)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def check_names(name: str, alias: str) -> None:
    """UsageError for the name of a registered model, or an alias, that MLflow would not take."""
    if not name.strip() or len(name) > _LONGEST_NAME or re.search(r"[/:\x00-\x1f\ud800-\udfff]", name):
        raise UsageError(f"a model's name must be 1-{_LONGEST_NAME} characters without '/' and ':'; given {_shown(name)}")
    if not re.fullmatch(r"[\w-]{1,255}", alias) or re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
        must = "1-255 letters, digits, '_' or '-', and neither 'latest' nor 'v' with a number"
        raise UsageError(f"an alias must be {must}; given {_shown(alias)}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def holder(home: Home, uri: str | None, name: str, alias: str) -> tuple[Version, dict[str, str]] | None:
    """The version of a registered model that an alias points at, and its tags; None where there is none.

    Raises:
        UnreachableError: the server does not answer, or answers something else.
    """
    client = connect(home, uri)
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None  # no model of that name, or no such alias of it
        raise UnreachableError(without_password(f"MLflow must tell who holds {alias!r} of {name!r}: {error}")) from None
    address = without_password(tracking_uri(home, uri))
    version = Version(name, str(found.version), alias, f"models:/{name}@{alias}", address)
    return version, {str(key): str(value) for key, value in found.tags.items()}


def describe(home: Home, uri: str | None, version: Version, card: Path) -> None:
    """Give a registered version a model card: as its description, as far as that holds it, and among the model's files."""
    client = connect(home, uri)
    text = card.read_text(encoding="utf-8")
    with answering(tracking_uri(home, uri)):
        client.update_model_version(version.name, version.version, description=text[:_LONGEST_DESCRIPTION])
        source = client.get_model_version(version.name, version.version).source
        client.log_model_artifact(source.removeprefix("models:/"), str(card))  # the id is kept nowhere else


def serve(home: Home, uri: str | None, host: str, port: int) -> list[str]:
    """The command that shows an embedded database in MLflow's own pages, on this machine alone."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    address = tracking_uri(home, uri)
    return ["mlflow", "server", "--backend-store-uri", address, "--default-artifact-root", home.artifacts.as_uri(),
            "--host", host, "--port", str(port), "--workers", "1"]  # fmt: skip
