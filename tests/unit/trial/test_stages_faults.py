"""The stage store when things go wrong: other processes, kills, damaged files, a full disk, a limit."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from orchestrator.results.trial_result import StageRecord, TrialResult
from orchestrator.spec.recipe import Recipe
from orchestrator.training.process import Process
from orchestrator.trial import stages
from orchestrator.trial.networks import train_student
from orchestrator.trial.order import Order
from orchestrator.trial.pipeline import run_trial
from orchestrator.trial.shelf import MANIFEST, FullDiskError, keep_checkpoint, manifest_of
from orchestrator.trial.stages import StageStore
from orchestrator.trial.work import Work
from orchestrator.trial.workshop import Workshop
from tests.unit.trial.conftest import Alone, recipe_tree
from tests.unit.trial.test_stages import Pair, forbidden, writing

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[3]

# A process of its own that wants the key "k", once a file "go" is there.
WANTING = """
import os, signal, sys, time
from pathlib import Path
from orchestrator.trial.stages import StageStore
from orchestrator.trial.shared import SharedShelf

root, how = Path(sys.argv[1]), sys.argv[2]
writing = SharedShelf._writing

class Alone:
    first, world_size, agreed = True, 1, staticmethod(lambda value: value)

def make(folder):
    with (root / "made.log").open("a") as log:
        log.write("made ")
    (folder / "half").write_bytes(bytes(1000))
    if how == "die in mid write":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    (folder / "whole").write_bytes(bytes(1000))

def die_at_the_second(shelf, place):
    if place.endswith("whole"):
        os.kill(os.getpid(), signal.SIGKILL)
    return writing(shelf, place)

if how == "die in mid upload":
    SharedShelf._writing = die_at_the_second
print("ready", flush=True)
while not (root / "go").exists():
    time.sleep(0.005)
