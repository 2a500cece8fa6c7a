"""The `accuracy` report: a Markdown table and a figure of accuracy against training languages.

It takes the rows of `collect` and knows nothing of how they came to be; cells that are not done are
simply not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.study.figure import draw
from orchestrator.study.statistics import Count, pool
from orchestrator.study.table import languages_of

Row = Mapping[str, Any]
_NEEDED = ("task", "model", "split", "eval_language", "languages", "num_correct", "num_items")


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes ``accuracy.md`` and ``accuracy.png`` from the test rows, and returns their paths.

    Rows of other reports are passed over; without any test row nothing is written.
    """
    tests = [row for row in rows if all(key in row for key in _NEEDED) and row["split"] == "test"]
    if not tests:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    table, figure = folder / "accuracy.md", folder / "accuracy.png"
    table.write_text(markdown(tests), encoding="utf-8")
    draw(series(tests), figure)
    return [table, figure]


def markdown(rows: Sequence[Row]) -> str:
    """Returns a table for each task: a line a model and mixture, the untrained baseline first."""
    languages = list(dict.fromkeys(str(row["eval_language"]) for row in rows))
    lines = ["# Test accuracy, %", ""]
    lines += [
        "Trained: languages of the mixture, marked `*`; other: the rest. In brackets 95 % (Wilson).",
        "",
    ]
    for task in dict.fromkeys(str(row["task"]) for row in rows):
        header = ["model", "mixture", "languages", "trained", "other", *languages]
        lines += [f"## {task}", "", _line(header), _line(["---", "---", *["---:"] * (len(header) - 2)])]
        for (model, mixture), group in _groups(row for row in rows if str(row["task"]) == task):
            lines.append(_line([model, mixture, *_cells(group, languages)]))
        lines.append("")
    return "\n".join(lines)


def _cells(rows: Sequence[Row], languages: Sequence[str]) -> list[str]:
    mixture = _mixture(rows[0])
    cells = [str(len(mixture))]
    for inside in (True, False):
        count = _pool(row for row in rows if (row["eval_language"] in mixture) is inside)
        low, high = count.interval
        cells.append(f"{_percent(count)} [{100 * low:.0f}, {100 * high:.0f}]" if count.num_items else "–")
    for language in languages:
        count = _pool(row for row in rows if row["eval_language"] == language)
        cells.append(f"{_percent(count)}{'*' if language in mixture else ''}")
    return cells


def series(rows: Sequence[Row]) -> dict[str, dict[tuple[str, bool], dict[int, Count]]]:
    """Returns task to (model, whether trained on the evaluation language) to number of languages to pool."""
    found: dict[str, dict[tuple[str, bool], dict[int, list[Row]]]] = {}
    for row in rows:
        mixture = _mixture(row)
        line = (str(row["model"]), row["eval_language"] in mixture)
        lines = found.setdefault(str(row["task"]), {})
        lines.setdefault(line, {}).setdefault(len(mixture), []).append(row)
    return {
        task: {line: {x: _pool(points[x]) for x in sorted(points)} for line, points in lines.items()}
        for task, lines in found.items()
    }


def _groups(rows: Iterable[Row]) -> list[tuple[tuple[str, str], list[Row]]]:
    """Groups rows by model and mixture, small mixtures first; seeds are pooled."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        label = str(row.get("mixture") or "+".join(_mixture(row)) or "none")
        groups.setdefault((str(row["model"]), label), []).append(row)
    models = list(dict.fromkeys(model for model, _ in groups))
    return sorted(groups.items(), key=lambda item: (models.index(item[0][0]), len(_mixture(item[1][0]))))


def _mixture(row: Row) -> tuple[str, ...]:
    return languages_of(row["languages"])


def _pool(rows: Iterable[Row]) -> Count:
    return pool((int(row["num_correct"]), int(row["num_items"])) for row in rows)


def _percent(count: Count) -> str:
    return f"{100 * count.share:.1f}" if count.num_items else "–"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
