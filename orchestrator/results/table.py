"""All trials of a sweep as one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.results.trial_result import TrialResult


def rows(results: Sequence[TrialResult]) -> list[dict[str, Any]]:
    """One flat mapping a trial, with the same keys on each: `choice.*`, `measurements.*`, `seconds.*` and the rest."""
    found = [
        {
            "trial": result.id,
            "state": result.state,
            "feasible": result.feasible,
            "failure": (result.failure or {}).get("class"),
            "gang": result.gang,
            "started": result.started,
            "seconds": result.ended - result.started,
            **{f"choice.{path}": value for path, value in result.choice.items()},
            **{f"measurements.{name}": value for name, value in result.measurements.items()},
            **{f"seconds.{stage.name}": stage.seconds for stage in result.stages},
        }
        for result in results
    ]
    keys = list(dict.fromkeys(key for row in found for key in row))
    return [{key: row.get(key) for key in keys} for row in found]


def write_table(results: Sequence[TrialResult], path: Path) -> None:
    """Write `trials.parquet`. A column whose values differ in kind becomes text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = rows(results)
    columns = {key: [row[key] for row in table] for key in (table[0] if table else ())}
    arrays = {
        key: pa.array(values if _one_kind(values) else [str(value) for value in values]) for key, values in columns.items()
    }
    partial = path.with_suffix(".partial")
    pq.write_table(pa.table(arrays), partial)
    partial.replace(path)


def _one_kind(values: list[Any]) -> bool:
    kinds = {type(value) for value in values if value is not None}
    return len(kinds) <= 1 or kinds <= {int, float}
