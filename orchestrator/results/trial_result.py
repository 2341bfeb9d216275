"""The two facts of a trial: what was proposed, and how it ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

State = Literal["COMPLETE", "INFEASIBLE", "STOPPED", "FAILED"]
STATES: tuple[State, ...] = ("COMPLETE", "INFEASIBLE", "STOPPED", "FAILED")


@dataclass(frozen=True)
class Proposal:
    """One point that the search asked for.

    Args:
        number: counts from 0; the baseline is number 0.
        told: the trials whose ends the search was told after the proposal before this one, in that order. It is what makes a
            search repeatable: a sampler may note at a proposal what it knew then.
        continues: the stopped trial that goes on here.
        replicate_of: the trial that is trained again here with another seed.
        derived_from: the trial whose network is shipped here in another form.
    """

    number: int
    choice: dict[str, Any]
    recipe: dict[str, Any]
    source: str = "sampler"
    told: list[int] = field(default_factory=list)
    continues: int | None = None
    replicate_of: int | None = None
    derived_from: int | None = None

    @property
    def fresh(self) -> bool:
        """Whether it is a point of its own, which the budget of trials counts."""
        return self.continues is None and self.replicate_of is None and self.derived_from is None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class StageRecord:
    """One stage of one trial: how long, from the store or computed, and when it started (seconds since the epoch).

    Args:
        saved_s: what making it took whoever made it, less what taking it from the store did; 0 where it was computed.
    """

    name: str
    key: str
    seconds: float
    cached: bool
    started: float
    saved_s: float = 0.0


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended.

    Args:
        measurements: plain numbers and words measured on the exported file; empty unless COMPLETE.
        gate: what was known of the recipe's network before it was trained, by metric.
        constraints: metric to amount, <= 0 where satisfied.
        curve: one mapping per epoch, with `stage`, `epoch` and what was seen.
        failure: `class`, `message` and `traceback` of a trial that did not complete.
    """

    number: int
    state: State
    choice: dict[str, Any]
    measurements: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, float] = field(default_factory=dict)
    constraints: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    stages: list[StageRecord] = field(default_factory=list)
    failure: dict[str, str] | None = None
    attempt: str = ""
    gang: str = ""
    seed: int = 0
    started: float = 0.0
    ended: float = 0.0

    @property
    def feasible(self) -> bool:
        """Whether the trial completed and satisfies every constraint."""
        return self.state == "COMPLETE" and all(amount <= 0 for amount in self.constraints.values())

    @property
    def id(self) -> str:
        return trial_id(self.number)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> TrialResult:
        return cls(**{**tree, "stages": [StageRecord(**stage) for stage in tree["stages"]]})


def trial_id(number: int) -> str:
    """The folder name of a trial: `t0007`."""
    return f"t{number:04d}"
