"""Files that are whole or absent, also when many write them at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.results.files import as_json, exclusive, read_json, replace, write_once

ROOT = Path(__file__).parents[3]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def test_the_first_writer_wins_and_the_second_is_told(tmp_path):
    path = tmp_path / "fact.json"
    assert write_once(path, b"first") is True
    assert write_once(path, b"second") is False
    assert path.read_bytes() == b"first"


def test_writing_makes_the_folders_above_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a" / "b" / "fact.json"
    write_once(path, b"1")
    write_once(path, b"2")
    replace(path, b"3")
    assert [found.name for found in path.parent.iterdir()] == ["fact.json"]


def test_of_many_writers_at_once_exactly_one_wins_and_its_content_is_whole(tmp_path):
    path, writers = tmp_path / "fact.json", 16
    start = threading.Barrier(writers)

    def write(index: int) -> bool:
        start.wait()
        return write_once(path, str(index).encode() * 10_000)

    with ThreadPoolExecutor(writers) as pool:
        won = list(pool.map(write, range(writers)))
    assert won.count(True) == 1
    assert path.read_bytes() == str(won.index(True)).encode() * 10_000
    assert [found.name for found in tmp_path.iterdir()] == ["fact.json"]


def test_replacing_changes_what_is_there(tmp_path):
    path = tmp_path / "page"
    replace(path, b"old and long")
    replace(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_reader_never_sees_part_of_a_replacement(tmp_path):
    path, contents = tmp_path / "page", {bytes([letter]) * 50_000 for letter in b"abcd"}
    replace(path, next(iter(contents)))
    over = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not over.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(25):
            for content in contents:
                replace(path, content)
    finally:
        over.set()
        reader.join()
    assert seen
    assert seen <= contents


@settings(deadline=None)
@given(PLAIN)
def test_json_reads_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"
    path.write_bytes(as_json(value))
    assert read_json(path) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_json_that_only_python_reads_is_refused(value):
    with pytest.raises(ValueError, match="JSON"):
        as_json(value)


def test_json_keeps_its_keys_in_the_order_in_which_they_were_put(tmp_path):
    path, value = tmp_path / "value.json", {"b": 1, "a": {"d": 2, "c": 3}}
    path.write_bytes(as_json(value))
    assert (list(read_json(path)), list(read_json(path)["a"])) == (["b", "a"], ["d", "c"])


def test_a_missing_file_reads_as_none_and_a_broken_one_does_not(tmp_path):
    assert read_json(tmp_path / "none.json") is None
    (tmp_path / "broken.json").write_text('{"a": ')
    with pytest.raises(json.JSONDecodeError):
        read_json(tmp_path / "broken.json")


def test_a_lock_is_refused_to_a_second_handle_while_it_is_held(tmp_path):
    path = tmp_path / "a" / ".lock"
    with exclusive(path, wait=False) as first:
        assert first
        with exclusive(path, wait=False) as second:
            assert not second
        with exclusive(path, wait=False) as third:
            assert not third
    with exclusive(path, wait=False) as again:
        assert again


def test_a_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path / ".lock"):
        1 / 0
    with exclusive(tmp_path / ".lock", wait=False) as mine:
        assert mine


HOLDER = """\
import sys
from pathlib import Path
from orchestrator.results.files import exclusive
with exclusive(Path(sys.argv[1]), wait=False) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def test_a_lock_holds_between_processes_and_dies_with_its_holder(tmp_path):
    path = tmp_path / ".lock"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "True\n"
            with exclusive(path, wait=False) as mine:
                assert not mine
        finally:
            holder.kill()
    with exclusive(path, wait=False) as mine:
        assert mine


def test_waiting_for_a_lock_ends_when_it_is_given_back(tmp_path):
    path, order = tmp_path / ".lock", []

    def wait() -> None:
        with exclusive(path) as mine:
            order.append(("second", mine))

    waiter = threading.Thread(target=wait)
    with exclusive(path):
        waiter.start()
        waiter.join(timeout=0.2)
        assert waiter.is_alive()
        order.append(("first", True))
    waiter.join(timeout=10)
    assert order == [("first", True), ("second", True)]
