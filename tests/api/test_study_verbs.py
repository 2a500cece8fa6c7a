"""What verbs that read show of a study with cells of every history is as recorded, see ../recording.py."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from orchestrator.provenance import user
from tests.recording import compare_text
from tests.seen import as_lines, moment, pictured, shown
from tests.store.study import HISTORIES, Study, sweep_of
from tests.store.study_records import NOW_S

RECORDED = Path(__file__).parent / "recorded"
CELLS = dict(zip(HISTORIES, (cell.id for cell in sweep_of().cells), strict=True))
"""A cell of each history."""

COMMANDS: Mapping[str, Sequence[str]] = {
    "status": (
        "list",
        "status study",
        "status study --spent",
        "status study --json",
        "status study --json --spent --only state=failed",
        "status study --only model=large",
        "status study --only mixture=fr",
        "status nothing",
        "status study@2",
    ),
    "why": [
        *(f"why study {cell}" for cell in CELLS.values()),
        *(
            f"why study {CELLS[name]} --json"
            for name in ("retried", "renewed", "waiting", "job_failed", "running")
        ),
    ],
    "show": (f"show study {CELLS['retried']}", f"show study {CELLS['renewed']} --json", "show study small"),
    "failures": (
        "failures study",
        "failures study --json",
        "failures study --only mixture=no-sw",
        "nodes",
        "nodes --json",
        "nodes study",
        f"diff study {CELLS['done']} {CELLS['retried']}",
        f"diff study {CELLS['done']} {CELLS['retried']} --json",
        "decisions study",
        f"logs study {CELLS['failed']}",
        f"logs study {CELLS['done']} --stage fit --json",
        f"logs study {CELLS['retried']} --stage fit --attempt 1",
        f"logs study {CELLS['retried']} --stage fit --attempt 9",
        f"logs study {CELLS['waiting']}",
        f"logs study {CELLS['waiting']} --job",
    ),
    "rows": (
        "collect study",
        "collect study --json",
        "collect study --wide",
        "collect study --only model=small --format csv --wide",
        "best study accuracy",
        "best study loss --json",
        "best study loss --over mixture --top 0",
        "best study accuracy --over model --max --json",
        "best study nothing",
    ),
    "events": ("events study", "events study --json", "events study --after none"),
    "plan": (
        "plan study@1",
        "plan study@1 --json --device h100 --only model=large",
        "plan study@1 --gpus 4 --only model=small",
        "plan study@1 --gpus 8 --budget",
        "plan study@1 --budget policy.budget.gpu_hours=20",
        "plan study@1 --budget --json policy.budget.gpu_hours=30",
        "plan study@1 --device abacus",
        "plan study@1 --only state=done",
    ),
    "simulate": (
        "simulate study@1 --gpus 4 --seed 1",
        "simulate study@1 --gpus 4 --gpus-per-node 4 --failures x1000 --preempt-every 3h --job-start 60s"
        " --estimate-error 0.3 --json",
        "simulate study@1 --gpus 3 --moldable --grid-order",
        "simulate study@1 --gpus 1",
        "simulate study@1 --gpus 0",
        "simulate study@1 --gpus 4 --estimate-error 9",
        "simulate study@1 --gpus 4 --preempt-every 60s",
    ),
}  # fmt: skip
ACTS = (
    "cancel study --only mixture=all",
    "cancel study --only mixture=none --json",
    "cancel study --only mixture=none",
    "cancel study --only state=done",
    "discard study mixture=en --stage fit --reason wrong",
    "discard study mixture=de --stage score --reason wrong --json",
    "discard study mixture=de --stage none --reason wrong",
    "status study",
    "events study --after sweeps/study/requests/000002",
    "nodes --clear node9",
    "nodes --clear node3",
    "nodes",
    "clean",
    "clean --drop study",
    "clean --drop study --yes --json",
    "clean --drop nothing",
    "wait study --timeout 0",
    "wait study --timeout 0 --until failed --json",
    "wait study --timeout 0 --until stalled",
    "wait study --timeout -1",
    "reconcile study",
    "decisions study --verify",
    "prefetch study@1",
    "upgrade",
)
TABLES = ("cells", "stages", "attempts", "results", "failures", "jobs")
QUERIES = (
    *(f"select * from {name} order by all" for name in TABLES),
    "select stage, metric, count(*) n, sum(value) s, max(step) m from metrics group by all order by all",
    "select * from predictions",
    "select 1; select 2",
    "select nothing from cells",
    "delete from cells",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store."""
    return made(tmp_path_factory.mktemp("study") / "store")


def made(root: Path) -> Path:
    """Make the store."""
    with moment(NOW_S):
        Study(root)
    return root


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_shown_of_a_study_is_as_recorded(study: Path, name: str) -> None:
    with moment(NOW_S):
        found = "".join(shown(study, *line.split()) for line in COMMANDS[name])
    compare_text(RECORDED / f"{name}.txt", found)


def test_what_is_changed_in_a_study_is_as_recorded(tmp_path: Path) -> None:
    root = made(tmp_path / "store")
    with moment(NOW_S):
        found = "".join(shown(root, *line.split()) for line in ACTS).replace(user(), "ann@login")
    compare_text(RECORDED / "acts.txt", found)


def test_what_is_asked_about_a_study_is_as_recorded(study: Path, tmp_path: Path) -> None:
    pytest.importorskip("duckdb", reason="the extra `query` is not installed")
    with moment(NOW_S):
        os.environ["SWEEP_CACHE"] = str(tmp_path)
        found = "".join(shown(study, "query", query, "--json") for query in QUERIES)
        found += shown(study, "query", "select cell, state, seconds from cells order by all limit 3")
    compare_text(RECORDED / "query.txt", found)


def test_the_report_of_a_study_is_as_recorded(study: Path, tmp_path: Path) -> None:
    importlib.import_module("matplotlib.font_manager")  # with its cache, which no moment has
    with moment(NOW_S):
        os.environ["SWEEP_CACHE"] = str(tmp_path)
        found = shown(study, "report", "study", "--out", tmp_path / "report", "--over", "mixture")
    report = json.loads((tmp_path / "report/report.json").read_text())
    found += "".join(f"{line}\n" for line in as_lines(report))
    for path in sorted((tmp_path / "report").glob("*.svg")):
        found += "".join(f"{line}\n" for line in pictured(path))
    for name in ("report.md", "cells.csv"):
        found += f"==== {name}\n{(tmp_path / 'report' / name).read_text()}"
    compare_text(RECORDED / "report.txt", found.replace(str(tmp_path), "HERE"))
