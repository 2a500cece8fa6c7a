"""Tables about how the results came to be: coverage, deviations, attempts, cost, code and launches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.reporting import About, AttemptFacts, LaunchFacts
from orchestrator.reports.page import Table
from orchestrator.study.comparison import DEVIATES, MATCH, NOISE, NOT_COMPARABLE, value_text, values_text
from orchestrator.study.coverage import ABSENT as ABSENT_STATE
from orchestrator.study.coverage import PARTIAL
from orchestrator.study.paper import ABSENT, counted, number, task_name
from orchestrator.study.sections import CodeCells, GpuHours, ModelHours, Provenance, Report

# A stage that many cells share would otherwise fill a page with their names.
_MOST_CELLS = 6
_VERBS = {
    MATCH: "match",
    NOISE: "lie within noise",
    DEVIATES: "deviate",
    NOT_COMPARABLE: "are not comparable",
}
_STATES = {ABSENT_STATE: "have no rows", PARTIAL: "have rows of some languages only"}


def missing(report: Report) -> Table:
    """Return the table of missing cells, with a row for each group of equal state, cause, model and task."""
    rows = [
        (
            " ".join(filter(None, [group.state, f"({group.cause})" if group.cause else ""])),
            group.model or ABSENT,
            task_name(group.task) if group.task else ABSENT,
            f"{group.num_cells:,}",
            ", ".join(group.names),
            "; ".join(group.reasons),
        )
        for group in report.status.groups
    ]
    return Table(
        "missing", "Missing cells", ("state", "model", "task", "#cells", "mixtures", "why"), rows,
        "Figures and tables are computed from the cells that are there.",
    )  # fmt: skip


def ours(report: Report) -> Table:
    """Return the table of the settings that the paper does not give."""
    # Without facts of a sweep, nothing shows how its cells were configured.
    known = report.ledger.known
    rows = []
    for entry in report.ledger.ours:
        used = values_text(entry.values)
        if not entry.key and entry.values is None:
            used = "as by default" if known else "unknown"
        elif not used:
            used = "no such setting" if known else "unknown"
        flag = {True: "differs from our default", False: "", None: ""}[entry.differs]
        default = ABSENT if entry.default is None else value_text(entry.default)
        rows.append((entry.what, entry.key or ABSENT, default, used, flag, entry.why))
    return Table(
        "deviations-ours",
        "The paper is silent: what we took",
        ("what", "setting", "our default", "in these cells", "note", "why"),
        rows,
        "" if known else "A table does not say how its cells were configured.",
    )


def differs(report: Report) -> Table:
    """Return the table of the settings in which cells differ from the paper."""
    return Table(
        "deviations-paper",
        "Different from the paper",
        ("what", "setting", "paper", "in these cells", "where the paper says so"),
        [(e.what, e.key, value_text(e.default), values_text(e.values), e.why) for e in report.ledger.differs],
    )


def retries(report: Report) -> Table:
    """Return the table of stages with several attempts, and of the settings that changed between them."""
    rows = []
    for retry in report.retries:
        cells = retry.cells
        named = ", ".join(cells[:_MOST_CELLS]) + (
            f" and {len(cells) - _MOST_CELLS} more" if len(cells) > _MOST_CELLS else ""
        )
        history = [_attempt(attempt) for attempt in retry.attempts]
        remedies = [
            f"attempt {attempt.number}: {key} {value_text(before)} → {value_text(now)}"
            for attempt in retry.attempts
            for key, (before, now) in attempt.changed.items()
        ]
        rows.append((retry.stage, named, "; ".join(history), "; ".join(remedies) or ABSENT))
    return Table(
        "retries",
        "Stages that took more than one attempt",
        ("stage", "cells", "attempts", "changed settings"),
        rows,
        "A setting given otherwise than to the attempt before is a remedy; it changes no cell's identity.",
    )


def _attempt(attempt: AttemptFacts) -> str:
    why = f" ({attempt.why})" if attempt.why else ""
    message = f": {attempt.message}" if attempt.message and attempt.outcome != "succeeded" else ""
    return f"{attempt.number} {attempt.outcome}{why}{message}"


def hours(report: Report) -> Table:
    """Return the table of training time by model."""
    spent = report.gpu_hours
    rows = [
        (e.model, f"{e.num_cells:,}", number(e.hours, digits=2), f"{e.num_tokens:,}") for e in spent.by_model
    ]
    if rows:
        tokens = sum(e.num_tokens for e in spent.by_model)
        rows.append(("all", f"{spent.num_cells:,}", number(spent.total, digits=2), f"{tokens:,}"))
    notes = ["Seconds of training times devices, of the attempts that count; evaluation is not in it."]
    if not spent.devices_known:
        notes.append("The rows do not say on how many devices: one is assumed.")
    if spent.devices:
        notes.append(f"Devices: {', '.join(spent.devices)}.")
    return Table(
        "hours",
        "Device-hours of training",
        ("model", "#cells", "#hours", "#training tokens"),
        rows,
        " ".join(notes),
    )


def codes(report: Report) -> Table:
    """Return the table of code versions that produced the results."""
    return Table(
        "code",
        "Versions of the code that made the results",
        ("commit and digest", "#cells"),
        [(entry.code, f"{entry.num_cells:,}") for entry in report.provenance.codes],
    )


def launches(report: Report) -> Table:
    """Return the table of launches: what was typed, when and by whom."""
    rows = [
        (
            str(entry.number),
            entry.at,
            entry.by,
            entry.command,
            entry.code,
            _packages(entry),
        )
        for entry in report.provenance.launches
    ]
    return Table("launches", "Launches", ("#request", "at (UTC)", "by", "command", "code", "packages"), rows)


def _packages(entry: LaunchFacts) -> str:
    versions = {"Python": entry.python, **entry.packages}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def headline(report: Report) -> list[str]:
    """Return a few sentences about what was run and how far it is."""
    state, sweep = report.status, report.sweep
    sentences = []
    if sweep.description:
        sentences.append(sweep.description.rstrip(".") + ".")
    if not state.num_cells:
        sentences.append("The table holds no results.")
        return sentences
    if not state.num_rows:
        cells = counted(state.num_cells, "cell")
        sentences.append(f"Nothing is done yet: 0 of {cells}, so there are no results to show.")
        return sentences
    others = ", ".join(
        f"{num:,} {_STATES.get(name, name)}" for name, num in state.states.items() if name != "done"
    )
    whole = "All" if state.num_done == state.num_cells else f"{state.num_done:,} of"
    sentences.append(
        f"{whole} {counted(state.num_cells, 'cell')} {_are(state.num_done)} done"
        + (f"; {others}." if others else ".")
    )
    sentences.append(f"Results: {counted(state.num_rows, 'row')} of a cell and evaluation language.")
    verdicts = [entry.verdict for entry in report.numbers.verdicts]
    counts = [f"{verdicts.count(name)} {_VERBS.get(name, name)}" for name in dict.fromkeys(verdicts)]
    sentences.append(f"Of {len(verdicts)} published numbers: {', '.join(counts)}.")
    return sentences


def _are(num: int) -> str:
    return "is" if num == 1 else "are"


def grid(report: Report) -> Table:
    """Return the table of the models, tasks, mixtures and languages of the results."""
    names = {
        "models": "models",
        "tasks": "tasks",
        "mixtures": "mixtures",
        "eval_languages": "evaluation languages",
    }
    return Table(
        "grid",
        "What was run",
        ("axis", "#number", "values"),
        [
            (label, str(len(found := getattr(report.swept, key))), ", ".join(map(str, found)) or ABSENT)
            for key, label in names.items()
        ],
    )


Row = Mapping[str, Any]
_DEVICES = ("num_gpus", "num_devices", "num_processes", "world_size")
"""Columns that may hold the number of devices of a cell's training. Without them, 1 is assumed."""


