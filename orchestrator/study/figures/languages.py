"""Figure 8: accuracy in each evaluation language, as means of each size with the mixtures as dots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from orchestrator.reports import style
from orchestrator.study import paper
from orchestrator.study.paper import distinct, language_name, listed, models_of, task_name

_COLUMNS = 3


def draw(numbers: Mapping[str, Any]) -> style.Drawing | None:
    """Draw a panel for each task and evaluation language, or return None without numbers."""
    entries = numbers["fig8"]
    if not entries:
        return None
    tasks, models = distinct(entries, "task"), models_of(numbers)
    languages = paper.in_order(distinct(entries, "eval_language"))
    sizes = sorted(distinct(entries, "num_languages"))
    columns = min(_COLUMNS, len(languages))
    rows_a_task = -(-len(languages) // columns)
    figure, axes = style.panels(
        rows_a_task * len(tasks), columns, height_in=0.8 + 1.6 * rows_a_task * len(tasks), sharey=True
    )
    for number, axis in enumerate(axes.flat):
        task = tasks[number // (rows_a_task * columns)]
        index = number % (rows_a_task * columns)
        if index >= len(languages):
            # The languages of a task may not fill their last row of panels.
            axis.set_visible(False)
            continue
        chosen = [e for e in entries if e["task"] == task and e["eval_language"] == languages[index]]
        _panel(axis, chosen, models, sizes)
        axis.set_title(f"{task_name(task)}, {language_name(languages[index])}")
    for row in axes:
        row[0].set_ylabel("accuracy (%)")
    for axis in axes[-1]:
        axis.set_xlabel("training languages")
    axes[0][0].set_ylim(bottom=-3)
    style.model_legend(figure, [style.shortened(str(model)) for model in models])
    num_dots = sum(len(entry["values"]) for entry in entries)
    return style.Drawing(
        "figure8",
        "Figure 8. Accuracy in each evaluation language",
        "Lines are the mean over the mixtures of a size, small dots the mixtures themselves"
        f" (n = {num_dots:,} cell results); no interval is drawn: the dots show the spread."
        " Trained cells only.",
        f"Accuracy against the number of training languages for {listed(models)}, in a panel for each of"
        f" {listed(task_name(task) for task in tasks)} and {listed(map(language_name, languages))}.",
        figure,
    )


def _panel(
    axis: Axes, entries: Sequence[Mapping[str, Any]], models: Sequence[str], sizes: Sequence[int]
) -> None:
    for index, model in enumerate(models):
        line = sorted((e for e in entries if e["model"] == model), key=lambda e: e["num_languages"])
        shift, tint = style.dodge(index, len(models)), style.colour(index)
        dots = [(e["num_languages"] + shift, 100 * value) for e in line for value in e["values"]]
        if not dots:
            continue
        axis.plot(
            [e["num_languages"] + shift for e in line],
            [100 * e["mean"] for e in line],
            color=tint,
            marker=style.marker(index),
            markersize=3.2,
            linewidth=1.1,
        )
        xs, ys = zip(*dots, strict=True)
        axis.scatter(xs, ys, s=4, color=tint, alpha=0.55, linewidths=0, zorder=1)
    style.size_ticks(axis, sizes)
    style.plain(axis)
