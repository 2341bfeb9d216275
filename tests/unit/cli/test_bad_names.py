"""Unknown and hostile names, in every command that takes one: one line, exit code 2, the nearest name, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.made_sweeps import complete, give_file, write_sweep

OF_A_SWEEP = {
    "status": [],
    "front": [],
    "compare": ["quickstart"],
    "pick": ["--knee"],
    "export": ["--trial", "t0000", "--to", "out"],
    "audit": ["--trial", "t0000"],
    "report": [],
    "resume": [],
    "sync": [],
}
HOSTILE = ["../../x", "<script>alert(1)</script>", "x" * 10_000, "🙂", "two\nlines", "\x1b[31mred", "", ".", "..", "a/b"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sweep = write_sweep(tmp_path, "quickstart", [])
    for number in range(2):
        result = complete(number, 0.9 + number / 100, 0, 0.2 + number / 10)
        give_file(sweep, result)
        sweep.finish(result)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything_in(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


@pytest.mark.parametrize("command", OF_A_SWEEP)
def test_an_unknown_sweep_has_its_nearest_named(command: str, home: Path, ask) -> None:
    before = everything_in(home)
    told = ask(command, "quikstart", *OF_A_SWEEP[command])
    assert (told.code, told.out) == (2, "")
    assert "did you mean 'quickstart'?" in told.err
    assert everything_in(home) == before


@pytest.mark.parametrize("command", OF_A_SWEEP)
def test_a_hostile_sweep_is_one_line_and_leaves_no_trace(command: str, home: Path, ask) -> None:
    before = everything_in(home)
    for name in HOSTILE:
        told = ask(command, name, *OF_A_SWEEP[command])
        assert (told.code, told.out) == (2, ""), name
        assert len(told.err.splitlines()) == 1
        assert told.err.rstrip("\n").isprintable()
        assert len(told.err) < 2100
    assert everything_in(home) == before


@pytest.mark.parametrize("command", ["pick", "export", "audit"])
def test_an_unknown_trial_has_its_nearest_named(command: str, home: Path, ask) -> None:
    before = everything_in(home)
    rest = ["--to", "out"] if command == "export" else []
    told = ask(command, "quickstart", "--trial", "t00001", *rest)
    assert (told.code, told.out) == (2, "")
    assert "did you mean 't0001'?" in told.err
    for name in HOSTILE:
        told = ask(command, "quickstart", "--trial", name, *rest)
        assert (told.code, told.out) == (2, ""), name
        assert len(told.err.splitlines()) == 1
        assert told.err.rstrip("\n").isprintable()
    assert everything_in(home) == before


def test_a_folder_to_export_to_that_cannot_be_is_said(home: Path, ask) -> None:
    before = everything_in(home)
    for name in ("x" * 10_000, "sweeps/quickstart/job.yaml", "sweeps/quickstart/job.yaml/deeper"):
        told = ask("export", "quickstart", "--trial", "t0000", "--to", name)
        assert (told.code, told.out) == (2, ""), name
        assert "--to must be" in told.err
        assert len(told.err) < 2100
    assert everything_in(home) == before


def test_folders_of_hostile_names_are_just_folders(home: Path, ask) -> None:
    """The user's own choice; but what the terminal shows of it does nothing."""
    told = ask("export", "quickstart", "--trial", "t0000", "--to", "a\x1b[31m\nb🙂")
    assert told.code == 0, told.err
    assert told.out.splitlines()[0] == "a\\x1b[31m\\nb🙂"
    assert (home / "a\x1b[31m\nb🙂" / "SHA256SUMS").exists()
