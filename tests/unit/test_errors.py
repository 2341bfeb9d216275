"""Errors: their way between processes, what they say, and the exit code that they end in."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from orchestrator import errors
from orchestrator.data.sources import DataError
from orchestrator.errors import JobError, OrchestratorError, nearest_name


def family(root: type[OrchestratorError]) -> list[type[OrchestratorError]]:
    """A class and all that derive from it, as far as they are imported."""
    return [root, *(found for child in root.__subclasses__() for found in family(child))]


FAMILY = [kind for kind in dict.fromkeys(family(OrchestratorError)) if kind.__module__.startswith("orchestrator.")]
FULL = JobError("be a number", "'x'", "recipe.training.epochs", "job.yaml:5", "epochs")
EXIT_CODES = {
    "OrchestratorError": 1,
    "JobError": 2,
    "UsageError": 2,
    "UnreachableError": 3,
    "NoFeasibleTrialError": 4,
    "SpaceExhausted": 1,
    "TrialError": 1,
    "UnbuildableError": 1,
    "GatedError": 1,
    "DivergedError": 1,
    "TrialStopped": 1,
    "TrialAbandoned": 1,
}


def example(kind: type[OrchestratorError]) -> OrchestratorError:
    return FULL if kind is JobError else kind("what must hold; what was given")


def raise_job_error() -> None:
    raise FULL


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_crosses_a_process_border_whole(kind, protocol):
    error = example(kind)
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is kind
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


@pytest.mark.parametrize("kind", FAMILY)
def test_a_copy_of_an_error_says_the_same(kind):
    again = copy.deepcopy(example(kind))
    assert (type(again), str(again)) == (kind, str(example(kind)))


def test_a_job_error_raised_in_another_process_arrives_with_its_fields():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, pytest.raises(JobError) as caught:
        pool.submit(raise_job_error).result()
    assert vars(caught.value)["where"] == "job.yaml:5"
    assert str(caught.value) == str(FULL)


def test_every_error_of_the_ground_floor_has_an_exit_code_that_is_written_here():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, OrchestratorError)]
    assert {kind.__name__: kind.exit_code for kind in kinds} == EXIT_CODES


def test_data_that_cannot_be_read_as_the_job_says_is_bad_input():
    assert DataError("no such column").exit_code == 2


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FULL, "job.yaml:5: recipe.training.epochs: must be a number; given 'x' (did you mean 'epochs'?)"),
        (JobError("be a number", "'x'", "a.b", "--set"), "--set: a.b: must be a number; given 'x'"),
        (JobError("be a number", "'x'", "a.b"), "a.b: must be a number; given 'x'"),
        (JobError("be valid YAML", "a tab", where="job.yaml:1"), "job.yaml:1: must be valid YAML; given a tab"),
        (JobError("be an existing file", "x.yaml"), "must be an existing file; given x.yaml"),
        (JobError("be a file", "x", nearest="y"), "must be a file; given x (did you mean 'y'?)"),
    ],
)
def test_a_job_error_says_where_what_must_hold_what_was_given_and_the_nearest(error, text):
    assert str(error) == text


@pytest.mark.parametrize(
    ("name", "valid", "nearest"),
    [
        ("epohcs", ["epochs", "batch_size"], "epochs"),
        ("epochs", ("epochs", "epoch"), "epochs"),
        ("zzz", ["epochs", "batch_size"], None),
        ("epochs", [], None),
        ("", ["epochs"], None),
    ],
)
def test_the_nearest_name_is_one_of_the_valid_ones_or_none(name, valid, nearest):
    assert nearest_name(name, valid) == nearest
