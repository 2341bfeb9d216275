"""The stage store: what a stage made, kept under a hash of everything that it depends on.

A folder `<key>/` is whole or absent. One process computes a key while the others wait for it; a failure is never kept.
`<key>.partial/` is what a stage under way works in, and where its checkpoints outlive a process that is stopped or killed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError, TrialError
from orchestrator.results.files import exclusive
from orchestrator.training.process import Process

# Packages and libraries whose code decides what a stage makes.
_KIT = ("data", "models", "training", "compression", "measure", "trial")
_LIBRARIES = ("torch", "torchvision", "torch-pruning", "numpy", "onnx", "onnxscript", "onnxruntime")
_TICK_S = 0.2


def stage_key(name: str, settings: Any, parents: list[str], surroundings: dict[str, Any]) -> str:
    """Hash of a stage's settings, its inputs' keys, what surrounds it (threads, world size, device), and our source."""
    parts = [name, settings, parents, surroundings, source_hash(), library_versions()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def source_hash() -> str:
    """Hash of the torch kit's source."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for package in _KIT for path in (root / package).glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def file_hash(path: str) -> str:
    """Hash of a file's content, read once as long as its size and time stay."""
    stat = Path(path).stat()
    return _file_hash(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _file_hash(path: str, size: int, changed: int) -> str:
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute."""
    return {name: metadata.version(name) for name in _LIBRARIES}


class StageStore:
    """The folders of one store.

    Args:
        root: absolute; on storage that every worker of a gang sees.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def obtain(self, key: str, process: Process, make: Callable[[Path], None], *, alone: bool = False) -> tuple[Path, bool]:
        """The folder of a key, made if need be; returns whether it was there already.

        Args:
            make: called on every rank of the one gang that computes, with a folder that rank 0 fills.
            alone: it is called on rank 0 only, and may take longer than a collective waits. What it raises is raised on all
                ranks; where it is no error of ours, the others raise an OrchestratorError with its text.

        Every rank calls this at the same point. Rank 0 decides hit or miss. While another gang computes, or rank 0 alone,
        rank 0 tells the others so five times a second: no rank idles inside a collective.
        """
        folder = self.root / key
        while True:
            if process.first:
                with exclusive(self.root / f"{key}.lock", wait=False) as mine:
                    state = "hit" if folder.exists() else "mine" if mine else "busy"
                    if state == "mine" and alone:
                        _while_others_wait(process, lambda: self._fill(folder, make))
                        state = "made"
                    process.agreed(state)
                    if state == "mine":
                        self._fill(folder, make)
                        process.agreed("written")
            else:
                state = process.agreed(None)
                if isinstance(state, Exception):
                    raise state
                if state == "mine":
                    make(folder)
                    process.agreed(None)
            if state != "busy":
                return folder, state == "hit"
            time.sleep(_TICK_S)

    def under_way(self, key: str) -> Path:
        """Where whoever makes a stage keeps checkpoints, for the next who makes it. There is no such folder once it is made."""
        return self.root / f"{key}.partial"

    def _fill(self, folder: Path, make: Callable[[Path], None]) -> None:
        """Make into a folder beside the place, and move it there whole.

        Checkpoints stay when the making is cut short, and go when it is done, or failed by the recipe's fault: it would again.
        """
        under_way = self.under_way(folder.name)
        partial = under_way / uuid.uuid4().hex
        partial.mkdir(parents=True)
        over = False
        try:
            make(partial)
            partial.rename(folder)
            over = True
        except TrialError:
            over = True
            raise
        finally:
            shutil.rmtree(under_way if over else partial, ignore_errors=True)
            with contextlib.suppress(OSError):
                under_way.rmdir()  # fails where there is a checkpoint


def _while_others_wait(process: Process, work: Callable[[], None]) -> None:
    """Do rank 0's work on a thread, and tell the other ranks "busy" meanwhile, or the error that it ends in."""
    if process.world_size == 1:
        work()
        return
    raised: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised below, on every rank
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_TICK_S)
        if thread.is_alive():
            process.agreed("busy")
    if raised:
        process.agreed(_portable(raised[0]))
        raise raised[0]


def _portable(error: Exception) -> OrchestratorError:
    """The error, or its text in one of ours, which all survive the way to another process."""
    return error if isinstance(error, OrchestratorError) else OrchestratorError(f"{type(error).__name__} on rank 0: {error}")
