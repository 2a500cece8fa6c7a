"""The report as its reader sees it: the page, the Markdown, the figures, the ledger and what is missing."""

from __future__ import annotations

import base64
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.reporting import About, AttemptFacts, CellFacts, LaunchFacts, RetryFacts, call
from orchestrator.reports import page
from orchestrator.reports.page import Table
from orchestrator.study import comparison, paper, provenance_tables
from orchestrator.study.report import numbers_of, write
from orchestrator.study.sections import UsedValue
from tests.recording import compare_text
from tests.seen import pictured
from tests.study.tables import EVAL_LANGUAGES, minimal, study_mixtures, study_rows

pytestmark = pytest.mark.xdist_group("page")  # they share what is expensive to make

ODD = '<script>alert("x")</script> & $x^2$ | *y*'
VOID = {"meta", "img", "br", "link", "input", "hr"}
TRAINER = {
    "learning_rate": 1e-5,
    "num_epochs": 6,
    "global_batch_size": 512,
    "micro_batch_size": 64,
    "warmup_share": 0.03,
    "weight_decay": 0.01,
    "gradient_checkpointing": True,
    "max_length_tokens": 2048,
    "max_grad_norm": 1.0,
    "precision": "bf16",
}
ITEMS = {"math": (10_000, 200, 250), "api_calling": (3_024, 150, 399)}


class Outline(html.parser.HTMLParser):
    """Checks that tags are balanced, and keeps what a reader is given."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.stack, self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def study_cell(model: str, task: str, mixture: str, *, state: str = "done", **changes: Any) -> CellFacts:
    """A cell of the study as the engine describes it; `changes` are of its trainer."""
    train, validation, test = ITEMS[task]
    languages = list(study_mixtures()[mixture])
    return CellFacts(
        cell=f"{model}.{task}.{mixture}",
        axes={"model": model, "task": task, "mixture": mixture},
        config={
            "model": {"name": model, "path": None, "revision": "abc"},
            "task": {"name": task},
            "languages": languages,
            "seed": 0,
            "trainer": {**TRAINER, **changes},
            "items": {"num_train": train, "num_validation": validation, "num_test": test, "source": "files"},
            "evaluation": {"languages": list(EVAL_LANGUAGES), "max_new_tokens": 512},
        },
        state=state,
        cause="oom_gpu" if state == "failed" else "",
        reason="train: too big" if state == "failed" else "",
    )


def whole_study() -> About:
    cells = [study_cell(m, t, mix) for m in paper.PARAMETERS for t in paper.TASKS for mix in study_mixtures()]
    return About(sweep="multilingual_220", revision=1, cells=tuple(cells))


@pytest.fixture(scope="module")
def odd_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report of a model with a name that is code in HTML, Markdown and mathematics."""
    folder = tmp_path_factory.mktemp("odd")
    rows = study_rows(models=[ODD], tasks=["math"], num_items={"math": 20})
    about = About(
        sweep="odd",
        revision=3,
        description=ODD,
        cells=(CellFacts(cell="a", axes={"model": ODD, "task": "math"}, state="failed", reason=ODD),),
        retries=(
            RetryFacts(
                stage="train",
                cells=("a",),
                attempts=(
                    AttemptFacts(number=1, outcome="failed", why="oom_gpu", message=ODD),
                    AttemptFacts(number=2, outcome="succeeded", changed={"trainer.micro": (64, 32)}),
                ),
            ),
        ),
        launches=(LaunchFacts(number=1, verb="launch", command=f"sweep launch {ODD}"),),
    )
    write(rows, folder, about=about)
    return folder


def test_the_pictures_are_as_recorded(odd_page: Path) -> None:
    found = [line for path in sorted(odd_page.glob("*.svg")) for line in pictured(path)]
    found += sorted(path.name for path in odd_page.iterdir())
    compare_text(Path(__file__).parent / "recorded/figures.txt", "\n".join(found))


def test_the_page_is_whole_in_itself_and_shows_names_as_text(odd_page: Path) -> None:
    text = (odd_page / "report.html").read_text()
    outline = Outline(text)
    tags = {name for name, _ in outline.tags}
    assert not tags & {"script", "link", "iframe", "object", "base", "form"}
    assert not re.search(r"https?://|@import|url\(|javascript:", text)
    for name, attributes in outline.tags:
        assert not {key for key in attributes if key.startswith("on")}, (name, attributes)
    assert ODD in outline.text


