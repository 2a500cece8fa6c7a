"""Amount of work in a cell, from its config alone, and the speed and memory of cells that have run.

The work is rows, steps, tokens, answers, and the sizes of the model. In estimates a measured speed takes the
place of a guess. The module uses no hardware, store or torch. Configs are plain trees here and not schema
objects, because a plan may process ten thousand of them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from orchestrator.costs import Finished, Measured
from orchestrator.errors import counted, home_expanded
from orchestrator.sft.memory import SIZES, Decoder, decoder

Positive = Annotated[float, msgspec.Meta(gt=0)]
Utilisation = Annotated[float, msgspec.Meta(gt=0, le=1)]


class TaskFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Facts on one task's items.

    Attributes:
        num_train: items per language if `items.num_train` is null.
        num_validation: likewise.
        num_test: likewise.
        generated: tokens of a generated item; None for as many as real ones have.
        tokens: family of tokenizer to language to the tokens of prompt and response together.
        train_length_factor: length of training items relative to the counted ones.
        length_spread: standard deviation of the logarithm of an item's tokens, within a language.
    """

    num_train: Annotated[int, msgspec.Meta(ge=1)]
    num_validation: Annotated[int, msgspec.Meta(ge=1)]
    num_test: Annotated[int, msgspec.Meta(ge=1)]
    generated: Positive | None = None
    tokens: dict[str, dict[str, Positive]]
    train_length_factor: Positive = 1.0
    length_spread: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.5

    def __post_init__(self) -> None:
        if not self.tokens or not all(self.tokens.values()):
            raise ValueError("tokens are of no family, or of no language")

    def table(self, family: str | None) -> tuple[str, dict[str, float]]:
        """Return a family and its tokens by language; the first family if this one is not listed."""
        name = family if family in self.tokens else next(iter(self.tokens))
        return str(name), self.tokens[str(name)]

    def of_languages(self, languages: Sequence[str], family: str | None) -> float:
        """Return the tokens of one item in all of the languages. A missing language counts as the mean."""
        table = self.table(family)[1]
        mean = sum(table.values()) / len(table)
        return sum(table.get(language, mean) for language in languages)


