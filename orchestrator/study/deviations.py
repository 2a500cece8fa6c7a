"""The deviation ledger: our choices where the paper is silent, and the cells that differ from the paper.

The paper is arXiv 2604.13286, sections 3 and 4. A key names an entry of a cell's config.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.reporting import About, CellFacts
from orchestrator.study import paper
from orchestrator.study.paper import counted

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
    Setting("gradient checkpointing", "trainer.gradient_checkpointing", True, "section 3"),
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


def ledger(about: About | None) -> dict[str, Any]:
    """Return the entries `ours` and `differs`, each with the sweep's values and their frequency.

    Without facts of a sweep the configs are unknown. Then the values are null, and `differs` is empty.
    """
    cells = about.cells if about is not None else ()
    ours = [entry for setting in OURS if _is_told(entry := _entry(setting, cells), cells)]
    ours += [
        {"what": what, "key": "", "default": text, "why": "", "values": None, "differs": None}
        for what, text in FIXED
    ]
    differs = [entry for setting in PAPER if (entry := _entry(setting, cells))["differs"]]
    differs += _grid(cells)
    return {"known": about is not None, "ours": ours, "differs": differs}


def _is_told(entry: Mapping[str, Any], cells: Sequence[CellFacts]) -> bool:
    """Return whether to list an entry. Without a default, it is listed only if a cell has a value."""
    return entry["default"] is not None or entry["values"] is not None or not cells


def _entry(setting: Setting, cells: Sequence[CellFacts]) -> dict[str, Any]:
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
    values = [{"value": json.loads(text), "num_cells": num} for text, num in counts.most_common()]
    return {
        "what": setting.what,
        "key": setting.key,
        "default": default,
        "why": setting.why,
        "values": values or None,
        "differs": differs if values else None,
    }


def _grid(cells: Sequence[CellFacts]) -> list[dict[str, Any]]:
    """Return entries for models, tasks and mixtures if the sweep has others than the study."""
    if not cells:
        return []
    wanted: tuple[tuple[str, str, list[str], Callable[[CellFacts], str | None]], ...] = (
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
    entries = []
    for what, key, theirs, label in wanted:
        counts = Counter(found for cell in cells if (found := label(cell)) is not None)
        if sorted(counts) != theirs:
            values = [{"value": name, "num_cells": num} for name, num in sorted(counts.items())]
            why = f"the study has {len(theirs)}"
            entries.append(
                {"what": what, "key": key, "default": theirs, "why": why, "values": values, "differs": True}
            )
    return entries


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


def values_text(values: Sequence[Mapping[str, Any]] | None) -> str:
    """Return the values in a sweep's cells. If they differ, add the number of cells with each."""
    if values is None:
        return ""
    if len(values) == 1:
        return value_text(values[0]["value"])
    shown = [
        f"{value_text(entry['value'])} ({counted(entry['num_cells'], 'cell')})"
        for entry in values[:_MOST_VALUES]
    ]
    return "; ".join(shown) + (f"; {len(values) - _MOST_VALUES} more" if len(values) > _MOST_VALUES else "")
