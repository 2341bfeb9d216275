"""How a benchmark runs the product, and what it leaves: a verdict, a JSON file and a picture."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]


def say(text: str) -> None:
    """How far a benchmark is, on stderr."""
    print(text, file=sys.stderr, flush=True)


def environment(**more: str) -> dict[str, str]:
    """What subprocesses run with: compiled modules are kept, and Ray takes the Python it is started from."""
    found = {**os.environ, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0", **more}
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    return found


def run(command: Sequence[str | Path], fine: Collection[int] = (0,), **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command from the repository's root; RuntimeError with the end of what it said when it fails.

    Args:
        fine: exit codes that are no failure.
        more: environment variables.
    """
    done = subprocess.run([*map(str, command)], cwd=ROOT, env=environment(**more), capture_output=True, text=True, check=False)
    if done.returncode not in fine:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stderr[-3000:]}")
    return done


def orchestrate(*arguments: str | Path, home: Path, fine: Collection[int] = (0,)) -> subprocess.CompletedProcess[str]:
    """The product's command line, as a user gives it, in a home of its own."""
    return run([sys.executable, "-m", "orchestrator.cli.main", *arguments], fine, ORCHESTRATOR_HOME=str(home))


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median with a bootstrapped 95 % interval: low, median, high."""
    draws = np.random.default_rng(0).choice(np.asarray(values, dtype=np.float64), (10_000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5], method="nearest")  # values may be infinite
    return float(low), float(np.median(values)), float(high)


def shown(values: Sequence[float], digits: int = 2) -> str:
    """Median and interval, as printed."""
    low, middle, high = interval(values)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def verdict(what: str, value: float, target: float, *, most: bool = False) -> dict[str, Any]:
    """Print whether a target is met, and return it as plain data.

    Args:
        most: the value must be no more than the target, instead of no less.
    """
    met = value <= target if most else value >= target
    print(f"target: {what} {'<=' if most else '>='} {target:g}: {value:.3g}: {'met' if met else 'MISSED'}", flush=True)
    return {"what": what, "value": value, "target": target, "met": met}


def keep(name: str, facts: dict[str, Any], out: Path) -> None:
    """Write a benchmark's figures as JSON: null for what is not finite, of an absolute path its name alone."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(finite(without_places(facts)), indent=1, allow_nan=False) + "\n")


def without_places(tree: Any) -> Any:
    """The same nest, with the name alone of what is an absolute path: where things lie is this machine's own affair."""
    if isinstance(tree, dict):
        return {key: without_places(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_places(value) for value in tree]
    return Path(tree).name if isinstance(tree, str) and tree.startswith("/") else tree


def finite(tree: Any) -> Any:
    """The same nest of mappings and lists, with None for numbers that JSON cannot hold."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def picture(name: str, title: str, panels: Sequence[Callable[[Any], None]], out: Path) -> None:
    """Draw panels side by side, each by a function of its axes, into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * len(panels), 4.4), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes)
    figure.suptitle(title, fontsize=10)
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f".{name}.png"
    figure.savefig(partial, format="png")
    partial.replace(out / f"{name}.png")


def bars(axes: Any, values: Mapping[str, Sequence[float]], unit: str, *, log: bool = False) -> None:
    """One horizontal bar a name: the median, with its interval, and every value as a dot."""
    names = list(values)
    for place, name in enumerate(names):
        low, middle, high = interval(values[name])
        axes.barh(place, middle, color="C0" if name.startswith("ours") else "0.75")
        axes.plot([low, high], [place, place], color="black", linewidth=1.5)
        axes.plot(values[name], [place] * len(values[name]), ".", color="C1", markersize=4)
        axes.annotate(f" {middle:.0f}" if middle >= 100 else f" {middle:.3g}", (high, place), va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    if log:
        axes.set_xscale("log")
    axes.margins(x=0.15)
