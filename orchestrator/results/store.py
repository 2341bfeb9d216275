"""The home folder and the sweeps in it: immutable facts, one small file when a trial is proposed and one when it ends."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from orchestrator.errors import UsageError, nearest_name
from orchestrator.results.files import as_json, read_json, replace, write_once
from orchestrator.results.trial_result import Proposal, TrialResult, trial_id

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Home:
    """`--home`, else `ORCHESTRATOR_HOME`, else `.orchestrator/` in the working folder. Nothing is created by naming it."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path or os.environ.get("ORCHESTRATOR_HOME") or ".orchestrator").absolute()

    @property
    def stages(self) -> Path:
        return self.path / "cache" / "stages"

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.path / 'mlflow.db'}"

    @property
    def artifacts(self) -> Path:
        return self.path / "mlartifacts"

    def sweep(self, name: str) -> Sweep:
        """The sweep of that name, whether or not it exists. UsageError when the name could leave the home folder."""
        if not _SAFE_NAME.fullmatch(name):
            raise UsageError(f"a sweep's name must be 1-64 letters, digits, '.', '_' or '-'; given {name!r}")
        return Sweep(self.path / "sweeps" / name)

    def existing_sweep(self, name: str) -> Sweep:
        """The sweep of that name; UsageError with the nearest name when there is none."""
        sweep = self.sweep(name)
        if not sweep.exists():
            near = nearest_name(name, self.sweep_names())
            hint = f"; did you mean {near!r}?" if near else "; `orchestrator run JOB` starts one"
            raise UsageError(f"a sweep named {name!r} must exist in {self.path}{hint}")
        return sweep

    def sweep_names(self) -> list[str]:
        """All sweeps by name; what else lies in the folder is none."""
        folder = self.path / "sweeps"
        return sorted(path.name for path in folder.iterdir() if Sweep(path).exists()) if folder.is_dir() else []


class Sweep:
    """`sweeps/<name>/`: job.yaml, and one folder a trial."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    @property
    def job_file(self) -> Path:
        return self.path / "job.yaml"

    @property
    def lock_file(self) -> Path:
        return self.path / ".lock"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def table_file(self) -> Path:
        return self.path / "trials.parquet"

    def exists(self) -> bool:
        return self.job_file.exists()

    def create(self, job_text: str) -> None:
        """Write job.yaml unless it is there."""
        write_once(self.job_file, job_text.encode())

    def rewrite_job(self, job_text: str) -> None:
        """Replace job.yaml: an extended sweep is the same job with another budget."""
        replace(self.job_file, job_text.encode())

    def trial_folder(self, number: int) -> Path:
        return self.path / "trials" / trial_id(number)

    def propose(self, proposal: Proposal) -> None:
        """Record what was asked; a second proposal of the same number is an error of ours."""
        created = write_once(self.trial_folder(proposal.number) / "proposal.json", as_json(proposal.to_json()))
        assert created, f"proposal {proposal.number} exists"

    def finish(self, result: TrialResult) -> bool:
        """Record how a trial ended; False when it had ended before."""
        return write_once(self.trial_folder(result.number) / "result.json", as_json(result.to_json()))

    def proposals(self) -> list[Proposal]:
        """All proposals by number."""
        trees = [_fact(folder / "proposal.json") for folder in self._folders()]
        return [Proposal(**tree) for tree in trees if tree is not None]

    def proposal(self, number: int) -> Proposal | None:
        """What was asked under a number, or None where there is none."""
        tree = _fact(self.trial_folder(number) / "proposal.json")
        return None if tree is None else Proposal(**tree)

    def result(self, number: int) -> TrialResult | None:
        """How a trial ended, or None while it has not."""
        tree = _fact(self.trial_folder(number) / "result.json")
        return None if tree is None else TrialResult.from_json(tree)

    def results(self) -> list[TrialResult]:
        """All ended trials by number."""
        found = [self.result(int(folder.name[1:])) for folder in self._folders()]
        return [result for result in found if result is not None]

    def mend(self) -> list[Path]:
        """Rename facts that are no JSON to `*.broken`, and return them: what they were about can then be recorded again.

        Facts are whole or absent, so none should be. A machine that lost its power, or a copy that was cut short, can still
        leave one. Only whoever holds the sweep's lock may call this.
        """
        files = [folder / name for folder in self._folders() for name in ("proposal.json", "result.json")]
        broken = [file for file in files if file.exists() and _fact(file) is None]
        return [file.replace(file.with_name(f"{file.name}.broken")) for file in broken]

    def test_record(self, number: int) -> dict[str, Any] | None:
        """What the test split said of a trial, or None while it was not opened for it."""
        record: dict[str, Any] | None = read_json(self.trial_folder(number) / "test.json")
        return record

    def record_test(self, number: int, record: dict[str, Any]) -> bool:
        """Keep what the test split said; False when that was recorded before."""
        return write_once(self.trial_folder(number) / "test.json", as_json(record))

    def tested_trials(self) -> list[str]:
        """Ids of trials for which the test split was opened."""
        return [folder.name for folder in self._folders() if (folder / "test.json").exists()]

    def _folders(self) -> list[Path]:
        folder = self.path / "trials"
        if not folder.is_dir():
            return []
        return sorted((path for path in folder.iterdir() if re.fullmatch(r"t\d{4,}", path.name)), key=lambda p: int(p.name[1:]))


def _fact(path: Path) -> Any:
    """The content of a fact; None where there is none, or one that is no JSON: a sweep can be read all the same."""
    try:
        return read_json(path)
    except ValueError:
        return None
