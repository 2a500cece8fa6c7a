"""Where this replication differs from the paper: its published numbers beside ours, and the deviation ledger.

The ledger holds our choices where the paper is silent, and the cells that differ from the paper. The paper is
arXiv 2604.13286; its settings are in sections 3 and 4. A key names an entry of a cell's config. This module
computes no statistics.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.reporting import About, CellFacts
from orchestrator.study import paper
from orchestrator.study.paper import counted
from orchestrator.study.sections import (
    LedgerEntry,
    LedgerSection,
    MedianGain,
    PublishedNumber,
    Regression,
    UsedValue,
    WinRate,
)
from orchestrator.study.tables.results import Result

MATCH, NOISE, DEVIATES, NOT_COMPARABLE = "match", "within noise", "deviates", "not comparable"
"""The verdicts; see `verdicts`."""


class Published(NamedTuple):
    """A published number.

    Attributes:
        name: its name in the report.
        unit: `rate` (a share), `points` (percentage points), `coefficient` or `r2`.
        value: the value as printed.
        decimals: the number of printed decimals.
        path: the keys under which the report has our number, with its interval and size.
        low: lower end of the published 95 % interval, if there is one.
        high: upper end of the published 95 % interval, if there is one.
    """

    name: str
    unit: str
    value: float
    decimals: int
    path: tuple[str, ...]
    low: float | None = None
    high: float | None = None


_SETTINGS = {"en": "English", "direct": "the added language", "transfer": "other languages"}
_RATES = {"en": (0.750, 0.598, 0.858), "direct": (0.875, 0.739, 0.945), "transfer": (0.744, 0.671, 0.805)}
_MEDIANS = {
    "api_calling": ("API calling", 2, {"en": 0.88, "direct": 9.27, "transfer": 3.38}),
    "math": ("math", 1, {"en": 3.4, "direct": 8.4, "transfer": 1.6}),
}
_COEFFICIENTS = {
    "log10_parameters": ("log10 of the parameters", 0.302),
    "qwen": ("Qwen", 0.265),
    "math": ("math", -0.207),
    "pretrained": ("pretrained only", -0.110),
    "language_in_training": ("evaluation language in training", 0.089),
    "sqrt_languages": ("square root of languages / 10", 0.053),
}
PUBLISHED: tuple[Published, ...] = (
    *(
        Published(f"Table 2: win rate in {_SETTINGS[name]}", "rate", value, 3, ("table2", name), low, high)
        for name, (value, low, high) in _RATES.items()
    ),
    *(
        Published(
            f"Fig. 3: {text}, median gain in {_SETTINGS[name]}", "points", value, num, ("fig3", task, name)
        )
        for task, (text, num, medians) in _MEDIANS.items()
        for name, value in medians.items()
    ),
    *(
        Published(f"Table 3: {text}", "coefficient", value, 3, ("table3", "coefficients", name))
        for name, (text, value) in _COEFFICIENTS.items()
    ),
    Published("Table 3: R2 on held-out rows", "r2", 0.805, 3, ("table3",)),
)
"""All numbers in the text of the study's section 4. Table 3's intercept is not among them."""


def verdicts(
    table2: Mapping[str, WinRate],
    fig3: Mapping[str, Mapping[str, MedianGain]],
    table3: Regression,
    read: Sequence[Result],
) -> list[PublishedNumber]:
    """Return each published number with ours and a verdict.

    - *not comparable*: the rows have other models or test sets than the study, or only a part of the grid
      behind this number. The reason is given.
    - *match*: our number, rounded to the decimals of the paper, is the published one.
    - *within noise*: the published number lies in our 95 % interval, or ours in the published one.
      Overlapping intervals would be too weak a criterion: those of two win rates of 40 pairs overlap up to
      28 points apart.
    - *deviates*: none of these.

    Args:
        table2: our win rates.
        fig3: our median gains.
        table3: our regression.
        read: the results that these were computed from.
    """
    foreign = _foreign(read)
    # With several seeds the grid is as many times larger. The baselines are not trained and have one seed.
    num_seeds = max(1, len({result.seed for result in read if result.languages}))
    found = []
    for published in PUBLISHED:
        size, whole, what = 0, 0, "comparisons"
        ours = low = high = None
        match published.path:
            case ("table2", setting):
                win = table2[setting]
                ours, low, high, size = win.rate, win.low, win.high, win.total
                whole = paper.NUM_COMPARISONS[setting] * len(paper.TASKS) * num_seeds
            case ("fig3", task, setting):
                if gain := fig3.get(task, {}).get(setting):
                    ours, low, high, size = gain.median_points, gain.low, gain.high, gain.num_cells
                whole = paper.NUM_COMPARISONS[setting] * num_seeds
            case _:
                ours, low, high = _of_regression(published, table3)
                # Baselines do not depend on the seed, so they are not multiplied.
                whole = paper.NUM_TRAINED_ROWS * num_seeds + paper.NUM_BASELINE_ROWS
                size, what = table3.num_rows, "rows"
        reason = foreign or (f"{size} of {whole} {what}" if size < whole else None)
        found.append(_verdict(published, ours, low, high, reason))
    return found


def _of_regression(published: Published, fit: Regression) -> tuple[float | None, float | None, float | None]:
    """Return our coefficient or R2, and the ends of its interval."""
    if published.unit == "r2":
        return fit.r2, fit.r2_low, fit.r2_high
    found = fit.coefficients[published.path[-1]]
    return found.value, found.low, found.high


def _verdict(
    published: Published, ours: float | None, low: float | None, high: float | None, reason: str | None
) -> PublishedNumber:
    """Return one published number with ours, a verdict, and a reason if they are not comparable."""
    verdict = NOT_COMPARABLE
    if reason is None and ours is None:
        reason = "it could not be computed"
    elif reason is None and ours is not None:
        verdict = _compare(published, ours, low, high)
    return PublishedNumber(
        name=published.name,
        unit=published.unit,
        published=published.value,
        published_low=published.low,
        published_high=published.high,
        decimals=published.decimals,
        ours=ours,
        ours_low=low,
        ours_high=high,
        verdict=verdict,
        reason=reason,
    )


def _compare(published: Published, ours: float, low: float | None, high: float | None) -> str:
    if round(ours, published.decimals) == published.value:
        return MATCH
    near = _inside(published.value, low, high) or _inside(ours, published.low, published.high)
    return NOISE if near else DEVIATES


def _inside(value: float, low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and low <= value <= high


def _foreign(read: Sequence[Result]) -> str | None:
    """Return in what the rows differ from the study, or None if they do not."""
    models = sorted({r.model for r in read if paper.canonical_model(r.model) not in paper.PARAMETERS})
    tasks = sorted({r.task for r in read} - set(paper.TASKS))
    sizes = sorted({(r.task, r.num_items) for r in read if r.num_items != paper.TASKS.get(r.task)})
    if models:
        return f"other models: {', '.join(models)}"
    if tasks:
        return f"other tasks: {', '.join(tasks)}"
    if sizes:
        return "other test sets: " + ", ".join(f"{num} items of {task}" for task, num in sizes)
    return None


_MOST_VALUES = 6
_NONE = object()


class Setting(NamedTuple):
    """A setting of a cell, and the value that it should have.

    Attributes:
        what: a description for people.
        key: the key in the config.
        value: the paper's value, or ours if the paper gives none. A map from task to value if the tasks
            differ.
        why: the origin of the value.
        trained_only: whether the setting has no meaning for an untrained baseline.
    """

    what: str
    key: str
    value: Any
    why: str
    trained_only: bool = True


PAPER = (
    Setting("learning rate", "trainer.learning_rate", 1e-5, "section 3"),
    Setting("epochs", "trainer.num_epochs", 6, "section 3"),
    Setting("global batch", "trainer.global_batch_size", 512, "section 3"),
    Setting("warm-up share", "trainer.warmup_share", 0.03, "section 3"),
    Setting("weight decay", "trainer.weight_decay", 0.01, "section 3"),
    Setting(
        "gradient checkpointing", "trainer.gradient_checkpointing", True,
        "section 3; auto: where the memory needs it; changes no result but rounding",
    ),
    Setting("examples a GPU", "trainer.micro_batch_size", 64, "section 3; changes no result but rounding"),
    Setting(
        "training items a language", "items.num_train", {"math": 10_000, "api_calling": 3_024},
        "section 3; 3,174 API calls less 150 for validation",
    ),
    Setting(
        "validation items a language", "items.num_validation", {"math": 200, "api_calling": 150}, "section 3"
    ),
    Setting("test items a language", "items.num_test", {"math": 250, "api_calling": 399}, "section 3", False),
    Setting("evaluation languages", "evaluation.languages", list(paper.EVAL_LANGUAGES), "section 3", False),
)  # fmt: skip
"""The settings that the paper gives."""

OURS = (
    Setting("the two extras of the mixtures of six", "extras", list(paper.TWO_EXTRAS),
            "the paper shows them only in a figure that we could not read"),
    Setting("revision of the model", "model.revision", _NONE, "the paper names no commit", False),
    Setting("seed", "seed", 0, "the paper names no seed and no repetitions"),
    Setting("seed that chooses the items", "items.seed", 0, "the paper does not say how items were sampled"),
    Setting("revision of the training data", "items.train.revision", _NONE, "the paper names no commit"),
    Setting("revision of the test data", "items.test.revision", _NONE, "the paper names no commit", False),
    Setting("processes a cell", "trainer.num_processes", _NONE, "the paper has 8 GPUs; not set: all"),
    Setting("sharding", "trainer.sharding", _NONE, "FSDP above one GPU's memory"),
    Setting("engine of generation", "evaluation.engine", _NONE, "the paper names none", False),
    Setting("longest example, in tokens", "trainer.max_length_tokens", 2_048,
            "what is longer is counted, and never cut silently"),
    Setting("precision", "trainer.precision", "bf16", "bf16 with fp32 optimizer state"),
    Setting("gradient clipping", "trainer.max_grad_norm", 1.0, "the usual value"),
    Setting("longest answer, in tokens", "evaluation.max_new_tokens", 512,
            "greedy decoding, cut where the next question begins", False),
    Setting("where items come from", "items.source", _NONE,
            "no release of the translated API-calling data was found", False),
)  # fmt: skip
"""The settings that the paper does not give."""

FIXED = (
    ("checkpoints", "one an epoch"),
    ("tie at the selection of a checkpoint", "the earliest wins"),
    ("loss", "on the response alone"),
    ("last partial batch", "kept: steps = epochs x ceil(items x languages / global batch)"),
    ("decoding", "greedy, zero-shot, for the pretrained baselines too"),
    ("vision tower of Gemma-3-4B", "unused and frozen"),
)
"""The choices that the paper does not give and that the code fixes without a setting."""


def ledger(about: About | None) -> LedgerSection:
    """Return the entries `ours` and `differs`, each with the sweep's values and their frequency.

    Without facts of a sweep the configs are unknown. Then the values are None, and `differs` is empty.
    """
    cells = about.cells if about is not None else ()
    ours = [_entry(setting, cells) for setting in OURS]
    # Without a default, a setting is listed only if a cell has a value.
    ours = [each for each in ours if each.default is not None or each.values is not None or not cells]
    ours += [LedgerEntry(what, "", text, "", None, None) for what, text in FIXED]
    differs = [entry for setting in PAPER if (entry := _entry(setting, cells)).differs]
    return LedgerSection(about is not None, ours, [*differs, *_grid(cells)])


def _entry(setting: Setting, cells: Sequence[CellFacts]) -> LedgerEntry:
    """Return the ledger's entry for a setting, with its values in the cells and whether any differs."""
    counts: Counter[str] = Counter()
    differs = False
    for cell in cells:
        # A baseline has no training languages, and its config's training settings were never used.
        if setting.trained_only and not _languages(cell):
            continue
        value = _extras(cell) if setting.key == "extras" else _pick(cell.config, setting.key)
        if value is _NONE:
            continue
        counts[_text(value)] += 1
        # Compare as JSON, so that a list in a config equals the tuple of a default.
        wanted = _wanted(setting, cell)
        differs = differs or (wanted is not _NONE and _text(value) != _text(wanted))
    default = None if setting.value is _NONE else setting.value
    values = [UsedValue(json.loads(text), num) for text, num in counts.most_common()]
    return LedgerEntry(
        setting.what, setting.key, default, setting.why, values or None, differs if values else None
    )


