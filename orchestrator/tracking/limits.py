"""What MLflow takes for a name or a value. What it would refuse is mapped or cut so that it shows, and never raised."""

from __future__ import annotations

import hashlib
import math
import re

MAX_KEY, MAX_VALUE = 250, 2000
"""Characters of a key, which MLflow's databases hold no more of; and of a value, a hundred of which fit into one call."""

_NOT_IN_KEYS = re.compile(r"[^\w /.:-]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")  # PostgreSQL refuses the first, HTTP the last
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")


def key(name: str) -> str:
    """The key of a metric or parameter: letters, digits and ` _-./:`, no path that leads elsewhere, at most 250 characters.

    Two long names that differ stay two keys.
    """
    parts = [part for part in _NOT_IN_KEYS.sub("_", name).split("/") if part not in ("", ".", "..")]
    cleaned = "/".join(parts) or "_"
    return cleaned if len(cleaned) <= MAX_KEY else f"{cleaned[: MAX_KEY - 12]}...-{_short_hash(name)}"


def text(value: object, most: int = MAX_VALUE) -> str:
    """A value as text, without control characters but line ends and tabs; one of more than `most` says how long it was."""
    whole = _CONTROL.sub("\ufffd", str(value))
    note = f"... ({len(whole)} characters)"
    return whole if len(whole) <= most else whole[: most - len(note)] + note


def number(value: object) -> float | None:
    """A finite number as a float, and None for anything else: MLflow would store an infinity as a large number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def folder(name: str) -> str:
    """The name of a folder for something called `name`: itself where any file system takes it, else what is left and a hash."""
    if _FOLDER.fullmatch(name) and not name.endswith((".", " ")):
        return name
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)[:40].strip('-')}-{_short_hash(name)}".lstrip("-")


def _short_hash(name: str) -> str:
    return hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]
