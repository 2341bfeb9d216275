"""Every exception of the product, with the exit code that the command line gives it.

All of them cross process borders: `args` holds the constructor's arguments, so that pickle rebuilds them.
"""

from __future__ import annotations

from difflib import get_close_matches


class OrchestratorError(Exception):
    """Root of all errors that the product raises on purpose."""

    exit_code = 1


class JobError(OrchestratorError):
    """A job file, search space or option that cannot be run as written.

    Args:
        must: what has to hold, as a phrase that follows "must", for example "be a number".
        given: what was found instead, as the user would type it.
        path: dotted path of the offending value inside the job, "" for the whole file.
        where: "file:line", the name of an option, or "".
        nearest: the closest valid name, or None.
    """

    exit_code = 2

    def __init__(self, must: str, given: str, path: str = "", where: str = "", nearest: str | None = None) -> None:
        super().__init__(must, given, path, where, nearest)
        self.must, self.given, self.path, self.where, self.nearest = must, given, path, where, nearest

    def __str__(self) -> str:
        head = ": ".join(part for part in (self.where, self.path) if part)
        text = f"must {self.must}; given {self.given}"
        hint = f" (did you mean {self.nearest!r}?)" if self.nearest else ""
        return f"{head}: {text}{hint}" if head else f"{text}{hint}"


class UsageError(OrchestratorError):
    """A command that cannot be carried out as asked: a sweep that does not exist, a name that is taken."""

    exit_code = 2


class UnreachableError(OrchestratorError):
    """The cluster or the tracking server does not answer."""

    exit_code = 3


class NoFeasibleTrialError(OrchestratorError):
    """The sweep ended, and no trial satisfies every constraint."""

    exit_code = 4


class SpaceExhausted(OrchestratorError):  # noqa: N818 - an end, not a fault
    """Every point of the search space was proposed: there is nothing left to ask for."""


class TrialError(OrchestratorError):
    """One trial failed; the sweep goes on, and the sampler is told."""


class UnbuildableError(TrialError):
    """The recipe describes a network that cannot be built, pruned or exported: INFEASIBLE, not FAILED."""


class GatedError(TrialError):
    """A constraint is broken by what is known of a network before it is trained: INFEASIBLE, not FAILED."""


class DivergedError(TrialError):
    """Training produced a loss that is not finite."""


class TrialStopped(OrchestratorError):  # noqa: N818 - an order to leave, not a fault
    """Raised inside a trial, on every rank at the same step, when the search wants it to end."""


class TrialAbandoned(OrchestratorError):  # noqa: N818
    """Raised inside a trial, on every rank at the same step, when the sweep is interrupted: it will be run again."""


def nearest_name(name: str, valid: list[str] | tuple[str, ...]) -> str | None:
    """Return the member of `valid` that looks most like `name`, or None when nothing does."""
    matches = get_close_matches(name, valid, n=1, cutoff=0.5)
    return matches[0] if matches else None
