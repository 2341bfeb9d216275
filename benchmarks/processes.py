"""What a killed process leaves behind, by /proc."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

_GONE_S = 180.0


def descendants(pid: int) -> list[int]:
    """All processes below one, children of children too."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue  # ended meanwhile
        below.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found = list(below.get(pid, []))
    for child in found:  # grows while it is read
        found += below.get(child, [])
    return found


def alive(pid: int) -> str:
    """The title of a process, "" when it has ended; one that only waits for its parent to notice that has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
    return "" if state in "ZX" else title[:80] or "?"


def lock_holders(folder: Path) -> dict[str, int]:
    """Which process holds which lock file (`*.lock`, by flock) of a folder, by the file's stem."""
    inodes = {path.stat().st_ino: path.stem for path in folder.glob("*.lock")}
    held = {}
    for line in Path("/proc/locks").read_text().splitlines():
        _, kind, _, _, pid, place, *_ = line.split()
        if kind == "FLOCK" and (stem := inodes.get(int(place.rpartition(":")[2]))):
            held[stem] = int(pid)
    return held


def all_gone(pids: Sequence[int]) -> bool:
    """Wait until no process of these is left; False when some are, after three minutes."""
    deadline = time.monotonic() + _GONE_S
    while (some := any(alive(pid) for pid in pids)) and time.monotonic() < deadline:
        time.sleep(1.0)
    return not some
