"""The suites of tasks, generators and reports, which are called as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orchestrator.errors import StageFailure, UserError
from orchestrator.registry import GENERATORS, REPORTS, TASKS, load, lookup
from orchestrator.reporting import About, CellFacts, call, wants_facts

SPLITS = ("train", "validation", "test")

ODD_TEXTS = ("", " ", "\n", "\0", "{", "}", "[[", "ünïcödé ٣", "🙂" * 50, "0" * 5000, "a\n" * 2000)
"""Texts that a model may generate, and that no scorer may trip over."""


class TaskContract:
    """What every task must do: equal items in all languages, held out, and a scorer that knows its answers.

    A subclass sets `name` and `row`.

    Attributes:
        name: of the task, as in the registry or the entry point.
        languages: in which it has items; at least one.
        sizes: items to generate of each split.
        row: a row of a file in the task's form.
    """

    name: str = ""
    languages: Sequence[str] = ("en", "es")
    sizes: Mapping[str, int] = {"train": 8, "validation": 2, "test": 2}
    row: Mapping[str, Any] = {}

    @property
    def task(self) -> Any:
        """The task."""
        return lookup(TASKS, self.name, kind="task")

    def test_it_is_found_by_its_name_and_describes_its_files(self) -> None:
        assert self.task.name == self.name and self.task.description.endswith("\n")

    def test_items_are_the_same_in_every_language_and_at_each_call(self) -> None:
        for split in SPLITS:
            items = {lang: self.items(split, lang) for lang in self.languages}
            first = [item.id for item in items[self.languages[0]]]
            assert len(first) == self.sizes[split] == len(set(first))
            for language, found in items.items():
                assert [item.id for item in found] == first
                assert {item.language for item in found} == {language}
                assert self.items(split, language) == found

    def test_no_text_of_a_split_is_in_another_whatever_the_seeds(self) -> None:
        for language in self.languages:
            texts = {
                (split, seed): {item.prompt for item in self.items(split, language, seed)}
                for split in SPLITS
                for seed in (0, 1)
            }
            for (split, _), found in texts.items():
                for (other, _), others in texts.items():
                    assert split == other or not found & others

    def test_prompts_end_with_a_newline_and_answers_are_right(self) -> None:
        for split in SPLITS:
            for language in self.languages:
                for item in self.items(split, language):
                    assert item.prompt.endswith("\n") and not item.prompt.endswith(" \n")
                    for text in (item.response, f"{item.response}\n\n{item.prompt}"):
                        cut = self.task.stop(text)
                        assert self.task.is_correct(cut, item.gold, language), (item, text)
                        assert self.task.stop(cut) == cut and text.startswith(cut)

    def test_no_text_makes_it_raise(self) -> None:
        (item, *_) = self.items("test", self.languages[0])
        for text in ODD_TEXTS:
            for truncated in (False, True):
                verdict = self.task.is_correct(
                    self.task.stop(text), item.gold, self.languages[0], truncated=truncated
                )
                assert isinstance(verdict, bool)
        assert not self.task.is_correct("", item.gold, self.languages[0])

    def test_a_row_of_a_file_becomes_an_item_and_one_without_its_fields_is_refused(self) -> None:
        language = self.languages[0]
        assert self.task.looks_like(self.row) and not self.task.looks_like({"something": "else"})
        line = self.task.line_of(self.row, id_="7", language=language, where="here")
        assert line["id"] == "7" and all(isinstance(value, str) for value in line.values())
        assert self.task.problem_of(line) == ""
        item = self.task.item_of(line, language)
        assert (item.id, item.language) == ("7", language)
        assert self.task.is_correct(self.task.stop(item.response), item.gold, language)
        with pytest.raises(UserError, match="here"):
            self.task.line_of({}, id_="7", language=language, where="here")

    def test_an_unknown_split_and_more_items_than_there_are_are_refused(self) -> None:
        with pytest.raises(UserError):
            self.task.generate("tests", self.languages[0], 1)
        with pytest.raises(UserError):
            self.task.generate("test", self.languages[0], 10**6)

    def items(self, split: str, language: str, seed: int = 0) -> list[Any]:
        """Return generated items."""
        found: list[Any] = self.task.generate(split, language, self.sizes[split], seed)
        return found


class GeneratorCase(NamedTuple):
    """What a generator is tried with.

    Attributes:
        folder: of a model.
        rows: at least two prompts, of different lengths.
        eos_token_id, pad_token_id: of the model.
    """

    folder: Path
    rows: list[list[int]]
    eos_token_id: int = 2
    pad_token_id: int = 0


class GeneratorContract:
    """What every generator must do: greedy tokens, in the order of the rows, that end where they should.

    A subclass sets `name`, and overrides the fixture `case` if the generator reads a model.

    Attributes:
        name: as `evaluation.engine`.
        reads_model: whether it fails for a folder without a model.
        max_new_tokens: of each call.
    """

    name: str = ""
    reads_model = True
    max_new_tokens = 16

    @pytest.fixture
    def case(self, tmp_path: Path) -> GeneratorCase:
        """Return rows of some tokens, and an empty folder."""
        return GeneratorCase(tmp_path, [[3, 4, 5], [6], [7, 8, 9, 10, 11]])

    def made(self, case: GeneratorCase, eos_token_id: int | None = None) -> Any:
        """Return the generator with its model loaded."""
        settings = load("orchestrator.sft.generators.base:GeneratorSettings")(
            device=load("torch:device")("cpu"),
            precision="fp32",
            eos_token_id=case.eos_token_id if eos_token_id is None else eos_token_id,
            pad_token_id=case.pad_token_id,
        )
        engine = lookup(GENERATORS, self.name, kind="engine")(settings)
        engine.load(case.folder)
        return engine

    def generated(self, engine: Any, rows: Sequence[Sequence[int]], over: int | None = None) -> Any:
        """Return the new tokens of rows, of which one may be over at once."""
        limit = self.max_new_tokens
        return engine.generate(rows, max_new_tokens=limit, is_over=lambda row, tokens: row == over)

    def test_rows_come_in_order_are_no_longer_than_asked_and_the_same_again(
        self, case: GeneratorCase
    ) -> None:
        engine = self.made(case)
        found = self.generated(engine, case.rows)
        assert len(found) == len(case.rows)
        for tokens in found:
            assert 0 < len(tokens) <= self.max_new_tokens
            assert case.eos_token_id not in tokens[:-1]
            assert len(tokens) == self.max_new_tokens or tokens[-1] == case.eos_token_id
        assert self.generated(engine, case.rows) == found
        assert self.generated(engine, case.rows[::-1]) == found[::-1]

    def test_the_end_token_ends_a_row(self, case: GeneratorCase) -> None:
        whole = self.generated(self.made(case), case.rows)
        end = whole[0][len(whole[0]) // 2]
        found = self.generated(self.made(case, end), case.rows)
        expected = [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in whole]
        assert found[0] == expected[0] and found[0][-1] == end

    def test_a_row_that_is_over_ends_and_no_other_changes(self, case: GeneratorCase) -> None:
        engine = self.made(case)
        whole = self.generated(engine, case.rows)
        found = self.generated(engine, case.rows, over=0)
        assert found[0] == whole[0][: len(found[0])] and found[1:] == whole[1:]

    def test_rows_that_are_computed_apart_do_not_influence_each_other(self, case: GeneratorCase) -> None:
        engine = self.made(case)
        if not engine.is_batched:
            whole = self.generated(engine, case.rows)
            assert [self.generated(engine, [row])[0] for row in case.rows] == whole

    def test_a_folder_without_a_model_fails_by_data(self, case: GeneratorCase, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        if self.reads_model:
            with pytest.raises(StageFailure) as caught:
                self.made(case).load(tmp_path / "empty")
            assert caught.value.cause == "data"


class ReportContract:
    """What every report must do: write files for rows, also for those of a half-finished sweep.

    A subclass sets `name` and `rows`.

    Attributes:
        name: as `report` of a sweep.
        rows: of at least two cells, each with ``cell``.
        texts: endings of files that must be equal for equal rows.
    """

    name: str = ""
    rows: Sequence[Mapping[str, Any]] = ()
    texts: Sequence[str] = (".txt", ".md", ".csv", ".json", ".tex")

    def written(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
        """Call the report as ``sweep report`` does, and return its files."""
        folder.mkdir()
        cells = dict.fromkeys(str(row["cell"]) for row in self.rows)
        done = {str(row["cell"]) for row in rows}
        facts = tuple(CellFacts(cell=c, state="done" if c in done else "pending") for c in cells)
        about = About(sweep="sweep", revision=1, cells=facts)
        offers: dict[str, Callable[[], Any]] = {"about": lambda: about, "curves": tuple, "over": lambda: ()}
        return call(lookup(REPORTS, self.name, kind="report"), rows, folder, offers)

    def test_it_writes_what_it_returns_into_its_folder_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        found = self.written(self.rows, tmp_path / "out")
        assert found and len(set(found)) == len(found)
        assert all(path.is_file() and path.is_relative_to(tmp_path / "out") for path in found)
        assert not list((tmp_path / "here").iterdir())

    def test_equal_rows_give_equal_texts_and_stay_as_they_are(self, tmp_path: Path) -> None:
        before = copy.deepcopy(list(self.rows))
        folders = [tmp_path / "a", tmp_path / "b"]
        names = [[path.relative_to(folder) for path in self.written(self.rows, folder)] for folder in folders]
        assert list(self.rows) == before and names[0] == names[1]
        for name in names[0]:
            if name.suffix in self.texts:
                assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()

    def test_a_sweep_that_is_not_finished_has_a_report(self, tmp_path: Path) -> None:
        first = [row for row in self.rows if row["cell"] == self.rows[0]["cell"]]
        assert self.written(first, tmp_path / "part")
        if wants_facts(lookup(REPORTS, self.name, kind="report")):
            self.written([], tmp_path / "none")
