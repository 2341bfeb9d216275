"""Tables and text: whatever stands in a field stays text, on one line, within the width."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from orchestrator.cli.tables import WIDTH, plain, print_columns, print_table

HOSTILE = {
    "../../etc/passwd": "../../etc/passwd",
    "<script>alert(1)</script>": "<script>alert(1)</script>",
    "two\nlines\r\n": "two\\nlines\\r\\n",
    "\x1b[31mred\x1b[0m": "\\x1b[31mred\\x1b[0m",
    "\u202eevil": "\\u202eevil",
    "\x9b2J": "\\x9b2J",
    "half \ud800": "half \\ud800",
    "🙂 näme": "🙂 näme",
    "tab\there": "tab\\there",
}


@pytest.mark.parametrize(("given", "shown"), HOSTILE.items(), ids=range(len(HOSTILE)))
def test_hostile_text_is_written_out(given: str, shown: str) -> None:
    assert plain(given) == shown


def test_long_text_is_cut_and_says_so() -> None:
    assert plain("x" * 10_000, 20) == "x" * 19 + "…"
    assert plain("x" * 20, 20) == "x" * 20
    assert cell_len(plain("界" * 10_000, 21)) <= 21
    assert plain("e" + "\u0301" * 10_000, 20).endswith("…")  # signs without a width of their own


@given(st.text(alphabet=st.characters(codec=None), max_size=200), st.integers(2, 60))
def test_whatever_is_given_is_one_line_of_what_can_be_seen(text: str, longest: int) -> None:
    shown = plain(text, longest)
    assert cell_len(shown) <= longest
    assert not any(unicodedata.category(sign)[0] == "C" for sign in shown)
    assert len(shown.splitlines()) <= 1
    shown.encode()  # a terminal can be sent it


def test_columns_that_are_too_wide_stand_below_one_another(capsys: pytest.CaptureFixture[str]) -> None:
    print_columns({"name": ["a", "b"], **{f"column {number}": ["12345", "1"] for number in range(20)}}, {"name"})
    parts = capsys.readouterr().out.split("\n\n")
    assert len(parts) > 1
    assert all(len(line) <= WIDTH for part in parts for line in part.splitlines())
    assert all(part.splitlines()[0].startswith("name  ") for part in parts)
    assert sum(part.splitlines()[0].count("column") for part in parts) == 20


def test_notes_go_on_below(capsys: pytest.CaptureFixture[str]) -> None:
    words = "a rather long remark about what went wrong here and there, with what it said: " + "no " * 30
    print_table(["trial", "note"], [["t0000", words], ["t0001", ""]], {"trial", "note"})
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert " ".join(" ".join(lines[1:-1]).split()) == f"t0000 {words.strip()}"
    assert lines[2].startswith(" " * 7)
    assert lines[-1] == "t0001"


def test_a_table_keeps_its_columns_whatever_stands_in_them(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [[text, "1.5"] for text in [*HOSTILE, "界界"]]
    print_table(["name", "value"], rows)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(rows)
    assert len({cell_len(line) for line in lines}) == 1
    assert all(line.endswith("1.5") for line in lines[1:])
