"""Reading YAML with the position of every value, so that an error can point at its line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import JobError, nearest_name
from orchestrator.spec.space import with_value

Keys = tuple[str | int, ...]

# YAML 1.1 reads these as booleans, which is how a job that says `schedule: off` comes to hold False.
_WORDS_READ_AS_BOOLEANS = frozenset({"on", "off", "yes", "no", "y", "n"})

# YAML 1.1 reads these as text, for want of a point or of a sign in the exponent: 1e-4, 1.0e4.
NUMBER_READ_AS_TEXT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")

# What PyYAML raises on text that it cannot read: ValueError for a 13th month, RecursionError for brackets without end.
YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)


@dataclass
class Document:
    """A YAML file as plain data, with "file:line" for every key path."""

    tree: Any
    lines: dict[Keys, str] = field(default_factory=dict)

    def where(self, keys: Keys) -> str:
        """The position of a value, or of its nearest ancestor that stands in the file."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, "")

    def put(self, path: str, value: Any, where: str) -> None:
        """Set the value at a dotted path. Mappings that have to be made on the way there come from `where` as well."""
        keys = path.split(".")
        node, depth = self.tree, 0
        while depth < len(keys) - 1 and isinstance(node.get(keys[depth]), Mapping):
            node, depth = node[keys[depth]], depth + 1
        replaced: Keys = tuple(keys[: depth + 1])
        self.lines = {other: line for other, line in self.lines.items() if other[: depth + 1] != replaced}
        self.lines[replaced] = where
        self.tree = with_value(self.tree, path, value)


def read_yaml(path: Path) -> Document:
    """Read one YAML document.

    Raises:
        JobError: the file is missing, unreadable, not YAML, repeats a key, or says `on` where `true` is meant.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = nearest_name(str(path), [str(other) for other in path.parent.glob("*.y*ml")])
        raise JobError("be an existing file", str(path), nearest=near) from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError("be a readable text file", f"{path} ({error})") from None
    document = Document(None)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _index(node, (), str(path), document.lines)
        document.tree = yaml.safe_load(text)
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{path}:{mark.line + 1}" if mark else str(path)
        raise JobError("be valid YAML", str(getattr(error, "problem", None) or error), where=line) from None
    return document


def _index(node: yaml.Node, keys: Keys, file: str, lines: dict[Keys, str], above: tuple[yaml.Node, ...] = ()) -> None:
    """Note the line of `node` and of everything below it; `above` are the nodes that it stands in."""
    where = f"{file}:{node.start_mark.line + 1}"
    if node in above:
        raise JobError("be valid YAML", "an alias of what it stands in", where=where)
    lines.setdefault(keys, where)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key_node, value_node in node.value:
            key, line = str(key_node.value), f"{file}:{key_node.start_mark.line + 1}"
            if key in seen:
                raise JobError("appear once", f"{key!r} a second time", dotted((*keys, key)), line)
            seen.add(key)
            _refuse_word(key_node, (*keys, key), line)
            lines[(*keys, key)] = line
            _index(value_node, (*keys, key), file, lines, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for position, child in enumerate(node.value):
            _index(child, (*keys, position), file, lines, (*above, node))
    else:
        _refuse_word(node, keys, where)


def _refuse_word(node: yaml.Node, keys: Keys, where: str) -> None:
    """Nobody who writes `on` means True."""
    if node.tag == "tag:yaml.org,2002:bool" and node.value.lower() in _WORDS_READ_AS_BOOLEANS:
        must = "be true or false, or text in quotes: YAML 1.1 reads a bare on, off, yes or no as a boolean"
        raise JobError(must, node.value, dotted(keys), where)


def dotted(keys: Keys) -> str:
    """A key path as the user writes it."""
    return ".".join(str(key) for key in keys)
