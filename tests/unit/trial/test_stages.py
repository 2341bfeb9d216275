"""The stage store: equal stages have equal keys, a folder is whole or absent, and a key is computed once."""

from __future__ import annotations

import os
import pickle
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.sources import DataError
from orchestrator.errors import DivergedError, OrchestratorError
from orchestrator.training.process import Process
from orchestrator.trial import stages
from orchestrator.trial.order import derived_seed
from orchestrator.trial.stages import StageStore, file_hash, stage_key

KEY = ("pruned", {"ratio": 0.5, "steps": 2}, ["a", "b"], {"threads": 1})


def writing(text: str) -> Any:
    return lambda folder: (folder / "made.txt").write_text(text)


def forbidden(folder: Path) -> None:
    pytest.fail("computed again")


def test_a_key_depends_on_everything_that_it_is_given() -> None:
    name, settings, parents, surroundings = KEY
    others = [
        ("quantized", settings, parents, surroundings),
        (name, {**settings, "ratio": 0.25}, parents, surroundings),
        (name, {"ratio": 0.5}, parents, surroundings),
        (name, settings, ["b", "a"], surroundings),
        (name, settings, ["a"], surroundings),
        (name, settings, parents, {"threads": 2}),
    ]
    assert len({stage_key(*key) for key in (KEY, *others)}) == 1 + len(others)
    assert stage_key(*KEY) == stage_key(name, dict(reversed(settings.items())), parents, surroundings)


