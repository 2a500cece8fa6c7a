"""What a stage may return as its rows, and how what it may not is refused."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from orchestrator.core.tree import checked_rows
from orchestrator.errors import StageFailure
from orchestrator.stage import Config


def test_no_rows_are_no_rows() -> None:
    assert checked_rows(None) == checked_rows([]) == ()


def test_rows_of_json_come_back_as_they_are() -> None:
    row = {"a": 1, "b": 2.5, "c": True, "d": None, "e": "é", "f": [1, ["x", {}]], "g": {"h": []}, "i": 2**70}
    assert checked_rows([row, {}]) == (row, {})


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (numpy.float32(0.5), 0.5),
        (numpy.float64(0.5), 0.5),
        (numpy.int64(3), 3),
        (numpy.bool_(True), True),
        (numpy.str_("x"), "x"),
        (numpy.array(4), 4),
        (torch.tensor(0.5), 0.5),
        ((1, numpy.int32(2)), [1, 2]),
        (OrderedDict(a=torch.tensor(1)), {"a": 1}),
        (Config({"a": {"b": [1]}}), {"a": {"b": [1]}}),
    ],
)
def test_scalars_and_containers_of_libraries_become_plain(value: Any, plain: Any) -> None:
    (row,) = checked_rows([{"m": value}])
    assert row == {"m": plain}
    assert type(row["m"]) is type(plain)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "None"),
        (float("inf"), "None"),
        (numpy.float32("nan"), "None"),
        (b"x", "bytes"),
        (Path("x"), "Path"),
        ({1, 2}, "set"),
        (object(), "object"),
        (numpy.zeros(3), "tolist"),
        (torch.zeros(1), "tolist"),
        ({1: 2}, "keys must be text, one is 1"),
        ("\ud800", "UTF-8"),
        (10**400, "more digits"),
    ],
)
def test_what_json_cannot_say_is_refused_by_row_and_key(value: Any, says: str) -> None:
    for wrapped, key in ((value, "'m'"), ([value], "'m[0]'"), ({"n": value}, "'m.n'")):
        with pytest.raises(StageFailure) as caught:
            checked_rows([{}, {"m": wrapped}])
        assert caught.value.cause == "code"
        assert str(caught.value).startswith(f"row 2, key {key}: ")
        assert says in str(caught.value)


@pytest.mark.parametrize("value", [{"a": 1}, "rows", 3, ({"a": 1},), [1], [{"a": 1}, [2]], [{1: 2}]])
def test_what_is_no_list_of_mappings_with_text_keys_is_refused(value: Any) -> None:
    with pytest.raises(StageFailure):
        checked_rows(value)


def test_the_cause_is_the_callers() -> None:
    with pytest.raises(StageFailure) as caught:
        checked_rows([{"m": float("nan")}], cause="data")
    assert caught.value.cause == "data"
