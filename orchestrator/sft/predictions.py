"""Every prediction of an evaluation: kept as Parquet, counted into scores, and the state to resume from.

It knows neither models nor tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

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
    """One answer to one item; `step` is None for the untrained base. The fields are those of `SCHEMA`."""

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
    """Right answers of one split and language; `step` is None for the untrained base."""

    split: str
    step: int | None
    language: str
    num_correct: int
    num_items: int
    num_truncated: int = 0

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.num_correct / self.num_items


def scores_of(predictions: Iterable[Prediction]) -> list[Score]:
    """Counts predictions by split, step and language, in the order in which these first appear."""
    groups: dict[tuple[str, int | None, str], list[Prediction]] = {}
    for one in predictions:
        groups.setdefault((one.split, one.step, one.language), []).append(one)
    return [
        Score(*key, sum(one.correct for one in group), len(group), sum(one.truncated for one in group))
        for key, group in groups.items()
    ]


def select(scores: Sequence[Score]) -> int:
    """Returns the step with the highest mean accuracy over the languages; the earliest wins a tie."""
    by_step: dict[int, list[float]] = {}
    for score in scores:
        if score.step is not None:
            by_step.setdefault(score.step, []).append(score.accuracy)
    return max(sorted(by_step), key=lambda step: round(sum(by_step[step]) / len(by_step[step]), 12))


def write(predictions: Sequence[Prediction], folder: Path) -> None:
    """Writes predictions into a folder as one Parquet file."""
    columns = [list(column) for column in zip(*predictions, strict=True)]
    pq.write_table(
        pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA), folder / PREDICTIONS
    )


def read(folder: Path) -> list[Prediction]:
    """Reads what `write` wrote."""
    return [Prediction(**row) for row in pq.read_table(folder / PREDICTIONS).to_pylist()]
