"""Read and check result rows from a file or from `collect`: one `Result` per cell and evaluation language.

Missing columns are filled in where this is safe. Anything that would make a number wrong is an error. This
module computes no statistics.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.errors import UserError, nearest
from orchestrator.reporting import About
from orchestrator.study import paper

Row = Mapping[str, Any]
NEEDED = ("model", "task", "languages", "eval_language", "num_items")
"""Columns that rows must have."""

_BASELINE = frozenset({"", "none", "null", "nan", "na"})
"""Texts in the column `languages` that mean a baseline."""

_ROUNDED = 0.005
"""Tolerance between an `accuracy` and the counts beside it. Either may be rounded, so a difference of one
item is accepted as well."""


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True, order=True):
    """The result of one cell on the test items of one language.

    Attributes:
        model: the model.
        task: the task.
        languages: the training languages in the study's order; empty for the baseline.
        eval_language: the language of the test items.
        seed: the seed as text, "" if it is not given.
        num_correct: the number of right answers.
        num_items: the number of items.
        accuracy: the share of right answers, from 0 to 1.
        label: the name of the mixture.
        family: the family of the model, such as ``qwen``.
        num_parameters: the number of parameters, None if it is unknown.
    """

    model: str
    task: str
    languages: tuple[str, ...]
    eval_language: str
    seed: str
    num_correct: int
    num_items: int
    accuracy: float
    label: str
    family: str
    num_parameters: int | None

    @property
    def count(self) -> tuple[int, int]:
        """The number of right answers and the number of items."""
        return self.num_correct, self.num_items

    @property
    def num_languages(self) -> int:
        """The number of training languages; 0 for the pretrained baseline."""
        return len(self.languages)


def fits(rows: Sequence[Row], *, about: About | None = None) -> bool:
    """Return whether the study's report fits some rows, or a sweep that has none yet."""
    if rows:
        return any(all(name in row for name in NEEDED) for row in rows)
    cells = about.cells if about else ()
    return bool(cells) and all({*NEEDED[:3]} <= {*cell.axes, *cell.columns, *cell.config} for cell in cells)


