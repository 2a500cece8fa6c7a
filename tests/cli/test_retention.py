"""Retention as a user meets it: launched with a policy, seen in show and why, in the way of a later plan."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

SWEEP = """
description: a product with parts, of which two stages each like one
config: {seed: 0, like: 0}
axes: {seed: [0, 1], like: [0, 1]}
stages:
  make: {run: "parts:make", reads: [seed]}
  choose: {run: "parts:choose", reads: [seed, like], after: [make]}
"""
MORE = SWEEP.replace("[0, 1]}\nstages", "[0, 1, 2]}\nstages")
PARTS = """
def make(config, inputs, context):
    for part in range(4):
        (context.output / f"part{part}").write_text(f"{config.seed} {part}")
    return []

def choose(config, inputs, context):
    text = (inputs["make"] / f"part{config.like}").read_text()
    context.retire("make", best=[f"part{config.like}"], none=[])
    return [{"text": text}]
"""


@pytest.fixture
def parts(sweep: Any) -> Any:
    (sweep.folder / "parts.yaml").write_text(SWEEP)
    (sweep.folder / "parts.py").write_text(PARTS)
    return sweep


def kept(store: Path) -> list[str]:
    """The parts that are there, of all attempts."""
    return sorted(path.read_text() for path in store.glob("payload/make/*/*/output/part*"))


BEST = ["0 0", "0 1", "1 0", "1 1"]


def test_a_policy_from_launch_to_launch(parts: Any) -> None:
    """Best; then a cell more, which needs what is gone: blocked, discarded as told, made again; then none."""
    said = parts("launch", "parts.yaml", "policy.retention=best")
    assert kept(parts.store) == BEST, said
    cells = parts.json("status", "parts")["cells"]
    assert {cell["state"] for cell in cells} == {"done"}
    show = parts.json("show", "parts", cells[0]["cell"])["stages"][0]
    assert show["files"] == ["part0", "part1"]
    assert [(r["policy"], [f["path"] for f in r["files"]]) for r in show["retired"]] == [
        ("best", ["part2", "part3"])
    ]
    assert "retired of make: 2 files" in parts("show", "parts", cells[0]["cell"])
    why = parts("why", "parts", cells[0]["cell"])
    assert "the rest verified by content" in why and "retired 2 files" in why and "part3" in why
    plan = parts.json("plan", "parts.yaml", "policy.retention=none")
    assert plan["retention"] == "none"
    assert {s["action"] for c in plan["cells"] for s in c["stages"]} == {"reuse"}
    assert "4 done" in parts("launch", "parts.yaml") and kept(parts.store) == BEST

    (parts.folder / "parts.yaml").write_text(MORE)
    plan = parts.json("plan", "parts.yaml")
    blocked = [c["cell"] for c in plan["cells"] if c["state"] == "blocked"]
    assert len(blocked) == 2
    assert f"2 cells blocked: files of its input make were retired: {', '.join(blocked)}" in parts(
        "plan", "parts.yaml"
    )
    said = parts("launch", "parts.yaml", code=1)
    assert "4 done, 2 blocked" in said and kept(parts.store) == BEST
    assert parts.json("status", "parts")["counts"] == {"done": 4, "blocked": 2}
    assert "files of its input make were retired (2 files under policy best)" in parts(
        "why", "parts", blocked[0]
    )

    commands = [shlex.split(line) for line in re.findall(r"^  (sweep .*)$", said, re.MULTILINE)]
    assert [command[1] for command in commands] == ["discard", "launch"]
    parts(*commands[0][1:])
    assert "6 done" in parts(*commands[1][1:])
    assert len(kept(parts.store)) == len(BEST) + 8
    assert [row["text"] for row in parts.json("collect", "parts")] == [
        f"{s} {n}" for s in (0, 1) for n in range(3)
    ]

    said = parts("launch", "parts.yaml", "policy.retention=none")  # all is done: no worker starts
    assert "retired 8 files" in said and "under policy none" in said
    assert kept(parts.store) == BEST
    assert "6 done" in parts("launch", "parts.yaml")


def test_a_policy_that_there_is_not_is_named(parts: Any) -> None:
    said = parts("launch", "parts.yaml", "policy.retention=bset", code=2)
    assert said.startswith("error: policy.retention") and "bset" in said
