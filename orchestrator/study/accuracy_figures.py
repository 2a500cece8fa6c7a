"""Figures 2, 7 and 8: accuracies by number of training languages, by mixture and by evaluation language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from orchestrator.reports import style
from orchestrator.study import paper
from orchestrator.study.paper import MINUS, distinct, language_name, listed, number, task_name
from orchestrator.study.sections import LanguageAccuracy, NumbersSection, SizeAccuracy

GROUPS = {"high": "high-resource (en, es, ja)", "low": "low-resource (bn, sw, te)"}
"""Map from resource group to its title."""


def figure2(numbers: NumbersSection) -> style.Drawing | None:
    """Draw a line with Wilson intervals for each model, or return None without numbers."""
    entries = numbers.fig2
    if not entries:
        return None
    tasks, models = distinct(entries, "task"), numbers.models
    groups = [group for group in GROUPS if group in distinct(entries, "group")]
    sizes = sorted(distinct(entries, "num_languages"))
    figure, axes = style.panels(len(groups), len(tasks), height_in=1.0 + 2.1 * len(groups), sharey=True)
    for row, group in enumerate(groups):
        for column, task in enumerate(tasks):
            axis = axes[row][column]
            chosen = [e for e in entries if e.task == task and e.group == group]
            _panel_of_sizes(axis, chosen, models, sizes)
            axis.set_title(f"{task_name(task)}, {GROUPS[group]}")
        axes[row][0].set_ylabel("accuracy (%)")
    for axis in axes[-1]:
        axis.set_xlabel("training languages")
    # A limit of exactly 0 would cut the markers of models that answer nothing right.
    axes[0][0].set_ylim(bottom=-3)
    style.model_legend(figure, [style.shortened(str(model)) for model in models])
    items = sorted({entry.num_items for entry in entries})
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


def _panel_of_sizes(
    axis: Axes, entries: Sequence[SizeAccuracy], models: Sequence[str], sizes: Sequence[int]
) -> None:
    for index, model in enumerate(models):
        line = sorted(
            (entry for entry in entries if entry.model == model), key=lambda entry: entry.num_languages
        )
        if not line:
            continue
        # All models have points at the same sizes, so each model is shifted sideways to keep its interval
        # visible.
        shift = style.dodge(index, len(models))
        axis.errorbar(
            [entry.num_languages + shift for entry in line],
            [100 * entry.accuracy for entry in line],
            yerr=[
                # Rounding can put an end of the interval on the wrong side, and matplotlib refuses negative
                # lengths.
                [100 * max(0.0, entry.accuracy - entry.low) for entry in line],
                [100 * max(0.0, entry.high - entry.accuracy) for entry in line],
            ],
            color=style.colour(index),
            marker=style.marker(index),
            elinewidth=0.8,
            capsize=1.5,
        )
    style.size_ticks(axis, sizes)
    style.plain(axis)


_COLOURS = "RdBu"
_DARK = 0.62
"""Share of the scale beyond which a cell is dark and its number is white."""


def figure7(numbers: NumbersSection) -> style.Drawing | None:
    """Draw a heat map for each model and task, or return None without numbers.

    Each cell shows its number. All maps have the same scale, so that colours can be compared between them.
    """
    entries = numbers.fig7
    if not entries:
        return None
    tasks, models = distinct(entries, "task"), distinct(entries, "model")
    mixtures = sorted(distinct(entries, "mixture"), key=_place)
    languages = paper.in_order(distinct(entries, "eval_language"))
    # The scale is symmetric, so that 0 is neutral. It spans at least a point, so that noise does not look
    # like an effect.
    most = max(1.0, *(abs(entry.delta_points) for entry in entries))
    panel_in = 0.32 + 0.2 * len(mixtures)
    figure, axes = style.panels(len(models), len(tasks), height_in=0.9 + max(1.0, panel_in * len(models)))
    norm, image = TwoSlopeNorm(0.0, -most, most), None
    for row, model in zip(axes, models, strict=True):
        for axis, task in zip(row, tasks, strict=True):
            found = {
                (entry.mixture, entry.eval_language): entry.delta_points
                for entry in entries
                if entry.model == model and entry.task == task
            }
            image = _heat_map(axis, found, mixtures, languages, norm)
            axis.set_title(f"{style.shortened(str(model))}, {task_name(task)}", pad=3)
        for axis in row[1:]:
            axis.set_yticklabels([])
    for axis in axes[-1]:
        axis.set_xlabel("evaluation language")
    assert image is not None  # there is an entry, so there is a panel
    bar = figure.colorbar(
        image, ax=axes, shrink=min(1.0, 2.6 / (panel_in * len(models))), pad=0.015, aspect=30
    )
    bar.set_label("change (points)")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:+.0f}".replace("-", MINUS) if value else "0")
    bar.outline.set_visible(False)
    values = sorted(entry.delta_points for entry in entries)
    return style.Drawing(
        "figure7",
        "Figure 7. Fine-tuned against pretrained, by mixture and evaluation language",
        "Accuracy after fine-tuning minus that of the pretrained model, in percentage points: rows are"
        " training mixtures,"
        f" columns evaluation languages (n = {len(values)} differences of single cells, no interval;"
        " blue is better, red is worse, grey cells are not done yet).",
        f"Heat maps for {listed(models)}, a column for each task. Changes reach from"
        f" {number(values[0], sign=True)} to {number(values[-1], sign=True)} points.",
        figure,
    )


def _place(mixture: str) -> tuple[int, int]:
    """Return a sort key: English first, then en+x in the order of the study's languages."""
    names = mixture.split("+")
    last = names[-1]
    return len(names), paper.CORE.index(last) if last in paper.CORE else len(paper.CORE)


