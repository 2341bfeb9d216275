"""Which holes of a space mattered for a measurement: optuna's PED-ANOVA on the facts of a sweep."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from orchestrator.results.trial_result import TrialResult
from orchestrator.search.points import fits
from orchestrator.spec.job import Job
from orchestrator.spec.objective import Objective
from orchestrator.spec.space import Domain

MIN_TRIALS = 20  # with fewer the best tenth is a trial or two, and their settings are chance


def importances(job: Job, results: Sequence[TrialResult], objective: Objective) -> tuple[int, dict[str, float]]:
    """How much each hole of the job's space decides whether a trial is among the best tenth by one objective.

    The Pearson divergence between where the best tenth lies in a hole and where all trials do.

    Sources: Watanabe, Bansal and Hutter 2023, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
    Subspaces" (IJCAI); for conditional holes "Conditional PED-ANOVA" (KDD 2026), theorem 4.2.

    Args:
        results: ends of trials. Those that were not measured, and points from outside the space, are passed over.

    Returns:
        How many trials were looked at, and the share of each hole, most important first, with a sum of 1. There are no shares
        of fewer than `MIN_TRIALS`, or where all have the same value, or none of the holes matters.
    """
    metric = objective.metric
    measured = [result for result in results if result.state == "COMPLETE" and metric in result.measurements]
    fitting = [result for result in measured if fits(result.choice, job.space, job.recipe)]
    costs = [objective.cost(float(result.measurements[metric])) for result in fitting]
    if len(fitting) < MIN_TRIALS or min(costs) == max(costs):
        return len(fitting), {}
    asked = {path: _distribution(domain) for path, domain in job.space.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    study.add_trials(
        [
            optuna.create_trial(
                value=cost, params=dict(result.choice), distributions={path: asked[path] for path in result.choice}
            )
            for result, cost in zip(fitting, costs, strict=True)
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values of which the best tenth is more than a tenth
        shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), normalize=False)
    total = sum(shares.values())
    return len(fitting), {path: share / total for path, share in shares.items()} if total > 0 else {}


def _distribution(domain: Domain) -> BaseDistribution:
    match domain.kind:
        case "float":
            step = None if domain.step is None else float(domain.step)
            return FloatDistribution(domain.low, domain.high, log=domain.log, step=step)
        case "int":
            return IntDistribution(int(domain.low), int(domain.high), log=domain.log, step=int(domain.step or 1))
        case "choice":
            return CategoricalDistribution(cast("list[bool | int | float | str]", domain.choices or []))
