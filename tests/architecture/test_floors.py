"""The floors of the house: what may import what, who may open which door, and how long a room may be.

Everything is read from the source by `ast`, so an import that hides inside a function counts as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "orchestrator"
FLOORS = {
    "errors": 0,
    "spec": 1,
    "results": 2,
    "search": 3,
    "pareto": 3,
    "data": 3,
    "models": 3,
    "training": 3,
    "compression": 3,
    "measure": 3,
    "trial": 4,
    "tracking": 5,
    "report": 5,
    "cluster": 6,
    "delivery": 6,
    "cli": 7,
}
KIT = frozenset({"data", "models", "training", "compression", "measure"})
DOORS = {"ray": "cluster", "mlflow": "tracking", "plotly": "report", "optuna": "search"}
FORBIDDEN_NAMES = frozenset({"utils", "helpers", "common", "core", "base", "manager"})
UNPICKLERS = frozenset({"pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal"})
SAFE_LOADERS = frozenset({"SafeLoader", "CSafeLoader", "BaseLoader"})
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 50

FILES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
SOURCES = {module: path.read_text(encoding="utf-8") for module, path in FILES.items()}
over_the_source = pytest.mark.parametrize("module", SOURCES)


# The rules, as functions of a module's dotted name and its source.


def imported(module: str, source: str) -> Iterator[tuple[int, str]]:
    """Every (line, dotted name) that a module imports, wherever it does so; names of `import_module` as far as written."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__") and node.args:
            yield node.lineno, _written(node.args[0])


def import_faults(module: str, source: str) -> list[str]:
    """Upward and sideways arrows, torch kit to settings or facts, and foreign libraries behind another door."""
    faults, own = [], _room(module)
    if own is not None and own not in FLOORS:
        return [f"{module} stands on no floor"]
    for line, name in imported(module, source):
        root, door = name.split(".")[0], DOORS.get(name.split(".")[0])
        if door is not None and own != door:
            faults.append(f"{module}:{line} imports {root}, whose only door is {door}/")
        target = _room(name) if root == PACKAGE.name else None
        if target is None or target == own:
            continue
        if target not in FLOORS:
            faults.append(f"{module}:{line} imports {name}, which stands on no floor")
        elif own is None or FLOORS[target] >= FLOORS[own]:
            faults.append(f"{module}:{line} imports {name}, which does not stand on a lower floor")
        elif target in ("spec", "results") and (own in KIT or (own == "pareto" and module != "orchestrator.pareto.front")):
            faults.append(f"{module}:{line} imports {name}, but takes and gives only arrays, tensors and plain numbers")
    return faults


def length_faults(module: str, source: str) -> list[str]:
    """Files and functions that have grown past their limit."""
    lines = len(source.splitlines())
    faults = [f"{module} has {lines} lines"] if lines > MAX_FILE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                faults.append(f"{module}:{node.lineno} {node.name} has {length} lines")
    return faults


def name_faults(module: str) -> list[str]:
    """Parts of a module's name that say nothing."""
    return [f"{module} is called {part}" for part in module.split(".") if part.lstrip("_") in FORBIDDEN_NAMES]


def test_split_faults(module: str, source: str) -> list[str]:
    """Mentions of `open_test_split` outside delivery; its definition mentions it by no node that counts here."""
    if _room(module) == "delivery":
        return []
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom | ast.Import) else []
        if isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        if any(name.split(".")[-1] == "open_test_split" for name in names):
            found.append(f"{module}:{node.lineno} opens the test split")
    return found


test_split_faults.__test__ = False  # a rule, not a test


def code_from_data_faults(module: str, source: str) -> list[str]:
    """Ways in which something read from outside could run as code: eval, exec, pickles, YAML without a safe loader."""
    faults = [f"{module}:{line} imports {name}" for line, name in imported(module, source) if name.split(".")[0] in UNPICKLERS]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            faults.append(f"{module}:{node.lineno} calls {node.func.id}")
        if _of_yaml(node) and not _names_safe_loader(node):
            faults.append(f"{module}:{node.lineno} reads YAML without a safe loader")
        if any(word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in node.keywords):
            faults.append(f"{module}:{node.lineno} allows pickles")
    return faults


