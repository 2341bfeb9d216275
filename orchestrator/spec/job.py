"""A Job: the file that asks for a sweep."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from orchestrator.errors import nearest_name
from orchestrator.spec.names import KNOWN_LATE, NEEDS
from orchestrator.spec.objective import Constraint, Metric, Objective
from orchestrator.spec.recipe import Recipe, Strict, violation
from orchestrator.spec.space import SearchSpace, Value, value_at

FILE_SYSTEMS = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")  # what pyarrow.fs reads, by URI
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_PASSWORD = re.compile(r"(?P<user>://[^:/@\s]*):[^@\s]+(?=@)|(?P<name>[?&](?:password|passwd|token)=)[^&#\s]+", re.IGNORECASE)


def without_password(text: str) -> str:
    """A URI, or a text with URIs in it, without the passwords that stand after a user's name or as a parameter."""
    return _PASSWORD.sub(lambda found: found["user"] or found["name"], text)


class SearchSettings(Strict):
    """How the next recipe is proposed; docs/methods/search.md says which sampler when.

    `ehvi` is the product's own: expected hypervolume improvement for what a trial would cost. `random`, `tpe`, `nsga2`, `nsga3`
    and `gp` are Optuna's, `qmc` is a scrambled Sobol sequence, `grid` every combination.

    Args:
        num_startup: proposals that `tpe`, `gp` and `ehvi` make before they model; the population of `nsga2` and `nsga3`.
        grid_points: values that `grid` takes from a float hole that has no step, both ends among them.
        seeds: points that are proposed first, in this order, each as dotted path to value. A hole that one leaves out keeps
            the recipe's own value.
        one_at_a_time: a sensitivity pass comes after the seeds: the baseline with one hole at a time at each end of its domain.
        bit_ladder: networks of the front are exported at the other bit widths too, which trains nothing. Such trials come on
            top of `budget.trials`.
    """

    sampler: Literal["random", "qmc", "tpe", "nsga2", "nsga3", "gp", "ehvi", "grid"] = "tpe"
    num_startup: Annotated[int, Field(ge=1)] = 8
    grid_points: Annotated[int, Field(ge=2, le=1000)] = 5
    seeds: list[dict[str, Value]] = Field(default_factory=list)
    one_at_a_time: bool = False
    bit_ladder: bool = False


class PlateauSettings(Strict):
    """No gain: over the last `trials` fresh trials the hypervolume grew by no more than the fraction `gain` of what it is."""

    trials: Annotated[int, Field(ge=1, le=100_000)]
    gain: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01


class BudgetSettings(Strict):
    """When a sweep ends: after `trials` fresh proposals, or earlier at whichever of the other limits comes first.

    `trials`, `device_hours`, `failures` and `plateau` look at all facts of the sweep, whatever run they come from; `hours` is
    the wall clock of one run, from its start, and begins anew when the sweep is resumed. `seeds` spends more at the end: each
    point of the front is trained with that many seeds in all.
    """

    trials: Annotated[int, Field(ge=1, le=100_000)] = 24
    hours: Annotated[float, Field(gt=0.0)] | None = None
    device_hours: Annotated[float, Field(gt=0.0)] | None = None
    failures: Annotated[int, Field(ge=1)] | None = None
    plateau: PlateauSettings | None = None
    seeds: Annotated[int, Field(ge=1, le=100)] = 1


class StoppingSettings(Strict):
    """Which trials are ended before their last training is: those that others at the same epoch leave behind.

    Args:
        min_epochs: of its last training that a trial has in any case; it is judged there and at each `reduction_factor` times
            as many epochs.
        reduction_factor: about one in so many goes on.
        control_fraction: of trials that are never stopped, so that what stopping costs can be seen.
        promote: when the fresh trials are used up, stopped ones go on that are wanted by then.
    """

    method: Literal["none", "successive_halving"] = "none"
    min_epochs: Annotated[int, Field(ge=1, le=10_000)] = 1
    reduction_factor: Annotated[int, Field(ge=2, le=100)] = 3
    control_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    promote: bool = False


class ResourceSettings(Strict):
    """The shape of one gang, which changes numbers, and how many run side by side, which never does."""

    gangs: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    workers_per_gang: Annotated[int, Field(ge=1, le=1024)] = 1
    threads_per_worker: Annotated[int, Field(ge=1, le=256)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0.0)] = 0.0


