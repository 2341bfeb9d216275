"""A sweep with the stopping rule on real Ray: one gang, so that what is stopped is known beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.results.store import Home
from tests.conftest import orchestrator

pytestmark = pytest.mark.ray

# One network, so that accuracy alone decides; each rate learns less than the one before it, and the last two nothing.
JOB = """
name: halving
recipe:
  data: {source: digits, val_fraction: 0.25}
  model: {name: cifar_resnet8, width: 8}
  training: {epochs: 3, batch_size: 64, learning_rate: 0.05}
space:
  training.learning_rate: {float: [1.0e-9, 0.01]}
objectives:
  - {metric: accuracy, reference: 0.0}
  - {metric: size_bytes, reference: 400000}
search:
  sampler: random
  seeds:
    - {training.learning_rate: 0.01}
    - {training.learning_rate: 1.0e-8}
    - {training.learning_rate: 1.0e-9}
budget: {trials: 4}
stopping: {method: successive_halving, control_fraction: 0.0, promote: true}
resources: {gangs: 1}
"""


def test_trials_are_stopped_at_their_rung_and_one_goes_on_from_there(tmp_path: Path) -> None:
    job = tmp_path / "halving.yaml"
    job.write_text(JOB)
    done = orchestrator("run", job, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr[-3000:]
    sweep = Home(tmp_path / "home").sweep("halving")
    results = sweep.results()
    assert [result.state for result in results] == ["COMPLETE", "STOPPED", "STOPPED", "STOPPED", "COMPLETE"]
    assert [proposal.continues for proposal in sweep.proposals()] == [None, None, None, None, 1]
    size = results[0].measurements["size_bytes"]
    for stopped in results[1:4]:
        assert stopped.measurements == {}
        assert stopped.gate["size_bytes"] == size
        assert [point["epoch"] for point in stopped.curve] == [0], "it waited at its rung to be judged"
        assert not (sweep.trial_folder(stopped.number) / "model.onnx").exists()
    promoted = results[4]
    assert [point["epoch"] for point in promoted.curve] == [0, 1, 2]
    assert promoted.curve[0] == results[1].curve[0]
    assert promoted.measurements["size_bytes"] == size
    front = json.loads(orchestrator("front", "halving", "-o", "json", home=tmp_path / "home").stdout)
    assert front["trials"] == {"complete": 2, "infeasible": 0, "stopped": 3, "failed": 0}
