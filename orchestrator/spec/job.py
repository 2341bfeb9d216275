"""A Job: the file that asks for a sweep."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from orchestrator.spec.names import NEEDS
from orchestrator.spec.objective import Constraint, Metric, Objective
from orchestrator.spec.recipe import Recipe, Strict, violation
from orchestrator.spec.space import SearchSpace, value_at

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class SearchSettings(Strict):
    """How the next recipe is proposed. `tpe`, `nsga2` and `random` are Optuna's samplers of those names."""

    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    num_startup: Annotated[int, Field(ge=1)] = 8


class BudgetSettings(Strict):
    """When a sweep ends: after `trials` fresh proposals, or earlier after `hours` of wall clock."""

    trials: Annotated[int, Field(ge=1, le=100_000)] = 24
    hours: Annotated[float, Field(gt=0.0)] | None = None


class ResourceSettings(Strict):
    """The shape of one gang, which changes numbers, and how many run side by side, which never does."""

    gangs: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    workers_per_gang: Annotated[int, Field(ge=1, le=1024)] = 1
    threads_per_worker: Annotated[int, Field(ge=1, le=256)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0.0)] = 0.0


class TrackingSettings(Strict):
    """Where results are shown: MLflow at `uri`, or embedded in the home folder when it is left out."""

    experiment: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f/\\<>]+$")] = "orchestrator"
    uri: str | None = None


class Job(Strict):
    """Model, data, recipe, what may vary, objectives, budget."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    seed: Annotated[int, Field(ge=0)] = 0
    recipe: Recipe
    space: SearchSpace
    objectives: Annotated[list[Objective], Field(min_length=2, max_length=4)]
    constraints: dict[Metric, Constraint] = Field(default_factory=dict)
    search: SearchSettings = SearchSettings()
    budget: BudgetSettings = BudgetSettings()
    resources: ResourceSettings = ResourceSettings()
    tracking: TrackingSettings = TrackingSettings()

    @field_validator("objectives")
    @classmethod
    def _distinct(cls, objectives: list[Objective]) -> list[Objective]:
        names = [objective.metric for objective in objectives]
        if len(set(names)) != len(names):
            raise violation("name each metric once")
        return objectives

    @model_validator(mode="after")
    def _divides(self) -> Self:
        workers = self.resources.workers_per_gang
        for where, batch in (
            ("training", self.recipe.training.batch_size),
            ("teacher.training", self.recipe.teacher.training.batch_size),
        ):
            if batch % workers:
                raise violation(f"have recipe.{where}.batch_size ({batch}) divisible by workers_per_gang ({workers})")
        return self

    @model_validator(mode="after")
    def _one_worker_on_a_part(self) -> Self:
        # NCCL refuses a second rank of one group on the same GPU.
        workers, gpus = self.resources.workers_per_gang, self.resources.gpus_per_worker
        if workers > 1 and 0.0 < gpus < 1.0:
            raise violation(f"have workers_per_gang ({workers}) 1, or gpus_per_worker ({gpus}) 0 or at least 1")
        return self

    @model_validator(mode="after")
    def _measures_what_is_asked(self) -> Self:
        recipe = self.recipe.model_dump()
        for metric in [*(objective.metric for objective in self.objectives), *self.constraints]:
            setting = NEEDS.get(metric)
            if setting is not None and not value_at(recipe, setting):
                raise violation(f"set recipe.{setting} when {metric} is asked for")
        return self

    def tree(self) -> dict[str, Any]:
        """The job as plain data with every default written out; `Job.model_validate` reads it back."""
        return self.model_dump(mode="json", by_alias=True)

    def identity(self) -> str:
        """What makes two jobs the same sweep: everything but budget, tracking, name and the number of gangs."""
        tree = self.tree()
        for key in ("name", "budget", "tracking"):
            del tree[key]
        del tree["resources"]["gangs"]
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
