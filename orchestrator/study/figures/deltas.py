"""Figure 3: the effect of one more training language, as medians with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from orchestrator.reports import style
from orchestrator.study.paper import SETTINGS, interval, listed, number, task_name
from orchestrator.study.published import NOT_COMPARABLE, PUBLISHED

Medians = Mapping[str, Mapping[str, Any]]
"""Map from setting to its entry in the numbers."""


def draw(numbers: Mapping[str, Any]) -> style.Drawing | None:
    """Draw a panel for each task with a row for each setting, or return None without numbers.

    A published median is shown beside ours only if the two are comparable.
    """
    tasks = {
        task: {key: entry for key, entry in by_setting.items() if entry.get("median_points") is not None}
        for task, by_setting in numbers["fig3"].items()
    }
    tasks = {task: by_setting for task, by_setting in tasks.items() if by_setting}
    if not tasks:
        return None
    published = _published(numbers)
    figure, axes = style.panels(1, len(tasks), height_in=2.3)
    for axis, (task, medians) in zip(axes[0], tasks.items(), strict=True):
        _panel(axis, medians, published.get(task) or {})
        axis.set_title(task_name(task))
    handles = [Line2D([], [], color=style.COLOURS[0], marker="o", label="median, 95 % interval")]
    if any(published.get(task) for task in tasks):
        handles.append(
            Line2D([], [], color=style.COLOURS[1], marker="D", markerfacecolor="none", linestyle="",
                   label="published median")
        )  # fmt: skip
    style.legend(figure, handles, longest=24)
    said = [
        f"{task_name(task)} {SETTINGS[key]}: {number(entry['median_points'], sign=True)} points"
        for task, medians in tasks.items()
        for key, entry in medians.items()
    ]
    return style.Drawing(
        "figure3",
        "Figure 3. What training on English and one more language changes",
        "Median of acc(en+x) − acc(en) in percentage points, the same model, task and evaluation language;"
        " in English itself, in the added language x (direct exposure), and in the other evaluation languages"
        " (cross-lingual transfer). n is the number of comparisons; lines are 95 % percentile bootstrap"
        " intervals of the median.",
        f"Medians and intervals: {listed(said)}.",
        figure,
    )


def _published(numbers: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the published medians that are comparable with ours, by task and setting."""
    found: dict[str, dict[str, float]] = {}
    for published, entry in zip(PUBLISHED, numbers["verdicts"], strict=True):
        if published.path[0] == "fig3" and entry["verdict"] != NOT_COMPARABLE:
            found.setdefault(published.path[1], {})[published.path[2]] = published.value
    return found


def _panel(axis: Axes, medians: Medians, published: Mapping[str, float]) -> None:
    settings = [key for key in SETTINGS if key in medians]
    # The y axis points up, so descending places put the first setting at the top.
    places = range(len(settings) - 1, -1, -1)
    axis.axvline(0, color=style.GREY, linewidth=0.8)
    for place, key in zip(places, settings, strict=True):
        entry = medians[key]
        if entry["low"] is not None:
            axis.plot([entry["low"], entry["high"]], [place, place], color=style.COLOURS[0], linewidth=2)
        axis.plot([entry["median_points"]], [place], color=style.COLOURS[0], marker="o", markersize=5.5)
        if published.get(key) is not None:
            axis.plot([published[key]], [place], color=style.COLOURS[1], marker="D", markerfacecolor="none",
                      markersize=6, linestyle="")  # fmt: skip
    axis.set_yticks(
        places, [f"{_split(SETTINGS[key])}\n(n = {medians[key]['num_cells']})" for key in settings]
    )
    axis.set_ylim(-0.6, len(settings) - 0.4)
    # The numbers stand at the right edge, where they cannot cover a point or an interval.
    right = axis.secondary_yaxis("right")
    right.set_yticks(places, [_written(medians[key]) for key in settings])
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)
    axis.set_xlabel("change in accuracy (percentage points)")
    axis.margins(x=0.08)
    style.plain(axis, grid="x")


def _split(text: str) -> str:
    return text.replace(" ", "\n", 1)


def _written(entry: Mapping[str, Any]) -> str:
    return f"{number(entry['median_points'], sign=True)}\n{interval(entry['low'], entry['high'])}"
