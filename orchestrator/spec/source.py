"""Reading YAML with the position of every value, so that an error can point at its line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import JobError, nearest_name

Keys = tuple[str | int, ...]

# YAML 1.1 reads these as booleans, which is how a job that says `schedule: off` comes to hold False.
_WORDS_READ_AS_BOOLEANS = frozenset({"on", "off", "yes", "no", "y", "n"})


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
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        plain = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise JobError("be valid YAML", str(problem), where=line) from None
    document = Document(plain)
    if node is not None:
        _index(node, (), str(path), document.lines)
    return document


def _index(node: yaml.Node, keys: Keys, file: str, lines: dict[Keys, str]) -> None:
    """Note the line of `node` and of everything below it."""
    where = f"{file}:{node.start_mark.line + 1}"
    lines.setdefault(keys, where)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key_node, value_node in node.value:
            key, line = str(key_node.value), f"{file}:{key_node.start_mark.line + 1}"
            if key in seen:
                raise JobError("appear once", f"{key!r} a second time", _dotted((*keys, key)), line)
            seen.add(key)
            lines[(*keys, key)] = line
            _index(value_node, (*keys, key), file, lines)
    elif isinstance(node, yaml.SequenceNode):
        for position, child in enumerate(node.value):
            _index(child, (*keys, position), file, lines)
    elif node.tag == "tag:yaml.org,2002:bool" and node.value.lower() in _WORDS_READ_AS_BOOLEANS:
        must = "be true or false, or text in quotes: YAML 1.1 reads a bare on, off, yes or no as a boolean"
        raise JobError(must, node.value, _dotted(keys), where)


def _dotted(keys: Keys) -> str:
    return ".".join(str(key) for key in keys)
