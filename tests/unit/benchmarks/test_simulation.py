"""Simulated time against sums and timelines that are worked out by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from benchmarks.table.searchers import Optuna, Ours, optuna_samplers, with_search
from benchmarks.table.simulation import Simulation, cost_of, regret_at, regrets
from benchmarks.table.table import EPOCHS, Table, all_points, table_job
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.space import Choice

DENSE = {"training.learning_rate": 0.1, "distillation.temperature": 4.0, "pruning.ratio": 0.0}
PLAIN = {**DENSE, "quantization.method": "none"}
PTQ = {**DENSE, "quantization.method": "ptq", "quantization.weight_bits": 8}
QAT = {**DENSE, "quantization.method": "qat", "quantization.weight_bits": 4, "quantization.learning_rate": 0.01, EPOCHS: 9}


class Script:
    """Asks for given points and stops given trials after given epochs."""

    def __init__(self, choices: Sequence[Choice], stops: dict[int, int] | None = None) -> None:
        self.choices, self.stop_after = choices, stops or {}
        self.judged: list[tuple[int, int]] = []
        self.results: list[TrialResult] = []

    def ask(self, number: int) -> Choice | None:
        return self.choices[number] if number < len(self.choices) else None

    def begins(self, number: int, gate: dict[str, float]) -> None:
        assert set(gate) == {"size_bytes", "macs", "latency_ms"}

    def stops(self, number: int, epoch: int, accuracy: float) -> bool:
        self.judged.append((number, epoch))
        return self.stop_after.get(number) == epoch

    def ended(self, result: TrialResult) -> None:
        self.results.append(result)


def test_the_space_is_listed_whole_and_once() -> None:
    job = table_job()
    points = all_points(job)
    assert len(points) == 2 * 2 * 5 * (1 + 4 + 4 * 3 * 3)
    assert len({tuple(sorted(point.items())) for point in points}) == len(points)
    assert all(job.space.root[path].contains(value) for point in points for path, value in point.items())


def test_one_gang_that_shares_nothing_spends_what_its_trials_take(table: Table) -> None:
    choices = [PLAIN, PTQ, QAT, PLAIN]
    points = [table.at(choice) for choice in choices]
    ends = Simulation(table, Script(choices), gangs=1, sharing=False).run(10)
    teacher = points[0].stages[0].seconds  # which is trained once in any case
    assert ends[-1].cost == pytest.approx(sum(point.seconds for point in points) - 3 * teacher)


def test_one_gang_that_shares_spends_every_stage_once(table: Table) -> None:
    choices = [PLAIN, PTQ, QAT, PLAIN]
    points = [table.at(choice) for choice in choices]
    stages = {stage.key: stage.seconds for point in points for stage in point.stages}
    ends = Simulation(table, Script(choices), gangs=1).run(10)
    assert ends[-1].cost == pytest.approx(sum(stages.values()) + sum(point.before + point.after for point in points))


def test_a_gang_waits_for_a_stage_that_another_makes(table: Table) -> None:
    ends = Simulation(table, Script([PLAIN, PTQ]), gangs=2).run(10)
    # Both are ready after 0.1 s; the first trains teacher (6 s) and student (2 s), ships in 0.3 s. The second waits for the
    # teacher, then for the student, then calibrates for 0.2 s.
    assert [(end.number, end.cost) for end in ends] == [(0, pytest.approx(2 * 8.4)), (1, pytest.approx(2 * 8.6))]


def test_a_stopped_trial_goes_on_from_where_it_was(table: Table) -> None:
    script = Script([QAT, QAT], {0: 3})
    first, second = Simulation(table, script, gangs=1).run(10)
    whole = Simulation(table, Script([QAT]), gangs=1).run(10)[0]
    assert (first.state, first.epochs, second.state, second.epochs) == ("STOPPED", 3, "COMPLETE", 6)
    assert script.judged == [*((0, epoch) for epoch in (1, 2, 3)), *((1, epoch) for epoch in range(4, 9))]
    assert second.cost == pytest.approx(whole.cost + table.at(QAT).before)
    assert first.costs is not None
    assert first.costs[0] == -table.at(QAT).last.accuracies[2]
    stopped, complete = script.results
    assert (stopped.measurements, len(stopped.curve), stopped.gate["macs"]) == ({}, 3, table.at(QAT).measurements["macs"])
    assert complete.measurements == table.at(QAT).measurements


def test_a_curve_from_the_store_is_not_judged(table: Table) -> None:
    script = Script([QAT, QAT])
    ends = Simulation(table, script, gangs=1).run(10)
    assert {number for number, _ in script.judged} == {0}
    assert ends[1].cost - ends[0].cost == pytest.approx(table.at(QAT).before + table.at(QAT).after)


def test_a_gang_begins_nothing_once_so_much_was_spent(table: Table) -> None:
    assert len(Simulation(table, Script([PLAIN, PTQ, QAT]), gangs=1).run(10, cost=8.5)) == 2
    assert len(Simulation(table, Script([PLAIN, PTQ, QAT])).run(2)) == 2


def test_regret_falls_to_nothing_when_everything_was_seen(table: Table) -> None:
    ends = Simulation(table, Script(all_points(table.job))).run(1000)
    steps = regrets(table, ends)
    assert steps[0] == (0.0, 1.0)
    assert all(before[1] > after[1] and before[0] <= after[0] for before, after in itertools.pairwise(steps))
    assert steps[-1][1] == pytest.approx(0.0, abs=1e-12)


def test_stopped_networks_count_only_when_asked_for(table: Table) -> None:
    ends = Simulation(table, Script([QAT], {0: 3})).run(10)
    assert regrets(table, ends) == [(0.0, 1.0)]
    assert len(regrets(table, ends, stopped=True)) == 2


def test_steps_are_read_as_steps() -> None:
    steps = [(0.0, 1.0), (4.0, 0.5), (9.0, 0.1)]
    assert [regret_at(steps, cost) for cost in (0.0, 3.9, 4.0, 100.0)] == [1.0, 1.0, 0.5, 0.1]
    assert [cost_of(steps, regret) for regret in (1.0, 0.5, 0.2, 0.05)] == [0.0, 4.0, 9.0, float("inf")]


def test_a_pinned_table_holds_the_points_that_fit(table: Table) -> None:
    pinned = table.pinned(EPOCHS, 27)
    assert len(pinned.points) == 2 * 2 * 5 * (1 + 4 + 4 * 3)
    assert EPOCHS not in pinned.job.space.root
    assert pinned.job.recipe.quantization.epochs == 27
    long = {path: value for path, value in QAT.items() if path != EPOCHS}
    assert pinned.at(long).stages == table.at({**QAT, EPOCHS: 27}).stages


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_the_product_searches_alike_twice_and_proposes_no_point_twice(table: Table, sampler: str) -> None:
    job = with_search(table.job, 3, sampler, method="successive_halving", promote=True)
    first, second = (Simulation(table, Ours(job, 30)).run(60) for _ in range(2))
    assert first == second
    fresh = [tuple(sorted(end.choice.items())) for end in first if end.number < 30]
    assert len(set(fresh)) == len(fresh) == 30


def test_optuna_searches_the_same_space(table: Table) -> None:
    found = [Simulation(table, Optuna(table.job, optuna_samplers(1)["Optuna TPE"]())).run(20) for _ in range(2)]
    assert found[0] == found[1]
    assert len(found[0]) == 20
