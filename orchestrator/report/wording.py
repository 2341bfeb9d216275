"""Names and numbers as people read them, whatever they hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

LOGARITHMIC = frozenset(
    {"size_bytes", "latency_ms", "latency_ms_p95", "latency_ms_low", "latency_ms_high", "macs", "num_parameters"}
)

_JOINER = "\u200d"  # what holds an emoji of several signs together


def with_unit(value: float) -> str:
    """A round number as people write it: 20k, 0.05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def shown(value: Any) -> str:
    """A value in a sentence or a table: numbers with four significant digits, and no exponent for what is merely large."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else one_line(str(value), 60)


def one_line(text: str, limit: int) -> str:
    """A text's first line, cut after `limit` characters; signs that have no shape, or turn the line around, are replaced."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    seen = "".join(sign if sign.isprintable() or sign == _JOINER else "\ufffd" for sign in first[: limit + 1])
    return seen if len(seen) <= limit else f"{seen[:limit]}…"


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Each path's shortest dotted end that no other path has: `ratio` for `pruning.ratio`."""
    found = {}
    for path in paths:
        keys = path.split(".")
        ends = [".".join(keys[start:]) for start in reversed(range(len(keys)))]
        found[path] = next((end for end in ends if sum(o == end or o.endswith(f".{end}") for o in paths) == 1), path)
    return found
