"""All numbers of the report, computed from result rows into one plain dict that JSON can represent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.study.coverage import missing
from orchestrator.study.numbers.accuracies import baselines, comparisons, fig2, fig3, fig4, fig7, fig8, table2
from orchestrator.study.numbers.regression import table3
from orchestrator.study.published import verdicts
from orchestrator.study.tables.results import Row, results


def report(
    rows: Sequence[Row],
    *,
    seed: int = 0,
    expected: Iterable[Mapping[str, Any]] | None = None,
    where: str = "the table",
) -> dict[str, Any]:
    """Return every number of the study's tables and figures.

    A number that cannot be computed is None or absent.

    Args:
        rows: the rows of `collect`, or rows from elsewhere with the columns up to `accuracy`.
        seed: the seed of the bootstraps and of the split of Table 3.
        expected: the cells that there should be, each with `model`, `task` and `languages`, and optionally
            `cell` and `seed`. By default they are derived from the rows.
        where: the name of the rows in error messages.

    Raises:
        UserError: the rows are not such a table.
    """
    read = results(rows, where=where)
    found = comparisons(read)
    tasks = sorted({result.task for result in read})
    numbers: dict[str, Any] = {
        "num_rows": len(read),
        "num_cells": len({(r.model, r.task, r.languages, r.seed) for r in read}),
        "missing": missing(read, expected),
        "table2": table2(found),
        "table3": table3(read, seed=seed),
        "fig2": fig2(read),
        "fig3": fig3(found, tasks, seed=seed),
        "fig4": fig4(read),
        "fig7": fig7(read),
        "fig8": fig8(read),
        "baselines": baselines(read),
    }
    # Verdicts compare the numbers above with the published ones, so they come last.
    numbers["verdicts"] = verdicts(numbers, read)
    return numbers
