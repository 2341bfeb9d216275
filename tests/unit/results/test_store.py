"""The home folder and the facts of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import Proposal, TrialResult

BEYOND_FOUR_DIGITS = [10_001, 3, 9999, 10_000, 0, 12]


@pytest.fixture
def sweep(tmp_path):
    return Home(tmp_path / "home").sweep("night")


def proposal(number: int) -> Proposal:
    return Proposal(number, {"pruning.ratio": number / 7}, {"seed": number})


def result(number: int, accuracy: float = 0.5) -> TrialResult:
    return TrialResult(number, "COMPLETE", {"pruning.ratio": number / 7}, measurements={"accuracy": accuracy})


# Homes.


def test_the_home_is_as_given_then_as_the_environment_says_then_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ORCHESTRATOR_HOME", raising=False)
    assert Home().path == tmp_path / ".orchestrator"
    monkeypatch.setenv("ORCHESTRATOR_HOME", "elsewhere")
    assert Home().path == tmp_path / "elsewhere"
    assert Home("given").path == tmp_path / "given"


def test_naming_a_home_and_its_sweeps_creates_nothing(tmp_path):
    home = Home(tmp_path / "home")
    sweep = home.sweep("night")
    assert (home.sweep_names(), sweep.exists(), sweep.proposals(), sweep.results(), sweep.result(0)) == (
        [],
        False,
        [],
        [],
        None,
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/etc", "a\\b", ".hidden", "-o", "_x", "a b", "a\n", "größe", "a\x00", "x" * 65, "a:b", "~"],
)
def test_a_name_that_could_leave_the_home_is_refused(tmp_path, name):
    with pytest.raises(UsageError):
        Home(tmp_path).sweep(name)


@pytest.mark.parametrize("name", ["a", "night-1", "cifar10_resnet20", "v1.2", "9", "x" * 64])
def test_a_plain_name_is_a_folder_below_sweeps(tmp_path, name):
    assert Home(tmp_path).sweep(name).path == tmp_path / "sweeps" / name
    assert Home(tmp_path).sweep(name).name == name


def test_an_existing_sweep_is_found_and_another_is_refused_with_the_nearest_name(tmp_path):
    home = Home(tmp_path)
    home.sweep("quickstart").create("name: quickstart\n")
    assert home.existing_sweep("quickstart").path == home.sweep("quickstart").path
    with pytest.raises(UsageError, match="did you mean 'quickstart'"):
        home.existing_sweep("quikstart")
    with pytest.raises(UsageError, match="zzz") as caught:
        home.existing_sweep("zzz")
    assert "did you mean" not in str(caught.value)


def test_sweeps_are_listed_by_name(tmp_path):
    home = Home(tmp_path)
    for name in ("b", "a", "c"):
        home.sweep(name).create("x: 1\n")
    assert home.sweep_names() == ["a", "b", "c"]


def test_only_sweeps_are_listed(tmp_path):
    home = Home(tmp_path)
    home.sweep("a").create("x: 1\n")
    home.sweep("b").path.mkdir()
    home.sweep("b").lock_file.touch()
    (tmp_path / "sweeps" / ".DS_Store").touch()
    assert home.sweep_names() == ["a"]


# Facts.


def test_a_job_is_written_once_and_replaced_only_on_purpose(sweep):
    sweep.create("first\n")
    sweep.create("second\n")
    assert sweep.exists()
    assert sweep.job_file.read_text() == "first\n"
    sweep.rewrite_job("third\n")
    assert sweep.job_file.read_text() == "third\n"


def test_facts_read_back_by_number_beyond_four_digits(sweep):
    for number in BEYOND_FOUR_DIGITS:
        sweep.propose(proposal(number))
        sweep.finish(result(number))
    assert sweep.proposals() == [proposal(number) for number in sorted(BEYOND_FOUR_DIGITS)]
    assert sweep.results() == [result(number) for number in sorted(BEYOND_FOUR_DIGITS)]
    assert [sweep.result(number) for number in BEYOND_FOUR_DIGITS] == [result(number) for number in BEYOND_FOUR_DIGITS]


def test_facts_are_seen_by_another_process_that_opens_the_folder(sweep):
    sweep.propose(proposal(0))
    sweep.finish(result(0))
    other = Sweep(Path(str(sweep.path)))
    assert (other.proposals(), other.results()) == ([proposal(0)], [result(0)])


def test_an_end_is_kept_and_a_second_one_is_refused(sweep):
    sweep.propose(proposal(0))
    assert sweep.result(0) is None
    assert sweep.finish(result(0, accuracy=0.5)) is True
    assert sweep.finish(result(0, accuracy=0.9)) is False
    assert sweep.result(0) == result(0, accuracy=0.5)


def test_the_same_number_is_never_proposed_twice(sweep):
    sweep.propose(proposal(0))
    with pytest.raises(AssertionError):
        sweep.propose(Proposal(0, {}, {}))
    assert sweep.proposals() == [proposal(0)]


def test_a_proposal_without_an_end_is_no_result(sweep):
    sweep.propose(proposal(0))
    sweep.propose(proposal(1))
    sweep.finish(result(1))
    assert [found.number for found in sweep.proposals()] == [0, 1]
    assert [found.number for found in sweep.results()] == [1]


def test_what_else_lies_among_the_trials_is_not_read(sweep):
    sweep.propose(proposal(0))
    (sweep.path / "trials" / "notes").mkdir()
    (sweep.path / "trials" / "t01").mkdir()
    (sweep.path / "trials" / "t0001.old").mkdir()
    (sweep.trial_folder(0) / ".result.json.0123").write_text('{"half": ')
    assert [found.number for found in sweep.proposals()] == [0]
    assert sweep.results() == []


def test_what_the_test_split_said_is_kept_from_the_first_look(sweep):
    for number in (0, 1):
        sweep.propose(proposal(number))
    assert (sweep.test_record(1), sweep.tested_trials()) == (None, [])
    assert sweep.record_test(1, {"accuracy": 0.5}) is True
    assert sweep.record_test(1, {"accuracy": 0.9}) is False
    assert sweep.test_record(1) == {"accuracy": 0.5}
    assert (sweep.test_record(0), sweep.tested_trials()) == (None, ["t0001"])
