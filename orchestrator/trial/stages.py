"""The stage store: what a stage made, kept under a hash of everything that it depends on.

A folder `<key>/` is whole or absent. One process computes a key while the others wait for it; a failure is never kept.
`<key>.partial/` is what a stage under way works in, and where its checkpoints outlive a process that is stopped or killed.
What lies on the disk is `shelf`'s business, a store that nodes share is `shared`'s; docs/stages.md tells it as a whole.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import TrialError
from orchestrator.results.files import exclusive
from orchestrator.trial import shelf
from orchestrator.trial.shared import SharedShelf
from orchestrator.trial.waiting import while_others_wait

if TYPE_CHECKING:
    from orchestrator.training.process import Process

# Packages and libraries whose code decides what a stage makes.
_KIT = ("data", "models", "training", "compression", "measure", "trial")
_LIBRARIES = ("torch", "torchvision", "torch-pruning", "numpy", "onnx", "onnxscript", "onnxruntime")
_TICK_S = 0.2
_NUM_HELD = 64  # entries taken last that nobody may evict: one is read until the next is, or for an epoch


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
        shared: where entries are looked for that are not here, and brought up; see `shared.SharedShelf`.
        limit_bytes: above which the least recently used entries go, each time one was stored.
    """

    def __init__(self, root: Path, shared: str | None = None, limit_bytes: int | None = None) -> None:
        self.root, self._limit_bytes = root, limit_bytes
        self._shared = SharedShelf(shared) if shared is not None else None
        self._held: OrderedDict[str, shelf.Hold] = OrderedDict()
        self._kept: dict[str, shelf.Hold] = {}

    @classmethod
    def of(cls, settings: str | dict[str, Any]) -> StageStore:
        """From plain data: the root, or a mapping of `root`, `shared` and `limit_gb` (10^9 bytes), as a job has them."""
        if isinstance(settings, str):
            return cls(Path(settings))
        limit_gb = settings.get("limit_gb")
        return cls(Path(settings["root"]), settings.get("shared"), None if limit_gb is None else round(limit_gb * 1e9))

    def obtain(
        self,
        key: str,
        process: Process,
        make: Callable[[Path], None],
        *,
        stage: str = "unknown",
        alone: bool = False,
        keep: bool = False,
    ) -> tuple[Path, bool]:
        """The folder of a key, made if need be; returns whether it was there already, here or in the shared store.

        Args:
            make: called on every rank of the one gang that computes, with a folder that rank 0 fills.
            stage: what the entry is called in lists.
            alone: it is called on rank 0 only, and may take longer than a collective waits. What it raises is raised on all
                ranks; where it is no error of ours, the others raise an OrchestratorError with its text.
            keep: the folder is read for as long as this process lives, so it is never evicted meanwhile.

        Every rank calls this at the same point. Rank 0 decides hit or miss. While another gang computes, or rank 0 alone,
        rank 0 tells the others so five times a second: no rank idles inside a collective.

        Raises:
            FullDiskError: there was no room; on all ranks, and nothing half made is left.
        """
        folder = self.root / key
        while True:
            state = self._lead(key, process, make, stage, alone) if process.first else self._follow(key, process, make)
            if state != "busy":
                if keep and key in self._held:
                    self._kept[key] = self._held[key]
                return folder, state == "hit"
            time.sleep(_TICK_S)

    def under_way(self, key: str) -> Path:
        """Where whoever makes a stage keeps checkpoints, for the next who makes it. There is no such folder once it is made."""
        return self.root / f"{key}{shelf.PARTIAL}"

    def seconds(self, key: str) -> float:
        """How long making an entry took, wherever that was; 0 where there is none."""
        manifest = shelf.manifest_of(self.root / key)
        return 0.0 if manifest is None else manifest.seconds

    def touch(self, key: str) -> None:
        """Count an entry as used now: it was, from memory."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.root / key / shelf.MANIFEST)

    def _lead(self, key: str, process: Process, make: Callable[[Path], None], stage: str, alone: bool) -> str:
        """Rank 0: one try, and what all ranks are told of it."""
        with self._locked(key, process, stage) as mine:
            if self._has(key):
                state = "hit"
            elif not mine or not self._cleared(key):
                state = "busy"
            elif self._shared is not None and while_others_wait(process, lambda: self._fetched(key, stage), _TICK_S):
                state = "hit"
            elif alone:
                while_others_wait(process, lambda: self._store(key, make, stage), _TICK_S)
                state = "made"
            else:
                self._store_together(key, process, make, stage)
                state = "written"
            process.agreed(state)
            return state

    def _follow(self, key: str, process: Process, make: Callable[[Path], None]) -> str:
        """Another rank: do its share of what rank 0 says."""
        state = process.agreed(None)
        if state == "mine":
            make(self.root / key)
            while (state := process.agreed(None)) == "busy":
                pass  # rank 0 brings up what was made
        if isinstance(state, Exception):
            raise state
        return str(state)

    @contextlib.contextmanager
    def _locked(self, key: str, process: Process, stage: str) -> Iterator[bool]:
        """The lock of whoever makes a key; all ranks are told when there is no room even for that."""
        with contextlib.ExitStack() as stack:
            try:
                mine = stack.enter_context(exclusive(self.root / f"{key}.lock", wait=False))
            except OSError as error:
                if not shelf.is_full(error):
                    raise
                raised = shelf.no_room(self.root, stage, error)
                process.agreed(raised)
                raise raised from error
            yield mine

    def _store_together(self, key: str, process: Process, make: Callable[[Path], None], stage: str) -> None:
        """Make an entry with all ranks, then bring it up while the others wait."""
        process.agreed("mine")
        try:
            self._fill(key, make, stage)
        except shelf.FullDiskError as error:
            process.agreed(error)  # only this rank writes, so only this rank knows
            raise
        while_others_wait(process, lambda: self._stored(key), _TICK_S)

    def _store(self, key: str, make: Callable[[Path], None], stage: str) -> None:
        self._fill(key, make, stage)
        self._stored(key)

    def _stored(self, key: str) -> None:
        """After an entry was made: bring it up, and keep to the limit. It is in use, so it is not what goes."""
        self._hold(key)
        if self._shared is not None:
            self._shared.offer(key, self.root / key)
        self._keep_to_limit()

    def _keep_to_limit(self) -> None:
        if self._limit_bytes is not None:
            shelf.make_room(self.root, self._limit_bytes)

    def _has(self, key: str) -> bool:
        """Whether there is a whole entry; it is then held, and counts as used now."""
        if not (self.root / key).exists():
            return False
        hold = self._hold(key)
        if hold is None or shelf.fault(self.root / key) is not None:
            return False
        self.touch(key)
        return True

    def _cleared(self, key: str) -> bool:
        """Put aside what lies in a key's place and is not whole; False while somebody removes a whole one."""
        folder = self.root / key
        if not folder.exists():
            return True
        why = shelf.fault(folder)
        if why is None:
            return False
        shelf.log.warning("stage %s is not whole and is made again: %s", folder, why)
        shelf.put_aside(folder)
        return True

    def _hold(self, key: str) -> shelf.Hold | None:
        """Let nobody evict an entry before some others were taken."""
        hold = shelf.Hold.on(self.root / key / shelf.MANIFEST, alone=False)
        if hold is not None:
            self._held[key] = hold
            self._held.move_to_end(key)
            if len(self._held) > _NUM_HELD:
                self._held.popitem(last=False)
        return hold

    def _fetched(self, key: str, stage: str) -> bool:
        """Bring an entry down; whether there was one."""
        assert self._shared is not None
        found = False
        with self._working(key, stage) as partial:
            found = self._shared.fetch(key, partial)
            if found:
                shelf.put_in_place(partial, self.root / key)
        if found:
            shutil.rmtree(self.under_way(key), ignore_errors=True)
            self._hold(key)
            self._keep_to_limit()
        return found

    def _fill(self, key: str, make: Callable[[Path], None], stage: str) -> None:
        """Make into a folder beside the place, and move it there whole.

        Checkpoints stay when the making is cut short, and go when it is done, or failed by the recipe's fault: it would again.
        """
        over = False
        try:
            with self._working(key, stage) as partial:
                clock = time.perf_counter()
                make(partial)
                shelf.seal(partial, stage, time.perf_counter() - clock)
                shelf.put_in_place(partial, self.root / key)
            over = True
        except TrialError:
            over = True
            raise
        finally:
            if over:
                shutil.rmtree(self.under_way(key), ignore_errors=True)

    @contextlib.contextmanager
    def _working(self, key: str, stage: str) -> Iterator[Path]:
        """A new folder to work in, which goes in any case; those that killed processes left go first.

        Raises:
            FullDiskError: for any error that says so.
        """
        under_way = self.under_way(key)
        partial = under_way / uuid.uuid4().hex
        try:
            for left in under_way.glob("*/"):
                shutil.rmtree(left, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
        except Exception as error:
            if not shelf.is_full(error):
                raise
            raise shelf.no_room(self.root, stage, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            with contextlib.suppress(OSError):
                under_way.rmdir()  # fails where there is a checkpoint
