"""Names and values as MLflow takes them: held to MLflow's own checks."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.tracking import limits

HOSTILE = [
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "x" * 10_000,
    "a 🚀 model",
    "/",
    ".",
    "a//b/./c/",
    "|",
    "",
    "\x00\ud800",
]


@given(st.text(alphabet=st.characters(codec=None), max_size=400))
@example("../x")
@example("a" * 249 + "/b")
def test_mlflow_takes_every_key(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    key = limits.key(name)
    _validate_metric_name(key)
    _validate_param_name(key)
    assert 1 <= len(key) <= 250
    assert limits.key(key) == key


@pytest.mark.parametrize("name", ["student/val_accuracy", "latency_ms", "training.learning_rate", "a b:c-d"])
def test_a_name_that_mlflow_takes_stays_as_it_is(name: str) -> None:
    assert limits.key(name) == name


def test_long_names_that_differ_stay_apart() -> None:
    first, second = (limits.key("x" * 10_000 + end) for end in "ab")
    assert first != second
    assert first[:238] == second[:238] == "x" * 238


@pytest.mark.parametrize("value", HOSTILE)
def test_a_value_can_be_stored_and_sent(value: str) -> None:
    text = limits.text(value)
    assert len(text) <= limits.MAX_VALUE
    assert "\x00" not in text
    text.encode()  # no halves of characters


def test_a_long_value_says_how_long_it_was() -> None:
    assert limits.text("x" * 10_000, 40) == "x" * 18 + "... (10000 characters)"
    assert limits.text("y" * 40, 40) == "y" * 40


def test_text_stays_text() -> None:
    assert limits.text("<b>one\ntwo\t\x1b[31m</b>") == "<b>one\ntwo\t\ufffd[31m</b>"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, True, None, "1.0"])
def test_what_is_no_finite_number_is_left_out(value: object) -> None:
    assert limits.number(value) is None


def test_numbers_are_floats() -> None:
    assert limits.number(3) == 3.0
    assert limits.number(-0.5) == -0.5


def test_a_folder_lies_inside_its_parent() -> None:
    assert limits.folder("nights of May-1") == "nights of May-1"
    found = {limits.folder(name) for name in [*HOSTILE, "..", ".hidden", "ends.", "e" * 65]}
    assert len(found) == len(HOSTILE) + 4
    for name in found:
        assert name.strip(". ") == name
        assert name
        assert not set(name) & set("/\\\x00<>|")
        assert len(name.encode()) <= 64
