"""A tracking URI's password: refused in a job, passed over in an old sweep's, and in no message."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import JobError
from orchestrator.spec.job import Job, without_password
from orchestrator.spec.load import load_job, read_resolved, resolved_text

SECRET = "hunter2/with:signs"

JOB = """\
recipe: {data: {source: digits}}
space: {pruning.ratio: {float: [0.0, 0.5]}}
objectives: [{metric: accuracy}]
tracking: {uri: "%s"}
"""


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://user@host:5000/path", "http://user@host:5000/path"),
        (f"http://user:{SECRET}@host:5000", "http://user@host:5000"),
        (f"postgresql+psycopg2://u:{SECRET}@host/db?sslmode=on", "postgresql+psycopg2://u@host/db?sslmode=on"),
        (f"postgresql://host/db?user=u&password={SECRET}&x=1", "postgresql://host/db?user=u&password=&x=1"),
        (f"no answer at http://u:{SECRET}@a:1/x: refused", "no answer at http://u@a:1/x: refused"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
    ],
)
def test_a_password_is_taken_out_and_nothing_else(text: str, clean: str) -> None:
    assert without_password(text) == clean
    assert without_password(clean) == clean


def test_a_job_with_a_password_is_refused_and_the_password_is_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB % f"http://user:{SECRET}@127.0.0.1:5000")
    with pytest.raises(JobError, match="must hold no password") as refused:
        load_job(file)
    assert SECRET not in str(refused.value)
    assert "MLFLOW_TRACKING_PASSWORD" in str(refused.value)
    assert refused.value.path == "tracking.uri"
    with pytest.raises(JobError, match="must hold no password"):
        load_job(file, [f"tracking.uri=postgresql://u:{SECRET}@h/d"])
    file.write_text(JOB % "http://user@127.0.0.1:5000")
    assert load_job(file).tracking.uri == "http://user@127.0.0.1:5000"


def test_an_old_sweep_with_a_password_in_its_job_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    job = Job.model_validate({"name": "old", "recipe": {}, "space": {}, "objectives": [{"metric": "accuracy"}]})
    file.write_text(resolved_text(job).replace("  uri: null\n", f"  uri: http://user:{SECRET}@host:5000\n"))
    assert SECRET in file.read_text()
    assert read_resolved(file).tracking.uri == "http://user@host:5000"
