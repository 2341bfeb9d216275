"""Tables and JSON on stdout: the same text in a terminal and in a file."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from rich.cells import cell_len, set_cell_size

from orchestrator.pareto.certainty import Certainty
from orchestrator.pareto.front import Front, certainty_of, no_feasible
from orchestrator.results.store import Sweep
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.job import Job

WIDTH = 80  # columns of text; a front that is wider is shown as one table below the other
_LONGEST = 60  # columns of a cell
_NOTE = "note"  # the column of words: it is cut into lines where it is wide


@dataclass(frozen=True)
class Rows:
    """What has a row beside, or instead of, the points of a front.

    Args:
        trials: in order; None for the points of the front.
        ranks: by trial's number; None for no ranks.
        representatives: numbers of points that stand for all; None when not asked for.
        suggested: number of the point that the user's weights lead to; None when not asked for.
        where: the condition that all of them satisfy; None for no condition.
    """

    trials: tuple[TrialResult, ...] | None = None
    ranks: Mapping[int, int] | None = None
    representatives: tuple[int, ...] | None = None
    suggested: int | None = None
    where: str | None = None


THE_POINTS = Rows()


@dataclass
class _Table:
    """Columns by their heads; those in `left` are aligned to the left."""

    columns: dict[str, list[str]]
    left: set[str] = field(default_factory=set)

    def width(self, head: str) -> int:
        widest = max(cell_len(plain(cell)) for cell in [head, *self.columns[head]])
        return min(widest, WIDTH - 2 - self.width(next(iter(self.columns)))) if head == _NOTE else widest

    def blocks(self) -> list[list[str]]:
        """Heads of the parts that are shown one below the other, each with the first column and at most `WIDTH` wide."""
        first, *others = self.columns
        parts, wide = [[first]], self.width(first)
        for head in others:
            wide += 2 + self.width(head)
            if wide > WIDTH and len(parts[-1]) > 1:
                parts.append([first])
                wide = self.width(first) + 2 + self.width(head)
            parts[-1].append(head)
        return parts


def print_front(
    sweep: Sweep, job: Job, front: Front, output: str, rows: Rows = THE_POINTS, extra: Mapping[str, Any] | None = None
) -> None:
    """The front on stdout, in JSON with `extra` keys. NoFeasibleTrialError, after JSON was written, when there is none."""
    certainty = certainty_of(front)
    if output == "json":
        click.echo(json.dumps({**_front_tree(sweep, front, certainty, rows), **(extra or {})}, indent=1))
    else:
        _print_front_table(job, front, certainty, rows)
    if not front.points:
        raise no_feasible(sweep.name, front, job.constraints)


def _front_tree(sweep: Sweep, front: Front, certainty: Certainty, rows: Rows) -> dict[str, Any]:
    """The contract, and what was asked for beyond it."""
    trials = front.points if rows.trials is None else rows.trials
    tree = front.to_json(sweep.name, certainty, trials) | ({"where": rows.where} if rows.where else {})
    for point, trial in zip(tree["points"], trials, strict=True):
        number = trial.number
        if rows.ranks is not None:
            point |= {"rank": rows.ranks.get(number), "state": trial.state, "failure": _failure(trial) or None}
        if rows.representatives is not None:
            point["representative"] = number in rows.representatives
        if rows.suggested is not None:
            point["suggested"] = number == rows.suggested
    return tree


def _print_front_table(job: Job, front: Front, certainty: Certainty, rows: Rows) -> None:
    """What was measured, and what was chosen beside it, or below it where both are too wide; then the seeds."""
    trials = front.points if rows.trials is None else rows.trials
    if not trials:
        return
    knee = front.knee.number if front.knee else None
    names = {"trial": [f"{trial.id}{' *' if trial.number == knee else ''}" for trial in trials]}
    measured = _measured(trials, front, certainty, rows)
    paths = [path for path, _ in job.space.items()]
    chosen = {head: [shown(t.choice.get(path, "-")) for t in trials] for head, path in short_names(paths).items()}
    together = _Table(names | measured | chosen, {"trial", _NOTE})
    if len(together.blocks()) == 1:
        _print_blocks([together])
    else:
        _print_blocks([_Table(names | measured, together.left), _Table(names | chosen, together.left)])
    if certainty.seeds:
        click.echo()
        _print_blocks([_seeds(certainty, [objective.metric for objective in front.objectives])])


def _measured(trials: Sequence[TrialResult], front: Front, certainty: Certainty, rows: Rows) -> dict[str, list[str]]:
    """Objectives, the probability of being on the front, rank and notes: the last two where there are any."""
    known = [{**trial.gate, **trial.measurements} for trial in trials]
    columns = {o.metric: [shown(values.get(o.metric, "-")) for values in known] for o in front.objectives}
    chances = [certainty.probability.get(trial.id) for trial in trials]
    columns["p(front)"] = ["-" if chance is None else f"{chance:.2f}" for chance in chances]
    if rows.ranks is not None:
        columns["rank"] = [str(rows.ranks.get(trial.number, "-")) for trial in trials]
    notes = [", ".join(_notes(trial, certainty, rows)) for trial in trials]
    return columns | ({_NOTE: notes} if any(notes) else {})


def _notes(trial: TrialResult, certainty: Certainty, rows: Rows) -> list[str]:
    """What a row says in words."""
    other = certainty.tied_with(trial.id)
    broken = [f"{plain(metric)} is {shown(by)} beyond its bound" for metric, by in trial.constraints.items() if by > 0]
    said = {
        f"~ {other}": other is not None,
        "possibly on the front": trial.id in certainty.possible,
        "suggested": trial.number == rows.suggested,
        "representative": trial.number in (rows.representatives or ()),
        "cannot be built": trial.state == "INFEASIBLE" and not broken,
        "stopped": trial.state == "STOPPED",
        f"failed: {plain(_failure(trial), 2 * WIDTH)}": trial.state == "FAILED",
    }
    return [text for text, holds in said.items() if holds] + broken


def _failure(trial: TrialResult) -> str:
    """The class and the first line of what a trial failed with."""
    failure = trial.failure or {}
    message = (failure.get("message", "").splitlines() or [""])[0]
    return ": ".join(part for part in (failure.get("class", ""), message) if part)


def _seeds(certainty: Certainty, metrics: Sequence[str]) -> _Table:
    """The trials that were trained again: mean and interval of each objective, or its value where seeds do not change it."""
    columns = {"trial": list(certainty.seeds), "seeds": [str(found.num_seeds) for found in certainty.seeds.values()]}
    for metric in metrics:
        ends = [(found.mean[metric], found.low[metric], found.high[metric]) for found in certainty.seeds.values()]
        columns[f"mean {metric}"] = [
            shown(mean) if low == high else f"{shown(mean)} [{shown(low)}, {shown(high)}]" for mean, low, high in ends
        ]
    columns["p(front)"] = [f"{found.front_probability:.2f}" for found in certainty.seeds.values()]
    return _Table(columns, {"trial"})


def _print_blocks(tables: Sequence[_Table]) -> None:
    parts = [(table, heads) for table in tables for heads in table.blocks()]
    for index, (table, heads) in enumerate(parts):
        if index:
            click.echo()
        print_table(heads, list(zip(*(table.columns[head] for head in heads), strict=True)), table.left)


def print_columns(columns: dict[str, list[str]], left: set[str]) -> None:
    """A table by its columns, the first of which stands in front of every part where it is too wide for one."""
    _print_blocks([_Table(columns, left)])


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: set[str] | None = None, *, err: bool = False) -> None:
    """A plain table on stdout; the columns named in `left`, by default the first, are aligned to the left.

    Every cell is one line of text, whatever it holds, and a last column of notes goes on below where it is wide.
    """
    to_left = {head[0]} if left is None else left
    longest = {name: 10 * WIDTH if name == _NOTE else _LONGEST for name in head}
    cells = [[plain(cell, longest[name]) for name, cell in zip(head, row, strict=True)] for row in [head, *rows]]
    widths = [max(cell_len(row[column]) for row in cells) for column in range(len(head))]
    room = max(20, WIDTH - sum(widths[:-1]) - 2 * (len(head) - 1)) if head[-1] == _NOTE else widths[-1]
    for row in cells:
        lines = textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""] if head[-1] == _NOTE else [row[-1]]
        for number, line in enumerate(lines):
            parts = [*(row[:-1] if number == 0 else [""] * (len(head) - 1)), line]
            padded = [_padded(part, width, name in to_left) for name, part, width in zip(head, parts, widths, strict=True)]
            click.echo("  ".join(padded).rstrip(), err=err)


def _padded(text: str, width: int, left: bool) -> str:
    space = " " * max(0, width - cell_len(text))
    return text + space if left else space + text


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Each path by its shortest dotted end that no other path has: `pruning.ratio` by `ratio`."""
    found = {}
    for path in paths:
        keys = path.split(".")
        ends = [".".join(keys[start:]) for start in reversed(range(len(keys)))]
        alone = (end for end in ends if sum(other == end or other.endswith(f".{end}") for other in paths) == 1)
        found[next(alone, path)] = path
    return found


def shown(value: Any) -> str:
    """A value in a table: integers whole, others with four significant digits, and no exponent for what is merely large."""
    if not isinstance(value, float):
        return plain(value)
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def plain(value: object, longest: int = _LONGEST) -> str:
    """Text of whatever origin as one line that does nothing to a terminal, at most `longest` columns wide.

    What is no character to be seen is written as in Python: line ends, escape sequences, marks that turn the direction of
    writing, halves of surrogate pairs.
    """
    whole = str(value)
    text = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in whole[: 4 * longest])
    if cell_len(text) <= longest and len(whole) <= 4 * longest:
        return text
    return set_cell_size(text, longest - 1).rstrip() + "…"
