"""Tune's Searcher as a thin adapter. Tune pickles it, so what it talks to stays outside, in this module."""

from __future__ import annotations

import json
from typing import Any, Protocol

from ray.tune.search import Searcher


class Conversation(Protocol):
    """What a sweep answers when Tune asks for trials and reports their ends."""

    def next_config(self) -> dict[str, Any] | str | None:
        """The next trial's config, Searcher.FINISHED when there will be none, or None for "not now"."""

    def judged(self, number: int, report: dict[str, Any]) -> None:
        """A trial has come to where it is to be judged: decide, and let the desk know."""

    def ended(self, number: int, outcome: dict[str, Any] | None) -> None:
        """A client of Tune is done; its result, if there is one, is on disk."""


_open: dict[str, Conversation] = {}


def open_conversation(token: str, conversation: Conversation) -> SweepSearcher:
    """A searcher for Tune that leads to `conversation` for as long as it is open."""
    _open[token] = conversation
    return SweepSearcher(token)


def conversation(token: str) -> Conversation:
    """The conversation that a searcher and a scheduler of Tune lead to."""
    return _open[token]


def close_conversation(token: str) -> None:
    """Forget a conversation."""
    _open.pop(token, None)


class SweepSearcher(Searcher):  # type: ignore[misc]
    """Knows which of Tune's trials is which proposal, and nothing else."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        answer = _open[self._token].next_config()
        if isinstance(answer, dict):
            self._numbers[trial_id] = answer["number"]
        return answer

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self._numbers.pop(trial_id, None)
        if number is not None:
            outcome = json.loads((result or {}).get("outcome", "null"))
            _open[self._token].ended(number, outcome)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's folder is the memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""
