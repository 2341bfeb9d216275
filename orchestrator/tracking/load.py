"""How busy this machine is, under the names that MLflow's page of system metrics shows.

Ours is the machine of the driver. What gangs on other machines do is not seen here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

PREFIX = "system/"


class MachineLoad:
    """Processor, memory and GPUs of the machine, and the part of them that this process and its descendants have.

    With a private local Ray the gangs are descendants of the driver.

    Args:
        every_s: seconds from one sample to the next, at the least.
        clock: seconds, monotonic.
    """

    def __init__(self, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        import psutil
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

        self._every_s, self._clock, self._psutil = every_s, clock, psutil
        self._monitors: list[Any] = [CPUMonitor()]
        with contextlib.suppress(ImportError, RuntimeError):  # no GPU, or no driver for it
            from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

            self._monitors.append(GPUMonitor())
        psutil.cpu_percent()  # each call tells of the time since the one before
        self._spent, _ = self._descendants()
        self._at = clock()

    def sample(self) -> dict[str, float]:
        """What there is to show now: fractions of 100 and megabytes (10^6 bytes) by key; nothing before it is time."""
        now = self._clock()
        passed = now - self._at
        if passed < self._every_s:
            return {}
        spent, resident = self._descendants()
        busy = sum(seconds - self._spent.get(process, 0.0) for process, seconds in spent.items())
        self._spent, self._at = spent, now
        cores = self._psutil.cpu_count() or 1
        found = {
            "sweep_cpu_utilization_percentage": round(100.0 * busy / (passed * cores), 1),
            "sweep_memory_usage_megabytes": round(resident / 1e6, 1),
        }
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return {f"{PREFIX}{key}": float(value) for key, value in found.items()}

    def _descendants(self) -> tuple[dict[tuple[int, float], float], int]:
        """Processor seconds by process (number and birth) of this one and its descendants, and the bytes that all hold."""
        spent, resident = {}, 0
        own = self._psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            with contextlib.suppress(self._psutil.Error), process.oneshot():  # it may end meanwhile
                times = process.cpu_times()
                spent[process.pid, process.create_time()] = times.user + times.system
                resident += process.memory_info().rss
        return spent, resident