def _heat_map(
    axis: Axes,
    found: Mapping[tuple[str, str], float],
    mixtures: Sequence[str],
    languages: Sequence[str],
    norm: TwoSlopeNorm,
) -> Any:
    grid = [[found.get((mixture, language), float("nan")) for language in languages] for mixture in mixtures]
    image = axis.imshow(grid, cmap=_COLOURS, norm=norm, aspect="auto")
    axis.set_facecolor(style.PALE)
    for y, mixture in enumerate(mixtures):
        for x, language in enumerate(languages):
            value = found.get((mixture, language))
            if value is not None:
                dark = abs(norm(value) - 0.5) > _DARK / 2
                axis.text(x, y, number(value, sign=True), ha="center", va="center", fontsize=6.5,
                          color="white" if dark else "#111111")  # fmt: skip
    axis.set_xticks(range(len(languages)), languages)
    axis.set_yticks(range(len(mixtures)), [style.shortened(str(mixture), 18) for mixture in mixtures])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return image


_COLUMNS = 3


def figure8(numbers: NumbersSection) -> style.Drawing | None:
    """Draw a panel for each task and evaluation language, or return None without numbers."""
    entries = numbers.fig8
    if not entries:
        return None
    tasks, models = distinct(entries, "task"), numbers.models
    languages = paper.in_order(distinct(entries, "eval_language"))
    sizes = sorted(distinct(entries, "num_languages"))
    columns = min(_COLUMNS, len(languages))
    rows_a_task = -(-len(languages) // columns)
    figure, axes = style.panels(
        rows_a_task * len(tasks), columns, height_in=0.8 + 1.6 * rows_a_task * len(tasks), sharey=True
    )
    for axis, task, language in style.panels_by_task(axes, tasks, languages):
        chosen = [e for e in entries if e.task == task and e.eval_language == language]
        _panel_of_language(axis, chosen, models, sizes)
        axis.set_title(f"{task_name(task)}, {language_name(language)}")
    for row in axes:
        row[0].set_ylabel("accuracy (%)")
    for axis in axes[-1]:
        axis.set_xlabel("training languages")
    axes[0][0].set_ylim(bottom=-3)
    style.model_legend(figure, [style.shortened(str(model)) for model in models])
    num_dots = sum(len(entry.values) for entry in entries)
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


def _panel_of_language(
    axis: Axes, entries: Sequence[LanguageAccuracy], models: Sequence[str], sizes: Sequence[int]
) -> None:
    for index, model in enumerate(models):
        line = sorted((e for e in entries if e.model == model), key=lambda e: e.num_languages)
        shift, tint = style.dodge(index, len(models)), style.colour(index)
        dots = [(e.num_languages + shift, 100 * value) for e in line for value in e.values]
        if not dots:
            continue
        axis.plot(
            [e.num_languages + shift for e in line],
            [100 * e.mean for e in line],
            color=tint,
            marker=style.marker(index),
            markersize=3.2,
            linewidth=1.1,
        )
        xs, ys = zip(*dots, strict=True)
        axis.scatter(xs, ys, s=4, color=tint, alpha=0.55, linewidths=0, zorder=1)
    style.size_ticks(axis, sizes)
    style.plain(axis)
