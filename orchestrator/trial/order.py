"""What a worker is handed, and how seeds follow from it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Order:
    """One trial to run, as plain data that crosses process borders.

    Args:
        number: of the proposal.
        recipe: the filled recipe, as a tree.
        constraints: metric to {"min", "max"}, as a tree.
        sweep_seed: all other seeds derive from it.
        folder: absolute path of the trial's folder.
        stages: absolute path of the stage store.
        threads: of torch, per worker.
        device: "cpu" or "cuda".
        attempt: names this try in the facts.
        objectives: metrics that something decides on while the trial runs (a stopping rule); the gate measures them early.
    """

    number: int
    choice: dict[str, Any]
    recipe: dict[str, Any]
    constraints: dict[str, Any]
    sweep_seed: int
    folder: str
    stages: str
    threads: int = 1
    device: str = "cpu"
    attempt: str = "a1"
    objectives: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def derived_seed(*parts: int | str) -> int:
    """A seed in [0, 2^31) that depends on every part and on nothing else."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
