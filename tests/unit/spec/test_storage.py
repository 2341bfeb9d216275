"""Where stages are kept: what a job may say of it."""

from __future__ import annotations

import pyarrow.fs
import pytest
from pydantic import ValidationError

from orchestrator.spec.job import FILE_SYSTEMS, StorageSettings


@pytest.mark.parametrize(
    "shared", [None, "/nfs/a folder", "s3://bucket/stages?endpoint_override=localhost:9000&scheme=http", "gs://b", "file:///x"]
)
def test_a_place_that_every_worker_finds_is_taken(shared: str | None) -> None:
    assert StorageSettings(shared=shared).shared == shared


@pytest.mark.parametrize(
    ("shared", "must", "nearest"),
    [
        ("stages", "must be an absolute path, or a URI such as s3://bucket/folder", None),
        ("", "must be an absolute path, or a URI such as s3://bucket/folder", None),
        ("s3:/bucket", "must be an absolute path, or a URI such as s3://bucket/folder", None),
        ("s4://bucket/x", "must begin with one of file://, s3://, gs://", "s3://bucket/x"),
        ("s3://key:secret@bucket/x", "must hold no credentials, which belong into the environment", None),
    ],
)
def test_another_is_refused_with_the_nearest(shared: str, must: str, nearest: str | None) -> None:
    with pytest.raises(ValidationError) as caught:
        StorageSettings(shared=shared)
    (error,) = caught.value.errors()
    assert error["msg"].startswith(must)
    assert error["ctx"]["nearest"] == nearest


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_is_a_number_above_nothing(limit: float) -> None:
    with pytest.raises(ValidationError):
        StorageSettings(limit_gb=limit)


@pytest.mark.parametrize("scheme", ["file", "s3", "gs", "gcs", "abfs", "abfss"])
def test_the_file_systems_are_those_of_pyarrow(scheme: str) -> None:
    assert scheme in FILE_SYSTEMS
    try:
        pyarrow.fs.FileSystem.from_uri(f"{scheme}:///x" if scheme == "file" else f"{scheme}://a@b/x?region=eu-west-1")
    except pyarrow.ArrowInvalid as error:
        assert "Unrecognized filesystem type" not in str(error)  # noqa: PT017 - other complaints are about the made-up account
