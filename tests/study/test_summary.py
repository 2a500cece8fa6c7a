"""The accuracy report, from whole and from partial rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.study.summary import markdown, series, write


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
    assert table[0].startswith("| tiny | none | 0 | – | 3.3 [1, 17] | 0.0 | 10.0 | 0.0 |")
    assert table[1].startswith("| tiny | en+es | 2 | 80.0 [58, 92] | 10.0 [2, 40] | 90.0* | 70.0* | 10.0 |")


def test_seeds_of_one_mixture_are_pooled() -> None:
    pooled = series([row("en", "en", 4, seed=0), row("en", "en", 8, seed=1)])
    assert pooled["math"]["tiny", True][1].share == 0.6


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
