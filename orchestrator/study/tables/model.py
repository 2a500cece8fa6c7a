"""The report's tables of results: its numbers as text, for the page and for Markdown alike."""

from __future__ import annotations

from orchestrator.reports.page import Table
from orchestrator.study import paper
from orchestrator.study.comparison import PUBLISHED
from orchestrator.study.paper import ABSENT, SETTINGS, counted, distinct, interval, number, percent, task_name
from orchestrator.study.sections import NumbersSection

_COEFFICIENTS = {
    "intercept": "intercept",
    "log10_parameters": "log10(parameters)",
    "qwen": "Qwen",
    "math": "math",
    "pretrained": "pretrained only",
    "language_in_training": "evaluation language in training",
    "sqrt_languages": "sqrt(L / 10)",
}


def verdicts(numbers: NumbersSection) -> Table:
    """Return the table of each published number beside ours."""
    rows = [
        (
            entry.name,
            _value(entry.published, entry.published_low, entry.published_high, entry.unit),
            _value(entry.ours, entry.ours_low, entry.ours_high, entry.unit),
            entry.verdict,
            entry.reason or "",
        )
        for entry in (numbers.verdicts if numbers.num_rows else ())
    ]
    return Table(
        "verdicts",
        "Verdicts: the published numbers and ours",
        ("number", "#published", "#ours", "verdict", "why"),
        rows,
        "Wins in %, medians in percentage points, coefficients on accuracies in [0, 1]; in brackets 95 %."
        " match: equal when rounded as published; within noise: one of the two lies in the other's interval;"
        " deviates: neither; not comparable: other models, other test sets, or not the whole grid.",
    )


def _value(value: float | None, low: float | None, high: float | None, unit: str) -> str:
    if value is None:
        return ABSENT
    # Rates are shares in the numbers and percentages in the table; medians are in points already.
    scale, digits = {"rate": (100, 1), "points": (1, 2)}.get(unit, (1, 3))
    written = number(scale * value, digits=digits, sign=unit == "points")
    return f"{written} {interval(low, high, digits=digits, scale=scale)}".rstrip()


def table2(numbers: NumbersSection) -> Table:
    """Return Table 2: the share of comparisons that en+x wins."""
    rows = []
    for key, name in SETTINGS.items():
        entry = numbers.table2[key]
        rows.append(
            (
                name,
                f"{entry.wins:,}",
                f"{entry.total:,}",
                percent(entry.rate),
                interval(entry.low, entry.high, scale=100) if entry.total else ABSENT,
            )
        )
    return Table(
        "table2",
        "Table 2. How often English and one more language beat English alone",
        ("evaluated in", "#wins", "#comparisons", "#rate (%)", "#95 % interval"),
        rows,
        "A win is acc(en+x) > acc(en), strictly, for the same model, task and evaluation language. Intervals:"
        " Wilson.",
    )


def medians(numbers: NumbersSection) -> Table:
    """Return the table of the numbers in Figure 3."""
    rows = [
        (
            task_name(task),
            SETTINGS[key],
            number(entry.median_points, digits=2, sign=True),
            interval(entry.low, entry.high, digits=2) or ABSENT,
            f"{entry.num_cells:,}",
        )
        for task, by_setting in numbers.fig3.items()
        for key, entry in by_setting.items()
    ]
    return Table(
        "figure3",
        "Figure 3 in numbers: median change from en to en+x",
        ("task", "evaluated in", "#median (points)", "#95 % interval", "#comparisons"),
        rows,
        "Percentile bootstrap intervals of the median.",
    )


def outcomes(numbers: NumbersSection) -> Table:
    """Return the table of the counts behind Figures 4 and 9."""
    entries = numbers.fig4
    rows = []
    for task in distinct(entries, "task"):
        for size in sorted(distinct(entries, "num_languages")):
            for model in distinct(entries, "model"):
                found = [
                    e.outcome for e in entries if (e.task, e.num_languages, e.model) == (task, size, model)
                ]
                if found:
                    counts = [str(found.count(name)) for name in ("better", "same", "worse")]
                    rows.append((str(model), task_name(task), str(size), *counts))
    return Table(
        "figure4",
        "Figures 4 and 9 in numbers: zero-shot against direct exposure",
        ("model", "task", "#L", "#better", "#same", "#worse"),
        rows,
        "Two-sided t-test on the per-item outcomes of the two cells, alpha 0.05, not corrected for their"
        " number.",
    )


def table3(numbers: NumbersSection) -> Table:
    """Return Table 3: the regression beside the published coefficients."""
    found = numbers.table3
    theirs = {entry.path[-1]: entry.value for entry in PUBLISHED if entry.unit == "coefficient"}
    r2 = next(entry.value for entry in PUBLISHED if entry.unit == "r2")
    rows = []
    for key, name in _COEFFICIENTS.items():
        entry = found.coefficients[key]
        rows.append(
            (
                name,
                number(entry.value, digits=3, sign=True),
                interval(entry.low, entry.high, digits=3) or ABSENT,
                number(theirs.get(key), digits=3, sign=True),
            )
        )
    held_out = interval(found.r2_low, found.r2_high, digits=3) or ABSENT
    rows.append(("R² on held-out rows", number(found.r2, digits=3), held_out, number(r2, digits=3)))
    # A dash without an explanation would look like a failure, so the table names each reason.
    left_out = [f"{_COEFFICIENTS[name]} ({why})" for name, why in found.dropped.items()]
    notes = [f"Left out: {'; '.join(left_out)}."] if left_out else []
    notes += [f"Not computed: {found.reason}."] if found.reason else []
    return Table(
        "table3",
        "Table 3. What explains accuracy: a linear model",
        ("regressor", "#coefficient", "#95 % interval", "#published"),
        rows,
        f"Ordinary least squares over {counted(found.num_rows, 'row')}, y = accuracy in [0, 1]; bootstrap"
        " intervals over rows; R² on a random 30 % that the fit did not see. The paper gives no intercept."
        + "".join(f" {note}" for note in notes),
    )


def baselines(numbers: NumbersSection) -> Table:
    """Return the table of the pretrained models' accuracies."""
    entries = numbers.baselines
    languages = paper.in_order(distinct(entries, "eval_language"))
    found = {(e.model, e.task, e.eval_language): e for e in entries}
    rows = []
    for model in distinct(entries, "model"):
        for task in distinct(entries, "task"):
            cells = [found.get((model, task, language)) for language in languages]
            if any(cells):
                rows.append(
                    (str(model), task_name(task), *(percent(c.accuracy if c else None) for c in cells))
                )
    return Table(
        "baselines",
        "The pretrained models, accuracy in %",
        ("model", "task", *(f"#{language}" for language in languages)),
        rows,
    )


def results(numbers: NumbersSection) -> list[Table]:
    """Return the tables of results that have rows."""
    makers = (table2, medians, outcomes, table3, baselines) if numbers.num_rows else ()
    return [table for make in makers if (table := make(numbers)).rows]


def accuracies(numbers: NumbersSection) -> Table:
    """Return the table of the numbers in Figure 2."""
    return Table(
        "figure2",
        "Figure 2 in numbers: accuracy by number of training languages",
        ("model", "task", "resources", "#L", "#right", "#items", "#accuracy (%)", "#95 % interval"),
        [
            (
                str(e.model),
                task_name(e.task),
                e.group,
                str(e.num_languages),
                f"{e.num_correct:,}",
                f"{e.num_items:,}",
                percent(e.accuracy),
                interval(e.low, e.high, scale=100),
            )
            for e in numbers.fig2
        ],
        "Items of all mixtures of a size pooled; Wilson intervals.",
    )