def gpu_hours(rows: Sequence[Row]) -> GpuHours:
    """Return training hours times devices, in total and by model.

    The total is None if no row has a training time.
    """
    cells: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if _number(row.get("train_seconds")):
            key = ("cell", "model", "task", "languages", "seed")
            # A cell has a row for each evaluation language, all with the same training time, which must
            # count once.
            cells[tuple(str(row.get(name)) for name in key)] = row
    by_model: dict[str, list[ModelHours]] = {}
    is_counted = False
    for row in cells.values():
        num_devices = next((num for name in _DEVICES if (num := _number(row.get(name)))), None)
        is_counted = is_counted or num_devices is not None
        model, hours = str(row.get("model")), (_number(row.get("train_seconds")) or 0.0) / 3600
        spent = ModelHours(model, hours * (num_devices or 1), 1, int(_number(row.get("train_tokens")) or 0))
        by_model.setdefault(model, []).append(spent)
    totals = [
        ModelHours(
            model,
            hours=sum(each.hours for each in spent),
            num_cells=len(spent),
            num_tokens=sum(each.num_tokens for each in spent),
        )
        for model, spent in sorted(by_model.items())
    ]
    return GpuHours(
        total=sum(spent.hours for spent in totals) if totals else None,
        num_cells=len(cells),
        devices_known=is_counted,
        devices=sorted({str(row["device"]) for row in rows if row.get("device")}),
        by_model=totals,
    )


def provenance(rows: Sequence[Row], about: About | None) -> Provenance:
    """Return code versions with the number of cells of each, and the sweep's launches and hosts if known."""
    # As a set, because a cell has a row for each evaluation language.
    made = {(str(row.get("cell", "")), str(row["code"])) for row in rows if row.get("code")}
    codes = Counter(code for _, code in made)
    return Provenance(
        codes=[CodeCells(code, num) for code, num in sorted(codes.items())],
        revisions=sorted({str(row["revision"]) for row in rows if row.get("revision")}),
        launches=about.launches if about is not None else (),
        hosts=about.hosts if about is not None else (),
    )


def _number(value: Any) -> float | None:
    """Return a number from a cell of any table, or None if it holds no finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
