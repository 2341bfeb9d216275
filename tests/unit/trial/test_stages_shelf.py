"""Entries of the stage store: they say what they are, are held while they are read, and go when room is short."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.trial.shelf import (
    MANIFEST,
    YOUNG_S,
    Entry,
    Hold,
    Manifest,
    entries,
    evictions,
    fault,
    make_room,
    manifest_of,
    remove,
    seal,
    selected,
    with_use,
)

NOW = 1_000_000.0
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1).filter(lambda name: name not in (".", ".."))


def made(root: Path, key: str, content: bytes = b"weights", *, stage: str = "student", used: float = NOW) -> Path:
    folder = root / key
    (folder / "below").mkdir(parents=True)
    (folder / "model").write_bytes(content)
    (folder / "below" / "meta").write_bytes(b"{}")
    seal(folder, stage, 2.5)
    os.utime(folder / MANIFEST, (used, used))
    return folder


def under_way(root: Path, key: str, num_bytes: int, used: float) -> Path:
    folder = root / f"{key}.partial"
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(bytes(num_bytes))
    for path in (folder / "checkpoint.safetensors", folder):
        os.utime(path, (used, used))
    return folder


def test_an_entry_says_what_it_is(tmp_path: Path) -> None:
    folder = made(tmp_path, "k")
    tree = json.loads((folder / MANIFEST).read_bytes())
    assert (tree["stage"], tree["seconds"]) == ("student", 2.5)
    assert set(tree["files"]) == {"model", "below/meta"}
    digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"  # printf weights | sha256sum
    assert tree["files"]["model"] == {"bytes": 7, "sha256": digest}
    manifest = manifest_of(folder)
    assert manifest is not None
    assert manifest.num_bytes == 9
    assert fault(folder) is None


@given(
    st.builds(
        Manifest, st.text(), st.floats(0, 1e9), st.floats(0, 1e9), st.dictionaries(NAMES, st.tuples(st.integers(0), st.text()))
    )
)
def test_a_manifest_comes_back_as_it_was(manifest: Manifest) -> None:
    assert Manifest.read(manifest.to_bytes()) == manifest


@given(st.builds(Manifest, st.text(), st.floats(0, 9), st.floats(0, 9), st.just({"f": (1, "ab")})), st.data())
def test_a_part_of_a_manifest_is_none(manifest: Manifest, data: st.DataObject) -> None:
    content = manifest.to_bytes().rstrip()
    with pytest.raises(ValueError, match="a manifest must be whole"):
        Manifest.read(content[: data.draw(st.integers(0, len(content) - 1))])


@pytest.mark.parametrize("name", ["/etc/passwd", "../other/model", "a/../../b", "", "a\0b"])
def test_a_manifest_that_leaves_its_folder_is_refused(name: str) -> None:
    content = Manifest("student", 1.0, 1.0, {name: (1, "ab")}).to_bytes()
    with pytest.raises(ValueError, match="inside its folder"):
        Manifest.read(content)


@pytest.mark.parametrize("content", [b"[]", b"{}", b"null", b'{"stage": 1}', b"\xff"])
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="a manifest must be whole"):
        Manifest.read(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda folder: (folder / "model").write_bytes(b"weig"), "model must have 7 bytes; it has 4"),
    "emptied": (lambda folder: (folder / "model").write_bytes(b""), "model must have 7 bytes; it has 0"),
    "missing": (lambda folder: (folder / "below" / "meta").unlink(), "below/meta is missing"),
    "a bit flipped": (lambda folder: (folder / "model").write_bytes(b"weighus"), "model must hold what was written"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "its manifest cannot be read"),
    "half a manifest": (lambda folder: (folder / MANIFEST).write_bytes(b'{"stage": "st'), "its manifest cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_damaged_is_found(damage: str, tmp_path: Path) -> None:
    folder, (act, said) = made(tmp_path, "k"), DAMAGES[damage]
    act(folder)
    assert str(fault(folder)).startswith(said)


def test_a_large_entry_is_held_to_its_sizes_alone(tmp_path: Path) -> None:
    """Decoded data would take seconds to hash, at each hit."""
    folder = made(tmp_path, "k", bytes(2**23))
    with (folder / "model").open("rb+") as handle:
        handle.write(b"x")
    assert fault(folder) is None
    (folder / "model").write_bytes(bytes(2**23 - 1))
    assert fault(folder) == "model must have 8388608 bytes; it has 8388607"


# The policy.


def entry(name: str, num_bytes: int, used: float, **named: bool) -> Entry:
    return Entry(Path("/store") / name, "student", num_bytes, used, **named)


FOUND = [
    entry("a", 10, NOW - 500),
    entry("b", 20, NOW - 900, in_use=True),
    entry("c", 30, NOW - 700),
    entry("d.partial", 40, NOW - YOUNG_S + 1, under_way=True),
    entry("e.partial", 50, NOW - YOUNG_S, under_way=True),
    entry("f", 60, NOW - 700),
]


@pytest.mark.parametrize(
    ("limit", "gone"),
    [
        (210, ""),
        (209, "e"),  # the oldest of what may go: one checkpoint is young, b is in use
        (160, "e"),
        (159, "ec"),  # of equal age, the first by name
        (130, "ec"),
        (129, "ecf"),
        (60, "ecfa"),
        (0, "ecfa"),  # what is left may not go
    ],
)
def test_the_least_recently_used_go_first(limit: int, gone: str) -> None:
    chosen = evictions(FOUND, limit, NOW)
    assert [found.path.name[0] for found in chosen] == list(gone)
    assert evictions(FOUND[::-1], limit, NOW) == chosen


ENTRIES = st.lists(
    st.builds(
        Entry,
        st.uuids().map(lambda name: Path(str(name))),
        st.just("student"),
        st.integers(0, 100),
        st.floats(0, 1e6),
        st.booleans(),
        st.booleans(),
    ),
    max_size=8,
)


@given(ENTRIES, st.integers(0, 400))
def test_no_more_goes_than_has_to(found: list[Entry], limit: int) -> None:
    chosen = evictions(found, limit, NOW)
    left = [other for other in found if other not in chosen]
    assert not any(gone.in_use or (gone.under_way and NOW - gone.used < YOUNG_S) for gone in chosen)
    total = sum(other.num_bytes for other in left)
    may_go = [other for other in left if not other.in_use and not (other.under_way and NOW - other.used < YOUNG_S)]
    assert total <= limit or not may_go
    assert not chosen or total + chosen[-1].num_bytes > limit
    assert all(gone.used <= other.used for gone in chosen for other in may_go)


def test_a_selection_is_by_stage_and_age() -> None:
    found = [Entry(Path("a"), "teacher", 1, NOW - 60), Entry(Path("b"), "gate", 1, NOW - 50), Entry(Path("c"), "gate", 1, NOW)]
    assert selected(found, stage=None, least_age_s=0.0, now=NOW) == found
    assert selected(found, stage="gate", least_age_s=0.0, now=NOW) == found[1:]
    assert selected(found, stage=None, least_age_s=50.0, now=NOW) == found[:2]


# On disk.


def test_everything_that_takes_room_is_listed(tmp_path: Path) -> None:
    made(tmp_path, "k1", stage="teacher", used=NOW)
    made(tmp_path, "k2", b"12345678", used=NOW - 5)
    under_way(tmp_path, "k3", 40, NOW - 7)
    (tmp_path / "k3.lock").touch()
    old = tmp_path / "k4"  # an earlier version wrote no manifests
    old.mkdir()
    (old / "model").write_bytes(b"123")
    found = [(entry.path.name, entry.stage, entry.num_bytes, entry.under_way) for entry in entries(tmp_path)]
    assert found == [
        ("k1", "teacher", 9, False),
        ("k2", "student", 10, False),
        ("k3.partial", "checkpoint", 40, True),
        ("k4", "unknown", 3, False),
    ]
    assert [entry.used for entry in entries(tmp_path)][:3] == [NOW, NOW - 5, NOW - 7]
    assert entries(tmp_path / "nowhere") == []


def test_the_limit_is_kept_but_for_what_is_in_use(tmp_path: Path) -> None:
    for age, key in enumerate(("k0", "k1", "k2", "k3")):
        made(tmp_path, key, bytes(98), used=NOW - age)  # 100 bytes each; k3 is the oldest
    reader = Hold.on(tmp_path / "k3" / MANIFEST, alone=False)
    other = Hold.on(tmp_path / "k3" / MANIFEST, alone=False)
    assert reader is not None
    assert other is not None, "many may read"
    assert [entry.in_use for entry in with_use(entries(tmp_path))] == [False, False, False, True]
    assert make_room(tmp_path, 400) == []
    assert [entry.path.name for entry in make_room(tmp_path, 250)] == ["k2", "k1"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["k0", "k3"]
    assert not remove(entries(tmp_path)[1])
    del reader, other
    assert [entry.path.name for entry in make_room(tmp_path, 150)] == ["k3"]


def test_checkpoints_go_once_nobody_waits_for_them(tmp_path: Path) -> None:
    now = time.time()
    old, young = under_way(tmp_path, "old", 100, now - YOUNG_S - 60), under_way(tmp_path, "young", 100, now - 60)
    mine = under_way(tmp_path, "mine", 100, now - YOUNG_S - 90)
    (tmp_path / "mine.lock").touch()
    maker = Hold.on(tmp_path / "mine.lock", alone=True)
    assert [entry.path for entry in make_room(tmp_path, 0)] == [old]
    assert young.exists()
    assert mine.exists()
    del maker
    assert [entry.path for entry in make_room(tmp_path, 100)] == [mine]


def test_a_lock_is_on_the_file_that_bears_the_name(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert Hold.on(path, alone=False) is None
    path.touch()
    hold = Hold.on(path, alone=True)
    assert hold is not None
    assert Hold.on(path, alone=False) is None
    del hold
    assert Hold.on(path, alone=False) is not None
