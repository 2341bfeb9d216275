"""How busy the machine is: real processes, a clock that is turned by hand."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from orchestrator.tracking.load import MachineLoad

_BUSY = """
import sys
block = bytearray(64_000_000)
sum(i * i for i in range(1_000_000))
print("busy", flush=True)
sys.stdin.read()
"""


def test_a_descendants_share_is_seen_and_nothing_is_before_its_time() -> None:
    now = 100.0
    load = MachineLoad(every_s=10.0, clock=lambda: now)
    assert load.sample() == {}
    with subprocess.Popen([sys.executable, "-c", _BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "busy\n"
        now += 9.9
        assert load.sample() == {}
        now += 0.1
        with_child = load.sample()
        child.communicate("")
    now += 10.0
    without = load.sample()
    assert with_child.keys() == without.keys()
    assert {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/system_memory_usage_percentage",
    } <= with_child.keys()
    assert with_child["system/sweep_memory_usage_megabytes"] > without["system/sweep_memory_usage_megabytes"] + 60
    assert with_child["system/sweep_cpu_utilization_percentage"] > without["system/sweep_cpu_utilization_percentage"] >= 0.0


def test_load_is_sampled_at_most_as_often_as_asked() -> None:
    now = 0.0
    load = MachineLoad(every_s=10.0, clock=lambda: now)
    seen = []
    for second in range(1, 36):
        now = float(second)
        seen.append(bool(load.sample()))
    assert [second for second, told in enumerate(seen, 1) if told] == [10, 20, 30]
    assert load.sample() == {}


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="needs an NVIDIA GPU: its driver tells of it")
def test_a_gpu_is_shown_under_mlflows_names() -> None:
    now = 0.0
    load = MachineLoad(every_s=1.0, clock=lambda: now)
    now = 2.0
    assert 0.0 <= load.sample()["system/gpu_0_utilization_percentage"] <= 100.0
