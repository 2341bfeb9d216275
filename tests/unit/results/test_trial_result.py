"""The two facts of a trial, and their way through JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.results.files import as_json
from orchestrator.results.trial_result import STATES, Proposal, StageRecord, TrialResult, trial_id

FINITE = st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.text(max_size=8)
PLAIN = st.booleans() | st.integers() | FINITE | WORDS
MAPPINGS = st.dictionaries(WORDS, PLAIN, max_size=4)
STAGES = st.builds(StageRecord, name=WORDS, key=WORDS, seconds=FINITE, cached=st.booleans(), started=FINITE)
RESULTS = st.builds(
    TrialResult,
    number=st.integers(0, 10**6),
    state=st.sampled_from(STATES),
    choice=MAPPINGS,
    measurements=MAPPINGS,
    constraints=st.dictionaries(WORDS, FINITE, max_size=3),
    curve=st.lists(MAPPINGS, max_size=3),
    stages=st.lists(STAGES, max_size=3),
    failure=st.none() | st.dictionaries(WORDS, WORDS, max_size=3),
    attempt=WORDS,
    gang=WORDS,
    seed=st.integers(0),
    started=FINITE,
    ended=FINITE,
)


@settings(deadline=None)
@given(RESULTS)
def test_a_result_reads_back_as_it_was(result):
    assert TrialResult.from_json(json.loads(as_json(result.to_json()))) == result


@settings(deadline=None)
@given(st.builds(Proposal, number=st.integers(0), choice=MAPPINGS, recipe=MAPPINGS, source=WORDS))
def test_a_proposal_reads_back_as_it_was(proposal):
    assert Proposal(**json.loads(as_json(proposal.to_json()))) == proposal


@pytest.mark.parametrize(
    ("state", "constraints", "feasible"),
    [
        ("COMPLETE", {}, True),
        ("COMPLETE", {"size_bytes": 0.0, "accuracy": -0.1}, True),
        ("COMPLETE", {"size_bytes": 1e-9, "accuracy": -0.1}, False),
        ("INFEASIBLE", {}, False),
        ("STOPPED", {}, False),
        ("FAILED", {"size_bytes": -1.0}, False),
    ],
)
def test_feasible_is_complete_within_every_constraint(state, constraints, feasible):
    assert TrialResult(0, state, {}, constraints=constraints).feasible is feasible


@pytest.mark.parametrize(("number", "name"), [(0, "t0000"), (7, "t0007"), (9999, "t9999"), (10_000, "t10000")])
def test_a_trial_is_called_after_its_number(number, name):
    assert trial_id(number) == name
    assert TrialResult(number, "COMPLETE", {}).id == name