def test_the_page_can_be_used_without_seeing_it(odd_page: Path) -> None:
    outline = Outline((odd_page / "report.html").read_text())
    images = outline.attributes("img")
    assert len(images) == 6 and all(len(str(image["alt"])) > 30 for image in images)
    assert all(cell.get("scope") in ("col", "row") for cell in outline.attributes("th"))
    assert [name for name, _ in outline.tags].count("caption") == len(outline.attributes("table"))
    ids = [str(attrs["id"]) for _, attrs in outline.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {str(a["href"])[1:] for a in outline.attributes("a")} <= set(ids)
    assert outline.attributes("html") == [{"lang": "en"}]


def test_the_pictures_in_the_page_are_the_files_beside_it(odd_page: Path) -> None:
    images = Outline((odd_page / "report.html").read_text()).attributes("img")
    inside = [base64.b64decode(str(image["src"]).partition("base64,")[2]) for image in images]
    assert inside == [(odd_page / f"figure{n}.svg").read_bytes() for n in (2, 3, 4, 7, 8, 9)]
    assert all(b"<script" not in svg for svg in inside)
    assert all((odd_page / f"figure{n}.png").read_bytes().startswith(b"\x89PNG") for n in (2, 3, 4, 7, 8, 9))


def test_the_page_tells_of_retries_remedies_and_launches(odd_page: Path) -> None:
    text = Outline((odd_page / "report.html").read_text()).text
    assert "1 failed (oom_gpu): " in text and "2 succeeded" in text
    assert "attempt 2: trainer.micro 64 → 32" in text
    assert f"sweep launch {ODD}" in text
    assert "Sweep odd, revision 3" in text


@pytest.mark.long  # the numbers are compared in test_numbers, the files in tests/cli/test_report
def test_equal_rows_in_any_order_give_equal_bytes(tmp_path: Path) -> None:
    rows = minimal(study_rows(models=["qwen3-8b"], tasks=["math"], num_items={"math": 20}))
    first = write(rows, tmp_path / "first")
    second = write(rows[::-1], tmp_path / "second")
    assert [path.name for path in first] == [path.name for path in second]
    for path, other in zip(first, second, strict=True):
        assert path.read_bytes() == other.read_bytes(), path.name


def test_files_of_an_earlier_report_without_rows_now_are_removed_and_others_stay(tmp_path: Path) -> None:
    write(study_rows(models=["qwen3-8b"], tasks=["math"], num_items={"math": 20}), tmp_path)
    (tmp_path / "mine.png").write_bytes(b"mine")
    left = {path.name for path in write([], tmp_path)}
    assert {path.name for path in tmp_path.iterdir()} == {*left, "mine.png"}
    assert not any(name.startswith("figure") for name in left)
    assert "The table holds no results" in (tmp_path / "report.html").read_text()


def test_report_json_has_no_number_that_json_cannot_say(odd_page: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads((odd_page / "report.json").read_text(), parse_constant=refuse)


def test_missing_cells_are_named_in_as_few_lines_as_states_models_and_tasks() -> None:
    done = study_cell("qwen3-8b", "math", "en")
    lost = [study_cell("qwen3-8b", "math", mix, state="failed") for mix in ("en+es", "core")]
    waiting = [study_cell("gemma3-1b", "math", mix, state="pending") for mix in study_mixtures()]
    about = About(sweep="s", revision=1, cells=(done, *waiting, *lost))
    rows = study_rows(models=["qwen3-8b"], tasks=["math"], mixtures={"en": ("en",)})
    report = numbers_of(rows[:-1], about)  # without Telugu
    assert report.status.states == {"done": 1, "pending": 23, "failed": 2}
    shown = [row[:5] for row in provenance_tables.missing(report).rows]
    assert shown[0] == ("failed (oom_gpu)", "qwen3-8b", "Math", "2", "en+es, core")
    assert shown[1][:4] == ("pending", "gemma3-1b", "Math", "23") and shown[1][4].startswith("none, en, ")
    assert len(shown) == 2
    assert provenance_tables.headline(report)[0] == "1 of 26 cells is done; 23 pending, 2 failed."


def test_a_done_cell_that_lacks_a_language_is_named() -> None:
    rows = study_rows(models=["qwen3-8b"], tasks=["math"])
    shown = provenance_tables.missing(numbers_of(rows[:-1])).rows
    assert [(row[0], row[4], row[5]) for row in shown] == [("rows of some languages", "all", "all lacks te")]


def test_the_ledger_of_the_study_itself_has_no_difference_from_the_paper() -> None:
    found = msgspec.to_builtins(comparison.ledger(whole_study()))
    assert found["known"] and found["differs"] == []
    settings = {entry["key"]: entry for entry in found["ours"] if entry["key"]}
    assert settings["trainer.max_length_tokens"]["values"] == [{"value": 2048, "num_cells": 220}]
    assert not any(entry["differs"] for entry in found["ours"])
    extras = next(entry for entry in found["ours"] if "extras" in entry["what"])
    assert extras["values"] == [{"value": ["fr", "th"], "num_cells": 50}]


def test_the_ledger_names_each_setting_that_is_not_the_paper_s_and_in_how_many_cells() -> None:
    cells = [
        study_cell("qwen3-8b", "math", "en"),
        study_cell("qwen3-8b", "math", "en+es", learning_rate=3e-4),
    ]
    cells.append(study_cell("tiny", "math", "none", num_epochs=1))  # a baseline: it trains nothing
    cells.append(study_cell("qwen3-8b", "math", "core", max_grad_norm=0.5))
    found = msgspec.to_builtins(comparison.ledger(About(sweep="s", revision=1, cells=tuple(cells))))
    differs = {entry["key"]: entry for entry in found["differs"]}
    assert set(differs) == {"trainer.learning_rate", "model", "task.name", "languages"}
    values = differs["trainer.learning_rate"]["values"]
    assert values == [{"value": 1e-5, "num_cells": 2}, {"value": 3e-4, "num_cells": 1}]
    assert [entry["key"] for entry in found["ours"] if entry["differs"]] == ["trainer.max_grad_norm"]
    used = [UsedValue(**value) for value in values]
    assert comparison.values_text(used) == "1e-05 (2 cells); 0.0003 (1 cell)"


def test_the_ledger_of_a_table_says_that_nobody_knows() -> None:
    found = msgspec.to_builtins(comparison.ledger(None))
    assert not found["known"] and all(entry["values"] is None for entry in found["ours"])
    assert {row[3] for row in provenance_tables.ours(numbers_of([])).rows} == {"unknown"}


def test_hours_are_seconds_times_devices_once_a_cell() -> None:
    rows = [{**row, "num_gpus": 8} for row in study_rows(models=["qwen3-8b"], tasks=["math"])]
    spent = numbers_of(rows).gpu_hours
    assert spent.num_cells == 22 and spent.total == pytest.approx(22 * 8)
    assert numbers_of(minimal(rows)).gpu_hours.total is None


def test_markdown_shows_what_would_be_markup_as_text() -> None:
    table = Table("t", "a|b", ("x", "#n"), [(ODD, "1"), ("two\nlines", "2")])
    lines = page.section(table).splitlines()
    assert lines[0] == "## a\\|b"
    assert lines[3] == "| --- | ---: |"
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines[2:6])
    assert "\\<script\\>" in lines[4]


def test_a_section_without_anything_says_so() -> None:
    text = page.render("t", subtitle="s", sections=[page.Section("k", "Kept", empty="Nothing here.")])
    assert "Nothing here." in Outline(text).text


def test_a_report_is_told_the_facts_only_if_it_asks(tmp_path: Path) -> None:
    told: list[Any] = []

    def plain(rows: Any, folder: Path) -> list[Path]:
        told.append(len(rows))
        return []

    def knowing(rows: Any, folder: Path, *, about: About | None) -> list[Path]:
        told.append(about)
        return []

    about = About(sweep="s", revision=1)
    for report in (plain, knowing):
        assert call(report, [{}], tmp_path, {"about": lambda: about}) == []
    assert told == [1, about]
