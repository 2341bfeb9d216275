"""From a job file and overrides to a Job, or one JobError that says where and what.

Everything that can be known without running is checked here: both ends of every domain against the recipe's own
limits, every path of the space against the recipe, every file against the disk. Nothing is written, Ray is not needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.errors import JobError, nearest_name
from orchestrator.spec.job import Job
from orchestrator.spec.recipe import Recipe
from orchestrator.spec.source import Document, Keys, read_yaml
from orchestrator.spec.space import SearchSpace, fill, value_at, with_value

# Trials are only comparable when they share their data and the way they are measured.
_NOT_SEARCHABLE = ("data", "measurement")

_COMPARISONS = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}
_COMPARISON_KEYS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
_TYPES = {
    "float_type": "be a number",
    "int_type": "be a whole number",
    "int_from_float": "be a whole number",
    "bool_type": "be true or false",
    "string_type": "be text",
    "list_type": "be a list",
    "dict_type": "be a mapping",
    "model_type": "be a mapping",
    "finite_number": "be finite",
    "missing": "be given",
    "extra_forbidden": "be a known key",
}


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
        raise JobError("hold a job: a mapping with recipe, space and objectives", _shown(document.tree), where=str(path))
    _inline_space(document, path.parent)
    for override in overrides:
        _override(document, override)
    document.tree.setdefault("name", path.stem)
    job = job_from_tree(document)
    return _with_data_path(job, document, path.parent)


def job_from_tree(document: Document) -> Job:
    """Validate a job's tree, and its space against its recipe."""
    try:
        job = Job.model_validate(document.tree)
    except ValidationError as error:
        raise _job_error(error, document) from None
    _check_space(job.recipe, job.space, document)
    return job


def read_resolved(path: Path) -> Job:
    """Read the `job.yaml` of a sweep: complete, with its space inside."""
    return job_from_tree(read_yaml(path))


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
    if not equals or not path:
        raise JobError("look like path=value", override, where="--set")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise JobError("be a YAML value", text, path, "--set") from None
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        value = float(value)  # YAML 1.1 reads 1e-4 as text; on a command line nobody means that
    document.tree = with_value(document.tree, path, value)
    keys: Keys = tuple(path.split("."))
    document.lines[keys] = "--set"
    hole = path.removeprefix("recipe.")
    space = document.tree.get("space")
    if path.startswith("recipe.") and isinstance(space, Mapping):
        document.tree["space"] = {key: domain for key, domain in space.items() if key != hole}


def _with_data_path(job: Job, document: Document, folder: Path) -> Job:
    """Make the data's path absolute; it has to exist."""
    given = job.recipe.data.path
    if given is None:
        return job
    anchors = [folder, *([Path(root)] if (root := os.environ.get("ORCHESTRATOR_DATA")) else []), Path.cwd()]
    found = next((anchor / given for anchor in anchors if (anchor / given).exists()), None)
    keys: Keys = ("recipe", "data", "path")
    if found is None and job.recipe.data.source != "torchvision":
        looked = ", ".join(str(anchor) for anchor in dict.fromkeys(anchors))
        raise JobError(f"exist in one of {looked} (or below $ORCHESTRATOR_DATA)", given, _dotted(keys), document.where(keys))
    absolute = (found or folder / given).resolve()
    return Job.model_validate(with_value(job.model_dump(by_alias=True), "recipe.data.path", str(absolute)))


