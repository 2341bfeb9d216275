"""What lies in the stage store's folder: entries that can be checked, who uses them, and which of them go when room is short.

An entry is a folder `<key>/` with a manifest in it, which says what stage made it, how long that took, and what it holds.
`<key>.partial/` is what a stage under way works in. Whoever makes a key holds a lock on `<key>.lock`; whoever reads an entry
holds a shared lock on its manifest, and no entry is removed while somebody does.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.errors import TrialError
from orchestrator.results import files

MANIFEST = "manifest.json"
CHECKPOINT = "checkpoint"  # what an entry under way is called among the stages
PARTIAL = ".partial"
YOUNG_S = 24 * 3600.0  # a checkpoint that is younger is still waited for
_GONE = ".gone-"
_SMALL_BYTES = 2**23  # so much is hashed in 5 ms
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

log = logging.getLogger(__name__)


class FullDiskError(TrialError):
    """There was no room for what a stage makes."""


@dataclass(frozen=True)
class Manifest:
    """What an entry is.

    Args:
        stage: that made it, as trials record it.
        seconds: that making it took.
        made: when, in seconds since the epoch.
        files: by path inside the entry, bytes and SHA-256 in hexadecimal digits.
    """

    stage: str
    seconds: float
    made: float
    files: dict[str, tuple[int, str]]

    @property
    def num_bytes(self) -> int:
        return sum(size for size, _ in self.files.values())

    def to_bytes(self) -> bytes:
        held = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in self.files.items()}
        return files.as_json({**asdict(self), "files": held})

    @classmethod
    def of(cls, folder: Path, stage: str, seconds: float) -> Manifest:
        """What a folder holds now."""
        found = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
        held = {path.relative_to(folder).as_posix(): (path.stat().st_size, sha256(path)) for path in found}
        return cls(stage, seconds, time.time(), held)

    @classmethod
    def read(cls, content: bytes) -> Manifest:
        """ValueError for what is no manifest, or names a file outside its folder."""
        try:
            tree: dict[str, Any] = json.loads(content)
            held = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in tree["files"].items()}
            manifest = cls(str(tree["stage"]), float(tree["seconds"]), float(tree["made"]), held)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"a manifest must be whole: {type(error).__name__}: {error}") from None
        for name in held:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name or not name:
                raise ValueError(f"a manifest must name files inside its folder; given {name!r}")
        return manifest


def sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def seal(folder: Path, stage: str, seconds: float) -> None:
    """Bring what a folder holds to the disk, and put the manifest beside it."""
    manifest = Manifest.of(folder, stage, seconds)
    for name in manifest.files:
        with (folder / name).open("rb+") as handle:
            os.fsync(handle.fileno())
    files.replace(folder / MANIFEST, manifest.to_bytes())


def manifest_of(folder: Path) -> Manifest | None:
    """An entry's manifest, or None where there is none that can be read."""
    try:
        return Manifest.read((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None


def fault(folder: Path) -> str | None:
    """Why an entry is not what was made, or None. Names and sizes are held to the manifest, contents where they are small."""
    manifest = manifest_of(folder)
    if manifest is None:
        return "its manifest cannot be read"
    for name, (size, digest) in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} must have {size} bytes; it has {path.stat().st_size}"
        if manifest.num_bytes <= _SMALL_BYTES and sha256(path) != digest:
            return f"{name} must hold what was written; its hash differs"
    return None


class Hold:
    """A lock on a file, which the kernel takes back when the process dies, and this when nobody keeps it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def on(cls, path: Path, *, alone: bool) -> Hold | None:
        """A lock, or None where there is no such file, or another's lock on it.

        Args:
            alone: nobody else may hold it; otherwise others who read may.
        """
        try:
            descriptor = os.open(path, os.O_RDWR)  # NFS gives no exclusive lock on what cannot be written
        except FileNotFoundError:
            return None
        hold = cls(descriptor)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return hold if os.path.samestat(os.fstat(descriptor), path.stat()) else None
        except (BlockingIOError, FileNotFoundError):
            return None

    def __del__(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True)
class Entry:
    """One folder of the store.

    Args:
        path: of the folder.
        stage: that made it; "checkpoint" for one under way, "unknown" where no manifest says it.
        num_bytes: of its files.
        used: when it was made or last taken, in seconds since the epoch.
        under_way: whether it is what a stage works in, or left there.
        in_use: whether somebody holds it, as far as was asked.
    """

    path: Path
    stage: str
    num_bytes: int
    used: float
    under_way: bool = False
    in_use: bool = False

    @property
    def guard(self) -> Path:
        """What is locked while it is used."""
        manifest = self.path / MANIFEST
        return manifest if manifest.exists() else self.path.with_name(f"{self.path.name.removesuffix(PARTIAL)}.lock")


def entries(root: Path) -> list[Entry]:
    """Everything that lies in the store, by name; nothing where there is no such folder."""
    found = sorted(root.iterdir()) if root.is_dir() else []
    return [entry for path in found if path.is_dir() and (entry := _entry(path)) is not None]


def with_use(found: Sequence[Entry]) -> list[Entry]:
    """The same, with what is held now marked so."""
    return [replace(entry, in_use=entry.guard.exists() and Hold.on(entry.guard, alone=True) is None) for entry in found]


def evictions(found: Sequence[Entry], limit_bytes: int, now: float) -> list[Entry]:
    """The least recently used entries, as many as have to go for the rest to fit.

    What is in use stays, and so does a checkpoint of the last day: the rest may not fit for that.
    """
    over = sum(entry.num_bytes for entry in found) - limit_bytes
    chosen = []
    for entry in sorted(found, key=lambda entry: (entry.used, entry.path.name)):
        if over <= 0:
            break
        if entry.in_use or (entry.under_way and now - entry.used < YOUNG_S):
            continue
        chosen.append(entry)
        over -= entry.num_bytes
    return chosen


def selected(found: Sequence[Entry], *, stage: str | None, least_age_s: float, now: float) -> list[Entry]:
    """Those of a stage (of any where it is None) that were not used for so many seconds."""
    return [entry for entry in found if stage in (None, entry.stage) and now - entry.used >= least_age_s]


def remove(entry: Entry) -> bool:
    """Delete an entry, at one stroke for those who look; False when somebody uses it."""
    if entry.path.name.startswith(_GONE):  # what somebody who was killed did not get to the end of
        shutil.rmtree(entry.path, ignore_errors=True)
        return True
    hold = Hold.on(entry.guard, alone=True)
    if hold is None and entry.guard.exists():
        return False
    put_aside(entry.path)
    return True


def put_in_place(partial: Path, folder: Path) -> None:
    """Give an entry its name. Where locks do not reach another node it may be there already, with the same in it."""
    try:
        partial.rename(folder)
    except OSError:
        if fault(folder) is not None:
            raise


def put_aside(folder: Path) -> None:
    """Delete a folder so that nobody sees a part of it under its name."""
    gone = folder.with_name(f"{_GONE}{uuid.uuid4().hex}")
    try:
        folder.rename(gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone, ignore_errors=True)


def make_room(root: Path, limit_bytes: int) -> list[Entry]:
    """Remove what has to go for the store to keep to its limit, unless somebody is at it already; returns what went."""
    with files.exclusive(root / ".evict.lock", wait=False) as mine:
        found = entries(root) if mine else []
        if sum(entry.num_bytes for entry in found) <= limit_bytes:
            return []
        return [entry for entry in evictions(with_use(found), limit_bytes, time.time()) if remove(entry)]


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk, a quota or the largest size of a file is used up."""
    # safetensors raises an error of its own, with the system's in its text.
    number = error.errno if isinstance(error, OSError) else None
    return number in _FULL or any(f"(os error {full})" in str(error) for full in _FULL)


def no_room(root: Path, stage: str, error: BaseException) -> FullDiskError:
    """What a user is told whose disk is full."""
    place = Path(error.filename).parent if isinstance(error, OSError) and isinstance(error.filename, str) else root
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    return FullDiskError(
        f"{place} must have room for stage {stage!r}; {shutil.disk_usage(there).free / 1e6:.1f} MB are free, and writing ended "
        f"with: {error}. `orchestrator cache --clear` deletes stages, `storage.limit_gb` in the job holds them to a limit"
    )


def keep_checkpoint(path: Path, content: bytes) -> None:
    """Replace a checkpoint, or go on without where the disk is full: a training has no need of it."""
    try:
        files.replace(path, content)
    except OSError as error:
        if not is_full(error):
            raise
        log.warning("no checkpoint is kept at %s, as the disk is full", path)


def _entry(path: Path) -> Entry | None:
    """What a folder is, or None where it went while it was looked at."""
    try:
        if path.name.endswith(PARTIAL):
            told = list(_stats(path))
            used = max([path.stat().st_mtime, *(stat.st_mtime for stat in told)])
            return Entry(path, CHECKPOINT, sum(stat.st_size for stat in told), used, under_way=True)
        manifest = manifest_of(path)
        if manifest is None:
            return Entry(path, "unknown", sum(stat.st_size for stat in _stats(path)), path.stat().st_mtime)
        return Entry(path, manifest.stage, manifest.num_bytes, (path / MANIFEST).stat().st_mtime)
    except FileNotFoundError:
        return None


def _stats(folder: Path) -> Iterator[os.stat_result]:
    return (path.stat() for path in folder.rglob("*") if path.is_file())