@pytest.mark.parametrize("which", ["source_hash", "library_versions"])
def test_other_code_makes_other_keys(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stage_key(*KEY)
    monkeypatch.setattr(stages, which, lambda: "other")
    assert stage_key(*KEY) != before


def test_a_files_hash_is_of_its_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("weights")
    other.write_text("weights")
    assert file_hash(str(one)) == file_hash(str(other))
    one.write_text("Weights")
    os.utime(one, ns=(1, 1))  # a clock may be too coarse to see that the file was written again
    assert file_hash(str(one)) != file_hash(str(other))


def test_seeds_are_of_every_part_and_of_nothing_else() -> None:
    seeds = [derived_seed(*parts) for parts in [(0, "a"), (0, "b"), (1, "a"), ("0a",), (0, "a", 0)]]
    assert len(set(seeds)) == 5
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derived_seed(0, "a") == seeds[0]


def test_what_was_made_is_there_the_next_time(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    folder, cached = store.obtain("k", Process(), writing("once"))
    assert (folder, cached) == (tmp_path / "k", False)
    assert (folder / "made.txt").read_text() == "once"
    assert StageStore(tmp_path).obtain("k", Process(), forbidden) == (folder, True)


def test_a_folder_is_absent_until_it_is_whole(tmp_path: Path) -> None:
    seen = []

    def make(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        seen.append((tmp_path / "k").exists())
        (folder / "whole.txt").write_text("whole")

    folder, _ = StageStore(tmp_path).obtain("k", Process(), make)
    assert seen == [False]
    assert sorted(path.name for path in folder.iterdir()) == ["half.txt", "manifest.json", "whole.txt"]


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    store = StageStore(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise DivergedError("loss must stay finite")

    with pytest.raises(DivergedError):
        store.obtain("k", Process(), fail)
    assert [path.name for path in tmp_path.iterdir()] == ["k.lock"]
    assert store.obtain("k", Process(), writing("again"))[1] is False
    assert sorted(path.name for path in (tmp_path / "k").iterdir()) == ["made.txt", "manifest.json"]


def test_what_a_killed_process_left_half_is_no_hit(tmp_path: Path) -> None:
    left = tmp_path / "k.0123.partial"
    left.mkdir()
    (left / "half.txt").write_text("half")
    (tmp_path / "k.lock").touch()
    folder, cached = StageStore(tmp_path).obtain("k", Process(), writing("whole"))
    assert not cached
    assert sorted(path.name for path in folder.iterdir()) == ["made.txt", "manifest.json"]


@pytest.mark.parametrize("first_fails", [False, True])
def test_gangs_that_ask_together_compute_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_fails: bool) -> None:
    """The others wait; should the first fail, one of them computes."""
    monkeypatch.setattr(stages, "_TICK_S", 0.01)
    under_way, asked = threading.Event(), threading.Barrier(3)
    ended: list[Any] = []
    attempts: list[int] = []

    def make(folder: Path) -> None:
        attempts.append(1)
        assert under_way.wait(20)
        if first_fails and len(attempts) == 1:
            raise DivergedError("loss must stay finite")
        writing("once")(folder)

    def gang() -> None:
        asked.wait(20)
        try:
            ended.append(StageStore(tmp_path).obtain("k", Process(), make)[1])
        except DivergedError as error:
            ended.append(type(error))

    gangs = [threading.Thread(target=gang) for _ in range(3)]
    for thread in gangs:
        thread.start()
    under_way.set()
    for thread in gangs:
        thread.join(20)
    assert len(attempts) == 1 + first_fails
    assert sorted(map(str, ended)) == sorted(map(str, [DivergedError, False, True] if first_fails else [False, True, True]))


class Second:
    """Rank 1, told what rank 0 decided."""

    first = False

    def __init__(self, *told: str) -> None:
        self.told: Iterator[str] = iter(told)

    def agreed(self, value: object) -> str:
        assert value is None
        return next(self.told)


class Pair(Process):
    """Two ranks in two threads: what the first says, the second hears."""

    said: queue.Queue[Any]
    heard: list[Any]

    @classmethod
    def both(cls) -> tuple[Pair, Pair]:
        first, second = cls(rank=0, world_size=2), cls(rank=1, world_size=2)
        said: queue.Queue[Any] = queue.Queue()
        for rank in (first, second):
            object.__setattr__(rank, "said", said)
            object.__setattr__(rank, "heard", [])
        return first, second

    def agreed(self, value: Any) -> Any:
        if self.first:
            self.said.put(pickle.dumps(value))
            return value
        self.heard.append(pickle.loads(self.said.get(timeout=20)))
        return self.heard[-1]


def obtained_by_both(store: StageStore, make: Any, *, alone: bool = True) -> tuple[list[Any], list[Any]]:
    """What two ranks get, or the error that each ends in; and what the second was told."""
    ranks, got = Pair.both(), [None, None]

    def ask(rank: Pair) -> None:
        try:
            got[rank.rank] = store.obtain("k", rank, make, alone=alone)
        except Exception as error:  # noqa: BLE001 - it is what is looked at
            got[rank.rank] = error

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return got, ranks[1].heard


def test_what_the_first_rank_makes_alone_keeps_no_other_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_TICK_S", 0.01)
    made_on: list[threading.Thread] = []

    def make(folder: Path) -> None:
        made_on.append(threading.current_thread())
        time.sleep(0.2)
        writing("once")(folder)

    got, heard = obtained_by_both(StageStore(tmp_path), make)
    assert got == [(tmp_path / "k", False)] * 2
    assert len(made_on) == 1
    assert heard[:-1] == ["busy"] * (len(heard) - 1)
    assert len(heard) > 5
    assert (tmp_path / "k" / "made.txt").read_text() == "once"
    got, heard = obtained_by_both(StageStore(tmp_path), forbidden)
    assert (got, heard) == ([(tmp_path / "k", True)] * 2, ["hit"])


class UnpicklableError(Exception):
    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


@pytest.mark.parametrize(
    ("error", "elsewhere", "said"),
    [
        (DataError("must be readable"), DataError, "must be readable"),
        (DivergedError("loss must stay finite"), DivergedError, "loss must stay finite"),
        (KeyError("label"), OrchestratorError, "KeyError on rank 0: 'label'"),
        (UnpicklableError("not", "whole"), OrchestratorError, "UnpicklableError on rank 0: not whole"),
    ],
)
def test_an_error_of_what_is_made_alone_is_raised_on_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, elsewhere: type[Exception], said: str
) -> None:
    monkeypatch.setattr(stages, "_TICK_S", 0.01)

    def make(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        time.sleep(0.05)
        raise error

    (mine, theirs), _ = obtained_by_both(StageStore(tmp_path), make)
    assert mine is error
    assert (type(theirs), str(theirs)) == (elsewhere, said)
    assert [path.name for path in tmp_path.iterdir()] == ["k.lock"]


def test_a_process_alone_makes_it_on_no_other_thread(tmp_path: Path) -> None:
    made_on: list[threading.Thread] = []
    make = lambda folder: made_on.append(threading.current_thread())  # noqa: E731
    assert StageStore(tmp_path).obtain("k", Process(), make, alone=True) == (tmp_path / "k", False)
    assert made_on == [threading.current_thread()]


@pytest.mark.parametrize(
    ("told", "makes", "hit"),
    [
        (("hit",), 0, True),
        (("mine", "written"), 1, False),
        (("busy", "busy", "hit"), 0, True),
        (("busy", "busy", "made"), 0, False),
    ],
)
def test_other_ranks_follow_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: tuple[str, ...], makes: int, hit: bool
) -> None:
    """They make their share where rank 0 does, ask again while it waits, and write nothing."""
    monkeypatch.setattr(stages, "_TICK_S", 0.0)
    made: list[Path] = []
    process = Second(*told)
    assert StageStore(tmp_path).obtain("k", process, made.append) == (tmp_path / "k", hit)  # type: ignore[arg-type]
    assert len(made) == makes
    assert list(process.told) == []
    assert list(tmp_path.iterdir()) == []