class Guess(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Assumed utilisation of models with at least this many parameters."""

    billions: Annotated[float, msgspec.Meta(ge=0)]
    mfu: Utilisation


class CostsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The section `costs` of a cell's config.

    Attributes:
        tasks: name of a task to its facts.
        mfu: model FLOPs utilisation of training, by size.
        generation_mfu: utilisation while generating answers.
    """

    tasks: dict[str, TaskFacts]
    mfu: tuple[Guess, ...]
    generation_mfu: Utilisation

    def __post_init__(self) -> None:
        if not any(guess.billions == 0 for guess in self.mfu):
            raise ValueError("mfu has no guess for the smallest models: {billions: 0, mfu: ...}")

    def mfu_of(self, num_parameters: int) -> float:
        """Return the assumed utilisation for a model of this size."""
        fitting = [guess for guess in self.mfu if guess.billions * 1e9 <= num_parameters]
        return max(fitting, key=lambda guess: guess.billions).mfu


Tree = Mapping[str, Any]
"""A cell's config as a plain tree."""

_converted: dict[int, tuple[Any, CostsConfig]] = {}


class TrainingWork(NamedTuple):
    """Steps and tokens of all epochs of training on a mixture, and notes on their source.

    Attributes:
        validated: validation rows after an epoch for each of its training rows.
    """

    num_steps: int
    num_tokens: int
    notes: tuple[str, ...]
    validated: float


class Answers(NamedTuple):
    """Number of answers that `evaluate` generates, and the tokens of prompts and answers together."""

    number: int
    num_tokens: float


def costs_of(cell: Tree) -> CostsConfig | None:
    """Return the assumptions of a plan.

    None for a config sealed before this section existed, and for one without facts on the cell's task.
    """
    tree = cell.get("costs")
    if tree is None:
        return None
    # Cells share sections that do not differ, so each is converted once. The tree is kept, so its id stays
    # taken.
    known = _converted.get(id(tree))
    if known is None or known[0] is not tree:
        known = tree, msgspec.convert(tree, CostsConfig)
        _converted[id(tree)] = known
    return known[1] if cell["task"]["name"] in known[1].tasks else None


def training(cell: Tree, costs: CostsConfig) -> TrainingWork:
    """Return the steps and tokens of training.

    There are ``num_epochs * ceil(n * L / global batch)`` steps, for n items in each of L languages. The last
    step of an epoch may have fewer rows.
    """
    facts, languages = costs.tasks[cell["task"]["name"]], cell["languages"]
    num_train = cell["items"]["num_train"] or facts.num_train
    num_epochs = cell["trainer"]["num_epochs"]
    tokens = num_epochs * num_train * _item_tokens(cell, facts, languages)
    notes = []
    if not cell["items"]["num_train"]:
        notes.append(f"items.num_train is null: {num_train:,} a language")
    if not _is_tiny(cell, facts):
        tokens *= facts.train_length_factor
        family, table = facts.table(cell["model"]["family"])
        factor = f", times {facts.train_length_factor:g} (ours)" if facts.train_length_factor != 1 else ""
        notes.append(f"tokens of {cell['task']['name']} as in costs.tasks for {family}{factor}")
        missing = [language for language in languages if language not in table]
        if missing:
            notes.append(f"no token count of {', '.join(missing)}: the mean of the others")
    steps = math.ceil(num_train * len(languages) / cell["trainer"]["global_batch_size"])
    validated = (cell["items"]["num_validation"] or facts.num_validation) / num_train
    return TrainingWork(num_epochs * steps, round(tokens), tuple(notes), validated)


def expected_lengths(cell: Tree, costs: CostsConfig) -> tuple[float, ...]:
    """Return the expected tokens of a training row, by language of the mixture."""
    facts = costs.tasks[cell["task"]["name"]]
    factor = 1.0 if _is_tiny(cell, facts) else facts.train_length_factor
    return tuple(factor * _item_tokens(cell, facts, [language]) for language in cell["languages"])


def answers(cell: Tree, costs: CostsConfig) -> Answers:
    """Return the number of answers: of each epoch to validation items, of one model to test items."""
    facts, items = costs.tasks[cell["task"]["name"]], cell["items"]
    languages, tested = cell["languages"], cell["evaluation"]["languages"]
    num_validation = cell["trainer"]["num_epochs"] * (items["num_validation"] or facts.num_validation)
    num_test = items["num_test"] or facts.num_test
    return Answers(
        num_validation * len(languages) + num_test * len(tested),
        num_validation * _item_tokens(cell, facts, languages) + num_test * _item_tokens(cell, facts, tested),
    )


def _is_tiny(cell: Tree, facts: TaskFacts) -> bool:
    """Return whether items are generated ones, whose tokens were counted with a tiny vocabulary."""
    return cell["items"]["source"] == "generated" and facts.generated is not None


def _item_tokens(cell: Tree, facts: TaskFacts, languages: Sequence[str]) -> float:
    """Return the tokens of one item in all of some languages together."""
    if facts.generated is not None and _is_tiny(cell, facts):
        return facts.generated * len(languages)
    return facts.of_languages(languages, cell["model"]["family"])


def model_of(cell: Tree) -> Decoder | None:
    """Return the sizes of the cell's model, from the config or from its local folder; None if unknown."""
    model = cell["model"]
    if model["architecture"] is not None:
        return decoder(model["architecture"], model["family"])
    return _decoder_in(model["path"]) if model["path"] else None


def _decoder_in(path: str) -> Decoder | None:
    """Read the sizes from a folder's config.json; None for a hub id, or a model of another kind."""
    try:
        tree = json.loads((home_expanded(path) / "config.json").read_text(encoding="utf-8"))
        # A multimodal model has the sizes of its text decoder in a section of its own.
        tree = tree.get("text_config", tree)
        heads = tree["num_attention_heads"]
        sizes = {
            "num_key_value_heads": heads,
            "head_dim": tree["hidden_size"] // heads,
            "tie_word_embeddings": True,
        }
        # What the config states replaces the defaults above; many configs state null.
        sizes.update((key, value) for key, value in tree.items() if value is not None)
        return decoder({name: sizes[key] for name, key in SIZES.items()}, tree.get("model_type"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


def cells(number: int) -> str:
    """Return a text on how many cells something was measured."""
    return f"{counted(number, 'cell')} of the same model and task"


class Speed(NamedTuple):
    """Measurements of the cells of one model and task; None where there are none.

    Attributes:
        num_cells: number of trained cells that were measured.
        mixtures: languages to the number of tokens that training on them had.
        token_factor: measured tokens divided by those computed from facts.
        seconds_per_token: of one device, by the number of devices of the cells.
        peak_memory_gib: of one device, the largest.
        num_evaluations: number of cells whose evaluation was measured.
        seconds_per_answer: wall time of `evaluate` divided by its answers, loading and scoring included.
        is_rehearsed: whether the speed is that of a rehearsal, because no cell has ended yet.
        save_s: seconds that a checkpoint took in the rehearsal; None if that is not known.
    """

    num_cells: int = 0
    mixtures: Mapping[tuple[str, ...], int] = {}
    token_factor: float = 1.0
    seconds_per_token: Mapping[int, float] = {}
    peak_memory_gib: float | None = None
    num_evaluations: int = 0
    seconds_per_answer: float | None = None
    is_rehearsed: bool = False
    save_s: float | None = None

    @property
    def source(self) -> str:
        """What was measured, for people."""
        if self.is_rehearsed:
            return "a rehearsal of the same model and task"
        return cells(self.num_cells)

    def tokens(self, cell: Tree, computed: int) -> int:
        """Return the tokens of a cell: those measured for its mixture, or the computed ones, corrected."""
        return self.mixtures.get(tuple(cell["languages"])) or round(self.token_factor * computed)

    @property
    def efficiency(self) -> float:
        """Share of the speed that is kept for each doubling of the devices; 0 unless two sizes were measured.

        It is the slope of the line through the measured sizes, in logarithms, by least squares. Below a half,
        more devices would take longer.
        """
        if len(self.seconds_per_token) < 2:
            return 0.0
        slope, _ = statistics.linear_regression(
            [math.log2(number) for number in self.seconds_per_token],
            [math.log2(seconds) for seconds in self.seconds_per_token.values()],
        )
        return float(min(1.0, max(0.5, 2.0**-slope)))

    def seconds_at(self, num_gpus: int) -> float | None:
        """Return the time of one device for a token, scaled from the nearest measured number of devices."""
        if not self.seconds_per_token:
            return None
        nearest = min(self.seconds_per_token, key=lambda number: abs(math.log2(number / num_gpus)))
        lost = (self.efficiency or 1.0) ** math.log2(num_gpus / nearest)
        return float(self.seconds_per_token[nearest] / lost)


_NOTHING = Speed()


def speed_of(cell: Tree, measured: Measured, costs: CostsConfig) -> Speed:
    """Return the measurements of cells with this cell's model, task and items."""
    return measured.once(_Speeds).of(cell, costs) if measured else _NOTHING


class _Speeds:
    """All measurements of a plan, by everything that tokens and speed depend on."""

    def __init__(self, measured: Measured) -> None:
        self._finished: dict[Hashable, list[Finished]] = {}
        self._speeds: dict[Hashable, Speed] = {}
        self._rehearsed: dict[Hashable, list[Mapping[str, Any]]] = {}
        for finished in measured.get("rehearse", ()):
            # That of cells without a training measured none.
            rows = [row for row in finished.rows if row.get("save_seconds") is not None]
            self._rehearsed.setdefault(_key(finished.config), []).extend(rows)
        for finished in measured.get("evaluate", ()):
            if finished.rows:
                self._finished.setdefault(_key(finished.config), []).append(finished)

    def of(self, cell: Tree, costs: CostsConfig) -> Speed:
        """Return the measurements that apply to a cell."""
        key = _key(cell)
        if key not in self._finished and not self._rehearsed.get(key):
            return _NOTHING
        # Computed once per key: a plan of thousands of cells has few of them.
        if key not in self._speeds:
            # A whole cell outranks a rehearsal, whose rows are longer than others.
            finished = self._finished.get(key)
            self._speeds[key] = (
                _summary(finished, costs) if finished else _of_rehearsals(self._rehearsed[key])
            )
        return self._speeds[key]


def _of_rehearsals(rows: list[Mapping[str, Any]]) -> Speed:
    """Return the measurements of rehearsals."""
    seconds: dict[int, list[float]] = {}
    for row in rows:
        if row.get("tokens_per_second"):
            seconds.setdefault(row["num_processes"], []).append(
                row["num_processes"] / row["tokens_per_second"]
            )
    return Speed(
        seconds_per_token={number: statistics.median(found) for number, found in sorted(seconds.items())},
        peak_memory_gib=max((row["peak_memory_gib"] for row in rows), default=None),
        is_rehearsed=True,
        save_s=statistics.median(row["save_seconds"] for row in rows) if rows else None,
    )


def _key(cell: Tree) -> Hashable:
    """Return what tokens and speed depend on. Cells with equal keys share their measurements."""
    items, trainer = cell["items"], cell["trainer"]
    names = (cell["model"]["name"], cell["task"]["name"], items["source"])
    return (*names, items["num_train"], trainer["num_epochs"], trainer["max_length_tokens"])


def _summary(finished: list[Finished], costs: CostsConfig) -> Speed:
    """Return the measurements of finished cells as one `Speed`. Medians ignore single slow machines."""
    rows: list[tuple[Tree, Mapping[str, Any]]] = [
        (one.config, one.rows[0]) for one in finished if one.rows[0].get("train_tokens")
    ]
    seconds: dict[int, list[float]] = {}
    for _, row in rows:
        if row.get("tokens_per_second"):
            number = row.get("num_gpus") or row.get("num_processes") or 1
            seconds.setdefault(number, []).append(number / row["tokens_per_second"])
    # Corrects the computed tokens of mixtures that no cell has measured.
    factors = [row["train_tokens"] / max(1, training(cell, costs).num_tokens) for cell, row in rows]
    return Speed(
        num_cells=len(rows),
        mixtures={tuple(cell["languages"]): int(row["train_tokens"]) for cell, row in rows},
        token_factor=statistics.median(factors) if factors else 1.0,
        seconds_per_token={number: statistics.median(found) for number, found in sorted(seconds.items())},
        peak_memory_gib=max(
            (row["peak_memory_gib"] for _, row in rows if row.get("peak_memory_gib")), default=None
        ),
        num_evaluations=len(finished),
        seconds_per_answer=statistics.median(
            one.seconds / answers(one.config, costs).number for one in finished
        ),
    )
