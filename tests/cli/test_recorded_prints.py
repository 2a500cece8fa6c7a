# ruff: noqa: E501 - tables are one line
"""What a launch prints of a study at its end, and the layout of its tables, is as recorded, see ../recording.py."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.api.planning import CellGpus
from orchestrator.api.state import open_view
from orchestrator.cli import budget, launch, output, progress
from orchestrator.core.settings import Policy, SpendingLimit
from tests.recording import compare_text
from tests.seen import moment, plain
from tests.store.study import Study
from tests.store.study_records import NOW_S

RECORDED = Path(__file__).parent / "recorded"

TABLE = (
    ("cell", "state", "reason", "n"),
    ("a", "done", "", "1"),
    ("a.long.id-0123456789", "failed", "row 17 of the table has no answer, and row 18 has two of them", "22"),
    ("会議", "running", "a_word_that_is_longer_than_any_column_may_be_and_is_not_broken and more", "333"),
)


def titled(what: str) -> None:
    print(f"\n## {what}")


def end_of_a_launch(root: Path) -> None:
    view = open_view("study", str(root))
    cells = list(view.sweep.cells)
    for name, some in (("all", cells), ("one", cells[:1]), ("none", [])):
        titled(f"progress of {name}")
        last = progress.print_progress(view, some, "")
        progress.print_progress(view, some, last)
        print(progress.count_stages(view, some)[:2])
    titled("failures")
    progress.print_failures(view, cells)
    titled("failures of some")
    progress.print_failures(view, cells[:5])
    titled("remarks")
    progress.print_remarks(view, cells, None)
    progress.print_remarks(view, cells, SimpleNamespace(notes=("one", "two")))  # type: ignore[arg-type]
    titled("why cells wait")
    print(progress.hold_lines(view, cells))
    titled("a rerun")
    launch._print_rerun(view, cells[:6], Policy())
    limits = SpendingLimit(gpu_hours=3.0, until="2027-02-01T00:00:00+00:00")
    launch._print_rerun(view, [], Policy(rehearse=False, breaker=3, budget=limits))
    titled("a problem")
    progress._print_problem("the scheduler does not answer\nsqueue: error\ntry later")


def scripts() -> None:
    submissions = [
        SimpleNamespace(number=3, tasks=(("a", "b"), ("c",))),
        SimpleNamespace(number=4, tasks=(("d",),)),
    ]
    given = SimpleNamespace(
        scripts=[(each, f"#!/bin/bash\nrun {each.number}") for each in submissions], num_held=1
    )
    for behind in (0, 2):
        titled(f"scripts, {behind} behind")
        given.behind, given.limit = behind, "launcher.max_jobs=2"
        print(launch._print_scripts(given, ["at most 2 jobs"] if behind else ()))  # type: ignore[arg-type]


def gpus_and_tables() -> None:
    chosen = {f"cell{number}": CellGpus(1 + number % 3, 1, f"why {number}") for number in range(70)}
    for name, some in (("none", {}), ("few", dict(itertools.islice(chosen.items(), 3))), ("many", chosen)):
        titled(f"GPUs of {name}")
        budget.print_gpus(some)
    for width in (None, 200, 80, 50, 20):
        titled(f"a table in {width}")
        lines = output.layout(
            TABLE[0], TABLE[1:], width, style=lambda text, held: text, title=lambda text, held: text.upper()
        )
        print("\n".join(lines))
    titled("files")
    for number in (1, 6, 7, 9):
        output.print_written([Path(f"report/{index}.csv") for index in range(number)])
    output.print_lines(["a", "b"], indent=3)
    output.indented("c")
    print(output.length("会議 x"), output.styled())


def command_lines() -> None:
    titled("the same again")
    for words in (
        ["night", "lr=0.1", "--only", "state=failed x=1", "--name", "two"],
        ["lr=1,2", "--run", "python fit.py {lr}", "--shell", "--metric", "a=(b)", "--keep", "*.pt"],
        ["--app", "train.py", "model=a,b", "--volatile", "x", "--volatile", "y"],
    ):
        parser = argparse.ArgumentParser()
        progress.add_composing(parser)
        args = parser.parse_intermixed_args(words)
        if args.app or args.run:
            args.overrides = [args.sweep] if args.sweep else args.overrides
        print(progress.again("launch", args))


def over_budgets(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop = [{"cell": "a", "gpu_hours": 1.5, "claims": 3}, {"cell": "b", "gpu_hours": 0.25, "claims": 0}]
    found: dict[str, Any] = {
        "spent_gpu_hours": 3.0, "needed_gpu_hours": 4.0, "holds_gpus": True, "fits": False, "fits_without": True, "drop": drop,
        "claims": 1200, "claims_lost": 3, "rule": "the fewest first", "has_ended": True, "later": None,
        "budget": {"gpu_hours": 5.0, "until": "2027-01-01"},
    }  # fmt: skip
    limit = SpendingLimit(gpu_hours=5.0, until="2027-01-01T00:00:00+00:00")
    for name, changed in (
        ("too much", {}), ("still too much", {"fits_without": False}), ("enough", {"fits": True, "has_ended": False, "needed_gpu_hours": 1.0}),
        ("no GPUs", {"holds_gpus": False, "fits": True, "needed_gpu_hours": 0.0}), ("no limit", {"budget": {"gpu_hours": None, "until": None}}),
    ):  # fmt: skip
        titled(f"a budget: {name}")
        monkeypatch.setattr(budget, "budget_json", lambda plan, changed=changed: {**found, **changed})
        hardware = SimpleNamespace(max_gpus=8, device="a100")
        settings = SimpleNamespace(policy=SimpleNamespace(budget=limit))
        plan: Any = SimpleNamespace(hardware=hardware, settings=settings, view=open_view("study", str(root)))
        budget.print_budget(plan, as_json=False)
        print(budget.over_budget_lines(plan))
    settings.policy.budget = SpendingLimit()
    print(budget.over_budget_lines(plan))


def test_what_is_printed_at_the_end_of_a_launch_is_as_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "store"
    with moment(NOW_S):
        Study(root)
        end_of_a_launch(root)
        over_budgets(root, monkeypatch)
    scripts()
    gpus_and_tables()
    command_lines()
    found = capsys.readouterr()
    compare_text(
        RECORDED / "prints.txt", plain(found.out + found.err, {str(root): "STORE", str(tmp_path): "FOLDER"})
    )
