"""The reports of made-up tables of the study are as recorded, see ../recording.py: all but their figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.reporting import About, AttemptFacts, LaunchFacts, RetryFacts
from orchestrator.study import summary
from orchestrator.study.report import write
from tests.recording import compare_text
from tests.seen import as_lines
from tests.study.tables import minimal, study_rows
from tests.study.test_page import study_cell

RECORDED = Path(__file__).parent / "recorded"
MODELS = ("qwen3-0.6b", "gemma3-4b")


def rows_of(**more: Any) -> list[dict[str, Any]]:
    """The rows of two models."""
    return study_rows(models=MODELS, **more)


def about() -> About:
    """What the engine knows of them: cells in several states, retries and launches."""
    cells = [
        study_cell("qwen3-0.6b", "math", "en", learning_rate=2e-5),
        study_cell("qwen3-0.6b", "math", "all"),
        study_cell("gemma3-4b", "api_calling", "none", state="failed"),
        study_cell("gemma3-4b", "math", "core", state="running", num_epochs=3),
    ]
    attempts = (
        AttemptFacts(number=1, outcome="failed", why="oom_gpu", message="no memory"),
        AttemptFacts(number=2, outcome="succeeded", changed={"trainer.micro_batch_size": (64, 32)}),
    )
    return About(
        sweep="multilingual_220",
        revision=2,
        description="two models",
        made_at="2027-01-15T10:00:00Z",
        cells=tuple(cells),
        stages=("prepare", "train", "evaluate"),
        retries=(RetryFacts(stage="train", cells=(cells[0].cell,), attempts=attempts),),
        launches=(
            LaunchFacts(
                number=1, verb="launch", at="2027-01-15T08:00:00Z", by="ann@login", command="sweep launch"
            ),
            LaunchFacts(number=2, verb="rerun", at="2027-01-15T09:00:00Z", by="ann@login", code="v2"),
        ),
        notes=("3 cells are merged",),
    )


def test_the_report_of_a_part_of_the_study_is_as_recorded(tmp_path: Path) -> None:
    rows = rows_of()
    write(rows, tmp_path, about=about(), drawn=False)
    compare_text(RECORDED / "part.txt", (tmp_path / "report.md").read_text())


def test_the_numbers_of_few_mixtures_are_as_recorded(tmp_path: Path) -> None:
    few = [row for row in rows_of() if row["mixture"] in ("none", "en", "en+es", "no-sw", "core", "no-sw+2")]
    few = [row for row in few if row["task"] == "math" and row["eval_language"] in ("en", "sw", "te")]
    write(minimal(few), tmp_path, drawn=False)
    text = (tmp_path / "report.json").read_text()
    found = json.loads(text, parse_float=lambda number: float(f"{float(number):.9g}"))
    del found["status"]["cells"]  # which their groups name
    compare_text(RECORDED / "numbers.txt", "\n".join(as_lines(found, depth=3)))


def test_the_summary_of_a_part_of_the_study_is_as_recorded(tmp_path: Path) -> None:
    rows = [row for row in rows_of() if row["mixture"] in ("none", "en", "core", "all")]
    compare_text(RECORDED / "summary.txt", summary.markdown(rows))
