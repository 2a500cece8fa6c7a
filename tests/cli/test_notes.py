"""What a stage notes in its rows is a line of the status."""

from __future__ import annotations

from typing import Any

SWEEP = """
description: a stage that leaves some rows out
config: {seed: 0}
axes: {seed: [0, 1, 2]}
stages:
  some: {run: "some:main", reads: [seed]}
"""
STAGE = """
def main(config, inputs, context):
    note = "te 3 of 24 rows left out" if config.seed else None
    return [{"accuracy": 0.5, "notes": note}, {"accuracy": 0.6, "notes": note}]
"""


def test_a_note_in_the_rows_is_said_once_with_the_number_of_its_cells(sweep: Any) -> None:
    (sweep.folder / "some.yaml").write_text(SWEEP)
    (sweep.folder / "some.py").write_text(STAGE)
    sweep("launch", "some.yaml")
    lines = sweep("status", "some").splitlines()
    assert [line for line in lines if "left out" in line] == ["note: te 3 of 24 rows left out (2 cells)"]
