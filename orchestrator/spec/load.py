"""From a job file and overrides to a Job, or one JobError that says where and what.

Everything that can be known without running is checked here: both ends of every domain against the job's own limits,
every path and every condition of the space against the recipe, every file against the disk. Nothing is written, Ray is
not needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from orchestrator.errors import JobError, nearest_name
from orchestrator.spec.complaint import demand, job_error, shown
from orchestrator.spec.job import Job, without_password
from orchestrator.spec.recipe import Recipe
from orchestrator.spec.seeding import check_seeds
from orchestrator.spec.source import NUMBER_READ_AS_TEXT, YAML_ERRORS, Document, Keys, read_yaml
from orchestrator.spec.space import Value, value_at, with_value

_PATHS = ("recipe.data.path", "recipe.model.weights", "recipe.teacher.model.weights")

# Trials are only comparable when they share their data and the way they are measured.
_NOT_SEARCHABLE = ("data", "measurement")


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Read, complete and check a job file.

    Args:
        path: the job file. Relative paths inside it resolve against its folder, then `$ORCHESTRATOR_DATA`.
        overrides: "dotted.path=value" into the job's tree; one that names a hole of the space pins it.

    Raises:
        JobError: anything in the file, the space or the overrides that cannot be run as written.
    """
    path = Path(path)
    document = read_yaml(path)
    if not isinstance(document.tree, dict):
        raise JobError("hold a job: a mapping with recipe, space and objectives", shown(document.tree), where=str(path))
    _inline_space(document, path.parent)
    for override in overrides:
        _override(document, override)
    document.tree.setdefault("name", path.stem)
    job = job_from_tree(document)
    return _with_paths(job, document, path.parent)


def job_from_tree(document: Document) -> Job:
    """Validate a job's tree, and its space against its recipe."""
    try:
        job = Job.model_validate(document.tree)
    except ValidationError as error:
        raise job_error(error, document) from None
    _check_space(job, document)
    check_seeds(job, document)
    return job


def read_resolved(path: Path) -> Job:
    """Read the `job.yaml` of a sweep: complete, with its space inside. A password that an old one has is passed over."""
    document = read_yaml(path)
    tracking = document.tree.get("tracking") if isinstance(document.tree, dict) else None
    if isinstance(tracking, dict) and isinstance(tracking.get("uri"), str):
        tracking["uri"] = without_password(tracking["uri"])
    return job_from_tree(document)


def resolved_text(job: Job) -> str:
    """A job as YAML with its space inside and every default written out."""
    return yaml.safe_dump(job.tree(), sort_keys=False)


def _inline_space(document: Document, folder: Path) -> None:
    """Replace `space: file.yaml` by what stands in that file, and keep its line numbers."""
    space = document.tree.get("space")
    if not isinstance(space, str):
        return
    file = folder / space
    if not file.exists():
        near = nearest_name(file.name, [other.name for other in file.parent.glob("*.yaml")])
        raise JobError("be an existing file", space, "space", document.where(("space",)), near)
    inner = read_yaml(file)
    document.tree["space"] = inner.tree
    document.lines.update({("space", *keys): where for keys, where in inner.lines.items()})


def _override(document: Document, override: str) -> None:
    """Apply one `--set path=value`."""
    path, equals, text = override.partition("=")
    if not equals or not all(path.split(".")):
        raise JobError("look like path=value", override, where="--set")
    try:
        value = yaml.safe_load(text)
    except YAML_ERRORS:
        raise JobError("be a YAML value", text, path, "--set") from None
    if isinstance(value, str) and NUMBER_READ_AS_TEXT.fullmatch(value):
        value = float(value)  # YAML 1.1 reads 1e-4 as text; on a command line nobody means that
    document.put(path, value, "--set")
    hole = path.removeprefix("recipe.")
    space = document.tree.get("space")
    if path.startswith("recipe.") and isinstance(space, Mapping):
        document.tree["space"] = {key: domain for key, domain in space.items() if key != hole}


def _with_paths(job: Job, document: Document, folder: Path) -> Job:
    """Make every path of the recipe absolute; what it names has to exist."""
    anchors = [folder, *([Path(root)] if (root := os.environ.get("ORCHESTRATOR_DATA")) else []), Path.cwd()]
    tree = job.model_dump(by_alias=True)
    for path in _PATHS:
        given = value_at(tree, path)
        if given is None:
            continue
        keys: Keys = tuple(path.split("."))
        found = next((anchor / given for anchor in anchors if (anchor / given).exists()), None)
        if found is None and not (path == "recipe.data.path" and job.recipe.data.source == "torchvision"):
            looked = ", ".join(str(anchor) for anchor in dict.fromkeys(anchors))
            raise JobError(f"exist in one of {looked} (or below $ORCHESTRATOR_DATA)", given, path, document.where(keys))
        tree = with_value(tree, path, str((found or folder / given).resolve()))
    return Job.model_validate(tree)


def _check_space(job: Job, document: Document) -> None:
    """Every hole exists in the recipe, its condition can hold, and the job holds with whatever may fill it."""
    valid = _leaves(job.recipe.model_dump())
    seen: set[str] = set()
    for path, domain in job.space.items():
        where = document.where(("space", path))
        if path not in valid:
            raise JobError("be a path of the recipe", path, f"space.{path}", where, nearest_name(path, valid))
        if path.split(".")[0] in _NOT_SEARCHABLE:
            raise JobError("leave data and measurement fixed, or trials cannot be compared", path, f"space.{path}", where)
        for other, wanted in domain.when.items():
            where = document.where(("space", path, "when", other))
            if other not in valid:
                near = nearest_name(other, valid)
                raise JobError("be a path of the recipe", other, f"space.{path}.when", where, near)
            if other not in seen and other in job.space.root:
                raise JobError(f"stand below {other}, which it depends on", path, f"space.{path}.when", where)
            _check_condition(job, path, other, wanted if isinstance(wanted, list) else [wanted], where)
        seen.add(path)
        for value in domain.probes():
            if complaint := _complaint(job, path, value):
                must, _, near = demand(complaint)
                raise JobError(must, shown(value), f"space.{path}", document.where(("space", path, domain.kind)), near)


def _check_condition(job: Job, path: str, other: str, wanted: Sequence[Value], where: str) -> None:
    """Each value that a condition waits for is one that the recipe permits, and at least one may come."""
    for value in wanted:
        complaint = _complaint(job, other, value)
        if complaint and complaint["loc"] == ("recipe", *other.split(".")):
            must, given, near = demand(complaint)
            raise JobError(must, given, f"space.{path}.when", where, near)
    if other in job.space.root and not any(job.space.may_hold(other, value, job.recipe) for value in wanted):
        must = f"wait for a value that space.{other} holds"
        raise JobError(must, ", ".join(shown(value) for value in wanted), f"space.{path}.when", where)


def _complaint(job: Job, path: str, value: Value) -> ErrorDetails | None:
    """What speaks against another value at one path of the job's recipe."""
    try:
        Job.model_validate(with_value(job.tree(), f"recipe.{path}", value))
    except ValidationError as error:
        return error.errors()[0]
    return None


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted paths of everything in a nested mapping that is not itself a mapping."""
    paths = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        paths += _leaves(value, f"{path}.") if isinstance(value, Mapping) else [path]
    return paths


def check_path(recipe: Recipe, path: str) -> Any:
    """The recipe's own value at a dotted path; JobError with the nearest valid one where there is none."""
    tree = recipe.model_dump()
    try:
        return value_at(tree, path)
    except KeyError:
        raise JobError("be a path of the recipe", path, nearest=nearest_name(path, _leaves(tree))) from None
