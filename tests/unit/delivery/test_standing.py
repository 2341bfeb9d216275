"""How long a sweep worked, and whether somebody holds it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.delivery.standing import busy_seconds, is_held
from orchestrator.results.files import exclusive


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([], 0.0),
        ([(0.0, 10.0)], 10.0),
        ([(0.0, 10.0), (5.0, 12.0)], 12.0),
        ([(0.0, 10.0), (2.0, 3.0)], 10.0),
        ([(20.0, 30.0), (0.0, 10.0)], 20.0),
        ([(5.0, 4.0)], 0.0),  # the clock was set back
    ],
)
def test_overlaps_count_once_and_gaps_not_at_all(spans, seconds):
    assert busy_seconds(spans) == seconds


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted), max_size=8))
def test_whole_seconds_are_those_that_lie_in_some_span(spans):
    assert busy_seconds(map(tuple, spans)) == len({second for start, end in spans for second in range(start, end)})


def test_a_lock_is_looked_at_and_left_alone(tmp_path: Path):
    lock = tmp_path / "sweep" / ".lock"
    assert not is_held(lock)
    assert not lock.parent.exists()
    with exclusive(lock) as mine:
        assert mine
        assert is_held(lock)
    assert not is_held(lock)
    with exclusive(lock, wait=False) as mine:
        assert mine, "looking holds nobody up"
