"""Text for the terminal: durations, amounts, curves, cut labels, and logs as a terminal leaves them."""

from __future__ import annotations

import math

from orchestrator.api.logs import shown_lines
from orchestrator.core.state import State
from orchestrator.watching.board import fit
from orchestrator.watching.drawing import COLOURS, MARKS, MEANINGS, amount, curve_lines


def test_each_state_has_a_mark_of_its_own_in_one_column_of_any_terminal():
    assert set(MARKS) == set(COLOURS) == set(MEANINGS) == set(State)
    assert len(set(MARKS.values())) == len(State)
    assert all(mark.isascii() and len(mark) == 1 and not mark.isdigit() for mark in MARKS.values())


def test_an_amount_has_about_three_digits():
    assert [amount(n) for n in (0.5, 999, 12_345, 1_234_567, 2.5e9)] == [
        "0.5",
        "999",
        "12.3k",
        "1.23M",
        "2.5G",
    ]


def test_a_curve_that_falls_goes_from_the_upper_left_to_the_lower_right():
    lines = curve_lines([(step, 10.0 - step) for step in range(11)], 30, 4)
    assert [line[:3] for line in lines] == ["10 ", "   ", "   ", " 0 "]
    drawn = [line[3:] for line in lines]
    assert all(len(line) == len(drawn[0]) for line in drawn)
    starts = [min(n for n, dots in enumerate(line) if dots != "\u2800") for line in drawn]
    assert starts == sorted(starts) and starts[0] == 0
    assert drawn[-1][-1] != "\u2800" and drawn[0][-1] == "\u2800"


def test_a_curve_of_one_value_or_in_no_room_is_none_and_what_is_not_finite_is_left_out():
    assert curve_lines([(1, 2.0)], 30, 4) == []
    assert curve_lines([(1, 2.0), (2, 1.0)], 8, 4) == []
    assert curve_lines([(1, 2.0), (2, math.nan), (3, math.inf)], 30, 4) == []
    assert len(curve_lines([(1, 2.0), (2, 2.0)], 30, 1)) == 1


def test_a_curve_may_span_more_than_a_float_holds():
    lines = curve_lines([(1, 1e308), (2, -1e308), (3, 0.0)], 30, 4)
    assert lines[0].startswith("1e+308 ") or lines[0].startswith(" 1e+308 ")
    assert lines[-1].startswith("-1e+308 ") and len(lines) == 4
    assert len(curve_lines([(1, 0.0), (2, 5e-324)], 30, 4)) == 4


def test_a_cut_label_keeps_its_beginning_and_its_end():
    assert fit("math", 6) == "math  "
    assert [fit(name, 7) for name in ("qwen3-0.6b", "qwen3-1.7b")] == ["qwe~.6b", "qwe~.7b"]
    assert all(len(fit("qwen3-0.6b", width)) == width for width in range(1, 10))
    assert fit("日本語", 4) == "日本"  # two columns each


def test_lines_of_a_log_are_those_that_a_terminal_would_leave():
    text = "\x1b[1;31mred\x1b[0m\r\n 10%\r 50%\r100%\n\x1b]0;title\x07a\tb\n\x07bell\nno end"
    assert shown_lines(text) == ["red", "100%", "a       b", "\\x07bell", "no end"]
    assert shown_lines("") == []
