"""Amount of work in a cell, from its config alone: rows, steps, tokens, answers, and the sizes of its model.

The module uses no hardware, store or torch. Configs are plain trees here and not schema objects, because a
plan may process ten thousand of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

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
        tree = json.loads((Path(path).expanduser() / "config.json").read_text(encoding="utf-8"))
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
