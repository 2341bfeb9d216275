"""MLflow, opened quietly: embedded in the home folder, or a server at a URI."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.errors import UnreachableError
from orchestrator.results.files import exclusive
from orchestrator.results.store import Home
from orchestrator.spec.job import without_password
from orchestrator.tracking import limits

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # of a server, at the end of every run
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def tracking_uri(home: Home, uri: str | None) -> str:
    """The job's tracking URI, or the embedded database of the home folder."""
    return uri or home.tracking_uri


def connect(home: Home, uri: str | None) -> Any:
    """An MlflowClient that is known to answer.

    Raises:
        UnreachableError: the server does not answer.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if uri is None:
        _prepare_database(home)
    address = tracking_uri(home, uri)
    with answering(address):
        client = MlflowClient(tracking_uri=address, registry_uri=address)
        client.search_experiments(max_results=1)
    return client


@contextlib.contextmanager
def answering(address: str) -> Iterator[None]:
    """What MLflow raises, as an UnreachableError. Its own messages hold the address as it was given: with a password, too."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise UnreachableError(without_password(f"an MLflow server must answer at {address}: {error}")) from None


def _prepare_database(home: Home) -> None:
    """Make the database whole or not at all: a migration that is cut off would spoil it for every later start."""
    database = home.path / "mlflow.db"
    if database.exists():
        return
    with exclusive(home.path / "mlflow.lock"):
        if database.exists():
            return
        from mlflow import MlflowClient

        draft = home.path / "mlflow.db.draft"
        _forget(draft)
        MlflowClient(tracking_uri=f"sqlite:///{draft}").search_experiments(max_results=1)
        # MLflow keeps its connections to the draft open, so what is put in place is a copy.
        whole = home.path / "mlflow.db.whole"
        whole.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(draft)) as source, contextlib.closing(sqlite3.connect(whole)) as target:
            source.backup(target)
        whole.rename(database)
        _forget(draft)


def _forget(database: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def artifact_root(home: Home, uri: str | None, experiment: str) -> str | None:
    """Where an experiment keeps its files: in the home folder where we open the database ourselves, else the server decides."""
    scheme = tracking_uri(home, uri).partition(":")[0].partition("+")[0]
    return (home.artifacts / limits.folder(experiment)).as_uri() if scheme in _DATABASES else None