shared = str(root / "shared") if how == "die in mid upload" else None
print(StageStore(root / "store", shared).obtain("k", Alone(), make, stage="student")[1])
"""


def wanting(root: Path, how: str, number: int = 1) -> list[tuple[int, str]]:
    """How so many processes end that want the same stage at once, and what they say."""
    (root / "go").unlink(missing_ok=True)
    command = [sys.executable, "-c", WANTING, str(root), how]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(number)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    (root / "go").touch()
    said = [process.communicate(timeout=60)[0].strip() for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_of_two_processes_that_want_a_stage_one_makes_it(tmp_path: Path) -> None:
    assert sorted(wanting(tmp_path, "", 2)) == [(0, "False"), (0, "True")]
    assert (tmp_path / "made.log").read_text() == "made "
    assert listing(tmp_path / "store") == ["k.lock", "k/half", f"k/{MANIFEST}", "k/whole"]


def test_what_a_process_killed_in_mid_write_left_is_no_entry_and_goes(tmp_path: Path) -> None:
    assert wanting(tmp_path, "die in mid write") == [(-9, "")]
    assert not (tmp_path / "store" / "k").exists()
    assert [path.name for path in (tmp_path / "store").glob("k.partial/*/*")] == ["half"]
    folder, cached = StageStore(tmp_path / "store").obtain("k", Process(), writing("again"))
    assert not cached
    assert listing(folder) == ["made.txt", MANIFEST]
    assert listing(tmp_path / "store") == ["k.lock", "k/made.txt", f"k/{MANIFEST}"]


def test_what_a_process_killed_in_mid_upload_left_is_absent_for_others(tmp_path: Path) -> None:
    assert wanting(tmp_path, "die in mid upload") == [(-9, "")]
    left = listing(tmp_path / "shared")
    assert [Path(name).name for name in left] == ["half"]
    other = StageStore(tmp_path / "other", str(tmp_path / "shared"))
    assert other.obtain("k", Process(), writing("again"))[1] is False
    third = StageStore(tmp_path / "third", str(tmp_path / "shared"))
    folder, cached = third.obtain("k", Process(), forbidden)
    assert cached
    assert (folder / "made.txt").read_text() == "again"
    mine = StageStore(tmp_path / "store")  # of the process that was killed: it was whole before it went up
    assert mine.obtain("k", Process(), forbidden)[1] is True


@pytest.mark.parametrize("damage", ["cut short", "missing", "flipped", "no manifest"])
def test_a_damaged_stage_is_made_again_and_said_once(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = StageStore(tmp_path)
    folder, _ = store.obtain("k", Process(), writing("weights"))
    file = folder / "made.txt"
    {
        "cut short": lambda: file.write_text("weig"),
        "missing": file.unlink,
        "flipped": lambda: file.write_text("weighus"),
        "no manifest": (folder / MANIFEST).unlink,
    }[damage]()
    with caplog.at_level(logging.WARNING):
        assert store.obtain("k", Process(), writing("again")) == (folder, False)
    assert [record.message.partition(": ")[0] for record in caplog.records] == [
        f"stage {folder} is not whole and is made again"
    ]
    assert file.read_text() == "again"
    assert store.obtain("k", Process(), forbidden) == (folder, True)
    assert listing(tmp_path) == ["k.lock", "k/made.txt", f"k/{MANIFEST}"]


# A full disk.


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 64 kB; where none can be mounted, one whose files cannot grow as large."""
    folder, limits = tmp_path / "small", resource.getrlimit(resource.RLIMIT_FSIZE)
    folder.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True).returncode == 0
    )
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def short_files() -> Iterator[None]:
    """No file of this process may grow beyond 128 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def with_python(folder: Path) -> None:
    (folder / "model").write_bytes(bytes(300_000))


def with_safetensors(folder: Path) -> None:
    save_file({"weight": np.zeros(300_000, np.uint8)}, folder / "model")


def with_arrow(folder: Path) -> None:
    with pa.OSFile(str(folder / "model"), "wb") as sink:
        sink.write(bytes(300_000))


def check_full(root: Path, make: Callable[[Path], None]) -> None:
    """The error says which folder is full, how much is free, and what to do; nothing half made is left, and less fits."""
    store = StageStore(root)
    keep_checkpoint(store.under_way("k") / "checkpoint", bytes(20_000))
    with pytest.raises(FullDiskError) as caught:
        store.obtain("k", Process(), make, stage="student")
    said = str(caught.value)
    assert str(root) in said
    assert "must have room for stage 'student'" in said
    assert "MB are free" in said
    assert "`orchestrator cache --clear`" in said
    assert "`storage.limit_gb`" in said
    assert listing(root) == ["k.lock"]
    assert store.obtain("k", Process(), writing("less"))[1] is False
    assert listing(root) == ["k.lock", "k/made.txt", f"k/{MANIFEST}"]


@pytest.mark.parametrize("make", [with_python, with_safetensors, with_arrow])
def test_a_full_disk_is_an_error_of_the_trial(make: Callable[[Path], None], small: Path) -> None:
    check_full(small, make)


@pytest.mark.parametrize("make", [with_python, with_safetensors, with_arrow])
def test_so_is_a_limit_on_files(make: Callable[[Path], None], tmp_path: Path, short_files: None) -> None:
    check_full(tmp_path, make)


def test_a_trial_on_a_full_disk_fails_with_a_word_of_what_to_do(small: Path, tmp_path: Path) -> None:
    host = Alone()
    order = Order(0, {}, Recipe.model_validate(recipe_tree({})).model_dump(mode="json"), {}, 0, str(tmp_path / "t"), str(small))
    result = run_trial(order, host, Workshop(StageStore(small), host.process))
    assert result.failure is not None
    assert (result.state, result.failure["class"]) == ("FAILED", "FullDiskError")
    assert "`orchestrator cache --clear`" in result.failure["message"]
    assert [name for name in listing(small) if not name.endswith(".lock")] == [], "its data alone need more"


@pytest.mark.parametrize("alone", [False, True])
def test_only_the_rank_that_writes_knows_a_full_disk_but_all_ranks_leave(alone: bool, small: Path) -> None:
    first, second = Pair.both()
    ended: dict[int, Any] = {}

    def ask(rank: Pair) -> None:
        make = with_python if rank.first else lambda folder: None
        try:
            ended[rank.rank] = StageStore(small).obtain("k", rank, make, alone=alone)
        except FullDiskError as error:
            ended[rank.rank] = str(error)

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert "must have room" in ended[0]
    assert ended[1] == ended[0]


def test_a_training_goes_on_without_a_checkpoint_that_does_not_fit(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = small / "k.partial" / "checkpoint"
    keep_checkpoint(path, b"first")
    with caplog.at_level(logging.WARNING):
        keep_checkpoint(path, bytes(300_000))
    assert [record.message for record in caplog.records] == [f"no checkpoint is kept at {path}, as the disk is full"]
    assert path.read_bytes() == b"first"
    assert listing(small) == ["k.partial/checkpoint"]


# A limit, and what was saved.


def test_a_store_keeps_to_its_limit_and_to_what_was_used_last(tmp_path: Path) -> None:
    store = StageStore(tmp_path, limit_bytes=250)
    for age, key in enumerate(("a", "b", "c")):
        StageStore(tmp_path).obtain(key, Process(), writing(key * 100))
        os.utime(tmp_path / key / MANIFEST, (1000 - age, 1000 - age))  # c is the oldest
    assert StageStore(tmp_path).obtain("c", Process(), forbidden)[1] is True, "and the newest, as it was taken now"
    store.obtain("d", Process(), writing("d" * 90))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["c", "d"]


def test_what_was_taken_stays_for_those_who_read_it(tmp_path: Path) -> None:
    reader, store = StageStore(tmp_path), StageStore(tmp_path, limit_bytes=100)
    reader.obtain("a", Process(), writing("a" * 100))
    store.obtain("b", Process(), writing("b" * 100))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["a", "b"], "both are in use"
    del reader
    store.obtain("c", Process(), writing("c"))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["b", "c"]


def test_of_many_entries_the_last_are_held_and_the_data_always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_NUM_HELD", 2)
    reader = StageStore(tmp_path)
    reader.obtain("data", Process(), writing("d"), keep=True)
    for key in ("a", "b", "c"):
        reader.obtain(key, Process(), writing(key))
    StageStore(tmp_path, limit_bytes=1).obtain("e", Process(), writing("e"))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["b", "c", "data", "e"]


def test_an_entry_knows_what_made_it_and_how_long_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 107.5])
    monkeypatch.setattr(stages.time, "perf_counter", lambda: next(clock))
    store = StageStore.of({"root": str(tmp_path), "shared": None, "limit_gb": 2.0})
    folder, _ = store.obtain("k", Process(), writing("x"), stage="teacher")
    manifest = manifest_of(folder)
    assert manifest is not None
    assert (manifest.stage, manifest.seconds) == ("teacher", 7.5)
    assert StageStore.of(str(tmp_path)).seconds("k") == 7.5
    assert store.seconds("nothing") == 0.0
    store.touch("nothing")


def test_a_hit_records_what_it_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StageStore, "seconds", lambda store, key: 1000.0)
    tree = recipe_tree({"data": {"source": "digits", "max_train": 32, "max_val": 16}})
    order, recipe = Order(0, {}, tree, {}, 0, str(tmp_path / "t"), str(tmp_path)), Recipe.model_validate(tree)
    records = []
    for _ in range(2):
        host = Alone()
        workshop = Workshop(StageStore(tmp_path), host.process)
        work = Work(order, recipe, host, workshop, workshop.material(recipe.data, False))
        train_student(work, None)
        records += work.stages
    made, taken = records
    assert (made.cached, made.saved_s) == (False, 0.0)
    assert (taken.cached, taken.saved_s) == (True, 1000.0 - taken.seconds)


def test_facts_of_before_load() -> None:
    """They say nothing of what was saved."""
    stage = {"name": "student", "key": "k", "seconds": 1.0, "cached": True, "started": 0.0}
    result = TrialResult.from_json({"number": 0, "state": "COMPLETE", "choice": {}, "stages": [stage]})
    assert result.stages == [StageRecord("student", "k", 1.0, True, 0.0, 0.0)]
    assert TrialResult.from_json(result.to_json()) == result
