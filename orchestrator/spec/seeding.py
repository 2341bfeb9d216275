"""Seeds: points of a space that somebody names before the search begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from orchestrator.errors import JobError, nearest_name
from orchestrator.spec.complaint import shown
from orchestrator.spec.job import Job
from orchestrator.spec.recipe import Recipe
from orchestrator.spec.source import Document, Keys, dotted
from orchestrator.spec.space import Choice, Domain, SearchSpace, Value, is_active, value_at


def check_seeds(job: Job, document: Document) -> None:
    """JobError, with file and line, for the first seed of the job that is no point of its space."""
    for index, seed in enumerate(job.search.seeds):
        try:
            completed(seed, job.space, job.recipe)
        except JobError as error:
            keys: Keys = ("search", "seeds", index, error.path)
            raise JobError(error.must, error.given, dotted(keys), document.where(keys), error.nearest) from None


def completed(seed: Mapping[str, Value], space: SearchSpace, recipe: Recipe) -> Choice:
    """A seed as a whole point of the space: a hole that it leaves out keeps the recipe's own value.

    Raises:
        JobError: a path that is not searched, a value outside its domain, or a value for a hole whose condition does not hold;
            `path` is the hole's.
    """
    if strange := next((path for path in seed if path not in space.root), None):
        raise JobError("be a path of the space", strange, strange, nearest=nearest_name(strange, list(space.root)))
    tree, choice = recipe.model_dump(), Choice()
    for path, domain in space.items():
        if not is_active(domain, choice, tree):
            if path in seed:
                raise JobError("be left out, for its condition does not hold", shown(seed[path]), path)
            continue
        value = seed.get(path, value_at(tree, path))
        if not domain.contains(value):
            raise JobError(f"lie in its domain, {_described(domain)}", shown(value), path)
        choice[path] = as_proposed(domain, value)
    return choice


def as_proposed(domain: Domain, value: Any) -> Value:
    """A value inside its domain, in the type in which a sampler proposes it: an int hole's 8.0 is 8."""
    match domain.kind:
        case "float":
            return float(value)
        case "int":
            return int(value)
        case "choice":
            return cast(Value, value)


def _described(domain: Domain) -> str:
    if domain.choices is not None:
        return f"one of {', '.join(shown(choice) for choice in domain.choices)}"
    return f"{domain.low} to {domain.high}" + (f" in steps of {domain.step}" if domain.step else "")
