"""Kept predictions: their file, what they count to, and the check that a row follows from them.

Neither torch nor transformers is imported, so that a bundle is verified without them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.errors import StageFailure, UserError
from orchestrator.registry import TASKS
from orchestrator.sft.data import load_items
from orchestrator.stage import Config, Row
from orchestrator.tasks.base import Task, load_task

PREDICTIONS = "predictions.parquet"

SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("step", pa.int32()),
        ("language", pa.string()),
        ("item_id", pa.string()),
        ("prompt", pa.string()),
        ("generated", pa.string()),
        ("gold", pa.string()),
        ("correct", pa.bool_()),
        ("truncated", pa.bool_()),
        ("num_generated_tokens", pa.int32()),
    ]
)


class Prediction(NamedTuple):
    """One answer to one item, with the fields of `SCHEMA`. `step` is None for the untrained base."""

    split: str
    step: int | None
    language: str
    item_id: str
    prompt: str
    generated: str
    gold: str
    correct: bool
    truncated: bool
    num_generated_tokens: int


class Score(NamedTuple):
    """Number of correct answers of one split and language. `step` is None for the untrained base."""

    split: str
    step: int | None
    language: str
    num_correct: int
    num_items: int
    num_truncated: int = 0

    @property
    def accuracy(self) -> float:
        """Share of correct answers."""
        return self.num_correct / self.num_items


def scores_of(predictions: Iterable[Prediction]) -> list[Score]:
    """Count predictions by split, step and language, in the order in which these first appear."""
    groups: dict[tuple[str, int | None, str], list[Prediction]] = {}
    for one in predictions:
        groups.setdefault((one.split, one.step, one.language), []).append(one)
    return [
        Score(*key, sum(one.correct for one in group), len(group), sum(one.truncated for one in group))
        for key, group in groups.items()
    ]


def select(scores: Sequence[Score]) -> int:
    """Return the step with the highest mean accuracy over the languages. The earliest wins a tie."""
    by_step: dict[int, list[float]] = {}
    for score in scores:
        if score.step is not None:
            by_step.setdefault(score.step, []).append(score.accuracy)
    # Rounded, because means that are mathematically equal may differ in the last bit.
    return max(sorted(by_step), key=lambda step: round(sum(by_step[step]) / len(by_step[step]), 12))


def write(predictions: Sequence[Prediction], folder: Path) -> None:
    """Write predictions into a folder as one Parquet file."""
    columns = [list(column) for column in zip(*predictions, strict=True)]
    pq.write_table(
        pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA), folder / PREDICTIONS
    )


def read(folder: Path) -> list[Prediction]:
    """Return the predictions that `write` wrote."""
    return [Prediction(**row) for row in pq.read_table(folder / PREDICTIONS).to_pylist()]


MAX_PREDICTIONS, MAX_TEXT_BYTES = 5_000_000, 2_000_000_000
"""Most predictions of one file that are read from a stranger, and most bytes of their text."""


def read_bounded(path: Path) -> list[Prediction]:
    """Return the predictions of a file from a stranger, which may claim to be larger than memory.

    Raises:
        ValueError: it is no such file, or larger than any honest one.
    """
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows > MAX_PREDICTIONS or file.schema_arrow != SCHEMA:
                raise ValueError("it does not hold predictions, or too many")
            found, num_bytes = [], 0
            for batch in file.iter_batches(1000):
                num_bytes += batch.nbytes
                if num_bytes > MAX_TEXT_BYTES:
                    raise ValueError(f"its texts have more than {MAX_TEXT_BYTES:,} bytes")
                found += [Prediction(**row) for row in batch.to_pylist()]
            return found
    except (pa.ArrowException, OSError, TypeError) as error:
        raise ValueError(f"it is no file of predictions: {error}") from error


class Rescored(NamedTuple):
    """What kept predictions show about the rows of their stage.

    Attributes:
        faults: phrases; none if all rows follow from the predictions.
        unchecked: why something could not be checked, as phrases.
    """

    faults: tuple[str, ...]
    unchecked: tuple[str, ...]


_EPOCHS, _SUMMARY = "checkpoints", "training.json"
"""Folder and file in a product of `train`, as `orchestrator.sft.checkpoints` and `train` name them."""
_MEASURED = ("train_seconds", "train_tokens", "tokens_per_second", "peak_memory_gib", "num_processes")


def rescored(
    reads: Mapping[str, Any],
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, Path],
) -> Rescored:
    """Score kept predictions again, and compare rows of `evaluate` with what they count to.

    Generated items are generated again, so their prompts and references are compared too. Items of files are
    not there. Nothing is imported by a name that the config holds: only tasks of this installation count.

    Args:
        reads: what the stage read.
        folder: holds the file of predictions.
        rows: that the stage returned.
        inputs: name of a stage to the folder of its product; files may be absent.
    """
    config = Config(reads)
    if config.task.name not in TASKS or dict(config.task).get("target") is not None:
        return Rescored((), (f"the task {config.task.name} is none of this installation",))
    try:
        kept = read_bounded(folder / PREDICTIONS)
    except ValueError as error:
        return Rescored((str(error),), ())
    task = load_task(config.task)
    faults = [*_misjudged(task, kept)]
    unchecked = []
    if config["items"].source == "generated":
        faults += _other_items(task, config, kept)
    else:
        unchecked.append("prompts and references, which come from files that are not here")
    scores = scores_of(kept)
    tested = [score for score in scores if score.split == "validation" and score.step is not None]
    selected = select(tested) if tested else None
    counted = {(s.split, s.language): s for s in scores if s.step == selected}
    if len(rows) != len(counted):
        faults.append(f"{len(rows)} rows, and the predictions give {len(counted)}")
    common = _common(config, selected, inputs.get("train"))
    for row in rows:
        faults += _differences(row, counted, common)
    if "train" in inputs:
        validated = {score.step for score in tested}
        epochs = {int(path.name) for path in (inputs["train"] / _EPOCHS).glob("[0-9]*")}
        # Weights of epochs may be retired; the summary of the training always stays.
        number = _summary(inputs["train"]).get("num_epochs", len(validated))
        if not epochs <= validated or number != len(validated):
            faults.append("the validated steps are not those at which the training ended an epoch")
    return Rescored(tuple(faults), tuple(unchecked))


def _misjudged(task: Task, kept: Sequence[Prediction]) -> Iterator[str]:
    """Yield each prediction whose recorded verdict is not the scorer's."""
    for one in kept:
        found = bool(task.is_correct(one.generated, one.gold, one.language, truncated=one.truncated))
        if found != one.correct:
            yield f"{_name(one)} is recorded as {_word(one.correct)}, and the scorer finds it {_word(found)}"


