"""The reports that ship pass the suite of all reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.api.reports import write_report
from orchestrator.api.state import SweepState
from orchestrator.cli.progress import write_reports
from orchestrator.errors import UserError
from orchestrator.reports import general
from orchestrator.testing import ReportContract
from tests.store import states

ROWS = [
    {"cell": f"{name}.seed{seed}", "name": name, "seed": seed, "loss": 0.1 * seed + len(name)}
    for name in ("a", "bb")
    for seed in (0, 1)
]


class TestGeneral(ReportContract):
    name = "general"
    rows = ROWS


def broken(rows: Any, folder: Path) -> list[Path]:
    """Fails, as a user's own report may."""
    raise ZeroDivisionError("no rows left")


def small(rows: Any, folder: Path) -> list[Path]:
    """Writes the number of rows."""
    (folder / "small.md").write_text(f"{len(rows)} rows\n")
    return [folder / "small.md"]


def forgetful(rows: Any, folder: Path) -> None:
    """Returns nothing, as a function without `return` does."""
    (folder / "forgotten.md").write_text("")


def lost(rows: Any, folder: Path) -> list[Path]:
    """Names a file that it did not write."""
    return [folder / "lost.md"]


def leaving(rows: Any, folder: Path) -> list[Path]:
    """Ends the process, as a script does."""
    raise SystemExit(0)


def reported(made: states.Made) -> SweepState:
    """A sweep whose reports are the two above."""
    report = [f"tests.api.test_report_contract:{name}" for name in ("broken", "small")]
    return SweepState(made.ledger, msgspec.structs.replace(made.sweep, report=report), 1, sealed=True)


def test_a_report_that_fails_at_the_end_of_a_launch_is_an_error_and_the_others_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_reports(reported(states.make(tmp_path, {"n": ["1", "2"]}, ["done"])))
    out, err = capsys.readouterr()
    assert "4 rows" in out and "small.md" in out and "Traceback" in err and "in broken" in err
    assert "broken failed: ZeroDivisionError: no rows left" in err.splitlines()[-1]


def test_reports_of_a_sweep_without_rows_are_named_and_are_no_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_reports(reported(states.make(tmp_path, {"n": ["3"]}, ["pending"])))
    out, err = capsys.readouterr()
    assert out == "" and err.count("no rows yet, so nothing for the report") == 2 and "error" not in err


def test_a_cell_without_a_metric_that_others_have_is_a_line_with_a_dash(tmp_path: Path) -> None:
    metrics = {"a": {"loss": 0.5, "accuracy": 1.0}, "b": {"loss": 0.25}, "c": {"accuracy": 0.75}}
    rows = [{"cell": name, "sweep": "s", "name": name, **numbers} for name, numbers in metrics.items()]
    general.write(rows, tmp_path, drawn=False)
    lines = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| ")]
    cells = {line.split("|")[1].strip(): [text.strip() for text in line.split("|")[2:-1]] for line in lines}
    assert [cells[name][-2:] for name in "abc"] == [["0.5", "1 ★"], ["0.25 ★", "–"], ["–", "0.75"]]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("forgetful", "forgetful returned None"),
        ("lost", r"lost returned \[.*lost.md"),
        ("leaving", "leaving exits with 0"),
    ],
)
def test_a_report_that_returns_no_list_of_its_files_is_refused(
    tmp_path: Path, name: str, problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        write_report(f"{__name__}:{name}", [{"n": 1}], tmp_path, {}, where="here", notify=print)
