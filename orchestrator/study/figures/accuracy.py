"""Figure 2: accuracy by number of training languages, with a panel per task and resource group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from orchestrator.reports import style
from orchestrator.study.paper import distinct, listed, models_of, task_name

GROUPS = {"high": "high-resource (en, es, ja)", "low": "low-resource (bn, sw, te)"}
"""Map from resource group to its title."""


def draw(numbers: Mapping[str, Any]) -> style.Drawing | None:
    """Draw a line with Wilson intervals for each model, or return None without numbers."""
    entries = numbers["fig2"]
    if not entries:
        return None
    tasks, models = distinct(entries, "task"), models_of(numbers)
    groups = [group for group in GROUPS if group in distinct(entries, "group")]
    sizes = sorted(distinct(entries, "num_languages"))
    figure, axes = style.panels(len(groups), len(tasks), height_in=1.0 + 2.1 * len(groups), sharey=True)
    for row, group in enumerate(groups):
        for column, task in enumerate(tasks):
            axis = axes[row][column]
            chosen = [e for e in entries if e["task"] == task and e["group"] == group]
            _panel(axis, chosen, models, sizes)
            axis.set_title(f"{task_name(task)}, {GROUPS[group]}")
        axes[row][0].set_ylabel("accuracy (%)")
    for axis in axes[-1]:
        axis.set_xlabel("training languages")
    # A limit of exactly 0 would cut the markers of models that answer nothing right.
    axes[0][0].set_ylim(bottom=-3)
    style.model_legend(figure, [style.shortened(str(model)) for model in models])
    items = sorted({entry["num_items"] for entry in entries})
    pooled = f"{items[0]:,} to {items[-1]:,}" if len(items) > 1 else f"{items[0]:,}"
    return style.Drawing(
        "figure2",
        "Figure 2. Accuracy against the number of training languages",
        "Trained cells only. A point pools the test items of all mixtures of that size and of the group's"
        f" evaluation languages (n = {pooled} items a point); bars are 95 % Wilson intervals. Points are set"
        " apart sideways so that intervals do not hide each other.",
        f"Accuracy against the number of training languages ({listed(sizes)}) for"
        f" {listed(models)}, in a panel for each of {listed(task_name(t) for t in tasks)}"
        " and high and low-resource evaluation languages.",
        figure,
    )


def _panel(
    axis: Axes, entries: Sequence[Mapping[str, Any]], models: Sequence[str], sizes: Sequence[int]
) -> None:
    for index, model in enumerate(models):
        line = sorted(
            (entry for entry in entries if entry["model"] == model), key=lambda entry: entry["num_languages"]
        )
        if not line:
            continue
        # All models have points at the same sizes, so each model is shifted sideways to keep its interval
        # visible.
        shift = style.dodge(index, len(models))
        axis.errorbar(
            [entry["num_languages"] + shift for entry in line],
            [100 * entry["accuracy"] for entry in line],
            yerr=[
                # Rounding can put an end of the interval on the wrong side, and matplotlib refuses negative
                # lengths.
                [100 * max(0.0, entry["accuracy"] - entry["low"]) for entry in line],
                [100 * max(0.0, entry["high"] - entry["accuracy"]) for entry in line],
            ],
            color=style.colour(index),
            marker=style.marker(index),
            elinewidth=0.8,
            capsize=1.5,
        )
    style.size_ticks(axis, sizes)
    style.plain(axis)