class GangSettings(Strict):
    """When a gang is no longer relied on. None of it changes numbers.

    Args:
        recycle_after: trials after which its processes are started anew; null: never.
        memory_growth_gb: by how much (10^9 bytes) the memory of its first process may have grown since the end of its first
            trial before they are started anew; null: as far as it likes.
        lost_after_s: seconds without a sign of life, after which its trial is given to another. What keeps every thread of a
            process from running for so long ends the trial there.
        stalled_after_s: seconds without a step, though there are signs of life. Null by default, as much is silent by nature:
            decoding, judging, measuring, and waiting for a stage that another gang makes.
    """

    recycle_after: Annotated[int, Field(ge=1)] | None = None
    memory_growth_gb: Annotated[float, Field(gt=0.0)] | None = 4.0
    lost_after_s: Annotated[float, Field(ge=5.0)] = 120.0
    stalled_after_s: Annotated[float, Field(ge=5.0)] | None = None


class StorageSettings(Strict):
    """Where stages are kept besides the home folder, and how much of it they may fill. None of it changes numbers.

    Args:
        shared: an absolute path, or a URI that pyarrow.fs reads (`s3://bucket/folder`): stages that are not here are looked for
            there, and what is computed is brought up. Credentials come from the environment, as a job is kept with its sweep.
        limit_gb: above which (10^9 bytes) the least recently used stages of the home folder are deleted; null: never.
    """

    shared: str | None = None
    limit_gb: Annotated[float, Field(gt=0.0)] | None = None

    @field_validator("shared")
    @classmethod
    def _can_be_reached(cls, shared: str | None) -> str | None:
        if shared is None:
            return None
        scheme, separator, rest = shared.partition("://")
        if not separator and not scheme.startswith("/"):
            raise violation("be an absolute path, or a URI such as s3://bucket/folder")
        if separator and scheme not in FILE_SYSTEMS:
            near, known = nearest_name(scheme, FILE_SYSTEMS), ", ".join(f"{name}://" for name in FILE_SYSTEMS)
            raise violation(f"begin with one of {known}", near and f"{near}://{rest}")
        if separator and ":" in rest.split("/")[0].rpartition("@")[0]:
            raise violation("hold no credentials, which belong into the environment")
        return shared


class TrackingSettings(Strict):
    """Where results are shown: MLflow at `uri`, or embedded in the home folder when it is left out."""

    experiment: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f/\\<>]+$")] = "orchestrator"
    uri: str | None = None

    @field_validator("uri")
    @classmethod
    def _no_password(cls, uri: str | None) -> str | None:
        if uri is not None and without_password(uri) != uri:  # a job is kept with its sweep, and shown
            raise violation("hold no password: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are for it, or PGPASSWORD")
        return uri


class Job(Strict):
    """Model, data, recipe, what may vary, objectives, budget."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    seed: Annotated[int, Field(ge=0)] = 0
    recipe: Recipe
    space: SearchSpace
    objectives: Annotated[list[Objective], Field(min_length=1, max_length=4)]
    constraints: dict[Metric, Constraint] = Field(default_factory=dict)
    search: SearchSettings = SearchSettings()
    stopping: StoppingSettings = StoppingSettings()
    budget: BudgetSettings = BudgetSettings()
    resources: ResourceSettings = ResourceSettings()
    gangs: GangSettings = GangSettings()
    storage: StorageSettings = StorageSettings()
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

    @model_validator(mode="after")
    def _tells_what_stopping_needs(self) -> Self:
        late = [objective.metric for objective in self.objectives if objective.metric in KNOWN_LATE]
        if late and self.stopping.method != "none":
            raise violation(f"have stopping.method none when {late[0]} is an objective: it is known at the end of a trial only")
        return self

    def tree(self) -> dict[str, Any]:
        """The job as plain data with every default written out; `Job.model_validate` reads it back."""
        return self.model_dump(mode="json", by_alias=True)

    def identity(self) -> str:
        """What makes two jobs the same sweep: everything but budget, tracking, storage, name and how gangs are run."""
        tree = self.tree()
        for key in ("name", "budget", "tracking", "gangs", "storage"):
            del tree[key]
        del tree["resources"]["gangs"]
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