def _other_items(task: Task, config: Config, kept: Sequence[Prediction]) -> Iterator[str]:
    """Yield each difference between the items of the predictions and those that the task generates."""
    groups: dict[tuple[str, int | None, str], list[Prediction]] = {}
    for one in kept:
        groups.setdefault((one.split, one.step, one.language), []).append(one)
    made: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}
    for (split, _, language), group in groups.items():
        if (split, language) not in made:
            try:
                items = load_items(task, split, language, config["items"], Config({}))
            except (StageFailure, UserError) as error:
                yield f"{split} items in {language}: {error}"
                return
            made[split, language] = {item.id: (item.prompt, item.gold) for item in items}
        wanted = made[split, language]
        if sorted(one.item_id for one in group) != sorted(wanted):
            yield f"the {split} predictions in {language} are not one for each item"
        for one in group:
            if one.item_id in wanted and (one.prompt, one.gold) != wanted[one.item_id]:
                yield f"{_name(one)} has another prompt or reference than the item"
    expected = {("test", language) for language in config.evaluation.languages}
    expected |= {("validation", language) for language in config.languages}
    if expected != {(split, language) for split, _, language in groups}:
        yield "the predictions are not those of the configured languages"


def _common(config: Config, selected: int | None, train: Path | None) -> Row:
    """Return the columns of all rows that follow from the config, the selection and the training."""
    found: Row = {
        "model": config.model.name,
        "task": config.task.name,
        "languages": ",".join(config.languages),
        "num_languages": len(config.languages),
        "seed": config.seed,
        "pretrained": selected is None,
        "selected_step": selected,
    }
    if train is not None and (summary := _summary(train)):
        found |= {name: summary.get(name) for name in _MEASURED}
    return found


def _summary(train: Path) -> dict[str, Any]:
    """Return the summary of a training; nothing where there is none."""
    path = train / _SUMMARY
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _differences(
    row: Mapping[str, Any], counted: Mapping[tuple[str, str], Score], common: Mapping[str, Any]
) -> Iterator[str]:
    """Yield each value of a row that does not follow from the scores, the config and the training."""
    name = f"the row {row.get('split')} {row.get('eval_language')}"
    score = counted.get((str(row.get("split")), str(row.get("eval_language"))))
    if score is None:
        yield f"{name} has no predictions"
        return
    found = {
        **common,
        "num_correct": score.num_correct,
        "num_items": score.num_items,
        "num_truncated": score.num_truncated,
        "accuracy": score.accuracy,
    }
    for key, value in found.items():
        if row.get(key) != value:
            yield f"{name} has {key}={row.get(key)}, and the records give {value}"


def _name(one: Prediction) -> str:
    step = "" if one.step is None else f" of step {one.step}"
    return f"{one.split} item {one.item_id} in {one.language}{step}"


def _word(is_correct: bool) -> str:
    return "right" if is_correct else "wrong"
