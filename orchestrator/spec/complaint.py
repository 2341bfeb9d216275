"""From pydantic's complaints to the one form that every error of the product has: what must hold, given what, and where."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, RootModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.errors import JobError, nearest_name
from orchestrator.spec.job import Job, without_password
from orchestrator.spec.source import NUMBER_READ_AS_TEXT, Document, Keys, dotted

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
_SUBJECT = re.compile(r"^\w+ should ")  # pydantic says "List should have at least 2 items"
_SPELLINGS = {"float_type": "with a point and a signed exponent, as 1.0e-4", "int_type": "in digits, as 1000"}


def job_error(error: ValidationError, document: Document) -> JobError:
    """The first of the complaints about a job's tree, with how many more there are."""
    complaints = _said_once(error.errors(), document.tree)
    keys, complaint = next(iter(complaints.items()))
    must, given, near = demand(complaint)
    if complaint["type"] == "extra_forbidden":
        given, near = str(keys[-1]), _nearest_key(keys)
    if complaint["type"] == "missing":
        given = "nothing"
    more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
    return JobError(must, given + more, dotted(keys), document.where(keys), near)


def demand(complaint: ErrorDetails) -> tuple[str, str, str | None]:
    """What must hold, what was given, and the nearest valid value, from one complaint."""
    kind, context, given = complaint["type"], complaint.get("ctx", {}), complaint.get("input")
    if kind == "violation":
        return context["must"], shown(given), context["nearest"]
    if kind in _COMPARISONS:
        return f"be {_COMPARISONS[kind]} {context[_COMPARISON_KEYS[kind]]}", shown(given), None
    if kind == "literal_error":
        valid = re.findall(r"'([^']*)'", context["expected"])
        return f"be one of {', '.join(valid)}", shown(given), nearest_name(str(given), valid)
    must = _TYPES.get(kind) or _SUBJECT.sub("", complaint["msg"])
    if kind in _SPELLINGS and isinstance(given, str) and NUMBER_READ_AS_TEXT.fullmatch(given):
        must += f"; YAML reads {given} as text: write it {_SPELLINGS[kind]}"
    return must, shown(given), None


def shown(value: Any) -> str:
    """A value as the user would type it, cut to a line."""
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("\n...")
    text = without_password(text)
    return f"{text[:77]}..." if len(text) > 80 else repr(text) if isinstance(value, str) else text


def _said_once(complaints: Sequence[ErrorDetails], tree: Any) -> dict[Keys, ErrorDetails]:
    """The complaints by their places: one where every member of a union complains, none where a misspelt key is missing."""
    misspelt = [complaint["loc"] for complaint in complaints if complaint["type"] == "extra_forbidden"]
    meant = {(*keys[:-1], _nearest_key(keys)) for keys in misspelt}
    said: dict[Keys, ErrorDetails] = {}
    for complaint in complaints:
        if complaint["type"] != "missing" or complaint["loc"] not in meant:
            said.setdefault(_known_keys(complaint, tree), complaint)
    return said


def _known_keys(complaint: ErrorDetails, tree: Any) -> Keys:
    """The complaint's location without the names that pydantic adds for members of a union and for keys."""
    if complaint["type"] in ("missing", "extra_forbidden"):
        return complaint["loc"]
    node, keys = tree, []
    for part in complaint["loc"]:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            break
        keys.append(part)
    return tuple(keys)


def _nearest_key(keys: Keys) -> str | None:
    """The valid key that looks most like the last of `keys`, at the place that the others lead to."""
    places: list[Any] = [Job]
    for key in keys[:-1]:
        places = [inner for place in places for inner in _kinds_below(place, key)]
    models = [place for place in places if _is_model(place)]
    fields = [field.alias or name for model in models for name, field in model.model_fields.items()]
    return nearest_name(str(keys[-1]), fields)


def _kinds_below(kind: Any, key: str | int) -> list[Any]:
    """The types of what stands at `key` of a value of type `kind`: a model, a list or a mapping."""
    if get_origin(kind) in (list, dict):
        return _kinds(get_args(kind)[-1])
    if not _is_model(kind):
        return []
    if issubclass(kind, RootModel):
        return _kinds_below(kind.model_fields["root"].annotation, key)
    fields = [field for name, field in kind.model_fields.items() if key == (field.alias or name)]
    return [inner for field in fields for inner in _kinds(field.annotation)]


def _kinds(annotation: Any) -> list[Any]:
    """The members of a union, or the one type that is no union, without what `Annotated` adds."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in _kinds(member)]
    return [annotation]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
