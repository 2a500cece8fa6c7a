"""Table 3: what the linear model finds, and when it says that it cannot."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.study.tables import (
    PARAMETERS,
    Row,
    report,
    study_rows,
)

ROWS = study_rows()

TRUTH = {
    "intercept": -2.4,
    "log10_parameters": 0.302,
    "qwen": 0.0265,
    "math": -0.0207,
    "pretrained": -0.11,
    "language_in_training": 0.089,
    "sqrt_languages": 0.053,
}


def linear(model: str, task: str, languages: tuple[str, ...], eval_language: str) -> float:
    return (
        TRUTH["intercept"]
        + TRUTH["log10_parameters"] * math.log10(PARAMETERS[model])
        + TRUTH["qwen"] * model.startswith("qwen")
        + TRUTH["math"] * (task == "math")
        + TRUTH["pretrained"] * (not languages)
        + TRUTH["language_in_training"] * (eval_language in languages)
        + TRUTH["sqrt_languages"] * math.sqrt(len(languages) / 10)
    )


def linear_rows(**more: Any) -> list[Row]:
    """Rows with an exactly linear accuracy, and counts that are as near as counts can be."""
    rows = study_rows(linear, noise=False, **more)
    for each in rows:
        names = tuple(filter(None, each["languages"].split(",")))
        each["accuracy"] = linear(each["model"], each["task"], names, each["eval_language"])
    return rows


def test_an_exactly_linear_accuracy_gives_its_coefficients_exactly() -> None:
    table = report(linear_rows())["table3"]
    assert table["num_rows"] == 1380 and table["dropped"] == {} and table["reason"] is None
    for name, truth in TRUTH.items():
        part = table["coefficients"][name]
        assert [part["value"], part["low"], part["high"]] == pytest.approx([truth] * 3, abs=1e-9), name
    assert table["r2"] == pytest.approx(1.0, abs=1e-12)


def test_the_coefficients_are_found_under_noise_within_their_intervals() -> None:
    table = report(study_rows(linear, seed=3))["table3"]
    inside = [
        table["coefficients"][name]["low"] <= truth <= table["coefficients"][name]["high"]
        for name, truth in TRUTH.items()
    ]
    assert sum(inside) >= 6
    assert table["r2_low"] < table["r2"] < table["r2_high"] < 1


def test_regressors_that_the_rows_cannot_tell_apart_are_named_and_not_guessed() -> None:
    table = report(linear_rows(models=["qwen3-8b"], tasks=["math"]))["table3"]
    assert set(table["dropped"]) == {"log10_parameters", "qwen", "math"}
    assert table["coefficients"]["qwen"] == {"value": None, "low": None, "high": None}
    for name in ("pretrained", "language_in_training", "sqrt_languages"):
        assert table["coefficients"][name]["value"] == pytest.approx(TRUTH[name], abs=1e-9)
    two = report(linear_rows(models=["qwen3-8b", "gemma3-1b"]))["table3"]
    assert set(two["dropped"]) == {"qwen"} and two["coefficients"]["math"]["value"] == pytest.approx(-0.0207)


def test_table3_says_why_there_is_none() -> None:
    strange = [{**each, "model": f"my-{each['model']}", "num_parameters": None} for each in ROWS]
    assert "num_parameters is not known of my-gemma3-1b" in report(strange)["table3"]["reason"]
    few = report(ROWS[4:7])["table3"]
    assert few["reason"] == "3 rows are too few for 2 coefficients"
    assert few["r2"] is None and few["coefficients"]["math"]["value"] is None
    assert "nothing" in report(ROWS[:6])["table3"]["reason"]
