"""The study's numbers on tables whose truth is known, on permuted and partial ones."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from functools import cache
from statistics import median
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from scipy import stats

from orchestrator.study.comparison import PUBLISHED
from tests.study.tables import (
    CORE,
    EVAL_LANGUAGES,
    NUM_ITEMS,
    PARAMETERS,
    Row,
    report,
    row,
    study_mixtures,
    study_rows,
)

ROWS = study_rows()


@cache
def of_study() -> dict[str, Any]:
    """The numbers of the study's rows."""
    return report(ROWS)


def at(entries: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    (found,) = [entry for entry in entries if all(entry[name] == value for name, value in keys.items())]
    return found


def changed(rule: Callable[[Row], int]) -> list[Row]:
    """The study's rows with other counts."""
    rows = []
    for each in ROWS:
        num_correct = rule(each)
        rows.append({**each, "num_correct": num_correct, "accuracy": num_correct / each["num_items"]})
    return rows


def with_languages(model: str, task: str, names: tuple[str, ...], eval_language: str) -> Row:
    text = ",".join(names)
    return at(ROWS, model=model, task=task, languages=text, eval_language=eval_language)


def floats(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from floats(part)
    elif isinstance(value, float):
        yield value


def test_equal_accuracies_give_no_wins_and_medians_of_zero() -> None:
    numbers = report(changed(lambda each: 100))
    assert [(part["wins"], part["total"]) for part in numbers["table2"].values()] == [
        (0, 40),
        (0, 40),
        (0, 160),
    ]
    for task in NUM_ITEMS:
        for part in numbers["fig3"][task].values():
            assert (part["median_points"], part["low"], part["high"]) == (0, 0, 0)
    assert {entry["outcome"] for entry in numbers["fig4"]} == {"same"}
    assert {entry["delta_points"] for entry in numbers["fig7"]} == {0}
    assert numbers["table3"]["r2"] is not None  # the tasks have 250 and 399 items


def test_one_item_better_wins_every_comparison() -> None:
    numbers = report(changed(lambda each: 101 if each["languages"].count(",") == 1 else 100))
    parts = numbers["table2"]
    assert {name: (part["wins"], part["total"]) for name, part in parts.items()} == {
        "en": (40, 40),
        "direct": (40, 40),
        "transfer": (160, 160),
    }
    assert numbers["fig3"]["math"]["transfer"] == {
        "median_points": 0.4,
        "low": 0.4,
        "high": 0.4,
        "num_cells": 80,
    }
    assert numbers["fig3"]["api_calling"]["en"]["median_points"] == pytest.approx(100 / 399)


def test_one_item_worse_wins_none() -> None:
    numbers = report(changed(lambda each: 99 if each["languages"].count(",") == 1 else 100))
    assert [part["wins"] for part in numbers["table2"].values()] == [0, 0, 0]


def test_the_published_counts_give_the_published_table_and_match() -> None:
    """The first 30, 35 and 119 comparisons of each setting are won by one item, the others are ties."""
    left = {"en": 30, "direct": 35, "transfer": 119}

    def rule(each: Row) -> int:
        names = each["languages"].split(",")
        if len(names) != 2:
            return 100
        setting = {"en": "en", names[1]: "direct"}.get(each["eval_language"], "transfer")
        left[setting] -= 1
        return 100 + (left[setting] >= 0)

    numbers = report(changed(rule))
    table = numbers["table2"]
    shown = {
        name: [round(100 * part[key], 1) for key in ("rate", "low", "high")] for name, part in table.items()
    }
    assert shown["en"] == [75.0, 59.8, 85.8]
    assert shown["direct"] == [87.5, 73.9, 94.5]
    assert shown["transfer"] == [74.4, 67.1, 80.5]
    verdicts = [entry["verdict"] for entry in numbers["verdicts"] if entry["unit"] == "rate"]
    assert verdicts == ["match"] * 3


def test_fig2_pools_the_items_of_a_resource_group_and_leaves_the_baseline_out() -> None:
    entry = at(of_study()["fig2"], model="qwen3-8b", task="math", group="low", num_languages=4)
    chosen = [
        each
        for each in ROWS
        if (each["model"], each["task"], each["num_languages"]) == ("qwen3-8b", "math", 4)
        and each["eval_language"] in ("bn", "sw", "te")
    ]
    assert len(chosen) == 15
    assert entry["num_items"] == 15 * 250
    assert entry["num_correct"] == sum(each["num_correct"] for each in chosen)
    assert entry["accuracy"] == entry["num_correct"] / entry["num_items"]
    assert 0 < entry["low"] < entry["accuracy"] < entry["high"] < 1
    assert len(of_study()["fig2"]) == 5 * 2 * 2 * 7
    assert 0 not in {each["num_languages"] for each in of_study()["fig2"]}


@pytest.mark.parametrize("size", [4, 6, 9])
@pytest.mark.parametrize("language", CORE)
def test_fig4_compares_the_mixture_without_a_language_with_direct_exposure(language: str, size: int) -> None:
    extras = {4: (), 6: ("fr", "th"), 9: ("fr", "de", "ru", "zh", "th")}[size]
    without = (*(x for x in CORE if x != language), *extras)
    pairs = [x for x in CORE[1:] if language in ("en", x)]
    entry = at(
        of_study()["fig4"], model="gemma3-4b", task="api_calling", language=language, num_languages=size
    )
    zero_shot = with_languages("gemma3-4b", "api_calling", without, language)
    direct = [with_languages("gemma3-4b", "api_calling", ("en", x), language) for x in pairs]
    assert len(direct) == (4 if language == "en" else 1)
    assert entry["zero_shot"] == zero_shot["accuracy"]
    assert entry["direct"] == pytest.approx(sum(each["accuracy"] for each in direct) / len(direct))
    items = [
        [1] * each["num_correct"] + [0] * (each["num_items"] - each["num_correct"])
        for each in (zero_shot, *direct)
    ]
    p_value = stats.ttest_ind(items[0], [item for sample in items[1:] for item in sample]).pvalue
    assert entry["p_value"] == pytest.approx(p_value, rel=1e-6, abs=1e-15)
    sign = "better" if entry["zero_shot"] > entry["direct"] else "worse"
    assert entry["outcome"] == (sign if p_value < 0.05 else "same")


def test_fig4_takes_zero_shots_point_of_view() -> None:
    better = report(changed(lambda each: 200 if each["num_languages"] in (4, 6) else 100))["fig4"]
    assert {entry["num_languages"]: entry["outcome"] for entry in better} == {
        4: "better",
        6: "better",
        9: "same",
    }
    worse = report(changed(lambda each: 0 if each["num_languages"] == 9 else 100))["fig4"]
    assert at(worse, model="qwen3-8b", task="math", language="en", num_languages=9)["outcome"] == "worse"
    assert len(worse) == 5 * 2 * 5 * 3


def test_fig4_does_not_care_which_two_extras_there_are() -> None:
    other = study_rows(mixtures=study_mixtures(("de", "ru")))
    assert [{**entry, "mixture": None} for entry in report(other)["fig4"]] == [
        {**entry, "mixture": None} for entry in of_study()["fig4"]
    ]
    assert report(other)["missing"] == []


def test_fig7_is_what_training_added_in_points() -> None:
    entry = at(of_study()["fig7"], model="qwen3-1.7b", task="math", mixture="en+bn", eval_language="te")
    trained = with_languages("qwen3-1.7b", "math", ("en", "bn"), "te")
    untrained = with_languages("qwen3-1.7b", "math", (), "te")
    assert entry["delta_points"] == pytest.approx(100 * (trained["accuracy"] - untrained["accuracy"]))
    assert {each["mixture"] for each in of_study()["fig7"]} == {"en", "en+es", "en+ja", "en+bn", "en+sw"}
    assert len(of_study()["fig7"]) == 5 * 2 * 5 * 6


def test_fig8_has_every_mixture_of_a_size_and_their_mean() -> None:
    entry = at(of_study()["fig8"], model="gemma3-1b", task="math", eval_language="sw", num_languages=9)
    shares = [
        each["accuracy"]
        for each in ROWS
        if (each["model"], each["task"], each["eval_language"], each["num_languages"])
        == ("gemma3-1b", "math", "sw", 9)
    ]
    assert sorted(entry["values"]) == sorted(shares) and len(shares) == 5
    assert entry["mean"] == pytest.approx(sum(shares) / 5)
    assert len(of_study()["fig8"]) == 5 * 2 * 6 * 7


def test_fig3_is_the_median_of_the_gains() -> None:
    gains = [
        100
        * (
            with_languages(model, "math", ("en", x), x)["accuracy"]
            - with_languages(model, "math", ("en",), x)["accuracy"]
        )
        for model in PARAMETERS
        for x in CORE[1:]
    ]
    part = of_study()["fig3"]["math"]["direct"]
    assert part["median_points"] == pytest.approx(median(gains)) and part["num_cells"] == 20
    assert part["low"] < part["median_points"] < part["high"]


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(some.integers(0, 2**32))
def test_the_order_of_the_rows_changes_nothing(seed: int) -> None:
    shuffled = list(ROWS)
    random.Random(seed).shuffle(shuffled)
    assert report(shuffled) == of_study()


def test_the_labels_of_the_mixtures_change_nothing() -> None:
    renamed = [{**each, "mixture": f"m{hash(each['mixture'])}"} for each in ROWS]
    assert report(renamed) == of_study()


def test_the_names_of_the_models_change_no_comparison() -> None:
    renamed = [{**each, "model": f"z-{each['model']}"} for each in ROWS]
    numbers = report(renamed)
    for key in ("table2", "fig3"):
        assert numbers[key] == of_study()[key]
    for key in ("fig2", "fig4", "fig7", "fig8"):
        assert [{**each, "model": each["model"][2:]} for each in numbers[key]] == of_study()[key]
    assert {entry["verdict"] for entry in numbers["verdicts"]} == {"not comparable"}


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(some.sets(some.integers(0, len(ROWS) - 1), max_size=400), some.booleans())
def test_any_part_of_a_sweep_gives_a_report_in_bounds(chosen: set[int], kept: bool) -> None:
    rows = [each for number, each in enumerate(ROWS) if (number in chosen) is kept]
    numbers = report(rows)
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert numbers["num_rows"] == len(rows)
    for part in numbers["table2"].values():
        assert 0 <= part["wins"] <= part["total"] <= 160
        assert (part["rate"] is None) is (part["total"] == 0)
    for entry in [*numbers["fig2"], *numbers["baselines"]]:
        assert 0 <= entry["low"] <= entry["accuracy"] <= entry["high"] <= 1
    assert all(0 <= entry["p_value"] <= 1 for entry in numbers["fig4"])
    assert all(math.isfinite(value) for value in floats(numbers))


def test_a_missing_cell_is_absent_and_named() -> None:
    gone = [each for each in ROWS if each["cell"] != "qwen3-8b.math.en"]
    numbers = report(gone)
    assert [numbers["table2"][name]["total"] for name in ("en", "direct", "transfer")] == [36, 36, 144]
    (entry,) = numbers["missing"]
    assert (entry["model"], entry["task"], entry["mixture"]) == ("qwen3-8b", "math", "en")
    assert entry["eval_languages"] == list(EVAL_LANGUAGES)
    by_name = {entry["name"]: entry for entry in numbers["verdicts"]}
    assert by_name["Table 2: win rate in English"]["reason"] == "36 of 40 comparisons"
    assert by_name["Fig. 3: API calling, median gain in English"]["verdict"] != "not comparable"
    assert by_name["Fig. 3: math, median gain in English"]["verdict"] == "not comparable"
    assert by_name["Table 3: R2 on held-out rows"]["reason"] == "1374 of 1380 rows"


def test_a_missing_evaluation_language_is_named() -> None:
    gone = [each for each in ROWS if (each["cell"], each["eval_language"]) != ("gemma3-1b.math.core", "te")]
    (entry,) = report(gone)["missing"]
    assert entry["mixture"] == "core" and entry["eval_languages"] == ["te"]


def test_what_should_be_there_may_be_told() -> None:
    expected = [
        {"cell": "a", "model": "qwen3-8b", "task": "math", "languages": "", "seed": 0},
        {"cell": "b", "model": "qwen3-8b", "task": "math", "languages": ["en", "te"], "seed": 0},
        {"cell": "c", "model": "qwen3-8b", "task": "math", "languages": "", "seed": 1},
    ]
    assert [entry["cell"] for entry in report(ROWS, expected=expected)["missing"]] == ["b", "c"]
    assert [entry["cell"] for entry in report([], expected=expected)["missing"]] == ["a", "b", "c"]
    unseeded = [{**each, "seed": None} for each in ROWS]
    assert [entry["cell"] for entry in report(unseeded, expected=expected)["missing"]] == ["b"]


def test_a_bilingual_table_is_not_asked_for_the_other_mixtures() -> None:
    bilingual = {name: names for name, names in study_mixtures().items() if len(names) <= 2}
    numbers = report(study_rows(mixtures=bilingual))
    assert numbers["missing"] == [] and numbers["fig4"] == []
    verdicts = {entry["name"]: entry["verdict"] for entry in numbers["verdicts"]}
    assert verdicts["Table 2: win rate in English"] != "not comparable"
    assert verdicts["Table 3: Qwen"] == "not comparable"


def test_seeds_are_compared_with_their_own_and_pooled_otherwise() -> None:
    numbers = report([*ROWS, *study_rows(seed=1)])
    assert [part["total"] for part in numbers["table2"].values()] == [80, 80, 320]
    assert (
        at(numbers["fig2"], model="qwen3-8b", task="math", group="high", num_languages=1)["num_items"] == 1500
    )
    assert len(numbers["fig8"]) == len(of_study()["fig8"]) and numbers["num_cells"] == 460
    assert numbers["missing"] == []
    crossed = [{**each, "seed": 1} if each["mixture"] == "en" else each for each in ROWS]
    assert report(crossed)["table2"]["en"]["total"] == 0


def test_a_baseline_without_seeds_serves_all_seeds() -> None:
    second = [each for each in study_rows(seed=1) if each["languages"]]
    numbers = report([*ROWS, *second])
    assert len(numbers["fig7"]) == 300
    assert not any(entry["verdict"] == "not comparable" for entry in numbers["verdicts"])


def test_every_published_number_is_compared() -> None:
    assert len(of_study()["verdicts"]) == len(PUBLISHED) == 3 + 6 + 6 + 1
    assert {entry["verdict"] for entry in of_study()["verdicts"]} <= {"match", "within noise", "deviates"}
    for entry in of_study()["verdicts"]:
        inside = [
            low is not None and low <= value <= high
            for value, low, high in (
                (entry["published"], entry["ours_low"], entry["ours_high"]),
                (entry["ours"], entry["published_low"], entry["published_high"]),
            )
        ]
        rounds = round(entry["ours"], entry["decimals"]) == entry["published"]
        assert entry["verdict"] == ("match" if rounds else "within noise" if any(inside) else "deviates")
        assert entry["reason"] is None


def test_other_test_sets_and_other_models_are_not_comparable() -> None:
    small = report(study_rows(num_items={"math": 40, "api_calling": 399}))
    assert {entry["reason"] for entry in small["verdicts"]} == {"other test sets: 40 items of math"}
    more = [*ROWS, row("smollm", "math", "none", (), "en", 3, 250)]
    assert {entry["reason"] for entry in report(more)["verdicts"]} == {"other models: smollm"}


def test_the_seed_moves_the_bootstraps_and_the_split_and_nothing_else() -> None:
    other = report(ROWS, seed=1)
    assert other["table2"] == of_study()["table2"] and other["fig4"] == of_study()["fig4"]
    assert other["table3"]["r2"] != of_study()["table3"]["r2"]
    for name, part in other["table3"]["coefficients"].items():
        assert part["value"] == of_study()["table3"]["coefficients"][name]["value"]
        assert part["low"] == pytest.approx(of_study()["table3"]["coefficients"][name]["low"], abs=0.02)