def _check_space(recipe: Recipe, space: SearchSpace, document: Document) -> None:
    """Every hole exists in the recipe, and both ends of its domain fit."""
    tree = recipe.model_dump()
    valid = _leaves(tree)
    seen: set[str] = set()
    for path, domain in space.items():
        keys: Keys = ("space", path)
        where = document.where(keys)
        if path not in valid:
            raise JobError("be a path of the recipe", path, f"space.{path}", where, nearest_name(path, valid))
        if path.split(".")[0] in _NOT_SEARCHABLE:
            raise JobError("leave data and measurement fixed, or trials cannot be compared", path, f"space.{path}", where)
        for other in domain.when:
            where_when = document.where((*keys, "when", other))
            if other not in valid:
                near = nearest_name(other, valid)
                raise JobError("be a path of the recipe", other, f"space.{path}.when", where_when, near)
            if other not in seen and other in space.root:
                raise JobError(f"stand below {other}, which it depends on", path, f"space.{path}.when", where_when)
        seen.add(path)
        for end in domain.ends():
            try:
                fill(recipe, {path: end})
            except ValidationError as error:
                must, _, near = _demand(error.errors()[0])
                raise JobError(must, _shown(end), f"space.{path}", document.where((*keys, domain.kind)), near) from None


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted paths of everything in a nested mapping that is not itself a mapping."""
    paths = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        paths += _leaves(value, f"{path}.") if isinstance(value, Mapping) else [path]
    return paths


def _job_error(error: ValidationError, document: Document) -> JobError:
    """The first of pydantic's complaints, in the form that every error of the product has."""
    complaint = error.errors()[0]
    keys = _known_keys(complaint, document.tree)
    must, given, near = _demand(complaint)
    if complaint["type"] == "extra_forbidden":
        given, near = str(keys[-1]), nearest_name(str(keys[-1]), _fields_at(keys[:-1]))
    if complaint["type"] == "missing":
        given = "nothing"
    more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
    return JobError(must, given + more, _dotted(keys), document.where(keys), near)


def _known_keys(complaint: Any, tree: Any) -> Keys:
    """The complaint's location without the names that pydantic adds for members of a union."""
    loc: Keys = tuple(complaint["loc"])
    if complaint["type"] in ("missing", "extra_forbidden"):
        return loc
    node, keys = tree, []
    for part in loc:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            break
        keys.append(part)
    return tuple(keys)


def _demand(complaint: Any) -> tuple[str, str, str | None]:
    """What must hold, what was given, and the nearest valid value, from one of pydantic's error dictionaries."""
    kind, context, given = complaint["type"], complaint.get("ctx", {}), complaint.get("input")
    if kind == "violation":
        return context["must"], _shown(given), context["nearest"]
    if kind in _COMPARISONS:
        return f"be {_COMPARISONS[kind]} {context[_COMPARISON_KEYS[kind]]}", _shown(given), None
    if kind == "literal_error":
        valid = re.findall(r"'([^']*)'", context["expected"])
        return f"be one of {', '.join(valid)}", _shown(given), nearest_name(str(given), valid)
    must = _TYPES.get(kind, complaint["msg"][:1].lower() + complaint["msg"][1:])
    if kind in ("float_type", "int_type") and isinstance(given, str) and re.fullmatch(r"[-+.\deE]+", given):
        must += f"; YAML reads {given} as text: write it with a point and a signed exponent, as 1.0e-4"
    return must, _shown(given), None


def _fields_at(keys: Keys) -> list[str]:
    """The keys that are valid at a place in the job's tree."""
    model: Any = Job
    for key in keys:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            break
        field = model.model_fields.get(str(key))
        annotation = field.annotation if field else next(iter(get_args(model.model_fields["root"].annotation)[1:]), None)
        model = next((arg for arg in get_args(annotation) if isinstance(arg, type)), annotation)
    if isinstance(model, type) and issubclass(model, BaseModel):
        return [field.alias or name for name, field in model.model_fields.items()]
    return []


def _shown(value: Any) -> str:
    """A value as the user would type it, cut to a line."""
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("\n...")
    return f"{text[:77]}..." if len(text) > 80 else repr(text) if isinstance(value, str) else text


def _dotted(keys: Keys) -> str:
    return ".".join(str(key) for key in keys)


def check_path(recipe: Recipe, path: str) -> Any:
    """The recipe's own value at a dotted path; JobError with the nearest valid one where there is none."""
    tree = recipe.model_dump()
    try:
        return value_at(tree, path)
    except KeyError:
        raise JobError("be a path of the recipe", path, nearest=nearest_name(path, _leaves(tree))) from None
