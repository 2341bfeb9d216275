"""What Tune starts for a trial: a thin client of a gang. It holds no model and imports no torch."""

from __future__ import annotations

import json
from typing import Any

import ray
from ray import tune


class GangClient(tune.Trainable):  # type: ignore[misc]
    """Asks the desk for news of an order, in steps short enough for Tune to interrupt. The order itself is there already.

    A step returns the order's outcome, a report that the scheduler has to judge, or that nothing was heard; the first alone
    is the end.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._config = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        desk = ray.get_actor(self._config["desk"], namespace=self._config["namespace"])
        news = ray.get(desk.news.remote(self._config["number"])) or {}
        outcome, report = news.get("outcome"), news.get("report")
        return {"done": outcome is not None, "outcome": json.dumps(outcome), "report": json.dumps(report)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a trial's state is in the sweep's folder and the stage store."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""