def _grid(cells: Sequence[CellFacts]) -> Iterator[LedgerEntry]:
    """Yield entries for models, tasks and mixtures if the sweep has others than the study."""
    wanted: tuple[tuple[str, str, list[str], Callable[[CellFacts], str]], ...] = (
        ("models", "model", sorted(paper.PARAMETERS), _model),
        (
            "tasks",
            "task.name",
            sorted(paper.TASKS),
            lambda cell: str(_known(_pick(cell.config, "task.name"))),
        ),
        (
            "mixtures",
            "languages",
            sorted({paper.label_of(names) for names in paper.mixtures()}),
            lambda cell: paper.label_of(paper.in_order(_languages(cell))),
        ),
    )
    for what, key, theirs, label in wanted:
        counts = Counter(label(cell) for cell in cells)
        if cells and sorted(counts) != theirs:
            values = [UsedValue(name, num) for name, num in sorted(counts.items())]
            yield LedgerEntry(what, key, theirs, f"the study has {len(theirs)}", values, differs=True)


def _model(cell: CellFacts) -> str:
    # The path names the model itself, while a config may give it any name.
    name = _pick(cell.config, "model.path")
    if not isinstance(name, str):
        name = _known(_pick(cell.config, "model.name"))
    return paper.canonical_model(str(name))


