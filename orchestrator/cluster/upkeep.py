"""When the processes of a gang have to be started anew between two trials."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from orchestrator.spec.job import GangSettings

_GB = 10**9


def must_recycle(served: int, first_bytes: int, now_bytes: int, *, settings: GangSettings) -> str:
    """Why the processes of a gang have to be started anew before they take another trial, or "" where they can go on.

    Args:
        served: trials since they were started.
        first_bytes: memory of the first process after its first trial: by then it holds what it will always hold.
        now_bytes: its memory now.
    """
    if settings.recycle_after is not None and served >= settings.recycle_after:
        return f"it has served {served} trials"
    growth = now_bytes - first_bytes
    if settings.memory_growth_gb is not None and growth > settings.memory_growth_gb * _GB:
        return f"its memory has grown by {growth / _GB:.1f} GB"
    return ""


def resident_bytes() -> int:
    """The memory of this process that is in RAM; 0 where the system does not say (it has no /proc)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def answers(device: torch.device) -> bool:
    """Whether a device still computes. After some errors (an illegal access, a failed assertion) CUDA refuses a process."""
    if device.type != "cuda":
        return True
    try:
        return bool(torch.ones(1, device=device).item() == 1.0)
    except RuntimeError:
        return False