def _room(name: str) -> str | None:
    """`errors` or the package below `orchestrator` that a dotted name lies in; None for `orchestrator` itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__init__" else None


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""


def _written(node: ast.expr) -> str:
    """A string as far as it stands in the source: the first part of an f-string, "" where nothing is known."""
    if isinstance(node, ast.JoinedStr):
        return _written(node.values[0]).rstrip(".") if node.values else ""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _of_yaml(node: ast.Call) -> bool:
    """Whether a call is one of PyYAML's that build objects, other than the safe ones."""
    loads = ("load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all")
    return isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "yaml" and node.func.attr in loads


def _names_safe_loader(node: ast.Call) -> bool:
    loaders = [*node.args[1:], *(word.value for word in node.keywords if word.arg == "Loader")]
    return _called(node) in ("load", "load_all") and any(ast.unparse(it).split(".")[-1] in SAFE_LOADERS for it in loaders)


# The product keeps the rules.


def test_every_floor_of_the_walk_is_there():
    rooms = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    assert rooms == set(FLOORS)


@over_the_source
def test_imports_lead_down_and_through_the_right_door(module):
    assert import_faults(module, SOURCES[module]) == []


@over_the_source
def test_files_and_functions_stay_short(module):
    assert length_faults(module, SOURCES[module]) == []


@over_the_source
def test_modules_have_names_that_say_something(module):
    assert name_faults(module) == []


@over_the_source
def test_only_delivery_opens_the_test_split(module):
    assert test_split_faults(module, SOURCES[module]) == []


def test_the_test_split_has_one_opener_that_delivery_uses():
    assert "def open_test_split(" in SOURCES["orchestrator.data.splits"]
    users = [module for module, source in SOURCES.items() if _room(module) == "delivery" and "open_test_split(" in source]
    assert len(users) == 1


@over_the_source
def test_nothing_read_from_outside_runs_as_code(module):
    assert code_from_data_faults(module, SOURCES[module]) == []


# The rules catch what they are there for.