def _extras(cell: CellFacts) -> Any:
    languages = _languages(cell)
    # Only the mixtures of six contain the two extras; other mixtures have nothing to compare.
    is_six = len(languages) == 6 and paper.left_out(languages) is not None
    return [name for name in languages if name not in paper.CORE] if is_six else _NONE


def _languages(cell: CellFacts) -> list[str]:
    found = _pick(cell.config, "languages")
    return [str(name) for name in found] if isinstance(found, list | tuple) else []


def _wanted(setting: Setting, cell: CellFacts) -> Any:
    if isinstance(setting.value, Mapping):
        return setting.value.get(_pick(cell.config, "task.name"), _NONE)
    return setting.value


def _pick(tree: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return _NONE
        tree = tree[part]
    return tree


def _known(value: Any) -> Any:
    return None if value is _NONE else value


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)


def value_text(value: Any) -> str:
    """Return the value of a setting as people write it."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {value_text(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not set"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def values_text(values: Sequence[UsedValue] | None) -> str:
    """Return the values in a sweep's cells. If they differ, add the number of cells with each."""
    if values is None:
        return ""
    if len(values) == 1:
        return value_text(values[0].value)
    shown = [
        f"{value_text(entry.value)} ({counted(entry.num_cells, 'cell')})" for entry in values[:_MOST_VALUES]
    ]
    return "; ".join(shown) + (f"; {len(values) - _MOST_VALUES} more" if len(values) > _MOST_VALUES else "")
