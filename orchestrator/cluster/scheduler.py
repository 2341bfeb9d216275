"""Tune's scheduler as a thin adapter. Tune pickles it, so what it talks to stays outside, as with the searcher."""

from __future__ import annotations

import json
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from orchestrator.cluster.searcher import conversation


class SweepScheduler(FIFOScheduler):  # type: ignore[misc]
    """Has every report judged, and lets Tune go on in any case.

    A trial that is not worth going on with is told so by the desk and writes its result; then its client ends like any other
    (decision 0010). Were Tune to stop the client, its slot would be given away while the gang still worked, with no result yet.
    """

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        report = json.loads(result.get("report", "null"))
        if report is not None:
            conversation(self._token).judged(trial.config["number"], report)
        return str(TrialScheduler.CONTINUE)