@pytest.mark.parametrize(
    ("module", "source"),
    [
        pytest.param("orchestrator.spec.job", "import orchestrator.results.store", id="upward"),
        pytest.param("orchestrator.spec.job", "from orchestrator import results", id="upward by its parent"),
        pytest.param("orchestrator.spec.job", "from ..results import store", id="upward by dots"),
        pytest.param("orchestrator.spec.job", "def f():\n    from orchestrator.trial.order import Order", id="upward and lazy"),
        pytest.param(
            "orchestrator.spec.job",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import orchestrator.trial.order",
            id="upward for types alone",
        ),
        pytest.param("orchestrator.trial.work", "importlib.import_module('orchestrator.cluster.gang')", id="upward by name"),
        pytest.param("orchestrator.trial.work", "import_module(f'orchestrator.cli.{name}')", id="upward by part of a name"),
        pytest.param("orchestrator.trial.work", "__import__('ray')", id="door by name"),
        pytest.param("orchestrator.errors", "from orchestrator.spec.names import MODEL_NAMES", id="from the ground floor"),
        pytest.param("orchestrator.__init__", "from orchestrator.spec.job import Job", id="from the package itself"),
        pytest.param("orchestrator.data.decode", "from orchestrator.models.build import build", id="sideways in the kit"),
        pytest.param("orchestrator.search.gate", "from orchestrator.pareto.front import Front", id="sideways on floor 3"),
        pytest.param("orchestrator.report.page", "import orchestrator.tracking.tracker", id="sideways on floor 5"),
        pytest.param("orchestrator.delivery.pick", "import orchestrator.cluster.sweep", id="sideways on floor 6"),
        *(
            pytest.param(f"orchestrator.{room}.x", f"from orchestrator.{below}.y import Z", id=f"{room} reads {below}")
            for room in sorted(KIT)
            for below in ("spec", "results")
        ),
        pytest.param(
            "orchestrator.pareto.dominance", "from orchestrator.spec.objective import Objective", id="pareto reads spec"
        ),
        pytest.param("orchestrator.pareto.__init__", "from orchestrator.results.store import Home", id="pareto reads results"),
        *(
            pytest.param(f"orchestrator.{room}.x", source, id=f"{room}: {source}")
            for room, source in [
                ("cli", "import ray"),
                ("trial", "from ray.train import get_context"),
                ("delivery", "import mlflow.pyfunc as pyfunc"),
                ("cluster", "def f():\n    import mlflow"),
                ("cli", "from plotly import graph_objects"),
                ("cluster", "import optuna"),
            ]
        ),
        pytest.param("orchestrator.extras.x", "import os", id="a room on no floor"),
        pytest.param("orchestrator.cli.main", "from orchestrator.extras import x", id="leads to a room on no floor"),
    ],
)
def test_a_planted_import_is_caught(module, source):
    assert len(import_faults(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "orchestrator.spec.job",
            "from orchestrator.errors import JobError\nfrom orchestrator.spec.recipe import Recipe",
        ),
        ("orchestrator.spec.job", "from .recipe import Recipe\nfrom ..errors import JobError"),
        ("orchestrator.search.gate", "from orchestrator.spec.job import Job\nimport orchestrator.results.store"),
        ("orchestrator.pareto.front", "from orchestrator.results.trial_result import TrialResult"),
        ("orchestrator.data.decode", "import torch\nfrom orchestrator.errors import OrchestratorError"),
        ("orchestrator.cluster.gang", "import ray.train\nfrom orchestrator.trial.pipeline import run_trial"),
        ("orchestrator.tracking.registry", "import mlflow"),
        ("orchestrator.report.figures", "import plotly.graph_objects"),
        ("orchestrator.search.optuna_sampler", "from optuna.samplers import TPESampler"),
        ("orchestrator.cli.main", "importlib.import_module(f'orchestrator.cli.{name}').command"),
        ("orchestrator.cli.run", "import rayleigh"),
    ],
)
def test_a_permitted_import_is_let_through(module, source):
    assert import_faults(module, source) == []


def test_lengths_are_counted_to_the_line():
    body = "\n".join("    x = 1" for _ in range(MAX_FUNCTION_LINES - 1))
    assert length_faults("m", f"def f():\n{body}\n") == []
    assert length_faults("m", f"async def f():\n    x = 1\n{body}\n") == ["m:1 f has 51 lines"]
    assert length_faults("m", f"class C:\n    def f(self):\n{body.replace('    ', '        ')}\n        y = 2\n") != []
    assert length_faults("m", "x = 1\n" * MAX_FILE_LINES) == []
    assert length_faults("m", "x = 1\n" * (MAX_FILE_LINES + 1)) == ["m has 301 lines"]


@pytest.mark.parametrize("module", ["orchestrator.spec.utils", "orchestrator.core.x", "orchestrator.cli._helpers"])
def test_an_empty_name_is_caught(module):
    assert len(name_faults(module)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from orchestrator.data.splits import open_test_split",
        "from orchestrator.data.splits import open_test_split as peek",
        "splits.open_test_split(path)",
        "peek = open_test_split",
    ],
)
def test_a_planted_look_at_the_test_split_is_caught(source):
    assert len(test_split_faults("orchestrator.trial.work", source)) == 1
    assert test_split_faults("orchestrator.delivery.pick", source) == []


def test_defining_the_opener_is_not_opening():
    assert test_split_faults("orchestrator.data.splits", "def open_test_split(path):\n    return path") == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(text)",
        "import pickle",
        "def f():\n    from cloudpickle import loads",
        "importlib.import_module('pickle')",
        "yaml.load(text)",
        "yaml.load(text, yaml.FullLoader)",
        "yaml.load_all(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "yaml.full_load(text)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_planted_code_from_data_is_caught(source):
    assert len(code_from_data_faults("m", source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "yaml.safe_load(text)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.load(text, yaml.CSafeLoader)",
        "json.load(file)",
        "np.load(path, allow_pickle=False)",
    ],
)
def test_harmless_calls_are_let_through(source):
    assert code_from_data_faults("m", source) == []
