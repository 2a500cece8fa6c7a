"""The accuracy report, from whole and from partial rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.reporting import About, CellFacts
from orchestrator.study.summary import markdown, series, varying, write


def row(mixture: str, language: str, num_correct: int, **more: Any) -> dict[str, Any]:
    languages = "" if mixture == "none" else mixture.replace("+", ",")
    return {
        "cell": f"tiny.math.{mixture}",
        "mixture": mixture,
        "model": "tiny",
        "task": "math",
        "languages": languages,
        "eval_language": language,
        "split": "test",
        "num_correct": num_correct,
        "num_items": 10,
        **more,
    }


ROWS = [
    row("en+es", "en", 9),
    row("en+es", "es", 7),
    row("en+es", "te", 1),
    row("none", "en", 0),
    row("none", "es", 1),
    row("none", "te", 0),
    row("en+es", "en", 10, split="validation"),
]


def test_the_table_has_the_baseline_first_and_marks_trained_languages() -> None:
    lines = markdown(ROWS[:-1]).splitlines()
    table = [line for line in lines if line.startswith("| tiny")]
    assert table[0].startswith("| tiny | none | 0 | – | 3.3 [0, 32] | 0.0 | 10.0 | 0.0 |")
    assert table[1].startswith("| tiny | en+es | 2 | 80.0 [49, 94] | 10.0 [2, 40] | 90.0* | 70.0* | 10.0 |")


def test_seeds_of_one_mixture_are_pooled() -> None:
    pooled = series([row("en", "en", 4, seed=0), row("en", "en", 8, seed=1)])
    assert pooled["math"]["tiny", True][1].share == pytest.approx(0.6)


def test_every_axis_that_varies_has_a_line_of_its_own() -> None:
    low = row("en", "en", 0, cell="low", **{"trainer.learning_rate": 1e-5})
    high = row("en", "en", 9, cell="high", **{"trainer.learning_rate": 7e-3})
    table = [line for line in markdown([low, high], ["trainer.learning_rate"]).splitlines() if "tiny" in line]
    assert table[0].startswith("| tiny | en | 1e-05 | 1 | 0.0 [0, 28] |")
    assert table[1].startswith("| tiny | en | 0.007 | 1 | 90.0 [60, 98] |")
    lines = series([low, high], ["trainer.learning_rate"])["math"]
    assert [name for name, _ in lines] == [
        "tiny, trainer.learning_rate=1e-05",
        "tiny, trainer.learning_rate=0.007",
    ]


def test_axes_that_vary_come_from_the_sweep_and_seeds_are_none_of_them() -> None:
    axes = {"model": "tiny", "mixture": "en", "seed": "0", "rate": "1"}
    facts = [CellFacts(cell="a", axes=axes, state="done"), CellFacts(cell="b", axes=axes, state="done")]
    about = About(sweep="s", revision=1, cells=tuple(facts))
    rows = [row("en", "en", 4, seed=seed, rate=seed, cell=str(seed)) for seed in (0, 1)]
    assert varying(rows, about) == ["rate"] and varying(rows, None) == []


def test_three_seeds_over_the_same_items_are_no_more_items() -> None:
    rows = [row("en", "en", right, num_items=8, seed=k, cell=str(k)) for k, right in enumerate((2, 4, 6))]
    text = markdown(rows)
    one = markdown([row("en", "en", 4, num_items=8)])
    assert "50.0 [22, 78] ±25.0" in text and "50.0 [22, 78]" in one
    point = series(rows)["math"]["tiny", True][1]
    assert (
        point.num_items == 8
        and point.interval == series([row("en", "en", 4, num_items=8)])["math"]["tiny", True][1].interval
    )


def test_translations_of_an_item_are_no_more_items() -> None:
    many = [row("en+es+te", language, 5) for language in ("en", "es", "te")]
    one, all_three = series([row("en", "en", 5)])["math"], series(many)["math"]
    assert all_three["tiny", True][3].interval == one["tiny", True][1].interval
    uneven = [row("en+es", "en", 5), row("en+es", "es", 10, num_items=20), row("en+es", "te", 0, num_items=0)]
    found = series(uneven)["math"]["tiny", True][2]
    assert found.share == pytest.approx(0.5) and found.num_items == 20


def test_what_rows_note_stands_above_the_table_once() -> None:
    note = "rows over trainer.max_length_tokens=64 left out: te 3 of 24 train"
    rows = [row("en+te", language, 1, notes=note) for language in ("en", "te")]
    assert markdown(rows).count(f"Note: 1 cell: {note}.") == 1 and "Note" not in markdown(ROWS)


def test_the_report_is_written_from_whatever_rows_there_are(tmp_path: Path) -> None:
    paths = write(ROWS, tmp_path / "report")
    assert [path.name for path in paths] == ["accuracy.md", "accuracy.png"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    assert write(ROWS[:1], tmp_path / "one")
    assert write([], tmp_path / "none") == []
    assert write([{"cell": "a", "loss": 1.0}, ROWS[-1]], tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_rows_without_an_axis_named_mixture_are_labelled_by_their_languages() -> None:
    rows = [{key: value for key, value in ROWS[0].items() if key != "mixture"}]
    assert "| tiny | en+es | 2 |" in markdown(rows)


def test_a_cell_that_two_revisions_share_is_counted_once() -> None:
    once = row("en", "en", 5, stage="evaluate", revision=1)
    assert markdown([once, {**once, "revision": 2}]) == markdown([once])


def test_a_table_says_its_axes_by_where_they_stand() -> None:
    rows = [
        {"cell": str(lr), "lr": lr, "sweep": "s", **row("en", "en", right, cell=str(lr))}
        for lr, right in ((1, 4), (2, 8))
    ]
    assert varying(rows, None) == ["lr"]
