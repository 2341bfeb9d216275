"""What a point would cost in seconds, when stages that other trials have made, or are making, cost nothing. An estimate."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.recipe import Recipe
from orchestrator.spec.space import Choice, Value, value_at

# By stage: the sections of a recipe that it and all stages before it depend on, and where its epochs stand.
_STAGES = {
    "student": (("data", "model", "training", "teacher", "distillation", "adversarial"), "training.epochs"),
    "pruned": (("data", "model", "training", "teacher", "distillation", "adversarial", "pruning"), "pruning.epochs"),
}
_METHOD = "quantization.method"
_QUANTIZATION = "quantization.epochs"

_ALONE = (("preflight", 1.0), ("export", 1.0), ("measure", 1.0))  # what every trial does for itself

Kind = tuple[str, str]
"""Stage and method of quantization: what takes its time in the same way."""
Shared = tuple[tuple[object, ...], str, float]
"""A stage that others may share: what tells it apart, its name, and units of work."""
Parts = tuple[str, list[Shared], float]
"""Method of quantization, stages that may be shared, and units of work to quantize."""


class Prices:
    """Learns from results what an epoch of each stage takes, and from proposals which stages exist."""

    def __init__(self, recipe: Recipe) -> None:
        self._tree = recipe.model_dump()
        self._made: set[tuple[object, ...]] = set()
        self._seconds: dict[Kind, list[float]] = {}  # by unit of work

    def know(self, choice: Choice) -> None:
        """A trial was asked for: its stages are there, or soon will be."""
        self._made.update(stage for stage, _, _ in self._shared(choice))

    def tell(self, result: TrialResult) -> None:
        """Take in what its stages took; one from the store tells nothing."""
        work = {name: amount for _, name, amount in self._shared(result.choice)}
        method = str(self._at(result.choice, _METHOD))
        work["quantized"] = self._quantizing(result.choice)
        for stage in result.stages:
            if not stage.cached:
                self._seconds.setdefault((stage.name, method), []).append(stage.seconds / work.get(stage.name, 1.0))

    def parts(self, choice: Choice) -> Parts:
        """What of a point its price depends on; it stays the same, whatever else is told."""
        method = str(self._at(choice, _METHOD))
        return method, self._shared(choice), self._quantizing(choice) if method != "none" else 0.0

    def of(self, points: Sequence[Parts]) -> list[float]:
        """Seconds for each point, > 0; all alike before a result has been told."""
        typical = {kind: statistics.median(seconds) for kind, seconds in self._seconds.items()}
        by_stage: dict[str, list[float]] = {}
        for (stage, _), seconds in typical.items():
            by_stage.setdefault(stage, []).append(seconds)
        usual = {stage: statistics.median(seconds) for stage, seconds in by_stage.items()}
        return [self._price(parts, typical, usual) for parts in points]

    def _price(self, parts: Parts, typical: dict[Kind, float], usual: dict[str, float]) -> float:
        method, shared, quantizing = parts
        work = [
            *_ALONE,
            ("quantized", quantizing),
            *((name, amount) for stage, name, amount in shared if stage not in self._made),
        ]
        return sum(amount * typical.get((name, method), usual.get(name, 0.0)) for name, amount in work) or 1.0

    def _shared(self, choice: Choice) -> list[Shared]:
        found: list[Shared] = []
        for name, (sections, epochs) in _STAGES.items():
            if name == "pruned" and not self._at(choice, "pruning.ratio"):
                continue
            held = tuple((path, value) for path, value in choice.items() if path.partition(".")[0] in sections)
            found.append(((name, *held), name, 1.0 + float(self._at(choice, epochs))))
        return found

    def _quantizing(self, choice: Choice) -> float:
        trained = self._at(choice, _METHOD) == "qat"
        return 1.0 + (float(self._at(choice, _QUANTIZATION)) if trained else 0.0)

    def _at(self, choice: Choice, path: str) -> Value:
        value: Value = choice[path] if path in choice else value_at(self._tree, path)
        return value