def read_table(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a Parquet, CSV or JSON file, as `collect` writes them.

    Raises:
        UserError: there is no such file, it does not match its suffix, or it has no rows.
    """
    if not path.is_file():
        raise UserError(f"no file {path}", fix="sweep collect SWEEP --out rows.parquet makes one")
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise UserError(f"{path} has none of the known endings", allowed=", ".join(_READERS))
    try:
        rows = _READERS[suffix](path)
    # The errors of pyarrow and msgspec are subclasses of these. A broken file is the user's to repair.
    except (
        OSError,
        ValueError,
        NotImplementedError,
        csv.Error,
    ) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read as {suffix[1:]}: {first}") from error
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.ParquetFile(path).read().to_pylist()
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream, strict=True))
    for number, row in enumerate(rows, start=1):
        # DictReader collects surplus fields under the key None.
        if None in row:
            raise ValueError(f"row {number} has more fields than the header")
    return rows


def _read_json(path: Path) -> list[dict[str, Any]]:
    return msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])


_READERS: Mapping[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".json": _read_json,
}


def results(rows: Sequence[Row], *, where: str = "the table") -> list[Result]:
    """Return the test results among rows, sorted, so that the order of rows changes nothing.

    Rows of other stages and of other splits are ignored. Missing columns are filled in: `num_correct` from
    `accuracy` and the reverse, the parameters from the study's models, and the family from the model's
    name.

    Raises:
        UserError: a needed column is missing, a value is invalid, or two rows are of the same cell and
            language. The error names the row.
    """
    _check_columns(rows, where)
    found: dict[tuple[object, ...], int] = {}
    read: list[Result] = []
    for number, row in enumerate(rows, start=1):
        # Rows of other stages have neither an evaluation language nor a result.
        if _absent(row.get("eval_language")) and all(
            _absent(row.get(k)) for k in ("num_correct", "accuracy")
        ):
            continue
        if not _absent(row.get("split")) and str(row["split"]) != "test":
            continue
        result = _RowReader(row, f"{where}, row {number}").result()
        key = (result.model, result.task, result.languages, result.seed, result.eval_language)
        if key in found:
            raise UserError(
                f"two rows for {result.model} {result.task} {result.label}, tested in {result.eval_language}",
                where=f"{where}, rows {found[key]} and {number}",
                allowed="one row for each model, task, mixture, seed and evaluation language",
                fix="keep one of them, or report a selection (--only)",
            )
        found[key] = number
        read.append(result)
    return sorted(read)


def languages_of(value: Any) -> tuple[str, ...]:
    """Return a mixture's languages, from a list or from text such as ``en,es``.

    An empty value means the baseline.
    """
    if _absent(value):
        return ()
    if not isinstance(value, str):
        return tuple(str(name) for name in value)
    if value.strip("[](){} ").lower() in _BASELINE:
        return ()
    return tuple(re.findall(r"[^\s,;+|/&\[\](){}'\"]+", value))


def _check_columns(rows: Sequence[Row], where: str) -> None:
    columns = {name for row in rows for name in row}
    missing = [name for name in NEEDED if name not in columns]
    if not columns & {"num_correct", "accuracy"}:
        missing.append("num_correct")
    if rows and missing:
        raise UserError(
            f"no column {', '.join(missing)}",
            where=where,
            allowed="; ".join(f"{name}: {nearest(name, columns, limit=30)}" for name in missing),
            fix=f"needed are {', '.join(NEEDED)}, and num_correct or accuracy",
        )


def _absent(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


class _RowReader:
    """A reader of the values of one row. Its errors name the row and the column."""

    def __init__(self, row: Row, where: str) -> None:
        self._row = row
        self._where = where

    def result(self) -> Result:
        model, languages = self._text("model"), self._languages()
        num_items = self._whole("num_items", 1)
        accuracy = self._accuracy()
        num_correct = self._num_correct(num_items, accuracy)
        label = self._row.get("mixture")
        family = self._row.get("family")
        parameters = self._row.get("num_parameters")
        return Result(
            model=model,
            task=self._text("task"),
            languages=languages,
            eval_language=self._text("eval_language").lower(),
            seed=self._seed(),
            num_correct=num_correct,
            num_items=num_items,
            accuracy=num_correct / num_items if accuracy is None else accuracy,
            label=paper.label_of(languages) if _absent(label) else str(label),
            family=("qwen" if "qwen" in model.lower() else "gemma" if "gemma" in model.lower() else "other")
            if _absent(family)
            else str(family).lower(),
            num_parameters=paper.PARAMETERS.get(paper.canonical_model(model))
            if _absent(parameters)
            else self._whole("num_parameters", 1),
        )

    def _languages(self) -> tuple[str, ...]:
        languages = paper.in_order([name.lower() for name in languages_of(self._row.get("languages"))])
        if len(set(languages)) < len(languages):
            raise self._error("languages", "a language occurs twice")
        return languages

    def _num_correct(self, num_items: int, accuracy: float | None) -> int:
        """Return the number of right answers, which must agree with the accuracy if both are given."""
        if _absent(self._row.get("num_correct")):
            if accuracy is None:
                raise self._error("num_correct", "neither it nor accuracy is given")
            return round(accuracy * num_items)
        num_correct = self._whole("num_correct", 0)
        if num_correct > num_items:
            raise self._error("num_correct", f"it is more than num_items, {num_items}")
        if (
            accuracy is not None
            and abs(accuracy - num_correct / num_items) > max(_ROUNDED, 1 / num_items) + 1e-9
        ):
            raise self._error("accuracy", f"the counts say {num_correct / num_items:.4f}")
        return num_correct

    def _accuracy(self) -> float | None:
        if _absent(self._row.get("accuracy")):
            return None
        accuracy = self._number("accuracy")
        if not 0 <= accuracy <= 1:
            raise self._error("accuracy", "it must be a share, from 0 to 1")
        return accuracy

    def _seed(self) -> str:
        seed = self._row.get("seed")
        if _absent(seed):
            return ""
        text = str(seed)
        # A table with empty cells may have its seeds as floats.
        return text.removesuffix(".0") if re.fullmatch(r"-?\d+\.0", text) else text

    def _text(self, name: str) -> str:
        if _absent(self._row.get(name)):
            raise self._error(name, "it is empty")
        return str(self._row[name]).strip()

    def _whole(self, name: str, least: int) -> int:
        number = self._number(name)
        if number != int(number) or number < least:
            raise self._error(name, f"it must be a whole number of at least {least}")
        return int(number)

    def _number(self, name: str) -> float:
        value = self._row.get(name)
        try:
            number = math.nan if isinstance(value, bool) or value is None else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self._error(name, "it must be a number")
        return number

    def _error(self, name: str, why: str) -> UserError:
        return UserError(f"{name} is {self._row.get(name)!r}: {why}", where=self._where)
