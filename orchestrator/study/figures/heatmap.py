"""Figure 7: fine-tuned against pretrained accuracy, for English and one more language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from orchestrator.reports import style
from orchestrator.study import paper
from orchestrator.study.paper import MINUS, distinct, listed, number, task_name

_COLOURS = "RdBu"
_DARK = 0.62
"""Share of the scale beyond which a cell is dark and its number is white."""


def draw(numbers: Mapping[str, Any]) -> style.Drawing | None:
    """Draw a heat map for each model and task, or return None without numbers.

    Each cell shows its number. All maps have the same scale, so that colours can be compared between them.
    """
    entries = numbers["fig7"]
    if not entries:
        return None
    tasks, models = distinct(entries, "task"), distinct(entries, "model")
    mixtures = sorted(distinct(entries, "mixture"), key=_place)
    languages = paper.in_order(distinct(entries, "eval_language"))
    # The scale is symmetric, so that 0 is neutral. It spans at least a point, so that noise does not look
    # like an effect.
    most = max(1.0, *(abs(entry["delta_points"]) for entry in entries))
    panel_in = 0.32 + 0.2 * len(mixtures)
    figure, axes = style.panels(len(models), len(tasks), height_in=0.9 + max(1.0, panel_in * len(models)))
    norm, image = TwoSlopeNorm(0.0, -most, most), None
    for row, model in zip(axes, models, strict=True):
        for axis, task in zip(row, tasks, strict=True):
            found = {
                (entry["mixture"], entry["eval_language"]): entry["delta_points"]
                for entry in entries
                if entry["model"] == model and entry["task"] == task
            }
            image = _panel(axis, found, mixtures, languages, norm)
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
    values = sorted(entry["delta_points"] for entry in entries)
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


def _panel(
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
