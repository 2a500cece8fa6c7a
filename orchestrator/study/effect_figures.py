"""Figures 3, 4 and 9: the effect of one more training language, and of zero-shot against direct exposure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from orchestrator.reports import style
from orchestrator.study import paper
from orchestrator.study.comparison import NOT_COMPARABLE, PUBLISHED
from orchestrator.study.paper import SETTINGS, distinct, interval, listed, number, task_name
from orchestrator.study.sections import MedianGain, NumbersSection, TransferPoint

Medians = Mapping[str, MedianGain]
"""Map from setting to its entry in the numbers."""


def figure3(numbers: NumbersSection) -> style.Drawing | None:
    """Draw a panel for each task with a row for each setting, or return None without numbers.

    A published median is shown beside ours only if the two are comparable.
    """
    tasks = {
        task: {key: entry for key, entry in by_setting.items() if entry.median_points is not None}
        for task, by_setting in numbers.fig3.items()
    }
    tasks = {task: by_setting for task, by_setting in tasks.items() if by_setting}
    if not tasks:
        return None
    published = _published(numbers)
    figure, axes = style.panels(1, len(tasks), height_in=2.3)
    for axis, (task, medians) in zip(axes[0], tasks.items(), strict=True):
        _panel_of_medians(axis, medians, published.get(task) or {})
        axis.set_title(task_name(task))
    handles = [Line2D([], [], color=style.COLOURS[0], marker="o", label="median, 95 % interval")]
    if any(published.get(task) for task in tasks):
        handles.append(
            Line2D([], [], color=style.COLOURS[1], marker="D", markerfacecolor="none", linestyle="",
                   label="published median")
        )  # fmt: skip
    style.legend(figure, handles, longest=24)
    sentences = [
        f"{task_name(task)} {SETTINGS[key]}: {number(entry.median_points, sign=True)} points"
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
        f"Medians and intervals: {listed(sentences)}.",
        figure,
    )


def _published(numbers: NumbersSection) -> dict[str, dict[str, float]]:
    """Return the published medians that are comparable with ours, by task and setting."""
    found: dict[str, dict[str, float]] = {}
    for published, entry in zip(PUBLISHED, numbers.verdicts, strict=True):
        if published.path[0] == "fig3" and entry.verdict != NOT_COMPARABLE:
            found.setdefault(published.path[1], {})[published.path[2]] = published.value
    return found


def _panel_of_medians(axis: Axes, medians: Medians, published: Mapping[str, float]) -> None:
    settings = [key for key in SETTINGS if key in medians]
    # The y axis points up, so descending places put the first setting at the top.
    places = range(len(settings) - 1, -1, -1)
    axis.axvline(0, color=style.GREY, linewidth=0.8)
    for place, key in zip(places, settings, strict=True):
        entry = medians[key]
        assert entry.median_points is not None  # `figure3` leaves others out
        if entry.low is not None and entry.high is not None:
            axis.plot([entry.low, entry.high], [place, place], color=style.COLOURS[0], linewidth=2)
        axis.plot([entry.median_points], [place], color=style.COLOURS[0], marker="o", markersize=5.5)
        if published.get(key) is not None:
            axis.plot([published[key]], [place], color=style.COLOURS[1], marker="D", markerfacecolor="none",
                      markersize=6, linestyle="")  # fmt: skip
    axis.set_yticks(places, [f"{_split(SETTINGS[key])}\n(n = {medians[key].num_cells})" for key in settings])
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


def _written(entry: MedianGain) -> str:
    return f"{number(entry.median_points, sign=True)}\n{interval(entry.low, entry.high)}"


OUTCOMES = {
    "better": ("#009E73", "zero-shot better"),
    "same": ("#8a8a8a", "no difference"),
    "worse": ("#D55E00", "zero-shot worse"),
}
"""Map from outcome to its colour and its label."""

_MOST_COLUMNS = 5
_ABOUT = (
    "Each point is a model, task, language x and size L: up, the accuracy in x of the core languages without"
    " x (zero-shot); across, that of en+x (direct exposure; for English the mean of the four en+x). Above the"
    " diagonal the mixture without x does better. Colours: two-sided t-test on the per-item"
    " outcomes, alpha 0.05"
)
Entries = Sequence[TransferPoint]
"""The entries of Figure 4 in the numbers."""


def figure4(numbers: NumbersSection) -> style.Drawing | None:
    """Draw Figure 4: a panel for each task and number of training languages, with all models together."""
    entries = numbers.fig4
    if not entries:
        return None
    tasks, sizes = distinct(entries, "task"), sorted(distinct(entries, "num_languages"))
    figure, axes = style.panels(len(tasks), len(sizes), height_in=0.7 + 2.4 * len(tasks))
    limits = _limits(entries)
    for row, task in zip(axes, tasks, strict=True):
        for axis, size in zip(row, sizes, strict=True):
            chosen = [e for e in entries if e.task == task and e.num_languages == size]
            _scatter(axis, chosen, _languages(entries), limits)
            axis.set_title(f"{task_name(task)}, L = {size}\n{_tally(chosen)}")
    _label(axes)
    _legend(figure, entries)
    return style.Drawing(
        "figure4",
        "Figure 4. Zero-shot transfer against direct exposure, by number of training languages",
        f"{_ABOUT} (n = {len(entries)}; {_tally(entries)}). All models are in one panel; Figure 9 takes them"
        " apart.",
        f"Scatter plots, a panel for each task and L in {listed(sizes)}. Overall {_tally(entries)}.",
        figure,
    )


def figure9(numbers: NumbersSection) -> style.Drawing | None:
    """Draw Figure 9: the points of Figure 4, with a panel for each task and model."""
    entries = numbers.fig4
    if not entries:
        return None
    tasks, models = distinct(entries, "task"), distinct(entries, "model")
    columns = min(_MOST_COLUMNS, len(models))
    rows_a_task = -(-len(models) // columns)
    num_rows = rows_a_task * len(tasks)
    panel_in = min(2.5, style.WIDTH_IN / columns + 0.3)
    figure, axes = style.panels(num_rows, columns, height_in=0.7 + panel_in * num_rows)
    for axis, task, model in style.panels_by_task(axes, tasks, models):
        chosen = [e for e in entries if e.task == task and e.model == model]
        # Models differ widely in accuracy, and on a common scale the points of a weak one would coincide.
        limits = _limits([e for e in entries if e.model == model])
        _scatter(axis, chosen, _languages(entries), limits)
        axis.set_title(f"{style.shortened(str(model), 80 // columns)}\n{task_name(task)}", fontsize=8)
    _label(axes)
    _legend(figure, entries)
    tallies = (f"{model}: {_tally([e for e in entries if e.model == model])}" for model in models)
    return style.Drawing(
        "figure9",
        "Figure 9. Zero-shot transfer against direct exposure, by model",
        f"The points of Figure 4, a panel a model and task; L = {listed(_sizes(entries))} together, each"
        " model on a scale of its own. Zero-shot against direct exposure:"
        f" {'; '.join(tallies)}.",
        f"Scatter plots, a panel for each task and each of {listed(models)}.",
        figure,
    )


def _languages(entries: Entries) -> tuple[str, ...]:
    return paper.in_order(distinct(entries, "language"))


def _sizes(entries: Entries) -> list[int]:
    return sorted(distinct(entries, "num_languages"))


def _limits(entries: Entries) -> tuple[float, float]:
    values = [100 * share for entry in entries for share in (entry.direct, entry.zero_shot)]
    low, high = min(values), max(values)
    # Both axes share these limits, so that the diagonal means equal accuracies.
    pad = max(3.0, 0.06 * (high - low))
    return max(-4.0, low - pad), min(104.0, high + pad)


def _scatter(axis: Axes, entries: Entries, languages: Sequence[str], limits: tuple[float, float]) -> None:
    axis.plot(limits, limits, color=style.GREY, linewidth=0.8, zorder=1)
    for entry in entries:
        axis.scatter(
            100 * entry.direct,
            100 * entry.zero_shot,
            s=24,
            color=OUTCOMES[entry.outcome][0],
            marker=style.marker(languages.index(entry.language)),
            edgecolors="white",
            linewidths=0.4,
            zorder=2,
        )
    axis.set_xlim(limits)
    axis.set_ylim(limits)
    axis.set_aspect("equal")
    # Setting ticks may widen the limits, so the limits are set once more afterwards.
    axis.locator_params(nbins=4)
    axis.set_yticks(axis.get_xticks())
    axis.set_xlim(limits)
    axis.set_ylim(limits)
    style.plain(axis, grid="both")


def _label(axes: Any) -> None:
    for row in axes:
        row[0].set_ylabel("zero-shot: core without x (%)")
    for axis in axes[-1]:
        axis.set_xlabel("direct: en+x (%)")


def _legend(figure: Any, entries: Entries) -> None:
    languages = _languages(entries)
    handles = [
        Line2D([], [], color=tint, marker="s", markersize=6, linestyle="", label=label)
        for tint, label in OUTCOMES.values()
    ] + [
        Line2D(
            [], [], color="#333333", marker=style.marker(i), markersize=5, linestyle="", label=f"x = {name}"
        )
        for i, name in enumerate(languages)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncol=len(handles),
        frameon=False,
        columnspacing=1.1,
        handletextpad=0.1,
    )


def _tally(entries: Entries) -> str:
    outcomes = [entry.outcome for entry in entries]
    return ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in OUTCOMES)
