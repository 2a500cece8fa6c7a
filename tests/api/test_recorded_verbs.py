"""What verbs that read show of a study with cells of every history is as recorded, see ../recording.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.recording import compare_text
from tests.seen import moment, shown
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
    "events": ("events study", "events study --json"),
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store."""
    root = tmp_path_factory.mktemp("study") / "store"
    with moment(NOW_S):
        Study(root)
    return root


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_shown_of_a_study_is_as_recorded(study: Path, name: str) -> None:
    with moment(NOW_S):
        found = "".join(shown(study, *line.split()) for line in COMMANDS[name])
    compare_text(RECORDED / f"{name}.txt", found)
