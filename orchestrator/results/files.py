"""Files that are whole or absent: written beside their place, synced, then moved or linked into it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_once(path: Path, content: bytes) -> bool:
    """Create `path` with `content`; return False, and leave what is there, when it exists already."""
    partial = _write_partial(path, content)
    try:
        os.link(partial, path)  # fails when the name is taken, which a rename would not
    except FileExistsError:
        return False
    finally:
        partial.unlink()
    return True


def replace(path: Path, content: bytes) -> None:
    """Write `path` so that a reader sees the old content or the new, never a part."""
    _write_partial(path, content).replace(path)


def as_json(value: Any) -> bytes:
    """JSON for people and programs: indented, keys in the order in which they were put, no NaN."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None when there is no such file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def exclusive(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an advisory lock on `path`, which the kernel releases when the process dies; yields whether it was had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def _write_partial(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError:  # the disk is full, say: what was written takes room in vain
        partial.unlink(missing_ok=True)
        raise
    return partial
