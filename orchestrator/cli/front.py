"""`orchestrator front SWEEP`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from orchestrator.cli.options import home_option, load_sweep, output_option, read_weights
from orchestrator.cli.tables import Rows, print_front
from orchestrator.cli.where import is_number, metrics_of, none_satisfies, satisfying
from orchestrator.errors import JobError, NoFeasibleTrialError, nearest_name
from orchestrator.pareto.condition import parse_condition
from orchestrator.pareto.front import Front, certainty_of, costs_of, counts_text, ranks_with_infeasible, weighted_point
from orchestrator.pareto.selection import representatives
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.objective import Objective


@click.command(
    "front",
    epilog='Examples: orchestrator front quickstart --where "size_bytes<2e4 and accuracy>=0.9" | '
    "orchestrator front quickstart --all --sort latency_ms",
)
@click.argument("sweep")
@click.option("--where", metavar="CONDITION", help="The front of the trials that satisfy this, as size_bytes<1e6 or macs<1e7.")
@click.option("--sort", metavar="METRIC", help="Best first by this measurement. [default: the first objective]")
@click.option("--all", "everything", is_flag=True, help="Show all that ended: dominated, infeasible, stopped, failed.")
@click.option(
    "--representatives", "--k", "k", type=click.IntRange(min=1), metavar="K", help="Mark K points that stand for all of them."
)
@click.option("--weights", metavar="M=W,...", help="Mark the best point by weighted objectives.")
@home_option
@output_option
def command(
    sweep: str,
    where: str | None,
    sort: str | None,
    everything: bool,
    k: int | None,
    weights: str | None,
    home: str | None,
    output: str,
) -> None:
    """Show the Pareto front of SWEEP: every model measured on its exported file.

    The knee is marked *, points that the measurement cannot tell apart ~, and p(front) is how likely a point is on the front
    given the errors of its measurements. docs/front.md says what it all means.
    """
    wanted = read_weights(weights) if weights is not None else None
    _, found, job, whole = load_sweep(home, sweep)
    metrics = metrics_of(whole)
    condition = parse_condition(where, metrics, "--where") if where is not None else None
    front = satisfying(whole, condition) if condition else whole
    ranks = ranks_with_infeasible(front) if everything else None
    rows = Rows(
        where=where,
        trials=_ordered(front, ranks, _known(sort, metrics) if sort is not None else None),
        ranks=ranks,
        representatives=_representatives(front, k) if k else None,
        suggested=weighted_point(front, wanted, "--weights").number if wanted and front.points else None,
    )
    try:
        print_front(found, job, front, output, rows)
    except NoFeasibleTrialError:
        if condition is None or not whole.points:
            raise
        raise none_satisfies(sweep, whole, condition) from None
    if output == "table":
        click.echo(f"\n{counts_text(front)}; hypervolume {front.hypervolume:.6g}{_doubtful(front, everything)}", err=True)


def _known(metric: str, metrics: Sequence[str]) -> str:
    if metric not in metrics:
        raise JobError("name a metric that was measured", metric, where="--sort", nearest=nearest_name(metric, list(metrics)))
    return metric


def _ordered(front: Front, ranks: Mapping[int, int] | None, metric: str | None) -> tuple[TrialResult, ...]:
    """The rows: the front by its first objective, or, with ranks, all trials by rank first; by the metric where one is given.

    What has no rank, or was not measured by the metric, comes last.
    """
    trials = list(front.points)
    if ranks is not None:
        every = [*front.results, *front.infeasible, *front.others]
        first, last = front.objectives[0], len(every)
        trials = sorted(every, key=lambda trial: _key(trial, first))
        trials.sort(key=lambda trial: ranks.get(trial.number, last))
    if metric is not None:
        axis = next((o for o in front.objectives if o.metric == metric), Objective.model_construct(metric=metric))
        trials.sort(key=lambda trial: _key(trial, axis))
    return tuple(trials)


def _key(trial: TrialResult, axis: Objective) -> tuple[bool, float, int]:
    value = {**trial.gate, **trial.measurements}.get(axis.metric)
    return (False, axis.cost(float(value)), trial.number) if is_number(value) else (True, 0.0, trial.number)


def _representatives(front: Front, k: int) -> tuple[int, ...]:
    return tuple(front.points[index].number for index in representatives(costs_of(front.points, front.objectives), k))


def _doubtful(front: Front, everything: bool) -> str:
    """How many dominated trials may be on the front, where they are not shown."""
    count = 0 if everything else len(certainty_of(front).possible)
    return f"; {count} more possibly on the front, which --all shows" if count else ""
